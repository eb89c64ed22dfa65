"""The batcher of a runner: one queue, one compute thread.

A batch is what queued up while the device was busy: the first request in order (order.py) and others that can
share its steps, as many as pay (pace.py) and `max_batch` allows. On a CPU the device is busy with the batches
of other stages too (turns.py). A lone request starts at once, and a long batch of a model that can be paused
waits between two of its steps for much shorter ones. Progress goes to each job by itself; a job that nobody
waits for any more leaves the queue, or the running batch before its next step. Jobs are checked beside the
compute thread, so a bad one is answered while the device is busy; what one of them has to compile or load
first is done there too.
"""

import asyncio
import logging
import math
import random
import statistics
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from huvidpo.errors import Cancelled, InvalidRequest
from service import metrics, tracing
from service.errors import INTERNAL, QueueFull, Unavailable, row_of
from service.order import Order, Started, Terms, can_wait, gives_way
from service.pace import Pace, Work
from service.request_id import REQUEST_ID, TRACE_PARENT
from service.turns import PATIENCE_SECONDS, POLL_SECONDS, Turns

logger = logging.getLogger(__name__)
OnStep = Callable[[int, int, Any], Sequence[bool] | None]
J = TypeVar("J")  # job: what is asked for, as it came
R = TypeVar("R")  # result

MAX_FAILURES = 3  # lone jobs in a row that fail by a fault of ours: then the process is taken to be broken
LINGER_SECONDS = 0.05  # at most, for clients that came together before to come together again
LINGER_GAP_SECONDS = 0.005  # between two that come together
LINGER_SHARE = 0.5  # at most, of the seconds that two are known to save by running together


class Model(Protocol):
    """What computes. `can_share`, `weights` and `run` are called on the compute thread, the others
    beside it."""

    backend: str  # what it runs on, for reports
    on_cpu: bool
    can_pause: bool  # whether `run` may be called again in its `on_step`
    max_batch: int | None  # requests that it takes at once; None: any number
    loaded: Mapping[str, str]  # SHA-256 of weights, by what they are of

    def work(self, job: Any) -> Work: ...

    def prepare(self, job: Any) -> Any:
        """An item, ready to run, of a job; raises InvalidRequest."""

    def cold(self, item: Any) -> bool:
        """Whether `warm` has something to do that takes long."""

    def warm(self, item: Any) -> None: ...

    def can_share(self, a: Any, b: Any) -> bool: ...

    def weights(self, item: Any) -> str | None:
        """SHA-256 of the weights of its own that an item of the batch that ended last ran on, where that is
        known."""

    def run(self, items: Sequence[Any], on_step: OnStep) -> Sequence[Any | None]: ...


@dataclass(frozen=True)
class Queued:
    """The job waits: `position` others run or wait before it. In `eta` seconds it should be done; None while
    nothing is known of what steps take.
    """

    position: int
    eta: float | None


@dataclass(frozen=True)
class Begun:
    """The batch of the job has begun to run; another one may still go before a later step of it."""


@dataclass(frozen=True)
class Step:
    """A denoising step is done: `step` of `total`, counted from 1."""

    step: int
    total: int


@dataclass(frozen=True)
class Done(Generic[R]):
    result: R
    queued: float  # seconds waited, also between two of its steps
    seconds: float  # seconds of the batch it ran in, without such waits
    weights: str | None = None  # SHA-256 of those of its own that it ran on, where that is known


DEFAULT_TERMS = Terms()
Event = Queued | Begun | Step | Done[R]


@dataclass(eq=False)
class _Entry(Generic[J, R]):
    job: J
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Event[R] | Exception]" = field(default_factory=asyncio.Queue)
    request_id: str = field(default_factory=REQUEST_ID.get)
    trace_parent: str = field(default_factory=TRACE_PARENT.get)
    terms: Terms = field(default_factory=Terms)
    since: float = field(default_factory=time.monotonic)
    seconds: float = 0.0  # of computing, as far as that is known
    work: Work | None = None  # None until the model is loaded
    item: Any = None  # None until it is prepared
    position: int = 0  # as it was told last
    left: bool = False  # nobody waits for it any more
    left_at: float = 0.0  # and since when

    def send(self, event: "Event[R] | Exception") -> None:
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the process is going down
            self.left = True


