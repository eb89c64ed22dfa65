import dataclasses
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huvidpo.files import hash_file
from preferences.pairs import (
    LEAST_SPREAD,
    RankedClip,
    agreement,
    by_segment,
    check_files,
    make_pairs,
    normalise,
    rank,
    scores_by_clip,
)
from preferences.records import (
    CRITERIA,
    Comparison,
    PreferencesError,
    Rating,
    SegmentComparison,
    append,
    read_records,
)

HASH = "0" * 64


def rating(rater: str, clip: str, score: float | None, category: str = "horse", **changes) -> Rating:
    fields = {"clip": clip, "sha256": HASH, "prompt": f"prompt of {clip}"} | changes
    return Rating(rater=rater, category=category, score=score, **fields)


def comparison(clip_a: str, clip_b: str, answer: str, rater: str = "ann", category: str = "horse"):
    clips = {"clip_a": clip_a, "sha256_a": HASH, "clip_b": clip_b, "sha256_b": HASH}
    return Comparison(rater=rater, category=category, answer=answer, **clips)


def by_score(*scores: float) -> list[Rating]:
    return [rating("ann", f"{i}.mp4", score) for i, score in enumerate(scores)]


def ranked(strengths, category: str = "horse") -> list[RankedClip]:
    return [
        RankedClip(f"{category}{i}.mp4", HASH, f"prompt {i // 2}", category, s, None, 1)
        for i, s in enumerate(strengths)
    ]


# Normalisation


@given(
    scores=st.lists(st.floats(0, 10), min_size=2, max_size=8),
    scale=st.floats(0.1, 0.5),
    offset=st.floats(0, 5),
)
@settings(deadline=None)
def test_a_raters_offset_and_scale_go_away(scores, scale, offset):
    mine = [rating("ann", f"{i}.mp4", s) for i, s in enumerate(scores)]
    theirs = [rating("bob", f"{i}.mp4", scale * s + offset) for i, s in enumerate(scores)]
    if scale * np.std(scores) > LEAST_SPREAD:
        normal = normalise(mine + theirs)
        for i in range(len(scores)):
            assert normal["ann", f"{i}.mp4"] == pytest.approx(normal["bob", f"{i}.mp4"], abs=1e-6)


def test_normalised_scores_by_hand():
    records = [rating("ann", "0.mp4", 2), rating("ann", "1.mp4", 6), rating("ann", "r.mp4", 9, "rain")]
    assert normalise(records) == {("ann", "0.mp4"): -1, ("ann", "1.mp4"): 1, ("ann", "r.mp4"): 0}


def test_a_hairs_breadth_is_no_strong_preference():
    """Two clips at 5.00 and 5.01 were two standard deviations apart: as sure as 1 and 9."""
    hair = normalise(by_score(5.0, 5.01))
    assert hair == {("ann", "0.mp4"): pytest.approx(-0.02), ("ann", "1.mp4"): pytest.approx(0.02)}
    with pytest.raises(PreferencesError, match="make no pair"):
        make_pairs(rank(by_score(5.0, 5.01)), holdout=0)
    near, far = (make_pairs(rank(by_score(*scores)), holdout=0) for scores in ((5.0, 5.4), (1.0, 9.0)))
    assert [len(pairs.train) for pairs in (near, far)] == [1, 1]
    # beside others, a hair's breadth stays one
    names = {
        (pair.winner, pair.loser) for pair in make_pairs(rank(by_score(1, 5.0, 5.01, 9)), holdout=0).train
    }
    assert names.isdisjoint({("1.mp4", "2.mp4"), ("2.mp4", "1.mp4")})


# Agreement


def test_alpha_is_krippendorffs():
    """The example of Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section E: four
    observers, twelve units, values missing; interval alpha .849.
    """
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    records = [
        rating(f"observer {i}", f"{unit}.mp4", value)
        for i, values in enumerate(observers)
        for unit, value in enumerate(values)
        if value is not None
    ]
    assert agreement(records, normalised=False) == pytest.approx(0.849, abs=5e-4)


def test_alpha_of_raters_who_differ_in_scale_only():
    records = [rating("ann", f"{i}.mp4", i) for i in range(5)]
    records += [rating("bob", f"{i}.mp4", 6 + i / 2) for i in range(5)]
    assert agreement(records) == pytest.approx(1)
    assert agreement(records, normalised=False) < 0.2
    records += [rating("bob", f"{i}.mp4", 6 - i) for i in range(5)]  # bob changes his mind
    assert agreement(records) < 0


