"""A cluster in simulated time: gateways that choose runners as service/router.py does, runners that take what
waits, and pause for it, by service/order.py (scheduling.Queue), autoscalers, failures.

What is left out: the network, encoding, cores that stages share, the linger of a batch, priorities, clients
that leave. A kind of clip takes the same seconds every time.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cluster_scaled import Autoscaler, Scaler
from benchmarks.scheduling import Queue, Running
from service.order import Terms, can_wait
from service.pace import LEAST_GAIN
from service.router import DRAWN, LOOK_SECONDS, RETRY_SECONDS, UNKNOWN_SECONDS
from service.settings import Settings

STAGES = ("first_frame", "video")
DONE, REFUSED, LATE, LOST = "done", "refused", "late", "lost"
SCRAPE_SECONDS, RULE_SECONDS, SYNC_SECONDS = 15.0, 30.0, 15.0  # Prometheus twice, then the autoscaler
RATE_SECONDS = 300.0  # that a scaler's rate() looks back
GRACE_SECONDS = 75.0  # that a pod has to end what it has: terminationGracePeriodSeconds less preStop's
AFRESH_SECONDS = 5.0  # from ready until a runner says which weights it has: it hashes them
Times = Mapping[tuple[str, int], float]  # (kind, batch size) -> seconds of a batch


@dataclass(eq=False, slots=True)
class Request:
    """`job`: kept by the service until it is done. `uploaded`: brings its first frame."""

    at: float
    kind: str
    category: str
    caller: int
    job: bool = False
    uploaded: bool = False
    terms: Terms = field(default_factory=Terms)
    gateway: int = -1
    since: float = 0.0  # in the queue of a runner
    seconds: float = 0.0  # of work there
    waited: float = 0.0  # seconds, in all queues of runners and between steps
    end: float = math.inf
    outcome: str = ""  # once it has ended


@dataclass(frozen=True)
class Cluster:
    """What is simulated. Limits are the service's defaults."""

    times: Mapping[str, Times]  # of each stage
    runners: Mapping[str, int]  # at the start
    steps: Mapping[str, int] = field(
        default_factory=dict
    )  # of a kind of clip: its batches pause between them
    gateways: int = 2
    scalers: Mapping[str, Scaler] = field(default_factory=dict)
    start_seconds: float = 120.0  # of a new pod, until it is ready
    restart_seconds: float = 60.0  # of a runner that has failed
    mtbf_seconds: float = math.inf  # of a runner that is ready, between failures
    seen_busy: Mapping[str, float] = field(default_factory=dict)  # of a stage's seconds, those told as steps
    max_batch: int = Settings.max_batch
    queue_size: int = Settings.queue_size
    max_in_flight: int = Settings.max_in_flight
    job_concurrency: int = Settings.job_concurrency
    max_queued_jobs: int = Settings.max_queued_jobs
    look_seconds: float = LOOK_SECONDS  # of gateways at runners; 0: before every choice
    drawn: int = DRAWN  # runners of which a job goes to the best


class Sample(NamedTuple):
    """What Prometheus knows of a stage: pods, seconds of work that wait, seconds computed so far."""

    at: float
    pods: int
    queued: float
    busy: float


@dataclass(eq=False, kw_only=True)
class Batch(Running[Request]):
    until: float = 0.0  # its end, unless others go between
    looks: bool = False  # whether others can, after the step that runs


@dataclass(eq=False)
class Runner:
    number: int
    born: float
    queue: Queue[Request]
    waiting: list[Request] = field(default_factory=list)  # in order of arrival
    begun: list[Batch] = field(default_factory=list)  # the last is on the device, the others wait for it
    life: int = 0  # events of an earlier one are void
    leaving: bool = False

    def runs(self, batch: Batch, until: float) -> bool:
        """Whether it is on the device, and ends then: what was foreseen before a pause is void."""
        return bool(self.begun) and self.begun[-1] is batch and batch.until == until


