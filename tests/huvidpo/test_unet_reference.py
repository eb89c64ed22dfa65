"""The video UNet against numbers of the original implementation (float32, seeded random weights)."""

import json
from functools import cache

import pytest
import torch
from reference import REFERENCE, needs_reference, reference
from safetensors.torch import load_file
from torch import Tensor

from huvidpo.unet import VideoUNet

pytestmark = needs_reference
TOLERANCE = {"atol": 2e-5, "rtol": 0}
GROUPS = json.loads(reference("lamp/tiny/units.json").read_text()) if REFERENCE else {}


@cache
def lamp(mode: str) -> VideoUNet:
    return VideoUNet.from_lamp(reference("lamp/tiny/unet"), attention=mode).eval().requires_grad_(False)


@cache
def numbers(file: str) -> dict[str, Tensor]:
    return load_file(reference("lamp/tiny", file))


def fold(video: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [(b f), C, H, W]"""
    return video.transpose(1, 2).flatten(0, 1)


def units(*prefixes: str) -> list[str]:
    return [name for name in GROUPS if name.startswith(prefixes)]


@pytest.mark.parametrize(("mode", "out"), [("first", "out"), ("first_prev", "out_first_prev")])
@pytest.mark.parametrize("case", ["b1", "b2", "f1", "f16", "odd"])
def test_whole_unet(case: str, mode: str, out: str):
    io = numbers("io.safetensors")
    result = lamp(mode)(*(io[f"{case}.{name}"] for name in ("sample", "timestep", "encoder_hidden_states")))
    torch.testing.assert_close(result, io[f"{case}.{out}"], **TOLERANCE)


@pytest.mark.parametrize("name", units("conv"))
def test_convolution(name: str):
    x, out = (numbers("units.safetensors")[f"{name}.{key}"] for key in ("x", "out"))
    result = lamp("first").get_submodule(GROUPS[name]["module"])(fold(x), x.shape[2])
    torch.testing.assert_close(result, fold(out), **TOLERANCE)


@pytest.mark.parametrize("name", units("res_"))
def test_resnet(name: str):
    x, time, out = (numbers("units.safetensors")[f"{name}.{key}"] for key in ("hidden_states", "temb", "out"))
    result = lamp("first").get_submodule(GROUPS[name]["module"])(fold(x), time, x.shape[2])
    torch.testing.assert_close(result, fold(out), **TOLERANCE)


@pytest.mark.parametrize("name", units("tf_"))
def test_transformer(name: str):
    x, text, out = (
        numbers("units.safetensors")[f"{name}.{key}"]
        for key in ("hidden_states", "encoder_hidden_states", "out")
    )
    transformer = lamp("first").get_submodule(GROUPS[name]["module"])
    text_kv = [block.attn2.keys_values(text) for block in transformer.transformer_blocks]
    torch.testing.assert_close(transformer(fold(x), text_kv, x.shape[2]), fold(out), **TOLERANCE)


@pytest.mark.parametrize(("mode", "out"), [("first", "out"), ("first_prev", "out_first_prev")])
def test_transformer_block(mode: str, out: str):
    tensors, frames = numbers("units.safetensors"), GROUPS["block"]["video_length"]
    block = lamp(mode).get_submodule(GROUPS["block"]["module"])
    text = tensors["block.encoder_hidden_states"][::frames]  # the original repeats it per frame
    result = block(tensors["block.hidden_states"], block.attn2.keys_values(text), frames)
    torch.testing.assert_close(result, tensors[f"block.{out}"], **TOLERANCE)


def test_parts_of_the_transformer_block():
    tensors, frames = numbers("units.safetensors"), GROUPS["block"]["video_length"]
    block = lamp("first").get_submodule(GROUPS["block"]["module"])
    x, text = tensors["block.hidden_states"], tensors["block.encoder_hidden_states"][::frames]
    attn1 = block.attn1(block.norm1(x), frames)
    torch.testing.assert_close(attn1, tensors["block.attn1"], **TOLERANCE)
    x = x + attn1
    attn2 = block.attn2(block.norm2(x), block.attn2.keys_values(text), frames)
    torch.testing.assert_close(attn2, tensors["block.attn2"], **TOLERANCE)
    x = x + attn2
    ff = block.ff(block.norm3(x))
    torch.testing.assert_close(ff, tensors["block.ff"], **TOLERANCE)
    x = x + ff
    temporal = block.attn_temp(block.norm_temp(x), frames)
    per_pixel = temporal.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(per_pixel, tensors["block.attn_temp"], **TOLERANCE)


@pytest.mark.parametrize("name", ["up", "up_size"])
def test_upsampler(name: str):
    x, out = (numbers("units.safetensors")[f"{name}.{key}"] for key in ("x", "out"))
    result = lamp("first").get_submodule(GROUPS[name]["module"])(fold(x), out.shape[-2:], x.shape[2])
    torch.testing.assert_close(result, fold(out), **TOLERANCE)


def test_time_embedding():
    tensors = numbers("units.safetensors")
    torch.testing.assert_close(lamp("first").time_proj(tensors["time.t"]), tensors["time.out"], **TOLERANCE)
    embedded = lamp("first").time_embedding(tensors["temb.t_emb"])
    torch.testing.assert_close(embedded, tensors["temb.out"], **TOLERANCE)


def test_every_unit_is_compared():
    named = {"block", "up", "up_size", "time", "temb", *units("conv", "res_", "tf_")}
    assert named == set(GROUPS)
