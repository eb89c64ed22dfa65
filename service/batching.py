"""The batcher of a runner: one queue, one compute thread.

A batch is what queued up while the device was busy: the oldest request and every later one that can share
its steps, up to `max_batch`. Nothing waits for company, so a lone request starts at once. Progress goes to
each job by itself; a job that nobody waits for any more leaves the queue, or the running batch before its
next step.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from huvidpo.errors import Cancelled
from service import metrics
from service.errors import QueueFull, Unavailable

logger = logging.getLogger(__name__)
OnStep = Callable[[int, int, Any], Sequence[bool] | None]
J = TypeVar("J")  # job: what is asked for, as it came
R = TypeVar("R")  # result


class Model(Protocol):
    """What runs on the compute thread, and only there. `prepare` makes an item, ready to run, of a job."""

    backend: str  # what it runs on, for reports

    def prepare(self, job: Any) -> Any: ...

    def can_share(self, a: Any, b: Any) -> bool: ...

    def run(self, items: Sequence[Any], on_step: OnStep) -> Sequence[Any | None]: ...


@dataclass(frozen=True)
class Step:
    """A denoising step is done: `step` of `total`, counted from 1."""

    step: int
    total: int


@dataclass(frozen=True)
class Done(Generic[R]):
    result: R
    queued: float  # seconds waited
    seconds: float  # seconds of the batch it ran in


@dataclass(eq=False)
class _Entry(Generic[J, R]):
    job: J
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Step | Done[R] | Exception]" = field(default_factory=asyncio.Queue)
    since: float = field(default_factory=time.monotonic)
    item: Any = None
    left: bool = False  # nobody waits for it any more

    def send(self, event: "Step | Done[R] | Exception") -> None:
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the process is going down
            self.left = True


class Batcher(Generic[J, R]):
    """`load` makes the model on the compute thread: the process answers, and stops, while weights load."""

    def __init__(self, stage: str, load: Callable[[], Model], *, max_batch: int, queue_size: int):
        self.stage, self.max_batch, self.queue_size = stage, max_batch, queue_size
        self.ready = False
        self.backend = ""  # the model's, once it is loaded
        self._load = load
        self._queue: deque[_Entry[J, R]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._last_seconds = 1.0  # of the last batch, to say when to come back
        self._thread = threading.Thread(target=self._work, name=f"{stage}-compute", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False once loading has failed or the batcher is closed."""
        return self._thread.is_alive() and not self._closed

    @property
    def depth(self) -> int:
        return len(self._queue)

    async def submit(self, job: J) -> AsyncGenerator[Step | Done[R], None]:
        """Every step of the job, then its result. Closing the generator cancels the job.

        Raises QueueFull, Unavailable (loading failed, or shutting down) and whatever the model raised.
        """
        entry: _Entry[J, R] = _Entry(job, asyncio.get_running_loop())
        self._join(entry)
        try:
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
        self._thread.join(timeout)

    def _join(self, entry: _Entry[J, R]) -> None:
        with self._wake:
            if not self.alive:
                raise Unavailable(f"the {self.stage} runner is not working, try again later")
            if len(self._queue) >= self.queue_size:
                batches = len(self._queue) / self.max_batch + 1
                wait = min(600, max(1, math.ceil(batches * self._last_seconds)))
                raise QueueFull(f"{len(self._queue)} requests are waiting, try again in {wait} seconds", wait)
            self._queue.append(entry)
            self._count_waiting()
            self._wake.notify()

    def _leave(self, entry: _Entry[J, R]) -> None:
        with self._wake:
            entry.left = True
            if entry in self._queue:
                self._queue.remove(entry)
                metrics.CANCELLED.labels(self.stage).inc()
                self._count_waiting()

    def _count_waiting(self) -> None:
        metrics.QUEUE_DEPTH.labels(self.stage).set(len(self._queue))

    def _work(self) -> None:
        """The compute thread."""
        try:
            model = self._load()
            self.backend = model.backend
            metrics.BACKEND.labels(self.stage, model.backend).set(1)
            self.ready = True
            while batch := self._next_batch(model):
                self._run(model, batch)
        except Exception:
            logger.exception("the %s runner stopped working", self.stage)
        finally:
            self.ready = False
            self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        with self._wake:
            self._closed = True
            for entry in self._queue:
                entry.send(Unavailable(f"the {self.stage} runner is not working, try again later"))
            self._queue.clear()
            self._count_waiting()

    def _next_batch(self, model: Model) -> list[_Entry[J, R]]:
        """Waits for work; empty when closed."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return []
                waiting = list(self._queue)
            batch: list[_Entry[J, R]] = []
            for entry in waiting:
                if len(batch) == self.max_batch:
                    break
                if self._prepare(model, entry) and all(
                    model.can_share(other.item, entry.item) for other in batch
                ):
                    batch.append(entry)
            with self._wake:
                batch = [entry for entry in batch if not entry.left]
                for entry in batch:
                    self._queue.remove(entry)
                self._count_waiting()
            if batch:
                return batch

    def _prepare(self, model: Model, entry: _Entry[J, R]) -> bool:
        if entry.item is None:
            try:
                entry.item = model.prepare(entry.job)
            except Exception as error:
                with self._wake:
                    if entry in self._queue:
                        self._queue.remove(entry)
                entry.send(error)
                return False
        return True

    def _run(self, model: Model, batch: list[_Entry[J, R]]) -> None:
        started = time.monotonic()
        running = list(batch)

        def on_step(step: int, total: int, _latents: Any) -> list[bool]:
            metrics.STEPS.labels(self.stage).inc(len(running))
            keep = [not (entry.left or self._closed) for entry in running]
            running[:] = [entry for entry, kept in zip(running, keep, strict=True) if kept]
            for entry in running:
                entry.send(Step(step, total))
            return keep

        metrics.BATCH_SIZE.labels(self.stage).observe(len(batch))
        try:
            results = model.run([entry.item for entry in batch], on_step)
        except Cancelled:
            results = [None] * len(batch)
        except Exception as error:
            self._after_failure(model, running, error)
            return
        self._last_seconds = time.monotonic() - started
        for entry, result in zip(batch, results, strict=True):
            if result is not None:
                entry.send(Done(result, started - entry.since, self._last_seconds))
            elif entry.left:
                metrics.CANCELLED.labels(self.stage).inc()
            else:
                entry.send(Unavailable(f"the {self.stage} runner is shutting down, try again"))

    def _after_failure(self, model: Model, running: list[_Entry[J, R]], error: Exception) -> None:
        """One bad request, or a batch too large for the device, must not fail the others: each runs alone."""
        if len(running) == 1:
            running[0].send(error)
            return
        logger.warning(
            "a batch of %d failed in the %s runner, one by one now", len(running), self.stage, exc_info=error
        )
        for entry in running:
            if not (entry.left or self._closed):
                self._run(model, [entry])
