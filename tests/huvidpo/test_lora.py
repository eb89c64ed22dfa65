"""Adapters merged into weights give what the adapted network gives; adapters that fit nothing are refused."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import Tensor, nn
from unet_configs import TINY_KINDS

from huvidpo.checkpoint import with_weights
from huvidpo.errors import CheckpointError
from huvidpo.lora import merge, peft_names, split_lora
from huvidpo.unet import VideoUNet

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
ALPHA = 8.0


def random_unet(kind: str = "sd1") -> VideoUNet:
    """Random weights everywhere: also where a fresh network has zeros."""
    torch.manual_seed(0)
    unet = VideoUNet(**TINY_KINDS[kind]).eval()
    for name, parameter in unet.named_parameters():
        if "conv1d" in name or "conv_gate" in name or "attn_temp.to_out" in name:
            nn.init.normal_(parameter, std=0.05)
    return unet


def adapted(unet: VideoUNet) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy with LoRA of rank 4 whose B is not zero, and the tensors of its adapters."""
    config = LoraConfig(r=4, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False)
    network = inject_adapter_in_model(config, copy.deepcopy(unet)).eval()
    return network, get_peft_model_state_dict(network)


def answer(network: nn.Module, unet: VideoUNet) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, unet.config.in_channels, 3, 8, 8, generator=generator)
    text = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return network(sample.to(unet.dtype), 500, text.to(unet.dtype)).float()


@pytest.mark.parametrize("kind", sorted(TINY_KINDS))
def test_merged_equals_adapter_on(kind: str) -> None:
    unet = random_unet(kind)
    network, lora = adapted(unet)
    merged = with_weights(unet, merge(unet.state_dict(), lora, ALPHA))
    with_adapter = answer(network, unet)
    torch.testing.assert_close(answer(merged, unet), with_adapter, atol=1e-5, rtol=1e-5)
    assert (with_adapter - answer(unet, unet)).abs().mean() > 0.01, "the adapters change nothing"


def relative(difference: Tensor, whole: Tensor) -> float:
    return float(difference.norm() / whole.norm())


def test_merged_equals_adapter_on_in_bfloat16() -> None:
    """Merging into bfloat16 weights costs less than 2e-3, and the merged network's answer in bfloat16 is no
    further from the true one than the adapted network's: rounding activations costs both ten times as much.
    """
    unet = nn.Module.to(random_unet(), torch.bfloat16)
    network, lora = adapted(unet)
    for name, tensor in lora.items():  # its very storage
        tensor.mul_(0.25 if "lora_B" in name else 1.0)  # a trained adapter is smaller than the weight
    merged = with_weights(unet, merge(unet.state_dict(), lora, ALPHA))
    rounded = answer(merged, unet), answer(network, unet)
    exact = [nn.Module.to(copy.deepcopy(part), torch.float32) for part in (unet, merged, network)]
    truth = answer(exact[2], exact[0])
    assert relative(answer(exact[1], exact[0]) - truth, truth) < 2e-3
    assert relative(rounded[0] - truth, truth) < 1.2 * relative(rounded[1] - truth, truth)


def test_a_fresh_adapter_changes_nothing() -> None:
    unet = random_unet()
    _, lora = adapted(unet)
    zeros = {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in lora.items()}
    state = unet.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in merge(state, zeros, ALPHA).items())


@given(out=st.integers(1, 6), width=st.integers(1, 6), rank=st.integers(1, 8), alpha=st.floats(-8, 8))
def test_it_is_the_papers_formula(out: int, width: int, rank: int, alpha: float) -> None:
    base = {"x.weight": torch.randn(out, width), "y.weight": torch.randn(3)}
    down, up = torch.randn(rank, width), torch.randn(out, rank)
    lora = {"x.lora_A.default.weight": down.half(), "x.lora_B.default.weight": up.half()}
    merged = merge(base, lora, alpha)
    assert merged.keys() == {"x.weight"}
    expected = base["x.weight"] + alpha / rank * up.half().float() @ down.half().float()
    torch.testing.assert_close(merged["x.weight"], expected, atol=1e-5, rtol=1e-5)


GOOD = {"x.lora_A.weight": torch.ones(2, 3), "x.lora_B.weight": torch.ones(4, 2)}

