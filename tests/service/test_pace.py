"""What is learnt of steps, with a clock that the tests move."""

import math

import pytest

from service.pace import FORGET_SECONDS, Pace, Work

WORK = Work("wide", steps=10)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    return Pace(clock)


def learn(pace, size, seconds, effort=None, shape="wide"):
    pace.learn_step(shape, size, seconds, seconds if effort is None else effort)


def learn_again(pace, size, seconds, effort=None):
    """What counts: the second batch of a size."""
    learn(pace, size, seconds, effort)
    pace.learn_whole(WORK, size, 0.0)
    learn(pace, size, seconds, effort)


def test_seconds_are_steps_and_the_rest(pace):
    learn(pace, 1, 0.5)
    pace.learn_whole(WORK, 1, 6.0)  # 5 of them in steps
    assert pace.seconds(WORK, 1) == pytest.approx(6.0)
    assert pace.seconds(WORK, 1, done=8) == pytest.approx(2.0)
    assert pace.seconds(Work("wide", 20), 1) == pytest.approx(11.0)


def test_one_slow_step_counts_for_nothing(pace):
    for seconds in (0.5, 0.5, 20.0):
        learn(pace, 1, seconds)
    assert pace.seconds(WORK, 1) == pytest.approx(5.0)


def test_the_unknown_is_taken_from_what_is_near(pace):
    with pytest.raises(LookupError):
        pace.seconds(WORK, 1)
    learn(pace, 2, 0.6)
    assert pace.seconds(WORK, 4) == pytest.approx(12.0)
    assert pace.seconds(Work("never seen", 10), 1) == pytest.approx(3.0)


def test_batches_are_as_large_as_pays(pace):
    assert pace.best_size("wide", 4) == 4  # not tried yet
    for size, effort in {1: 1.0, 2: 1.6, 3: 2.3, 4: 4.0}.items():
        learn_again(pace, size, effort)
    assert pace.best_size("wide", 4) == 3  # .77 each; 1.0 in fours
    assert pace.best_size("wide", 2) == 2
    assert pace.best_size("wide", 1) == 1
    assert pace.saved(WORK) == pytest.approx(4.0)  # of twice 10 s


def test_a_shape_that_gains_nothing_is_not_batched(pace):
    assert pace.saved(WORK) == 0  # of nothing
    learn_again(pace, 1, 1.02)
    assert pace.saved(WORK) == math.inf  # it is worth a try
    for size in (2, 3, 4):
        learn_again(pace, size, 1.02 * size)
    assert pace.best_size("wide", 4) == 1
    assert pace.saved(WORK) == 0


def test_the_first_batch_of_a_size_is_no_verdict(pace):
    """It computed thrice as long as any later one, by what was compiled meanwhile."""
    learn_again(pace, 1, 1.0)
    for seconds in (3.0, 2.0, 4.0):
        learn(pace, 2, seconds)
    pace.learn_whole(WORK, 2, 30.0)
    assert pace.best_size("wide", 2) == 2
    assert pace.seconds(WORK, 2) == pytest.approx(30.0)  # all there is
    learn(pace, 2, 1.2)
    assert pace.best_size("wide", 2) == 2
    assert pace.seconds(WORK, 2) == pytest.approx(12.0)
    assert pace.saved(WORK) == pytest.approx(8.0)


def test_a_neighbour_on_the_cores_changes_no_choice(pace):
    """Alone a step of one takes 1 s; the batch met a neighbour and took thrice as long as it computed."""
    learn_again(pace, 1, seconds=1.0, effort=1.0)
    learn_again(pace, 4, seconds=9.0, effort=3.0)
    assert pace.best_size("wide", 4) == 4


def test_old_findings_are_tried_again(pace, clock):
    for size in (1, 2):
        learn_again(pace, size, 1.0 * size)
    assert pace.best_size("wide", 2) == 1
    clock.now += FORGET_SECONDS
    assert pace.best_size("wide", 2) == 2
