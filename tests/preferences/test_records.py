import dataclasses
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preferences.records import (
    CRITERIA,
    Comparison,
    PreferencesError,
    Rating,
    Record,
    Retraction,
    SegmentComparison,
    append,
    ratings_hash,
    read_huvidpo_json,
    read_records,
    repair,
    write_huvidpo_json,
)

HASH = "0123456789abcdef" * 4
TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)
SCORES = st.floats(0, 10)
CRITERIA_MARKS = st.fixed_dictionaries({name: st.integers(1, 5) for name in CRITERIA})


def rating(**changes) -> Rating:
    fields = {"rater": "ann", "category": "horse", "clip": "0.mp4", "sha256": HASH, "prompt": "a horse runs"}
    return Rating(**fields | {"score": 7.5} | changes)


def comparison(**changes) -> Comparison:
    clips = {"clip_a": "0.mp4", "sha256_a": HASH, "clip_b": "1.mp4", "sha256_b": HASH}
    return Comparison(**clips | {"rater": "ann", "category": "horse", "answer": "a"} | changes)


def segment_comparison(**changes) -> SegmentComparison:
    by = {"frames": 16, "segment_frames": 5, "segments": ["a", "tie", "b"]}
    return SegmentComparison(**dataclasses.asdict(comparison()) | by | changes)


ratings = st.builds(
    rating,
    rater=TEXT,
    category=st.text(st.characters(codec="utf-8")),
    clip=st.sampled_from(["0.mp4", "dir/ä \u2028.mp4"]),
    sha256=HASHES,
    prompt=st.text(st.characters(codec="utf-8")),
    seed=st.none() | st.integers(0, 2**32 - 1),
    lineage=st.dictionaries(TEXT, TEXT, max_size=3),
    score=SCORES,
    criteria=st.none() | CRITERIA_MARKS,
)
comparisons = st.builds(comparison, rater=TEXT, sha256_a=HASHES, answer=st.sampled_from(["a", "b", "tie"]))


@st.composite
def segmented(draw):
    frames, length = draw(st.integers(2, 200)), draw(st.integers(1, 250))
    count = len(range(1, frames, length))
    segments = draw(st.lists(st.sampled_from(["a", "b", "tie"]), min_size=count, max_size=count))
    return segment_comparison(frames=frames, segment_frames=length, segments=segments)


@given(records=st.lists(ratings | comparisons | segmented(), max_size=4))
@settings(max_examples=30, deadline=None)
def test_what_is_appended_is_read_back(records: list[Record], tmp_path_factory):
    file = tmp_path_factory.mktemp("store") / "ratings.jsonl"
    for record in records:
        append(file, record)
    assert read_records(file) == records


def test_a_file_that_is_not_there_holds_nothing(tmp_path):
    assert read_records(tmp_path / "none.jsonl") == []


def test_times_and_ids_are_made_when_not_given():
    first, second = rating(), rating()
    assert first.id != second.id
    assert len(first.id) == 32
    assert first.time.endswith("+00:00")


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": 10.1}, {"score": -1}, {"score": float("nan")}, {"score": True}, {"score": "7"},
        {"score": None},
        {"clip": "/0.mp4"}, {"clip": "../0.mp4"}, {"clip": "a\\0.mp4"}, {"clip": "./0.mp4"}, {"clip": "."},
        {"sha256": "abc"}, {"sha256": None}, {"seed": 1.5}, {"lineage": {"base": 3}}, {"lineage": None},
        {"criteria": {"aesthetics": 3}}, {"criteria": dict.fromkeys(CRITERIA, 6)}, {"criteria": 3},
        {"rater": " "}, {"rater": None}, {"prompt": "\ud800"}, {"id": "1"}, {"time": "2026-01-01"},
        {"time": "2026-01-01T00:00:00+02:00"}, {"time": "soon"},
    ],
)  # fmt: skip
def test_what_is_no_rating_is_refused_by_field(wrong):
    (field,) = wrong
    with pytest.raises(PreferencesError, match=rf"^{field}"):
        rating(**wrong)


