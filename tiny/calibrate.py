"""How often the simulated rater (`judging.judge`) is right, and how much true clips move.

    python -m tiny.calibrate --scenes 40

Spoils the later frames of rendered clips in ways anyone would mark down, and counts how often the rule
prefers the truth. docs/metrics.md has the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from judging.judge import Judge, load_judge, score_clip
from preferences.metrics import flow, freeze
from tiny.common import FAMILY
from tiny.world import CATEGORIES, SIZE, Scene, caption, random_scenes, render

SEED = 7
NOISE = 16  # standard deviation, grey levels
BLUR = 1.5  # pixels
# Mean optical flow of true clips, pixels per frame: 5 per category, those of seed 7.
TYPICAL = {
    "waterfall": 0.49, "smile": 0.22, "fireworks": 0.38, "horse": 0.52, "guitar": 0.57, "birds": 0.38,
    "helicopter": 0.39, "rain": 0.44,
}  # fmt: skip


def spoil(truth: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Clips [F, H, W, 3] whose later frames are worse than `truth`'s, by what was done to them."""
    first, later = truth[:1], truth[1:]
    patches = rng.normal(0, NOISE, (len(later), 8, 8, 3)).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    spoilt = {
        "blurred": gaussian_filter(later, (0, BLUR, BLUR, 0)),
        "noisy": later + rng.normal(0, NOISE, later.shape),
        "flickering": later + patches,
        "shuffled": later[rng.permutation(len(later))],
    }
    clips = {name: np.concatenate([first, x.clip(0, 255).astype(np.uint8)]) for name, x in spoilt.items()}
    return {"frozen": freeze(truth)} | clips


def preferred(judge: Judge, chosen: Iterable[Scene], by_category: bool = True) -> dict[str, list[bool]]:
    """Way to spoil a clip -> per scene, whether the truth scores higher.

    `by_category`: the judge is told how much the category moves; else it takes its own value for all.
    """
    won: dict[str, list[bool]] = {}
    for i, scene in enumerate(chosen):
        told = replace(judge, typical_motion=TYPICAL[scene.category] / SIZE) if by_category else judge
        truth, words = render(scene), caption(scene)
        score = score_clip(truth, words, told)
        for name, clip in spoil(truth, np.random.default_rng(i)).items():
            won.setdefault(name, []).append(score > score_clip(clip, words, told))
    return won


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--one-for-all", action="store_true", help="one typical motion for all categories")
    args = parser.parse_args()
    judge, chosen = load_judge(FAMILY / "clip"), random_scenes(args.scenes, SEED)
    won = preferred(judge, tqdm(chosen, unit="scene"), not args.one_for_all)
    print("the truth wins:", {name: f"{np.mean(right):.1%}" for name, right in won.items()}, flush=True)
    moved = {
        c: [flow(render(s)).motion for s in random_scenes(64, SEED + 1) if s.category == c]
        for c in CATEGORIES
    }
    print(
        "typical motion of 64 other scenes, pixels per frame:",
        {c: round(float(np.mean(m)), 2) for c, m in moved.items()},
    )


if __name__ == "__main__":
    main()
