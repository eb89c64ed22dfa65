"""New weights while a runner serves: the real models at random weights, no web."""

import asyncio
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import needs_openvino
from family import build_random_family
from prometheus_client import REGISTRY
from safetensors.torch import load_file, save_file

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.files import hash_file, whole_file
from huvidpo.pipeline import VideoPipeline
from service import runners
from service.batching import Batcher, Done
from service.images import to_png
from service.reload import Watch
from service.schemas import RunnerJob

FRAME = np.full((32, 32, 3), 99, np.uint8)


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUVIDPO_CATALOG", str(build_random_family(tmp_path) / "catalog"))
    return tmp_path / "categories" / "horse.safetensors"


def clip_request(category: str = "horse") -> ClipRequest:
    options = load_catalog().model(DEFAULT_MODEL).defaults.replace(steps=1, frames=3)
    return ClipRequest("a horse", category, 7, options=options)


def job(category: str = "horse") -> RunnerJob:
    clip = clip_request(category)
    options = {name: getattr(clip.options, name) for name in clip.options.__dataclass_fields__}
    return RunnerJob(
        prompt=clip.prompt, category=category, style=clip.style, seed=clip.seed, negative_prompt=None,
        options=options, format="mp4", first_frame=to_png(FRAME),
    )  # fmt: skip


def pixels(category: str = "horse") -> np.ndarray:
    """Of a pipeline that was loaded just now."""
    pipeline = VideoPipeline.from_catalog(DEFAULT_MODEL, device="cpu", dtype=torch.float32)
    (clip,) = pipeline([clip_request(category)], [FRAME])
    assert clip is not None
    return clip


def other_weights(file: Path, change: float = 1.5, **more: torch.Tensor) -> None:
    tensors = {name: tensor * change for name, tensor in load_file(file).items()}
    with whole_file(file) as part:
        save_file(tensors | more, part)


def loaded(backend: str = "torch") -> tuple[runners.VideoModel, Watch]:
    watch = Watch(load_catalog(), DEFAULT_MODEL)
    pipeline = VideoPipeline.from_catalog(DEFAULT_MODEL, device="cpu", dtype=torch.float32, backend=backend)
    return runners.VideoModel(pipeline, watch.loaded), watch


def looked(watch: Watch, model: runners.VideoModel) -> None:
    """Twice: what changed since the look before may still be being written."""
    watch.look(model)
    watch.look(model)


def ran(model: runners.VideoModel, category: str = "horse") -> tuple[np.ndarray, str | None]:
    item = model.prepare(job(category))
    (clip,) = model.run([item], lambda *step: None)
    assert clip is not None
    return clip, model.weights(item)


def told(sha256: str, stage: str = "unknown", category: str = "horse") -> float | None:
    labels = {"category": category, "stage": stage, "sha256": sha256}
    return REGISTRY.get_sample_value("huvidpo_category_weights_info", labels)


def test_replaced_and_rolled_back(family):
    model, watch = loaded()
    first, old = pixels(), family.read_bytes()
    looked(watch, model)
    clip, sha256 = ran(model)
    assert sha256 == hash_file(family)
    assert np.array_equal(clip, first)

    other_weights(family)
    watch.look(model)
    assert ran(model)[1] == sha256  # perhaps it is still being written
    watch.look(model)
    clip, new = ran(model)
    assert new == hash_file(family) != sha256
    assert model.loaded["horse"] == new
    assert np.array_equal(clip, pixels())
    assert not np.array_equal(clip, first)
    assert told(sha256) == 0
    assert told(new) == 1

    with whole_file(family) as part:
        part.write_bytes(old)
    looked(watch, model)
    clip, back = ran(model)
    assert back == sha256
    assert np.array_equal(clip, first)


