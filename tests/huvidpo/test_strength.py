"""The strength of people's preferences in a category: the adapter beside its weights, at another scale."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from family import add_preferences, build_random_family

from huvidpo.catalog import DEFAULT_MODEL, adapter_path, load_catalog
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors
from huvidpo.config import ClipRequest
from huvidpo.errors import CheckpointError, InvalidRequest
from huvidpo.loading import load_category, load_video_unet
from huvidpo.pipeline import VideoPipeline
from huvidpo.strength import NoRoom, Scaled, Strengths, at_strength

FRAME = np.full((32, 32, 3), 99, np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of horse, with the adapter of its preferences; stage1.safetensors of the family is without them."""
    family = build_random_family(tmp_path_factory.mktemp("family"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))
        yield add_preferences(family)


@pytest.fixture(scope="module")
def videos(weights: Path) -> VideoPipeline:
    return pipeline()


@pytest.fixture
def stage1(weights: Path) -> Path:
    return weights.parents[1] / "stage1.safetensors"


def asked(strength: float, category: str = "horse", seed: int = 7) -> ClipRequest:
    options = load_catalog().model(DEFAULT_MODEL).defaults.replace(steps=1, frames=3)
    return ClipRequest("a horse", category, seed, options=options, preference_strength=strength)


def pipeline(**weights: Path) -> VideoPipeline:
    return VideoPipeline.from_catalog(
        DEFAULT_MODEL, device="cpu", dtype=torch.float32, categories=["horse", "rain"], weights=weights
    )


def test_the_ends_are_the_shipped_weights_and_stage_1(weights, stage1):
    merged, base = load_tensors(weights), load_catalog().model(DEFAULT_MODEL).video_unet
    before = load_video_unet(base, torch.float32).state_dict() | load_tensors(stage1)
    without, half, more = (at_strength(merged, weights, s) for s in (0, 0.5, 1.5))
    assert without.keys() == half.keys() == more.keys() == merged.keys()
    changed = [name for name in merged if not torch.equal(merged[name], before[name])]
    assert changed
    for name, tensor in merged.items():
        torch.testing.assert_close(without[name], before[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(half[name], (before[name] + tensor) / 2, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(more[name] - tensor, tensor - half[name], atol=1e-6, rtol=1e-5)
        if name not in changed:
            assert torch.equal(more[name], tensor)
    assert all(torch.equal(at_strength(merged, weights, 1)[name], merged[name]) for name in merged)


def test_clips_of_each_strength(videos, weights, stage1, tmp_path):
    (shipped,) = videos([asked(1)], [FRAME])
    made = {s: videos([asked(s)], [FRAME])[0].astype(int) for s in (0, 0.5, 1.5, 1)}
    assert np.array_equal(made[1], shipped)  # what was made between changed nothing
    (before,) = pipeline(horse=stage1)([asked(1)], [FRAME])
    assert np.abs(made[0] - before.astype(int)).max() <= 1  # levels of 256
    assert len({clip.tobytes() for clip in made.values()}) == 4
    # as weights that were merged at half the scale
    base = load_video_unet(load_catalog().model(DEFAULT_MODEL).video_unet, torch.float32)
    save_tensors(tmp_path / "half.safetensors", at_strength(load_tensors(weights), weights, 0.5), {})
    half = load_category(base, tmp_path / "half.safetensors").state_dict()
    ours = videos.unet_of(asked(0.5)).state_dict()
    assert all(torch.equal(half[name], ours[name]) for name in half)


def test_strengths_do_not_share_a_batch(weights):
    share = VideoPipeline.can_share_batch
    assert share(asked(0.5), asked(0.5, seed=8))
    assert not share(asked(0.5), asked(1))
    assert not share(asked(0.5), asked(0.5, "rain"))


@pytest.mark.parametrize("strength", [-0.1, 1.6, float("nan"), True, "1"])
def test_bounds(weights, strength):
    with pytest.raises(InvalidRequest, match="preference_strength: got"):
        asked(strength)


def test_what_cannot_be_scaled_is_refused_and_never_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("HUVIDPO_CATALOG", str(build_random_family(tmp_path) / "catalog"))
    weights, videos = add_preferences(tmp_path), pipeline()
    with pytest.raises(InvalidRequest, match=r"got 0\.5, and the weights of rain came without the adapter"):
        videos([asked(0.5, "rain")], [FRAME])
    assert videos([asked(1, "rain")], [FRAME])[0] is not None
    save_tensors(weights, load_tensors(weights), {"other": "file"})
    with pytest.raises(CheckpointError, match="is not the adapter that was merged into"):
        videos([asked(0.5)], [FRAME])
    adapter_path(weights).unlink()
    with pytest.raises(InvalidRequest, match="came without the adapter"):
        videos([asked(0.5)], [FRAME])
    videos.strengths.never = "the backend tensorrt runs weights as they were built"
    with pytest.raises(InvalidRequest, match="got 0, and the backend tensorrt runs weights as they were"):
        videos([asked(0)], [FRAME])


def test_an_adapter_is_no_category(weights, tmp_path):
    file = tmp_path / "adapter.safetensors"
    metadata = read_metadata(adapter_path(weights)) | {"stage1": "0" * 64}
    save_tensors(file, load_tensors(adapter_path(weights)), metadata)
    with pytest.raises(CheckpointError, match="is a LoRA over stage-1 weights"):
        pipeline(horse=file)


class Loads:
    def __init__(self) -> None:
        self.made: list[tuple[str, float]] = []
        self.strengths = Strengths(self, {})

    def __call__(self, category: str, strength: float) -> Scaled:
        self.made.append((category, strength))
        return Scaled(object(), "5e7")


def test_the_latest_used_stay():
    loads = Loads()
    strengths = loads.strengths
    for strength in (0.0, 0.1, 0.2, 0.3, 0.0, 1.5):
        strengths.make("horse", strength)
    assert loads.made == [("horse", strength) for strength in (0.0, 0.1, 0.2, 0.3, 1.5)]
    assert strengths.find("horse", 0.1) is None
    assert strengths.find("horse", 0.0) is not None
    strengths.forget("horse")
    assert strengths.find("horse", 1.5) is None


def test_no_more_than_there_is_room_for():
    strengths = Loads().strengths
    strengths.allow(2)
    held = [strengths.make("horse", 0.1), strengths.make("rain", 0.1)]
    with pytest.raises(NoRoom):
        strengths.make("horse", 0.2)
    assert strengths.find("rain", 0.1) is held[1]  # those that are waited for are there
    del held
    strengths.make("horse", 0.2)
    strengths.allow(0)
    assert "no memory" in strengths.refusal("horse")
