"""Nothing in forward stands in the way of export: every axis stays dynamic."""

import pytest
import torch
from unet_configs import TINY

from huvidpo.unet import VideoUNet


@pytest.mark.parametrize("mode", ["first", pytest.param("first_prev", marks=pytest.mark.long)])
def test_exported_graph_serves_other_shapes(mode: str):
    torch.manual_seed(0)
    unet = VideoUNet(**TINY, attention_mode=mode).eval().requires_grad_(False)
    for module in unet.modules():
        if isinstance(module, torch.nn.Conv1d):
            torch.nn.init.normal_(module.weight, std=0.1)

    def example(batch: int, frames: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
        sample = torch.randn(batch, 4, frames, height, width)
        return sample, torch.randint(1000, (batch,)), torch.randn(batch, 5, TINY["cross_attention_dim"])

    batch, frames = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("frames", min=3, max=32)
    height = 4 * torch.export.Dim("height", min=1, max=32)
    width = 4 * torch.export.Dim("width", min=1, max=32)
    shapes = ({0: batch, 2: frames, 3: height, 4: width}, {0: batch}, {0: batch})
    program = torch.export.export(unet, example(2, 4, 8, 12), dynamic_shapes=shapes, strict=False)
    for case in (example(2, 4, 8, 12), example(3, 7, 16, 8), example(1, 3, 4, 4)):
        torch.testing.assert_close(program.module()(*case), unet(*case), atol=1e-5, rtol=0)
