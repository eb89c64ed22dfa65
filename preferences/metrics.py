"""Quality metrics of clips: pure functions of pixels and of feature vectors. Formulas: docs/metrics.md.

Clips are uint8 [F, H, W, 3] in RGB. Letters: F frames, H W pixels, D size of a CLIP embedding. What needs
scikit-image imports it when called: the service does without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from huvidpo.errors import HuViDPOError

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # ITU-R BT.709
SSIM_SIDE = 11  # pixels: the window of Wang et al. 2004, so the least side of a clip
FLOW_SIDE = 128  # pixels: a larger clip is shrunk to about this before its optical flow is estimated
RESAMPLES = 2000  # of a bootstrap


class EvaluationError(HuViDPOError, ValueError):
    """Clips or scores that cannot be measured."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Flow:
    """What optical flow says of a clip."""

    motion: float
    """Mean length of the flow, over all pixels and pairs of adjacent frames; pixels per frame."""
    explained: float
    """Share 0..1 of the change between adjacent frames that following the flow undoes: what moves is
    explained, what flickers is not. 1 for a frozen clip.
    """


# Pixels


def ssim(frames: np.ndarray) -> float:
    """Mean structural similarity of adjacent frames, x 100 (Wang et al. 2004): 100 for a frozen clip.

    Raises EvaluationError for another shape or type, fewer than two frames and sides below 11 pixels.
    """
    from skimage.metrics import structural_similarity

    check_clip(frames, SSIM_SIDE)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    values = [structural_similarity(a, b, channel_axis=-1, **settings) for a, b in pairwise(frames)]
    return 100 * float(np.mean(values))


def mse(frames: np.ndarray) -> float:
    """Mean squared difference of adjacent frames over pixels and channels, in grey levels of 255, squared.

    Raises EvaluationError as `ssim` does, sides aside.
    """
    check_clip(frames)
    return float(np.square(np.diff(frames.astype(np.float32), axis=0)).mean())


def psnr(a: np.ndarray, b: np.ndarray, span: float = 255) -> float:
    """PSNR in dB of `a` against `b`, of one shape, from the mean squared error over all of it; at most
    20 lg(span) + 60. `span`: from the least possible value to the largest.

    Of a clip not the mean of its frames' PSNRs: one frame that equals the first would decide the value of a
    periodic motion.
    """
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean()
    return float(10 * np.log10(span**2 / max(error, 1e-6)))


def frame_difference(frames: np.ndarray) -> float:
    """Mean absolute difference of adjacent frames over pixels and channels, in grey levels of 255."""
    return float(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean())


def flow(frames: np.ndarray) -> Flow:
    """Motion by TV-L1 optical flow (Zach et al. 2007) of the luma of adjacent frames, and what it explains.

    A clip above `FLOW_SIDE` pixels is shrunk by a whole factor and its flow scaled back. Raises
    EvaluationError as `ssim` does, sides aside.
    """
    from skimage.registration import optical_flow_tvl1

    check_clip(frames)
    factor = max(1, round(max(frames.shape[1:3]) / FLOW_SIDE))
    grey = _shrink(luma(frames) / 255, factor)
    lengths, changes, left = [], [], []
    for a, b in pairwise(grey):
        field = optical_flow_tvl1(a, b)
        lengths.append(np.hypot(*field).mean())
        changes.append(np.abs(b - a).mean())
        left.append(np.abs(_fetch(b, field) - a).mean())
    explained = 1 - sum(left) / sum(changes) if sum(changes) > 0 else 1.0
    return Flow(factor * float(np.mean(lengths)), max(0.0, float(explained)))


def smoothness(frames: np.ndarray) -> float:
    """1 - |second difference| / (2 |first difference|) of the luma in time, means over the clip; 0..1.

    1 for a steady change and for a frozen clip, .13 for white noise, 0 for two frames that alternate.
    """
    check_clip(frames)
    first = np.diff(luma(frames), axis=0)
    if len(first) < 2 or not first.any():
        return 1.0
    return max(0.0, 1 - float(np.abs(np.diff(first, axis=0)).mean() / (2 * np.abs(first).mean())))


def detail(frames: np.ndarray) -> np.ndarray:
    """How much there is to see in each frame: mean absolute luma gradient [F], grey levels per pixel."""
    grey = luma(frames)
    return np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))


