"""In which order to denoise what waits: the runner's policy beside those of other servers, in a simulation.

    python -m benchmarks.scheduling                  # about a minute
    python -m benchmarks.scheduling --arrivals 1000000 --only ours   # does anybody starve?

One device denoises batches of one shape and category, at most four at once, in the seconds measured here for
the built-in video pipeline (processor time, one thread). Keys ask at Poisson's moments: nine for short clips,
one for long ones nine times of ten. A request is in time when it ends within three times the seconds it takes
alone. All requests count, those a policy drops too.

Policies: `fifo` one at a time, first come, first served (vLLM-Omni); `window` the oldest, and of the others
that are like it those that come within 50 ms (SGLang); `bentoml` as many from the head of the queue as are
alike, and drops what waits for more than a minute (without BentoML's model of latencies); `edf` earliest
deadline first; `ours` service/order.py, with batches as service/pace.py sizes them, and between two steps of
a long one much shorter ones. All the others run each batch to its end. A request's deadline is the time until
which it is in time; `no_deadlines` is `ours` where requests name none. The load is the one at which fifo has
50 to 65 % in time. Jain's index is over keys: of the share of its work that each got, and of its requests
that were in time. Prints a table and appends a line to benchmarks/results.
"""

from __future__ import annotations

import argparse
import bisect
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from benchmarks import common
from benchmarks.common import record, timed
from service.order import Order, Started, Terms, Waits, gives_way

MAX_BATCH = 4
SLO = 3.0  # times what a request takes alone
WINDOW = 0.05  # seconds
DROP_AFTER = 60.0  # seconds, BentoML's traffic.timeout
SHORT, LONG = "short", "long"
STEPS = {SHORT: 8, LONG: 50}
FRAMES = {SHORT: 8, LONG: 24}
CATEGORIES = ("horse", "rain", "smile")
KEYS = 10  # the first asks for long clips nine times of ten
LONG_SHARE = {True: 0.9, False: 0.02}
Times = dict[tuple[str, int], float]  # (kind, batch size) -> seconds


@dataclass(eq=False)
class Request:
    since: float
    key: int
    kind: str
    category: str
    alone: float  # seconds
    terms: Terms = field(default_factory=Terms)
    seconds: float = 0.0  # for the policy: of its share of a batch
    end: float = math.inf

    @property
    def in_time(self) -> bool:
        return self.end - self.since <= SLO * self.alone


Choose = Callable[[list[Request], float], tuple[list[Request], float]]
"""Waiting, time -> the batch to run now, or none and the time to be asked again."""


class Asked(Waits, Protocol):
    @property
    def kind(self) -> str: ...


A = TypeVar("A", bound=Asked)


@dataclass(kw_only=True)
class Running(Started, Generic[A]):
    batch: Sequence[A]
    seconds: float  # it takes
    steps: int
    done: int = 0  # steps

    @property
    def left(self) -> float:
        return self.seconds * (1 - self.done / self.steps)


class Queue(Generic[A]):
    """service/order.py, as service/batching.py uses it. `like`: whether two can share steps; `best`: how many
    of a kind, of so many, run together.
    """

    def __init__(self, like: Callable[[A, A], bool], best: Callable[[str, int], int]):
        self.like, self.best, self._order = like, best, Order()

    def choose(self, waiting: Sequence[A], now: float) -> list[A]:
        """The batch to run now."""
        return self._take(self._first(self._order.arrange(waiting, now)), waiting)

    def between(self, running: Running[A], waiting: Sequence[A], now: float) -> list[A]:
        """The batch to run before the next step of the one on the device, or none."""

        def fits(batch: Sequence[A]) -> bool:
            return gives_way(running, running.seconds, running.left, batch, now)

        if not any(fits([one]) for one in waiting):
            return []
        batch = self._first([one for one in self._order.arrange(waiting, now) if fits([one])])
        while not fits(batch):
            batch.pop()
        return self._take(batch, waiting)

    def _first(self, ordered: Sequence[A]) -> list[A]:
        batch = [one for one in ordered if self.like(ordered[0], one)]
        return batch[: self.best(ordered[0].kind, len(batch))]

    def _take(self, batch: list[A], waiting: Sequence[A]) -> list[A]:
        self._order.take(batch, idle=len(batch) == len(waiting))
        return batch


@dataclass(frozen=True)
class Policy:
    """`between`: the batch between two of its steps, waiting, time -> the batch to run before the next one,
    or none. Without it every batch runs to its end.
    """

    choose: Choose
    between: Callable[[Running[Request], list[Request], float], list[Request]] | None = None


