"""How many runners a load needs: a cluster of 1 to 1000 video runners, simulated (cluster_simulated.py).

    python -m benchmarks.capacity                    # ten minutes; tables and plots of docs/capacity.md too
    python -m benchmarks.capacity --price 2.5        # $ of a GPU-hour
    python -m benchmarks.capacity --only failures    # the other tables stay
    python -m benchmarks.capacity --validate         # two minutes on a quiet machine: against the service

Seconds of batches are those measured on one H100 (gpu_check). A load is seconds of work a second and video
runner, as clips take alone: batches make room for more than 1. A clip is in time if it takes no more than
WAIT_SECONDS longer than alone; a refused, late or lost one is not, and counts. Clips cost what all runners
cost meanwhile. --validate asks a small cluster of real processes (cluster_served.py) for the clips of a trace
and simulates the same, with the seconds that lone clips took before. Appends a line to benchmarks/results.
"""

import argparse
import dataclasses
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.cluster_report import (
    DEPLOYED,
    DOCUMENT,
    LOAD,
    LOADS,
    WAITS,
    filled,
    latest_results,
    plot,
    tables,
)
from benchmarks.cluster_scaled import Scaler, read_scalers
from benchmarks.cluster_simulated import (
    DONE,
    LOST,
    REFUSED,
    SCRAPE_SECONDS,
    STAGES,
    Cluster,
    Request,
    Sample,
    Simulation,
    Times,
)
from benchmarks.common import ROOT, record
from service.order import Terms
from service.router import DRAWN
from service.settings import Settings

SCALING = ROOT / "deploy/kubernetes/overlays/scaled/scaling.yaml"
MEASURED = ROOT / "benchmarks/results/gpu_check_h100_2026-11-26.jsonl"
WAIT_SECONDS = 20.0  # the wait that the scalers aim at
KINDS = {"usual": (0.9, 50), "long": (0.1, 100)}  # share of the clips, steps
FIRST_FRAME_STEPS = 50
CATEGORIES = 8  # asked for as 1 : 1/2 : 1/3 ..., unless said
CALLERS = 20
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PER_GATEWAY = 16  # video runners
JOBS_AT_ONCE = 32  # of a gateway, as deploy/kubernetes/overlays/scaled has it
WARM = 0.2  # of the arrivals, not counted
DAY = 86_400.0
PARTS = ("sizes", "all_knowing_p95", "drawing", "gateways", "mixes", "failures", "scaling")
TRACES = {"constant": 1.0, "day": 1.8, "bursts": 3.0}  # the peak, by the mean


# --- what is put in ---


def measured_times() -> tuple[dict[str, Times], dict[str, float]]:
    """Stage -> seconds of its batches; stage -> share of them that the metric of steps has, which leaves out
    the first step and decoding. Sizes 2 and 3 lie between 1 and 4 on a line.
    """
    rows = [json.loads(line) for line in MEASURED.read_text(encoding="utf-8").splitlines()]

    def find(section: str, what: str, dtype: str | None = None) -> dict[str, Any]:
        names = ("section", "what", "dtype", "label")
        return next(row for row in rows if tuple(map(row.get, names)) == (section, what, dtype, "after"))

    times, seen = dict[str, Times](), dict[str, float]()
    for stage, network, decoding, loop_steps in (
        ("first_frame", "sdxl", "sdxl, decode", 30),
        ("video", "video", "video, decode and colours", 50),
    ):
        step = find("loop", f"{network}, {loop_steps} steps")["seconds"] / loop_steps
        more = (find(network, "eager, 4 requests", "fp16")["ms"] / 1000 - step) / 3  # for one request more
        decode = find("loop", decoding)["seconds"]
        steps = {kind: n if stage == "video" else FIRST_FRAME_STEPS for kind, (_, n) in KINDS.items()}
        times[stage] = {
            (kind, size): steps[kind] * (step + (size - 1) * more) + size * decode
            for kind in KINDS
            for size in range(1, Settings.max_batch + 1)
        }
        seen[stage] = (steps["usual"] - 1) * step / times[stage]["usual", 1]
    return times, seen


