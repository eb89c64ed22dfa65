"""Frozen weights kept in half precision: less memory, not another number."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from unet_configs import TINY

from huvidpo.unet import VideoUNet
from training.adapter import adapter_off, add_adapter, halve_frozen
from training.recipes import DPORecipe, tiny_dpo


@pytest.fixture(scope="module")
def networks() -> tuple[VideoUNet, VideoUNet]:
    """The same random LoRA on the same random network: frozen weights in float32, and in bfloat16."""
    torch.manual_seed(0)
    unet = VideoUNet(**TINY)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    recipe: DPORecipe = dataclasses.replace(tiny_dpo(), precision="fp32", lora_dropout=0.0)
    add_adapter(unet, recipe)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    halved = copy.deepcopy(unet)
    halve_frozen(halved, torch.bfloat16)
    return unet, halved


def answer(unet: VideoUNet) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample, text = torch.randn(2, 4, 3, 8, 8, generator=generator), torch.randn(2, 5, 12, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        return unet(sample, 500, text).float()


def test_answers_and_gradients_are_the_very_same(networks) -> None:
    gradients = []
    for unet in networks:
        answer(unet).square().mean().backward()
        gradients.append([p.grad for p in unet.parameters() if p.requires_grad])
    assert torch.equal(*map(answer, networks))
    with adapter_off(networks[0]), adapter_off(networks[1]):
        assert torch.equal(*map(answer, networks))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_half_the_memory_and_the_adapter_stays_whole(networks) -> None:
    whole, halved = (sum(p.nbytes for p in unet.parameters() if not p.requires_grad) for unet in networks)
    assert halved < 0.6 * whole
    assert {p.dtype for p in networks[1].parameters() if p.requires_grad} == {torch.float32}
    norms = [m for m in networks[1].modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    assert all(norm.weight.dtype == torch.float32 for norm in norms)
    assert networks[1].dtype == torch.float32  # of its inputs
    networks[1].project_text(torch.randn(1, 5, 12))  # outside autocast


def test_mixed_precision_recipes_halve() -> None:
    for precision, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        unet = VideoUNet(**TINY)
        add_adapter(unet, dataclasses.replace(tiny_dpo(), precision=precision))
        assert unet.mid_block.resnets[0].conv1.conv2d.weight.dtype == dtype
