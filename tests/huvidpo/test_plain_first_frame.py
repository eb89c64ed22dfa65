"""First frames by Stable Diffusion 1.x behind the pipeline that draws them by SDXL."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import needs_openvino
from diffusers import DDIMScheduler, StableDiffusionPipeline
from family import SIZE, build_plain_family

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.engines.base import PlainFirstFrameEngine
from huvidpo.engines.networks import rows_of
from huvidpo.errors import CheckpointError, InvalidRequest
from huvidpo.pipeline import FirstFramePipeline
from training.dpo import load_first_frame
from training.loop import TrainingError


@pytest.fixture(scope="module")
def plain_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plain_family(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def catalog(plain_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUVIDPO_CATALOG", str(plain_family / "catalog"))
    monkeypatch.setenv("HUVIDPO_ENGINES", str(tmp_path / "engines"))
    return plain_family


def request(seed: int, prompt: str = "a white horse runs", **options: object) -> ClipRequest:
    small = {"first_frame_size": (SIZE, SIZE), "first_frame_steps": 3, "first_frame_guidance": 2.0}
    asked = ClipRequest(prompt, "horse", seed)
    return dataclasses.replace(asked, options=asked.options.replace(**small | options))


def test_it_is_diffusers_own_pipeline(catalog: Path) -> None:
    ours = FirstFramePipeline.from_catalog(DEFAULT_MODEL)
    asked = request(3, first_frame_steps=4)  # of 1000 timesteps: then ours are diffusers' own
    (image,) = ours([asked])
    parts = ours.pipe.components | {"scheduler": DDIMScheduler.from_config(ours.pipe.scheduler.config)}
    theirs = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    with torch.no_grad():
        expected = theirs(
            "a white horse runs, realistic style",
            latents=ours.prepare_latents([asked]),
            height=SIZE,
            width=SIZE,
            num_inference_steps=4,
            guidance_scale=2.0,
            output_type="np",
        ).images[0]
    assert image is not None
    assert np.abs((expected * 255).round() - image).max() <= 1


def test_requests_do_not_depend_on_the_batch_and_leave_it(catalog: Path) -> None:
    pipeline = FirstFramePipeline.from_catalog(DEFAULT_MODEL)
    requests = [request(1), request(2, "rain falls at night")]
    together = pipeline(requests)
    alone = [pipeline([one])[0] for one in requests]
    for ours, theirs in zip(together, alone, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    first, second = pipeline(requests, on_step=lambda step, total, x: [len(x) == 1, True][-len(x) :])
    assert first is None
    assert np.abs(second.astype(int) - alone[1]).max() <= 1
    assert pipeline([request(1, first_frame_guidance=1.0)])[0] is not None
    with pytest.raises(InvalidRequest, match="the text encoder reads 46"):
        pipeline([request(1, "horse " * 60)])


@needs_openvino
def test_an_engine_stands_in_for_its_unet(catalog: Path) -> None:
    pipelines = [
        FirstFramePipeline.from_catalog(DEFAULT_MODEL, backend=name) for name in ("torch", "openvino")
    ]
    assert isinstance(pipelines[1].pipe.unet, PlainFirstFrameEngine)
    images = [pipeline([request(5)])[0] for pipeline in pipelines]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1
    names = [row.name for row in rows_of(load_catalog().model(DEFAULT_MODEL))]
    assert names == ["plain_first_frame_unet", "first_frame_vae_decoder", "video_vae_decoder", "video_unet"]


def test_other_pipelines_and_its_preferences_are_refused(catalog: Path) -> None:
    with pytest.raises(TrainingError, match=r"draws by Stable Diffusion 1\.x"):
        load_first_frame(load_catalog().model(DEFAULT_MODEL), torch.device("cpu"))
    index = catalog / "first_frame" / "model_index.json"
    before = index.read_text()
    index.write_text('{"_class_name": "FluxPipeline"}')
    try:
        with pytest.raises(CheckpointError, match="is a FluxPipeline; known are StableDiffusionXLPipeline"):
            FirstFramePipeline.from_catalog(DEFAULT_MODEL)
    finally:
        index.write_text(before)