def test_alpha_is_none_where_nothing_can_be_said():
    assert agreement([]) is None
    assert agreement([rating("ann", "0.mp4", 3), rating("bob", "1.mp4", 3)]) is None
    assert agreement([rating(rater, f"{i}.mp4", 3) for rater in ("ann", "bob") for i in range(3)]) is None


# Order


def test_bradley_terry_recovers_a_planted_order_from_noisy_choices():
    rng = np.random.default_rng(0)
    planted = np.linspace(2, -2, 8)
    records = []
    for judge in range(60):
        for i, j in combinations(range(8), 2):
            wins = rng.random() < 1 / (1 + np.exp(planted[j] - planted[i]))
            records.append(comparison(f"{i}.mp4", f"{j}.mp4", "a" if wins else "b", f"judge {judge}"))
    order = rank(records)
    assert [clip.clip for clip in order] == [f"{i}.mp4" for i in range(8)]
    assert np.allclose([clip.strength for clip in order], planted, atol=0.3)
    assert order[0].count == 7 * 60
    assert order[0].score is None


@given(scores=st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True))
@settings(deadline=None, max_examples=30)
def test_one_raters_scores_give_that_order_and_its_gaps(scores):
    records = [rating("ann", f"{i}.mp4", s / 10) for i, s in enumerate(scores)]
    order = rank(records)
    assert [clip.score for clip in order] == sorted((s / 10 for s in scores), reverse=True)
    normal = [normalise(records)["ann", clip.clip] for clip in order]
    strengths = [clip.strength for clip in order]
    assert np.corrcoef(normal, strengths)[0, 1] > 0.95
    assert sum(strengths) == pytest.approx(0, abs=1e-6)


def test_scores_and_choices_of_several_raters_join_in_one_order():
    records = [rating("harsh", "0.mp4", 1), rating("harsh", "1.mp4", 2)]
    records += [rating("kind", "1.mp4", 8), rating("kind", "2.mp4", 10)]  # 2 > 1 > 0, though 8 is below 10
    records += [comparison("2.mp4", "3.mp4", "b"), comparison("3.mp4", "2.mp4", "a", "bob")]
    assert [clip.clip for clip in rank(records)] == ["3.mp4", "2.mp4", "1.mp4", "0.mp4"]


def test_a_later_opinion_replaces_an_earlier_one():
    records = [rating("ann", "0.mp4", 9), rating("ann", "1.mp4", 5), rating("ann", "0.mp4", 2)]
    records += [rating("ann", "0.mp4", None, criteria=dict.fromkeys(CRITERIA, 5))]  # no score: not an order
    assert [clip.clip for clip in rank(records)] == ["1.mp4", "0.mp4"]
    assert scores_by_clip(records) == {"0.mp4": 2, "1.mp4": 5}
    assert scores_by_clip(records, "bob") == {}
    choices = [comparison("0.mp4", "1.mp4", "a"), comparison("1.mp4", "0.mp4", "a")]
    assert [clip.clip for clip in rank(choices)] == ["1.mp4", "0.mp4"]


def test_categories_are_ranked_apart():
    records = [rating("ann", "h0.mp4", 9), rating("ann", "h1.mp4", 8)]
    records += [rating("ann", "r0.mp4", 2, "rain"), rating("ann", "r1.mp4", 1, "rain")]
    order = rank(records)
    assert [clip.clip for clip in order] == ["h0.mp4", "h1.mp4", "r0.mp4", "r1.mp4"]
    assert order[0].strength == pytest.approx(order[2].strength)
    pairs = make_pairs(order, holdout=0)
    assert {(pair.winner, pair.loser) for pair in pairs.train} == {("h0.mp4", "h1.mp4"), ("r0.mp4", "r1.mp4")}


def test_a_clip_that_was_replaced_between_ratings_is_refused():
    records = [rating("ann", "0.mp4", 9), rating("bob", "0.mp4", 9, sha256="1" * 64)]
    with pytest.raises(PreferencesError, match=r"0\.mp4"):
        rank(records)


# Pairs


def test_ties_are_dropped_and_weights_follow_the_gap():
    pairs = make_pairs(ranked([1.0, 0.9, -1.0]), tie=0.2, holdout=0)
    assert [(pair.winner, pair.loser) for pair in pairs.train] == [
        ("horse0.mp4", "horse2.mp4"),
        ("horse1.mp4", "horse2.mp4"),
    ]
    assert [pair.weight for pair in pairs.train] == pytest.approx([2 / 1.95, 1.9 / 1.95])
    assert pairs.held_out == pairs.held_out_clips == []


