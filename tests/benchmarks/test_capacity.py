"""The simulated cluster: it counts right, ends every request once; its tables are the document's."""

import dataclasses
import math
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import capacity, scheduling
from benchmarks.capacity import SCALING, compare, turns
from benchmarks.cluster_report import DEPLOYED, DOCUMENT, LOADS, WAITS, filled, latest_results, tables
from benchmarks.cluster_scaled import Autoscaler, Scaler, read_scalers
from benchmarks.cluster_simulated import DONE, LOST, STAGES, Cluster, Request, Simulation
from service.order import Terms
from service.router import DRAWN

ALONE = {"first_frame": 2.0, "video": 5.0}
TIMES = {
    stage: {("usual", size): alone * size * (1 if size == 1 else 0.8) for size in (1, 2, 3, 4)}
    for stage, alone in ALONE.items()
}


def asked(count, rate, jobs=0.5, seed=1, uploaded=False):
    rng, now, made = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        category, job = rng.choice("abc"), rng.random() < jobs
        terms = Terms(category, "normal", math.inf if job else now + 600)
        made.append(Request(now, "usual", category, 0, job, uploaded, terms))
    return made


def run(cluster, requests):
    simulation = Simulation(cluster, requests, seed=2)
    simulation.run()
    return simulation


@settings(max_examples=15, deadline=None)
@given(
    runners=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    gateways=st.integers(1, 4),
    load=st.floats(0.4, 3.0),
    limits=st.fixed_dictionaries(
        {"queue_size": st.integers(1, 8), "max_in_flight": st.integers(1, 20)}
        | {"job_concurrency": st.integers(1, 9), "max_queued_jobs": st.integers(1, 50)}
    ),
    mtbf=st.sampled_from([math.inf, 60.0, 600.0]),
    scaled=st.booleans(),
    steps=st.sampled_from([1, 10]),
)
def test_every_request_ends_once(runners, gateways, load, limits, mtbf, scaled, steps):
    """That none ends twice is asserted where they end."""
    scaler = Scaler({"queued": 20.0, "busy": 0.7}, 1, 5, 100, 60, 1, 30, 60)
    requests = asked(150, load * runners[1] / ALONE["video"])
    simulation = run(
        Cluster(
            TIMES, dict(zip(STAGES, runners, strict=True)), {"usual": steps}, gateways, start_seconds=40,
            restart_seconds=20, mtbf_seconds=mtbf, look_seconds=5, **limits,
            scalers=dict.fromkeys(STAGES, scaler) if scaled else {},
        ),
        requests,
    )  # fmt: skip
    assert all(one.outcome and one.end >= one.at for one in requests)
    assert not any(one.job and one.outcome == LOST for one in requests)
    for pool in simulation.pools.values():
        assert not any(runner.begun or runner.waiting for runner in pool.runners.values())
    shortest = sum(ALONE.values())
    assert all(one.end - one.at >= shortest - 1e-6 for one in requests if one.outcome == DONE)


def test_one_runner_waits_as_the_formula_says():
    """M/D/1: requests of fixed seconds that come at Poisson's moments wait load * seconds / 2 (1 - load);
    and exactly as the same ones do one after the other, whoever of them goes first.
    """
    load, seconds = 0.6, ALONE["video"]
    requests = asked(4000, load / seconds, jobs=0.0, seed=2, uploaded=True)
    run(Cluster(TIMES, dict.fromkeys(STAGES, 1), gateways=1, max_batch=1, look_seconds=0), requests)
    assert Counter(one.outcome for one in requests) == {DONE: 4000}
    waited, free, by_hand = sum(one.waited for one in requests), 0.0, 0.0
    for one in requests:
        by_hand += max(0.0, free - one.at)
        free = max(free, one.at) + seconds
    assert waited == pytest.approx(by_hand)
    assert waited / 4000 == pytest.approx(load * seconds / (2 * (1 - load)), rel=0.05)


@pytest.mark.parametrize(("steps", "ends"), [({}, [10.0, 11.0]), ({"long": 10}, [11.0, 4.0])])
def test_a_long_batch_waits_after_its_third_step(steps, ends):
    times = {("long", 1): 10.0, ("short", 1): 1.0}
    requests = [Request(at, kind, "a", 0, uploaded=True) for at, kind in ((0.0, "long"), (2.5, "short"))]
    run(Cluster(dict.fromkeys(STAGES, times), dict.fromkeys(STAGES, 1), steps, 1, max_batch=1), requests)
    assert [one.end for one in requests] == pytest.approx(ends)
    assert sum(one.waited for one in requests) == pytest.approx(sum(ends) - 2.5 - 11.0)


def test_one_runner_does_what_the_simulation_of_one_does(monkeypatch):
    monkeypatch.setattr(scheduling, "MAX_BATCH", 1)
    times = {("short", 1): 1.0, ("long", 1): 15.0}
    alone = scheduling.arrivals(400, 0.9, times, seed=1)
    for one in alone:
        one.terms = dataclasses.replace(one.terms, deadline=math.inf)
    scheduling.simulate(alone, scheduling.Policies(times).ours(), times)
    requests = [
        Request(one.since, one.kind, one.category, one.key, uploaded=True, terms=one.terms) for one in alone
    ]
    limits = {"max_batch": 1, "look_seconds": 0, "queue_size": 400, "max_in_flight": 400}
    runners = dict.fromkeys(STAGES, 1)
    run(Cluster(dict.fromkeys(STAGES, times), runners, scheduling.STEPS, 1, **limits), requests)
    assert [one.end for one in requests] == pytest.approx([one.end for one in alone])


