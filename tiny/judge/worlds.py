"""What the judge needs of a world: how to draw scenes, their clips and where the subject is, their labels.

The judge is trained for one world at a time; nothing else in `tiny.judge` knows which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiny import world as first
from tiny.second import world as second

GRID = 32
"""Places per side at which the networks work, whatever the size of the pictures."""
SUBJECT_LEVELS = 12  # grey levels by which a subject differs from what is behind it
SECOND_SIZE = 128  # pixels per side of the second generation (`tiny.second.common` has why)


@dataclass(frozen=True)
class World:
    """A procedural world. A scene is whatever `scenes` makes; it has every label as an attribute."""

    name: str
    size: int
    """Pixels per side, a multiple of GRID."""
    frames: int
    labels: dict[str, tuple[str, ...]]
    """What a request may say, by kind: the values there are."""
    told: tuple[str, ...]
    """Kinds that every request tells and that decide how a clip goes on, beside its first frame."""
    colourless: tuple[str, ...]
    """Categories that show no colour."""
    scenes: Callable[[int, int], Sequence[Any]]
    """(count, seed) -> scenes, categories and styles in turn."""
    render: Callable[[Any, int], np.ndarray]
    """(scene, frames) -> its clip, uint8 [F, S, S, 3]."""
    render_with_subject: Callable[[Any], tuple[np.ndarray, np.ndarray]]
    """scene -> its clip, and where the subject is, uint8 [F, S, S], 255 inside."""

    @property
    def fold(self) -> int:
        """Pixels per place of the grid and side."""
        return self.size // GRID

    def label_indices(self, scene: Any) -> list[int]:
        """Of each kind, the place of the scene's value."""
        return [values.index(getattr(scene, kind)) for kind, values in self.labels.items()]

    def asked(self, scene: Any) -> dict[str, str]:
        """What a request for the scene says, by kind of label."""
        hidden = ("colour",) if scene.category in self.colourless else ()
        return {kind: getattr(scene, kind) for kind in self.labels if kind not in hidden}


def subject_of_first(scene: first.Scene) -> tuple[np.ndarray, np.ndarray]:
    """In the first world the subject is whatever is not the place behind it."""
    clip = first.render(scene)
    empty = first.background(scene, np.random.default_rng(scene.seed)).finished()
    there = np.abs(clip.astype(np.int16) - empty).max(-1) > SUBJECT_LEVELS
    return clip, there.astype(np.uint8) * 255


def render_second(scene: second.Scene, frames: int) -> np.ndarray:
    return second.render(scene, frames, SECOND_SIZE)


def subject_of_second(scene: second.Scene) -> tuple[np.ndarray, np.ndarray]:
    return second.render_with_subject(scene, second.FRAMES, SECOND_SIZE)


FIRST = World(
    name="first",
    size=first.SIZE,
    frames=first.FRAMES,
    labels={
        "category": first.CATEGORIES,
        "style": first.STYLES,
        "place": tuple(first.PLACES),
        "colour": tuple(first.COLOURS),
    },
    told=("category",),
    colourless=first.COLOURLESS,
    scenes=first.random_scenes,
    render=first.render,
    render_with_subject=subject_of_first,
)
SECOND = World(
    name="second",
    size=SECOND_SIZE,
    frames=second.FRAMES,
    labels={
        "category": second.CATEGORIES,
        "style": second.STYLES,
        "place": tuple(second.PLACES),
        "colour": tuple(second.COLOURS),
        "camera": second.CAMERAS,
    },
    told=("category", "camera"),
    colourless=second.COLOURLESS,
    scenes=second.random_scenes,
    render=render_second,
    render_with_subject=subject_of_second,
)
WORLDS = {world.name: world for world in (FIRST, SECOND)}