def test_equal_scores_are_no_pair_even_without_a_threshold():
    order = rank([rating("ann", f"{i}.mp4", score) for i, score in enumerate((5, 5, 7))])
    assert len(make_pairs(order, tie=0, holdout=0).train) == 2


@given(
    strengths=st.lists(st.floats(-5, 5), min_size=4, max_size=20, unique_by=lambda x: round(x, 3)),
    rain=st.integers(4, 9),
    holdout=st.floats(0.05, 0.5),
    seed=st.integers(0, 9),
)
@settings(deadline=None)
def test_no_clip_is_both_trained_on_and_held_out(strengths, rain, holdout, seed):
    order = ranked(strengths) + ranked(range(rain), "rain")
    pairs = make_pairs(order, tie=0, holdout=holdout, seed=seed)
    trained, held = set(pairs.train_clips), set(pairs.held_out_clips)
    assert not trained & held
    assert trained | held == {clip.clip for clip in order}
    assert {name for pair in pairs.train for name in (pair.winner, pair.loser)} <= trained
    assert {name for pair in pairs.held_out for name in (pair.winner, pair.loser)} <= held
    assert pairs.held_out
    for group in (pairs.train, pairs.held_out):
        assert np.mean([pair.weight for pair in group]) == pytest.approx(1)
        assert all(pair.winner[0] == pair.loser[0] for pair in group), "one category"
    strength = {clip.clip: clip.strength for clip in order}
    assert all(strength[p.winner] > strength[p.loser] for p in pairs.train + pairs.held_out)
    assert pairs == make_pairs(order, tie=0, holdout=holdout, seed=seed)
    alone = make_pairs(ranked(strengths), tie=0, holdout=holdout, seed=seed)
    assert set(alone.held_out_clips) <= held, "another category changes nothing"


def test_pairs_of_one_prompt():
    pairs = make_pairs(ranked([3, 2, 1, 0]), tie=0, holdout=0, same_prompt=True)
    assert [(pair.winner, pair.loser) for pair in pairs.train] == [
        ("horse0.mp4", "horse1.mp4"),
        ("horse2.mp4", "horse3.mp4"),
    ]


def test_with_same_prompt_whole_prompts_are_held_out():
    order = ranked(range(8))
    for seed in range(5):
        pairs = make_pairs(order, tie=0, holdout=0.25, seed=seed, same_prompt=True)
        assert len(pairs.held_out) == 1
        assert len(pairs.train) == 3
        prompts = {clip.clip: clip.prompt for clip in order}
        held = {prompts[name] for name in pairs.held_out_clips}
        assert not held & {prompts[name] for name in pairs.train_clips}


@pytest.mark.parametrize("seed", range(8))
def test_prompts_whose_clips_are_tied_are_not_held_out(seed: int) -> None:
    """Nothing could be measured on them. Of 8 prompts here 3 have a pair."""
    order = [
        dataclasses.replace(clip, prompt=f"prompt {i // 2}", strength=float(i % 2 if i < 6 else 0))
        for i, clip in enumerate(ranked(range(16)))
    ]
    pairs = make_pairs(order, tie=0.5, holdout=0.25, seed=seed, same_prompt=True)
    assert (len(pairs.held_out), len(pairs.train)) == (1, 2)
    assert len(pairs.held_out_clips) == 2
    with pytest.raises(PreferencesError, match="of all prompts but one the clips are tied"):
        make_pairs(order[4:], tie=0.5, holdout=0.25, seed=seed, same_prompt=True)
    assert len(make_pairs(order[4:], tie=0.5, holdout=0, seed=seed, same_prompt=True).train) == 1


def test_with_same_prompt_and_one_prompt_clips_are_held_out():
    order = [dataclasses.replace(clip, prompt="a horse runs") for clip in ranked(range(8))]
    assert make_pairs(order, same_prompt=True) == make_pairs(order)


def by_segments(clip_a: str, clip_b: str, answer: str, segments: str, rater: str = "ann", **changes):
    """`segments`: a letter each, t a tie."""
    whole = dataclasses.asdict(comparison(clip_a, clip_b, answer, rater))
    parts = [{"a": "a", "b": "b", "t": "tie"}[letter] for letter in segments]
    shape = {"frames": 1 + 2 * len(parts), "segment_frames": 2}
    return SegmentComparison(**whole | shape | {"segments": parts} | changes)


