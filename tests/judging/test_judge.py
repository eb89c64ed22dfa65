import dataclasses
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip

from huvidpo.catalog import PROJECT_ROOT
from huvidpo.config import SamplingOptions
from huvidpo.errors import CheckpointError
from judging.judge import (
    DEFAULT_MOTION,
    Judge,
    alignment,
    consistency,
    judge_clip,
    kept_detail,
    load_judge,
    measure_motion,
    score_clip,
    warn_of_foreign,
)
from preferences.metrics import EvaluationError, flow, freeze
from tiny.calibrate import preferred
from tiny.world import caption, random_scene, random_scenes, render
from training.data import ClipsError, read_clip
from training.recipes import ClipRecipe

CLIP = Path(__file__).resolve().parents[2] / "models/tiny" / "clip"


@pytest.fixture(scope="module")
def judge() -> Judge:
    if not (CLIP / "config.json").is_file():
        pytest.skip("models/tiny/clip is not there yet")
    return load_judge(CLIP)


def test_truth_beats_every_way_to_spoil_it(judge):
    """docs/metrics.md has the shares of 40 scenes: `python -m tiny.calibrate`."""
    won = preferred(judge, random_scenes(8, 7))
    assert set(won) == {"frozen", "blurred", "noisy", "flickering", "shuffled"}
    assert all(won["frozen"])
    assert all(sum(right) >= 7 for right in won.values()), won
    assert np.mean([right for rights in won.values() for right in rights]) >= 0.9


def test_a_frozen_clip_scores_0_and_scores_are_0_to_10(judge):
    scene = random_scene(np.random.default_rng(0), "horse", "cartoon")
    truth = render(scene)
    assert score_clip(freeze(truth), caption(scene), judge) == 0
    verdict = judge_clip(truth, caption(scene), judge)
    assert all(0 <= factor <= 1 for factor in dataclasses.asdict(verdict).values())
    assert 1 < verdict.score <= 10
    with pytest.raises(EvaluationError):
        score_clip(truth[0], caption(scene), judge)


def test_little_motion_scores_in_proportion_and_enough_is_enough(judge):
    scene = random_scene(np.random.default_rng(1), "guitar", "realistic")
    truth = render(scene)
    moved = flow(truth).motion / truth.shape[2]
    slow = dataclasses.replace(judge, typical_motion=4 * moved)
    quick = dataclasses.replace(judge, typical_motion=moved)
    assert judge_clip(truth, caption(scene), slow).motion == pytest.approx(1 / 3)
    assert judge_clip(truth, caption(scene), quick).motion == 1


def test_factors_by_hand():
    text = np.array([1.0, 0.0])
    images = np.array([[0.8, 0.6], [0.6, 0.8], [0.96, 0.28]])
    assert alignment(images, text) == pytest.approx((0.6 / 0.8 + 1) / 2)
    cosines = [(0.96, 0.96), (0.936, 0.8)]  # with frame 0, with the frame before
    assert consistency(images) == pytest.approx(np.mean(cosines))
    assert kept_detail(np.array([2.0, 1.0, 4.0, 2.0])) == pytest.approx((0.5 + 0.5 + 1) / 3, abs=1e-5)


def test_typical_motion_is_measured_on_a_folder_of_clips(tmp_path):
    options = SamplingOptions(frames=4, height=32, width=40)
    for seed in range(2):
        write_clip(tmp_path / f"{seed}.mp4", seed)
        (tmp_path / f"{seed}.txt").write_text("it brightens")
    recipe = ClipRecipe(frames=4, height=32, width=40)
    motions = [flow(read_clip(tmp_path / f"{seed}.mp4", recipe)).motion for seed in range(2)]
    assert measure_motion(tmp_path, options) == pytest.approx(np.mean(motions) / 40)
    np.save(tmp_path / "latents.npy", np.zeros(1))
    with pytest.raises(ClipsError, match="latent store"):
        measure_motion(tmp_path, options)


def test_any_clip_checkpoint_can_judge(family):
    clip = np.random.default_rng(0).integers(0, 256, (3, 40, 24, 3)).astype(np.uint8)
    judge = load_judge(family / "clip")
    assert judge.typical_motion == DEFAULT_MOTION
    assert 0 <= score_clip(clip, "a horse runs " * 60, judge) <= 10
    with pytest.raises(CheckpointError, match="no CLIP"):
        load_judge(family / "video")


def test_a_clip_that_saw_only_the_drawn_world_says_so_beside_other_clips(family, capsys):
    drawn, other = load_judge(PROJECT_ROOT / "models/tiny/clip"), load_judge(family / "clip")
    capsys.readouterr()  # transformers' bars
    warn_of_foreign(other, "3 clips")  # its config.json says nothing
    assert capsys.readouterr().err == ""
    warn_of_foreign(drawn, "3 clips")
    assert capsys.readouterr().err == (
        "note: the CLIP that judges has seen only the drawn world of tiny/world.py; of 3 clips its figures "
        "mean little: name another with --clip\n"
    )
