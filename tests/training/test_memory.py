"""The estimate of a step's memory against hand counts, a real step, and the full-size claim."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.unet import VideoUNet
from training.memory import GIB, Ledger, LikeCuda, attention_on_cuda, estimate, main, measure, table
from training.recipes import ClipRecipe, lamp_sd14, paper_dpo

SMALL: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def small(recipe: ClipRecipe, **changes: Any) -> ClipRecipe:
    return dataclasses.replace(recipe, precision="fp32", frames=8, height=128, width=128, **changes)


def test_ledger_knows_the_peak_by_hand() -> None:
    weight = torch.zeros(256, 256, device="meta")
    with Ledger([weight]) as ledger:
        a = torch.zeros(1024, device="meta")  # 4096 bytes
        b = a + 1  # 8192
        view, held = b.view(32, 32).t(), weight.t()
        del a, b  # 4096: the view keeps b
        kept = torch.zeros(3072, device="meta")  # 16384: the peak
        del kept
        view.add_(1)
        assert held.shape == (256, 256)  # a view of what was held before: nothing
    assert (ledger.now, ledger.peak) == (4096, 16384)


def test_mixed_precision_follows_cuda() -> None:
    with torch.device("meta"):
        linear, norm, x = nn.Linear(8, 8), nn.LayerNorm(8), torch.zeros(2, 3, 4, 8)
    mode = LikeCuda(torch.float16, attention_on_cuda)
    with mode.forward():
        y = linear(x)
        assert y.dtype == torch.float16
        assert norm(y).dtype == torch.float32
        assert F.scaled_dot_product_attention(norm(y), y, y).dtype == torch.float16
        assert mode.kept is not None
        assert set(mode.kept) == {linear.weight, linear.bias}
    assert mode.kept is None
    assert linear(x).dtype == torch.float32


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("recipe", [lamp_sd14(), paper_dpo()], ids=["motion", "dpo"])
def test_estimate_agrees_with_a_real_step(recipe: ClipRecipe, checkpointing: bool) -> None:
    recipe = small(recipe, gradient_checkpointing=checkpointing)
    memory = estimate(SMALL, recipe, 8, cuda=False)
    assert memory.peak == pytest.approx(measure(SMALL, recipe, 8, "cpu"), rel=0.1)
    assert memory.activations > memory.parameters, "the test says nothing about activations"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", [lamp_sd14(), paper_dpo()], ids=["motion", "dpo"])
def test_estimate_agrees_with_a_real_step_on_a_gpu(recipe: ClipRecipe) -> None:
    """At the full width, where kernels' workspaces are small beside the rest."""
    assert estimate({}, recipe, 8).peak == pytest.approx(measure({}, recipe, 8, "cuda"), rel=0.15)


def test_what_lowers_memory_is_seen_to() -> None:
    peaks = [
        estimate(SMALL, dataclasses.replace(small(paper_dpo()), **changes), 8).peak
        for changes in (
            {"gradient_checkpointing": False},
            {},
            {"one_forward": False},
            {"one_forward": False, "precision": "fp16"},
        )
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 4


def test_table_adds_up() -> None:
    memory = estimate(SMALL, small(lamp_sd14()), 8)
    unet = VideoUNet(**SMALL)
    assert memory.parameters == 4 * sum(p.numel() for p in unet.parameters())
    assert memory.optimizer == pytest.approx(8 * memory.trainable, rel=0.01)  # two moments
    lines = table({"motion": memory}, others=GIB)
    assert float(lines[-1].split()[-1]) == pytest.approx(memory.peak / GIB + 2.5, abs=0.01)


def test_sd14_dpo_fits_a_card_of_24_gib(capsys: pytest.CaptureFixture) -> None:
    size = ["--frames", "16", "--height", "320", "--width", "512"]
    assert main(["--model", "sd14", "--stage", "dpo", *size]) == 0
    out = capsys.readouterr().out
    assert "dpo: fits a card of 24 GiB" in out
    assert float(out.split("in all")[1].split()[0]) < 12


def test_commands_of_the_tiny_family(tiny_family: Any, capsys: pytest.CaptureFixture) -> None:
    sizes = ["--frames", "2", "--height", "32", "--width", "32"]
    command = ["--model", DEFAULT_MODEL, "--measure", "--device", "cpu", *sizes]
    assert main([*command, "--set", "precision=fp32"]) == 0
    assert capsys.readouterr().out.count("measured here") == 2
    assert main(command) == 2
    assert "measure with --set precision=fp32" in capsys.readouterr().err
    assert main([*command, "--set", "frames=one"]) == 2
    assert "'one'" in capsys.readouterr().err
    assert main([*command, "--set", "precision=fp32", "--set", "speed=1"]) == 2
    assert "'speed=1'" in capsys.readouterr().err
