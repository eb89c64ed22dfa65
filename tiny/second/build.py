"""Train the second generation from nothing but the repository, stage by stage; a stopped run goes on.

    nice -n 19 python -m tiny.second.build --root .train/tiny2 --threads 1       # a night on two cores
    python -m tiny.second.build --root .train/tiny2 --stages stills clip vae     # some of the stages
    python -m tiny.second.build --root .train/tiny2 --only 0.01                  # a quick look at all of them

Stages: stills -> clip -> vae -> latents -> video -> first_frame. SIGTERM or Ctrl-C saves the checkpoint of a
training and exits with 3; the same command goes on there. Everything lies in ROOT; ROOT/family has the layout
of models/tiny. With a CUDA card it is used, with as many renderers as there are cores.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from tiny.second import data, stages
from tiny.second.common import Workshop
from training.recipes import Recipe

STAGES = ("stills", "clip", "vae", "latents", "video", "first_frame")


def run(shop: Workshop, stage: str, recipes: dict[str, Recipe], only: float) -> None:
    """One stage; a finished one returns at once or, of a training, after writing its weights again."""
    count = {kind: max(128, int(total * only)) for kind, total in data.TALLY.items()}
    if stage == "stills":
        data.write_stills(shop, count["stills"])
    elif stage == "latents":
        vae = stages.load_vae(shop)
        data.write_still_latents(shop, vae)
        data.write_clip_latents(shop, vae, count["clips"])
    else:
        getattr(stages, f"train_{stage}")(shop, recipes[stage])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of checkpoints, data and weights")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--workers", type=int, help="processes that render; default 1, on a card all cores")
    parser.add_argument("--only", type=float, default=1.0, help="share of the data and steps (1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    shop = Workshop(args.root, args.workers or ((os.cpu_count() or 1) if on_gpu else 1))
    recipes = {
        name: replace(recipe, steps=max(2, int(recipe.steps * args.only)))
        for name, recipe in stages.recipes(on_gpu).items()
    }
    for stage in args.stages:
        began = time.monotonic()
        print(f"== {stage}", flush=True)
        done = shop.root / f"{stage}.done"
        if not done.exists():
            run(shop, stage, recipes, args.only)
            done.touch()
        print(f"== {stage}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
