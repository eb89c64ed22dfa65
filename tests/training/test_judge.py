import dataclasses
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip
from scipy.ndimage import gaussian_filter

from huvidpo.config import SamplingOptions
from huvidpo.errors import CheckpointError
from huvidpo.evaluation import EvaluationError, flow, freeze
from training.data import ClipsError, read_clip
from training.judge import (
    DEFAULT_MOTION,
    Judge,
    alignment,
    consistency,
    judge_clip,
    kept_detail,
    load_judge,
    measure_motion,
    score_clip,
)
from training.recipes import ClipRecipe
from training.tiny.world import CATEGORIES, STYLES, caption, random_scene, render

CLIP = Path(__file__).resolve().parents[2] / "models" / "tiny" / "clip"
SCENES = 16  # docs/metrics.md has the shares of 40


@pytest.fixture(scope="module")
def judge() -> Judge:
    if not (CLIP / "config.json").is_file():
        pytest.skip("models/tiny/clip is not there yet")
    return load_judge(CLIP)


def worse_clips(truth: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Ways to spoil the later frames of a clip; frame 0 stays."""
    first, later = truth[:1], truth[1:]
    noise = later + rng.normal(0, 16, later.shape)
    patches = rng.normal(0, 16, (len(later), 8, 8, 3)).repeat(8, 1).repeat(8, 2)
    spoilt = {
        "blurred": gaussian_filter(later, (0, 1.5, 1.5, 0)),
        "noisy": noise.clip(0, 255).astype(np.uint8),
        "flickering": (later + patches).clip(0, 255).astype(np.uint8),
        "shuffled": later[rng.permutation(len(later))],
    }
    return {"frozen": freeze(truth)} | {name: np.concatenate([first, x]) for name, x in spoilt.items()}


def test_truth_beats_every_way_to_spoil_it(judge):
    rng = np.random.default_rng(7)
    wins: dict[str, list[bool]] = {}
    for i in range(SCENES):
        scene = random_scene(rng, CATEGORIES[i % 8], STYLES[i // 4 % 4])
        truth, words = render(scene, 8), caption(scene)
        score = score_clip(truth, words, judge)
        for name, clip in worse_clips(truth, np.random.default_rng(i)).items():
            wins.setdefault(name, []).append(score > score_clip(clip, words, judge))
    shares = {name: float(np.mean(won)) for name, won in wins.items()}
    assert shares["frozen"] == 1
    assert min(shares.values()) >= 0.9, shares


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
