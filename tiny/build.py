"""Train the whole tiny family, step by step; finished steps are kept, a stopped step goes on where it was.

    python -m tiny.build                  # everything; three days on two cores
    python -m tiny.build --from video     # only the steps from `video` on

Steps: world -> vae -> decoder (the VAE's, continued on pictures seen anyhow) -> clip -> latents ->
first_frame -> first_frame_preferences -> video (base) -> wording (other words for the text encoder) ->
wide (the base, continued on clips seen anyhow; minutes on a card) -> motion (per category) -> judge (of the
world, with its calibration) -> preferences (per category; the judge is in their gate) -> distill (fewer
steps; measured, not shipped) -> evaluate.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tiny.common import DATA, FAMILY, RUNS, STAGE1
from tiny.world import CATEGORIES

FIRST, SECOND, FAST = RUNS / "stage1-first", RUNS / "stage1-second", RUNS / "fast"
STEPS = ("1", "2", "3", "4", "8", "20")
MANY_CLIPS = ("--steps", "480", "--set", "lr=1e-3", "--set", "timestep_shift=4")
"""How stage 1 of the family's 256 clips a category differs from `tiny_motion`, which is for 8 to 16."""
GO_ON = ("--steps", "640", "--set", "lr=1e-3", "--set", "cooldown=0.5", "--set", "timestep_shift=4")
"""How it then goes on, on 256 others in more views."""
TWICE = ("smile", "guitar", "birds", "helicopter")
"""Categories that go on twice: from a later moment on they had kept less than 80 % of their gain."""
MODULE = [sys.executable, "-m"]


def commands() -> dict[str, list[list[str]]]:
    """The command lines of every step, in order."""
    motion = [*MODULE, "training.motion", "--model", "tiny", "--resume"]

    def weights(category: str) -> str:
        return f"{FAMILY}/categories/{category}.safetensors"

    def first(category: str) -> list[str]:
        files = ["--clips", f"{RUNS}/motion/{category}", "--out", f"{FIRST}/{category}.safetensors"]
        return [*motion, *MANY_CLIPS, "--category", category, *files]

    def more(category: str) -> list[str]:
        out = SECOND if category in TWICE else STAGE1
        return go_on(category, FIRST, out, f"runs/motion/tiny-{category}-more")

    def again(category: str) -> list[str]:
        return [*go_on(category, SECOND, STAGE1, f"runs/motion/tiny-{category}-again"), "--set", "seed=1"]

    def go_on(category: str, start: Path, out: Path, run: str) -> list[str]:
        files = ["--clips", f"{RUNS}/more/{category}", "--out", f"{out}/{category}.safetensors"]
        start_at = ["--stage1", f"{start}/{category}.safetensors", "--run", run]
        return [*motion, *GO_ON, "--category", category, *start_at, *files]

    of = [word for c in CATEGORIES for word in ("--of", c, f"{RUNS}/motion/{c}", weights(c))]
    lora = str(FAST / "lora.safetensors")
    merge = [*MODULE, "training.merge", "--model", "tiny", "--fast", lora]
    return {
        "world": [[*MODULE, "tiny.dataset", "--out", str(DATA)]],
        "vae": [[*MODULE, "tiny.autoencoder"]],
        "decoder": [[*MODULE, "tiny.decoder"]],
        "clip": [[*MODULE, "tiny.clip"]],
        "latents": [[*MODULE, "tiny.latents"]],
        "first_frame": [[*MODULE, "tiny.first_frame"]],
        "first_frame_preferences": [[*MODULE, "tiny.first_frame_preferences"]],
        "video": [[*MODULE, "tiny.video"]],
        "wording": [[*MODULE, "tiny.wording"]],
        "wide": [[*MODULE, "tiny.wide"]],
        "motion": [*map(first, CATEGORIES), *map(more, CATEGORIES), *map(again, TWICE)],
        "judge": [[*MODULE, f"tiny.judge{part}"] for part in ("", ".calibrate", ".attack")],
        "preferences": [[*MODULE, "tiny.preferences"]],
        "distill": [
            [*MODULE, "training.distill", "--model", "tiny", "--resume", *of, "--out", lora],
            *([*merge, "--stage1", weights(c), "--out", f"{FAST}/{c}.safetensors"] for c in CATEGORIES),
        ],
        "evaluate": [
            [*MODULE, "tiny.evaluate"],
            [*MODULE, "tiny.judge.wordings"],
            [*MODULE, "tiny.judge.views"],
            [*MODULE, "tiny.judge.table", "--stage1", str(STAGE1), "--steps", *STEPS, "--fast", str(FAST)],
        ],
    }


def main() -> None:
    steps = commands()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="start", choices=list(steps), default="world")
    args = parser.parse_args()
    names = list(steps)
    for name in names[names.index(args.start) :]:
        for command in steps[name]:
            print(f"== {name}: {' '.join(command[1:])}", flush=True)
            if status := subprocess.run(command, check=False).returncode:
                sys.exit(status)


if __name__ == "__main__":
    main()
