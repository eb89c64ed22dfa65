"""The tiny family's preference loops: what they make and ask for. docs/new-category.md's test trains."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from huvidpo import video
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.checkpoint import read_metadata, save_tensors
from huvidpo.pipeline import FirstFramePipeline, full_prompt
from judging.judge import load_judge
from judging.promote import REFUSED
from preferences.clips import read_clips
from preferences.pairs import make_pairs, rank
from preferences.records import RATINGS_FILE, read_records
from tiny import first_frame_preferences as pictures
from tiny import preferences
from tiny.common import FAMILY
from tiny.world import FRAMES, SIZE, STYLES, random_scenes
from training import monitors


@pytest.fixture
def loops(tmp_path, monkeypatch):
    monkeypatch.setattr(preferences, "LOOPS", tmp_path)
    return tmp_path


def test_filmed_clips_are_of_every_style_and_made_once(loops):
    preferences.film("rain")
    folder = loops / "rain" / "filmed"
    clips = read_clips(folder)
    assert len(clips) == preferences.FILMED
    assert {clip.style for clip in clips} == set(STYLES)
    assert {clip.category for clip in clips} == {"rain"}
    frames, _ = video.decode((folder / clips[0].video).read_bytes())
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    preferences.film("rain")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written


def test_every_command_is_one_that_its_module_takes(loops):
    for module, *arguments in preferences.commands("horse").values():
        importlib.import_module(module)._parser().parse_args(arguments)


@pytest.fixture
def two_stages(tmp_path, monkeypatch):
    """The shipped file of horse, which is a merge; its stage 1 lies in another folder."""
    stage1, family = tmp_path / "stage1", tmp_path / "family"
    shipped = family / "categories" / "horse.safetensors"
    for path, stage in ((stage1 / "horse.safetensors", "stage 1"), (shipped, "merged")):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, {"x": torch.zeros(1)}, {"stage": stage})
    monkeypatch.setattr(preferences, "STAGE1", stage1)
    monkeypatch.setattr(preferences, "FAMILY", family)
    return shipped


def trained(loops: Path, drift: float) -> None:
    """What a training leaves of how much the error of held-out winners rose."""
    run = loops / "horse" / "run"
    run.mkdir(parents=True)
    (run / monitors.FILE).write_text(json.dumps({"held_out_winner_drift": drift}) + "\n")


@pytest.mark.parametrize(
    ("accepted", "drift", "ships"),
    [(True, -0.01, "merged"), (True, 0.01, "stage 1"), (False, -0.01, "stage 1")],
)
def test_the_gate_decides_what_ships(loops, two_stages, monkeypatch, accepted, drift, ships):
    """`judging.promote` copies what it accepts, if it may; after a refusal, which its verdict tells, or where
    the error of held-out winners rose, stage 1 ships.
    """

    def gate(command, *_, allowed):
        assert ("--accept" in command) is (drift <= 0)
        (loops / "horse" / "gate").mkdir(parents=True)
        (loops / "horse" / "gate" / "promotion.json").write_text(json.dumps({"accepted": accepted}))
        return 0 if accepted else REFUSED

    trained(loops, drift)
    monkeypatch.setattr(preferences, "run", gate)
    assert preferences.promote("horse") is (ships == "merged")
    assert read_metadata(two_stages)["stage"] == ships


def test_a_gate_that_crashes_ships_nothing(loops, two_stages, monkeypatch):
    trained(loops, -0.01)
    monkeypatch.setattr(preferences, "MODULE", [sys.executable, "-c", "raise OSError('disk')"])
    with pytest.raises(SystemExit) as crash:
        preferences.promote("horse")
    assert crash.value.code == 1
    assert read_metadata(two_stages)["stage"] == "merged"


@pytest.fixture(scope="module")
def drawn():
    if not (FAMILY / "clip" / "config.json").is_file():
        pytest.skip("models/tiny is not there yet")
    return FirstFramePipeline.from_catalog(DEFAULT_MODEL), load_judge(FAMILY / "clip")


def test_rated_pictures_make_pairs_of_one_prompt(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "RATED", tmp_path / "pictures")
    monkeypatch.setattr(pictures, "PROMPTS", 4)
    pictures.make_rated(*drawn)
    clips = {clip.video: clip for clip in read_clips(pictures.RATED)}
    assert len(clips) == 4 * (pictures.DRAWN + 1)
    assert sum(clip.seed is None for clip in clips.values()) == 4  # rendered, not drawn
    assert len({clip.caption for clip in clips.values()}) == 4
    with Image.open(pictures.RATED / next(iter(clips))) as picture:
        assert picture.size == (SIZE, SIZE)
    records = read_records(pictures.RATED / RATINGS_FILE)
    assert {record.rater for record in records} == {"simulated"}
    assert all(0 <= record.score <= 10 for record in records)
    pairs = make_pairs(rank(records), same_prompt=True).train
    assert pairs
    assert all(clips[pair.winner].caption == clips[pair.loser].caption for pair in pairs)


def test_a_network_against_itself_wins_one_half_and_is_not_accepted(drawn, monkeypatch):
    monkeypatch.setattr(pictures, "HELD_OUT", 2)
    plain, judge = drawn
    verdict = pictures.compare(plain, plain, judge)
    assert verdict["win_rate"]["mean"] == 0.5
    assert verdict["score_before"] == verdict["score_after"] > 1
    assert verdict["accepted"] is False


def test_the_rule_prefers_the_picture_of_its_caption(drawn):
    plain, judge = drawn
    horse, rain = (pictures.request_for(scene, 1) for scene in random_scenes(8, 1)[3::4])
    assert (horse.category, rain.category) == ("horse", "rain")
    picture = pictures.draw(plain, [horse])[0]
    own, other = (
        pictures.score(judge, np.asarray(picture), full_prompt(r, load_catalog())) for r in (horse, rain)
    )
    assert own > other
