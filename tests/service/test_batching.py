"""The batcher with a small model whose steps the tests hold back: real threads, a real event loop."""

import asyncio
import threading
import weakref
from collections.abc import Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from huvidpo.errors import Cancelled, InvalidRequest
from service.batching import Batcher, Begun, Done, OnStep, Queued, Step
from service.errors import QueueFull, Unavailable
from service.order import Terms
from service.pace import KEPT, Work
from service.turns import Turns

STEPS = 3


@dataclass
class Adder:
    """Items are (group, number); the result is number + 100. Each step waits for a permit."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[int]] = field(default_factory=list)
    steps: int = 0
    backend: str = "torch"
    fail_above: int = 99  # batches longer than this fail
    loaded: dict[str, str] = field(default_factory=dict)
    on_cpu: bool = False
    can_pause: bool = False
    lengths: dict[str, int] = field(default_factory=dict)  # steps of a group, where they are not STEPS
    max_batch: int | None = None

    def work(self, job: tuple[str, int]) -> Work:
        return Work(job[0], self.lengths.get(job[0], STEPS))

    def prepare(self, job: tuple[str, int]) -> tuple[str, int]:
        if job[1] < 0:
            raise InvalidRequest("negative", "number")
        return job

    def cold(self, item) -> bool:
        return False

    def warm(self, item) -> None:
        raise AssertionError("nothing is cold")

    def can_share(self, a: tuple[str, int], b: tuple[str, int]) -> bool:
        return a[0] == b[0]

    def weights(self, item) -> None:
        return None

    def run(self, items: Sequence[tuple[str, int]], on_step: OnStep) -> list[int | None]:
        self.batches.append([number for _, number in items])
        if len(items) > self.fail_above:
            raise MemoryError("batch too large")
        alive = list(range(len(items)))
        total = self.work(items[0]).steps
        for step in range(1, total + 1):
            assert self.permits.acquire(timeout=30)
            self.steps += 1
            keep = on_step(step, total, None)
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
    assert isinstance(events[0], Queued)
    assert [event.step for event in events if isinstance(event, Step)] == list(range(1, STEPS + 1))
    return events[-1].result


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def prepared(batcher):
    """Until all that wait could run."""
    await until(lambda: all(entry.item is not None for entry in batcher._queue))


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
    assert events[:-1] == [Queued(0, None), Begun(), Step(1, 3), Step(2, 3), Step(3, 3)]
    assert isinstance(events[-1], Done)
    assert events[-1].result == 101
    assert events[-1].queued >= 0
    assert events[-1].seconds >= 0


def test_batch_is_what_queued_while_busy_grouped_by_what_can_share(batcher, model):
    async def main():
        tasks = await start(batcher, ("a", 1))
        await until(lambda: model.batches)
        tasks += await start(batcher, ("a", 2), ("b", 3), ("a", 4), ("b", 5))
        await prepared(batcher)
        model.allow()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [101, 102, 103, 104, 105]
    assert model.batches == [[1], [2, 4], [3, 5]]


def test_callers_share_the_device_however_many_jobs_each_has(batcher, model):
    """One that has queued three jobs does not hold up another's first; a high priority goes before both."""

    async def main():
        (busy,) = await start(batcher, ("x", 0))
        await until(lambda: len(model.batches) == 2)
        tasks = []
        for group, number, flow, priority in (
            ("a", 1, "ann", "normal"), ("b", 2, "ann", "normal"), ("c", 3, "bob", "normal"),
            ("d", 4, "eve", "high"),
        ):  # fmt: skip
            events = batcher.submit((group, number), Terms(flow, priority))
            tasks.append(asyncio.ensure_future(last(events)))
            await asyncio.sleep(0)
        await prepared(batcher)
        model.allow()
        await asyncio.gather(busy, *tasks)

    async def last(events):
        return [event async for event in events][-1]

    async def learnt():
        model.allow(STEPS)
        await result(batcher, ("x", 9))

    asyncio.run(learnt())
    asyncio.run(main())
    assert model.batches[2:] == [[4], [1], [3], [2]]


def test_batches_are_bounded(batcher, model):
    async def main():
        tasks = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        tasks += await start(batcher, *[("a", i) for i in range(1, 5)])
        await prepared(batcher)
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


