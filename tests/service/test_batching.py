"""The batcher with a small model whose steps the tests hold back: real threads, a real event loop."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest

from huvidpo.errors import Cancelled, InvalidRequest
from service.batching import Batcher, Done, OnStep, Step
from service.errors import QueueFull, Unavailable

STEPS = 3


@dataclass
class Adder:
    """Items are (group, number); the result is number + 100. Each step waits for a permit."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[int]] = field(default_factory=list)
    steps: int = 0
    backend: str = "torch"
    fail_above: int = 99  # batches longer than this fail

    def prepare(self, job: tuple[str, int]) -> tuple[str, int]:
        if job[1] < 0:
            raise InvalidRequest("negative", "number")
        return job

    def can_share(self, a: tuple[str, int], b: tuple[str, int]) -> bool:
        return a[0] == b[0]

    def run(self, items: Sequence[tuple[str, int]], on_step: OnStep) -> list[int | None]:
        self.batches.append([number for _, number in items])
        if len(items) > self.fail_above:
            raise MemoryError("batch too large")
        alive = list(range(len(items)))
        for step in range(1, STEPS + 1):
            assert self.permits.acquire(timeout=30)
            self.steps += 1
            keep = on_step(step, STEPS, None)
            if keep is not None:
                alive = [i for i, kept in zip(alive, keep, strict=True) if kept]
            if not alive:
                raise Cancelled("all dropped")
        return [number + 100 if i in alive else None for i, (_, number) in enumerate(items)]

    def allow(self, steps: int = 1000) -> None:
        self.permits.release(steps)


@pytest.fixture
def model():
    return Adder()


@pytest.fixture
def batcher(model):
    batcher = Batcher("test", lambda: model, max_batch=3, queue_size=4)
    yield batcher
    model.allow()
    batcher.close()


async def result(batcher, job):
    events = [event async for event in batcher.submit(job)]
    assert [event.step for event in events[:-1]] == list(range(1, STEPS + 1))
    return events[-1].result


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def start(batcher, *jobs):
    """Tasks of `jobs`, queued in this order."""
    tasks = []
    for job in jobs:
        tasks.append(asyncio.ensure_future(result(batcher, job)))
        await asyncio.sleep(0)
    return tasks


def test_lone_job_runs_at_once_and_reports_every_step(batcher, model):
    async def main():
        model.allow()
        return [event async for event in batcher.submit(("a", 1))]

    events = asyncio.run(main())
    assert events[:-1] == [Step(1, 3), Step(2, 3), Step(3, 3)]
    assert isinstance(events[-1], Done)
    assert events[-1].result == 101
    assert events[-1].queued >= 0
    assert events[-1].seconds >= 0


def test_batch_is_what_queued_while_busy_grouped_by_what_can_share(batcher, model):
    async def main():
        tasks = await start(batcher, ("a", 1))
        await until(lambda: model.batches)
        tasks += await start(batcher, ("a", 2), ("b", 3), ("a", 4), ("b", 5))
        model.allow()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [101, 102, 103, 104, 105]
    assert model.batches == [[1], [2, 4], [3, 5]]


def test_batches_are_bounded(batcher, model):
    async def main():
        tasks = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        tasks += await start(batcher, *[("a", i) for i in range(1, 5)])
        model.allow()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert model.batches == [[0], [1, 2, 3], [4]]


def test_full_queue_is_refused_and_says_when_to_come_back(batcher, model):
    async def main():
        tasks = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        tasks += await start(batcher, *[("a", i) for i in range(1, 5)])
        with pytest.raises(QueueFull) as refused:
            await result(batcher, ("a", 5))
        assert refused.value.retry_after >= 1
        model.allow()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_leaving_the_queue_makes_room_and_is_never_run(batcher, model):
    async def main():
        tasks = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        (waiting,) = await start(batcher, ("a", 1))
        assert batcher.depth == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        assert batcher.depth == 0
        model.allow()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert model.batches == [[0]]


def test_a_job_nobody_waits_for_stops_within_one_step(batcher, model):
    async def main():
        async with aclosing(batcher.submit(("a", 0))) as events:
            model.allow(1)
            assert await anext(events) == Step(1, 3)
        model.allow()
        await until(lambda: model.steps == 2)
        return await result(batcher, ("a", 7))

    assert asyncio.run(main()) == 107
    assert model.steps == 2 + STEPS


def test_one_of_a_batch_leaves_and_the_others_go_on(batcher, model):
    async def main():
        tasks = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        tasks += await start(batcher, ("a", 1), ("a", 2), ("a", 3))
        model.allow(STEPS + 1)
        await until(lambda: model.steps == STEPS + 1)
        tasks.pop(2).cancel()
        await asyncio.sleep(0.01)
        model.allow()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [100, 101, 103]
    assert model.steps == 2 * STEPS


def test_a_job_that_cannot_be_prepared_fails_alone(batcher, model):
    async def main():
        tasks = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        tasks += await start(batcher, ("a", 1), ("a", -1), ("a", 2))
        model.allow()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, bad, third = asyncio.run(main())
    assert (first, second, third) == (100, 101, 102)
    assert isinstance(bad, InvalidRequest)
    assert bad.field == "number"
    assert batcher.depth == 0


def test_a_failed_batch_is_run_again_one_by_one(batcher, model):
    model.fail_above = 1

    async def main():
        tasks = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        tasks += await start(batcher, ("a", 1), ("a", 2))
        model.allow()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [100, 101, 102]
    assert model.batches == [[0], [1, 2], [1], [2]]


def test_a_lone_failure_reaches_its_caller(batcher, model):
    model.fail_above = 0

    async def main():
        with pytest.raises(MemoryError):
            await result(batcher, ("a", 1))

    asyncio.run(main())
    assert batcher.alive


def test_closing_answers_everyone_waiting(model):
    batcher = Batcher("test", lambda: model, max_batch=1, queue_size=4)

    async def main():
        tasks = await start(batcher, ("a", 0), ("a", 1))
        await until(lambda: model.batches)
        closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
        await until(lambda: not batcher.alive)
        model.allow(1)
        await closing
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(answer, Unavailable) for answer in asyncio.run(main()))
    assert not batcher.alive


def test_loading_happens_off_the_loop_and_jobs_wait_for_it(model):
    loading = threading.Event()

    def load():
        assert loading.wait(30)
        return model

    batcher = Batcher("test", load, max_batch=2, queue_size=4)

    async def main():
        (task,) = await start(batcher, ("a", 1))
        assert batcher.alive
        assert not batcher.ready
        assert batcher.depth == 1
        loading.set()
        model.allow()
        assert await task == 101
        assert batcher.ready

    asyncio.run(main())
    batcher.close()


def test_failed_loading_refuses_jobs_and_is_not_alive():
    def load():
        raise OSError("no such weights")

    batcher = Batcher("test", load, max_batch=2, queue_size=4)

    async def main():
        await until(lambda: not batcher.alive)
        with pytest.raises(Unavailable):
            await result(batcher, ("a", 1))

    asyncio.run(main())
    assert not batcher.ready