class Pool:
    """The runners of a stage, by number in arrays: what gateways see of them is a copy of an earlier time."""

    def __init__(self, simulation: "Simulation", stage: str):
        cluster = simulation.cluster
        self.simulation, self.stage, self.times = simulation, stage, cluster.times[stage]
        scaler = cluster.scalers.get(stage)
        places = max(cluster.runners[stage], scaler.most if scaler else 0) + 8  # and those that leave
        self.ready = np.zeros(places, bool)
        self.known_from = np.full(places, math.inf)  # time from which its weights are in its report
        self.until = np.zeros(places)  # the end of all that has begun
        self.waits = np.zeros(places)  # seconds of work in the queue
        self.queued = np.zeros(places, int)
        self.each = np.full(places, UNKNOWN_SECONDS)  # seconds of a job, as it ran last
        self.seen = np.full((cluster.gateways, places), math.inf)  # seconds of work; infinite: not ready
        self.seen_full = np.zeros((cluster.gateways, places), bool)
        self.runners: dict[int, Runner] = {}
        self._free = list(range(places))[::-1]
        self.steps = cluster.steps if stage == "video" else {}
        self.sizes = {kind: self._sizes(kind) for kind, _ in self.times}
        self.begun_seconds = 0.0  # of batches, whole
        self.autoscaler = Autoscaler(scaler) if scaler else None
        self.metrics = {"queued": 0.0, "busy": 0.0}
        self.history: list[Sample] = []

    @property
    def pods(self) -> list[Runner]:
        return [runner for runner in self.runners.values() if not runner.leaving]

    # --- what gateways do ---

    def look(self, gateway: int) -> None:
        work = np.maximum(self.until - self.simulation.now, 0.0) + self.waits
        self.seen[gateway] = np.where(self.ready, work, math.inf)
        self.seen_full[gateway] = self.queued >= self.simulation.cluster.queue_size

    def full(self, gateway: int) -> bool:
        """Whether every runner that is ready is."""
        there = np.isfinite(self.seen[gateway])
        return bool(there.any() and self.seen_full[gateway][there].all())

    def choose(self, gateway: int) -> int | None:
        """Of some that have room the runner with the least seconds of work, as the gateway knows it; of
        equals one that has said that it has the weights; of these any."""
        seen, full, rng = self.seen[gateway], self.seen_full[gateway], self.simulation.rng
        room = np.flatnonzero(np.isfinite(seen))
        if not len(room):
            return None
        if full.any():
            room = room[~full[room]] if not full[room].all() else room
        if len(room) > self.simulation.cluster.drawn:
            room = room[rng.sample(range(len(room)), self.simulation.cluster.drawn)]
        equal = room[seen[room] == seen[room].min()]
        if len(equal) > 1:
            known = equal[self.known_from[equal] <= self.simulation.now]
            equal = known if len(known) else equal
        number = int(equal[int(rng.random() * len(equal))])
        seen[number] += self.each[number]
        return number

    # --- what runners do ---

    def _sizes(self, kind: str) -> list[int]:
        """How many of 0, 1, 2, ... requests run together: as pace.py says, once it has seen all sizes."""
        sizes = [0, 1]
        for size in range(2, self.simulation.cluster.max_batch + 1):
            best = sizes[-1]
            better = self.times[kind, size] / size < LEAST_GAIN * self.times[kind, best] / best
            sizes.append(size if better else best)
        return sizes

    def best(self, kind: str, most: int) -> int:
        return self.sizes[kind][min(most, len(self.sizes[kind]) - 1)]

    def share(self, request: Request, waiting: int) -> float:
        size = self.best(request.kind, waiting)
        return self.times[request.kind, size] / size

    def count(self, runner: Runner) -> None:
        for one in runner.waiting:
            one.seconds = self.share(one, len(runner.waiting))
        self.queued[runner.number] = len(runner.waiting)
        self.waits[runner.number] = sum(one.seconds for one in runner.waiting)

    def like(self, a: Request, b: Request) -> bool:
        return a.kind == b.kind and (self.stage == "first_frame" or a.category == b.category)

    def take(self, runner: Runner, request: Request) -> None:
        runner.waiting.append(request)
        self.count(runner)
        if runner.begun:
            self.look_after_step(runner)
        else:
            self.begin(runner)

    def begin(self, runner: Runner) -> None:
        """The next batch; the device is free."""
        now = self.simulation.now
        for one in [one for one in runner.waiting if one.terms.deadline < now]:
            runner.waiting.remove(one)
            self.simulation.finish(one, LATE)
        self.count(runner)
        if runner.waiting:
            self.start(runner, runner.queue.choose(runner.waiting, now))

    def start(self, runner: Runner, requests: Sequence[Request]) -> None:
        for one in requests:
            runner.waiting.remove(one)
            one.waited += self.simulation.now - one.since
        self.count(runner)
        kind = requests[0].kind
        seconds = self.times[kind, len(requests)]
        self.begun_seconds += seconds
        self.each[runner.number] = self.times[kind, 1]
        runner.begun.append(Batch(batch=requests, seconds=seconds, steps=self.steps.get(kind, 1)))
        self.go_on(runner)

    def go_on(self, runner: Runner) -> None:
        """With the batch that began last."""
        batch = runner.begun[-1]
        batch.until = self.simulation.now + batch.left
        self.until[runner.number] = self.simulation.now + sum(one.left for one in runner.begun)
        self.simulation.after(batch.left, self.end, runner, batch, batch.until)
        self.look_after_step(runner)

    def look_after_step(self, runner: Runner) -> None:
        """Whether the batch on the device should wait then, if it ever could for what waits now."""
        batch, now = runner.begun[-1], self.simulation.now
        step = batch.seconds / batch.steps
        batch.done = batch.steps - math.ceil((batch.until - now) / step - 1e-6)
        could = any(can_wait(batch, batch.seconds, batch.left, one.seconds) for one in runner.waiting)
        done = batch.done + 1
        if could and done < batch.steps and not batch.looks:
            batch.looks = True
            seconds = batch.until - now - (batch.steps - done) * step
            self.simulation.after(seconds, self.between, runner, batch, batch.until, done)

    def between(self, runner: Runner, batch: Batch, until: float, done: int) -> None:
        """Two steps, of which `done` are done."""
        if not runner.runs(batch, until):
            return
        batch.looks, batch.done = False, done
        first = runner.queue.between(batch, runner.waiting, self.simulation.now)
        if first:
            self.start(runner, first)
        else:
            self.look_after_step(runner)

    def end(self, runner: Runner, batch: Batch, until: float) -> None:
        if not runner.runs(batch, until):
            return
        runner.begun.pop()
        if runner.begun:
            below = runner.begun[-1]
            below.paused += batch.seconds + batch.paused
            first = runner.queue.between(below, runner.waiting, self.simulation.now)
            if first:
                self.start(runner, first)
            else:
                self.go_on(runner)
        else:
            self.begin(runner)
        for one in batch.batch:
            one.waited += batch.paused
            self.simulation.next_stage(one, self.stage)
        if runner.leaving and not runner.begun:
            self.gone(runner, runner.life)

    # --- what becomes of runners ---

    def add(self, seconds: float = 0.0) -> None:
        """A pod, ready after `seconds`."""
        runner = Runner(self._free.pop(), self.simulation.now, Queue(self.like, self.best))
        self.runners[runner.number] = runner
        self.each[runner.number] = UNKNOWN_SECONDS
        self.simulation.after(seconds, self.serve, runner, runner.life)

    def serve(self, runner: Runner, life: int) -> None:
        if life == runner.life and not runner.leaving:
            self.ready[runner.number] = True
            self.known_from[runner.number] = self.simulation.now + AFRESH_SECONDS
            if (mtbf := self.simulation.cluster.mtbf_seconds) < math.inf:
                self.simulation.after(self.simulation.rng.expovariate(1 / mtbf), self.fail, runner, life)

    def fail(self, runner: Runner, life: int) -> None:
        """All that it has is lost; it comes back."""
        if life == runner.life and not runner.leaving:
            self._drop(runner)
            restart = self.simulation.cluster.restart_seconds
            self.simulation.after(restart, self.serve, runner, runner.life)

    def remove(self) -> None:
        """One that is not ready, or the newest: it ends what it has."""
        runner = max(self.pods, key=lambda one: (not self.ready[one.number], one.born))
        self.ready[runner.number], runner.leaving = False, True
        if runner.begun:
            self.simulation.after(GRACE_SECONDS, self.gone, runner, runner.life)
        else:
            self.gone(runner, runner.life)

    def gone(self, runner: Runner, life: int) -> None:
        if life == runner.life:
            self._drop(runner)
            del self.runners[runner.number]
            self._free.append(runner.number)

    def _drop(self, runner: Runner) -> None:
        lost = [one for batch in runner.begun for one in batch.batch] + runner.waiting
        runner.begun, runner.waiting = [], []
        runner.life += 1
        runner.queue = Queue(self.like, self.best)
        number = runner.number
        self.begun_seconds -= max(0.0, float(self.until[number]) - self.simulation.now)
        self.ready[number], self.until[number], self.known_from[number] = False, 0.0, math.inf
        self.count(runner)
        for one in lost:
            self.simulation.bring_again(one, self.stage)

    # --- what the autoscaler sees and does ---

    def scrape(self) -> None:
        now = self.simulation.now
        busy = self.begun_seconds - float(np.maximum(self.until - now, 0.0).sum())
        self.history.append(Sample(now, len(self.pods), float(self.waits.sum()), busy))

    def evaluate(self) -> None:
        """The recording rule and the rate, of what was scraped."""
        recent = self.history[-int(RATE_SECONDS // SCRAPE_SECONDS) - 1 :]
        if len(recent) > 1:
            first, last = recent[0], recent[-1]
            busy = (last.busy - first.busy) / (last.at - first.at)
            share = self.simulation.cluster.seen_busy.get(self.stage, 1.0)
            self.metrics = {"queued": last.queued, "busy": share * busy}

    def scale(self) -> None:
        if self.autoscaler is None or len(self.history) < 3:
            return
        current = len(self.pods)
        wanted = self.autoscaler.advise(self.simulation.now, current, self.metrics)
        for _ in range(wanted - current):
            self.add(self.simulation.cluster.start_seconds)
        for _ in range(current - wanted):
            self.remove()


class Simulation:
    """`run` it once; then `requests` say how each ended, `pools` what it took."""

    def __init__(self, cluster: Cluster, requests: Sequence[Request], seed: int = 0):
        self.cluster, self.requests, self.rng, self.now = cluster, requests, random.Random(seed), 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._open = len(requests)
        self._in_flight, self._jobs = [0] * cluster.gateways, [0] * cluster.gateways
        self._kept: deque[Request] = deque()  # jobs that no gateway works on yet
        self.pools = {stage: Pool(self, stage) for stage in STAGES}
        for stage, pool in self.pools.items():
            for _ in range(cluster.runners[stage]):
                pool.add()

    def run(self) -> None:
        pools = self.pools.values()
        for gateway in range(self.cluster.gateways if self.cluster.look_seconds else 0):
            self._every(self.cluster.look_seconds, self._look, gateway, first=0.0)
        for pool in pools:
            self._every(SCRAPE_SECONDS, pool.scrape, first=SCRAPE_SECONDS * self.rng.random())
            self._every(RULE_SECONDS, pool.evaluate, first=RULE_SECONDS * self.rng.random())
            self._every(SYNC_SECONDS, pool.scale, first=SYNC_SECONDS * self.rng.random())
        arriving = iter(self.requests)
        self._arrive(arriving)
        while self._open:
            self.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), call, arguments))

    def _every(self, seconds: float, call: Callable[..., None], *arguments: Any, first: float) -> None:
        def again() -> None:
            call(*arguments)
            self.after(seconds, again)

        self.after(first, again)

    def _look(self, gateway: int) -> None:
        for pool in self.pools.values():
            pool.look(gateway)

    # --- what gateways do with a request ---

    def _arrive(self, arriving: Iterator[Request]) -> None:
        request = next(arriving, None)
        if request is None:
            return
        self.after(request.at - self.now, self._admit, request)
        self.after(request.at - self.now, self._arrive, arriving)

    def _admit(self, request: Request) -> None:
        gateway = int(self.rng.random() * self.cluster.gateways)
        if not self.cluster.look_seconds:
            self._look(gateway)
        if request.job:
            if len(self._kept) >= self.cluster.max_queued_jobs:
                self.finish(request, REFUSED)
            else:
                self._kept.append(request)
                self._take_job()
        elif self._in_flight[gateway] >= self.cluster.max_in_flight or any(
            pool.full(gateway) for pool in self.pools.values()
        ):
            self.finish(request, REFUSED)
        else:
            self._in_flight[gateway] += 1
            self._start(request, gateway)

    def _take_job(self) -> None:
        free = [one for one, jobs in enumerate(self._jobs) if jobs < self.cluster.job_concurrency]
        if free and self._kept:
            gateway = free[int(self.rng.random() * len(free))]
            self._jobs[gateway] += 1
            self._start(self._kept.popleft(), gateway)

    def _start(self, request: Request, gateway: int) -> None:
        request.gateway = gateway
        self._bring(request, "video" if request.uploaded else "first_frame")

    def _bring(self, request: Request, stage: str) -> None:
        """To a runner of the stage. There is none, or it is full: a job waits, another client is told."""
        if request.terms.deadline < self.now:
            self.finish(request, LATE)
            return
        pool = self.pools[stage]
        if not self.cluster.look_seconds:
            pool.look(request.gateway)
        number = pool.choose(request.gateway)
        if number is None:
            self.bring_again(request, stage, LOOK_SECONDS)
            return
        runner = pool.runners.get(number)
        if runner is None or not (pool.ready[number] or runner.leaving):
            pool.seen[request.gateway, number] = math.inf
            self.after(RETRY_SECONDS, self._bring, request, stage)
        elif len(runner.waiting) < self.cluster.queue_size:
            request.since = self.now
            pool.take(runner, request)
        elif request.job or stage == "video":
            self.after(max(1.0, float(pool.until[number]) - self.now), self._bring, request, stage)
        else:
            self.finish(request, REFUSED)

    def bring_again(self, request: Request, stage: str, seconds: float = RETRY_SECONDS) -> None:
        """What a runner has lost: a job is brought to another, a client that waits is told."""
        if request.job:
            self.after(seconds, self._bring, request, stage)
        else:
            self.finish(request, LOST)

    def next_stage(self, request: Request, stage: str) -> None:
        if stage == "first_frame":
            self._bring(request, "video")
        else:
            self.finish(request, DONE)

    def finish(self, request: Request, outcome: str) -> None:
        assert not request.outcome, f"it has ended before: {request.outcome}, then {outcome}"
        request.outcome, request.end = outcome, self.now
        self._open -= 1
        if request.gateway >= 0:
            (self._jobs if request.job else self._in_flight)[request.gateway] -= 1
            self._take_job()
