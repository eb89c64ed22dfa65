"""TensorRT engines of a random family, on a GPU: `python -m pytest -m gpu tests/gpu`.

With `tensorrt` installed the engines are built for this GPU; else ahead of time with `tensorrt-rtx`.
"""

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from family import LATENT_CHANNELS, SIZE, TEXT_WIDTH, build_random_family
from torch import Tensor

from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.config import ClipRequest
from huvidpo.engines.base import VideoEngine
from huvidpo.errors import EngineError, InvalidRequest
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline

FLAVOURS = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not FLAVOURS, reason="needs tensorrt-cu13 or tensorrt-rtx-cu13"),
    pytest.mark.timeout(1800),
]
CATEGORIES = ["horse", "rain"]
HALF = 2e-2  # largest |engine - torch| / |torch| in float16


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with engines of a random family for this GPU."""
    from export.build import main

    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUVIDPO_CATALOG", str(build_random_family(folder / "family") / "catalog"))
        patch.setenv("HUVIDPO_ENGINES", str(folder / "engines"))
        arguments = ["--model", DEFAULT_MODEL, "--category", *CATEGORIES, "--no-parity"]
        if "tensorrt" in FLAVOURS:
            arguments += ["--backend", "tensorrt"]
        else:
            major, minor = torch.cuda.get_device_capability()
            arguments += ["--backend", "tensorrt-rtx", "--target", f"sm{major}{minor}"]
        assert main(arguments) == 0
        yield folder / "engines"


@pytest.fixture(scope="module")
def eager(engines: Path) -> VideoPipeline:
    return VideoPipeline.from_catalog(DEFAULT_MODEL, device="cuda", categories=CATEGORIES)


@pytest.fixture
def video(engines: Path) -> VideoPipeline:
    return VideoPipeline.from_catalog(DEFAULT_MODEL, device="cuda", categories=CATEGORIES, backend="tensorrt")


def inputs(lines: int = 2, frames: int = 4, side: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, timestep and text of the video UNet."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(lines, LATENT_CHANNELS, frames, side, side, generator=generator)
    text = torch.randn(lines, 48, TEXT_WIDTH, generator=generator)
    return sample.half().cuda(), torch.full((lines,), 500.0, device="cuda"), text.half().cuda()


def difference(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@torch.no_grad()
def test_engine_is_torch_at_every_shape(video: VideoPipeline, eager: VideoPipeline) -> None:
    for shape in ({}, {"lines": 1, "frames": 9}, {"side": 6}, {}):
        given = inputs(**shape)
        for name in CATEGORIES:
            assert difference(video.unets[name](*given), eager.unets[name](*given)) < HALF


def test_clip_is_that_of_torch(video: VideoPipeline, eager: VideoPipeline) -> None:
    asked = ClipRequest("a white horse runs", "horse", 1)
    small = {"steps": 3, "guidance": 2.0, "height": SIZE, "width": SIZE, "frames": 4, "corrections": "none"}
    asked = dataclasses.replace(asked, options=asked.options.replace(**small))
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    (ours,), (theirs,) = video([asked], [image]), eager([asked], [image])
    assert ours is not None
    assert theirs is not None
    assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_first_frame_is_that_of_torch(engines: Path) -> None:
    asked = ClipRequest("a white horse runs", "horse", 1)
    options = asked.options.replace(first_frame_steps=3, first_frame_size=(SIZE, SIZE))
    asked = dataclasses.replace(asked, options=options)
    images = [
        FirstFramePipeline.from_catalog(DEFAULT_MODEL, device="cuda", backend=name)([asked])[0]
        for name in ("tensorrt", "torch")
    ]
    assert images[0] is not None
    assert images[1] is not None
    assert np.abs(images[0].astype(int) - images[1]).mean() < 3


@torch.no_grad()
def test_switching_there_and_back_changes_nothing(video: VideoPipeline) -> None:
    given = inputs()
    before, other, after = (video.unets[name](*given) for name in ("horse", "rain", "horse"))
    assert torch.equal(before, after)
    assert not torch.equal(before, other)


@torch.no_grad()
def test_engines_dropped_for_memory_come_back_the_same(video: VideoPipeline) -> None:
    given = inputs()
    plan = video.unets["horse"].run
    before = plan(*given)
    plan.device.loaded.pop(id(plan)).unload()
    assert plan.engine is None
    assert torch.equal(plan(*given), before)


@torch.no_grad()
def test_without_graphs_tensors_pass_by_address(video: VideoPipeline) -> None:
    given = inputs()
    plan = video.unets["horse"].run
    direct = type(plan)(plan.device, plan.folder, plan.manifest, graphs=False)
    assert difference(direct(*given), plan(*given)) < 1e-3
    assert not direct.recorded
    assert plan.recorded


@torch.no_grad()
def test_results_of_earlier_calls_stay(video: VideoPipeline) -> None:
    unet = video.unets["horse"]
    first = unet(*inputs(seed=1))
    copy = first.clone()
    unet(*inputs(seed=2))
    assert torch.equal(first, copy)


@torch.no_grad()
def test_order_on_the_callers_stream(video: VideoPipeline) -> None:
    """What the caller's stream is still computing is waited for, and the result may be used there at once."""
    unet, stream = video.unets["horse"], torch.cuda.Stream()
    sample, timestep, text = inputs()
    expected = unet(sample, timestep, text) * 2
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        late = torch.empty_like(sample)
        torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
        late.copy_(sample)
        got = unet(late, timestep, text) * 2
    stream.synchronize()
    assert torch.equal(got, expected)


@torch.no_grad()
def test_scratch_memory_is_shared_and_grows(video: VideoPipeline) -> None:
    small, large = inputs(lines=1, frames=2, side=4), inputs(lines=4, frames=20)
    plans = [video.unets[name].run for name in CATEGORIES]
    before = plans[0](*small)
    plans[1](*large)
    assert plans[0].device is plans[1].device
    assert torch.equal(plans[0](*small), before)


@torch.no_grad()
def test_shapes_outside_the_profile_are_refused(video: VideoPipeline) -> None:
    with pytest.raises(InvalidRequest, match=r"sample: got .* this engine takes"):
        video.unets["horse"](*inputs(frames=100))


def test_auto_takes_the_engine(engines: Path) -> None:
    pipeline = VideoPipeline.from_catalog(DEFAULT_MODEL, device="cuda", categories=["horse"], backend="auto")
    assert pipeline.backend == "tensorrt"
    assert isinstance(pipeline.unets["horse"], VideoEngine)


def test_missing_engine_says_what_to_do(engines: Path) -> None:
    with pytest.raises(EngineError, match=r"export\.build --model tiny"):
        VideoPipeline.from_catalog(DEFAULT_MODEL, device="cuda", categories=["guitar"], backend="tensorrt")


@pytest.mark.skipif("tensorrt" in FLAVOURS, reason="tensorrt-rtx alone compiles kernels when it loads")
def test_compiled_kernels_are_kept(video: VideoPipeline, engines: Path) -> None:
    assert list((engines / "kernels").glob("*.bin"))
