"""Whether an optimiser can make a fake that the judge prefers to the truth.

    python -m tiny.judge.attack                  # 8 scenes; writes models/tiny/judge/attack.json

Three opponents, who know the judge and its gradients, but not the truth:

    tricks      random search, then hill climbing, over mixtures of what can be done with a still picture:
                rocking, panning, zooming, pulsing, noise, sharpening; and with what the predictor expects
    pixels E    200 gradient steps on all pixels, none further than E grey levels from a still or from the
                best mixture of tricks
    any pixels  the same without a bound, from a still

The last one shows how far the judge is from the truth: it may end anywhere, and what it ends at is measured
by its PSNR to the truth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from huvidpo.files import write_text
from preferences.metrics import psnr
from tiny.judge.calibrate import judge_of
from tiny.judge.data import SEEDS
from tiny.judge.score import FOLDER, Expected, Judge, unit
from tiny.judge.tricks import moved, still
from training.lineage import commit

STEPS = 200
BOUNDS = (4, 16)  # grey levels


def mixture(truth: np.ndarray, expected: np.ndarray, x: np.ndarray, seed: int) -> np.ndarray:
    """A fake from the first frame alone, uint8 [F, S, S, 3]. x [10]: what of each trick, about -1..1."""
    t = np.arange(len(truth))
    rock, rise, period, pan, sink, zoom, pulse, noise, sharp, blend = x
    turn = np.sin(2 * np.pi * t / max(2.0, 8 + 4 * period))
    made = moved(still(truth), 3 * rock * turn + pan * t, 3 * rise * turn + sink * t, np.exp(0.02 * zoom * t))
    made = made * (1 + 0.1 * pulse * turn)[:, None, None, None]
    made += sharp * (made - moved(made, 1, 1, 1))
    made += max(0.0, blend) * (expected - made)
    made += abs(noise) * np.random.default_rng(seed).normal(0, 4, made.shape)
    made = np.clip(np.rint(made), 0, 255).astype(np.uint8)
    made[0] = truth[0]
    return made


def climb(
    judge: Judge, truth: np.ndarray, expected: Expected, rng: np.random.Generator, mixed: bool
) -> np.ndarray:
    """The best mixture that STEPS tries find. `mixed`: it may blend in what the predictor expects."""
    pictures = ((expected.pictures.movedim(1, -1) + 1) * 127.5).numpy()
    best, x, top = still(truth), np.zeros(10), judge.score(still(truth), expected)
    for i in range(STEPS):
        wide = i < STEPS // 3
        y = rng.normal(0, 0.5, 10) if wide else x + rng.normal(0, 0.15, 10)
        y *= rng.random(10) < (0.5 if wide else 0.8)
        y[-1] = min(1.0, abs(y[-1])) if mixed else 0.0
        made = mixture(truth, pictures, y, i)
        if (found := judge.score(made, expected)) > top:
            best, x, top = made, y, found
    return best


def push(judge: Judge, start: np.ndarray, expected: Expected, bound: float | None) -> np.ndarray:
    """`start` after STEPS gradient steps on its pixels, none further than `bound` grey levels away."""
    first, base = unit(start)[:1], unit(start)[1:]
    far = 2.0 if bound is None else bound / 127.5
    low, high = (base - far).clamp(-1, 1), (base + far).clamp(-1, 1)
    pixels = base.clone().requires_grad_()
    for i in range(STEPS):
        score = judge.log_score(judge.terms(torch.cat([first, pixels]), expected), expected.category)
        (gradient,) = torch.autograd.grad(score, pixels)
        with torch.no_grad():
            step = min(far, 0.2) * 0.1 * (1 - i / STEPS) + 1e-3
            pixels.copy_(torch.minimum(torch.maximum(pixels + step * gradient.sign(), low), high))
    return to_pixels(torch.cat([first, pixels.detach()]))


def to_pixels(clip: Tensor) -> np.ndarray:
    return ((clip.movedim(1, -1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def opponents(
    judge: Judge, truth: np.ndarray, expected: Expected, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, fake) of every opponent."""
    tricks = climb(judge, truth, expected, rng, False)
    yield "a still", still(truth)
    yield "tricks", tricks
    yield "tricks and the predictor", climb(judge, truth, expected, rng, True)
    for bound in BOUNDS:
        yield f"pixels {bound} of a still", push(judge, still(truth), expected, bound)
    yield f"pixels {BOUNDS[-1]} of tricks", push(judge, tricks, expected, BOUNDS[-1])
    yield "any pixels", push(judge, still(truth), expected, None)


def attacked(folder: Path, job: tuple[int, Any]) -> dict[str, tuple[bool, float, float, float]]:
    """Of every opponent of a scene: whether the truth wins, the fake's score and the truth's, its PSNR."""
    (i, scene), judge = job, judge_of(folder)
    truth = judge.world.render(scene, judge.world.frames)
    expected = judge.expect(truth[0], judge.world.asked(scene))
    own = judge.score(truth, expected)
    found = {}
    for name, made in opponents(judge, truth, expected, np.random.default_rng(i)):
        score = judge.score(made, expected)
        found[name] = (own > score, score, own, psnr(made[1:], truth[1:]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--judge", type=Path, default=FOLDER, help="folder of the judge")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=FOLDER / "attack.json")
    args = parser.parse_args()
    judge = judge_of(args.judge)
    jobs = enumerate(judge.world.scenes(args.scenes, SEEDS["attack"]))
    with get_context("spawn").Pool(args.workers) as pool:
        rows = pool.imap(partial(attacked, args.judge), jobs)
        scenes = list(tqdm(rows, "attack", args.scenes, unit="scene"))
    columns = ("truth_wins", "score", "score_of_truth", "psnr")
    found = {
        name: {c: round(float(np.mean([s[name][k] for s in scenes])), 4) for k, c in enumerate(columns)}
        for name in scenes[0]
    }
    facts = {"world": judge.world.name, "scenes": args.scenes, "steps": STEPS, "commit": commit()}
    write_text(args.out, json.dumps({**facts, "opponents": found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