def test_a_category_gets_its_first_weights(family):
    model, watch = loaded()
    looked(watch, model)
    base, sha256 = ran(model, "birds")
    assert sha256 is None
    target = family.with_name("birds.safetensors")
    target.write_bytes(family.read_bytes())
    looked(watch, model)
    clip, sha256 = ran(model, "birds")
    assert sha256 == hash_file(target)
    assert np.array_equal(clip, pixels("birds"))
    assert not np.array_equal(clip, base)
    assert np.array_equal(ran(model, "smile")[0], pixels("smile"))  # on the base still


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("not finite", "NaN or infinity"),
        ("foreign", "match nothing in the model"),
        ("half", "cannot read"),
        ("gone", "there are no weights"),
    ],
)
def test_bad_weights_are_refused_once_and_the_earlier_ones_go_on(family, bad, said, caplog):
    model, watch = loaded()
    looked(watch, model)
    first, sha256 = ran(model)
    whole = family.read_bytes()
    if bad == "not finite":
        other_weights(family, float("nan"))
    elif bad == "foreign":
        other_weights(family, foreign=torch.zeros(2))
    elif bad == "half":
        family.write_bytes(whole[: len(whole) // 2])
    else:
        family.unlink()
    before = REGISTRY.get_sample_value("huvidpo_reloads_total", {"outcome": "refused"}) or 0
    with caplog.at_level(logging.ERROR):
        looked(watch, model)
        looked(watch, model)
    assert REGISTRY.get_sample_value("huvidpo_reloads_total", {"outcome": "refused"}) == before + 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "the earlier ones go on" in record.getMessage()
    assert said in record.getMessage()
    assert not record.exc_info
    clip, same = ran(model)
    assert same == sha256 == model.loaded["horse"]
    assert np.array_equal(clip, first)
    family.write_bytes(whole)
    other_weights(family)
    looked(watch, model)
    assert ran(model)[1] == hash_file(family)


@needs_openvino
def test_an_engine_is_made_and_compared_with_torch_beside(family, monkeypatch):
    monkeypatch.setenv("HUVIDPO_ENGINES", str(family.parent / "engines"))
    model, watch = loaded("openvino")
    looked(watch, model)
    old = model.pipeline.unets["horse"]
    other_weights(family)
    looked(watch, model)
    new = model.pipeline.unets["horse"]
    assert isinstance(new, type(old))
    assert new is not old
    usual = new.config.in_channels, *new.run.usual[0][2:]
    assert not new.run.cold(usual)  # compiled by the comparison, not while a batch waits
    clip, sha256 = ran(model)
    assert sha256 == hash_file(family)
    assert np.abs(clip.astype(int) - pixels().astype(int)).max() <= 2  # levels of 256


def test_changed_while_it_is_read(family, monkeypatch, caplog):
    model, watch = loaded()
    looked(watch, model)
    sha256 = ran(model)[1]
    load = model.load_beside

    def slow(category, file):
        network = load(category, file)
        other_weights(file)
        return network

    other_weights(family)
    with monkeypatch.context() as patch:
        patch.setattr(model, "load_beside", slow)
        looked(watch, model)
    assert "changed while it was read" in caplog.text
    assert ran(model)[1] == sha256
    looked(watch, model)
    clip, new = ran(model)
    assert new == hash_file(family)
    assert np.array_equal(clip, pixels())


def test_replaced_while_it_is_loaded_at_the_start(family):
    watch = Watch(load_catalog(), DEFAULT_MODEL)
    watch._hashing.join()
    pipeline = VideoPipeline.from_catalog(DEFAULT_MODEL, device="cpu", dtype=torch.float32)
    other_weights(family)
    model = runners.VideoModel(pipeline, watch.loaded)
    looked(watch, model)
    clip, sha256 = ran(model)
    assert sha256 == hash_file(family)
    assert np.array_equal(clip, pixels())


def test_no_memory_for_two(family, caplog):
    model, watch = loaded()
    model.spare = False
    looked(watch, model)
    sha256 = ran(model)[1]
    other_weights(family)
    looked(watch, model)
    assert "no memory for two" in caplog.text
    assert ran(model)[1] == sha256


def test_every_answer_names_the_weights_that_made_its_pixels(family):
    """Jobs in flight while weights change: each clip is wholly of those that it names."""
    model, watch = loaded()
    looked(watch, model)
    made = {hash_file(family): pixels()}
    batcher: Batcher = Batcher("video", partial(lambda model: model, model), max_batch=2, queue_size=64)

    async def clip() -> tuple[str | None, np.ndarray]:
        async for event in batcher.submit(job()):
            if isinstance(event, Done):
                return event.weights, event.result
        raise AssertionError

    async def main() -> None:
        answers = []
        for _ in range(3):
            running = [asyncio.ensure_future(clip()) for _ in range(4)]
            other_weights(family, 1.2)
            made[hash_file(family)] = await asyncio.to_thread(pixels)
            running += [asyncio.ensure_future(clip()) for _ in range(4)]
            await asyncio.to_thread(looked, watch, model)
            running.append(asyncio.ensure_future(clip()))
            answers += await asyncio.gather(*running)
            assert answers[-1][0] == hash_file(family)
        for sha256, frames in answers:
            assert sha256 is not None
            # rounding of a batch of two may move a pixel by a level
            assert np.abs(frames.astype(int) - made[sha256].astype(int)).max() <= 1
        assert len({sha256 for sha256, _ in answers}) >= 3

    try:
        asyncio.run(main())
    finally:
        batcher.close()