@pytest.mark.parametrize("wrong", [{"answer": "c"}, {"clip_b": "0.mp4"}, {"sha256_b": ""}])
def test_what_is_no_comparison_is_refused(wrong):
    with pytest.raises(PreferencesError):
        comparison(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"segments": ["a", "b"]}, "segments: got 2, expected 3: 16 frames but the first, in segments of 5"),
        ({"segments": []}, "segments: got 0, expected 3"),
        ({"frames": 17}, "segments: got 3, expected 4"),
        ({"segments": ["a", "b", "c"]}, "segments: got 'c', expected a list of one of a, b, tie"),
        ({"segments": ["a", "b", 1]}, "segments: got 1, expected a list of one of a, b, tie"),
        ({"segments": "aba"}, "segments: got 'aba', expected a list of one of a, b, tie"),
        ({"segment_frames": 0}, "segment_frames: got 0, expected a whole number of at least 1"),
        ({"frames": 1}, "frames: got 1, expected a whole number of at least 2"),
        ({"frames": 16.0}, "frames: got 16.0"),
        ({"clip_b": "0.mp4"}, "expected two clips"),
    ],
)
def test_damaged_segments_are_refused_in_a_sentence(wrong, said):
    with pytest.raises(PreferencesError) as caught:
        segment_comparison(**wrong)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    frames=st.integers() | st.none(),
    length=st.integers() | st.booleans(),
    segments=st.lists(st.sampled_from(["a", "b", "tie", "", None, 1]), max_size=6) | st.text(max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_any_segments_are_read_or_refused_by_line(frames, length, segments, tmp_path_factory):
    file = tmp_path_factory.mktemp("store") / "ratings.jsonl"
    record = {"kind": "segment_comparison", **dataclasses.asdict(segment_comparison())}
    wrong = record | {"frames": frames, "segment_frames": length, "segments": segments}
    file.write_text(json.dumps(wrong) + "\n")
    try:
        (read,) = read_records(file)
        assert isinstance(read, SegmentComparison)
        assert read.segments == segments
        assert len(segments) == len(range(1, frames, length))
    except PreferencesError as error:
        assert "line 1: " in str(error)  # noqa: PT017


def test_a_retraction_takes_back_an_opinion_of_the_same_rater(tmp_path):
    file = tmp_path / "ratings.jsonl"
    first, second = rating(), comparison()
    for record in (first, second, Retraction(rater="ann", category="horse", of=first.id)):
        append(file, record)
    assert read_records(file) == [second]
    append(file, Retraction(rater="bob", category="horse", of=second.id))
    with pytest.raises(PreferencesError, match="line 4: rater 'bob' retracts a record of 'ann'"):
        read_records(file)


def test_every_malformed_line_is_named_with_its_reason(tmp_path):
    file = tmp_path / "ratings.jsonl"
    append(file, rating())
    good = json.loads(file.read_text())
    wrong = {
        "{": "not JSON",
        "[1]": "not an object",
        json.dumps(good | {"kind": "vote"}): "allowed: rating, comparison, retraction, segment_comparison",
        json.dumps(good | {"id": "f" * 32, "mood": "good"}): "unknown field: mood",
        json.dumps({name: good[name] for name in good if name not in ("clip", "seed")}): (
            "missing field: clip, seed"
        ),
        json.dumps(good | {"id": "e" * 32, "score": 11}): "score: got 11",
        json.dumps(good): "is that of an earlier line",
        '{"kind": "retraction", "rater": "ann", "category": "", "time": "2026-01-01T00:00:00+00:00", '
        f'"id": "{HASH[:32]}", "of": "nothing"}}': "no rating or comparison",
    }
    with file.open("a") as stream:
        stream.write("\n")  # an empty line is no record and no mistake
        stream.writelines(line + "\n" for line in wrong)
    with pytest.raises(PreferencesError) as caught:
        read_records(file)
    named = str(caught.value).splitlines()[1:-1]
    assert [line.split(":")[0].strip() for line in named] == [f"line {n}" for n in range(3, 3 + len(wrong))]
    for line, reason in zip(named, wrong.values(), strict=True):
        assert reason in line


@given(line=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(max_examples=60, deadline=None)
def test_a_line_of_anything_is_read_or_refused_by_number(line: bytes, tmp_path_factory):
    file = tmp_path_factory.mktemp("store") / "ratings.jsonl"
    file.write_bytes(line.replace(b"\n", b""))
    try:
        assert read_records(file) == []
    except PreferencesError as error:
        assert "line 1:" in str(error)  # noqa: PT017


def test_a_torn_last_line_is_refused_by_number_and_swallows_no_later_record(tmp_path):
    file = tmp_path / "ratings.jsonl"
    append(file, rating())
    append(file, rating())
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])  # as a power cut leaves it
    with pytest.raises(PreferencesError, match="line 2: not JSON"):
        read_records(file)
    last = rating(clip="9.mp4")
    append(file, last)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[2])
    assert read_records(file)[1] == last


