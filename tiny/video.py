"""Train the tiny family's video base: an SD-shaped UNet, inflated, every weight, on clips of all categories.

    python -m tiny.video                    # go on with the run, or start it
    python -m tiny.video --steps 8000

The training itself is `training.motion` with the recipe `tiny_base`; this command only makes its inputs: the
scheduler, and a fresh 2D UNet that `from_2d` inflates. Needs `tiny.latents`.
"""

from __future__ import annotations

import argparse
import sys

import torch
from diffusers import UNet2DConditionModel

from tiny.common import DATA, FAMILY, RUNS, scheduler
from training import motion

FOLDER = FAMILY / "video"
START = RUNS / "video_2d"


def build_2d() -> UNet2DConditionModel:
    """The image UNet that becomes the video UNet: SD 1.x's shape at two levels."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=2,  # SD 1.x's name for the number of heads
        cross_attention_dim=128,
        norm_num_groups=16,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    scheduler().save_pretrained(FOLDER / "scheduler")
    build_2d().save_pretrained(START)
    options = ["--model", "tiny", "--recipe", "tiny_base", "--base", str(START), "--resume"]
    options += [
        "--clips",
        str(DATA / "clips_latents"),
        "--out",
        str(FOLDER / "unet"),
        "--run",
        str(RUNS / "video"),
    ]
    return motion.main(options + (["--steps", str(args.steps)] if args.steps else []))


if __name__ == "__main__":
    sys.exit(main())
