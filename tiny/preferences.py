"""Take the tiny family's categories through the whole preference loop, with simulated ratings.

    python -m tiny.preferences                          # all eight, from runs/tiny/stage1
    python -m tiny.preferences --category horse rain

Per category: 16 clips, eight made by the stage-1 weights beside the eight rendered ones whose first frames
they start from -> ratings by the stated rule of `judging.judge` (no people rated anything) -> a DPO LoRA
-> merge -> the promotion gate. What passes ships in models/tiny/categories; where the gate refuses, or the
error of held-out winners rose in training (the loser was made worse, and the winner with it), the stage-1
weights do. Every step is the command that a user types; finished steps are kept. Everything lies in
runs/tiny/preferences/<category>, the verdict in `gate/promotion.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from huvidpo import video
from huvidpo.files import make_folder, write_bytes
from judging.promote import REFUSED, REPORT
from preferences.clips import CAPTIONS_FILE, ClipEntry, write_clips
from tiny.common import FAMILY, RUNS, STAGE1
from tiny.evaluate import request_for
from tiny.world import CATEGORIES, FRAMES, STYLES, caption, random_scene, render
from training import monitors
from training.lineage import place

MODULE = [sys.executable, "-m"]
LOOPS = RUNS / "preferences"
FILMED, SEED = 8, 1000


def commands(category: str) -> dict[Path, list[str]]:
    """What each step leaves -> its command, in order."""
    folder, stage1 = LOOPS / category, str(STAGE1 / f"{category}.safetensors")
    clips, lora, merged = folder / "candidates", folder / "lora.safetensors", folder / "merged.safetensors"
    named = ["--model", "tiny", "--category", category]
    rated = ["--clips", str(clips)]
    return {
        clips / "captions.jsonl": [
            "judging.candidates", *named, "--weights", stage1, "--beside", str(folder / "filmed"),
            "--count", str(FILMED), "--seed", str(SEED), "--out", str(clips),
        ],
        clips / "ratings.jsonl": ["judging.ratings", "simulate", "--model", "tiny", *rated],
        lora: [
            "training.dpo", *named, *rated, "--stage1", stage1, "--out", str(lora),
            "--run", str(folder / "run"), "--resume",
        ],
        merged: [
            "training.merge", "--model", "tiny", "--stage1", stage1, "--lora", str(lora),
            "--out", str(merged),
        ],
    }  # fmt: skip


def film(category: str) -> None:
    """Render clips that no training saw, two of each style: the real thing among the candidates."""
    folder = LOOPS / category / "filmed"
    if (folder / CAPTIONS_FILE).exists():
        return
    make_folder(folder)
    rng = np.random.default_rng((SEED, CATEGORIES.index(category)))
    entries = []
    for i in range(FILMED):
        scene = random_scene(rng, category, STYLES[i % len(STYLES)])
        request = request_for(scene, SEED)
        name = f"{i:04d}.mp4"
        write_bytes(folder / name, video.encode(render(scene, FRAMES), request.options.fps))
        entries.append(
            ClipEntry(
                video=name,
                caption=caption(scene),
                prompt=request.prompt,
                style=scene.style,
                category=category,
            )
        )
    write_clips(folder, entries)


def take_through(category: str) -> bool:
    """The whole loop of one category; whether the gate accepted its preferences."""
    film(category)
    for product, command in commands(category).items():
        if not product.exists():
            run(command, category)
    return promote(category)


def promote(category: str) -> bool:
    """Ship the merged weights if the gate accepts them and held-out winners' error has not risen, else
    stage 1's.
    """
    folder, stage1 = LOOPS / category, STAGE1 / f"{category}.safetensors"
    command = ["tiny.promote", "--model", "tiny", "--category", category]
    command += ["--candidate", str(folder / "merged.safetensors"), "--against", str(stage1)]
    command += ["--rated", str(folder / "candidates")]
    risen = drift(folder)
    if risen <= 0:
        command.append("--accept")
    run([*command, "--run", str(folder / "gate")], category, allowed=(0, REFUSED))
    accepted = risen <= 0 and json.loads((folder / "gate" / REPORT).read_text(encoding="utf-8"))["accepted"]
    if risen > 0:
        print(f"{category}: the error of held-out winners rose by {risen:.1%}, it must not", flush=True)
    if not accepted:
        place(stage1, FAMILY / "categories" / stage1.name, {})
    return bool(accepted)


def drift(folder: Path) -> float:
    """Of the held-out winners' error at the end of a run, as a share of the reference's."""
    rows = (folder / "run" / monitors.FILE).read_text(encoding="utf-8").splitlines()
    return float(json.loads(rows[-1])["held_out_winner_drift"])


def run(command: list[str], category: str, allowed: tuple[int, ...] = (0,)) -> int:
    """Raises SystemExit when the command fails; its message is already on the terminal."""
    print(f"== {category}: python -m {' '.join(command)}", flush=True)
    status = subprocess.run([*MODULE, *command], check=False).returncode
    if status not in allowed:
        sys.exit(status)
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--category", nargs="+", choices=CATEGORIES, default=CATEGORIES)
    args = parser.parse_args()
    for category in args.category:
        print(f"{category}: {'accepted' if take_through(category) else 'stage 1 ships'}", flush=True)


if __name__ == "__main__":
    main()
