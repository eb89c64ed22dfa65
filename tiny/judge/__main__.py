"""Train the judge of a world from nothing but its renderer, and write it.

    python -m tiny.judge                     # the shipped family's world: about an hour on one busy core
    python -m tiny.judge --world second --clips 1024 --out runs/judge-second

Steps: render -> predictor, reader, clock -> critic (it needs the predictor) -> what true clips have. A
stopped run goes on. Then `python -m tiny.judge.calibrate` measures it against the tricks, `python -m
tiny.judge.attack` against an optimiser.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tiny.common import RUNS, fit
from tiny.judge import data
from tiny.judge.score import FOLDER, Judge, Typical, build, save, unit
from tiny.judge.training import RECIPES, Criticism, Prediction, Reading, Renders, Timing
from tiny.judge.worlds import WORLDS
from training.loop import Task

TUNE = 256  # scenes that say what true clips have
NOTHING = Typical({}, [])  # is known yet


@torch.no_grad()
def measure_typical(judge: Judge, count: int) -> Typical:
    """What `count` true clips have of every term."""
    found: dict[str, list[list[float]]] = {}
    for scene in judge.world.scenes(count, data.SEEDS["tune"]):
        clip = judge.world.render(scene, judge.world.frames)
        expected = judge.expect(clip[0], judge.world.asked(scene))
        found.setdefault(scene.category, []).append(judge.terms(unit(clip), expected).tolist())
    within = np.mean([np.var(rows, 0) for rows in found.values()], 0)
    mean = {category: np.mean(rows, 0).round(5).tolist() for category, rows in found.items()}
    return Typical(mean, np.sqrt(within).round(5).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tiny.judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=WORLDS, default="first")
    parser.add_argument("--clips", type=int, default=4096, help="renders to train on (4096)")
    parser.add_argument("--steps", type=float, default=1.0, help="share of each training's steps (1)")
    parser.add_argument("--data", type=Path, help="folder of the renders (runs/tiny/judge-WORLD)")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world = WORLDS[args.world]
    folder = args.data or RUNS / f"judge-{world.name}"
    data.write(world, folder, args.clips, args.threads)
    renders, networks = Renders(world, folder), build(world)
    tasks: dict[str, Task] = {
        "predictor": Prediction(renders),
        "reader": Reading(renders),
        "clock": Timing(renders),
        "critic": Criticism(renders, networks.predictor),
    }
    for name, task in tasks.items():  # those that are done are loaded
        recipe = replace(RECIPES[name], steps=round(args.steps * RECIPES[name].steps))
        fit(f"judge-{world.name}/{name}", getattr(networks, name), task, recipe)
    save(networks, measure_typical(Judge(networks, NOTHING), TUNE), args.out)


if __name__ == "__main__":
    main()
