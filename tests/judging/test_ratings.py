import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip

from huvidpo import video
from huvidpo.catalog import DEFAULT_MODEL
from judging.ratings import SIMULATED, main, nearer, rating_of
from preferences.clips import ClipEntry, read_clips, write_clips
from preferences.pairs import scores_by_clip
from preferences.records import Comparison, SegmentComparison, append, read_records

CLIPS = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "horse"
    (folder / "more").mkdir(parents=True)
    entries = []
    for i in range(CLIPS):
        name = f"{'more/' if i == CLIPS - 1 else ''}{i}.mp4"
        write_clip(folder / name, seed=i, frames=4, size=(32, 32))
        entries.append(ClipEntry(video=name, caption=f"<b>horse</b> {i}", category="horse", seed=i))
    write_clips(folder, entries)
    return folder


def write_scores(path: Path, scores: dict[str, float]) -> Path:
    path.write_text(json.dumps([{"video": video, "score": score} for video, score in scores.items()]))
    return path


def test_scores_go_in_and_out(folder, tmp_path, capsys):
    scores = {f"{i}.mp4": i * 1.5 for i in range(CLIPS)}  # the last one by its name alone
    file = write_scores(tmp_path / "scores.json", scores)
    assert main(["import", str(file), "--clips", str(folder), "--rater", "ann"]) == 0
    records = read_records(folder / "ratings.jsonl")
    assert [(r.rater, r.clip, r.score, r.seed, r.category) for r in records[-1:]] == [
        ("ann", "more/5.mp4", 7.5, 5, "horse")
    ]
    assert (
        main(["import", str(write_scores(file, {"0.mp4": 10})), "--clips", str(folder), "--rater", "bob"])
        == 0
    )
    out = tmp_path / "out.json"
    assert main(["export", str(out), "--clips", str(folder)]) == 0
    exported = json.loads(out.read_text())  # best first
    assert exported[0] == {"video": "more/5.mp4", "score": 7.5}
    assert {"video": "0.mp4", "score": 5.0} in exported
    assert main(["export", str(out), "--clips", str(folder), "--rater", "bob"]) == 0
    assert json.loads(out.read_text()) == [{"video": "0.mp4", "score": 10.0}]
    assert "out.json: 1 scores" in capsys.readouterr().out


def test_a_torn_file_is_repaired_by_the_command_its_error_names(folder, tmp_path, capsys):
    for i in range(3):
        append(folder / "ratings.jsonl", rating_of(folder, read_clips(folder)[i], "ann", 5.0))
    with (folder / "ratings.jsonl").open("a") as file:
        file.write('{"kind": "rat')
    assert main(["report", "--clips", str(folder)]) == 2
    assert f"python -m judging.ratings repair --clips {folder} keeps the others" in capsys.readouterr().err
    assert main(["repair", "--clips", str(folder), "--category", "dragon"]) == 2
    assert main(["repair", "--clips", str(folder)]) == 0
    assert (
        "3 lines as they were, 0 with a category added\n  dropped line 4: not JSON" in capsys.readouterr().out
    )
    assert main(["report", "--clips", str(folder)]) == 0


