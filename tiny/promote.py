"""The gate of the built-in family: `judging.promote` by the rendered truth and the learned judge.

    python -m tiny.promote --category horse --candidate merged.safetensors \\
        --against stage1.safetensors --accept

Both sides continue the true first frames of scenes that no training saw. The candidate ships if the judge
(`tiny.judge`) prefers it beyond chance, if by PSNR to the rendered truth it wins at least half of the pairs,
and if motion is kept. The judge says whether a clip lives as its world does; the truth cannot be fooled.
Options, verdict and files are those of `judging.promote`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from huvidpo.catalog import Category, Model
from huvidpo.errors import InvalidRequest
from judging import promote
from preferences.metrics import psnr
from tiny.evaluate import request_for
from tiny.judge.score import load
from tiny.judge.worlds import FIRST
from tiny.world import CATEGORIES, STYLES, Scene, random_scene, render

JUDGE, TRUTH = "the learned judge", "PSNR to the rendered truth"
DRAWS = 50  # scenes looked at for each that is wanted: those of seen prompts are left out


def scenes(category: str, count: int, seed: int, seen: Sequence[str]) -> list[Scene]:
    """Scenes of all styles in turn whose prompts are not among `seen`. InvalidRequest where they run out."""
    if category not in CATEGORIES:
        raise InvalidRequest(
            f"category: got {category!r}, the world has {', '.join(CATEGORIES)}; for one of your own use "
            "judging.promote, and ask people with --people",
            "category",
        )
    rng = np.random.default_rng((seed, CATEGORIES.index(category)))
    found: list[Scene] = []
    for _ in range(DRAWS * count):
        scene = random_scene(rng, category, STYLES[len(found) % len(STYLES)])
        if request_for(scene, seed).prompt not in set(seen):
            found.append(scene)
        if len(found) == count:
            return found
    raise InvalidRequest(f"rated: too few prompts of {category} are left that were not rated", "rated")


def examine(model: Model, category: Category, count: int, seed: int, seen: Sequence[str]) -> promote.Exam:
    """`promote.Examine`: scenes of the first world, its judge and the truth."""
    judge, chosen = load(), scenes(category.name, count, seed, seen)
    frames = model.defaults.frames
    if frames > FIRST.frames or model.defaults.width != FIRST.size:
        raise InvalidRequest(
            f"model: {model.name} makes {frames} frames of {model.defaults.width} pixels; the judge knows up "
            f"to {FIRST.frames} of {FIRST.size}",
            "model",
        )
    truths = [render(scene, frames) for scene in chosen]
    expected = [judge.expect(t[0], FIRST.asked(s)) for t, s in zip(truths, chosen, strict=True)]

    def measure(i: int, clip: np.ndarray) -> dict[str, float]:
        return {JUDGE: judge.score(clip, expected[i]), TRUTH: psnr(clip[1:], truths[i][1:])}

    requests = [
        dataclasses.replace(request_for(scene, seed + i), options=model.defaults)
        for i, scene in enumerate(chosen)
    ]
    return promote.Exam(
        requests, [truth[0] for truth in truths], "learned (tiny.judge), and the truth", measure
    )


if __name__ == "__main__":
    sys.exit(promote.main(examine=examine, name="tiny.promote"))
