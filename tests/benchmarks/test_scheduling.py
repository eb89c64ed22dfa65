"""The simulation of scheduling: it counts right, and nobody wins by cheating."""

import math

import pytest

from benchmarks import scheduling
from benchmarks.scheduling import LONG, MAX_BATCH, SHORT, Policies, Policy, arrivals, judge, simulate

TIMES = {
    (kind, size): alone * size * (1 if size == 1 else 0.85)
    for kind, alone in ((SHORT, 0.2), (LONG, 0.8))
    for size in range(1, MAX_BATCH + 1)
}


def run(policy, load=0.75, count=1500):
    return simulate(arrivals(count, load, TIMES, 1), policy, TIMES)


@pytest.fixture(scope="module")
def fifo():
    return judge(run(Policies(TIMES).fifo()))


@pytest.fixture(scope="module")
def ours():
    return judge(run(Policies(TIMES).ours()))


def test_one_after_the_other_is_as_computed_by_hand():
    requests = run(Policies(TIMES).fifo(), count=50)
    free = 0.0
    for one in requests:
        free = max(free, one.since) + one.alone
        assert one.end == pytest.approx(free)


def test_all_that_is_asked_for_is_served(ours):
    assert ours["longest"] < math.inf
    assert ours["jain_served"] == pytest.approx(1)


def test_ours_has_more_in_time_for_everybody(fifo, ours):
    assert ours["in_time"] > fifo["in_time"] + 0.3
    assert ours["in_time_least"] > fifo["in_time_least"] + 0.2
    assert ours["jain_in_time"] > 0.95


def longest_pause(policy):
    """Of any batch, in times of what it takes; short clips come all the time."""
    paused = []

    def between(running, waiting, now):
        paused.append(running.paused / running.seconds)
        return policy.between(running, waiting, now)

    requests = run(Policy(policy.choose, between), load=1.0)
    assert all(one.end < math.inf for one in requests)
    return max(paused)


def test_no_batch_waits_for_others_longer_than_it_takes():
    assert 0.5 < longest_pause(Policies(TIMES).ours()) <= 1


def test_who_lets_every_short_clip_go_between_is_found_out():
    def between(running, waiting, now):
        return [one for one in waiting if running.batch[0].kind == LONG and one.kind == SHORT][:1]

    assert longest_pause(Policy(Policies(TIMES).ours().choose, between)) > 2


def test_nobody_sees_what_has_not_come():
    def choose(waiting, now):
        assert all(one.since <= now for one in waiting)
        return waiting[:1], math.inf

    run(Policy(choose), count=300)


def test_who_drops_long_requests_is_found_out():
    """It has more of the short ones in time, and of the long ones none, which count."""

    def choose(waiting, now):
        batch = [one for one in waiting if one.kind == SHORT][:1]
        return batch, math.inf

    cheat = judge(run(Policy(choose)))
    assert cheat["longest"] == math.inf
    assert cheat["in_time_least"] == 0
    assert cheat["jain_served"] < 0.95


def test_who_serves_one_key_first_is_found_out():
    def choose(waiting, now):
        return sorted(waiting, key=lambda one: (one.key != 3, one.since))[:1], math.inf

    cheat, honest = judge(run(Policy(choose), 1.2, 600)), judge(run(Policies(TIMES).ours(), 1.2, 600))
    assert cheat["jain_in_time"] < honest["jain_in_time"]
    assert cheat["jain_in_time"] < 0.95


def test_who_idles_gains_nothing():
    def choose(waiting, now):
        return ([], waiting[0].since + 1) if now < waiting[0].since + 1 else (waiting[:1], math.inf)

    assert judge(run(Policy(choose), count=500))["in_time"] < 0.1


def test_the_load_is_where_fifo_has_half_in_time():
    load = scheduling.find_load(TIMES, 2000)
    found = judge(simulate(arrivals(2000, load, TIMES, 0), Policies(TIMES).fifo(), TIMES))
    assert 0.5 <= found["in_time"] <= 0.65
