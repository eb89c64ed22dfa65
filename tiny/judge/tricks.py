"""What would fool a judge: named ways to fake or to spoil a clip, each at several strengths, weak ones first.

The critic is not trained on them (`tiny.judge.corruptions`). Clips are uint8 [F, S, S, 3]. A trick is made of
the truth, of the clip of another scene of its category and style, and of a strength; frame 0 always stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

Clip = np.ndarray
Make = Callable[[Clip, Clip, float, np.random.Generator], np.ndarray]
PERIOD = 8  # frames, of what rocks


@dataclass(frozen=True)
class Trick:
    """A way to fake a clip."""

    make: Make
    strengths: tuple[float, ...]
    unit: str
    still: bool = False
    """Whether it shows nothing but the first frame."""


def moved(
    frames: Clip, right: np.ndarray | float, down: np.ndarray | float, zoom: np.ndarray | float
) -> np.ndarray:
    """Each of F frames shifted by so many pixels and zoomed about its middle, edges repeated."""
    middle = (frames.shape[1] - 1) / 2
    made = np.empty(frames.shape, np.float32)
    each = (np.broadcast_to(x, len(frames)) for x in (right, down, zoom))
    for f, (to_right, to_bottom, scale) in enumerate(zip(*each, strict=True)):
        away = middle * (1 - 1 / scale)
        offset, inverse = (away - to_bottom / scale, away - to_right / scale), np.full(2, 1 / scale)
        for c in range(3):
            plane = frames[f, ..., c].astype(np.float32)
            made[f, ..., c] = affine_transform(plane, inverse, offset, order=1, mode="nearest")
    return made


def still(truth: Clip) -> Clip:
    return np.repeat(truth[:1], len(truth), 0)


def taken(truth: Clip, at: np.ndarray) -> np.ndarray:
    """Frames at any times `at` [F], blended between neighbours."""
    at = np.clip(at, 0, len(truth) - 1)
    low = np.floor(at).astype(int)
    share = (at - low)[:, None, None, None]
    return truth[low] * (1 - share) + truth[np.minimum(low + 1, len(truth) - 1)] * share


def count(truth: Clip) -> np.ndarray:
    return np.arange(len(truth), dtype=np.float32)


def swing(truth: Clip) -> np.ndarray:
    return np.sin(2 * np.pi * count(truth) / PERIOD)


def rocking_still(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return moved(still(t), s * swing(t), 0, 1)


def panning_still(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return moved(still(t), s * count(t), 0, 1)


def zooming_still(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return moved(still(t), 0, 0, (1 + s / 100) ** count(t))


def pulsing_still(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return still(t) * (1 + s / 100 * swing(t))[:, None, None, None]


def frozen(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return still(t)


def halting(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    """The last `s` frames stand still."""
    return taken(t, np.minimum(count(t), len(t) - 1 - s))


def reversing(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    """The last `s` frames played backwards."""
    start = len(t) - int(s)
    return np.concatenate([t[:start], t[start:][::-1]])


def slowing(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return taken(t, count(t) * (1 - s / 100))


def looping(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    """The first `s` frames again and again."""
    return t[np.arange(len(t)) % int(s)]


def repeating(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    """Each frame shown `s` times; what does not fit is not shown."""
    return t[np.arange(len(t)) // int(s)]


def shuffling(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    """`s` later frames in each other's place."""
    order, some = np.arange(len(t)), r.choice(np.arange(1, len(t)), int(s), replace=False)
    order[some] = np.roll(some, 1)
    return t[order]


def jitter(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return moved(t, r.normal(0, s, len(t)), r.normal(0, s, len(t)), 1)


def rocking(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return moved(t, s * swing(t), 0, 1)


def zooming(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return moved(t, 0, 0, (1 + s / 100) ** count(t))


def blur(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return gaussian_filter(t.astype(np.float32), (0, s, s, 0))


def sharpening(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return t + s * (t - gaussian_filter(t.astype(np.float32), (0, 1, 1, 0)))


def flicker(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    return t + r.normal(0, s, (len(t), 1, 1, 1))


def patches(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    side = t.shape[1] // 8
    return t + r.normal(0, s, (len(t), 8, 8, 3)).repeat(side, 1).repeat(side, 2)


def brightness(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    """Brighter or darker by and by, by `s` percent at the end."""
    sign = 1 if r.random() < 0.5 else -1
    return t * (1 + sign * s / 100 * count(t) / (len(t) - 1))[:, None, None, None]


def fading(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    """Back to the first frame, by `s` percent at the end."""
    share = (s / 100 * count(t) / (len(t) - 1))[:, None, None, None]
    return t + share * (t[:1].astype(np.float32) - t)


def pasting(t: Clip, o: Clip, s: float, r: np.random.Generator) -> np.ndarray:
    """`s` percent of the change since the first frame is another scene's."""
    own, others = (clip - clip[:1].astype(np.float32) for clip in (t, o))
    return t[:1] + (1 - s / 100) * own + s / 100 * others


TRICKS: dict[str, Trick] = {
    "frozen": Trick(frozen, (0,), "", True),
    "a still rocking": Trick(rocking_still, (0.25, 0.5, 1, 1.2, 2, 3), "px", True),
    "a still panning": Trick(panning_still, (0.1, 0.25, 0.5, 1), "px a frame", True),
    "a still zooming": Trick(zooming_still, (0.25, 0.5, 1, 2), "% a frame", True),
    "a still pulsing": Trick(pulsing_still, (1, 3, 10), "% of brightness", True),
    "halting": Trick(halting, (1, 2, 4, 8, 12), "last frames"),
    "reversing": Trick(reversing, (2, 4, 8, 15), "last frames"),
    "slow motion": Trick(slowing, (2, 5, 10, 25, 50), "%"),
    "looping": Trick(looping, (15, 12, 6, 4), "first frames"),
    "repeating": Trick(repeating, (2, 3, 4), "times each frame"),
    "shuffling": Trick(shuffling, (2, 4, 8, 15), "frames"),
    "jitter": Trick(jitter, (0.05, 0.1, 0.25, 0.5, 1), "px"),
    "rocking": Trick(rocking, (0.05, 0.1, 0.25, 0.5, 1, 3), "px"),
    "zooming": Trick(zooming, (0.05, 0.1, 0.25, 1), "% a frame"),
    "blur": Trick(blur, (0.3, 0.4, 0.5, 0.8, 1.5), "px"),
    "sharpening": Trick(sharpening, (0.05, 0.1, 0.2, 0.5, 1), "of what blur takes"),
    "flicker": Trick(flicker, (0.5, 1, 2, 4, 8), "grey levels"),
    "flickering patches": Trick(patches, (1, 2, 4, 8, 16), "grey levels"),
    "brightness": Trick(brightness, (0.5, 1, 2, 4, 8), "% at the end"),
    "fading to the first frame": Trick(fading, (2, 5, 10, 20, 50), "% at the end"),
    "another's motion": Trick(pasting, (5, 10, 25, 50, 100), "%"),
}


def fake(trick: Trick, truth: Clip, other: Clip, strength: float, seed: int) -> Clip:
    """The trick's clip, uint8, from the truth's own first frame."""
    made = trick.make(truth, other, strength, np.random.default_rng(seed))
    made = np.clip(np.rint(made), 0, 255).astype(np.uint8)
    made[0] = truth[0]
    return made
