"""Does the service grow? Mixed requests at every door for a while; memory, files and threads of each process.

    python -m benchmarks.soak                       30 minutes, the built-in family, four clients
    python -m benchmarks.soak --minutes 5 --clients 8
    python -m benchmarks.soak --minutes 10 --clients 8 --painted    the gateway alone, asked far more often

Clients with one request at a time each: clips over HTTP, as server-sent events and over gRPC; jobs that are
polled, fetched, and deleted or left to expire; some cancelled, left in the middle or refused; pages, metrics.
Categories, frames, steps, guidance and formats are drawn by a seed.

Slopes are least squares after the warm-up, a third of the time, over means of blocks: samples that follow
each other are not independent, blocks nearly are. Beside each its 95 % interval, and the slope of the second
half of those blocks alone: what fills up and then stays is flat there, what leaks is as steep as before.
Pools of connections and their caches fill over thousands of requests, more than real runners answer in half
an hour: that is what --painted is for (painted_runner.py).
"""

import argparse
import asyncio
import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
from scipy import stats

from benchmarks import common
from benchmarks.common import record
from benchmarks.jobs_survive import gateway_process, painted_process
from benchmarks.service_overhead import free_port, serving
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from service.protos import video_generation_pb2 as pb
from service.protos.video_generation_pb2_grpc import VideoGenerationStub

SAMPLE_SECONDS = 2.0
BLOCKS = 20  # after the warm-up
WARM_UP = 1 / 3  # of the time
MEASURES = ("rss_mib", "descriptors", "threads")
REQUEST_SECONDS = 120.0
PAINTED_STEP_SECONDS = 0.001
RETENTION_SECONDS = 60  # of jobs, so that some expire meanwhile


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("one minute, two clients")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=4, help="each with one request at a time")
    parser.add_argument("--seed", type=int, default=0, help="of what they ask for")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model of the catalog")
    parser.add_argument("--threads", type=int, default=0, help="of torch, in each runner (0: its choice)")
    parser.add_argument("--painted", action="store_true", help="runners that paint instead of denoising")
    args = parser.parse_args(arguments)
    if args.quick:
        args.minutes, args.clients = 1.0, 2
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(soak(args, Path(folder)))
    show(found)
    if not args.quick:
        record(args, **found)


async def soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    port = free_port()
    settings = {"GRPC_PORT": port, "DATA": folder / "data", "JOB_RETENTION": RETENTION_SECONDS}
    environment = {f"HUVIDPO_{name}": str(value) for name, value in settings.items()}
    if args.painted:
        async with painted(folder, **environment) as (url, process):
            return await ask(args, url, port, process)
    with serving(args, folder, **environment, XDG_RUNTIME_DIR=str(folder)) as (url, process):
        return await ask(args, url, port, process)


@asynccontextmanager
async def painted(folder: Path, **settings: str) -> AsyncIterator[tuple[str, int]]:
    """As `serving`: a gateway as it is deployed, and a painting runner of each stage."""
    stages = ("first_frame", "video")
    runners = [painted_process(folder, f"{one}-0", PAINTED_STEP_SECONDS, Path("/dev/null")) for one in stages]
    gateway = gateway_process(folder, "gateway-0", runners)
    gateway.environment |= settings
    try:
        await asyncio.gather(*(process.start() for process in (*runners, gateway)))
        assert gateway.running is not None
        yield gateway.url, gateway.running.pid
    finally:
        for process in (*runners, gateway):
            if process.running:
                process.signal(signal.SIGKILL)


async def ask(args: argparse.Namespace, url: str, grpc_port: int, process: int) -> dict[str, Any]:
    async with (
        httpx.AsyncClient(base_url=url, timeout=REQUEST_SECONDS) as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
    ):
        end = time.monotonic() + 60 * args.minutes
        clients = [
            Client(http, VideoGenerationStub(channel), random.Random(args.seed + number))
            for number in range(args.clients)
        ]
        asking = [asyncio.create_task(client.run(end)) for client in clients]
        samples = await sample(process, end)
        await asyncio.gather(*asking)
    outcomes = sum((client.outcomes for client in clients), Counter[str]())
    return {"requests": dict(sorted(outcomes.items())), "processes": slopes(samples)}