def luma(frames: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> float32 [...], grey levels 0..255."""
    return frames.astype(np.float32) @ LUMA


def freeze(frames: np.ndarray) -> np.ndarray:
    """The first frame shown for the whole clip: the baseline that every table carries."""
    return np.repeat(frames[:1], len(frames), 0)


def check_clip(frames: np.ndarray, least_side: int = 2) -> None:
    """Raises EvaluationError unless `frames` is uint8 [F >= 2, H, W, 3] with sides of `least_side`."""
    good = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3
    if not good or len(frames) < 2 or min(frames.shape[1:3]) < least_side:
        raise EvaluationError(
            f"clip: got {frames.dtype} {list(frames.shape)}, want uint8 [F, H, W, 3] with at least 2 frames "
            f"of at least {least_side} x {least_side} pixels"
        )


def _shrink(grey: np.ndarray, factor: int) -> np.ndarray:
    """[F, H, W] by the mean over squares of `factor` pixels; what is over at the far edges is cut off."""
    frames, height, width = grey.shape
    rows, columns = height // factor, width // factor
    cut = grey[:, : rows * factor, : columns * factor]
    return cut.reshape(frames, rows, factor, columns, factor).mean((2, 4))


def _fetch(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """`image` [H, W] sampled where `field` [2, H, W] (down, right) points, bilinearly."""
    from skimage.transform import warp

    grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"))
    return warp(image, grid + field, order=1, mode="edge")


# CLIP embeddings: unit vectors


def clip_score(images: np.ndarray, text: np.ndarray) -> float:
    """CLIPScore (Hessel et al. 2021), 0..100: mean over frames of 100 max(cos, 0).

    `images` [F, D] and `text` [D] are unit vectors. The weight is 100, as torchmetrics has it, not 2.5.
    """
    return 100 * float(np.maximum(images @ text, 0).mean())


def frame_consistency(images: np.ndarray) -> float:
    """Mean cosine of the embeddings [F, D] of adjacent frames, x 100: 100 for a frozen clip."""
    return 100 * float((images[1:] * images[:-1]).sum(1).mean())


# Statistics over clips


def bootstrap(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of `values`, one per clip, with a percentile bootstrap interval. EvaluationError for none."""
    if not len(values):
        raise EvaluationError("no clips came, at least one is needed")
    sample = np.asarray(values, float)
    rows = np.random.default_rng(seed).integers(len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.quantile(sample[rows].mean(1), [0.025, 0.975])
    return Estimate(float(sample.mean()), float(low), float(high))


def win_rate(margins: Sequence[float], tie: float = 0.0, prompts: Sequence[str] = ()) -> Estimate:
    """The share of pairs that are won, 0..1, with Wilson's score interval; a tie counts half.

    `margins`: score of ours less that of the other, one per pair; within `tie` of 0 is a tie. Wilson's
    interval, unlike the bootstrap's, keeps its width when every pair is won. `prompts`: of the pairs; those
    of one prompt are no independent trials, so the interval is then the wider of the bootstrap's over prompts
    and Wilson's of as many trials as there are prompts. EvaluationError for no pairs.
    """
    if not len(margins):
        raise EvaluationError("no pairs came, at least one is needed")
    margin = np.asarray(margins, float)
    won = np.where(np.abs(margin) <= tie, 0.5, margin > 0)
    share, trials = float(won.mean()), len(set(prompts)) or len(won)
    low, high = _wilson(share, trials)
    if trials < len(won):
        means = _resampled(won[:, None], prompts, 0)[:, 0]
        low, high = min(low, float(np.quantile(means, 0.025))), max(high, float(np.quantile(means, 0.975)))
    return Estimate(share, low, high)


def _wilson(share: float, count: int) -> tuple[float, float]:
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # at the ends the bounds meet the share, but for rounding
    return max(0.0, min(share, float(middle - half))), min(1.0, max(share, float(middle + half)))


def ratio_of_means(
    ours: Sequence[float], theirs: Sequence[float], seed: int = 0, prompts: Sequence[str] = ()
) -> Estimate:
    """Mean of `ours` by the mean of `theirs`, with a percentile bootstrap interval over the pairs, or over
    their `prompts` where these are given.

    Both hold one value, 0 or more, per pair. Nothing by nothing is 1. EvaluationError for no pairs.
    """
    if not len(ours):
        raise EvaluationError("no pairs came, at least one is needed")
    pairs = np.stack([np.asarray(ours, float), np.asarray(theirs, float)], axis=1)
    means = _resampled(pairs, prompts, seed)
    low, high = np.quantile([_ratio(*both) for both in means], [0.025, 0.975], method="nearest")
    return Estimate(_ratio(*pairs.mean(0)), float(low), float(high))


def _resampled(values: np.ndarray, prompts: Sequence[str], seed: int) -> np.ndarray:
    """Means [RESAMPLES, K] of `values` [pairs, K] over prompts drawn with replacement, each with all its
    pairs; over pairs where no `prompts` are given.
    """
    names: Sequence[Any] = prompts or range(len(values))
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    group = [place[name] for name in names]
    sums, counts = np.zeros((len(place), values.shape[1])), np.bincount(group)
    np.add.at(sums, group, values)
    rows = np.random.default_rng(seed).integers(len(place), size=(RESAMPLES, len(place)))
    return sums[rows].sum(1) / counts[rows].sum(1)[:, None]


def _ratio(a: float, b: float) -> float:
    return float((a + 1e-9) / (b + 1e-9))
