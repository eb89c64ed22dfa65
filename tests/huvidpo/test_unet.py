import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from unet_configs import SD14, SD21, SDXL, TINY, TINY_KINDS

from huvidpo.unet import GatedTemporalConv, VideoUNet, video_config

STEPS = torch.tensor([3, 500])


def inputs(
    frames: int, config: dict[str, Any] = TINY, size: tuple[int, int] = (10, 7)
) -> tuple[Tensor, Tensor]:
    seeded = torch.Generator().manual_seed(frames)
    sample = torch.randn(2, config.get("in_channels", 4), frames, *size, generator=seeded)
    return sample, torch.randn(2, 5, config["cross_attention_dim"], generator=seeded)


def moving_unet(mode: str = "first_prev", **config: Any) -> VideoUNet:
    """A tiny UNet whose temporal parts are not zero."""
    torch.manual_seed(0)
    unet = VideoUNet(**(TINY | config), attention_mode=mode)
    for name, parameter in unet.named_parameters():
        if "conv1d" in name or "conv_gate" in name or "attn_temp.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return unet.eval()


@pytest.fixture(scope="module")
def unet() -> VideoUNet:
    return moving_unet()


@pytest.mark.parametrize("mode", ["first_prev", "first"])
@pytest.mark.parametrize("kind", TINY_KINDS)
def test_inflated_unet_equals_the_image_unet(kind: str, mode: str):
    config = TINY_KINDS[kind]
    torch.manual_seed(1)
    image = UNet2DConditionModel(**config).eval()
    video = VideoUNet.from_2d(image, attention=mode).eval()
    sample, text = inputs(1, config)
    with torch.no_grad():
        expected = image(sample[:, :, 0], STEPS, text).sample[:, :, None]
        torch.testing.assert_close(video(sample, STEPS, text), expected, atol=1e-5, rtol=0)
        still = sample.expand(-1, -1, 4, -1, -1)
        torch.testing.assert_close(
            video(still, STEPS, text), expected.expand(-1, -1, 4, -1, -1), atol=1e-5, rtol=0
        )
    assert video.config.attention_mode == mode


def test_inflating_copies_weights_and_keeps_the_dtype():
    image = UNet2DConditionModel(**TINY).to(torch.bfloat16)
    video = VideoUNet.from_2d(image)
    assert {p.dtype for p in video.parameters()} == {torch.bfloat16}
    video.conv_in.conv2d.weight.data.zero_()
    assert image.conv_in.weight.any()


@pytest.mark.parametrize("timestep", [7, 7.0, torch.tensor(7), torch.tensor([7]), torch.tensor([7, 7])])
def test_timesteps_of_every_form(unet: VideoUNet, timestep: Any):
    sample, text = inputs(3)
    with torch.no_grad():
        torch.testing.assert_close(unet(sample, timestep, text), unet(sample, torch.tensor([7, 7]), text))