class Client:
    def __init__(self, http: httpx.AsyncClient, stub: Any, rng: random.Random):
        self.http, self.stub, self.rng = http, stub, rng
        self.outcomes: Counter[str] = Counter()
        self._categories = list(load_catalog().categories)

    async def run(self, end: float) -> None:
        """Until `end`, a time of the monotonic clock."""
        doors = (self.clip, self.events, self.grpc, self.job, self.leave, self.refused, self.pages)
        while time.monotonic() < end:
            (door,) = self.rng.choices(doors, (4, 2, 3, 4, 1, 1, 1))
            try:
                outcome = await door()
            except Exception as error:
                outcome = type(error).__name__
            self.outcomes[f"{door.__name__}: {outcome}"] += 1

    def body(self) -> dict[str, Any]:
        category = self.rng.choice(self._categories)
        return {
            "prompt": f"{category} in the evening",
            "category": category,
            "frames": self.rng.choice((4, 8, 12, 16)),
            "steps": self.rng.choice((2, 4, 8)),
            "guidance": self.rng.choice((1.0, 7.5)),
            "format": self.rng.choice(("mp4", "mp4", "gif", "webp")),
        }

    async def clip(self) -> int:
        return (await self.http.post("/generate_video", json=self.body())).status_code

    async def events(self) -> str:
        """Name of the last event."""
        headers, last = {"Accept": "text/event-stream"}, "nothing"
        async with self.http.stream("POST", "/generate_video", json=self.body(), headers=headers) as answer:
            async for line in answer.aiter_lines():
                last = line.removeprefix("event: ") if line.startswith("event: ") else last
        return last

    async def grpc(self) -> str:
        try:
            async for _ in self.stub.Generate(pb.GenerateRequest(**self.body()), timeout=REQUEST_SECONDS):
                pass
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    async def job(self) -> str:
        body = self.body()
        for ours, theirs in (
            ("frames", "num_frames"),
            ("steps", "num_inference_steps"),
            ("guidance", "guidance_scale"),
        ):
            body[theirs] = body.pop(ours)
        job = (await self.http.post("/v1/videos", json=body)).raise_for_status().json()
        path, cancelled = f"/v1/videos/{job['id']}", self.rng.random() < 0.2
        while job["status"] not in ("completed", "failed"):
            await asyncio.sleep(0.3)
            if cancelled:
                await self.http.post(f"{path}/cancel")
            job = (await self.http.get(path)).raise_for_status().json()
        if job["status"] == "completed":
            for part in ("content", "content?variant=thumbnail", "lineage"):
                (await self.http.get(f"{path}/{part}")).raise_for_status()
        if self.rng.random() < 0.5:
            (await self.http.delete(path)).raise_for_status()
        return "cancelled" if cancelled and job["status"] == "failed" else job["status"]

    async def leave(self) -> str:
        """In the middle of a clip."""
        headers = {"Accept": "text/event-stream"}
        async with self.http.stream("POST", "/generate_video", json=self.body(), headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line == "event: step":
                    return "left"
        return "ended"

    async def refused(self) -> int:
        wrong = self.rng.choice(({"steps": 10**6}, {"category": "unicorn"}, {"prompt": ""}, {"nothing": 1}))
        return (await self.http.post("/generate_video", json=self.body() | wrong)).status_code

    async def pages(self) -> int:
        return (await self.http.get(self.rng.choice(("/", "/models", "/metrics", "/v1/videos")))).status_code


async def sample(process: int, end: float) -> dict[str, list[tuple[float, ...]]]:
    """Process -> seconds since the start, MiB, descriptors, threads."""
    began = time.monotonic()
    found: dict[str, list[tuple[float, ...]]] = {}
    while (now := time.monotonic()) < end:
        parent = psutil.Process(process)
        for one in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                numbers = one.memory_info().rss / 2**20, float(one.num_fds()), float(one.num_threads())
                found.setdefault(name_of(one), []).append((now - began, *numbers))
        await asyncio.sleep(SAMPLE_SECONDS)
    return found


def name_of(process: psutil.Process) -> str:
    """With its id: one that was started again is another."""
    line = process.cmdline()
    names = [name for name in ("FirstFrameRunner", "VideoRunner") if name in line]
    if not names:
        names = ["Gateway" if "_bentoml_impl.worker.service" in line else "parent"]
    return f"{names[0]} {process.pid}"


def slopes(samples: dict[str, list[tuple[float, ...]]]) -> dict[str, Any]:
    """For each process and measure: the means of the first and the last block, and the slopes an hour."""
    found: dict[str, Any] = {}
    for name, rows in samples.items():
        times, *columns = np.array(rows).T
        kept = times >= WARM_UP * times[-1]
        if kept.sum() < 2 * BLOCKS:
            found[name] = {"samples": len(rows)}  # too few: a helper that came and went
            continue
        found[name] = {
            measure: slope(times[kept] / 3600, column[kept])
            for measure, column in zip(MEASURES, columns, strict=True)
        }
    return found


def slope(hours: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Per hour, by least squares over the means of blocks, with its 95 % interval."""
    x = np.array([part.mean() for part in np.array_split(hours, BLOCKS)])
    y = np.array([part.mean() for part in np.array_split(values, BLOCKS)])
    whole, late = stats.linregress(x, y), stats.linregress(x[BLOCKS // 2 :], y[BLOCKS // 2 :])
    margin = np.nan_to_num(stats.t.ppf(0.975, BLOCKS - 2) * whole.stderr)  # not a number if nothing moves
    found = {
        "first": y[0],
        "last": y[-1],
        "per_hour": whole.slope,
        "low": whole.slope - margin,
        "high": whole.slope + margin,
        "second_half_per_hour": late.slope,
    }
    return {key: round(float(value), 3) for key, value in found.items()}


def show(found: dict[str, Any]) -> None:
    print(json.dumps(found["requests"], indent=2))
    print(f"{'':<26}{'':<13}{'first':>9}{'last':>9}{'per hour':>10}{'95 %':>20}{'2nd half':>10}")
    for name, measures in found["processes"].items():
        for measure, m in measures.items() if "samples" not in measures else ():
            interval = f"{m['low']:.1f} to {m['high']:.1f}"
            print(f"{name:<26}{measure:<13}{m['first']:>9.1f}{m['last']:>9.1f}{m['per_hour']:>10.1f}", end="")
            print(f"{interval:>20}{m['second_half_per_hour']:>10.1f}")


if __name__ == "__main__":
    main()