def test_the_full_queue_says_when_the_running_batch_should_end(batcher, model):
    """A step was learnt to take 4 s; two of three are left."""

    async def main():
        tasks = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        model.allow(1)
        await until(lambda: model.steps == 1)
        batcher._pace.learn_step("a", 1, 4.0, 4.0)
        tasks += await start(batcher, *[("a", i) for i in range(1, 5)])
        answers = set()
        for _ in range(50):
            with pytest.raises(QueueFull) as refused:
                await result(batcher, ("a", 5))
            answers.add(refused.value.retry_after)
        waiting = REGISTRY.get_sample_value("huvidpo_queued_work_seconds", {"stage": batcher.stage})
        assert waiting == pytest.approx(4 * STEPS * 4.0)
        assert answers <= {8, 9, 10}
        assert len(answers) > 1, "all would come back at once"
        model.allow()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_clients_that_come_together_are_waited_for_a_moment(batcher, model, monkeypatch):
    """The first time the second comes a moment too late; from then on it does not."""
    moment = 30.0
    monkeypatch.setattr(batcher, "_linger_seconds", lambda work: moment)

    async def main():
        nonlocal moment
        tasks = await start(batcher, ("a", 1))
        await until(lambda: model.batches)
        tasks += await start(batcher, ("a", 2))
        await prepared(batcher)
        moment = 0.0
        model.allow()
        await asyncio.gather(*tasks)
        moment = 30.0
        await asyncio.gather(result(batcher, ("a", 3)), result(batcher, ("a", 4)))

    asyncio.run(main())
    assert model.batches == [[1], [2], [3, 4]]


def test_those_that_come_one_after_the_other_run_together(batcher, model, monkeypatch):
    """Where that pays: before anybody was seen to come together, and no longer than others come."""
    monkeypatch.setattr(batcher, "_linger_seconds", lambda work: 60.0)
    monkeypatch.setattr("service.batching.LINGER_GAP_SECONDS", 30.0)
    monkeypatch.setattr(batcher._pace, "tried", lambda shape, size: True)
    monkeypatch.setattr(batcher._pace, "best_size", lambda shape, most: most)

    async def main():
        tasks = []
        for number in (1, 2, 3):
            tasks += await start(batcher, ("a", number))
            await prepared(batcher)
        model.allow()
        await asyncio.gather(*tasks)
        monkeypatch.setattr("service.batching.LINGER_GAP_SECONDS", 0.001)
        batcher._together.extend([1, 1, 1])
        await result(batcher, ("a", 4))

    asyncio.run(main())
    assert model.batches == [[1, 2, 3], [4]]


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


def test_leaving_at_the_first_word_frees_the_place(batcher, model):
    async def main():
        async with aclosing(batcher.submit(("a", 0))) as events:
            assert await anext(events) == Queued(0, None)
            assert batcher.depth == 1
        assert batcher.depth == 0

    asyncio.run(main())
    assert model.batches == []


def test_a_job_nobody_waits_for_stops_within_one_step(batcher, model):
    def cancels():
        return REGISTRY.get_sample_value("huvidpo_cancel_seconds_count", {"stage": batcher.stage}) or 0.0

    before = cancels()

    async def main():
        async with aclosing(batcher.submit(("a", 0))) as events:
            model.allow(1)
            assert await anext(events) == Queued(0, None)
            assert await anext(events) == Begun()
            assert await anext(events) == Step(1, 3)
        model.allow()
        await until(lambda: model.steps == 2)
        return await result(batcher, ("a", 7))

    assert asyncio.run(main()) == 107
    assert model.steps == 2 + STEPS
    assert cancels() == before + 1


def test_one_of_a_batch_leaves_and_the_others_go_on(batcher, model):
    async def main():
        tasks = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        tasks += await start(batcher, ("a", 1), ("a", 2), ("a", 3))
        await prepared(batcher)
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
        with pytest.raises(InvalidRequest) as refused:
            await tasks[2]  # the device is held: who is told now is told while it is busy
        assert refused.value.field == "number"
        assert (model.steps, batcher.depth) == (0, 2)
        await prepared(batcher)
        model.allow()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, _, third = asyncio.run(main())
    assert (first, second, third) == (100, 101, 102)
    assert model.batches == [[0], [1, 2]]


