"""Measured figures: one JSON line each, printed and kept as soon as it is known."""

import contextlib
import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import timed

STARTED = time.monotonic()
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Rows:
    """Where the figures go, and the device and the time that they are taken with."""

    def __init__(self, file: Path, device: str, budget: float, label: str = "") -> None:
        """`budget`: seconds since the program began; `label`: of the code that is measured."""
        self.file, self.device, self.budget, self.label = file, device, budget, label
        self.ceilings: dict[str, float] = {}  # FLOP/s of a large matrix product, by dtype
        file.parent.mkdir(parents=True, exist_ok=True)

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def left(self) -> float:
        """Seconds."""
        return self.budget - (time.monotonic() - STARTED)

    def add(self, section: str, what: str, **figures: Any) -> None:
        row = {"section": section, "what": what, **({"label": self.label} if self.label else {}), **figures}
        text = json.dumps(row | {"at_s": round(time.monotonic() - STARTED, 1)})
        print(text, flush=True)
        with self.file.open("a") as file:
            file.write(text + "\n")

    def seconds(self, call: Callable[[], Any], repeats: int = 20, warm: int = 3) -> float:
        """Median of synchronised calls; on a CPU, where only running matters, of one."""
        repeats, warm = (repeats, warm) if self.cuda else (1, 0)
        return timed(call, repeats, self.device, warm).median

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def peak(self, figures: dict[str, Any]) -> Iterator[None]:
        """GiB that torch's allocator gave out at most inside, weights included, and those it reserved."""
        self.free()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        yield
        if self.cuda:
            figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            figures["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)


def error(out: Tensor, expected: Tensor) -> float:
    """|out - expected| / |expected|, Euclidean norms in float32."""
    expected = expected.float()
    return ((out.float() - expected).norm() / expected.norm()).item()
