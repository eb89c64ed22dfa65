"""What the service costs over the bare pipeline, and what it gives under load.

    python -m benchmarks.service_overhead                  the built-in family, its defaults
    python -m benchmarks.service_overhead --random         random weights, those of the tests
    python -m benchmarks.service_overhead --requests 50
    python -m benchmarks.service_overhead --clients 2 4 8 16 --neighbour

Bare: both pipelines and the encoder in this process, on the backend and numbers that the service runs on.
Served: POST /generate_video to a real `bentoml serve` with the same options, seeds and threads, one request
at a time. "outside stages" is the time of a served request that its own Server-Timing does not account for.

--clients: clips per second of that many clients, each with one request at a time, as ratios to one client;
one client is measured before and after, and counts with its mean. Beside it the seconds of computing per clip
of all processes of the service, which other work on the machine changes little. --neighbour: all of it again
beside a busy loop of nice 10, and without it by a service on one core less. Prints tables and appends one
JSON line to benchmarks/results/.
"""

import argparse
import contextlib
import itertools
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the runners, before torch is imported

import torch

from benchmarks import common
from benchmarks.common import ROOT, record, timed
from huvidpo.catalog import DEFAULT_MODEL

REQUEST = {"prompt": "a white horse runs on the Mars", "category": "horse", "style": "realistic"}
START_SECONDS = 300


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("`--random`, one request of each kind")
    parser.add_argument("--requests", type=int, default=20, help="measured requests of each kind")
    parser.add_argument("--warmup", type=int, default=3, help="requests before measuring")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads, in both")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model of the catalog")
    parser.add_argument("--random", action="store_true", help="random weights instead")
    parser.add_argument("--no-server", action="store_true", help="the bare pipeline alone; records nothing")
    parser.add_argument("--clients", type=int, nargs="*", default=[], help="also at once, that many")
    parser.add_argument("--neighbour", action="store_true", help="the clients also beside a busy loop")
    args = parser.parse_args(arguments)
    if args.quick:
        args.random, args.requests, args.warmup = True, 1, 1
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            os.environ["HUVIDPO_CATALOG"] = str(_random_catalog(Path(folder)))
        bare = measure_bare(args)
        rows, load = {"bare pipeline": bare}, dict[str, Any]()
        if not args.no_server:
            rows["served"], rows["outside stages"], load = measure_served(args, Path(folder))
    found = report(rows, load)
    if not args.quick and not args.no_server:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        record(args, device, bentoml=version("bentoml"), **found)


def _random_catalog(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from family import build_random_family

    return build_random_family(folder / "family") / "catalog"


def measure_bare(args: argparse.Namespace) -> list[float]:
    """Seconds per clip of the pipelines in this process."""
    from huvidpo.catalog import load_catalog
    from huvidpo.pipeline import ClipRequest, FirstFramePipeline, VideoPipeline
    from huvidpo.video import encode
    from service.runners import _placement
    from service.settings import Settings

    placement = _placement(Settings(model=args.model, threads=args.threads), "video")  # as the runners
    first_frame = FirstFramePipeline.from_catalog(args.model, **placement)
    video = VideoPipeline.from_catalog(args.model, **placement)
    options = load_catalog().model(args.model).defaults

    def clip(seed: int) -> None:
        request = ClipRequest(**REQUEST, seed=seed, options=options)
        (frame,) = first_frame([request])
        assert frame is not None
        (frames,) = video([request], [frame])
        assert frames is not None
        encode(frames, options.fps)

    return timed_clips(clip, args)


def measure_served(args: argparse.Namespace, folder: Path) -> tuple[list[float], list[float], dict]:
    """Seconds per request; the part of each that no stage accounts for; clips per second under load."""
    stages: list[float] = []
    load = {}
    with asking(args, folder, stages) as (clip, process):
        seconds = timed_clips(clip, args)
        outside = [total - inside for total, inside in zip(seconds, stages[-len(seconds) :], strict=True)]
        if args.clients:
            load["free"] = throughput(clip, args, process)
            if args.neighbour:
                with busy_neighbour():
                    load["beside a busy loop"] = throughput(clip, args, process)
    if args.clients and args.neighbour:
        with contextlib.ExitStack() as stack:
            with one_core_less() as cores:
                threads = str(min(cores, args.threads))
                clip, process = stack.enter_context(asking(args, folder, [], HUVIDPO_THREADS=threads))
            load["one core less"] = throughput(clip, args, process)
    return seconds, outside, load


@contextlib.contextmanager
def asking(
    args: argparse.Namespace, folder: Path, stages: list[float], **settings: str
) -> Iterator[tuple[Any, int]]:
    """What asks a service for a clip by its seed, and the service's process; `stages` gets what each took. It
    has compiled and learnt every batch size that the clients ask for.
    """
    import httpx

    with (
        serving(args, folder, **settings) as (url, process),
        httpx.Client(base_url=url, timeout=600) as client,
    ):

        def clip(seed: int) -> None:
            response = client.post("/generate_video", json=REQUEST | {"seed": seed})
            response.raise_for_status()
            parts = response.headers["server-timing"].split(", ")
            stages.append(sum(float(part.split("dur=")[1]) for part in parts) / 1000)

        if args.clients:
            _pace(clip, max(args.clients), args.requests, process)
        yield clip, process


def throughput(clip: Any, args: argparse.Namespace, process: int) -> dict[int, dict[str, float]]:
    """Clips per second, and seconds of computing per clip, by number of clients."""
    before = _pace(clip, 1, args.requests, process)
    rates = {clients: _pace(clip, clients, args.requests, process) for clients in args.clients}
    after = _pace(clip, 1, args.requests, process)
    return {1: {name: statistics.fmean([before[name], after[name]]) for name in before}, **rates}


def _pace(clip: Any, clients: int, requests: int, process: int) -> dict[str, float]:
    count = max(requests, 3 * clients)
    started, computed = time.perf_counter(), _computed(process)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(clip, range(count)))
    per_second = count / (time.perf_counter() - started)
    return {"clips_per_second": per_second, "cpu_seconds": (_computed(process) - computed) / count}