NAMED = {name.replace(".weight", ".default.weight"): tensor for name, tensor in GOOD.items()}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({}, "no LoRA to merge"),
        ({"x.weight": torch.ones(4, 3)}, "x.weight is no tensor of a LoRA"),
        ({"x.lora_A.weight": torch.ones(2, 3)}, "x.weight misses its A or B half"),
        ({name.replace("x", "z"): t for name, t in GOOD.items()}, "match no layer of the model: z.weight"),
        (GOOD | {"x.lora_A.weight": torch.ones(3, 3)}, r"A \[3, 3\], B \[4, 2\]"),
        (GOOD | {"x.lora_B.weight": torch.ones(5, 2)}, r"a weight \[4, 3\] needs"),
        (GOOD | {"x.lora_B.weight": torch.full((4, 2), torch.inf)}, "x.weight is not finite"),
        ({name.replace("x", "conv"): t for name, t in GOOD.items()}, r"a weight \[4, 3, 3, 3\] needs"),
        (
            NAMED | {name.replace("default", "ref"): t for name, t in NAMED.items()},
            "2 adapters in one file: default, ref",
        ),
        (
            {"x.lora_A.default.weight": torch.ones(2, 3), "x.lora_B.ref.weight": torch.ones(4, 2)},
            "2 adapters",
        ),
        (GOOD | {"y.lora_A.ref.weight": torch.ones(2, 3)}, "2 adapters in one file: one without a name, ref"),
        ({"x.lora_A.weight": torch.ones(0, 3), "x.lora_B.weight": torch.ones(4, 0)}, r"A \[0, 3\]"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(lora: dict[str, Tensor], message: str) -> None:
    base = {"x.weight": torch.ones(4, 3), "conv.weight": torch.ones(4, 3, 3, 3)}
    with pytest.raises(CheckpointError, match=message):
        merge(base, lora, ALPHA)


def test_split_keeps_full_tensors_apart() -> None:
    full = {"x.weight": torch.ones(4, 3), "x.lora_alpha": torch.ones(1)}
    assert split_lora(full | GOOD) == (GOOD, full)


LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
PROJECTION = "down_blocks.0.attentions.0.proj_in"
KOHYA = "lora_unet_down_blocks_0_attentions_0"
HALVES = {"A": torch.randn(2, 16), "B": torch.randn(16, 2)}
FOREIGN = {
    "kohya": (f"{KOHYA}_transformer_blocks_0_attn1_to_out_0.lora_down.weight", f"{LAYER}.to_out.0"),
    "diffusers": (f"unet.{LAYER}.to_q.lora.down.weight", f"{LAYER}.to_q"),
    "diffusers' peft": (f"unet.{LAYER}.to_q.lora_A.weight", f"{LAYER}.to_q"),
    "diffusers' processors": (f"unet.{LAYER}.processor.to_out_lora.down.weight", f"{LAYER}.to_out.0"),
    "diffusers' first processors": (f"{LAYER}.processor.to_k_lora.down.weight", f"{LAYER}.to_k"),
}


def written(kind: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of one adapter by the names of `kind`, and the weight it is of."""
    down, layer = FOREIGN[kind]
    up = down.replace("lora_down", "lora_up").replace(".down.", ".up.").replace("lora_A", "lora_B")
    return {down: HALVES["A"], up: HALVES["B"]}, f"{layer}.weight"


@pytest.mark.parametrize("kind", FOREIGN)
def test_kohyas_and_diffusers_names_merge_like_pefts(kind: str) -> None:
    """W + B A where the file says no alpha: both take the rank for it."""
    tensors, weight = written(kind)
    state = random_unet().state_dict()
    lora, alphas, default = peft_names(tensors, state)
    assert (alphas, default) == ({}, None)
    merged = merge(state, lora, default, alphas)
    assert merged.keys() == {weight}
    torch.testing.assert_close(merged[weight], state[weight] + HALVES["B"] @ HALVES["A"])


def test_kohyas_alpha_is_of_each_layer() -> None:
    tensors, weight = written("kohya")
    name = f"{KOHYA}_transformer_blocks_0_attn1_to_out_0.alpha"
    state = random_unet().state_dict()
    lora, alphas, default = peft_names(tensors | {name: torch.tensor(1.0)}, state)
    assert (alphas, default) == ({weight: 1.0}, None)
    merged = merge(state, lora, default, alphas)
    torch.testing.assert_close(merged[weight], state[weight] + 0.5 * HALVES["B"] @ HALVES["A"])


def test_a_convolution_of_one_pixel_is_a_matrix() -> None:
    """SD 1.x's proj_in and proj_out, which kohya adapts."""
    halves = {"down": torch.randn(2, 16, 1, 1), "up": torch.randn(16, 2, 1, 1)}
    tensors = {f"{KOHYA}_proj_in.lora_{half}.weight": tensor for half, tensor in halves.items()}
    state = random_unet().state_dict()
    lora, alphas, default = peft_names(tensors, state)
    merged = merge(state, lora, default, alphas)[f"{PROJECTION}.weight"]
    product = (halves["up"].flatten(1) @ halves["down"].flatten(1)).view(16, 16, 1, 1)
    torch.testing.assert_close(merged, state[f"{PROJECTION}.weight"] + product)


@pytest.mark.parametrize(
    "name", ["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "text_encoder.a.b"]
)
def test_adapters_of_a_text_encoder_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="of a text encoder"):
        peft_names({name: torch.ones(1)}, [])


def test_one_adapter_by_two_names_is_refused() -> None:
    one, two = written("diffusers")[0], written("diffusers' peft")[0]
    with pytest.raises(CheckpointError, match="also called"):
        peft_names(one | two, [])
