"""A runner that paints instead of denoising; benchmarks/jobs_survive.py and cluster_served.py start some.

    python -m benchmarks.painted_runner video 8001 0.05 video.log
    python -m benchmarks.painted_runner video 8001 0.05 video.log 0.8     # two at once take 1.8 times as long

Desk, batcher, messages and encoding are the service's; a step is a sleep. To the log go lines of JSON: the
time, stage, process and seed of what has `begun`, made a `step`, is `done`, or has `left` before its end.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.responses import Response

from service import hop, runners
from service.batching import Batcher, OnStep
from service.desk import DESCRIBE, PREFIX, Desk, DeskDoor
from service.http import Guard
from service.pace import Work
from service.schemas import RunnerJob

SIDE = 32  # pixels of a picture


class Painter:
    """A model whose every step takes `step` seconds, and a share `more` of them for each further request."""

    backend, on_cpu, max_batch = "painter", False, None

    def __init__(self, stage: str, step: float, log: Path, more: float = 0.0):
        self.stage, self.step, self.more, self.loaded = stage, step, more, dict[str, str]()
        self.can_pause = stage == "video"  # as the service's own
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work(self, job: RunnerJob) -> Work:
        return Work(self.stage, self._steps(job))

    def prepare(self, job: RunnerJob) -> RunnerJob:
        return job

    def cold(self, item: RunnerJob) -> bool:
        return False

    def warm(self, item: RunnerJob) -> None:
        pass

    def can_share(self, a: RunnerJob, b: RunnerJob) -> bool:
        return self._steps(a) == self._steps(b) and (self.stage == "first_frame" or a.category == b.category)

    def weights(self, item: RunnerJob) -> None:
        return None

    def run(self, items: Sequence[RunnerJob], on_step: OnStep) -> Sequence[np.ndarray | None]:
        running = list(items)
        self._note("begun", running)
        for step in range(1, self._steps(items[0]) + 1):
            time.sleep(self.step * (1 + self.more * (len(running) - 1)))
            self._note("step", running)
            keep = on_step(step, self._steps(items[0]), None) or [True] * len(running)
            self._note("left", [item for item, kept in zip(running, keep, strict=True) if not kept])
            running = [item for item, kept in zip(running, keep, strict=True) if kept]
            if not running:
                break
        self._note("done", running)
        return [self._picture(item) if item in running else None for item in items]

    def _steps(self, job: RunnerJob) -> int:
        return job.options["first_frame_steps" if self.stage == "first_frame" else "steps"]

    def _picture(self, job: RunnerJob) -> np.ndarray:
        frames = np.full((job.options["frames"], SIDE, SIDE, 3), job.seed % 256, np.uint8)
        return frames[0] if self.stage == "first_frame" else frames

    def _note(self, what: str, items: Sequence[RunnerJob]) -> None:
        """In one write a line, so that processes may share a file."""
        for item in items:
            line = {
                "at": time.time(),
                "stage": self.stage,
                "pid": os.getpid(),
                "seed": item.seed,
                "what": what,
            }
            os.write(self._log, json.dumps(line).encode() + b"\n")


def notes_of(text: str) -> tuple[list[dict[str, Any]], str]:
    """The lines of a log, and the begin of one that is still being written."""
    whole, _, begun = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()], begun


def main(stage: str, port: str, step: str, log: str, more: str = "0") -> None:
    encode = runners.encode_frame if stage == "first_frame" else runners.encode_clip
    batcher: Batcher[RunnerJob, Any] = Batcher(
        stage, lambda: Painter(stage, float(step), Path(log), float(more)), max_batch=4, queue_size=64,
        on_broken=runners.end_process,
    )  # fmt: skip
    desk = Desk(lambda job: runners.stream(batcher, job, encode))
    app = DeskDoor(Response(status_code=404), lambda: desk, batcher.describe)
    guard = Guard(app, max_body=2**26, paths=frozenset({DESCRIBE}), prefixes=(PREFIX,), reads=hop.MEDIA_TYPE)
    uvicorn.run(guard, port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