def alone(times: Mapping[str, Times], stage: str) -> float:
    """Seconds of a clip in a stage, of the mean of kinds."""
    return sum(share * times[stage][kind, 1] for kind, (share, _) in KINDS.items())


def arrivals(
    moments: Iterator[float], seed: int, jobs: float = 0.5, weights: Sequence[float] | None = None
) -> list[Request]:
    """`jobs`: share of them that nobody waits for on the line. `weights`: of the categories."""
    rng, made = random.Random(seed), []
    weights = [1 / (rank + 1) for rank in range(CATEGORIES)] if weights is None else weights
    kinds, shares = list(KINDS), [share for share, _ in KINDS.values()]
    for now in moments:
        (kind,), (category,) = rng.choices(kinds, shares), rng.choices(range(len(weights)), weights)
        caller, job = rng.randrange(CALLERS), rng.random() < jobs
        deadline = math.inf if job else now + Settings.request_timeout
        terms = Terms((caller, category), "normal", deadline)
        made.append(Request(now, kind, str(category), caller, job, terms=terms))
    return made


def poisson(rate: float, count: int, seed: int) -> Iterator[float]:
    rng, now = random.Random(seed), 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        yield now


def trace(name: str, rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Moments of `rate` a second in the mean: `constant`; a `day`, from a fifth of it at night to 1.8 times;
    `bursts` of three times as much, two to ten minutes long, once an hour and a half."""
    rng, now, ends, begins = random.Random(seed), 0.0, 0.0, 0.0
    while now < seconds:
        now += rng.expovariate(3 * rate)
        if now > ends:
            begins = now + rng.expovariate(1 / 5000)
            ends = begins + rng.uniform(120, 600)
        level = {
            "constant": 1.0,
            "day": 1 - 0.8 * math.cos(2 * math.pi * now / DAY),
            "bursts": 3.0 if now >= begins else 0.87,
        }[name]
        if rng.random() < level / 3:
            yield now


# --- what comes out ---


def judge(simulation: Simulation, times: Mapping[str, Times], price: float, warm: float) -> dict[str, float]:
    """Of the arrivals after `warm` of them; pods and seconds between then and the last arrival."""
    requests = simulation.requests[int(warm * len(simulation.requests)) :]
    since, until = requests[0].at, requests[-1].at
    done = [one for one in requests if one.outcome == DONE]
    took = sorted(one.end - one.at for one in done)
    waits = sorted(one.end - one.at - sum(times[stage][one.kind, 1] for stage in STAGES) for one in done)
    ended = Counter(one.outcome for one in requests)
    spent = {stage: _spent(pool.history, since, until) for stage, pool in simulation.pools.items()}
    finished = sum(since < one.end <= until for one in simulation.requests if one.outcome == DONE)
    hours = sum(pods for pods, _ in spent.values()) / 3600
    return {
        "clips_per_second": finished / (until - since),
        "p50": took[len(took) // 2],
        "p95": took[int(0.95 * len(took))],
        "wait_p95": waits[int(0.95 * len(waits))],
        "in_time": sum(wait <= WAIT_SECONDS for wait in waits) / len(requests),
        "refused": ended[REFUSED] / len(requests),
        "lost": ended[LOST] / len(requests),
        "busy_first_frame": spent["first_frame"][1] / spent["first_frame"][0],
        "busy": spent["video"][1] / spent["video"][0],
        "dollars_per_1000": 1000 * hours * price / finished,
    }


def _spent(history: Sequence[Sample], since: float, until: float) -> tuple[float, float]:
    """Seconds that pods were there, and computed."""
    there = [sample for sample in history if since <= sample.at <= until]
    pods = sum((b.at - a.at) * a.pods for a, b in pairwise(there))
    return pods, there[-1].busy - there[0].busy


def turns(pods: Sequence[tuple[float, int]]) -> tuple[int, int]:
    """How often the number of pods turned from growing to falling or back; those within ten minutes."""
    changes = [(b[0], b[1] > a[1]) for a, b in pairwise(pods) if a[1] != b[1]]
    turned = [b[0] - a[0] for a, b in pairwise(changes) if a[1] != b[1]]
    return len(turned), sum(seconds <= 600 for seconds in turned)


class Capacity:
    """The questions. `count`: arrivals of a run, at least, and `each` for every video runner."""

    def __init__(self, price: float, count: int, each: int = 60):
        self.price, self.count, self.each = price, count, each
        self.times, self.seen_busy = measured_times()
        self.work = alone(self.times, "video")

    def cluster(self, videos: int, **options: Any) -> Cluster:
        share = alone(self.times, "first_frame") / self.work
        runners = {"first_frame": math.ceil(share * videos), "video": videos}
        gateways = max(2, math.ceil(videos / PER_GATEWAY))
        given = {"gateways": gateways, "job_concurrency": JOBS_AT_ONCE, "seen_busy": self.seen_busy} | options
        steps = {kind: steps for kind, (_, steps) in KINDS.items()}
        return Cluster(self.times, runners, steps, **given)

    def steady(
        self,
        videos: int,
        load: float,
        weights: Sequence[float] | None = None,
        longer: int = 1,
        **options: Any,
    ) -> Any:
        count = longer * max(self.count, self.each * videos)
        moments = poisson(load * videos / self.work, count, seed=1)
        return self.run(self.cluster(videos, **options), arrivals(moments, 2, weights=weights))

    def run(
        self, cluster: Cluster, requests: list[Request], warm: float = WARM
    ) -> tuple[dict[str, float], Simulation]:
        simulation = Simulation(cluster, requests)
        simulation.run()
        return judge(simulation, self.times, self.price, warm), simulation

    def sizes(self, sizes: Sequence[int], loads: Sequence[float]) -> list[dict[str, Any]]:
        """Each size at each load; `of_linear`: clips in time a second and runner, by those of one runner and
        by the best of the smaller sizes, of which the lesser counts."""
        rows: list[dict[str, Any]] = []
        for load in loads:
            each: list[float] = []
            for size in sizes:
                cluster = self.cluster(size)
                found, _ = self.steady(size, load)
                each.append(found["in_time"])  # of one and the same load per runner
                row = {"load": load, "video": size, "first_frame": cluster.runners["first_frame"]}
                row |= {"gateways": cluster.gateways, "of_linear": each[-1] / max(each)}
                rows.append(row | found | {"of_one": each[-1] / each[0]})
                print(f"load {load}, {size} video runners: p95 {found['p95']:.1f} s")
        return rows

    def all_knowing(self, sizes: Sequence[int]) -> dict[int, float]:
        """p95 where one gateway brings everything and looks all the time: what the knowledge of gateways,
        which is a second old and does not have what the others send, costs."""
        much = {"gateways": 1, "max_in_flight": 10**6, "job_concurrency": 10**6}
        much |= {"look_seconds": 0.0, "drawn": 10**6}
        return {size: self.steady(size, LOAD, **much)[0]["p95"] for size in sizes}

    def drawing(self, videos: int) -> list[dict[str, Any]]:
        """Of how many runners a gateway takes the best."""
        return [
            {"drawn": drawn, "load": load} | self.steady(videos, load, drawn=drawn)[0]
            for drawn in (1, 2, 3, DRAWN, 10, videos)
            for load in LOADS
        ]

    def gateways(self, videos: int) -> list[dict[str, Any]]:
        """What may be at runners at once, where half of what is asked for are jobs."""
        return [
            {"per_gateway": each, "jobs_at_once": jobs}
            | self.steady(videos, LOAD, gateways=math.ceil(videos / each), job_concurrency=jobs)[0]
            for each in (8, 16, 32)
            for jobs in (Settings.job_concurrency, JOBS_AT_ONCE)
        ]

    def mixes(self, videos: int) -> list[dict[str, Any]]:
        """What the mix of categories does to batches, where work waits."""
        mixes = {
            "one category": [1.0],
            "8, as 1 : 1/2 : 1/3 ...": None,
            "8, equal": [1.0] * 8,
            "64, equal": [1.0] * 64,
        }
        return [
            {"mix": name} | self.steady(videos, load := 1.0, weights)[0] | {"load": load}
            for name, weights in mixes.items()
        ]

    def failures(self, videos: int) -> list[dict[str, Any]]:
        rows = []
        for hours, restart in ((math.inf, 60.0), (8.0, 60.0), (8.0, 600.0), (1.0, 60.0), (1.0, 600.0)):
            fails = {"mtbf_seconds": hours * 3600, "restart_seconds": restart}
            found, simulation = self.steady(videos, LOAD, longer=6, **fails)
            failed = sum(runner.life for runner in simulation.pools["video"].runners.values())
            jobs = [one for one in simulation.requests if one.job]
            row = {"mtbf_hours": hours if hours < math.inf else None, "restart_seconds": restart}
            rows.append(
                row | found | {"failed": failed, "jobs_lost": sum(one.outcome == LOST for one in jobs)}
            )
        return rows

    def scaling(self, videos: float, seconds: float) -> list[dict[str, Any]]:
        """The scalers of the manifests, and what they would be without parts of them; `videos`: seconds of
        work a second in the mean."""
        written = read_scalers(SCALING)
        waits = {stage: _only(one, "queued") for stage, one in written.items()}
        rash = {
            stage: dataclasses.replace(one, steady_seconds=0, down_seconds=1, down_pods=one.most)
            for stage, one in waits.items()
        }
        policies: list[tuple[str, dict[str, Scaler], float, Sequence[str]]] = [
            (DEPLOYED, written, 120.0, list(TRACES)),
            (DEPLOYED, written, 420.0, ["day", "bursts"]),
            (WAITS, waits, 120.0, list(TRACES)),
            ("the same without windows", rash, 120.0, ["constant"]),
            ("as many as the peak needs", {}, 0.0, ["day", "bursts"]),
        ]
        return [
            self.scaled(name, policy, scalers, start, videos, seconds)
            for name in TRACES
            for policy, scalers, start, traces in policies
            if name in traces
        ]

    def scaled(
        self, name: str, policy: str, scalers: dict[str, Scaler], start: float, videos: float, seconds: float
    ) -> dict[str, Any]:
        pods = math.ceil(videos / LOAD * (1.0 if scalers else TRACES[name]))
        cluster = self.cluster(pods, scalers=scalers, start_seconds=start)
        moments = trace(name, videos / self.work, seconds, seed=3)
        found, simulation = self.run(cluster, arrivals(moments, 4), warm=0.02)
        history = simulation.pools["video"].history
        turned, soon = turns([(sample.at, sample.pods) for sample in history])
        print(f"{name}, {policy}, {start:.0f} s: {turned} turns, {found['in_time']:.3f} in time")
        told = {"trace": name, "policy": policy, "start_seconds": start} | found
        pods_seen = [sample.pods for sample in history]
        told |= {"least_pods": min(pods_seen), "most_pods": max(pods_seen)}
        told |= {"turns_per_day": turned * DAY / seconds, "turns_in_10_min": soon * DAY / seconds}
        every = history[:: int(300 / SCRAPE_SECONDS)]
        return told | {"series": [(round(sample.at / 3600, 3), sample.pods) for sample in every]}


def _only(scaler: Scaler, metric: str) -> Scaler:
    return dataclasses.replace(scaler, targets={metric: scaler.targets[metric]})


# --- against the service ---


VALIDATED_LOAD = 0.8


def serve(seconds: float) -> dict[str, Any]:
    """Lone clips, and those of a trace, as a small cluster of real processes made them."""
    import asyncio
    import tempfile

    from benchmarks import cluster_served as served

    with tempfile.TemporaryDirectory() as folder:
        seconds_each = served.STEP_SECONDS["video"]
        work = sum(share * seconds_each * served.STEPS[kind] for kind, (share, _) in KINDS.items())
        rate = VALIDATED_LOAD * served.RUNNERS["video"] / work
        rng, requests = random.Random(5), []
        for now in poisson(rate, int(rate * seconds), seed=6):
            kind = rng.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
            requests.append(Request(now, kind, rng.choice(served.CATEGORIES), 0))
        alone, answers = asyncio.run(served.serve(Path(folder), requests))
    return {"alone": alone, "answers": answers}


def compare(found: Mapping[str, Any], seeds: int = 5, **options: Any) -> dict[str, dict[str, float]]:
    """What was served beside the same, simulated: seconds of batches, and what a clip takes outside of them,
    are those of the lone clips. `spread`: of the simulated, between seeds.
    """
    from benchmarks import cluster_served as served

    alone, answers = ([served.Answer(*one) for one in found[name]] for name in ("alone", "answers"))
    outside = statistics.median(one.outside for one in alone)
    cluster = Cluster(served.times(alone), served.RUNNERS, served.STEPS, served.GATEWAYS, **options)
    runs = [_replayed(answers, cluster, outside, seed) for seed in range(seeds)]
    real = {"wait": [one.queued for one in answers], "total": [one.took for one in answers]}
    rows = {}
    for name, values in real.items():
        for measure, of in (("mean", statistics.fmean), ("p50", statistics.median), ("p95", _p95)):
            each = [of(run[name]) for run in runs]
            mean, spread = statistics.fmean(each), statistics.stdev(each)
            row = {"served": of(values), "simulated": mean, "error": mean - of(values), "spread": spread}
            rows[f"{name}, {measure}"] = {key: round(value, 3) for key, value in row.items()}
    return rows


def _replayed(answers: Sequence[Any], cluster: Cluster, outside: float, seed: int) -> dict[str, list[float]]:
    requests = [
        Request(one.at, one.kind, one.category, 0, terms=Terms(("", one.category), "normal", one.at + 600))
        for one in answers
    ]
    Simulation(cluster, requests, seed).run()
    return {
        "wait": [one.waited for one in requests],
        "total": [one.end - one.at + outside for one in requests],
    }


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("few arrivals, four sizes")
    parser.add_argument("--price", type=float, default=2.5, help="$ of a GPU-hour")
    parser.add_argument("--arrivals", type=int, default=10_000, help="of a run, at least")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, help="parts, of the others what was recorded last"
    )
    parser.add_argument("--validate", action="store_true", help="against real processes; nothing else")
    args = parser.parse_args(arguments)
    if args.price <= 0 or args.arrivals < 100:
        parser.error(
            f"got --price {args.price} --arrivals {args.arrivals}, expected more than 0, and at least 100"
        )
    found = {"served": serve(10 if args.quick else 90)} if args.validate else simulated(args)
    served = (latest_results() | found).get("served")
    if served:
        found["validation"] = compare(served)
        print(tables({"validation": found["validation"]})["validation"])
    if not args.quick:
        record(args, **found)
        result = latest_results()
        DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
        if "sizes" in result:
            plot(result)


def simulated(args: argparse.Namespace) -> dict[str, Any]:
    capacity = Capacity(args.price, *((100, 0) if args.quick else (args.arrivals,)))
    sizes, loads = ((1, 2), (LOAD,)) if args.quick else (SIZES, LOADS)
    parts: dict[str, Callable[[], Any]] = {
        "sizes": lambda: capacity.sizes(sizes, loads),
        "all_knowing_p95": lambda: capacity.all_knowing(sizes),
        "drawing": lambda: capacity.drawing(2 if args.quick else 100),
        "gateways": lambda: capacity.gateways(2 if args.quick else 128),
        "mixes": lambda: capacity.mixes(10),
        "failures": lambda: capacity.failures(20),
        "scaling": lambda: capacity.scaling(2 if args.quick else 10, 300 if args.quick else DAY),
    }
    return {
        "inputs": {
            "seconds": {f"{stage} {kind} x{size}": round(seconds, 3)
                        for stage in STAGES for (kind, size), seconds in capacity.times[stage].items()},
            "told_as_steps": capacity.seen_busy,
            "scalers": {stage: dataclasses.asdict(one) for stage, one in read_scalers(SCALING).items()},
        },
    } | {name: parts[name]() for name in args.only or parts}  # fmt: skip


if __name__ == "__main__":
    main()