@dataclass(kw_only=True)
class _Running(Started):
    """A batch that has begun."""

    work: Work
    size: int
    done: int = 0  # steps
    since: float = field(default_factory=time.monotonic)


class Broken(Exception):
    """The runner cannot go on: its process should end, and a new one start."""


class Batcher(Generic[J, R]):
    """`load` makes the model on the compute thread: the process answers, and stops, while weights load.

    `turns` is kept to if the model runs on a CPU. `on_broken` is told on that thread why the batcher has
    stopped, if nobody closed it.
    """

    def __init__(
        self,
        stage: str,
        load: Callable[[], Model],
        *,
        max_batch: int,
        queue_size: int,
        turns: Turns | None = None,
        on_broken: Callable[[str], None] = lambda reason: None,
    ):
        self.stage, self.max_batch, self.queue_size = stage, max_batch, queue_size
        self.backend = ""  # the model's, once it is loaded
        self._load, self._turns, self._on_broken = load, turns, on_broken
        self._model: Future[Model] = Future()
        self._model.set_running_or_notify_cancel()  # who waits for it may leave, and must not cancel it
        self._preparing = ThreadPoolExecutor(1, f"{stage}-prepare")
        self._warming = ThreadPoolExecutor(1, f"{stage}-warm")
        self._queue: deque[_Entry[J, R]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._pace, self._order = Pace(), Order()
        self._running: list[_Running] = []  # the last is on the device, those before it wait for it
        self._ran: Work | None = None  # lately
        self._took = deque([0.0], maxlen=9)  # seconds of the latest batches
        self._lent = deque([0.0], maxlen=9)  # seconds that other stages had the cores for, between two steps
        self._together = deque([1], maxlen=3)  # latest batches, with those that came too late by a moment
        self._handed_at = 0.0  # when the results were handed on that a batch has begun with
        self._failures = 0  # lone jobs in a row
        self._thread = threading.Thread(target=self._compute, name=f"{stage}-compute", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """True from when the model is loaded until the batcher stops."""
        return self.alive and self._model.done() and self._model.exception() is None

    @property
    def alive(self) -> bool:
        """False once loading has failed or the batcher has stopped."""
        return self._thread.is_alive() and not self._closed

    @property
    def depth(self) -> int:
        return len(self._queue)

    def describe(self) -> dict[str, Any]:
        """How much there is to do: requests that wait and run, seconds of computing they take, seconds until
        a place is free. Seconds are 0 while none are known.
        """
        with self._wake:
            waiting = sum(self._share(entry) for entry in self._queue)
            ran = self._running[-1].work if self._running else self._ran
            each = self._pace.seconds(ran, 1) if ran and self._pace.knows_anything else 0.0
            return {
                "ready": self.ready,
                "waiting": len(self._queue),
                "running": sum(running.size for running in self._running),
                "queue_size": self.queue_size,
                "max_batch": self.max_batch,
                "queued_seconds": self._remaining() + waiting,
                "seconds_per_job": each,
                "retry_after": max(1.0, self._remaining()),
                "weights": dict(self._model.result().loaded) if self.ready else {},
                "scalable": getattr(self._model.result(), "scalable", []) if self.ready else [],
                "shapes": [str(shape) for shape in self._pace.shapes],
            }

    async def submit(self, job: J, terms: Terms = DEFAULT_TERMS) -> AsyncGenerator[Event[R], None]:
        """Queued when the job has its place and when that moves up, Begun, every step, the result. Closing
        the generator cancels the job.

        Raises QueueFull, Unavailable (loading failed, or shutting down) and whatever the model raised.
        """
        entry: _Entry[J, R] = _Entry(job, asyncio.get_running_loop(), terms=terms)
        place = self._join(entry)
        try:
            yield place
            await self._prepare(entry)
            while True:
                event = await entry.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Done):
                    return
        finally:
            self._leave(entry)

    def close(self, timeout: float = 5.0) -> None:
        """Drops every job; the running batch ends before its next step. Waits `timeout` seconds for that."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._preparing.shutdown(wait=False)
        self._warming.shutdown(wait=False)
        self._thread.join(timeout)

    # --- on the event loop ---

    def _join(self, entry: _Entry[J, R]) -> Queued:
        with self._wake:
            if not self.alive:
                raise self._stopped()
            if len(self._queue) >= self.queue_size:
                wait = self._retry_after()
                raise QueueFull(f"{len(self._queue)} requests are waiting, try again in {wait} seconds", wait)
            if self.ready:
                entry.work = self._model.result().work(entry.job)
            self._queue.append(entry)
            self._count_waiting()
            place = self._places()[entry]
            entry.position = place.position
            return place

    async def _prepare(self, entry: _Entry[J, R]) -> None:
        """Makes the entry ready to run, in the order of arrival. Raises what the model says of the job."""
        model = await asyncio.wrap_future(self._model)
        try:
            item = await entry.loop.run_in_executor(self._preparing, model.prepare, entry.job)
            if model.cold(item):  # those that are warm pass it by
                await entry.loop.run_in_executor(self._warming, model.warm, item)
        except (InvalidRequest, QueueFull, Unavailable):
            with self._wake:
                if entry in self._queue:
                    self._take(entry, "refused")
                    self._count_waiting()
                    self._tell_places()
            raise
        except RuntimeError as error:
            if self._closed:  # nothing is prepared any more
                raise self._stopped() from error
            raise
        with self._wake:
            entry.work, entry.item = model.work(entry.job), item
            now = self._running[-1] if self._running else None
            if now and now.work.shape == entry.work.shape:
                self._together[-1] += time.monotonic() - now.since < self._linger_seconds(entry.work)
            self._wake.notify()

    def _leave(self, entry: _Entry[J, R]) -> None:
        with self._wake:
            entry.left, entry.left_at = True, time.monotonic()
            if entry in self._queue:
                self._take(entry, "left")
                metrics.CANCELLED.labels(self.stage).inc()
                self._count_waiting()
                self._tell_places()

    def _stopped(self) -> Unavailable:
        return Unavailable(f"the {self.stage} runner is not working, try again later")

    # --- of the queue, under the lock ---

    def _take(self, entry: _Entry[J, R], outcome: str) -> None:
        self._queue.remove(entry)
        metrics.QUEUE_SECONDS.labels(self.stage, outcome).observe(time.monotonic() - entry.since)

    def _count_waiting(self) -> None:
        metrics.QUEUE_DEPTH.labels(self.stage).set(len(self._queue))
        metrics.QUEUED_WORK.labels(self.stage).set(sum(self._share(e) for e in self._queue))

    def _share(self, entry: _Entry[J, R]) -> float:
        """Seconds of computing a waiting entry will take, in a batch that pays; 0 while none is known."""
        if entry.work is None or not self._pace.knows_anything:
            return 0.0
        size = self._pace.best_size(entry.work.shape, min(self.max_batch, len(self._queue)))
        return (self._pace.turn + self._pace.seconds(entry.work, size)) / size

    def _arranged(self) -> list[_Entry[J, R]]:
        """What waits, in the order in which it will be taken."""
        for entry in self._queue:
            entry.seconds = self._share(entry)
        return self._order.arrange(list(self._queue), time.monotonic(), self._remaining())

    def _places(self) -> dict[_Entry[J, R], Queued]:
        """Where each waiting entry stands. Those before it are taken to run in batches that pay."""
        goes_between = self._goes_between()
        between, after = list[_Entry[J, R]](), list[_Entry[J, R]]()
        for entry in self._arranged():
            (between if goes_between([entry]) else after).append(entry)
        position, ahead, places = 0, 0.0, {}
        for entries, begun, remaining in (
            (between, 0, 0.0),
            (after, sum(running.size for running in self._running), self._remaining()),
        ):
            position, ahead = position + begun, ahead + remaining
            for entry in entries:
                places[entry] = Queued(position, self._eta(entry, ahead))
                position, ahead = position + 1, ahead + entry.seconds
        return places

    def _eta(self, entry: _Entry[J, R], ahead: float) -> float | None:
        if entry.work is None or not self._pace.knows_anything:
            return None
        return ahead + self._pace.turn + self._pace.seconds(entry.work, 1)

    def _tell_places(self) -> None:
        for entry, place in self._places().items():
            if place.position != entry.position:
                entry.position = place.position
                entry.send(place)

    def _remaining(self) -> float:
        """Seconds until all that has begun should be done."""
        if not self._pace.knows_anything:
            return 0.0
        return sum(self._pace.seconds(begun.work, begun.size, begun.done) for begun in self._running)

    def _goes_between(self) -> Callable[[Sequence[_Entry[J, R]]], bool]:
        """What tells whether the batch on the device should wait for another one."""
        if not (self._running and self._model.result().can_pause):
            return lambda batch: False
        now, known, moment = self._running[-1], self._pace.shapes, time.monotonic()
        if now.work.shape not in known:
            return lambda batch: False
        whole, left = self._whole_and_left(now)
        return lambda batch: (
            all(entry.work and entry.work.shape in known for entry in batch)
            and gives_way(now, whole, left, batch, moment)
        )

    def _whole_and_left(self, running: _Running) -> tuple[float, float]:
        """Seconds that the batch takes, and those of them that are left."""
        whole = self._pace.seconds(running.work, running.size)
        return whole, self._pace.seconds(running.work, running.size, running.done)

    def _retry_after(self) -> int:
        """Seconds until a batch leaves the full queue; not the same for all, who would come back at once."""
        return min(600, max(1, math.ceil(self._remaining() * random.uniform(1.0, 1.25))))

    # --- on the compute thread ---

    def _compute(self) -> None:
        reason = ""
        try:
            model = self._load_model()
            if not model.on_cpu:
                self._turns = None
            while batch := self._next_batch(model):
                self._run(model, batch)
                self._end_turn(sum(not entry.left for entry in batch))
        except Broken as error:
            reason = str(error)
        except Exception as error:
            logger.exception("the %s runner stopped working", self.stage)
            reason = f"the {self.stage} runner stopped working: {type(error).__name__}: {error}"
        self._end_turn()
        closed = self._closed
        self._refuse_waiting()
        if not closed:
            self._on_broken(reason)

    def _load_model(self) -> Model:
        model = self._load()
        if model.max_batch is not None and model.max_batch < self.max_batch:
            raise Broken(
                f"HUVIDPO_MAX_BATCH: got {self.max_batch}, the {self.stage} engine takes at most "
                f"{model.max_batch}: lower it, or build the engine for more"
            )
        room = getattr(model, "room", None)  # in the memory of its device
        if room is not None and room < self.max_batch:
            logger.info("%s: %d requests at once fit the GPU, not %d", self.stage, room, self.max_batch)
            self.max_batch = room
        self.backend = model.backend
        metrics.BACKEND.labels(self.stage, model.backend).set(1)
        self._model.set_result(model)
        return model

    def _refuse_waiting(self) -> None:
        with self._wake:
            self._closed = True
            for entry in list(self._queue):
                self._take(entry, "refused")
                entry.send(self._stopped())
            self._count_waiting()
        if not self._model.done():
            self._model.set_exception(self._stopped())

    def _next_batch(self, model: Model) -> list[_Entry[J, R]]:
        """Waits for work, and for this stage's turn; empty when closed."""
        with self._wake:
            while True:
                self._wake.wait_for(lambda: self._waiting() or self._closed)
                self._take_turn()
                self._linger()
                if self._closed:
                    return []
                if batch := self._choose(model, self._waiting_in_order()):
                    self._together.append(len(batch))
                    self._begin(batch)
                    return batch
                self._end_turn()  # all have left

    def _begin(self, batch: list[_Entry[J, R]]) -> None:
        for entry in batch:
            self._take(entry, "ran")
        self._order.take(batch, idle=not self._queue)
        if self._turns:
            _, self._handed_at = self._turns.handed
        self._start(batch)
        self._count_waiting()
        self._tell_places()

    def _start(self, batch: list[_Entry[J, R]]) -> None:
        assert batch[0].work is not None
        self._ran = batch[0].work
        self._running.append(_Running(batch, work=self._ran, size=len(batch)))

    def _waiting(self) -> list[_Entry[J, R]]:
        return [entry for entry in self._queue if entry.item is not None]

    def _take_turn(self) -> None:
        if self._turns:
            waited = self._wait_for_cores(self._wishes)
            metrics.TURN_SECONDS.labels(self.stage).observe(waited)
            self._pace.learn_turn(waited)

    def _wait_for_cores(self, wishes: Callable[[], bool]) -> float:
        """Seconds it took."""
        assert self._turns is not None
        started = time.monotonic()
        while not (self._closed or self._turns.take(wishes())):
            if time.monotonic() - started > PATIENCE_SECONDS:
                logger.warning("the %s runner has waited long enough for the cores", self.stage)
                break
            self._wake.wait(POLL_SECONDS)
        return time.monotonic() - started

    def _wishes(self) -> bool:
        """Whether what waits should not wait for more to join it."""
        assert self._turns is not None
        return len(self._waiting()) >= (1 if self._turns.leads else self.max_batch)

    def _end_turn(self, handed: int = 0) -> None:
        with self._wake:
            if self._turns:
                self._turns.wish(self._wishes() and not self._closed)
                self._turns.end(handed)

    def _linger(self) -> None:
        """Clients that came together get their clips together, and so come back within milliseconds: a
        moment's wait keeps them from running one, then the rest. Those that came alone lately are waited for
        for as long as others keep coming; what the leading stage has just handed on is on its way.
        """
        waiting = self._waiting()
        if not (waiting and waiting[0].work):
            return
        work, expected = waiting[0].work, max(self._together)
        until = time.monotonic() + self._linger_seconds(work)
        while len(waiting) < self.max_batch and (left := until - time.monotonic()) > 0:
            sure = len(waiting) < max(expected, len(self._queue) + self._on_the_way())  # that another comes
            if not (sure or self._pace.tried(work.shape, 2)):
                return
            more = partial(self._more_than, len(waiting))
            if not self._wake.wait_for(more, left if sure else min(left, LINGER_GAP_SECONDS)) or self._closed:
                return
            waiting = self._waiting()

    def _on_the_way(self) -> int:
        """Jobs that the leading stage of this host has just handed on and that have not joined yet."""
        if self._turns is None or self._turns.leads:
            return 0
        handed, at = self._turns.handed
        if at == self._handed_at or time.monotonic() - at > LINGER_SECONDS:
            return 0
        return max(0, handed - sum(entry.since >= at for entry in self._queue))

    def _more_than(self, count: int) -> bool:
        return len(self._waiting()) > count or self._closed

    def _linger_seconds(self, work: Work) -> float:
        return min(LINGER_SECONDS, LINGER_SHARE * self._pace.saved(work))

    def _waiting_in_order(self) -> list[_Entry[J, R]]:
        return [entry for entry in self._arranged() if entry.item is not None]

    def _choose(self, model: Model, waiting: list[_Entry[J, R]]) -> list[_Entry[J, R]]:
        """The first of `waiting` and those that can share its steps, as many as pay."""
        batch = waiting[:1]
        for entry in waiting[1:]:
            if all(model.can_share(other.item, entry.item) for other in batch):
                batch.append(entry)
        if not batch or batch[0].work is None:
            return []
        return batch[: self._pace.best_size(batch[0].work.shape, min(self.max_batch, len(batch)))]

    def _pause(self, model: Model, now: _Running) -> None:
        """Between two steps of the batch `now`: runs what should not wait for its end. Raises Broken."""
        while not self._closed:
            started = time.monotonic()
            self._lend_cores(now)
            with self._wake:
                goes_between = self._goes_between()
                batch = self._choose(model, [one for one in self._waiting_in_order() if goes_between([one])])
                while batch and not goes_between(batch):
                    batch.pop()
                if batch:
                    self._begin(batch)
            if batch:
                metrics.PAUSES.labels(self.stage).inc()
                self._run(model, batch)
            now.paused += time.monotonic() - started
            if not batch:
                return

    def _lend_cores(self, now: _Running) -> None:
        """Lets a stage that this one waits for have the cores, if what it makes could go between as well."""
        with self._wake:
            if self._turns is None or self._turns.leads or now.work.shape not in self._pace.shapes:
                return
            needs = statistics.median(self._lent) + statistics.median(self._took)
            if not can_wait(now, *self._whole_and_left(now), needs):
                return
            self._turns.wish(True)
            self._turns.end()
            waited = self._wait_for_cores(lambda: True)
            if waited >= POLL_SECONDS:
                self._lent.append(waited)

    def _run(self, model: Model, batch: list[_Entry[J, R]]) -> None:
        """Runs a batch, and if it fails each of its jobs alone. Raises Broken."""
        running = list(batch)  # those still waited for
        error = self._attempt(model, batch, running)
        if error is None:
            return
        if len(batch) == 1:
            self._fail(running, error)
            return
        # as text, and without its frames: they hold the batch's tensors, perhaps all memory there is
        text = "".join(traceback.format_exception(error))
        error.__traceback__ = error.__context__ = error.__cause__ = None
        logger.warning(
            "requests %s failed together in the %s runner, one by one now\n%s",
            ", ".join(entry.request_id for entry in batch),
            self.stage,
            text,
        )
        for entry in running:
            if not (entry.left or self._closed):
                self._start([entry])
                self._run(model, [entry])

    def _fail(self, running: Sequence[_Entry[J, R]], error: Exception) -> None:
        """Tells the one who waits for a lone job. Raises Broken."""
        for entry in running:
            entry.send(error)
        if row_of(error) is not INTERNAL:
            return
        self._failures += 1
        if self._failures == MAX_FAILURES:
            raise Broken(
                f"{MAX_FAILURES} jobs in a row failed in the {self.stage} runner, "
                f"the last by {type(error).__name__}: {error}"
            )

    def _attempt(
        self, model: Model, batch: list[_Entry[J, R]], running: list[_Entry[J, R]]
    ) -> Exception | None:
        """Answers the jobs of `batch` and returns None, or returns why it failed; takes those that left from
        `running`.
        """
        now = self._running[-1]
        started = time.monotonic()
        last = _clocks()

        def on_step(step: int, total: int, _latents: Any) -> list[bool]:
            nonlocal last
            metrics.STEPS.labels(self.stage).inc(len(running))
            before, last = last, _clocks()
            seconds, computing = last[0] - before[0], last[1] - before[1]
            with self._wake:
                now.done = step
                if step > 1 or total == 1:  # the first took what comes before the steps too
                    effort = computing if model.on_cpu else seconds
                    self._pace.learn_step(now.work.shape, len(running), seconds, effort)
                    metrics.STEP_SECONDS.labels(self.stage).observe(seconds)
            keep = [not (entry.left or self._closed) for entry in running]
            for entry in running:
                if entry.left:
                    metrics.CANCEL_SECONDS.labels(self.stage).observe(time.monotonic() - entry.left_at)
            running[:] = [entry for entry, kept in zip(running, keep, strict=True) if kept]
            for entry in running:
                entry.send(Step(step, total))
            if model.can_pause and step < total and running:
                self._pause(model, now)
                last = _clocks()
            return keep

        metrics.BATCH_SIZE.labels(self.stage).observe(len(batch))
        for entry in batch:
            entry.send(Begun())
        linked = [entry.trace_parent for entry in batch]
        span = tracing.start(f"batch of {self.stage}", links=linked, root=True, size=len(batch))
        try:
            results = model.run([entry.item for entry in batch], on_step)
        except Cancelled:
            results = [None] * len(batch)
        except Broken:  # one that went between did it
            for entry in running:
                entry.send(self._stopped())
            raise
        except Exception as error:
            tracing.failed(span, error)
            return error
        finally:
            span.end()
            with self._wake:
                self._running.pop()
        self._failures = 0
        seconds = time.monotonic() - started - now.paused
        self._took.append(seconds)
        with self._wake:
            self._pace.learn_whole(now.work, len(batch), seconds)
        for entry, result in zip(batch, results, strict=True):
            if result is not None:
                waited = started - entry.since + now.paused
                entry.send(Done(result, waited, seconds, model.weights(entry.item)))
            elif entry.left:
                metrics.CANCELLED.labels(self.stage).inc()
            else:
                entry.send(Unavailable(f"the {self.stage} runner is shutting down, try again"))
        return None


def _clocks() -> tuple[float, float]:
    """Seconds of the wall clock, and of computing by all threads of this process."""
    return time.monotonic(), time.process_time()
