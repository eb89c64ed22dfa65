"""The table of networks: sizes of every axis, precisions, sample inputs."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st

from huvidpo.catalog import DEFAULT_MODEL, Component, Model, load_catalog
from huvidpo.config import PRECISIONS
from huvidpo.engines.networks import ROWS, Span, network_of, scaled, spans
from huvidpo.loading import load_vae


@pytest.fixture(scope="module")
def model(family: Path) -> Model:
    """The random family: text of 48 tokens, guidance on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))
        return load_catalog().model(DEFAULT_MODEL)


@given(
    st.lists(st.integers(1, 400), min_size=2, max_size=2),
    st.sampled_from([1, 2, 4, 8]),
)
def test_spans_hold_both_orientations(sides: list[int], step: int):
    sides = [side * step for side in sides]
    for span, side in zip(spans(sides, step), sides, strict=True):
        assert span.min <= min(sides) <= max(sides) <= span.max
        assert span.opt == side
        assert span.min % step == span.max % step == 0


def test_scaled():
    assert scaled(Span(2, 3, 5, 1), 4) == Span(8, 12, 20, 4)


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_every_axis_has_a_size_and_profiles_are_in_order(row, model: Model):
    network = network_of(row, model, "float16", requests=3)
    ports = network.profiles((*row.inputs, *row.outputs))
    assert all(port.allows(port.opt) for port in ports)
    guided = 8 if "vae" in row.name else 6
    assert all(port.max[0] == guided for port in ports)


def test_profile_of_the_video_unet(model: Model):
    row = ROWS["video_unet"]
    sample, timestep, text = network_of(row, model, "float16", requests=4).profiles(row.inputs)
    assert (sample.name, sample.dtype) == ("sample", "float16")
    assert sample.min == (1, 8, 2, 4, 4)
    assert sample.opt == (2, 8, 16, 8, 8)  # guidance is 2: two lines per request
    assert sample.max == (8, 8, 32, 10, 10)
    assert (timestep.dtype, timestep.max) == ("float32", (8,))
    assert text.opt == (2, 48, 32)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("upcast", [True, False])
def test_an_engine_of_a_vae_has_the_dtype_the_vae_is_loaded_in(
    upcast: bool, precision: str, model: Model, tmp_path: Path
):
    """Else the engine is built and never accepted."""
    row = ROWS["video_vae_decoder"]
    source = row.component(model)
    vae = AutoencoderKL.from_pretrained(source.location, subfolder=source.subfolder)
    vae.register_to_config(force_upcast=upcast)
    vae.save_pretrained(tmp_path)
    model = dataclasses.replace(model, video_vae=Component(str(tmp_path)))
    loaded = load_vae(model.video_vae, torch.device("cpu"), getattr(torch, precision))
    assert network_of(row, model, precision).dtype == loaded.dtype
    assert loaded.dtype == (torch.float32 if upcast else getattr(torch, precision))


def test_sample_inputs(model: Model):
    unet = network_of(ROWS["first_frame_unet"], model, "bfloat16")
    inputs = unet.sample_inputs({"batch": 2, "height": 4, "width": 8})
    assert list(inputs) == [port.name for port in unet.row.inputs]
    assert inputs["sample"].shape == (2, 8, 4, 8)
    assert inputs["sample"].dtype == torch.bfloat16
    assert inputs["timestep"].dtype == torch.float32
    again = unet.sample_inputs({"batch": 2, "height": 4, "width": 8})
    assert torch.equal(again["sample"], inputs["sample"])


def test_first_frame_unet_may_come_from_elsewhere(model: Model):
    row = ROWS["first_frame_unet"]
    other = dataclasses.replace(model, first_frame_unet=model.video_unet)
    assert row.component(other) == model.video_unet
    assert row.component(model).subfolder == "unet"
