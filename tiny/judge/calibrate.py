"""How often the judge prefers the truth to a trick, by trick, strength and category.

    python -m tiny.judge.calibrate               # 128 scenes; writes models/tiny/judge/calibration.json
    python -m tiny.judge.calibrate --scenes 16 --out quick.json --workers 2

Scenes that no training saw. Where a trick changes nothing (a motion that repeats itself, looped), there is
nothing to prefer: such pairs are left out and counted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from huvidpo.files import write_text
from preferences.metrics import win_rate
from tiny.judge.data import SEEDS
from tiny.judge.score import FOLDER, Judge, load
from tiny.judge.tricks import TRICKS, fake
from training.lineage import commit

WANTED = 0.95  # share of pairs that the truth must win
Wins = dict[tuple[str, float], bool | None]
"""(trick, strength) -> whether the truth scores above its fake; None where both are one."""


def compare(judge: Judge, scene: Any, other: Any, seed: int, tricks: Sequence[str] = tuple(TRICKS)) -> Wins:
    """The truth of `scene` against its fakes; `other` is the scene whose motion is pasted."""
    truth, second = (judge.world.render(s, judge.world.frames) for s in (scene, other))
    expected = judge.expect(truth[0], judge.world.asked(scene))
    own = judge.score(truth, expected)
    found: Wins = {}
    for name in tricks:
        for strength in TRICKS[name].strengths:
            made = fake(TRICKS[name], truth, second, strength, seed)
            found[name, strength] = None if np.array_equal(made, truth) else own > judge.score(made, expected)
    return found


def pairs_of_scenes(judge: Judge, count: int, seed: int) -> list[tuple[Any, Any]]:
    """(scene, another of its category and style), `count` of them, categories and styles in turn."""
    cycle = len(judge.world.labels["category"]) * len(judge.world.labels["style"])
    ahead = -(-count // cycle) * cycle
    scenes = judge.world.scenes(ahead + count, seed)
    return [(scenes[i], scenes[ahead + i]) for i in range(count)]


def table(rows: Sequence[tuple[str, Mapping[tuple[str, float], bool | None]]]) -> dict[str, Any]:
    """trick -> its unit and, by strength, the share of pairs that the truth wins (a tie counts as lost), with
    Wilson's interval, and by category; how many pairs there were and how many were none. `rows`: of each
    scene its category and wins.
    """
    result: dict[str, Any] = {}
    for name, strength in rows[0][1]:
        won = [(category, wins[name, strength]) for category, wins in rows]
        judged = [(category, bool(w)) for category, w in won if w is not None]
        if not judged:
            continue
        by_category = {
            c: round(float(np.mean([w for k, w in judged if k == c])), 3)
            for c in sorted({k for k, _ in judged})
        }
        trick = result.setdefault(
            name, {"unit": TRICKS[name].unit, "still": TRICKS[name].still, "strengths": {}}
        )
        wins = win_rate([1 if w else -1 for _, w in judged])
        trick["strengths"][f"{strength:g}"] = {
            "truth_wins": round(wins.mean, 4),
            "interval": [round(wins.low, 4), round(wins.high, 4)],
            "pairs": len(judged),
            "no_pairs": len(won) - len(judged),
            "by_category": by_category,
        }
    return result


@cache
def judge_of(folder: Path) -> Judge:
    """The judge in a folder, once per process, on one thread."""
    torch.set_num_threads(1)
    return load(folder)


def examined(folder: Path, job: tuple[int, tuple[Any, Any]]) -> tuple[str, Wins]:
    """A row of `table`: job is (number, (scene, other))."""
    i, (scene, other) = job
    return scene.category, compare(judge_of(folder), scene, other, i)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=128)
    parser.add_argument("--judge", type=Path, default=FOLDER, help="folder of the judge")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--seed", type=int, default=SEEDS["calibrate"])
    parser.add_argument("--out", type=Path, default=FOLDER / "calibration.json")
    args = parser.parse_args()
    judge = judge_of(args.judge)
    jobs = enumerate(pairs_of_scenes(judge, args.scenes, args.seed))
    with get_context("spawn").Pool(args.workers) as pool:
        rows = pool.imap(partial(examined, args.judge), jobs)
        found = table(list(tqdm(rows, "calibrate", args.scenes, unit="scene")))
    facts = {"world": judge.world.name, "scenes": args.scenes, "seed": args.seed, "commit": commit()}
    write_text(args.out, json.dumps({**facts, "tricks": found}, indent=1) + "\n")
    for name, trick in found.items():
        shares = ", ".join(f"{100 * v['truth_wins']:.1f} at {s}" for s, v in trick["strengths"].items())
        print(f"| {name}{trick['unit'] and ', '}{trick['unit']} | {shares} |")


if __name__ == "__main__":
    main()