def test_what_has_to_be_warmed_up_holds_back_nobody_else(batcher, model):
    """The first job waits for a compilation that the test holds; the second came later and runs."""
    compiled, compiling = threading.Event(), threading.Event()

    def warm(item):
        compiling.set()
        assert compiled.wait(30)

    model.cold = lambda item: item[0] == "cold" and not compiled.is_set()
    model.warm = warm
    model.allow()

    async def main():
        (slow,) = await start(batcher, ("cold", 1))
        await until(compiling.is_set)
        assert await result(batcher, ("warm", 2)) == 102
        with pytest.raises(InvalidRequest):
            await result(batcher, ("cold", -1))
        assert not slow.done()
        compiled.set()
        assert await slow == 101

    asyncio.run(main())
    assert model.batches == [[2], [1]]


async def one_then_two(batcher, model):
    """The results of a lone job and of two that share the batch after it."""
    tasks = await start(batcher, ("a", 0))
    await until(lambda: model.batches)
    tasks += await start(batcher, ("a", 1), ("a", 2))
    await prepared(batcher)
    model.allow()
    return await asyncio.gather(*tasks)


def test_a_failed_batch_is_run_again_one_by_one(batcher, model):
    model.fail_above = 1
    assert asyncio.run(one_then_two(batcher, model)) == [100, 101, 102]
    assert model.batches == [[0], [1, 2], [1], [2]]


def test_what_failed_together_is_freed_before_it_runs_alone(batcher, model):
    """An error's traceback holds the frames it passed, and so the tensors of a batch too large for memory."""
    tensors: list[weakref.ref] = []
    held_when_alone = []
    run = model.run

    class Tensor:
        pass

    def run_holding(items, on_step):
        if len(items) > 1:
            held = Tensor()
            tensors.append(weakref.ref(held))
            raise MemoryError("batch too large")
        held_when_alone.extend(tensor() for tensor in tensors)
        return run(items, on_step)

    model.run = run_holding
    assert asyncio.run(one_then_two(batcher, model)) == [100, 101, 102]
    assert held_when_alone == [None, None]


def test_a_lone_failure_reaches_its_caller(batcher, model):
    model.fail_above = 0

    async def main():
        with pytest.raises(MemoryError):
            await result(batcher, ("a", 1))

    asyncio.run(main())
    assert batcher.alive


def test_three_lone_failures_in_a_row_stop_the_runner(model):
    reasons = []
    batcher = Batcher("test", lambda: model, max_batch=3, queue_size=4, on_broken=reasons.append)

    async def fail():
        model.fail_above = 0
        with pytest.raises(MemoryError):
            await result(batcher, ("a", 1))

    async def main():
        model.allow()
        await fail()
        await fail()
        model.fail_above = 99
        assert await result(batcher, ("a", 1)) == 101  # the row is broken
        with pytest.raises(InvalidRequest):
            await result(batcher, ("a", -1))  # a fault of the caller does not count
        await fail()
        await fail()
        assert batcher.alive
        await fail()
        await until(lambda: not batcher.alive)
        with pytest.raises(Unavailable):
            await result(batcher, ("a", 1))

    asyncio.run(main())
    assert reasons == ["3 jobs in a row failed in the test runner, the last by MemoryError: batch too large"]


def test_a_batch_that_the_engine_cannot_take_refuses_the_start(model):
    reasons = []
    model.max_batch = 2
    batcher = Batcher("test", lambda: model, max_batch=3, queue_size=4, on_broken=reasons.append)
    asyncio.run(until(lambda: reasons))
    assert not batcher.ready
    assert "HUVIDPO_MAX_BATCH: got 3, the test engine takes at most 2" in reasons[0]


def test_a_batch_is_no_larger_than_the_gpu_has_room_for(model):
    model.room = 2
    batcher = Batcher("test", lambda: model, max_batch=3, queue_size=4)
    asyncio.run(until(lambda: batcher.ready))
    assert batcher.max_batch == 2
    batcher.close()