def _computed(process: int) -> float:
    """Seconds of computing of a process and its children."""
    import psutil

    times = [one.cpu_times() for one in psutil.Process(process).children(recursive=True)]
    return sum(one.user + one.system for one in times)


@contextlib.contextmanager
def busy_neighbour() -> Iterator[None]:
    """A process of nice 10 that computes all the time. Where the kernel shares cores out between sessions
    first ("autogroup"), as it does outside containers, a nice value counts only against the same session; the
    service's workers have one each. There the loop's session is as nice as the loop.
    """
    command = ["nice", "-n", "10", sys.executable, "-c", "while True: pass"]
    loop = subprocess.Popen(command, start_new_session=True)
    try:
        with contextlib.suppress(FileNotFoundError):
            Path(f"/proc/{loop.pid}/autogroup").write_text("10")
        yield
    finally:
        loop.kill()
        loop.wait()


@contextlib.contextmanager
def one_core_less() -> Iterator[int]:
    """What is started within keeps off the last core, as if a neighbour had it that never makes room; how
    many cores there are then.
    """
    cores = sorted(os.sched_getaffinity(0))
    left = cores[:-1] or cores
    os.sched_setaffinity(0, left)
    try:
        yield len(left)
    finally:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def serving(args: argparse.Namespace, folder: Path, **settings: str) -> Iterator[tuple[str, int]]:
    """A `bentoml serve` of this project on a free port, and its process id; stopped at the end. `settings`:
    variables of its environment.
    """
    import httpx

    port = free_port()
    env = os.environ | {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    env |= {"HUVIDPO_MODEL": args.model, "HUVIDPO_THREADS": str(args.threads), "HUVIDPO_GRPC_PORT": "0"}
    env |= settings
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=30).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{(folder / 'serve.log').read_text()[-3000:]}")
            time.sleep(0.5)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def timed_clips(clip: Any, args: argparse.Namespace) -> list[float]:
    """Seconds of each, seeds in turn."""
    seeds = itertools.count()
    return list(timed(lambda: clip(next(seeds)), args.requests, warmup=args.warmup).walls)


def report(rows: dict[str, list[float]], load: dict[str, Any]) -> dict[str, Any]:
    """Prints the tables; returns what is recorded."""
    metrics = {}
    print(f"{'milliseconds':<16}{'p50':>10}{'p90':>10}{'p99':>10}{'mean':>10}")
    for name, seconds in rows.items():
        cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
        metrics[name] = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "mean": statistics.fmean(seconds)}
        metrics[name] = {key: round(value * 1000, 2) for key, value in metrics[name].items()}
        print(f"{name:<16}" + "".join(f"{value:>10.1f}" for value in metrics[name].values()))
    if "served" not in metrics:
        return {"milliseconds": metrics}
    bare, served = metrics["bare pipeline"]["p50"], metrics["served"]["p50"]
    print(f"served / bare at p50: {served / bare:.3f}, {served - bare:+.1f} ms")
    for name, rates in load.items():
        print(f"\n{name:<20}{'clips/s':>10}{'of one':>10}{'of free':>10}{'CPU s/clip':>12}{'of one':>10}")
        for clients, pace in rates.items():
            rate, cpu = pace["clips_per_second"], pace["cpu_seconds"]
            ratios = rate / rates[1]["clips_per_second"], rate / load["free"][clients]["clips_per_second"]
            print(
                f"{clients:>3} clients{rate:>19.3f}{ratios[0]:>10.2f}{ratios[1]:>10.2f}{cpu:>12.2f}", end=""
            )
            print(f"{cpu / rates[1]['cpu_seconds']:>10.2f}")
    return {
        "milliseconds": metrics,
        "load": load,
        "ratio_p50": round(served / bare, 4),
        "overhead_ms_p50": round(served - bare, 2),
    }


if __name__ == "__main__":
    main()
