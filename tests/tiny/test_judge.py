"""The judge without its shipped weights: trainer, ways to spoil a clip, tricks, measures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from huvidpo.errors import CheckpointError
from tiny import common
from tiny.judge import __main__ as trainer
from tiny.judge import data, score, training
from tiny.judge.calibrate import table
from tiny.judge.corruptions import WAYS, spoil
from tiny.judge.fidelity import fidelity, moving
from tiny.judge.score import Judge, unit
from tiny.judge.table import against, summary
from tiny.judge.tricks import TRICKS, fake, still
from tiny.judge.worlds import FIRST, SECOND
from tiny.world import CATEGORIES, Scene, render


def test_a_judge_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"run python -m tiny\.judge"):
        score.load(tmp_path)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_way_to_spoil_keeps_the_shape_and_the_first_frame(seed):
    generator = torch.Generator().manual_seed(seed)
    clip, other = torch.rand(2, 6, 3, 32, 32, generator=generator) * 2 - 1
    for way in WAYS:
        made = way(clip, other, generator)
        assert made.shape == clip.shape
        assert made.isfinite().all()
    made = spoil(clip, other, generator)
    assert ((made[0] - clip[0]).abs() <= 1.001 / 255).all()
    assert (made.abs() <= 1).all()
    levels = (made + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-3


@settings(max_examples=10, deadline=None)
@given(name=st.sampled_from(sorted(TRICKS)), seed=st.integers(0, 2**32))
def test_every_trick_starts_at_the_truths_first_frame(name, seed):
    truth, other = np.random.default_rng(seed).integers(0, 256, (2, 16, 32, 32, 3), np.uint8)
    for strength in TRICKS[name].strengths:
        made = fake(TRICKS[name], truth, other, strength, seed)
        assert made.dtype == np.uint8
        assert made.shape == truth.shape
        assert (made[0] == truth[0]).all()


def test_fidelity_by_hand():
    truth = np.zeros((3, 16, 16, 3), np.uint8)
    truth[1:, :8] = 100
    assert moving(truth)[:8].all()
    assert not moving(truth)[8:].any()
    same = fidelity(truth, truth)
    assert same["psnr"] == same["psnr_moving"] > 100
    assert same["motion"] == 1
    frozen = fidelity(still(truth), truth)
    assert frozen["motion"] == 0
    assert frozen["psnr_moving"] == pytest.approx(20 * np.log10(255 / 100), abs=1e-4)
    assert frozen["psnr"] == pytest.approx(frozen["psnr_moving"] + 10 * np.log10(2), abs=1e-4)


def test_a_table_of_wins_by_trick_strength_and_category():
    rows = [
        ("horse", {("blur", 0.5): True}),
        ("rain", {("blur", 0.5): False}),
        ("rain", {("blur", 0.5): None}),
    ]
    found = table(rows)["blur"]["strengths"]["0.5"]
    assert found == {
        "truth_wins": 0.5,
        "interval": [0.0945, 0.9055],  # Wilson's
        "pairs": 2,
        "no_pairs": 1,
        "by_category": {"horse": 1.0, "rain": 0.0},
    }


def test_a_row_of_the_quality_table_and_how_often_it_beats_another():
    scenes = [Scene("horse", "cartoon", "mars", "white", 1), Scene("rain", "realistic", "city", "red", 2)]
    ours, theirs = (
        [{"psnr": p, "psnr_moving": p - 1, "judge": p, "motion": 1.0, "colour": 1.0} for p in values]
        for values in ((20, 30), (25, 26))
    )
    del ours[1]["colour"]  # rain has none
    row = summary(ours, scenes)
    assert (row["psnr"], row["psnr_moving"], row["colour"]) == (25, 24, 1)
    assert row["by_category"]["horse"]["psnr"] == 20
    assert row["interval"]["judge"] == [20, 30]
    assert against(ours, theirs)["judge"]["mean"] == 0.5


def test_the_command_trains_a_judge_from_the_renderer_alone(tmp_path, monkeypatch):
    """All four networks, a step or two each; what it writes scores."""
    monkeypatch.setattr(common, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(training, "HELD_OUT", 2)
    monkeypatch.setattr(training, "MOMENTS", 1)
    monkeypatch.setattr(trainer, "TUNE", 16)  # two of each category
    monkeypatch.setattr("training.loop.draw_curves", lambda *_: None)
    given_ = ["--clips", "6", "--steps", "0.0004", "--data", str(tmp_path / "data"), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["tiny.judge", *given_])
    trainer.main()
    written = score.load(tmp_path)
    assert set(written.typical.mean) == set(CATEGORIES)
    scene = Scene("horse", "cartoon", "mars", "white", 1)
    truth = render(scene)
    assert 0 < written.score(truth, written.expect(truth[0], FIRST.asked(scene))) <= 10


def test_the_judge_fits_the_second_world():
    """Its size, its length, and the camera that only words tell."""
    scene = SECOND.scenes(1, 0)[0]
    clip, subject = SECOND.render_with_subject(scene)
    assert data.small_mask(subject).shape == (SECOND.frames, 16, 16)
    judge = Judge(score.build(SECOND), trainer.NOTHING)
    terms = judge.terms(unit(clip), judge.expect(clip[0], SECOND.asked(scene)))
    assert terms.shape == (len(score.TERMS),)
    assert terms.isfinite().all()
