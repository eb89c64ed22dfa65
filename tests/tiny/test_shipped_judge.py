"""The judge that ships: what it prefers, and what its committed results say."""

import json

import numpy as np
import pytest

from huvidpo.catalog import load_catalog
from tiny.judge import score
from tiny.judge.attack import mixture, push
from tiny.judge.calibrate import WANTED, compare, pairs_of_scenes
from tiny.judge.score import FOLDER, Expected, Judge
from tiny.judge.table import shipped
from tiny.judge.tricks import TRICKS, fake, still
from tiny.judge.worlds import FIRST
from tiny.world import Scene, render

CLEAR = {  # strengths that anyone sees: no margin near a rounding
    "frozen": 0, "a still rocking": 1.2, "a still panning": 0.5, "a still zooming": 1, "a still pulsing": 10,
    "halting": 12, "reversing": 15, "repeating": 4, "shuffling": 15, "jitter": 1, "rocking": 3, "zooming": 1,
    "blur": 1.5, "sharpening": 1, "flicker": 8, "flickering patches": 16, "brightness": 8,
}  # fmt: skip
SOME = [Scene("horse", "cartoon", "mars", "white", 1), Scene("rain", "realistic", "city", "red", 2)]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return score.load()


@pytest.fixture(scope="module")
def truths() -> list[np.ndarray]:
    return [render(scene) for scene in SOME]


@pytest.fixture(scope="module")
def judged(judge, truths) -> list[tuple[np.ndarray, Expected, float]]:
    """Clip, what the judge expects of it, its score."""
    expected = [judge.expect(t[0], FIRST.asked(s)) for s, t in zip(SOME, truths, strict=True)]
    return [(t, e, judge.score(t, e)) for t, e in zip(truths, expected, strict=True)]


@pytest.mark.parametrize("name", CLEAR)
def test_the_truth_beats_what_is_clearly_a_trick(judge, judged, name):
    for truth, expected, own in judged:
        made = fake(TRICKS[name], truth, truth, CLEAR[name], 0)
        assert own > 1.2 * judge.score(made, expected)


def test_the_calibration_covers_every_trick_and_the_truth_wins_where_it_is_strong():
    """The committed result of `python -m tiny.judge.calibrate`."""
    found = json.loads((FOLDER / "calibration.json").read_text(encoding="utf-8"))
    assert found["scenes"] >= 128
    assert set(found["tricks"]) == set(TRICKS)
    for name, trick in found["tricks"].items():
        shares = [row["truth_wins"] for row in trick["strengths"].values()]
        assert shares[-1] >= WANTED, name
        if trick["still"]:
            assert min(shares) >= WANTED, name


def test_an_optimiser_wins_by_no_tricks_and_its_gradients_are_caught_by_the_truth():
    """The committed result of `python -m tiny.judge.attack`: its fakes are poorer by PSNR than what ships."""
    found = json.loads((FOLDER / "attack.json").read_text(encoding="utf-8"))["opponents"]
    for name in ("a still", "tricks", "pixels 4 of a still", "pixels 16 of a still"):
        assert found[name]["truth_wins"] >= WANTED, name
    family = json.loads((FOLDER / "table.json").read_text(encoding="utf-8"))["rows"]
    shipped_now = family[shipped(load_catalog().model("tiny").defaults.steps)]["psnr"]
    for name in found.keys() - {"tricks and the predictor"}:
        assert found[name]["psnr"] < shipped_now - 2, name


def test_the_default_steps_are_no_worse_than_twenty():
    """The committed result of `python -m tiny.judge.table --steps 20`: by truth, judge, labels and, but for
    some, motion; a tenth less of it is the most that fewer steps were to cost. And in themselves: as near as
    was asked for, and moving as much of the truth as the 3 steps that were the default before.
    """
    found = json.loads((FOLDER / "table.json").read_text(encoding="utf-8"))
    options = load_catalog().model("tiny").defaults
    few, many = (found["rows"][shipped(steps)] for steps in (options.steps, 20))
    assert found["scenes"] >= 128
    for name in ("psnr", "psnr_moving", "ssim_moving", "judge"):
        assert few[name] >= many[name], name
    assert few["motion"] >= 0.9 * many["motion"]
    assert few["psnr"] >= 25
    assert few["psnr_moving"] >= 22
    assert few["motion"] >= 0.882
    assert (
        found["rows"][f"{shipped(20)}, blurred by 0.4 px"]["judge"] < many["judge"]
    )  # so it is no blur that wins
    drawn = found["first_frames"]
    for kind, share in drawn[str(options.first_frame_steps)].items():
        assert share >= drawn["20"][kind] - 0.01, kind  # one of 128


def test_an_attack_keeps_its_bound_and_the_first_frame(judge, truths, monkeypatch):
    monkeypatch.setattr("tiny.judge.attack.STEPS", 3)
    expected = judge.expect(truths[0][0], FIRST.asked(SOME[0]))
    start = still(truths[0])
    made = push(judge, start, expected, 4)
    assert (made[0] == truths[0][0]).all()
    assert 0 < np.abs(made.astype(int) - start).max() <= 4
    assert judge.score(made, expected) > judge.score(start, expected)
    assert (mixture(truths[0], start, np.zeros(10), 0) == start).all()


def test_labels_that_are_wrong_cost(judge, truths):
    said = FIRST.asked(SOME[0])
    right = judge.score(truths[0], judge.expect(truths[0][0], said))
    wrong = judge.score(truths[0], judge.expect(truths[0][0], said | {"colour": "purple", "place": "sea"}))
    assert right > 1.2 * wrong


def test_pasted_motion_is_of_another_scene_of_the_same_kind(judge):
    for scene, other in pairs_of_scenes(judge, 5, 7):
        assert (scene.category, scene.style) == (other.category, other.style)
        assert scene.seed != other.seed
    assert compare(judge, *pairs_of_scenes(judge, 1, 7)[0], 0, ["frozen"]) == {("frozen", 0): True}


def test_motion_is_read_from_the_picture_in_every_view_and_stays_where_nothing_moves():
    """The committed result of `python -m tiny.judge.views`: four fifths of the gain stay, where a stencil has
    none; late frames keep four fifths of the motion that the truth keeps; what is flat stays flat.
    """
    found = json.loads((FOLDER / "views.json").read_text(encoding="utf-8"))
    views = {name: view for name, view in found["views"].items() if name != "as it is"}
    assert set(views) == {"mirrored", "8 px right", "16 px left", "later"}
    for name, view in views.items():
        assert view["share_of_gain"] >= 0.8, name
        assert view["gain_of_a_stencil"] < 0, name
    assert found["late_motion"]["ours"] >= 0.8 * found["late_motion"]["truth"]
    assert found["still"]["share_above_20_db"] == 1
