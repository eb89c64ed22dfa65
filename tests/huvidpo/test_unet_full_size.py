"""The published sizes, built without memory on the meta device."""

import hashlib
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from reference import needs_reference, reference
from torch import nn
from unet_configs import SD14, SD21, SDXL

from huvidpo.unet import VideoUNet

GOLDEN = Path(__file__).parents[1] / "goldens" / "sd14_names.sha256"


def image_unet(config: dict) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def listing(module: nn.Module) -> list[str]:
    """`name<TAB>320x4x3x3` for each tensor, sorted."""
    return sorted(
        f"{name}\t{'x'.join(map(str, tensor.shape))}" for name, tensor in module.state_dict().items()
    )


def test_sd14_has_the_published_size():
    image = image_unet(SD14)
    assert parameters(image) == 859_520_964
    video = VideoUNet.from_2d(image)
    assert parameters(video) - parameters(image) == 241_570_394
    digest = hashlib.sha256("\n".join(listing(video)).encode()).hexdigest()
    assert digest == GOLDEN.read_text().strip()


@needs_reference
def test_sd14_tensors_are_those_of_a_lamp_checkpoint():
    expected = reference("lamp/keys_sd14.txt").read_text().splitlines()
    assert listing(VideoUNet.from_2d(image_unet(SD14))) == sorted(expected)


def test_stage_one_trains_a_quarter_of_sd14():
    trainable = ("conv1d", "conv_gate", "attn1.to_q", "attn_temp")
    video = VideoUNet.from_2d(image_unet(SD14))
    count = sum(p.numel() for name, p in video.named_parameters() if any(part in name for part in trainable))
    assert count == 253_935_834


def test_sd21_inflates():
    image = image_unet(SD21)
    assert parameters(image) == 865_910_724
    video = VideoUNet.from_2d(image)
    assert [block.attentions[0].transformer_blocks[0].attn1.heads for block in video.down_blocks[:3]] == [
        5,
        10,
        20,
    ]


def test_sdxl_first_frame_unet_has_the_published_size():
    assert parameters(image_unet(SDXL)) == 2_567_463_684
