"""Clips of the tiny family's subjects seen anyhow, without end: what its video base learns to animate.

Of ten clips four show the family's world (`tiny.world`) as it is, three show it mirrored, moved within the
picture or both, and three show the second world (`tiny.second`): other looks, sizes, places and moments, and
pictures in which nothing moves. Clip number n is a pure function of n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tiny import world
from tiny.second import world as second

SEED = 31
SHORT, LONG = 24, 48
"""Frames of a clip: more than are shown at once, so that one may start at any moment."""
EVERY_LONG = 4
EVERY_STILL = 6  # one clip of so many of the second world is a picture in which nothing moves
MOST_RIGHT, MOST_DOWN = 16, 8  # pixels
DROPS = (0.0, 0.3)  # chance that a caption leaves colour, place or style out
WORDINGS = 2
"""Captions of a clip."""

Array = np.ndarray


@dataclass(frozen=True)
class Filmed:
    """One clip: pixels uint8 [SHORT or LONG, 64, 64, 3] and what people might call it."""

    pixels: Array
    captions: list[str]


def moved(clip: Array, right: int, down: int, mode: str = "edge") -> Array:
    """A clip [F, H, W, 3] moved by whole pixels; what comes into view repeats the edge, or comes from the
    other side (`wrap`).
    """
    far = max(abs(right), abs(down))
    wide = np.pad(clip, ((0, 0), (far, far), (far, far), (0, 0)), mode=mode)  # type: ignore[call-overload]
    height, width = clip.shape[1:3]
    return wide[:, far - down :, far - right :][:, :height, :width]


def seen_anyhow(clip: Array, rng: np.random.Generator) -> Array:
    """A clip mirrored, moved or both; moved by even numbers: pixel art has blocks of two pixels."""
    flip = rng.random() < 0.6
    right, down = (2 * int(rng.integers(-most // 2, most // 2 + 1)) for most in (MOST_RIGHT, MOST_DOWN))
    if flip:
        clip = clip[:, :, ::-1]
        if rng.random() < 0.4:
            return clip
    return moved(clip, right, down, "edge" if rng.random() < 0.7 else "wrap")


def film(number: int) -> Filmed:
    """Clip number `number`."""
    rng = np.random.default_rng((SEED, number))
    frames = LONG if rng.random() < 1 / EVERY_LONG else SHORT
    category = world.CATEGORIES[number % 8]
    if number % 10 < 7:
        scene = world.random_scene(rng, category)
        clip = world.render(scene, frames)
        if number % 10 >= 4:
            clip = seen_anyhow(clip, rng)
    else:
        scene, other = second_scene(rng, category)
        clip = second.render(other, frames, world.SIZE)
    words = [world.caption(scene, rng, float(rng.choice(DROPS))) for _ in range(WORDINGS)]
    return Filmed(np.ascontiguousarray(clip), words)


def second_scene(rng: np.random.Generator, category: str) -> tuple[world.Scene, second.Scene]:
    """A scene of the second world that the family has words for (its own colours, the camera stands still),
    and a scene of the first that is called the same. A picture in which nothing moves is called anything.
    """
    colours = world.BRIGHT if category == "fireworks" else tuple(world.COLOURS)
    other = replace(second.random_scene(rng, category), camera=second.STILL, colour=str(rng.choice(colours)))
    named = world.Scene(category, other.style, other.place, other.colour, 0)
    if rng.random() < 1 / EVERY_STILL:
        other = replace(other, category=second.STILL)
    return named, other


def held_out(scenes: Sequence[world.Scene], name: str) -> Array:
    """Clips uint8 [N, 16, 64, 64, 3] of `scenes` in one of the VIEWS."""
    clips = np.stack([world.render(scene, SHORT if name == "later" else world.FRAMES) for scene in scenes])
    return np.stack([VIEWS[name](clip)[: world.FRAMES] for clip in clips])


LATER = 5
VIEWS = {
    "as it is": lambda clip: clip,
    "mirrored": lambda clip: clip[:, :, ::-1],
    "8 px right": lambda clip: moved(clip, 8, 0),
    "16 px left": lambda clip: moved(clip, -16, 0),
    "later": lambda clip: clip[LATER:],
}
"""How a clip of the family's world can be seen; `later`: from frame LATER, its sixth, on."""