def test_places_in_the_queue_are_told_and_told_again_when_they_move_up(batcher, model):
    async def main():
        (lone,) = await start(batcher, ("a", 0))
        await until(lambda: model.batches)
        events = batcher.submit(("a", 1)), batcher.submit(("b", 2))
        assert [await anext(one) for one in events] == [Queued(1, None), Queued(2, None)]
        first, last = [asyncio.ensure_future(anext(one)) for one in events]
        await prepared(batcher)
        model.allow(2 * STEPS)
        await lone
        assert await last == Queued(1, pytest.approx(0, abs=60))  # something is known of steps now
        first.cancel()
        await asyncio.wait([first])

    asyncio.run(main())


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


def pausing(model, **options):
    """A batcher that knows: a step takes a second; "long" has ten of them, the others three."""
    model.can_pause, model.lengths = True, {"long": 10}
    batcher = Batcher("test", lambda: model, max_batch=3, queue_size=4, **options)
    for _ in range(KEPT):
        for shape in ("long", "a"):
            batcher._pace.learn_step(shape, 1, 1.0, 1.0)
    return batcher


@contextmanager
def closed(model, *batchers):
    try:
        yield
    finally:
        model.allow()
        for batcher in batchers:
            batcher.close()


async def watched(batcher, job, log):
    async for event in batcher.submit(job):
        log.append((job[0], event.step if isinstance(event, Step) else type(event)))
    return event.result


async def long_then_short(batcher, model, log, after):
    """Their tasks: the long one has taken `after` steps, the short one could run."""
    long = asyncio.ensure_future(watched(batcher, ("long", 1), log))
    model.allow(after)
    await until(lambda: ("long", after) in log)
    short = asyncio.ensure_future(watched(batcher, ("a", 2), log))
    await until(lambda: ("a", Queued) in log)
    await prepared(batcher)
    return long, short


def short_ones_fail(model):
    run = model.run

    def failing(items, on_step):
        if items[0][0] == "a":
            raise MemoryError("no room")
        return run(items, on_step)

    model.run = failing


def test_a_long_batch_waits_between_two_steps_for_a_short_one(model):
    batcher, log = pausing(model), []

    async def main():
        long, short = await long_then_short(batcher, model, log, after=1)
        # it takes three seconds, nine are left: so it is the next to run
        model.allow(2)
        await until(lambda: ("a", 1) in log)
        assert batcher.describe()["running"] == 2
        model.allow()
        return await asyncio.gather(long, short)

    with closed(model, batcher):
        assert asyncio.run(main()) == [101, 102]
    assert model.batches == [[1], [2]]
    assert [step for name, step in log if name == "long"] == [Queued, Begun, *range(1, 11), Done]
    assert [step for name, step in log if name == "a"] == [Queued, Begun, *range(1, 4), Done]
    between = log[log.index(("a", Begun)) : log.index(("a", Done))]
    assert all(name == "a" for name, _ in between)  # the long one stood still
    assert log.index(("a", Done)) < log.index(("long", 3))


def test_a_batch_that_is_nearly_done_is_not_paused(model):
    batcher, log = pausing(model), []

    async def main():
        long, short = await long_then_short(batcher, model, log, after=5)
        model.allow()
        await asyncio.gather(long, short)

    with closed(model, batcher):
        asyncio.run(main())
    assert log.index(("long", Done)) < log.index(("a", 1))


def test_what_fails_between_two_steps_harms_nobody_but_itself(model):
    batcher, log = pausing(model), []
    short_ones_fail(model)

    async def main():
        long, short = await long_then_short(batcher, model, log, after=1)
        model.allow()
        with pytest.raises(MemoryError):
            await short
        return await long

    with closed(model, batcher):
        assert asyncio.run(main()) == 101
        assert batcher.alive


def test_a_runner_that_breaks_between_two_steps_answers_everybody(model, monkeypatch):
    monkeypatch.setattr("service.batching.MAX_FAILURES", 1)
    reasons, log = [], []
    batcher = pausing(model, on_broken=reasons.append)
    short_ones_fail(model)

    async def main():
        long, short = await long_then_short(batcher, model, log, after=1)
        model.allow()
        answers = await asyncio.gather(long, short, return_exceptions=True)
        await until(lambda: reasons)
        return answers

    with closed(model, batcher):
        long, short = asyncio.run(main())
    assert isinstance(long, Unavailable)
    assert isinstance(short, MemoryError)
    assert len(reasons) == 1