def alike(a: Request, b: Request) -> bool:
    return (a.kind, a.category) == (b.kind, b.category)


def like(head: Request, others: Sequence[Request]) -> list[Request]:
    return [one for one in others if alike(head, one)]


class Policies:
    """Each makes a Policy; those that remember are made anew for every run."""

    def __init__(self, times: Times):
        self.times = times

    def best(self, kind: str, most: int) -> int:
        """As pace.py: as many as take the least seconds each."""
        return min(range(1, most + 1), key=lambda size: self.times[kind, size] / size)

    def fifo(self) -> Policy:
        return Policy(lambda waiting, now: (waiting[:1], math.inf))

    def window(self) -> Policy:
        def choose(waiting: list[Request], now: float) -> tuple[list[Request], float]:
            batch = like(waiting[0], waiting)[:MAX_BATCH]
            until = waiting[0].since + WINDOW
            return ([], until) if len(batch) < MAX_BATCH and now < until else (batch, math.inf)

        return Policy(choose)

    def bentoml(self) -> Policy:
        def choose(waiting: list[Request], now: float) -> tuple[list[Request], float]:
            while waiting and now - waiting[0].since >= DROP_AFTER:
                waiting.pop(0)  # never served
            batch = waiting[:1]
            for one in waiting[1:MAX_BATCH]:
                if not like(batch[0], [one]):
                    break
                batch.append(one)
            return batch, math.inf

        return Policy(choose)

    def edf(self) -> Policy:
        def choose(waiting: list[Request], now: float) -> tuple[list[Request], float]:
            order = sorted(waiting, key=lambda one: one.since + SLO * one.alone)
            batch = like(order[0], order)
            return batch[: self.best(order[0].kind, min(MAX_BATCH, len(batch)))], math.inf

        return Policy(choose)

    def ours(self) -> Policy:
        queue = Queue[Request](alike, lambda kind, most: self.best(kind, min(MAX_BATCH, most)))
        return Policy(lambda waiting, now: (queue.choose(waiting, now), math.inf), queue.between)

    no_deadlines = ours


POLICIES = ("fifo", "window", "bentoml", "edf", "ours", "no_deadlines")


def arrivals(count: int, load: float, times: Times, seed: int) -> list[Request]:
    """`load`: seconds of work, one request at a time, that are asked for in a second."""
    rng, made, now = random.Random(seed), list[Request](), 0.0
    shares = [LONG_SHARE[key == 0] for key in range(KEYS)]
    mean = statistics.fmean(share * times[LONG, 1] + (1 - share) * times[SHORT, 1] for share in shares)
    for _ in range(count):
        now += rng.expovariate(load / mean)
        key = rng.randrange(KEYS)
        kind = LONG if rng.random() < shares[key] else SHORT
        category, alone = rng.choice(CATEGORIES), times[kind, 1]
        terms = Terms((key, category), "normal", now + SLO * alone)
        made.append(Request(now, key, kind, category, alone, terms, alone))
    return made


def simulate(requests: Sequence[Request], policy: Policy, times: Times) -> list[Request]:
    """The requests with their ends, but for those that are dropped. The policy knows what waits, no more."""
    waiting: list[Request] = []
    begun: list[Running[Request]] = []  # the last is on the device, those before it wait for it
    now, coming, horizon = 0.0, 0, len(requests)

    def begin(batch: list[Request]) -> None:
        for one in batch:
            waiting.remove(one)
        kind = batch[0].kind
        begun.append(Running(batch=batch, seconds=times[kind, len(batch)], steps=STEPS[kind]))

    while coming < horizon or waiting or begun:
        if not (waiting or begun):
            now = max(now, requests[coming].since)
        while coming < horizon and requests[coming].since <= now:
            bisect.insort(waiting, requests[coming], key=lambda one: one.since)
            coming += 1
        if begun:
            running = begun[-1]
            if policy.between and running.done and (batch := policy.between(running, waiting, now)):
                begin(batch)
                continue
            steps = 1 if policy.between else running.steps
            now += running.seconds * steps / running.steps
            running.done += steps
            if running.done == running.steps:
                begun.pop()
                for one in running.batch:
                    one.end = now
                if begun:
                    begun[-1].paused += running.seconds + running.paused
            continue
        batch, until = policy.choose(waiting, now) if waiting else ([], math.inf)
        if batch:
            begin(batch)
            continue
        following = requests[coming].since if coming < horizon else math.inf
        if min(until, following) == math.inf:
            break  # whatever waits is never served
        now = min(until, following)
    return list(requests)


