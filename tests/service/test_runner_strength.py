"""preference_strength in a runner: built beside the compute path, named, bounded; the real models, no web."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from family import add_preferences, build_random_family
from safetensors.torch import load_file, save_file

from huvidpo.catalog import DEFAULT_MODEL, adapter_path, load_catalog
from huvidpo.errors import InvalidRequest
from huvidpo.files import hash_file
from huvidpo.pipeline import VideoPipeline
from huvidpo.strength import Scaled, write_adapter
from service import runners
from service.errors import QueueFull, Unavailable
from service.images import to_png
from service.schemas import RunnerJob

FRAME = np.full((32, 32, 3), 99, np.uint8)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = build_random_family(tmp_path_factory.mktemp("family"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUVIDPO_CATALOG", str(folder / "catalog"))
        yield add_preferences(folder)


@pytest.fixture
def weights(family: Path) -> Iterator[Path]:
    """Of horse, with an adapter beside them; a test may change both."""
    files = {file: file.read_bytes() for file in (family, adapter_path(family))}
    yield family
    for file, data in files.items():
        file.write_bytes(data)


@pytest.fixture
def model(weights: Path) -> runners.VideoModel:
    pipeline = VideoPipeline.from_catalog(
        DEFAULT_MODEL, device="cpu", dtype=torch.float32, categories=["horse", "rain"]
    )
    return runners.VideoModel(pipeline, {"horse": hash_file(weights)})


def job(strength: float, category: str = "horse") -> RunnerJob:
    options = load_catalog().model(DEFAULT_MODEL).defaults.replace(steps=1, frames=3)
    return RunnerJob(
        prompt="a horse", category=category, style=None, seed=7, negative_prompt=None,
        options={name: getattr(options, name) for name in options.__dataclass_fields__},
        preference_strength=strength, first_frame=to_png(FRAME),
    )  # fmt: skip


def warm(model: runners.VideoModel, strength: float) -> runners.VideoItem:
    """As the batcher does it, beside the compute thread."""
    item = model.prepare(job(strength))
    if model.cold(item):
        model.warm(item)
    return item


def pixels(model: runners.VideoModel, item: runners.VideoItem) -> np.ndarray:
    (clip,) = model.run([item], lambda *step: None)
    assert clip is not None
    return clip


def test_built_beside_once_and_named(model, weights, monkeypatch):
    shipped = model.prepare(job(1))
    assert not model.cold(shipped)
    item = model.prepare(job(0.5))
    assert model.cold(item)
    model.warm(item)
    again = model.prepare(job(0.5))
    assert not model.cold(again)
    assert model.can_share(item, again)
    assert not model.can_share(item, shipped)
    monkeypatch.setattr(model.pipeline.strengths, "_load", None)  # nothing is loaded while a batch runs
    half = pixels(model, item)
    assert model.weights(item) == hash_file(weights)
    assert not np.array_equal(half, pixels(model, shipped))
    assert np.array_equal(half, pixels(model, again))


def test_refused_where_it_cannot_be(model, weights, caplog):
    assert model.scalable == ["horse"]
    with pytest.raises(InvalidRequest, match="the weights of rain came without the adapter"):
        model.prepare(job(0.5, "rain"))
    item = model.prepare(job(0.5))
    adapter_path(weights).write_bytes(b"damaged")
    with pytest.raises(
        InvalidRequest, match=r"got 0\.5; the weights of horse cannot be scaled here"
    ) as refused:
        model.warm(item)
    assert refused.value.field == "preference_strength"
    assert str(weights.parent) not in str(refused.value)
    assert "cannot read" in caplog.text


def test_no_more_networks_than_there_is_room_for(model):
    model.pipeline.strengths.allow(2)
    waiting = [warm(model, 0.1), warm(model, 0.2)]
    with pytest.raises(QueueFull, match="2 other strengths of preferences are waited for, try again in"):
        warm(model, 0.3)
    del waiting[0]
    assert not model.cold(warm(model, 0.3))
    assert not model.cold(waiting[0])
    model.pipeline.strengths.allow(0)
    assert model.scalable == []


def test_who_varies_it_has_no_more_made_than_a_few_a_minute(model, weights, monkeypatch):
    network, sha256 = model.pipeline.unets["horse"], hash_file(weights)
    monkeypatch.setattr(model.pipeline.strengths, "_load", lambda *_: Scaled(network, sha256))
    asked = [0.1, 0.2, 0.3, 0.4]
    for strength in asked:
        warm(model, strength)
    for strength in np.linspace(0.41, 0.49, 9):
        with pytest.raises(QueueFull, match=r"4 other strengths .* within a minute, try again in") as full:
            warm(model, float(strength))
    assert 1 <= full.value.retry_after <= 60
    assert all(not model.cold(model.prepare(job(strength))) for strength in asked)  # those that are there run
    model._made[0] -= 60
    warm(model, 0.5)
    with pytest.raises(QueueFull):
        warm(model, 0.6)


def test_new_weights_are_never_mixed_with_old_ones(model, weights):
    first = warm(model, 0.5)
    old, made = hash_file(weights), pixels(model, first)
    save_file({name: 1.5 * tensor for name, tensor in load_file(weights).items()}, weights)
    model.replace("horse", model.load_beside("horse", weights), hash_file(weights))
    assert np.array_equal(pixels(model, first), made)
    assert model.weights(first) == old
    with pytest.raises(InvalidRequest, match="cannot be scaled"):  # its adapter is of the earlier ones
        warm(model, 0.5)
    adapter = load_file(adapter_path(weights))
    write_adapter(weights, adapter, {"lora_rank": "2", "lora_alpha": "4"})
    model.loaded["horse"] = old  # as long as they are not taken
    with pytest.raises(Unavailable, match="new weights of horse are being taken"):
        warm(model, 0.5)
