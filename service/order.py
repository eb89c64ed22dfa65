"""In which order a runner takes what waits in it. A policy and nothing else: no clock, no threads, so that
benchmarks/scheduling.py runs the same one.

Higher priorities first. Within one, callers and their categories have equal shares of the seconds of work:
start-time fair queuing (Goyal, Vin and Cheng, 1996), which is as fair as deficit round robin with one request
for a quantum, and needs no quantum. A request that has waited for long counts as of the next higher priority,
so each has its turn. One that would be late goes forward as far as it has to, where nobody else becomes late;
one that is late in any case lets those of its priority go first that still can be in time, for
LATE_SECONDS at most: then it has its turn too. A long batch gives way to a short one between two of its steps
(`gives_way`), so that what takes a second does not wait for a minute behind it.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol, TypeVar

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
AGE_SECONDS = 30.0  # of waiting, for each of which a request rises by a priority
LATE_SECONDS = AGE_SECONDS * len(PRIORITIES)  # of waiting: then one that is late counts as any other
SHORT_SHARE = 0.5  # at most, of the seconds a batch still takes, for another one to go first
PAUSED_SHARE = 1.0  # at most, of the seconds a batch takes, for all that go first while it waits


@dataclass(frozen=True)
class Terms:
    """Of one request. `flow`: what has a share of its own; `deadline`: when it is of no use any more."""

    flow: Hashable = ""
    priority: Priority = "normal"
    deadline: float = math.inf


class Waits(Protocol):
    @property
    def terms(self) -> Terms: ...

    @property
    def since(self) -> float:
        """Time it has been waiting from."""

    @property
    def seconds(self) -> float:
        """Of work."""


W = TypeVar("W", bound=Waits)


class Order:
    """For one thread at a time."""

    def __init__(self) -> None:
        self._now = 0.0  # virtual: the start of what was taken last
        self._ends: dict[
            Hashable, float
        ] = {}  # virtual time that a flow has been served to, where that is ahead

    def arrange(self, waiting: Sequence[W], now: float, ahead: float = 0.0) -> list[W]:
        """All of `waiting`, which is in order of arrival, the one to take next first. `ahead`: seconds until
        one can be taken.
        """
        classes: dict[tuple[int, bool], list[W]] = {}
        for one in waiting:
            fresh = now - one.since < LATE_SECONDS
            late = fresh and now + ahead + one.seconds > one.terms.deadline
            classes.setdefault((_rank(one, now), late), []).append(one)
        order: list[W] = []
        for rank, late in sorted(classes):
            begin = now + ahead + sum(one.seconds for one in order)
            fairly = self._fairly(classes[rank, late])
            order += fairly if late else _in_time(fairly, begin)
        return order

    def take(self, batch: Sequence[Waits], idle: bool = False) -> None:
        """These run now: their flows are charged. `idle`: nothing else waits, so nobody stays ahead."""
        for one in batch:
            flow = one.terms.flow
            start = max(self._now, self._ends.get(flow, 0.0))
            self._ends[flow] = start + one.seconds
        if batch:
            first = batch[0]
            self._now = max(self._now, self._ends[first.terms.flow] - first.seconds)
        if idle:
            self._now = max([self._now, *self._ends.values()])
        self._ends = {flow: end for flow, end in self._ends.items() if end > self._now}

    def _fairly(self, waiting: Sequence[W]) -> list[W]:
        """By virtual start: the least served flow's oldest first; of equals, who came first."""
        ends, starts = dict(self._ends), []
        for number, one in enumerate(waiting):
            start = max(self._now, ends.get(one.terms.flow, 0.0))
            ends[one.terms.flow] = start + one.seconds
            starts.append((start, number))
        return [waiting[number] for _, number in sorted(starts)]


@dataclass
class Started:
    """A batch between two of its steps."""

    batch: Sequence[Waits]
    paused: float = 0.0  # seconds it has waited for others since it began


def can_wait(started: Started, seconds: float, left: float, needs: float) -> bool:
    """Whether a batch that takes `seconds`, of which `left` are left, may wait for what needs as many: much
    less than what is left, and in all it does not wait longer than it takes.
    """
    return needs <= SHORT_SHARE * left and started.paused + needs <= PAUSED_SHARE * seconds


def gives_way(started: Started, seconds: float, left: float, batch: Sequence[Waits], now: float) -> bool:
    """Whether it should wait until `batch` has run, which is of no lower priority and makes nobody late."""
    needs, end = sum(one.seconds for one in batch), now + left
    return (
        can_wait(started, seconds, left, needs)
        and max(_rank(one, now) for one in batch) <= min(_rank(one, now) for one in started.batch)
        and not any(end <= one.terms.deadline < end + needs for one in started.batch)
    )


def _rank(one: Waits, now: float) -> int:
    """0 is taken first."""
    return max(0, PRIORITIES.index(one.terms.priority) - int((now - one.since) // AGE_SECONDS))


def _in_time(order: list[W], begin: float) -> list[W]:
    """The order with those that would be late moved forward, as little as it takes, where nobody else becomes
    late.
    """
    times = list(accumulate((one.seconds for one in order), initial=begin))  # each one's start, and the end
    for place, late in enumerate(order):
        if times[place + 1] <= late.terms.deadline:
            continue
        for to in range(place - 1, -1, -1):
            if times[to + 1] <= order[to].terms.deadline < times[to + 1] + late.seconds:
                break  # it would be late then
            if times[to] + late.seconds <= late.terms.deadline:
                order.insert(to, order.pop(place))
                moved = (one.seconds for one in order[to : place + 1])
                times[to : place + 2] = accumulate(moved, initial=times[to])
                break
    return order