def test_a_damaged_file_is_repaired_and_kept(tmp_path):
    path = tmp_path / "ratings.jsonl"
    first, second = rating(), rating()
    for record in (first, second):
        append(path, record)
    whole = path.read_bytes()
    bare = json.loads(whole.splitlines()[0]) | {"id": "c" * 32}
    del bare["category"]
    again, torn = whole.splitlines()[1], whole.splitlines()[0][:40]
    damaged = b"\n".join([torn, whole.rstrip(), json.dumps(bare).encode(), again, b""])
    path.write_bytes(damaged)
    with pytest.raises(
        PreferencesError, match=r"(?s)3 malformed.*missing field: category.*ratings repair --clips"
    ):
        read_records(path)

    made = repair(path, "rain")
    assert (made.kept, made.filled) == (2, 1)
    assert [problem.split(":")[0] for problem in made.dropped] == ["line 1", "line 5"]
    assert made.before.read_bytes() == damaged
    records = read_records(path)
    assert records[:2] == [first, second]
    assert [record.category for record in records] == [first.category, second.category, "rain"]
    assert path.read_bytes().startswith(whole)  # byte for byte
    assert repair(path).dropped == []
    with pytest.raises(PreferencesError, match="cannot be repaired"):
        repair(tmp_path / "none.jsonl")


def test_a_full_disk_is_said_and_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "ratings.jsonl"
    append(file, rating())
    before = file.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    with pytest.raises(PreferencesError, match="the disk is full"):
        append(file, rating())
    assert file.read_bytes() == before


def _append_many(file: Path, rater: str, count: int) -> None:
    for i in range(count):
        append(file, rating(rater=rater, seed=i, prompt="long " * 2000))


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    file, count = tmp_path / "ratings.jsonl", 20
    spawn = multiprocessing.get_context("spawn")
    raters = [f"rater {i}" for i in range(4)]
    processes = [spawn.Process(target=_append_many, args=(file, rater, count)) for rater in raters]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        read_records(file)  # a reader never meets half a line
    for process in processes:
        process.join()
    records = read_records(file)
    assert sorted((r.rater, r.seed) for r in records) == [(r, i) for r in raters for i in range(count)]


def test_the_hash_is_that_of_the_file(tmp_path):
    file = tmp_path / "ratings.jsonl"
    empty = ratings_hash(file)
    append(file, rating())
    assert ratings_hash(file) == ratings_hash(file) != empty


@given(scores=st.dictionaries(TEXT, SCORES, max_size=5))
@settings(max_examples=30, deadline=None)
def test_huvidpo_json_comes_back(scores, tmp_path_factory):
    file = tmp_path_factory.mktemp("json") / "scores.json"
    write_huvidpo_json(file, scores)
    assert dict(read_huvidpo_json(file)) == scores


def test_wrong_entries_of_huvidpo_json_are_named(tmp_path):
    file = tmp_path / "scores.json"
    file.write_text('[{"video": "0.mp4", "score": 3}, {"video": "1.mp4"}, {"video": "2.mp4", "score": 12}]')
    with pytest.raises(PreferencesError, match=r"(?s)entry 2: .*entry 3: score: got 12"):
        read_huvidpo_json(file)
    for text in ("{}", "[", ""):
        file.write_text(text)
        with pytest.raises(PreferencesError, match=r"scores\.json"):
            read_huvidpo_json(file)
