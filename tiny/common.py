"""What the tiny family's trainers share: where things lie, the noise schedule, the command line."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from torch import Tensor, nn

from training.loop import STOPPED, Task, train
from training.recipes import Recipe

DATA = Path("runs/tiny/data")  # rendered by tiny.dataset
RUNS = Path("runs/tiny")  # checkpoints; ignored by git
STAGE1 = RUNS / "stage1"  # weights of the categories before their preferences
FAMILY = Path("models/tiny")  # what ships


def fit(name: str, model: nn.Module, task: Task, recipe: Recipe) -> None:
    """Train all of `model` in runs/tiny/<name> and leave it with its averaged weights.

    Goes on where the run stopped; when it is stopped again, leaves the program with STOPPED. Precision is the
    task's own business: it calls parts of models, which accelerate's autocast would not see.
    """
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    trained = train(
        model.train(),
        task,
        recipe,
        RUNS / name,
        accelerator=accelerator,
        identity={"model": name},
        resume=True,
    )
    model.load_state_dict(trained.weights)
    model.eval()
    if not trained.complete:
        print(f"stopped and saved at step {trained.step} of {recipe.steps}; the same command goes on")
        sys.exit(STOPPED)


def scheduler() -> DDIMScheduler:
    """Of both diffusion models: v-prediction, zero terminal SNR, trailing timesteps (arXiv:2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float [N, 3, H, W] in [-1, 1], channels_last."""
    return (pixels.float() / 127.5 - 1).movedim(-1, -3)


def parse_recipe(description: str, recipe: Recipe) -> Recipe:
    """The command line every trainer has: --steps and --threads; sets torch's threads and seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=recipe.steps, help=f"optimiser steps ({recipe.steps})")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(recipe.seed)
    return dataclasses.replace(recipe, steps=args.steps)
