"""Labels of structural pairs by nearness, and what might fool them, on clips of the shipped weights."""

import numpy as np
import pytest

from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.pipeline import VideoPipeline
from judging.ratings import NEARER, nearer
from preferences.records import SEGMENT_FRAMES
from tiny.evaluate import request_for
from tiny.judge.tricks import TRICKS, fake
from tiny.world import Scene, render

SPOILT = {  # at strengths that anyone sees
    "frozen": 0, "a still rocking": 1.2, "a still panning": 0.5, "a still zooming": 1, "a still pulsing": 10,
    "halting": 12, "reversing": 15, "repeating": 4, "shuffling": 15, "jitter": 1, "rocking": 3, "zooming": 1,
    "blur": 0.8, "sharpening": 1, "flicker": 8, "flickering patches": 16, "brightness": 8,
}  # fmt: skip
SCENE = Scene("horse", "cartoon", "mars", "white", 1)


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What was filmed, and two clips made of it."""
    pipeline, truth = VideoPipeline.from_catalog(DEFAULT_MODEL, categories=[SCENE.category]), render(SCENE)
    first, second = pipeline.again([request_for(SCENE, seed) for seed in (1, 2)], [truth, truth], 0.5)
    assert first is not None
    assert second is not None
    return truth, first, second


@pytest.mark.parametrize("name", SPOILT)
def test_no_trick_wins_a_segment_from_the_clip_it_is_made_of(made, name):
    truth, first, second = made
    spoilt = fake(TRICKS[name], first, second, SPOILT[name], 0)
    for start in range(1, len(truth), SEGMENT_FRAMES):
        part = slice(start, start + SEGMENT_FRAMES)
        assert nearer(truth[part], spoilt[part], first[part], NEARER) != "a"
    assert nearer(truth[1:], spoilt[1:], first[1:], NEARER) == "b"


@pytest.mark.parametrize("pixels", [0.4, 0.5])
def test_little_blur_wins_nothing(made, pixels):
    """By how sharp the clip is, half a pixel loses or ties; less of it ties."""
    truth, first, second = made
    spoilt = fake(TRICKS["blur"], first, second, pixels, 0)
    parts = [slice(start, start + SEGMENT_FRAMES) for start in range(1, len(truth), SEGMENT_FRAMES)]
    for part in parts:
        assert nearer(truth[part], spoilt[part], first[part], NEARER) != "a"
    assert nearer(truth[1:], spoilt[1:], first[1:], NEARER) in (("tie",) if pixels < 0.5 else ("tie", "b"))
