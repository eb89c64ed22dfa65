"""What the benchmarks share: command line, how a call is timed and its memory read, where results go."""

import argparse
import ctypes
import datetime
import gc
import inspect
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def parser(quick: str) -> argparse.ArgumentParser:
    """The command line of the calling module, whose docstring it shows. `quick`: what --quick does."""
    caller = inspect.stack()[1].frame.f_globals
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{Path(caller['__file__']).stem}",
        description=caller["__doc__"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help=f"{quick}; records nothing")
    return made


@dataclass(frozen=True)
class Timing:
    """Seconds of every repetition of a call."""

    walls: Sequence[float]
    cpus: Sequence[float]
    """Processor time of all threads: what to read on a busy machine."""

    @property
    def median(self) -> float:
        return statistics.median(self.walls)

    @property
    def least_cpu(self) -> float:
        return min(self.cpus)


def timed(call: Callable[[], Any], repeats: int, device: str = "cpu", warmup: int = 1) -> Timing:
    """`repeats` calls, each waited for on `device`, after `warmup` calls that do not count."""
    walls, cpus = [], []
    for _ in range(warmup + repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Timing(walls[warmup:], cpus[warmup:])


def matmul_flops(dtype: torch.dtype, device: str, side: int = 8192) -> float:
    """FLOP/s of a large matrix product: what networks of this dtype are compared with."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b, 20 if device == "cuda" else 1, device, warmup=2).median


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Most memory held during the call, over what was held before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def record(args: argparse.Namespace, device: str = "cpu", **metrics: Any) -> None:
    """Append one JSON line about this run to benchmarks/results/<benchmark>_<hardware>_<date>.jsonl."""
    benchmark = Path(inspect.stack()[1].filename).stem
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()}cpu"
    date = datetime.date.today().isoformat()
    line = {
        "benchmark": benchmark,
        "date": date,
        "hardware": f"{hardware} {platform.machine()}",
        "command": " ".join(["python", "-m", f"benchmarks.{benchmark}", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("torch", "diffusers")},
        "load_average": os.getloadavg()[0],
        "settings": vars(args),
    } | metrics
    path = ROOT / "benchmarks" / "results" / f"{benchmark}_{hardware.replace(' ', '-')}_{date}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
    print(f"appended to {path.relative_to(ROOT)}")
