"""The CPU backends side by side: one step of the video UNet, and a whole clip of the tiny family.

    python -m benchmarks.backends                       all backends, about ten minutes on two cores
    python -m benchmarks.backends --quick               a minute: does it still run?
    python -m benchmarks.backends --only openvino_fp32 torch_fp32
    python -m benchmarks.backends --threads 1           on a busy machine: read the CPU columns

`plain` is the papers' modules written out as diffusers writes its own (benchmarks/unet_forward.py), run
eagerly; ratios are against it. `prepare` is what a backend does before the first step: conversion, export,
compilation. `error` is |output - torch in float32| / |that|. `ms` is the median, `CPU ms` the least processor
time of all threads. Backends that are not installed are skipped, and say so. The clip: first frame and
video of 20 steps each, whatever the model's defaults, and decoding; `pixel` is the mean difference to torch
in float32, of 255. Prints tables and appends one JSON line to benchmarks/results/.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import record, timed
from benchmarks.unet_forward import NETWORKS, PLAIN, QUICK, build
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.engines import openvino as cpu_engines
from huvidpo.engines.networks import ROWS
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from huvidpo.unet import VideoUNet

Inputs = tuple[Tensor, Tensor, Tensor]
Step = Callable[..., Tensor]


def torch_bf16(unet: VideoUNet, inputs: Inputs) -> Step:
    half = nn.Module.to(VideoUNet.from_config(unet.config), torch.bfloat16).eval().requires_grad_(False)
    half.load_state_dict(unet.state_dict())
    return lambda x, t, text: half(x.bfloat16(), t, text.bfloat16()).float()


def torch_compile(unet: VideoUNet, inputs: Inputs) -> Step:
    from torch._inductor import config

    config.freezing = True
    return torch.compile(unet)


def openvino_fp32(unet: VideoUNet, inputs: Inputs) -> Step:
    return cpu_engines.OpenVINO(cpu_engines.trace(ROWS["video_unet"], unet), unet.state_dict(), "f32")


def openvino_bf16(unet: VideoUNet, inputs: Inputs) -> Step:
    return cpu_engines.OpenVINO(cpu_engines.trace(ROWS["video_unet"], unet), unet.state_dict(), "bf16")


def openvino_any_shape(unet: VideoUNet, inputs: Inputs) -> Step:
    """Compiled once for all shapes: as for those that are not the usual ones."""
    usual = tuple((*x.shape[:-1], 1) for x in inputs)
    return cpu_engines.OpenVINO(cpu_engines.trace(ROWS["video_unet"], unet), unet.state_dict(), "f32", usual)


def onnxruntime_fp32(unet: VideoUNet, inputs: Inputs) -> Step:
    from onnxruntime import InferenceSession, SessionOptions

    names = ["sample", "timestep", "encoder_hidden_states"]
    program = torch.export.export(unet, inputs, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(program, f=path, input_names=names, opset_version=22, dynamo=True, verbose=False)
        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> Tensor:
        arrays = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


# plain and torch_fp32 are the networks themselves
BACKENDS: dict[str, Callable[[VideoUNet, Inputs], Step]] = {
    "plain": lambda unet, inputs: unet,
    "torch_fp32": lambda unet, inputs: unet,
    "torch_bf16": torch_bf16,
    "torch_compile": torch_compile,
    "onnxruntime_fp32": onnxruntime_fp32,
    "openvino_fp32": openvino_fp32,
    "openvino_any_shape": openvino_any_shape,
    "openvino_bf16": openvino_bf16,
}
STEPS = 20  # of first frame and clip
CLIPS = {
    "plain": ("torch", torch.float32),
    "torch_fp32": ("torch", torch.float32),
    "torch_bf16": ("torch", torch.bfloat16),
    "openvino_fp32": ("openvino", torch.float32),
    "openvino_bf16": ("openvino", torch.bfloat16),
}


@torch.no_grad()
def steps(name: str, spec: tuple, only: list[str], repeats: int, frames: int) -> list[dict[str, Any]]:
    """One step of a network by every backend."""
    config, size, tokens, _ = spec
    ours, plain = build(config, "cpu", torch.float32)
    inputs = (
        torch.randn(1, config.get("in_channels", 4), frames, *size),
        torch.tensor([500.0]),
        torch.randn(1, tokens, config["cross_attention_dim"]),
    )
    expected = ours(*inputs)
    rows: list[dict[str, Any]] = []
    print(f"\n{name}, {frames} frames")
    print(f"{'backend':<20}{'prepare s':>10}{'CPU s':>8}{'ms':>9}{'CPU ms':>9}{'of plain':>10}{'error':>10}")
    for backend, prepare in BACKENDS.items():
        if backend not in only:
            continue
        row: dict[str, Any] = {"network": name, "frames": frames, "backend": backend}
        started, started_cpu = time.perf_counter(), time.process_time()
        try:
            step = prepare(plain if backend == "plain" else ours, inputs)
            out = step(*inputs)
        except Exception as error:  # a backend that is not installed, or lacks its compiler
            print(f"{backend:<20}skipped: {str(error).splitlines()[0][:100]}")
            continue
        row["prepare_s"] = time.perf_counter() - started
        row["prepare_cpu_s"] = time.process_time() - started_cpu
        row["error"] = ((out - expected).norm() / expected.norm()).item()
        timing = timed(lambda step=step: step(*inputs), repeats)
        row["step_s"], row["step_cpu_s"] = timing.median, timing.least_cpu
        rows.append(row)
        ratio = row["step_cpu_s"] / rows[0]["step_cpu_s"]
        print(
            f"{backend:<20}{row['prepare_s']:>10.1f}{row['prepare_cpu_s']:>8.1f}{1e3 * row['step_s']:>9.1f}"
            f"{1e3 * row['step_cpu_s']:>9.1f}{ratio:>9.2f}x{row['error']:>10.1e}",
            flush=True,
        )
    return rows


def clips(only: list[str], repeats: int, **changed: int) -> list[dict[str, Any]]:
    """A clip of the tiny family, end to end, at its defaults but for what is `changed`."""
    rows: list[dict[str, Any]] = []
    expected: np.ndarray | None = None
    print("\na tiny clip, end to end")
    print(f"{'backend':<20}{'load s':>10}{'CPU s':>8}{'s':>9}{'CPU s':>9}{'of plain':>10}{'pixel':>10}")
    for name in ["torch_fp32", *(name for name in CLIPS if name != "torch_fp32")]:
        if name not in only:
            continue
        started, started_cpu = time.perf_counter(), time.process_time()
        try:
            make = clip_maker(name, **changed)
        except Exception as error:
            print(f"{name:<20}skipped: {str(error).splitlines()[0][:100]}")
            continue
        row: dict[str, Any] = {"clip": DEFAULT_MODEL, "backend": name}
        row["load_s"] = time.perf_counter() - started
        row["load_cpu_s"] = time.process_time() - started_cpu
        frames = make()
        expected = frames if expected is None else expected
        row["pixel"] = float(np.abs(frames - expected).mean())
        timing = timed(make, repeats)
        row["clip_s"], row["clip_cpu_s"] = timing.median, timing.least_cpu
        rows.append(row)
    plain = next((row["clip_cpu_s"] for row in rows if row["backend"] == "plain"), float("nan"))
    for row in rows:
        print(
            f"{row['backend']:<20}{row['load_s']:>10.1f}{row['load_cpu_s']:>8.1f}{row['clip_s']:>9.2f}"
            f"{row['clip_cpu_s']:>9.2f}{row['clip_cpu_s'] / plain:>9.2f}x{row['pixel']:>10.3f}"
        )
    return rows


def clip_maker(name: str, **changed: int) -> Callable[[], np.ndarray]:
    """Loads both pipelines on a backend. The maker returns float32 [F, H, W, 3] of one prompt and seed."""
    backend, dtype = CLIPS[name]
    first = FirstFramePipeline.from_catalog(DEFAULT_MODEL, backend=backend, dtype=dtype)
    video = VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["horse"], backend=backend, dtype=dtype)
    if name == "plain":
        for module in video.unets["horse"].modules():
            module.__class__ = PLAIN.get(type(module), type(module))
    options = load_catalog().model(DEFAULT_MODEL).defaults.replace(**changed)
    request = ClipRequest("a white horse runs on the Mars", "horse", 1, options=options)

    def make() -> np.ndarray:
        (frame,) = first([request])
        assert frame is not None
        (clip,) = video([request], [frame])
        assert clip is not None
        return clip.astype(np.float32)

    return make


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("a smaller network, one repeat, clips of 2 steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every backend")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=list(BACKENDS), default=list(BACKENDS))
    parser.add_argument("--no-clips", action="store_true", help="single steps alone")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    repeats = 1 if args.quick else args.repeats
    number = 2 if args.quick else STEPS
    rows = []
    for name, spec in (QUICK if args.quick else NETWORKS).items():
        rows += steps(name, spec, args.only, repeats, 4 if args.quick else 16)
    made = [] if args.no_clips else clips(args.only, repeats, steps=number, first_frame_steps=number)
    if not args.quick:
        record(args, rows=rows, clips=made, backends=versions())


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("openvino", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()
