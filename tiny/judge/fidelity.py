"""How near a clip is to the rendered truth: the field's metrics, in all and where the truth moves.

Clips are uint8 [F, S, S, 3] with the first frame in common.
"""

from __future__ import annotations

import numpy as np

from preferences.metrics import luma, psnr

MOVES = 8  # grey levels by which a moving pixel leaves its first value


def moving(truth: np.ndarray) -> np.ndarray:
    """Pixels that ever differ from the first frame, bool [S, S]."""
    away = np.abs(truth.astype(np.int16) - truth[:1])
    return away.max((0, 3)) > MOVES


def fidelity(clip: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PSNR and, over moving pixels, PSNR, SSIM x 100, how much changes from frame to frame by how much does
    in the truth, and the PSNR of those changes (a clip may be near in each frame and yet flicker).
    """
    where = moving(truth)
    ours, theirs = clip[1:][:, where], truth[1:][:, where]
    changes = [np.diff(x.astype(np.float32), axis=0)[:, where] for x in (clip, truth)]
    return {
        "psnr": psnr(clip[1:], truth[1:]),
        "psnr_moving": psnr(ours, theirs),
        "ssim_moving": ssim_where(clip[1:], truth[1:], where),
        "motion": float(np.abs(changes[0]).mean() / np.abs(changes[1]).mean()),
        "psnr_of_changes": psnr(changes[0], changes[1]),
    }


def ssim_where(clip: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """Structural similarity of the luma (Wang et al. 2004) over the pixels `where`, x 100."""
    from skimage.metrics import structural_similarity

    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    frames = zip(luma(clip), luma(truth), strict=True)
    maps = [structural_similarity(a, b, full=True, **settings)[1] for a, b in frames]
    return 100 * float(np.mean([found[where].mean() for found in maps]))
