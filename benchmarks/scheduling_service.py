"""Is the simulation of benchmarks.scheduling right? The same requests at the same moments, simulated and in
the service.

    python -m benchmarks.scheduling_service        # about ten minutes, on a quiet machine

A real `bentoml serve` of the built-in family gets short and long clips at Poisson's moments, each with its
own first frame, so that one stage has to be simulated. The simulation gets the seconds that clips take which
are asked for together, as the idle service takes them before and after, and when requests come: nothing else.
Where before and after differ, the machine changed, and what is compared with it. Compared are the mean and
the 95th percentile of the time from request to answer. Appends a line to benchmarks/results.
"""

from __future__ import annotations

import asyncio
import base64
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import common, service_overhead
from benchmarks.common import record
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
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of the service")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    args = parser.parse_args(arguments)
    frames = dict.fromkeys(FRAMES, 2) if args.quick else FRAMES
    count = 10 if args.quick else args.requests
    with tempfile.TemporaryDirectory() as folder, service_overhead.serving(args, Path(folder)) as (url, _):
        requests, before, after = asyncio.run(serve(url, count, args.seed, frames))
    times = {key: (before[key] + after[key]) / 2 for key in before}
    found = compare(requests, times)
    for name, (simulated, real) in found.items():
        print(f"{name:<14}{simulated:>10.2f} s simulated{real:>10.2f} s served{simulated / real:>8.3f}")
    changed = max(abs(after[key] / before[key] - 1) for key in before)
    print(f"what lone clips and batches took changed by up to {changed:.0%} meanwhile")
    if not args.quick:
        rows = {
            name: {"simulated": round(a, 3), "served": round(b, 3), "ratio": round(a / b, 3)}
            for name, (a, b) in found.items()
        }
        record(args, before=_told(before), after=_told(after), stays=rows)


def _told(times: Times) -> dict[str, float]:
    return {f"{kind} x{size}": round(seconds, 4) for (kind, size), seconds in times.items()}


async def serve(
    url: str, count: int, seed: int, frames: dict[str, int]
) -> tuple[list[Request], Times, Times]:
    """The requests with their ends as the service has them; what batches take in it before and after."""
    import httpx
    import numpy as np

    from service.images import to_png

    first_frame = base64.b64encode(to_png(np.zeros((64, 64, 3), np.uint8))).decode()

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(kind: str, category: str) -> None:
            options = {"steps": STEPS[kind], "frames": frames[kind], "first_frame": first_frame}
            answer = await client.post(
                "/generate_video",
                json={"prompt": f"a {category}", "category": category, "style": "realistic"} | options,
            )
            answer.raise_for_status()

        async def together(kind: str, size: int) -> float:
            started = time.perf_counter()
            await asyncio.gather(*(ask(kind, "horse") for _ in range(size)))
            return time.perf_counter() - started

        async def measure() -> Times:
            rounds = {SHORT: 5, LONG: 1}
            return {
                (kind, size): statistics.median([await together(kind, size) for _ in range(rounds[kind])])
                for kind in STEPS
                for size in range(1, MAX_BATCH + 1)
            }

        for category in CATEGORIES:  # the service compiles
            await ask(SHORT, category)
        await measure()  # and learns
        before = await measure()
        requests = arrivals(count, LOAD, before, seed)
        begun = time.perf_counter()

        async def one(request: Request) -> None:
            await asyncio.sleep(max(0.0, request.since - (time.perf_counter() - begun)))
            await ask(request.kind, request.category)
            request.end = time.perf_counter() - begun

        for done, finished in enumerate(asyncio.as_completed([one(request) for request in requests]), 1):
            await finished
            print(f"\r{done} of {count} clips", end="", flush=True)
        print()
        return requests, before, await measure()


def compare(requests: list[Request], times: Times) -> dict[str, tuple[float, float]]:
    """Seconds from request to answer, simulated and served."""
    # as the service saw them: one caller, no deadlines
    again = [
        replace(one, terms=replace(one.terms, flow=("", one.category), deadline=math.inf), end=math.inf)
        for one in requests
    ]
    simulate(again, Policies(times).ours(), times)
    found = {}
    for kind in (None, SHORT, LONG):
        simulated, real = (
            sorted(one.end - one.since for one in some if kind in (None, one.kind))
            for some in (again, requests)
        )
        if simulated:
            found[f"{kind or 'all'} mean"] = statistics.fmean(simulated), statistics.fmean(real)
            found[f"{kind or 'all'} p95"] = _p95(simulated), _p95(real)
    return found


def _p95(stays: list[float]) -> float:
    return stays[min(len(stays) - 1, int(0.95 * len(stays)))]


if __name__ == "__main__":
    main()
