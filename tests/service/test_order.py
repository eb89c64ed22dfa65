"""The order of a runner's queue: fair, by priority, in time; nobody waits for ever."""

import math
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.order import AGE_SECONDS, LATE_SECONDS, PRIORITIES, Order, Started, Terms, gives_way


@dataclass(eq=False)
class One:
    name: str = ""
    seconds: float = 1.0
    since: float = 0.0
    terms: Terms = Terms()  # noqa: RUF009


def one(flow="", seconds=1.0, since=0.0, priority="normal", deadline=math.inf, name=""):
    return One(name, seconds, since, Terms(flow, priority, deadline))


def served(order, waiting, count, now=0.0):
    """What is taken, one after the other."""
    waiting, taken = list(waiting), []
    for _ in range(count):
        first = order.arrange(waiting, now)[0]
        order.take([first])
        waiting.remove(first)
        taken.append(first)
    return taken


def test_a_flow_with_much_to_do_does_not_hold_up_the_others():
    many, one_more = [one("a") for _ in range(50)], one("b")
    order = Order()
    served(order, many, 10)
    assert order.arrange([*many[10:], one_more], 0)[0] is one_more


def test_shares_are_of_seconds_not_of_requests():
    waiting = [one("long", 4.0) for _ in range(50)] + [one("short", 1.0) for _ in range(50)]
    seconds = Counter()
    for taken in served(Order(), waiting, 40):
        seconds[taken.terms.flow] += taken.seconds
    assert abs(seconds["long"] - seconds["short"]) <= 4.0


def test_a_flow_that_was_idle_saves_nothing_up():
    order = Order()
    served(order, [one("a") for _ in range(100)], 100)
    waiting = [one("a") for _ in range(10)] + [one("b") for _ in range(10)]
    flows = [taken.terms.flow for taken in served(order, waiting, 10)]
    assert flows.count("a") >= 4


def test_higher_priorities_go_first_until_the_others_have_waited_long():
    low, normal, high = one("l", priority="low"), one("n"), one("h", priority="high")
    order = Order()
    assert order.arrange([low, normal, high], 1.0) == [high, normal, low]
    fresh = one("f", since=2 * AGE_SECONDS, priority="high")
    assert order.arrange([low, fresh], 2 * AGE_SECONDS) == [low, fresh]  # equal by now: it came first


def test_what_would_be_late_goes_forward_where_nobody_else_becomes_late():
    slow, urgent = one("a", 5.0, name="slow"), one("b", 1.0, deadline=3.0, name="urgent")
    assert [x.name for x in Order().arrange([slow, urgent], 0.0)] == ["urgent", "slow"]
    strict = one("a", 5.0, deadline=5.5, name="strict")
    assert [x.name for x in Order().arrange([strict, urgent], 0.0)] == ["strict", "urgent"]
    hopeless = one("b", 1.0, deadline=0.5, name="hopeless")  # nothing is gained by going first
    assert [x.name for x in Order().arrange([slow, hopeless], 0.0)] == ["slow", "hopeless"]
    assert [x.name for x in Order().arrange([slow, urgent], 0.0, ahead=2.5)] == ["slow", "urgent"]


requests = st.builds(
    one,
    flow=st.sampled_from("abc"),
    seconds=st.floats(0, 10),
    since=st.floats(0, 100),
    priority=st.sampled_from(PRIORITIES),
    deadline=st.one_of(st.just(math.inf), st.floats(0, 200)),
)


@given(st.lists(requests, max_size=12), st.floats(100, 200), st.floats(0, 10))
def test_nothing_is_lost_and_no_rescue_makes_another_late(waiting, now, ahead):
    order = Order()
    arranged = order.arrange(waiting, now, ahead)
    assert sorted(map(id, arranged)) == sorted(map(id, waiting))
    assert order.arrange(waiting, now, ahead) == arranged  # looking changes nothing
    plain = Order().arrange([one_without_deadline(x) for x in waiting], now, ahead)
    late, late_plainly = lateness(arranged, now + ahead), lateness([x.origin for x in plain], now + ahead)
    assert late <= late_plainly


def one_without_deadline(x):
    copy = one(x.terms.flow, x.seconds, x.since, x.terms.priority)
    copy.origin = x
    return copy


def lateness(order, begin):
    """Who ends after its deadline."""
    late, end = set(), begin
    for x in order:
        end += x.seconds
        if end > x.terms.deadline:
            late.add(id(x))
    return late


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.1, 5)), min_size=30, max_size=80))
def test_backlogged_flows_differ_by_no_more_than_a_request_of_each(work):
    waiting = [one(flow, seconds) for flow, seconds in work]
    largest = {flow: max(s for f, s in work if f == flow) for flow, _ in work}
    order, seconds = Order(), Counter()
    left = list(waiting)
    while {x.terms.flow for x in left} == set(largest):  # all are backlogged
        first = order.arrange(left, 0.0)[0]
        order.take([first])
        left.remove(first)
        seconds[first.terms.flow] += first.seconds
        for a in largest:
            for b in largest:
                assert abs(seconds[a] - seconds[b]) <= largest[a] + largest[b] + 1e-6


@pytest.mark.parametrize("deadline", [math.inf, 5.0], ids=["unhurried", "late"])
@pytest.mark.parametrize("priority", PRIORITIES)
def test_everybody_has_a_turn(priority, deadline):
    """Beside others of the highest priority, of flows of their own, that never end."""
    order, patient, now = Order(), one("patient", priority=priority, deadline=deadline), 0.0
    while True:
        fresh = [one(("new", now, i), since=now, priority="high") for i in range(3)]
        first = order.arrange([patient, *fresh], now)[0]
        order.take([first])
        if first is patient:
            break
        now += first.seconds
        assert now <= (2 * AGE_SECONDS if deadline == math.inf else LATE_SECONDS) + 2


def test_what_is_remembered_is_bounded():
    order = Order()
    for number in range(1000):
        order.take([one(("flow", number))], idle=True)
    assert not order._ends


@pytest.mark.parametrize(
    ("between", "paused", "deadline", "gives"),
    [
        (one("b", 4.0), 0, math.inf, True),
        (one("b", 4.1), 0, math.inf, False),  # more than half of what is left
        (one("b", 4.0, priority="low"), 0, math.inf, False),
        (one("b", 4.0, priority="high"), 0, math.inf, True),
        (one("b", 4.0), 6.0, math.inf, True),
        (one("b", 4.0), 6.1, math.inf, False),  # it has waited for as long as it takes
        (one("b", 4.0), 0, 11.9, False),  # it would be late
        (one("b", 4.0), 0, 12.0, True),
        (one("b", 4.0), 0, 7.9, True),  # it is late in any case
    ],
)
def test_when_a_batch_gives_way(between, paused, deadline, gives):
    """It takes ten seconds, of which eight are left."""
    started = Started([one("a", 10.0, deadline=deadline)], paused)
    assert gives_way(started, 10.0, 8.0, [between], now=0.0) is gives
