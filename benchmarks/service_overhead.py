"""What the service costs over the bare pipeline, one request at a time.

    python benchmarks/service_overhead.py                  the built-in family, its defaults
    python benchmarks/service_overhead.py --random         random weights of the tests, when there are no
    others python benchmarks/service_overhead.py --requests 50

Bare: both pipelines and the encoder in this process. Served: POST /generate_video to a real `bentoml serve`
with the same options, seeds and threads. "outside stages" is the time of a served request that its own
Server-Timing does not account for: gateway, both hops, JSON and base64. Prints a table and appends one JSON
line to benchmarks/results/.
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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            os.environ["HUVIDPO_CATALOG"] = str(_random_catalog(Path(folder)))
        bare = measure_bare(args)
        served, outside = measure_served(args, Path(folder))
    report(args, {"bare pipeline": bare, "served": served, "outside stages": outside})


def _random_catalog(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from family import build_random_family

    return build_random_family(folder / "family") / "catalog"


def measure_bare(args: argparse.Namespace) -> list[float]:
    """Seconds per clip of the pipelines in this process."""
    import torch

    from huvidpo.catalog import load_catalog
    from huvidpo.pipeline import ClipRequest, FirstFramePipeline, VideoPipeline
    from huvidpo.video import encode

    torch.set_num_threads(args.threads)
    first_frame, video = FirstFramePipeline.from_catalog(args.model), VideoPipeline.from_catalog(args.model)
    options = load_catalog().model(args.model).defaults

    def clip(seed: int) -> None:
        request = ClipRequest(**REQUEST, seed=seed, options=options)
        (frame,) = first_frame([request])
        assert frame is not None
        (frames,) = video([request], [frame])
        assert frames is not None
        encode(frames, options.fps)

    return _timed(clip, args)


def measure_served(args: argparse.Namespace, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds per request, and the part of each that no stage accounts for."""
    import httpx

    stages: list[float] = []
    with serving(args, folder) as url, httpx.Client(base_url=url, timeout=600) as client:

        def clip(seed: int) -> None:
            response = client.post("/generate_video", json=REQUEST | {"seed": seed})
            response.raise_for_status()
            parts = response.headers["server-timing"].split(", ")
            stages.append(sum(float(part.split("dur=")[1]) for part in parts) / 1000)

        seconds = _timed(clip, args)
    measured = stages[-len(seconds) :]
    return seconds, [total - inside for total, inside in zip(seconds, measured, strict=True)]


@contextlib.contextmanager
def serving(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    """A `bentoml serve` of this project on a free port; stopped at the end."""
    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    env |= {"HUVIDPO_MODEL": args.model, "HUVIDPO_THREADS": str(args.threads)}
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
        yield url
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


def report(args: argparse.Namespace, rows: dict[str, list[float]]) -> None:
    """The table, and a JSON line in benchmarks/results/service_overhead_<hardware>_<date>.jsonl."""
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
