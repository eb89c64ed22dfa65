"""The seam, and the CPU backends behind it, against torch."""

import dataclasses
import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from family import LATENT_CHANNELS, SIZE
from onnx import TensorProto, helper
from torch import Tensor

from export.build import jobs, load
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.config import PRECISIONS, ClipRequest
from huvidpo.engines import openvino as cpu_engines
from huvidpo.engines import select
from huvidpo.engines.base import (
    LIMITS,
    DecoderEngine,
    Engine,
    EngineSpec,
    FirstFrameEngine,
    VideoEngine,
    check_inputs,
)
from huvidpo.engines.manifest import Manifest, Port, size_of, write_manifest
from huvidpo.engines.networks import ROWS, Row, rows_of, spec_inputs
from huvidpo.engines.onnxruntime import onnxruntime
from huvidpo.engines.select import compare, place_modules
from huvidpo.errors import EngineError, InvalidRequest
from huvidpo.files import hash_tensors
from huvidpo.hardware import limited_isa
from huvidpo.loading import load_video_unet
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from huvidpo.unet import VideoUNet

if limited_isa():
    pytest.skip(f"openvino crashes under {limited_isa()}", allow_module_level=True)
openvino = cpu_engines.import_openvino()
CATEGORIES = ["horse", "smile", "guitar"]  # the random family has weights for the first alone
UNET = ROWS["video_unet"]
CPU = EngineSpec(DEFAULT_MODEL, torch.device("cpu"), lines=1, frames=16, height=8, width=8, tokens=48)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, family: Path) -> Iterator[Path]:
    """Engines go here, models come from the random family."""
    folder = tmp_path_factory.mktemp("engines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUVIDPO_ENGINES", str(folder))
        patch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))
        yield folder


@pytest.fixture(scope="module")
def video(cache: Path) -> VideoPipeline:
    return VideoPipeline.from_catalog(DEFAULT_MODEL, categories=CATEGORIES, backend="auto")


@pytest.fixture(scope="module")
def eager(cache: Path) -> VideoPipeline:
    return VideoPipeline.from_catalog(DEFAULT_MODEL, categories=CATEGORIES)


@pytest.fixture
def unet(cache: Path) -> VideoUNet:
    return load_video_unet(load_catalog().model(DEFAULT_MODEL).video_unet, torch.float32).eval()


def request(seed: int, category: str = "horse", **options: object) -> ClipRequest:
    asked = ClipRequest("a white horse runs", category, seed)
    small = {"steps": 3, "guidance": 2.0, "height": SIZE, "width": SIZE, "frames": 4, "corrections": "none"}
    small |= {"first_frame_size": (SIZE, SIZE), "first_frame_steps": 3}
    return dataclasses.replace(asked, options=asked.options.replace(**small | options))


def latents(pipeline: VideoPipeline, *requests: ClipRequest) -> list[Tensor]:
    images = [np.random.default_rng(r.seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8) for r in requests]
    with torch.no_grad():
        prepared = pipeline.prepare_latents(requests, pipeline.encode_first_frame(requests, images))
        out = pipeline.denoise(requests, prepared, pipeline.encode_prompt(requests))
    return [x for x in out if x is not None]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_auto_is_openvino_on_a_cpu(video: VideoPipeline) -> None:
    assert video.backend == "openvino"
    assert all(isinstance(unet, VideoEngine) for unet in video.unets.values())
    assert video.unets["smile"] is video.unets["guitar"]  # both run on the base
    assert video.unets["horse"] is not video.unets["smile"]


def test_clip_is_that_of_torch_whatever_the_batch(video: VideoPipeline, eager: VideoPipeline) -> None:
    one, other = request(1), request(2, guidance=1.5)
    batch = latents(video, one, other)
    for asked, got in zip((one, other), batch, strict=True):
        close(got, latents(video, asked)[0])
        close(got, latents(eager, asked)[0])


def test_dropped_requests_leave_the_batch(video: VideoPipeline) -> None:
    requests = [request(1), request(2)]
    images = [np.zeros((SIZE, SIZE, 3), np.uint8)] * 2
    first, second = video(requests, images, on_step=lambda step, total, x: [len(x) == 1, True][-len(x) :])
    assert first is None
    assert second is not None
    (alone,) = video(requests[1:], images[1:])
    assert alone is not None
    assert np.abs(second.astype(int) - alone).max() <= 1