def test_it_is_the_same_every_time():
    ends = [[one.end for one in run(Cluster(TIMES, {"first_frame": 2, "video": 4}), asked(300, 0.6)).requests]
            for _ in range(2)]  # fmt: skip
    assert ends[0] == ends[1]


def test_a_gateway_that_knows_less_makes_them_wait_longer():
    def mean(**options):
        requests = asked(400, 0.7 * 40 / ALONE["video"], jobs=0)
        runners = {"first_frame": 20, "video": 40}
        run(Cluster(TIMES, runners, max_in_flight=10**6, **options), requests)
        return sum(one.end - one.at for one in requests) / len(requests)

    assert mean(gateways=1, look_seconds=0, drawn=40) < mean(gateways=8) < mean(gateways=8, look_seconds=30)


class TestAutoscaler:
    SCALER = Scaler({"queued": 20.0}, 1, 64, 100, 60, 1, 120, 600)

    def advice(self, scaler, queued, current=4, step=15.0):
        """Pods after each look; they are there at once."""
        autoscaler, told = Autoscaler(scaler), []
        for number, one in enumerate(queued):
            current = autoscaler.advise(number * step, current, {"queued": one, "busy": 0.0})
            told.append(current)
        return told

    def test_it_divides_by_the_target_and_doubles_at_most_each_minute(self):
        assert self.advice(self.SCALER, [101.0] * 3) == [6, 6, 6]
        assert self.advice(self.SCALER, [1000.0] * 6) == [8, 8, 8, 8, 16, 16]
        assert self.advice(self.SCALER, [87.9]) == [4], "a tenth more than the target changes nothing"

    def test_it_takes_one_away_after_ten_minutes_and_then_one_each_two_minutes(self):
        told = self.advice(self.SCALER, [80.0] + [0.0] * 60)
        assert told[:40] == [4] * 40
        assert told[40:] == [3] * 8 + [2] * 8 + [1] * 5

    def test_the_higher_of_two_metrics_counts(self):
        both = Scaler({"queued": 20.0, "busy": 0.7}, 1, 64, 100, 60, 1, 120, 600)
        assert Autoscaler(both).advise(0.0, 4, {"queued": 0.0, "busy": 4.1}) == 6

    def test_the_manifests_are_read(self):
        scalers = read_scalers(SCALING)
        assert set(scalers) == set(STAGES)
        assert scalers["video"] == Scaler({"queued": 20.0, "busy": 0.7}, 1, 64, 100, 60, 1, 120, 600)

    def test_a_trigger_that_is_not_simulated_is_refused(self, tmp_path):
        (tmp_path / "scaling.yaml").write_text(SCALING.read_text().replace("huvidpo_step_seconds_sum", "up"))
        with pytest.raises(ValueError, match="got the trigger 'sum"):
            read_scalers(tmp_path / "scaling.yaml")


def test_turns_are_counted():
    assert turns([(0, 4), (15, 4), (30, 6), (45, 5), (900, 5), (915, 6), (930, 7)]) == (2, 1)
    assert turns([(0, 4), (15, 5), (30, 6)]) == (0, 0)


def test_what_is_deployed_does_not_flap_in_the_latest_results():
    """And is what was simulated. That the counter counts, and that the cure is none of standing still, say
    the rows beside it.
    """
    results = latest_results()
    deployed = {stage: dataclasses.asdict(one) for stage, one in read_scalers(SCALING).items()}
    assert results["inputs"]["scalers"] == deployed, "run benchmarks.capacity again"
    rows = {(row["trace"], row["policy"], row["start_seconds"]): row for row in results["scaling"]}
    for trace, start in (("constant", 120.0), ("day", 120.0), ("day", 420.0)):
        row, waits = rows[trace, DEPLOYED, start], rows[trace, WAITS, 120.0]
        assert row["turns_in_10_min"] <= 4
        assert row["in_time"] > waits["in_time"] + 0.05
        assert waits["turns_in_10_min"] > 10
    day = rows["day", DEPLOYED, 120.0]
    assert day["most_pods"] > 2 * day["least_pods"]


def test_the_simulated_cluster_is_near_the_served_one_in_the_latest_results():
    """And is the one that was compared. One whose gateways choose blindly is far from it."""
    results = latest_results()
    rows, wrong = compare(results["served"]), compare(results["served"], drawn=1)
    assert rows == results["validation"], "run benchmarks.capacity again"
    for name in ("total, mean", "total, p50", "total, p95"):
        assert abs(rows[name]["error"]) < 0.1 * rows[name]["served"]
        assert abs(wrong[name]["error"]) > 2 * abs(rows[name]["error"])


def test_the_document_has_the_tables_of_the_latest_results():
    document, made = DOCUMENT.read_text(encoding="utf-8"), tables(latest_results())
    assert filled(document, made) == document
    assert set(re.findall(r"<!-- (\w+) -->", document)) == set(made)


def test_a_table_without_a_place_is_said():
    with pytest.raises(ValueError, match="has no place for the table 'sizes'"):
        filled("# Nothing here\n", {"sizes": "| |"})


def test_sizes_are_near_linear_in_the_latest_results():
    rows = latest_results()["sizes"]
    assert {row["video"] for row in rows} == set(capacity.SIZES)
    assert min(row["of_linear"] for row in rows) >= 0.95


def test_the_best_of_some_that_are_drawn_beats_the_best_of_all_in_the_latest_results():
    rows = {(row["drawn"], row["load"]): row for row in latest_results()["drawing"]}
    assert {drawn for drawn, _ in rows} > {1, DRAWN, 100}
    for load in LOADS[1:]:
        for other in (1, 100):
            assert rows[DRAWN, load]["p95"] < rows[other, load]["p95"]
