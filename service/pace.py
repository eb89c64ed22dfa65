"""What denoising costs, learnt while it runs: how long work will take, and how many requests to denoise
together.
"""

import math
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

KEPT = 9  # measurements of a shape and batch size; their median counts: a compilation or a hiccup does not
KEPT_SHAPES = 256
FORGET_SECONDS = 600.0  # then a batch size is tried again
LEAST_GAIN = 0.97  # a larger batch has to take less than this share of the effort per request


@dataclass(frozen=True)
class Work:
    """`steps` steps whose seconds depend on `shape` and the size of the batch."""

    shape: Hashable
    steps: int


def _latest() -> deque[float]:
    return deque(maxlen=KEPT)


@dataclass
class _Learnt:
    seconds: deque[float] = field(default_factory=_latest)  # of a step
    effort: deque[float] = field(default_factory=_latest)  # of a step
    rest: deque[float] = field(
        default_factory=_latest
    )  # seconds of a batch that are not steps: text, decoding
    at: float = 0.0
    whole: bool = False  # a batch has ended
    tried: bool = False  # and another one begun


class Pace:
    """Learns shapes and batch sizes. Callers see to it that one thread at a time is inside.

    Effort is what batch sizes are compared by: seconds of computing. On a CPU that several processes share,
    seconds of the clock tell more about the others. The first batch of a size also pays for what is made for
    it once, a compilation beside it or memory: it counts only until there is a second one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._learnt: OrderedDict[tuple[Hashable, int], _Learnt] = OrderedDict()
        self._turns = _latest()

    @property
    def knows_anything(self) -> bool:
        return bool(self._learnt)

    @property
    def shapes(self) -> set[Hashable]:
        return {shape for shape, _ in self._learnt}

    def learn_step(self, shape: Hashable, size: int, seconds: float, effort: float) -> None:
        """A step of a batch of `size` requests took `seconds`, and `effort` seconds of computing."""
        entry = self._learnt.get((shape, size)) or _Learnt()
        if entry.whole and not entry.tried:
            entry = _Learnt(whole=True, tried=True)
        self._learnt[shape, size] = entry
        entry.seconds.append(seconds)
        entry.effort.append(effort)
        entry.at = self._clock()
        self._learnt.move_to_end((shape, size))
        if len(self._learnt) > KEPT_SHAPES:
            self._learnt.popitem(last=False)

    def learn_whole(self, work: Work, size: int, seconds: float) -> None:
        """A whole batch took `seconds`."""
        if (entry := self._learnt.get((work.shape, size))) is not None:
            entry.whole = True
            entry.rest.append(max(0.0, seconds - work.steps * statistics.median(entry.seconds)))

    def learn_turn(self, seconds: float) -> None:
        """A batch that was ready waited for its turn on the cores."""
        self._turns.append(seconds)

    @property
    def turn(self) -> float:
        """Seconds a batch waits for its turn."""
        return statistics.median(self._turns or [0.0])

    def seconds(self, work: Work, size: int, done: int = 0) -> float:
        """Of a batch of `size` requests like `work`, of whose steps `done` are done.

        What was not measured yet is taken from the next known size of the shape, in proportion, or from the
        shape that ran last. Raises LookupError when nothing ran yet.
        """
        entry, known_size = self._nearest(work.shape, size)
        rest = statistics.median(entry.rest or [0.0])
        return size / known_size * (statistics.median(entry.seconds) * (work.steps - done) + rest)

    def best_size(self, shape: Hashable, most: int) -> int:
        """How many of `most` requests of a shape to denoise together: all, if that was not tried lately, else
        as many as take the least effort each.
        """
        known = [size for size in range(1, most + 1) if self.tried(shape, size)]
        if most not in known:
            return most
        best = known[0]
        for size in known[1:]:
            if self._each(shape, size) < LEAST_GAIN * self._each(shape, best):
                best = size
        return best

    def saved(self, work: Work) -> float:
        """Seconds less that two together take than one after the other; infinite while that was not tried, 0
        while nothing is known of one.
        """
        if not self.tried(work.shape, 1):
            return 0.0
        if not self.tried(work.shape, 2):
            return math.inf
        share = 1 - self._each(work.shape, 2) / self._each(work.shape, 1)
        return share * 2 * self.seconds(work, 1) if share > 1 - LEAST_GAIN else 0.0

    def _each(self, shape: Hashable, size: int) -> float:
        return statistics.median(self._learnt[shape, size].effort) / size

    def tried(self, shape: Hashable, size: int) -> bool:
        """Whether more than a first batch of `size` ran lately."""
        entry = self._learnt.get((shape, size))
        return entry is not None and entry.tried and self._clock() - entry.at < FORGET_SECONDS

    def _nearest(self, shape: Hashable, size: int) -> tuple[_Learnt, int]:
        sizes = [known_size for known, known_size in self._learnt if known == shape]
        if not sizes:
            (_, known_size), entry = next(reversed(self._learnt.items()), ((None, 0), None))
            if entry is None:
                raise LookupError("nothing ran yet")
            return entry, known_size
        nearest = min(sizes, key=lambda known_size: abs(known_size - size))
        return self._learnt[shape, nearest], nearest