def judge(requests: Sequence[Request]) -> dict[str, float]:
    """Shares are of all requests: what was never served counts as late. `in_time_least`: of the kind and key
    that fares worst. `longest`: the longest stay of any, in times of what it takes alone; infinite if one is
    never served.
    """
    duration = max((one.end for one in requests if one.end < math.inf), default=1.0)
    asked, served, groups = Counter[int](), Counter[int](), dict[tuple[int, str], list[bool]]()
    for one in requests:
        asked[one.key] += one.alone
        served[one.key] += one.alone if one.end < math.inf else 0.0
        groups.setdefault((one.key, one.kind), []).append(one.in_time)
    shares = [served[key] / asked[key] for key in asked]
    stays = sorted(one.end - one.since for one in requests)
    return {
        "in_time": statistics.fmean(one.in_time for one in requests),
        "in_time_least": min(statistics.fmean(group) for group in groups.values()),
        "in_time_per_second": sum(one.in_time for one in requests) / duration,
        "p95_seconds": stays[int(0.95 * len(stays))],
        "longest": max((one.end - one.since) / one.alone for one in requests),
        "jain_served": sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)),
        "jain_in_time": _jain_in_time(requests),
    }


def _jain_in_time(requests: Sequence[Request]) -> float:
    by_key: dict[int, list[bool]] = {}
    for one in requests:
        by_key.setdefault(one.key, []).append(one.in_time)
    shares = [statistics.fmean(group) for group in by_key.values()]
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)) if any(shares) else 0.0


def find_load(times: Times, count: int) -> float:
    """At which fifo has 57.5 % in time, the middle of 50 to 65."""
    low, high = 0.05, 2.0
    for _ in range(12):
        load = (low + high) / 2
        found = judge(simulate(arrivals(count, load, times, 0), Policies(times).fifo(), times))["in_time"]
        low, high = (load, high) if found > 0.575 else (low, load)
    return (low + high) / 2


def measure(quick: bool) -> Times:
    """Seconds of a batch by the built-in pipeline: processor time of one thread, whatever else runs."""
    import numpy as np
    import torch

    from huvidpo.catalog import DEFAULT_MODEL, load_catalog
    from huvidpo.pipeline import ClipRequest, VideoPipeline

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = VideoPipeline.from_catalog(DEFAULT_MODEL, device="cpu", categories=["horse"])
    defaults, times = load_catalog().model(DEFAULT_MODEL).defaults, {}
    frame = np.zeros((defaults.height, defaults.width, 3), np.uint8)
    for kind, steps in STEPS.items():
        options = defaults.replace(steps=2, frames=2 if quick else FRAMES[kind])
        for size in range(1, MAX_BATCH + 1):
            clips = [ClipRequest("a horse runs", "horse", seed=i, options=options) for i in range(size)]
            spent = timed(lambda: pipeline(clips, [frame] * size), 1 if quick else 3)  # noqa: B023
            times[kind, size] = spent.least_cpu * steps / 2  # nearly all of it is steps
    torch.set_num_threads(threads)
    return times


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("200 arrivals, two frames")
    parser.add_argument("--arrivals", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=POLICIES, default=POLICIES)
    args = parser.parse_args(arguments)
    if args.quick:
        args.arrivals, args.seeds = 200, 1
    times = measure(args.quick)
    load = find_load(times, min(args.arrivals, 20_000))
    rows = {name: evaluate(name, times, load, args) for name in args.only}
    print(f"work asked for: {load:.3f} seconds a second, one at a time")
    names = list(next(iter(rows.values())))
    print(f"{'':<9}" + "".join(f"{name:>20}" for name in names))
    for policy, row in rows.items():
        print(f"{policy:<9}" + "".join(f"{row[name]:>20.3f}" for name in names))
    if not args.quick:
        told = {f"{kind} x{size}": round(seconds, 4) for (kind, size), seconds in times.items()}
        record(args, service_seconds=told, asked_seconds_per_second=round(load, 4), policies=rows)


def evaluate(name: str, times: Times, load: float, args: argparse.Namespace) -> dict[str, float]:
    """The mean of several seeds; of `longest` the largest."""
    runs = []
    for seed in range(1, args.seeds + 1):
        requests = arrivals(args.arrivals, load, times, seed)
        if name == "no_deadlines":
            for one in requests:
                one.terms = replace(one.terms, deadline=math.inf)
        runs.append(judge(simulate(requests, getattr(Policies(times), name)(), times)))
    found = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
    return found | {"longest": max(run["longest"] for run in runs)}


if __name__ == "__main__":
    main()
