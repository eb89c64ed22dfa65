"""What beta does to a preference run of the tiny family: `tiny_dpo` with betas far apart.

    python -m benchmarks.dpo_beta --category helicopter          four runs, about ten minutes on two cores

Needs the rated clips and stage-1 weights of `python -m tiny.preferences`. Metrics of the last evaluation
(training/monitors.py): accuracy and margin of held-out pairs, drift of winners and losers in per cent of the
reference's error (winners should not rise), norm of the LoRA, frame difference of the sample clips by stage
1's. Prints a table and appends one JSON line to benchmarks/results/.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import ROOT, record
from huvidpo import video
from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.files import hash_file
from preferences.clips import ClipEntry, write_clips
from preferences.metrics import freeze
from preferences.records import RATINGS_FILE, Rating, append
from tiny.common import FAMILY, STAGE1
from tiny.preferences import LOOPS
from tiny.world import caption, random_scene, render


def run(category: str, clips: Path, stage1: Path, beta: float, steps: int, *more: str) -> dict[str, Any]:
    """The last evaluation of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "training.dpo", "--model", DEFAULT_MODEL, "--category", category]
        command += ["--clips", str(clips), "--stage1", str(stage1), "--run", f"{folder}/run"]
        command += [
            "--out",
            f"{folder}/lora.safetensors",
            "--steps",
            str(steps),
            "--set",
            f"beta={beta}",
            *more,
        ]
        subprocess.run(command, check=True, cwd=ROOT)
        evaluations = Path(folder, "run", "monitors.jsonl").read_text(encoding="utf-8").splitlines()
    return {"beta": beta, **json.loads(evaluations[-1])}


def make_up(folder: Path, category: str) -> Path:
    """Four rendered clips, each moving and frozen: rated 8 and 2."""
    rng, entries = np.random.default_rng(0), []
    for i in range(4):
        scene = random_scene(rng, category)
        for kind, score in (("moving", 8.0), ("frozen", 2.0)):
            name, words = f"{i}_{kind}.mp4", caption(scene)
            clip = render(scene) if kind == "moving" else freeze(render(scene))
            (folder / name).write_bytes(video.encode(clip, 8))
            entries.append(ClipEntry(video=name, caption=words, category=category))
            rating = Rating(
                rater="made up", category=category, clip=name, sha256=hash_file(folder / name), prompt=words,
                score=score,
            )  # fmt: skip
            append(folder / RATINGS_FILE, rating)
    write_clips(folder, entries)
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("one beta, one step, made-up ratings of four rendered clips")
    parser.add_argument("--category", default="helicopter")
    parser.add_argument("--betas", nargs="+", type=float, default=[50, 500, 5000, 50_000])
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args(arguments)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            clips = make_up(Path(folder), args.category)
            rows = [
                run(
                    args.category,
                    clips,
                    FAMILY / "categories" / f"{args.category}.safetensors",
                    500,
                    1,
                    *("--set", "frames=4", "--set", "sample_steps=1"),
                )
            ]
    else:
        clips, stage1 = LOOPS / args.category / "candidates", STAGE1 / f"{args.category}.safetensors"
        if not (clips / RATINGS_FILE).is_file() or not stage1.is_file():
            sys.exit(f"{clips} or {stage1} is not there: run python -m tiny.preferences first, or --quick")
        rows = [run(args.category, clips, stage1, beta, args.steps) for beta in args.betas]
    print(f"{'beta':>8}{'accuracy':>10}{'beta x margin':>15}{'winners':>10}", end="")
    print(f"{'losers':>9}{'LoRA':>7}{'change':>8}")
    for row in rows:
        print(
            f"{row['beta']:>8.0f}{row['held_out_accuracy']:>10.2f}"
            f"{row['beta'] * row['held_out_margin']:>15.2f}{100 * row['held_out_winner_drift']:>+9.1f}%"
            f"{100 * row['held_out_loser_drift']:>+8.1f}%{row['lora_norm']:>7.2f}"
            f"{row['frame_difference'] / row['frame_difference_before']:>8.2f}"
        )
    if not args.quick:
        record(args, rows=rows)


if __name__ == "__main__":
    main()