def test_each_clip_of_a_batch_is_independent(unet: VideoUNet):
    sample, text = inputs(4)
    with torch.no_grad():
        together = unet(sample, STEPS, text)
        alone = [unet(sample[i : i + 1], STEPS[i], text[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_text_can_be_projected_once(unet: VideoUNet):
    sample, text = inputs(3)
    with torch.no_grad():
        once = unet.project_text(text)
        assert torch.equal(unet(sample, STEPS, text_kv=once), unet(sample, STEPS, text))
    assert [tuple(k.shape) for k, _ in once] == [(2, 2, 5, 8), (2, 2, 5, 16), (2, 2, 5, 8), (2, 2, 5, 8)]


def test_missing_text_and_flat_samples_are_refused(unet: VideoUNet):
    sample, text = inputs(3)
    with pytest.raises(ValueError, match="encoder_hidden_states"):
        unet(sample, 1)
    with pytest.raises(ValueError, match=r"\[batch, channels, frames, height, width\], not \(2, 4, 10, 7\)"):
        unet(sample[:, :, 0], 1, text)


def test_temporal_convolution_by_hand():
    conv = GatedTemporalConv(1, 1, kernel=1)
    with torch.no_grad():
        conv.conv2d.weight.fill_(1)
        conv.conv2d.bias.fill_(0)
        conv.conv1d.weight.copy_(torch.tensor([[[100.0, 10.0, 1.0]]]))
        conv.conv1d.bias.fill_(0.5)
        x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1)  # one clip of four frames of one pixel
        # gate 0 -> 1/2; z[t] = 100 y[t-2] + 10 y[t-1] + y[t] + 1/2
        expected = x.flatten() + (torch.tensor([1.0, 12.0, 123.0, 234.0]) + 0.5) / 2
        torch.testing.assert_close(conv(x, 4).flatten(), expected)
        torch.testing.assert_close(conv(x, 1).flatten(), x.flatten() + (x.flatten() + 0.5) / 2)


def test_save_and_load_round_trip(unet: VideoUNet, tmp_path: Path):
    unet.save_pretrained(tmp_path)
    again = VideoUNet.from_pretrained(tmp_path)
    assert again.config.attention_mode == "first_prev"
    for name, tensor in unet.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_gradient_checkpointing_changes_no_gradient():
    sample, text = inputs(3)
    gradients = []
    for checkpointing in (False, True):
        unet = moving_unet().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
            assert unet.is_gradient_checkpointing
        unet(sample, STEPS, text).square().mean().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_what_gets_gradient_at_the_start():
    """After inflation only conv1d, attn1 and the output of attn_temp move; what follows zeros cannot."""
    sample, text = inputs(3)
    unet = VideoUNet(**TINY)
    unet(sample, STEPS, text).square().mean().backward()
    for name, parameter in unet.named_parameters():
        dead = (
            "conv_gate" in name or ("attn_temp.to_" in name and "to_out" not in name) or "norm_temp" in name
        )
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) != dead, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_autocast_trains_on_cpu(checkpointing: bool):
    sample, text = inputs(3)
    unet = moving_unet().train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    expected = unet(sample, STEPS, text).detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = unet(sample, STEPS, text)
    out.float().square().mean().backward()
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


def test_bfloat16_weights_on_cpu(unet: VideoUNet):
    sample, text = inputs(3)
    low = copy.deepcopy(unet).to(torch.bfloat16)
    with torch.no_grad():
        out = low(sample.bfloat16(), STEPS, text.bfloat16())
        expected = unet(sample, STEPS, text)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_peft_finds_every_attention():
    unet = moving_unet()
    sample, text = inputs(3)
    expected = unet(sample, STEPS, text)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), unet)
    adapted = [name for name, _ in unet.named_parameters() if "lora_A" in name]
    assert len(adapted) == 4 * 3 * 4  # projections x attentions x transformer blocks
    torch.testing.assert_close(unet(sample, STEPS, text), expected)
    assert {name for name, p in unet.named_parameters() if p.requires_grad} == {
        name for name, _ in unet.named_parameters() if "lora_" in name
    }


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("class_embed_type", "timestep", "'timestep' is not supported; only None is"),
        ("dual_cross_attention", True, "dual_cross_attention = True is not supported"),
        ("only_cross_attention", True, "only_cross_attention = True is not supported"),
        ("center_input_sample", True, "center_input_sample = True is not supported"),
        ("resnet_time_scale_shift", "scale_shift", "'scale_shift' is not supported; only 'default' is"),
        ("act_fn", "gelu", "'gelu' is not supported; only 'silu' or 'swish' is"),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn", "'UNetMidBlock2DSimpleCrossAttn' is not supp"),
        ("attention_mode", "last", "'last' is unknown; use one of first_prev, first"),
        ("block_out_channels", (16, 32, 32), "down_block_types = .* one entry for each of the 3 levels"),
        ("attention_head_dim", (2, 2, 2), "attention_head_dim = .* one entry for each of the 2 levels"),
        ("down_block_types", ("AttnDownBlock2D", "DownBlock2D"), "'AttnDownBlock2D' is not supported; use "),
    ],
)
def test_settings_it_cannot_honour_are_refused(setting: str, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        VideoUNet(**(TINY | {setting: value}))


def test_configurations_of_sd1_sd2_and_sdxl():
    assert video_config(SD14)["cross_attention_dim"] == 768
    assert video_config(SD21)["attention_head_dim"] == [5, 10, 20, 20]
    with pytest.raises(ValueError, match="is not supported; only image UNets like SD"):
        video_config(SDXL)
