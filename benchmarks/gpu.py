"""On a GPU: torch eager, torch.compile and the TensorRT engine of both UNets, at full size or tiny.

    python -m benchmarks.gpu --model sd14 --build          builds the engines first (minutes)
    python -m benchmarks.gpu --model sd14 --backends eager compile     where no TensorRT is
    python -m benchmarks.gpu --random --build              random weights, tiny sizes
    python -m benchmarks.gpu --quick                       the same, one repeat: does it run? records nothing

At the model's defaults (SD 1.4: 16 frames of 320 x 512; SDXL: 832 x 1216; both with guidance), one request.
`ms/step` is the median, `steps s` that times 30 for the first frame and 50 for the video, `first s` the time
of the first step (compilation, loading), `GB` the GPU memory taken over what was taken before, `error` is
|output - eager| / |eager|. `of ceiling` is the share of the card's own speed in a large matrix product of the
same type that the network's FLOPs amount to: what is missing is memory traffic, launches and small kernels.
`switch` is the first step in a second category less a later one: its engine is loaded from disk. Prints a
table and appends one JSON line to benchmarks/results/.
"""

import argparse
import functools
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.common import ROOT, matmul_flops, record, timed
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.engines.base import Engine
from huvidpo.engines.networks import ROWS, network_of, sample_inputs
from huvidpo.errors import HuViDPOError
from huvidpo.loading import device_and_dtype
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline

STEPS = {"first_frame_unet": 30, "video_unet": 50}
BACKENDS = ("eager", "compile", "engine")
Step = Callable[..., Tensor]


def first_call(step: Step, *inputs: Tensor) -> float:
    """Seconds."""
    return timed(lambda: step(*inputs), 1, "cuda", warmup=0).median


def load(network: str, model: str, categories: list[str], backend: str) -> dict[str, Any]:
    """category -> the module, compiled module or engine."""
    used = "tensorrt" if backend == "engine" else "torch"
    unets: dict[str, Any]
    if network == "video_unet":
        pipeline = VideoPipeline.from_catalog(model, device="cuda", categories=categories, backend=used)
        unets = dict(pipeline.unets)
    else:
        unets = {"": FirstFramePipeline.from_catalog(model, device="cuda", backend=used).pipe.unet}
    return {name: torch.compile(unet) if backend == "compile" else unet for name, unet in unets.items()}


def step_of(network: str, unet: Any) -> Step:
    return unet.run if isinstance(unet, Engine) else lambda *inputs: ROWS[network].call(unet, *inputs)


def inputs_of(network: str, model: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random inputs at the sizes that an engine of the catalog's `model` is tuned for."""
    made = network_of(ROWS[network], load_catalog().model(model), "float32")
    tuned = {axis: size if isinstance(size, int) else size.opt for axis, size in made.sizes.items()}
    inputs = sample_inputs(made.row, tuned).values()
    return tuple(x.to("cuda", torch.float32 if x.ndim == 1 else dtype) for x in inputs)


def measure(network: str, args: argparse.Namespace, dtype: torch.dtype, most: float) -> list[dict[str, Any]]:
    """One row per backend, each compared with the first."""
    rows: list[dict[str, Any]] = []
    expected: Tensor | None = None
    for backend in args.backends:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            row, out = measure_backend(network, backend, args, dtype)
        except HuViDPOError as error:
            print(f"{network:<18}{backend:<9}skipped: {error}")
            continue
        expected = out if expected is None else expected
        row["error"] = ((out - expected).norm() / expected.norm()).item()
        row["flops"] = rows[0]["flops"] if rows else row.get("flops", 0)
        row["of_ceiling"] = row["flops"] / row["step_s"] / most
        rows.append(row)
        show(row)
    return rows


@torch.no_grad()
def measure_backend(
    network: str, backend: str, args: argparse.Namespace, dtype: torch.dtype
) -> tuple[dict[str, Any], Tensor]:
    """Its metrics, and its output in float32 on the CPU."""
    free, _ = torch.cuda.mem_get_info()
    first, *others = load(network, args.model, args.category, backend).values()
    step, inputs = step_of(network, first), inputs_of(network, args.model, dtype)
    row: dict[str, Any] = {"network": network, "backend": backend, "first_s": first_call(step, *inputs)}
    row["step_s"] = timed(lambda: step(*inputs), args.repeats, "cuda", warmup=2).median
    row["gb"] = (free - torch.cuda.mem_get_info()[0]) / 1e9
    out = step(*inputs).float().cpu()
    if backend == "eager":
        with FlopCounterMode(display=False) as counter:
            step(*inputs)
        row["flops"] = counter.get_total_flops()
    for other in others[:1]:
        switched = step_of(network, other)
        cold = first_call(switched, *inputs)
        row["switch_s"] = cold - timed(functools.partial(switched, *inputs), 3, "cuda", warmup=2).median
        row["same_after_switch"] = torch.equal(step(*inputs).float().cpu(), out)
    return row, out


def show(row: dict[str, Any]) -> None:
    switch = f"{row['switch_s']:.2f}" if "switch_s" in row else "-"
    print(
        f"{row['network']:<18}{row['backend']:<9}{1e3 * row['step_s']:>9.1f}"
        f"{STEPS[row['network']] * row['step_s']:>9.1f}{row['first_s']:>9.1f}{row['gb']:>8.1f}"
        f"{row['error']:>10.1e}{100 * row['of_ceiling']:>10.0f} %{switch:>9}",
        flush=True,
    )


def build_engines(args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "export.build", "--model", args.model, "--category", *args.category]
    subprocess.run(command, check=True, cwd=ROOT)


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("`--random`, one repeat")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument(
        "--category", nargs="+", default=["horse", "rain"], help="the second one is switched to"
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--build", action="store_true", help="build the engines first")
    parser.add_argument("--random", action="store_true", help="the tests' random family instead of tiny")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a CUDA device, none is here; benchmarks.backends measures CPUs")
    if args.quick:
        args.random, args.repeats = True, 1
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            sys.path.insert(0, str(ROOT / "tests"))
            from family import build_random_family

            family = build_random_family(Path(folder) / "family")
            os.environ["HUVIDPO_CATALOG"] = str(family / "catalog")
            os.environ["HUVIDPO_ENGINES"] = str(Path(folder) / "engines")
        if args.build:
            build_engines(args)
        _, dtype = device_and_dtype("cuda", None)
        most = matmul_flops(dtype, "cuda")
        print(f"{torch.cuda.get_device_name()}, {dtype}: ceiling {most / 1e12:.0f} TFLOP/s")
        print(
            f"{'network':<18}{'backend':<9}{'ms/step':>9}{'steps s':>9}{'first s':>9}{'GB':>8}{'error':>10}",
            end="",
        )
        print(f"{'of ceiling':>12}{'switch s':>9}")
        rows = [row for network in STEPS for row in measure(network, args, dtype, most)]
    if not args.quick:
        record(args, "cuda", rows=rows, ceiling_flops=most)


if __name__ == "__main__":
    main()