def test_scores_of_unknown_videos_are_refused_as_a_whole(folder, tmp_path, capsys):
    file = write_scores(tmp_path / "scores.json", {"0.mp4": 1, "9.mp4": 2, "more/5.mp4": 3, "x/5.mp4": 4})
    assert main(["import", str(file), "--clips", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "9.mp4 is no clip of" in error
    assert "more/5.mp4 is scored twice" in error
    assert not (folder / "ratings.jsonl").exists()


def test_filmed_clips_are_preferred_to_those_made_of_their_first_frames(folder, capsys):
    clips = read_clips(folder)
    assert main(["filmed", "--clips", str(folder)]) == 2
    assert "judging.candidates --beside" in capsys.readouterr().err
    origins = [{"filmed": "a.png"}, {"first_frame": "a.png"}, {"first_frame": "b.png"}, {"filmed": "c.png"}]
    for number, lineage in enumerate(origins):
        clips[number] = dataclasses.replace(clips[number], lineage=lineage)
    write_clips(folder, clips)
    assert main(["filmed", "--clips", str(folder)]) == 0
    assert "1 comparisons added, filmed over made; no person made them" in capsys.readouterr().out
    (record,) = read_records(folder / "ratings.jsonl")
    assert isinstance(record, Comparison)
    assert (record.rater, record.clip_a, record.clip_b, record.answer) == ("filmed", "0.mp4", "1.mp4", "a")


@pytest.fixture
def structural(tmp_path: Path) -> Path:
    """A filmed clip of 8 frames; made of it one spoilt late, one spoilt early, and a copy of that; and a clip
    of another filmed one that is not there.
    """
    folder, clips = tmp_path / "structural", {}
    folder.mkdir()
    spoilt = {"real": [], "late": [5, 6, 7], "early": [0, 1, 2], "copy": [0, 1, 2], "far": []}
    for name, frames in spoilt.items():
        clip = np.random.default_rng(0).integers(60, 200, (8, 32, 32, 3), np.uint8)
        clip[frames] = 255 - clip[frames]
        (folder / f"{name}.mp4").write_bytes(video.encode(clip, 8))
        origin = {"real": {"filmed": "x.mp4"}, "far": {"first_frame": "y.mp4"}}
        lineage = origin.get(name, {"first_frame": "x.mp4", "structural": "0.5"})
        clips[name] = ClipEntry(video=f"{name}.mp4", caption="a horse", category="horse", lineage=lineage)
    write_clips(folder, list(clips.values()))
    return folder


def test_what_is_nearer_to_the_filmed_clip_is_better_segment_by_segment(structural, capsys):
    command = ["nearest", "--clips", str(structural)]
    assert main([*command, "--segment-frames", "2", "--tie", "10"]) == 0  # above what the codec does
    assert "3 comparisons added, by nearness to what was filmed; no person" in capsys.readouterr().out
    records = read_records(structural / "ratings.jsonl")
    assert all(isinstance(record, SegmentComparison) and record.rater == "nearest" for record in records)
    found = {(r.clip_a, r.clip_b): (r.answer, r.segments) for r in records}
    # frames 1 2, 3 4, 5 6 and 7; frame 0, spoilt too, is not judged
    assert found["late.mp4", "early.mp4"] == ("tie", ["a", "tie", "b", "b"])
    assert found["late.mp4", "copy.mp4"] == found["late.mp4", "early.mp4"]
    assert found["early.mp4", "copy.mp4"] == ("tie", ["tie"] * 4), "the same clip twice: no preference"
    assert {(r.frames, r.segment_frames) for r in records} == {(8, 2)}
    assert main(["report", "--clips", str(structural), "--holdout", "0"]) == 0
    assert "2 pairs to train on" in capsys.readouterr().out


def test_nearness_of_what_is_no_such_folder_is_refused(structural, folder, capsys):
    write_clip(structural / "late.mp4", frames=7, size=(32, 32))
    for arguments, said in (
        (["--clips", str(folder)], "judging.candidates --beside CLIPS --structural ETA"),
        (["--clips", str(structural), "--segment-frames", "0"], "segments of 0 frames"),
        (["--clips", str(structural), "--tie", "-1"], "a tie of -1 dB"),
        (["--clips", str(structural), "--tie", "nan"], "a tie of nan dB"),
        (["--clips", str(structural)], "are 8x32x32, 7x32x32, 8x32x32, expected two or more frames"),
    ):
        assert main(["nearest", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (structural / "ratings.jsonl").exists()


def test_a_small_lead_is_a_tie_and_sides_do_not_matter():
    truth = np.full((2, 8, 8, 3), 100, np.uint8)
    ten, eleven = truth + np.uint8(10), truth + np.uint8(11)  # 20 lg 1.1 = 0.83 dB
    assert (nearer(truth, ten, eleven, 0.8), nearer(truth, eleven, ten, 0.8)) == ("a", "b")
    assert nearer(truth, ten, eleven, 0.9) == nearer(truth, ten, ten, 0) == "tie"


def rate(folder: Path, rater: str, scores: list[float]) -> None:
    for clip, score in zip(read_clips(folder), scores, strict=False):
        append(folder / "ratings.jsonl", rating_of(folder, clip, rater, score))


def test_report_shows_counts_agreement_order_and_pairs(folder, capsys):
    rate(folder, "ann", [1, 2, 3, 4, 5])
    rate(folder, "<i>bob</i>", [1, 1.5, 2, 2.5, 3])
    assert main(["report", "--clips", str(folder), "--holdout", "0"]) == 0
    out = capsys.readouterr().out
    assert "10 opinions on 5 clips" in out
    assert "agreement 1.000" in out
    assert "10 pairs to train on, 0 held out" in out
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg") == 5
    assert page.index("4.mp4") < page.index("3.mp4") < page.index("0.mp4"), "best first"
    assert "<td>ann</td><td>5</td><td>3.00</td><td>1.41</td><td>0</td><td>0</td>" in page
    assert "<i>" not in page
    assert "<b>horse" not in page
    assert "not a person" not in page


def test_report_of_ratings_that_make_no_pairs_says_why(folder, tmp_path, capsys):
    rate(folder, SIMULATED, [3])
    assert main(["report", "--clips", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert "too few to hold out" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "too few to hold out" in page
    assert "not a person" in page
    assert "takes two raters" in page


def test_simulated_ratings_are_called_that_and_a_frozen_clip_scores_nothing(folder, tiny_family, capsys):
    frozen = video.decode(folder / "3.mp4")[0][[0, 0, 0, 0]]
    (folder / "3.mp4").write_bytes(video.encode(frozen, 8))
    assert main(["simulate", "--clips", str(folder), "--model", DEFAULT_MODEL]) == 0
    assert "6 simulated ratings added; no person rated these clips" in capsys.readouterr().out
    records = read_records(folder / "ratings.jsonl")
    assert {record.rater for record in records} == {"simulated"}
    scores = {record.clip: record.score for record in records}
    assert scores["3.mp4"] == 0
    assert main(["simulate", "--clips", str(folder), "--noise", "2", "--seed", "1"]) == 0
    noisy = scores_by_clip(read_records(folder / "ratings.jsonl"))
    assert noisy != scores
    assert all(0 <= score <= 10 for score in noisy.values())


def test_mistakes_exit_with_2_and_say_what_is_wrong(folder, tmp_path, capsys):
    assert main(["report", "--clips", str(folder)]) == 2
    assert "holds no rating" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "out.json"), "--clips", str(folder)]) == 2
    assert "holds no score" in capsys.readouterr().err
    rate(folder, "ann", [1, 2, 3, 4, 5])
    write_clip(folder / "2.mp4", seed=9, frames=4, size=(32, 32))
    assert main(["report", "--clips", str(folder)]) == 2
    assert "2.mp4 has changed since it was judged" in capsys.readouterr().err
    with (folder / "ratings.jsonl").open("a") as stream:
        stream.write("{\n")
    assert main(["report", "--clips", str(folder)]) == 2
    assert "line 6: not JSON" in capsys.readouterr().err
