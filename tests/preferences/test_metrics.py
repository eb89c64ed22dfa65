import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, shift

from preferences.metrics import (
    EvaluationError,
    bootstrap,
    clip_score,
    detail,
    flow,
    frame_consistency,
    frame_difference,
    freeze,
    mse,
    psnr,
    ratio_of_means,
    smoothness,
    ssim,
    win_rate,
)


def moving_texture(step: float, frames: int = 4, size: int = 64) -> np.ndarray:
    """A soft random texture that moves `step` pixels to the right per frame."""
    field = gaussian_filter(np.random.default_rng(0).standard_normal((size, size + 32)), 2)
    field = (field - field.min()) / np.ptp(field) * 255
    moved = [shift(field, (0, t * step), order=3, mode="nearest")[:, 16:-16] for t in range(frames)]
    return np.stack(moved).clip(0, 255).astype(np.uint8)[..., None].repeat(3, -1)


def noise_clip(seed: int, frames: int = 3, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3)).astype(np.uint8)


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0, 3.0])
def test_motion_of_a_shifted_texture_is_the_shift(step):
    found = flow(moving_texture(step))
    assert found.motion == pytest.approx(step, rel=0.05)
    assert found.explained > 0.7


def test_motion_of_a_large_clip_is_in_its_own_pixels():
    large = moving_texture(1.5, frames=3, size=96).repeat(4, 1).repeat(4, 2)
    assert flow(large).motion == pytest.approx(4 * 1.5, rel=0.1)


def test_a_frozen_clip_has_ssim_100_mse_0_and_no_motion():
    frozen = freeze(noise_clip(0))
    assert ssim(frozen) == pytest.approx(100)
    assert mse(frozen) == 0
    assert flow(frozen).motion == 0
    assert (flow(frozen).explained, smoothness(frozen)) == (1, 1)


def test_flow_explains_motion_and_not_flicker():
    noise = noise_clip(0, 4, 64)
    assert flow(moving_texture(1.0)).explained > 0.7 > 0.5 > flow(noise).explained


def test_mse_and_ssim_by_hand():
    clip = np.zeros((3, 16, 16, 3), np.uint8)
    clip[1], clip[2] = 3, 7
    assert mse(clip) == (9 + 16) / 2
    assert frame_difference(clip) == (3 + 4) / 2
    c1 = (0.01 * 255) ** 2  # flat pictures: only the luminance term of SSIM is left
    terms = [(2 * a * b + c1) / (a * a + b * b + c1) for a, b in ((0, 3), (3, 7))]
    assert ssim(clip) == pytest.approx(100 * np.mean(terms), rel=1e-4)


def test_psnr_by_hand():
    a, b = np.zeros((2, 2, 2, 3), np.uint8), np.full((2, 2, 2, 3), 51, np.uint8)  # a fifth of 255
    assert psnr(a, b) == psnr(b, a) == pytest.approx(20 * np.log10(5))
    assert psnr(a / 255, b / 255, span=1) == pytest.approx(20 * np.log10(5))
    assert psnr(a, a) == pytest.approx(20 * np.log10(255) + 60)


def test_smoothness_of_known_courses():
    def course(*values: int) -> np.ndarray:
        return np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])

    assert smoothness(course(0, 10, 20, 30)) == pytest.approx(1, abs=1e-5)
    assert smoothness(course(0, 10, 0, 10)) == pytest.approx(0, abs=1e-5)
    assert smoothness(course(0, 10)) == 1
    assert smoothness(noise_clip(0, 200, 8)) == pytest.approx(1 - 3**0.5 / 2, abs=0.03)


def test_detail_falls_with_blur():
    clip = moving_texture(1.0)
    assert detail(gaussian_filter(clip, (0, 2, 2, 0)))[1] < 0.7 * detail(clip)[1]


@pytest.mark.parametrize(
    "clip",
    [
        np.zeros((1, 16, 16, 3), np.uint8),
        np.zeros((2, 16, 16), np.uint8),
        np.zeros((2, 16, 16, 3), np.float32),
        np.zeros((2, 8, 16, 3), np.uint8),
    ],
)
def test_what_is_no_clip_is_refused(clip):
    with pytest.raises(EvaluationError, match="want uint8"):
        ssim(clip)