def test_labels_of_segments_are_what_most_say_either_way_round():
    records = [
        by_segments("0", "1", "a", "aabt"),
        by_segments("1", "0", "b", "bbab", rater="bob"),
        by_segments("0", "1", "b", "bbbb", rater="cleo"),
        by_segments("0", "1", "a", "aabb", rater="cleo"),  # thinks again
        comparison("0", "2", "a", category="rain"),
    ]
    found = by_segment(records)
    assert (found.frames, found.segment_frames) == (9, 2)
    assert found.labels == {("0", "1"): (1, 1, -1, 0), ("1", "0"): (-1, -1, 1, 0)}
    assert not by_segment(records[-1:]).labels
    with pytest.raises(PreferencesError, match="9 frames by 2 and 10 frames by 3, and all have to be"):
        by_segment([*records, by_segments("3", "4", "a", "abt", frames=10, segment_frames=3)])


@pytest.mark.parametrize(("one", "other"), [("horse", "horse"), ("horse", ""), ("", "horse")])
def test_segments_and_whole_clips_of_one_category_are_refused_together(one, other):
    """A record that names no category is of any."""
    part = by_segments("0", "1", "a", "ab", category=one)
    for whole in (comparison("2", "3", "a", category=other), rating("ann", "4", 7.0, other)):
        with pytest.raises(PreferencesError, match="by segments and, 1 times, whole clips"):
            by_segment([part, whole])


def test_pairs_by_segments_are_those_that_were_compared_and_differ_somewhere():
    records = [
        by_segments("1", "0", "b", "bbt"),
        by_segments("2", "3", "tie", "abt"),  # a tie as a whole, and yet something to learn
        by_segments("4", "5", "tie", "ttt"),  # say, the same clip twice
    ]
    pairs = make_pairs(rank(records), holdout=0, labels=by_segment(records).labels)
    found = {frozenset((pair.winner, pair.loser)): pair for pair in pairs.train}
    assert found.keys() == {frozenset("01"), frozenset("23")}
    assert found[frozenset("01")].winner == "0"
    assert found[frozenset("01")].labels == (1, 1, 0)
    assert (found[frozenset("23")].winner, found[frozenset("23")].labels) == ("2", (1, -1, 0))
    assert {pair.weight for pair in pairs.train} == {1.0}
    same = records[2:]
    with pytest.raises(PreferencesError, match="make no pair"):
        make_pairs(rank(same), holdout=0, labels=by_segment(same).labels)


def test_clips_compared_by_segments_are_held_out_together():
    names = [(f"{i}a", f"{i}b", f"{i}c") for i in range(4)]
    records = [by_segments(x, y, "a", "ab") for three in names for x, y in combinations(three, 2)]
    labels = by_segment(records).labels
    for seed in range(4):
        pairs = make_pairs(rank(records), seed=seed, labels=labels)
        assert (len(pairs.train), len(pairs.held_out)) == (9, 3)
        assert len({name[0] for name in pairs.held_out_clips}) == 1


def test_labels_of_one_category_change_nothing_in_another():
    records = [by_segments("0", "1", "a", "aa"), by_segments("2", "3", "a", "ab")]
    rain = [comparison(f"r{i}", f"r{i + 1}", "a", category="rain") for i in range(3)]
    labels = by_segment(records).labels
    whole = make_pairs(rank(rain), tie=0, holdout=0).train
    found = make_pairs(rank([*records, *rain]), tie=0, holdout=0, labels=labels).train
    assert [pair for pair in found if not pair.labels] == whole
    assert len(found) == len(whole) + 2


def test_what_makes_no_pairs_is_refused():
    with pytest.raises(PreferencesError, match="3 judged clips are too few to hold out 2"):
        make_pairs(ranked([1, 2, 3]))
    with pytest.raises(PreferencesError, match="no pair to train on"):
        make_pairs(ranked([1, 1, 1]), holdout=0)
    with pytest.raises(PreferencesError, match=r"holdout 0\.9"):
        make_pairs(ranked([1, 2, 3]), holdout=0.9)


def test_clips_are_checked_against_their_hash_when_pairs_are_made(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.mp4").write_bytes(bytes([i]))
        hashed = hash_file(tmp_path / f"{i}.mp4")
        append(tmp_path / "ratings.jsonl", rating("ann", f"{i}.mp4", i, sha256=hashed))
    judged = rank(read_records(tmp_path / "ratings.jsonl"))
    check_files(judged, tmp_path)
    assert len(make_pairs(judged, holdout=0).train) == 10
    (tmp_path / "1.mp4").write_bytes(b"another clip")
    (tmp_path / "3.mp4").unlink()
    with pytest.raises(PreferencesError, match=r"(?s)3\.mp4 is missing.*1\.mp4 has changed"):
        check_files(judged, tmp_path)
    check_files([], tmp_path)