def test_decoded_frames_are_those_of_torch(video: VideoPipeline, eager: VideoPipeline) -> None:
    assert isinstance(video.vae, DecoderEngine)
    for frames, height in ((4, SIZE), (3, 2 * SIZE)):  # a frame over the two beside each other; another size
        asked = [request(1, frames=frames, height=height)]
        z = [torch.randn(LATENT_CHANNELS, frames, height // 4, SIZE // 4)]
        (ours,), (torchs,) = (one.decode(asked, z) for one in (video, eager))
        assert ours is not None
        assert torchs is not None
        assert ours.shape == (frames, height, SIZE, 3)
        assert np.abs(ours.astype(int) - torchs).max() <= 1


def test_first_frame_is_that_of_torch(cache: Path) -> None:
    pipelines = [
        FirstFramePipeline.from_catalog(DEFAULT_MODEL, backend=name) for name in ("torch", "openvino")
    ]
    assert isinstance(pipelines[1].pipe.unet, FirstFrameEngine)
    for options in ({}, {"first_frame_guidance": 1.0, "first_frame_size": (SIZE, 2 * SIZE)}):
        images = [pipeline([request(5, **options)])[0] for pipeline in pipelines]
        assert images[0] is not None
        assert images[1] is not None
        assert np.abs(images[0].astype(int) - images[1]).max() <= 1


def test_graph_is_traced_once_and_holds_no_weights(
    video: VideoPipeline, cache: Path, unet: VideoUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = (cache / "openvino").glob("video_unet-*/graph.bin")
    weights = sum(tensor.numel() * 4 for tensor in unet.state_dict().values())
    assert kept.stat().st_size < 0.05 * weights
    monkeypatch.setattr(cpu_engines, "trace", lambda *_: pytest.fail("traced again"))
    cpu_engines.openvino(UNET, "horse", unet, CPU)


def test_other_architectures_get_other_graphs(unet: VideoUNet) -> None:
    config = dict(unet.config)
    assert cpu_engines.architecture(config) == cpu_engines.architecture(config | {"_name_or_path": "x"})
    assert cpu_engines.architecture(config) != cpu_engines.architecture(config | {"attention_mode": "first"})


def addition(usual: cpu_engines.Shapes = ()) -> cpu_engines.OpenVINO:
    """x [lines, width] + weight [1]."""
    x = openvino.opset13.parameter([-1, -1], np.float32, name="x")
    weight = openvino.opset13.parameter([1], np.float32, name="weight")
    graph = openvino.Model([openvino.opset13.add(x, weight)], [x, weight], "addition")
    graph.inputs[1].get_tensor().set_names({"weight"})
    return cpu_engines.OpenVINO(graph, {"weight": torch.tensor([1.0])}, "f32", usual)


def test_only_the_latest_shapes_stay_compiled() -> None:
    run = addition()
    for width in (1, 2, 1, *range(3, 2 + cpu_engines.KEPT_SHAPES)):
        assert run(torch.zeros(1, width)).tolist() == [[1.0] * width]
    assert len(run.networks) == cpu_engines.KEPT_SHAPES
    kept = {width for ((_, width),), _ in run.networks}
    assert 1 in kept  # it was used after 2
    assert 2 not in kept


def test_unusual_sizes_share_one_compilation() -> None:
    run = addition(usual=((2, 3),))
    compiled = []
    compile = run.compile
    run.compile = lambda *key: compiled.append(key) or compile(*key)  # type: ignore[method-assign]
    for width in (*range(4, 28), 3, 3):  # 24 sizes nobody expected, then the usual one
        assert run(torch.zeros(1, width)).tolist() == [[1.0] * width]
    assert compiled == [(cpu_engines.ANY, 1), (((1, 3),), 1)]


def test_lines_run_beside_each_other_once_that_is_compiled() -> None:
    """Nobody waits for it: until then they run one after the other. A line left over has all threads."""
    run = addition(usual=((1, 3),))
    run.threads = 2
    compile, go_on = run.compile, threading.Event()

    def compile_when_told(shapes: cpu_engines.Shapes, streams: int) -> Any:
        assert streams == 1 or go_on.wait(30)
        return compile(shapes, streams)

    run.compile = compile_when_told  # type: ignore[method-assign]
    x = torch.arange(15.0).reshape(5, 3)
    run(x[:1])
    assert torch.equal(run(x), x + 1)
    assert [streams for _, streams in run.networks] == [1]
    go_on.set()
    deadline = time.monotonic() + 30
    while len(run.networks) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert torch.equal(run(x), x + 1)
    assert [streams for _, streams in run.networks] == [2, 1]  # in the order of use: four, and the fifth


def test_a_line_that_fails_leaves_no_other_busy() -> None:
    """The second line lacks an input; the first one multiplies for far longer than it takes to see that."""
    x, by = (openvino.opset13.parameter([1, 600, 600], np.float32, name=name) for name in ("x", "by"))
    product = x
    for _ in range(8):
        product = openvino.opset13.matmul(product, by, False, False)
    settings = {"NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": 2}
    compiled = cpu_engines.core().compile_model(openvino.Model([product], [x, by], "power"), "CPU", settings)
    lines, ones = cpu_engines.Lines(compiled), np.ones((2, 600, 600), np.float32)
    same = np.stack([np.eye(600, dtype=np.float32)] * 2)
    with pytest.raises(RuntimeError):
        lines([ones, same[:1]])
    np.testing.assert_array_equal(lines([ones, same]), ones)


def test_engines_are_warmed_up_before_their_first_call() -> None:
    run = addition(usual=((2, 3),))
    for sizes in ((3,), (7,)):
        assert run.cold(sizes)
        run.warm(sizes, 1)
        assert not run.cold(sizes)
    assert set(run.networks) == {(((1, 3),), 1), (cpu_engines.ANY, 1)}
    assert not run.cold((9,))
    run(torch.zeros(1, 3)), run(torch.zeros(1, 7))
    assert set(run.networks) == {(((1, 3),), 1), (cpu_engines.ANY, 1)}


def test_bfloat16(video: VideoPipeline, unet: VideoUNet) -> None:
    half = torch.nn.Module.to(unet, torch.bfloat16)
    compare(UNET, cpu_engines.openvino(UNET, "", half, CPU), half, CPU)


def test_replaced_weights_come_back(unet: VideoUNet) -> None:
    before = dict(unet.named_parameters())
    zeros = {name: torch.zeros_like(tensor) for name, tensor in unet.state_dict().items()}
    inputs = torch.randn(1, 8, 2, 4, 4), torch.tensor([3.0]), torch.randn(1, 3, 32)
    with torch.no_grad(), cpu_engines.replaced(unet, zeros):
        assert unet(*inputs).abs().max() == 0
    with pytest.raises(ValueError, match="zip"), cpu_engines.replaced(unet, zeros):
        list(zip([0], [], strict=True))
    after = dict(unet.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_engine_is_called_like_the_module(unet: VideoUNet) -> None:
    ours = inspect.signature(VideoEngine.__call__).parameters
    theirs = inspect.signature(VideoUNet.forward).parameters
    assert list(ours) == list(theirs)
    engine = VideoEngine(unet, lambda *inputs: inputs[2])
    assert (engine.dtype, engine.device, engine.config) == (unet.dtype, unet.device, unet.config)
    text, sample = torch.randn(2, 3, 32), torch.zeros(2, 8, 3, 4, 4)
    assert engine(sample, 7, text) is text
    kept = [(keys[[1]], values[[1]]) for keys, values in engine.project_text(text)]
    close(engine(sample[:1], torch.tensor(7), None, text_kv=kept), text[1:])
    with pytest.raises(ValueError, match="encoder_hidden_states"):
        engine(sample, 7)


def test_wrong_engine_is_refused(unet: VideoUNet) -> None:
    for wrong in (torch.zeros_like, lambda x: torch.full_like(x, torch.nan)):
        with pytest.raises(EngineError, match="differs from torch"):
            compare(UNET, lambda x, *_, wrong=wrong: wrong(x), unet, CPU)


@pytest.mark.parametrize("dtype", LIMITS)
def test_an_engine_a_little_beyond_its_limit_is_refused(unet: VideoUNet, dtype: torch.dtype) -> None:
    module = torch.nn.Module.to(unet, dtype)
    for share, fine in ((0.5, True), (1.5, False)):
        off = 1 + share * LIMITS[dtype]  # in float32: the engine's own rounding is none

        def run(*inputs: Tensor, off: float = off) -> Tensor:
            return off * module(*inputs).float()

        with nullcontext() if fine else pytest.raises(EngineError, match="differs from torch"):
            compare(UNET, run, module, CPU)


def test_auto_falls_back_and_says_why(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    cpu_engines.core.cache_clear()
    with caplog.at_level(logging.WARNING):
        pipeline = VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["horse"], backend="auto")
    assert pipeline.backend == "torch"
    assert isinstance(pipeline.unets["horse"], VideoUNet)
    assert "torch serves instead of openvino" in caplog.text
    assert "pip install openvino" in caplog.text
    with pytest.raises(EngineError, match="pip install openvino"):
        VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["horse"], backend="openvino")


class Off:
    """Engines that are the modules, but for some categories: those differ, or there is none."""

    def __init__(self, wrong: set[str], missing: set[str]):
        self.wrong, self.missing, self.runs = wrong, missing, []

    def __call__(self, row: Row, category: str, module: VideoUNet, spec: EngineSpec) -> Callable[..., Tensor]:
        if category in self.missing:
            raise EngineError(f"no engine for {category}")

        def run(*inputs: Tensor) -> Tensor:
            self.runs.append(category)
            return module(*inputs) * (0 if category in self.wrong else 1)

        return run


@pytest.fixture
def three(cache: Path) -> dict[str, VideoUNet]:
    names = ["horse", "rain", "smile"]
    return dict(VideoPipeline.from_catalog(DEFAULT_MODEL, categories=names).unets)


def three_inputs() -> tuple[Tensor, ...]:
    return spec_inputs(UNET, {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32}, CPU)


@torch.no_grad()
def test_every_category_is_proved_when_it_is_first_used(
    three: dict[str, VideoUNet], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused one falls back alone, a missing one never leaves torch, the others keep their engines."""
    make = Off(wrong={"rain"}, missing={"smile"})
    monkeypatch.setattr(select, "_maker", lambda *_: make)
    used, placed = place_modules("auto", {"video_unet": dict(three)}, CPU)
    unets = placed["video_unet"]
    assert used == "openvino"
    assert unets["smile"] is three["smile"]
    assert "video_unet smile: torch serves instead of openvino: no engine for smile" in caplog.text
    assert make.runs == ["horse"]  # proved at once
    inputs = three_inputs()
    for name in ("rain", "horse", "rain"):
        torch.testing.assert_close(unets[name](*inputs), three[name](*inputs))
    assert make.runs == ["horse", "rain", "horse"]  # the wrong one was asked once, to be proved
    assert (
        "video_unet rain: torch serves instead of openvino: the engine of video_unet differs" in caplog.text
    )


def test_large_first_frames_are_decoded_by_torch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoder() -> str:
        return type(FirstFramePipeline.from_catalog(DEFAULT_MODEL, backend="openvino").pipe.vae).__name__

    assert decoder() == "DecoderEngine"
    monkeypatch.setattr(select, "LARGEST_FIRST_FRAME", 1)
    assert decoder() == "AutoencoderKL"


@torch.no_grad()
def test_a_backend_asked_for_by_name_serves_nothing_else(
    three: dict[str, VideoUNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_maker", lambda *_: Off(wrong={"rain"}, missing=set()))
    _, placed = place_modules("openvino", {"video_unet": dict(three)}, CPU)
    for _ in range(2):  # it does not pass by being asked again
        with pytest.raises(EngineError, match="differs from torch"):
            placed["video_unet"]["rain"](*three_inputs())
    monkeypatch.setattr(select, "_maker", lambda *_: Off(wrong=set(), missing={"smile"}))
    with pytest.raises(EngineError, match="no engine for smile"):
        place_modules("openvino", {"video_unet": dict(three)}, CPU)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_built_is_what_is_asked_for(cache: Path, precision: str) -> None:
    """Of every network, category and precision: the hash and dtype that a build notes are those that serving
    looks for; one of them apart would mean an engine of gigabytes that is never used.
    """
    catalog, dtype = load_catalog(), getattr(torch, precision)
    model = catalog.model(DEFAULT_MODEL)
    video = VideoPipeline.from_catalog(DEFAULT_MODEL, dtype=dtype, categories=["horse", "rain", "smile"])
    first = FirstFramePipeline.from_catalog(DEFAULT_MODEL, dtype=dtype)
    served = {("video_unet", name): unet for name, unet in video.unets.items()}
    served |= {("video_vae_decoder", ""): video.vae, ("first_frame_vae_decoder", ""): first.pipe.vae}
    served |= {("first_frame_unet", ""): first.pipe.unet}
    built = jobs(catalog, model, rows_of(model), ["horse", "rain", "smile"], precision, 4)
    seen = set()
    for job in built:
        module = load(job.network, job.weights)
        ours = served[job.network.row.name, job.category]
        assert job.network.dtype == ours.dtype
        tensors = [hash_tensors(one.state_dict(), job.network.precision) for one in (module, ours)]
        assert tensors[0] == tensors[1], (job.network.row.name, job.category)
        seen.add((job.network.row.name, job.category))
    assert seen == served.keys()


def test_networks_that_memory_may_not_hold_are_left_to_torch(
    cache: Path, unet: VideoUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = sum(tensor.numel() for tensor in unet.state_dict().values())
    size = cpu_engines.KEPT * (4 * numbers + cpu_engines.GRAPH_BYTES)
    cpu_engines.check_memory([unet, unet], size)  # categories that share a network count once
    with pytest.raises(EngineError, match="HUVIDPO_BACKEND=torch"):
        cpu_engines.check_memory([unet], size - 1)
    monkeypatch.setattr(cpu_engines.memory, "available", lambda: 1)
    modules = {"video_unet": {"": unet}}
    assert place_modules("auto", modules, CPU) == ("torch", modules)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("tensorrt", "HUVIDPO_DEVICE=cuda"),
        ("onnxruntime", "export.build --model tiny --backend onnxruntime"),
        ("openvno", "allowed: auto, torch, onnxruntime, openvino, tensorrt"),
    ],
)
def test_backend_that_cannot_be_had(cache: Path, unet: VideoUNet, backend: str, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        place_modules(backend, {"video_unet": {"": unet}}, CPU)


def test_half_precision_stays_with_torch(unet: VideoUNet) -> None:
    half = torch.nn.Module.to(unet, torch.float16)
    with pytest.raises(EngineError, match="HUVIDPO_DTYPE"):
        place_modules("openvino", {"video_unet": {"": half}}, CPU)


def test_shapes_are_checked_against_the_profile() -> None:
    port = Port("sample", "float32", (1, 4, 2), (1, 4, 8), (2, 4, 16))
    check_inputs([port], [torch.zeros(2, 4, 16)])
    with pytest.raises(InvalidRequest, match="got 3 x 4 x 8, this engine takes 1 x 4 x 2 to 2 x 4 x 16"):
        check_inputs([port], [torch.zeros(3, 4, 8)])
    with pytest.raises(EngineError, match="HUVIDPO_DTYPE"):
        check_inputs([port], [torch.zeros(1, 4, 8, dtype=torch.float16)])


def test_openvino_reports_nothing_to_its_makers(video: VideoPipeline) -> None:
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__.endswith("telemetry_stub")


def test_onnxruntime_runs_the_graph_of_these_weights(cache: Path, unet: VideoUNet) -> None:
    double_graph(cache, unet)
    run = onnxruntime(UNET, "horse", unet, CPU)
    sample = torch.randn(1, 8, 3, 4, 4)
    close(run(sample), 2 * sample)
    with pytest.raises(InvalidRequest, match="sample"):
        run(torch.randn(1, 8, 9, 4, 4))
    with torch.no_grad():
        next(unet.parameters()).add_(1)
    with pytest.raises(EngineError, match="other weights"):
        onnxruntime(UNET, "horse", unet, CPU)


def double_graph(cache: Path, unet: VideoUNet) -> None:
    """An engine that doubles its input, said to be made of `unet`."""
    axes = ["batch", 8, "frames", "height", "width"]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("sample", "out")]
    node = helper.make_node("Add", ["sample", "sample"], ["out"])
    graph = helper.make_graph([node], "double", ports[:1], ports[1:])
    shapes = (1, 8, 2, 4, 4), (1, 8, 4, 4, 4), (2, 8, 8, 8, 8)
    manifest = Manifest(
        network="video_unet",
        model=DEFAULT_MODEL,
        category="horse",
        backend="onnxruntime",
        tensorrt_version="",
        compute_capabilities=(),
        precision="float32",
        inputs=(Port("sample", "float32", *shapes),),
        outputs=(Port("out", "float32", *shapes),),
        onnx_sha256="",
        weights_sha256=hash_tensors(unet.state_dict(), "float32"),
    )
    folder = cache / manifest.key()
    folder.mkdir()
    opset = [helper.make_opsetid("", 22)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")
    (folder / "weights.safetensors").touch()
    write_manifest(folder, dataclasses.replace(manifest, bytes=size_of(folder, manifest)))


def test_every_engine_answers_what_pipelines_ask(video: VideoPipeline) -> None:
    for engine in video.unets.values():
        assert isinstance(engine, Engine)
        assert engine.dtype is torch.float32
        assert engine.config.in_channels == 8
