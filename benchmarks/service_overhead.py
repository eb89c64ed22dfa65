"""What the service costs over the bare pipeline, and what it gives under load.

    python benchmarks/service_overhead.py                  the built-in family, its defaults
    python benchmarks/service_overhead.py --random         random weights, those of the tests
    python benchmarks/service_overhead.py --requests 50
    python benchmarks/service_overhead.py --clients 2 4 8 16 --neighbour

Bare: both pipelines and the encoder in this process, on the backend and numbers that the service runs on.
Served: POST /generate_video to a real `bentoml serve` with the same options, seeds and threads, one request
at a time. "outside stages" is the time of a served request that its own Server-Timing does not account for.

--clients: clips per second of that many clients, each with one request at a time, as ratios to one client;
one client is measured before and after, and counts with its mean. Beside it the seconds of computing per clip
of all processes of the service, which other work on the machine changes little. --neighbour: all of it again
beside a busy loop of nice 10. Prints tables and appends one JSON line to benchmarks/results/.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from huvidpo.catalog import DEFAULT_MODEL  # noqa: E402

REQUEST = {"prompt": "a white horse runs on the Mars", "category": "horse", "style": "realistic"}
START_SECONDS = 300


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20, help="measured requests of each kind")
    parser.add_argument("--warmup", type=int, default=3, help="requests before measuring")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads, in both")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model of the catalog")
    parser.add_argument("--random", action="store_true", help="random weights instead")
    parser.add_argument("--clients", type=int, nargs="*", default=[], help="also at once, that many")
    parser.add_argument("--neighbour", action="store_true", help="the clients also beside a busy loop")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            os.environ["HUVIDPO_CATALOG"] = str(_random_catalog(Path(folder)))
        bare = measure_bare(args)
        served, outside, load = measure_served(args, Path(folder))
    report(args, {"bare pipeline": bare, "served": served, "outside stages": outside}, load)


def _random_catalog(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from family import build_random_family

    return build_random_family(folder / "family") / "catalog"


def measure_bare(args: argparse.Namespace) -> list[float]:
    """Seconds per clip of the pipelines in this process."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the runners, before torch is imported
    from huvidpo.catalog import load_catalog
    from huvidpo.pipeline import ClipRequest, FirstFramePipeline, VideoPipeline
    from huvidpo.video import encode
    from service.runners import _placement
    from service.settings import Settings

    placement = _placement(Settings(model=args.model, threads=args.threads), "bare")  # as the runners
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

    return _timed(clip, args)


def measure_served(args: argparse.Namespace, folder: Path) -> tuple[list[float], list[float], dict]:
    """Seconds per request; the part of each that no stage accounts for; clips per second under load."""
    import httpx

    stages: list[float] = []
    with serving(args, folder) as (url, process), httpx.Client(base_url=url, timeout=600) as client:

        def clip(seed: int) -> None:
            response = client.post("/generate_video", json=REQUEST | {"seed": seed})
            response.raise_for_status()
            parts = response.headers["server-timing"].split(", ")
            stages.append(sum(float(part.split("dur=")[1]) for part in parts) / 1000)

        seconds = _timed(clip, args)
        outside = [total - inside for total, inside in zip(seconds, stages[-len(seconds) :], strict=True)]
        load = {}
        if args.clients:
            _pace(clip, max(args.clients), args.requests, process)  # compiles and learns every batch size
            load["free"] = throughput(clip, args, process)
            if args.neighbour:
                with busy_neighbour():
                    load["beside a busy loop"] = throughput(clip, args, process)
    return seconds, outside, load


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
    """A process of nice 10 that computes all the time."""
    loop = subprocess.Popen(["nice", "-n", "10", sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


@contextlib.contextmanager
def serving(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, int]]:
    """A `bentoml serve` of this project on a free port, and its process id; stopped at the end."""
    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    env |= {"HUVIDPO_MODEL": args.model, "HUVIDPO_THREADS": str(args.threads), "HUVIDPO_GRPC_PORT": "0"}
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


def _timed(clip: Any, args: argparse.Namespace) -> list[float]:
    for seed in range(args.warmup):
        clip(seed)
    seconds = []
    for seed in range(args.requests):
        started = time.perf_counter()
        clip(1000 + seed)
        seconds.append(time.perf_counter() - started)
    return seconds


def report(args: argparse.Namespace, rows: dict[str, list[float]], load: dict[str, Any]) -> None:
    """The tables, and a JSON line in benchmarks/results/service_overhead_<hardware>_<date>.jsonl."""
    import torch

    figures = {}
    print(f"{'milliseconds':<16}{'p50':>10}{'p90':>10}{'p99':>10}{'mean':>10}")
    for name, seconds in rows.items():
        cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
        figures[name] = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "mean": statistics.fmean(seconds)}
        figures[name] = {key: round(value * 1000, 2) for key, value in figures[name].items()}
        print(f"{name:<16}" + "".join(f"{value:>10.1f}" for value in figures[name].values()))
    bare, served = figures["bare pipeline"]["p50"], figures["served"]["p50"]
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
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()}cpu"
    date = datetime.date.today().isoformat()
    line = {
        "benchmark": "service_overhead",
        "date": date,
        "hardware": f"{hardware} {platform.machine()}",
        "command": " ".join(["python", "benchmarks/service_overhead.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("torch", "diffusers", "bentoml")},
        "load_average": os.getloadavg()[0],
        "settings": {"requests": args.requests, "threads": args.threads, "random_weights": args.random},
        "milliseconds": figures,
        "load": load,
        "ratio_p50": round(served / bare, 4),
        "overhead_ms_p50": round(served - bare, 2),
    }
    path = ROOT / "benchmarks" / "results" / f"service_overhead_{hardware.replace(' ', '-')}_{date}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
    print(f"appended to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