def test_between_two_steps_of_a_long_batch_the_first_stage_has_the_cores(model, tmp_path):
    second = pausing(model, turns=Turns(leads=False, folder=tmp_path))
    model.on_cpu = True
    drawing = Adder(on_cpu=True)
    first = Batcher(
        "test", lambda: drawing, max_batch=3, queue_size=4, turns=Turns(leads=True, folder=tmp_path)
    )
    log = []

    async def main():
        long = asyncio.ensure_future(watched(second, ("long", 1), log))
        model.allow(1)
        await until(lambda: ("long", 1) in log)
        frame = asyncio.ensure_future(result(first, ("a", 2)))
        await until(lambda: first._turns.wished)
        drawing.allow()
        model.allow(1)
        assert await frame == 102
        assert ("long", Done) not in log
        model.allow()
        return await long

    with closed(model, first, second):
        assert asyncio.run(main()) == 101


def test_stages_on_one_cpu_run_in_turn_the_first_before_the_second(tmp_path):
    """While the video stage computes, both get more to do; the stage that it waits for goes first."""
    order = []

    class Noting(Adder):
        def run(self, items, on_step):
            order.append([number for _, number in items])
            return super().run(items, on_step)

    def stage(leads):
        model = Noting(on_cpu=True)
        return model, Batcher(
            "test", lambda: model, max_batch=3, queue_size=4, turns=Turns(leads, folder=tmp_path)
        )

    (drawing, first), (animating, second) = stage(leads=True), stage(leads=False)

    async def main():
        tasks = await start(second, ("a", 1))
        await until(lambda: order)
        tasks += await start(second, ("a", 2))
        tasks += await start(first, ("a", 11))
        await prepared(first)
        await until(lambda: first._turns.wished)
        tasks += await start(first, ("a", 12))
        await prepared(first)
        assert order == [[1]]
        animating.allow()
        drawing.allow()
        await asyncio.gather(*tasks)

    try:
        asyncio.run(main())
    finally:
        first.close()
        second.close()
    assert order == [[1], [11, 12], [2]]


def test_what_was_just_handed_on_is_waited_for(tmp_path, monkeypatch):
    """Once; nothing else is, before it is known to pay."""
    monkeypatch.setattr("service.batching.LINGER_SECONDS", 60.0)
    lead, model = Turns(leads=True, folder=tmp_path), Adder(on_cpu=True)
    batcher = Batcher(
        "test", lambda: model, max_batch=3, queue_size=4, turns=Turns(leads=False, folder=tmp_path)
    )
    monkeypatch.setattr(batcher, "_linger_seconds", lambda work: 60.0)

    async def main():
        assert lead.take(wished=True)
        tasks = await start(batcher, ("a", 1))  # from elsewhere
        await prepared(batcher)
        lead.wish(False)
        lead.end(handed=1)
        tasks += await start(batcher, ("a", 2))
        await until(lambda: model.batches)
        model.allow()
        await asyncio.gather(*tasks)
        batcher._together.extend([1, 1, 1])
        await result(batcher, ("a", 3))

    try:
        asyncio.run(main())
        assert model.batches == [[1, 2], [3]]
    finally:
        batcher.close()


def test_a_full_batch_and_what_leads_go_in_turn(tmp_path):
    first, second = Turns(leads=True, folder=tmp_path), Turns(leads=False, folder=tmp_path)
    assert first.take(wished=True)
    assert not second.take(wished=True)  # the cores are taken
    first.end()  # and both wish to go on
    for _ in range(3):
        assert not first.take(wished=True)
        assert second.take(wished=True)
        second.end()
        assert not second.take(wished=True)
        assert first.take(wished=True)
        first.end()
    assert not second.take(wished=False)
    first.wish(False)
    assert second.take(wished=False)


def test_without_a_folder_every_turn_is_given(tmp_path):
    first, second = (Turns(leads, folder=tmp_path / "none") for leads in (True, False))
    assert first.take(wished=True)
    assert second.take(wished=False)
