"""Is the simulation of benchmarks.scheduling right? The same requests at the same moments, simulated and in
the service.

    python -m benchmarks.scheduling_service        # about eight minutes, on a quiet machine

A real `bentoml serve` of the built-in family gets short and long clips at Poisson's moments, each with its
own first frame, so that one stage has to be simulated. The simulation gets the seconds of a batch as the
service's pipeline takes them in this process before, what a lone request takes beyond them (HTTP, encoding),
and when requests come: nothing else. Compared are the mean and the 95th percentile of the time from request
to answer. Appends a line to benchmarks/results.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import common, service_overhead
from benchmarks.common import record, timed
from benchmarks.scheduling import (
    CATEGORIES,
    FRAMES,
    LONG,
    MAX_BATCH,
    SHORT,
    STEPS,
    Policies,
    Request,
    Times,
    arrivals,
    simulate,
)
from huvidpo.catalog import DEFAULT_MODEL

LOAD = 0.6  # seconds of work, one request at a time, that are asked for in a second


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("ten requests of two frames")
    parser.add_argument("--requests", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of the service")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    args = parser.parse_args(arguments)
    frames = dict.fromkeys(FRAMES, 2) if args.quick else FRAMES
    count = 10 if args.quick else args.requests
    times = measure(args, frames)
    with tempfile.TemporaryDirectory() as folder, service_overhead.serving(args, Path(folder)) as (url, _):
        served = asyncio.run(serve(url, times, count, args.seed, frames))
    found = compare(served, times)
    for name, (simulated, real) in found.items():
        print(f"{name:<14}{simulated:>10.2f} s simulated{real:>10.2f} s served{simulated / real:>8.3f}")
    if not args.quick:
        told = {f"{kind} x{size}": round(seconds, 4) for (kind, size), seconds in times.items()}
        rows = {
            name: {"simulated": round(a, 3), "served": round(b, 3), "ratio": round(a / b, 3)}
            for name, (a, b) in found.items()
        }
        record(args, service_seconds=told, beyond_seconds=served["beyond"], stays=rows)


def measure(args: argparse.Namespace, frames: dict[str, int]) -> Times:
    """Seconds of a batch by the service's pipeline, on as many threads."""
    import numpy as np
    import torch

    from huvidpo.catalog import load_catalog
    from huvidpo.pipeline import ClipRequest, VideoPipeline
    from service.runners import _placement
    from service.settings import Settings

    place = _placement(Settings(model=args.model, threads=args.threads), "video")
    pipeline = VideoPipeline.from_catalog(args.model, categories=["horse"], **place)
    defaults, times = load_catalog().model(args.model).defaults, {}
    frame = np.zeros((defaults.height, defaults.width, 3), np.uint8)
    for kind, steps in STEPS.items():
        options = defaults.replace(steps=steps, frames=frames[kind])
        for size in range(1, MAX_BATCH + 1):
            clips = [ClipRequest("a horse runs", "horse", seed=i, options=options) for i in range(size)]
            spent = timed(lambda: pipeline(clips, [frame] * size), 1 if kind == LONG else 3)  # noqa: B023
            times[kind, size] = spent.median
    torch.set_num_threads(1)
    return times


async def serve(url: str, times: Times, count: int, seed: int, frames: dict[str, int]) -> dict[str, Any]:
    """The requests with their ends as the service has them, and the seconds that a lone one takes beyond its
    batch.
    """
    import httpx
    import numpy as np

    from service.images import to_png

    first_frame = base64.b64encode(to_png(np.zeros((64, 64, 3), np.uint8))).decode()

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(kind: str, category: str) -> float:
            started = time.perf_counter()
            options = {"steps": STEPS[kind], "frames": frames[kind], "first_frame": first_frame}
            answer = await client.post(
                "/generate_video",
                json={"prompt": f"a {category}", "category": category, "style": "realistic"} | options,
            )
            answer.raise_for_status()
            return time.perf_counter() - started

        for size in (1, *range(1, MAX_BATCH + 1)):  # the service learns and compiles
            for kind in STEPS:
                await asyncio.gather(*(ask(kind, "horse") for _ in range(size)))
        alone = [await ask(SHORT, category) for _ in range(5) for category in CATEGORIES]
        beyond = max(0.0, statistics.median(alone) - times[SHORT, 1])
        requests = arrivals(count, LOAD, times, seed)
        begun = time.perf_counter()

        async def one(request: Request) -> None:
            await asyncio.sleep(max(0.0, request.since - (time.perf_counter() - begun)))
            request.end = request.since + await ask(request.kind, request.category)

        for done, finished in enumerate(asyncio.as_completed([one(request) for request in requests]), 1):
            await finished
            print(f"\r{done} of {count} clips", end="", flush=True)
        print()
    return {"requests": requests, "beyond": round(beyond, 4)}


def compare(served: dict[str, Any], times: Times) -> dict[str, tuple[float, float]]:
    """Seconds from request to answer, simulated and served."""
    requests: list[Request] = served["requests"]
    # as the service saw them: one caller, no deadlines
    again = [
        replace(one, terms=replace(one.terms, flow=("", one.category), deadline=math.inf), end=math.inf)
        for one in requests
    ]
    simulate(again, Policies(times).ours(), times)
    found = {}
    for kind in (None, SHORT, LONG):
        stays = [
            sorted(one.end - one.since for one in some if kind in (None, one.kind))
            for some in (again, requests)
        ]
        if not stays[0]:
            continue
        simulated, real = (
            [seconds + extra for seconds in some]
            for some, extra in zip(stays, (served["beyond"], 0.0), strict=True)
        )
        found[f"{kind or 'all'} mean"] = statistics.fmean(simulated), statistics.fmean(real)
        found[f"{kind or 'all'} p95"] = _p95(simulated), _p95(real)
    return found


def _p95(stays: list[float]) -> float:
    return stays[min(len(stays) - 1, int(0.95 * len(stays)))]


if __name__ == "__main__":
    main()