def test_clip_score_by_hand():
    images = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert clip_score(images, np.array([1.0, 0.0])) == pytest.approx(100 / 3)  # 1, 0 and not -1
    assert clip_score(images[1:2], np.array([1.0, 0.0])) == 0
    assert frame_consistency(images) == 0
    assert frame_consistency(images[:1].repeat(3, 0)) == 100


def test_bootstrap_covers_a_known_mean():
    rng = np.random.default_rng(0)
    estimates = [bootstrap(rng.normal(3, 2, 40), seed) for seed in range(200)]
    covered = np.mean([e.low <= 3 <= e.high for e in estimates])
    assert 0.88 <= covered <= 0.99
    width = np.mean([e.high - e.low for e in estimates])
    assert width == pytest.approx(2 * 1.96 * 2 / 40**0.5, rel=0.1)


def test_win_rate_by_hand():
    estimate = win_rate([1, 1, 1, -1])
    assert estimate.mean == 0.75
    # Wilson's interval of 3 out of 4
    assert (estimate.low, estimate.high) == (pytest.approx(0.3006, abs=1e-3), pytest.approx(0.9544, abs=1e-3))
    assert win_rate([0.5, 0.0, -0.5]).mean == 0.5
    assert win_rate([0.5, 0.2, -0.1], tie=0.3).mean == pytest.approx(2 / 3)
    assert win_rate([1] * 10).low == pytest.approx(0.722, abs=1e-3)


def test_pairs_of_one_prompt_count_as_what_they_tell():
    """A candidate no better than chance, whose luck is the prompt's: accepted in 1 of 40 cases, not in 5."""
    rng, naive, clustered, prompts = np.random.default_rng(0), 0, 0, np.repeat(range(12), 5).tolist()
    for _ in range(400):
        margins = np.repeat(rng.choice([1.0, -1.0], 12), 5)
        naive += win_rate(margins).low > 0.5
        clustered += win_rate(margins, prompts=prompts).low > 0.5
    assert naive / 400 > 0.15
    assert clustered / 400 < 0.05
    one_each = win_rate([1, 1, 1, -1], prompts=["a", "b", "c", "d"])
    assert one_each == win_rate([1, 1, 1, -1])
    assert win_rate([1] * 40, prompts=["a"] * 40).low < 0.5  # one prompt proves nothing


def test_motion_is_resampled_by_prompt_too():
    ours, theirs = [3.0] * 10 + [1.0] * 10, [2.0] * 20
    prompts = ["a"] * 10 + ["b"] * 10
    apart = ratio_of_means(ours, theirs)
    assert apart.mean == ratio_of_means(ours, theirs, prompts=prompts).mean == pytest.approx(1)
    together = ratio_of_means(ours, theirs, prompts=prompts)
    assert (together.low, together.high) == (pytest.approx(0.5), pytest.approx(1.5))
    assert apart.high - apart.low < 0.6


def test_ratio_of_means_by_hand():
    estimate = ratio_of_means([1, 2, 3], [2, 4, 6])
    assert (estimate.mean, estimate.low, estimate.high) == tuple(map(pytest.approx, (0.5, 0.5, 0.5)))
    uneven = ratio_of_means([0, 4], [2, 2])
    assert (uneven.mean, uneven.low, uneven.high) == (
        pytest.approx(1),
        pytest.approx(0, abs=1e-6),
        pytest.approx(2),
    )
    assert ratio_of_means([0, 0], [0, 0]).mean == 1


def test_statistics_of_nothing_are_refused():
    for statistic in (bootstrap, win_rate, lambda values: ratio_of_means(values, values)):
        with pytest.raises(EvaluationError, match="at least one"):
            statistic([])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(11, 20))
def test_metrics_stay_within_their_bounds(seed, frames, size):
    clip = noise_clip(seed, frames, size)
    assert -100 <= ssim(clip) <= 100
    assert 0 <= mse(clip) <= 255**2
    found = flow(clip)
    assert 0 <= found.motion < size * 2
    assert 0 <= found.explained <= 1
    assert 0 <= smoothness(clip) <= 1


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_estimates_hold_their_mean_and_swapping_sides_mirrors_them(margins, tie):
    ours, theirs = win_rate(margins, tie), win_rate([-m for m in margins], tie)
    assert 0 <= ours.low <= ours.mean <= ours.high <= 1
    assert (ours.mean, ours.low) == (pytest.approx(1 - theirs.mean), pytest.approx(1 - theirs.high))
    spread = bootstrap(margins)
    assert min(margins) - 1e-9 <= spread.low <= spread.high <= max(margins) + 1e-9
