"""HUVIDPO_BACKEND from the setting to the answer: real models at random weights, no web."""

import dataclasses
import logging
from functools import partial

import numpy as np
import pytest
import torch
from backends import needs_openvino
from family import build_random_family
from prometheus_client import REGISTRY

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.config import ClipRequest
from service import runners
from service.batching import Batcher
from service.generation import Finished
from service.http import _clip_response
from service.settings import Settings


@pytest.fixture(scope="module", autouse=True)
def _random_family(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUVIDPO_CATALOG", str(build_random_family(folder) / "catalog"))
        patch.setenv("HUVIDPO_ENGINES", str(folder / "engines"))
        yield


def started(stage: str, settings: Settings) -> Batcher:
    """A runner's batcher, loaded or given up."""
    load = {"first_frame": runners.load_first_frame, "video": runners.load_video}[stage]
    batcher: Batcher = Batcher(stage, partial(load, settings), max_batch=1, queue_size=1)
    while batcher.alive and not batcher.ready:
        batcher._thread.join(0.05)
    return batcher


def test_setting():
    assert Settings().backend == "auto"
    assert Settings.from_env({"HUVIDPO_BACKEND": "openvino"}).backend == "openvino"
    with pytest.raises(ValueError, match="HUVIDPO_BACKEND: got 'openvno', allowed auto, torch, onnxruntime"):
        Settings.from_env({"HUVIDPO_BACKEND": "openvno"})


@pytest.mark.parametrize("stage", ["first_frame", "video"])
def test_auto_falls_back_and_is_reported(stage, caplog):
    """Half precision is something no CPU engine computes in."""
    with caplog.at_level(logging.WARNING):
        batcher = started(stage, Settings(backend="auto", dtype="float16", device="cpu"))
    assert batcher.ready
    assert batcher.backend == "torch"
    assert "torch serves instead of openvino" in caplog.text
    labels = {"stage": stage, "backend": "torch"}
    assert REGISTRY.get_sample_value("huvidpo_backend_info", labels) == 1
    batcher.close()


def test_a_backend_that_was_asked_for_is_not_replaced(caplog):
    batcher = started("video", Settings(backend="tensorrt", device="cpu"))
    assert not batcher.alive
    assert not batcher.ready
    assert "tensorrt runs on cuda, the device is cpu: set HUVIDPO_DEVICE=cuda" in caplog.text


def test_answer_names_the_backends_and_the_weights():
    backends, weights = {"first_frame": "openvino", "video": "tensorrt"}, {"video": "5e7"}
    clip = Finished(b"", "video/mp4", 1, DEFAULT_MODEL, {}, backends, weights)
    headers = _clip_response(clip).headers
    assert headers["X-Backend"] == "first_frame=openvino, video=tensorrt"
    assert headers["X-Weights"] == "5e7"
    scaled = _clip_response(dataclasses.replace(clip, strength=0.5)).headers
    assert scaled["X-Weights"] == "5e7; preference_strength=0.5"


@pytest.mark.parametrize(
    ("settings", "cpu", "dtype"),
    [
        (Settings(device="cpu"), {"avx512_bf16": True}, torch.bfloat16),
        (Settings(device="cpu"), {"amx_bf16": True}, torch.bfloat16),
        (Settings(device="cpu"), {"avx512_bf16": False}, None),
        (Settings(device="cuda"), {"avx512_bf16": True}, None),
        (Settings(device="cpu", dtype="float32"), {"avx512_bf16": True}, torch.float32),
    ],
)
def test_bfloat16_where_the_cpu_computes_in_it(settings, cpu, dtype, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert runners._placement(settings, "video")["dtype"] == dtype
    if not settings.dtype:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert runners._placement(settings, "video")["dtype"] is None


@needs_openvino
def test_unusual_lengths_are_one_compilation_beside_the_others():
    """As long as the clips are of a length that was met, no call compiles; other lengths share a network."""
    model = runners.load_video(Settings(backend="openvino", dtype="float32", device="cpu"))
    runs = [model.pipeline.unets["waterfall"].run, model.pipeline.vae.run]
    defaults = load_catalog().model(DEFAULT_MODEL).defaults

    def item(frames, category="waterfall", **size):
        options = defaults.replace(frames=frames, steps=1, **size)
        frame = np.zeros((8, 8, 3), np.uint8)
        return runners.VideoItem(ClipRequest("a horse", category, 1, options=options), frame)

    assert model.cold(item(defaults.frames, "horse"))
    assert not model.cold(item(defaults.frames))  # the first category: compared with torch at the start
    assert model.cold(item(5))
    model.warm(item(5))
    # even numbers of frames: of an odd one the last would have a compilation beside, at some time
    assert model.cold(item(6, height=96))  # the decoder has not met such pictures
    model.warm(item(6, height=96))
    compiled = [dict(run.networks) for run in runs]
    for asked in (*map(item, (5, 6, 7, 9, defaults.frames)), item(6, height=96), item(4, width=48)):
        assert not model.cold(asked)
        (clip,) = model.run([asked], lambda *step: None)
        assert clip.shape[:2] == (asked.clip.options.frames, asked.clip.options.height)
    assert [run.networks for run in runs] == compiled


@pytest.mark.parametrize(
    ("first", "video", "together"),
    [("", "", True), ("cuda", "cuda:0", True), ("", "cuda:0", True), ("cuda:0", "cuda:1", False)],
)
def test_stages_share_a_card_or_have_one_each(first, video, together):
    settings = Settings(first_frame_device=first, video_device=video)
    cards = {runners._card(settings.device_of(stage)) for stage in ("first_frame", "video")}
    assert (len(cards) == 1) == together
    assert Settings(device="cuda:1", video_device=video).device_of("first_frame") == "cuda:1"
