"""A small cluster of real processes on loopback, asked as a trace of arrivals says: what the simulated one is
held against. Gateways as they are deployed; runners that sleep instead of denoising (painted_runner.py): a
batch takes the seconds that it should, and two cores are enough for all of them.
"""

import asyncio
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.cluster_simulated import STAGES, Request, Times
from benchmarks.jobs_survive import Process, gateway_process, painted_process
from service.settings import Settings

RUNNERS, GATEWAYS = {"first_frame": 3, "video": 6}, 2
STEP_SECONDS = {"first_frame": 0.025, "video": 0.05}  # first frames have as many as is default
MORE = {"first_frame": 0.48, "video": 0.83}  # of a step, for each further request, as on the H100
STEPS = {"usual": 20, "long": 40}
CATEGORIES = ("horse", "rain", "smile")
TOGETHER = (1, 1, 2, 4, 8, 16, 24)  # requests at once, before anything counts: runners learn


class Answer(NamedTuple):
    """Seconds from the moment `at` until the client had it, and of these in queues and in batches."""

    at: float
    kind: str
    category: str
    took: float
    queued: float
    first_frame: float
    video: float

    @property
    def outside(self) -> float:
        return self.took - self.queued - self.first_frame - self.video


def times(alone: Iterable[Answer]) -> dict[str, Times]:
    """Stage -> seconds of its batches: those of one as measured, the others by how the runners sleep."""
    answers, made = list(alone), dict[str, Times]()
    for stage in STAGES:
        one = {
            kind: statistics.median(getattr(answer, stage) for answer in answers if answer.kind == kind)
            for kind in STEPS
        }
        sizes = range(1, Settings.max_batch + 1)
        made[stage] = {(kind, n): one[kind] * (1 + (n - 1) * MORE[stage]) for kind in STEPS for n in sizes}
    return made


async def serve(folder: Path, requests: Sequence[Request]) -> tuple[list[Answer], list[Answer]]:
    """Answers to lone requests, before; and to these, at their moments whatever becomes of the others."""
    async with _running(folder) as gateways:
        sessions = [httpx.AsyncClient(base_url=one.url, timeout=300, limits=NO_LIMITS) for one in gateways]
        rng = random.Random(0)
        print("ready", flush=True)
        for count in TOGETHER:
            for kind in STEPS:
                await asyncio.gather(*(_ask(rng.choice(sessions), kind, "horse") for _ in range(count)))
        alone = [await _ask(sessions[n % GATEWAYS], kind, "horse") for n in range(6) for kind in STEPS]
        began = time.monotonic()

        async def ask(request: Request) -> Answer:
            await asyncio.sleep(began + request.at - time.monotonic())
            return await _ask(rng.choice(sessions), request.kind, request.category, request.at)

        answers = await asyncio.gather(*map(ask, requests))
        await asyncio.gather(*(session.aclose() for session in sessions))
    return alone, answers


NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


@asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[list[Process]]:
    runners = [
        painted_process(folder, f"{stage}-{n}", STEP_SECONDS[stage], Path("/dev/null"), MORE[stage])
        for stage in STAGES
        for n in range(RUNNERS[stage])
    ]
    gateways = [
        gateway_process(folder, f"gateway-{n}", runners, HUVIDPO_DATA=str(folder / f"data-{n}"))
        for n in range(GATEWAYS)
    ]
    try:
        await asyncio.gather(*(process.start() for process in (*runners, *gateways)))
        yield gateways
    finally:
        for process in (*runners, *gateways):
            if process.running:
                process.signal(signal.SIGKILL)


async def _ask(session: httpx.AsyncClient, kind: str, category: str, at: float = 0.0) -> Answer:
    body: dict[str, Any] = {"prompt": f"{category} in the evening", "category": category, "frames": 4}
    body |= {"steps": STEPS[kind]}
    began = time.monotonic()
    response = await session.post("/generate_video", json=body)
    took = time.monotonic() - began
    response.raise_for_status()
    told = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    seconds = [round(float(told[name]) / 1000, 4) for name in ("queue", *STAGES)]
    return Answer(round(at, 3), kind, category, round(took, 4), *seconds)
