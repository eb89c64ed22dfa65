"""The table of networks: sizes of every axis, precisions, sample inputs."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.profiles import ROWS, Span, network_of, scaled, spans
from huvidpo.catalog import Model


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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_axis_has_a_size_and_profiles_are_in_order(row, model: Model):
    network = network_of(row, model, "float16", requests=3)
    ports = network.profiles((*row.inputs, *row.outputs))
    assert all(port.allows(port.opt) for port in ports)
    guided = 8 if "vae" in row.name else 6
    assert all(port.max[0] == guided for port in ports)


def test_profile_of_the_video_unet(model: Model):
    (row,) = (row for row in ROWS if row.name == "video_unet")
    sample, timestep, text = network_of(row, model, "float16", requests=4).profiles(row.inputs)
    assert (sample.name, sample.dtype) == ("sample", "float16")
    assert sample.min == (1, 8, 2, 4, 4)
    assert sample.opt == (2, 8, 16, 8, 8)  # guidance is 2: two lines per request
    assert sample.max == (8, 8, 32, 10, 10)
    assert (timestep.dtype, timestep.max) == ("float32", (8,))
    assert text.opt == (2, 48, 32)


@pytest.mark.parametrize("upcast", [True, False])
def test_a_vae_that_overflows_stays_in_float32(upcast: bool, model: Model, monkeypatch):
    (row,) = (row for row in ROWS if row.name == "video_vae_decoder")
    from export import profiles

    read = profiles.read_config
    monkeypatch.setattr(profiles, "read_config", lambda *a: read(*a) | {"force_upcast": upcast})
    assert network_of(row, model, "float16").precision == ("float32" if upcast else "float16")
    assert network_of(row, model, "bfloat16").precision == "bfloat16"


def test_sample_inputs(model: Model):
    (row,) = (row for row in ROWS if row.name == "text_encoder_2")
    network = network_of(row, model, "float16")
    ids = network.sample_inputs({"batch": 3})["input_ids"]
    assert ids.shape == (3, 48)
    assert (ids[:, -1] == network.sizes["vocabulary"] - 1).all()
    unet = network_of(next(row for row in ROWS if row.name == "first_frame_unet"), model, "bfloat16")
    inputs = unet.sample_inputs({"batch": 2, "height": 4, "width": 8})
    assert list(inputs) == [port.name for port in unet.row.inputs]
    assert inputs["sample"].shape == (2, 8, 4, 8)
    assert inputs["sample"].dtype == torch.bfloat16
    assert inputs["timestep"].dtype == torch.float32
    again = unet.sample_inputs({"batch": 2, "height": 4, "width": 8})
    assert torch.equal(again["sample"], inputs["sample"])


def test_first_frame_unet_may_come_from_elsewhere(model: Model):
    (row,) = (row for row in ROWS if row.name == "first_frame_unet")
    other = dataclasses.replace(model, first_frame_unet=model.video_unet)
    assert row.component(other) == model.video_unet
    assert row.component(model).subfolder == "unet"
