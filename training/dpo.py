"""Stage 2, preferences: a LoRA that makes a category's clips the ones people prefer, by DPO.

    python -m training.dpo --model tiny --category horse --clips clips/horse --stage1 horse.safetensors \\
        --out horse_lora.safetensors
    python -m training.dpo --model tiny --category horse --clips clips/horse --stage1 horse.safetensors \\
        --out horse_lora.safetensors --resume
    python -m training.dpo --model sd14 --category horse --clips clips/horse --stage1 horse.safetensors \\
        --out horse_lora.safetensors --set loss=ipo --set anchor=1

CLIPS is a folder of rated clips (`judging.candidates` makes one, `judging.ratings report` shows it). The
reference of DPO is the network after stage 1, which is the one in training with its LoRA off. OUT receives
the LoRA alone; `training.merge` puts it into the category's weights. The run's folder, by default
`runs/dpo/<model>-<category>`, has the checkpoint, TensorBoard events, sample clips and the monitors
(`monitors.jsonl`, `monitors.png`: see training.monitors). SIGTERM or Ctrl-C saves and exits with 0; the same
command with `--resume` goes on from there. Several processes: `accelerate launch -m training.dpo`.
"""

import argparse
import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from torch import Tensor, nn

from huvidpo import video
from huvidpo.catalog import Category, Model, load_catalog
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors, with_weights
from huvidpo.config import SamplingOptions
from huvidpo.errors import HuViDPOError
from huvidpo.pipeline import VideoPipeline
from preferences import metrics as evaluation
from training.adapter import adapter_tensors, add_adapter
from training.data import embed_texts, fingerprint_tensors
from training.dpo_task import DPOTask
from training.lineage import commit
from training.loop import TrainingError, train
from training.merge import check_lineage, load_base
from training.monitors import Monitors
from training.motion import build_pipeline, sample_clips, sampling_options, start_accelerate
from training.rated import load_rated
from training.recipes import DPO_RECIPES, DPORecipe, override

SAMPLES = 2  # clips made at each look


@dataclass(frozen=True)
class VideoNetwork:
    """The video network: `training.dpo_task.Network`."""

    pipeline: VideoPipeline
    """Holds the network in training: makes the sample clips."""
    texts: dict[str, Tensor]
    first: Tensor
    """Latents [N, C, h, w] that sample clips start from."""
    captions: list[str]
    """Of the sample clips."""
    sampling: SamplingOptions

    def answer(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, captions: list[str]) -> Tensor:
        text = torch.stack([self.texts[caption] for caption in captions]).to(noisy.device)
        return model(noisy, timesteps, text)

    def render(self) -> list[np.ndarray]:
        return sample_clips(self.pipeline, self.first, self.captions, self.texts, self.sampling)

    def compare(self, now: list[np.ndarray], before: list[np.ndarray]) -> dict[str, float]:
        """Mean difference of adjacent frames (grey levels of 255) and SSIM, of both."""
        figures = {}
        for suffix, clips in {"": now, "_before": before}.items():
            moved = [np.abs(np.diff(clip.astype(np.float32), axis=0)).mean() for clip in clips]
            figures["motion" + suffix] = float(np.mean(moved))
            figures["ssim" + suffix] = float(np.mean([evaluation.ssim(clip) for clip in clips]))
        return figures

    def write(self, samples: list[np.ndarray], folder: Path, step: int) -> None:
        clip = np.concatenate(samples, axis=2)  # side by side
        (folder / f"step_{step:06d}.mp4").write_bytes(video.encode(clip, self.sampling.fps))


def run(
    recipe: DPORecipe,
    model: Model,
    category: Category,
    clips: Path,
    folder: Path,
    *,
    stage1: Path,
    ratings: Path | None,
    resume: bool,
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Train a LoRA on the rated `clips` of `category`, over the stage-1 weights; the run is kept in `folder`.

    Returns its tensors and their provenance in the main process, None when the run was interrupted (and
    saved). Raises TrainingError (see `training.loop.train`), PreferencesError, ClipsError and
    CheckpointError.
    """
    accelerator = start_accelerate(recipe)
    base = load_base(model, stage1)
    motion = load_tensors(stage1)
    origin = {"base": fingerprint_tensors(base.state_dict()), "stage1": fingerprint_tensors(motion)}
    check_lineage(stage1, read_metadata(stage1), {"base": origin["base"]})
    unet = with_weights(base, motion).to(accelerator.device, memory_format=torch.channels_last)
    pipeline = build_pipeline(model, unet, accelerator.device)
    with accelerator.main_process_first():  # the others find what it cached
        rated = load_rated(clips, category.name, pipeline.vae, recipe, folder.parent / "cache", ratings)
    captions = [category.motion_prompt] * len(rated.names) if recipe.prompt == "category" else rated.captions
    texts = embed_texts(captions, pipeline.tokenizer, pipeline.text_encoder)
    shown = (rated.held_out_rows if len(rated.held_out_rows) else rated.train_rows)[:SAMPLES]
    first = torch.from_numpy(rated.latents[shown][:, :, 0].astype(np.float32)).to(accelerator.device)
    network = VideoNetwork(
        pipeline, texts, first, [captions[row] for row in shown], sampling_options(model, recipe)
    )
    scheduler = DDIMScheduler.from_config(pipeline.scheduler_config)
    task = DPOTask(rated, captions, network, scheduler, recipe, accelerator.device)
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    provenance = {"stage": "dpo", "model": model.name, "category": category.name, **origin}
    return fit(unet, task, folder, accelerator=accelerator, provenance=provenance, resume=resume)


def fit(
    unet: nn.Module,
    task: DPOTask,
    folder: Path,
    *,
    accelerator: Accelerator,
    provenance: dict[str, str],
    resume: bool,
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Put a LoRA on `unet` and train it: what clips and pictures share. See `run`."""
    recipe = with_steps(task.recipe, len(task.units()), accelerator.num_processes)
    if recipe.patience and not len(task.rated.held_out):
        raise TrainingError("no pair is held out, so nothing can be patient: raise holdout, or patience=0")
    torch.manual_seed(recipe.seed)  # of the LoRA's first values
    add_adapter(unet, recipe)
    unet.train()
    provenance |= {"clips": task.rated.clips, "ratings": task.rated.ratings}
    monitors = Monitors(folder, recipe)
    trained = train(
        unet,
        task,
        recipe,
        folder,
        accelerator=accelerator,
        identity=provenance,
        resume=resume,
        accumulation=recipe.accumulation,
        watch=monitors,
    )
    if not trained.complete:
        if accelerator.is_main_process:
            print(f"stopped and saved at step {trained.step} of {recipe.steps}; go on with --resume")
        return None
    step, weights = trained.step, trained.weights
    if recipe.sample_every and accelerator.is_main_process:
        best = monitors.best_weights(trained.step)
        if best is None:
            raise TrainingError(
                f"winners drifted beyond max_winner_drift {recipe.max_winner_drift} before the first look "
                "with a LoRA: lower lr, or look more often (sample_every)"
            )
        step, weights = best
    made = {
        "steps": str(step),
        "commit": commit(),
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "lora_rank": str(recipe.lora_rank),
        "lora_alpha": str(recipe.lora_alpha),
    }
    return adapter_tensors(weights), provenance | made


def with_steps(recipe: DPORecipe, units: int, processes: int) -> DPORecipe:
    """`recipe` with the steps that its passes over `units` pairs (or samples) take.

    Raises TrainingError when there is nothing to train on.
    """
    if units == 0:
        raise TrainingError("no sample was judged better or worse than the others: nothing to learn")
    if recipe.passes == 0:
        return recipe
    per_step = recipe.batch_size * recipe.accumulation * processes
    return dataclasses.replace(recipe, steps=math.ceil(recipe.passes * units / per_step))


def write_lora(file: Path, tensors: dict[str, Tensor], provenance: dict[str, str]) -> None:
    """A LoRA as it was trained, float32: what is merged is exactly what was watched."""
    save_tensors(file, {name: tensor.float().cpu() for name, tensor in tensors.items()}, provenance)
    print(f"{file}: {len(tensors) // 2} layers, the weights of step {provenance['steps']}")


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        return _main(args)
    except HuViDPOError as error:
        print(f"training.dpo: {error}", file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    catalog = load_catalog()
    model, category = catalog.model(args.model), catalog.category(args.category)
    recipe = chosen_recipe(args, "tiny_dpo" if args.model == "tiny" else "paper_dpo")
    if recipe.frames < 2:
        raise TrainingError("frames is 1: pictures are the business of training.dpo_image")
    folder = args.run or Path("runs") / "dpo" / f"{model.name}-{category.name}"
    made = run(
        recipe, model, category, args.clips, folder,
        stage1=args.stage1, ratings=args.ratings, resume=args.resume,
    )  # fmt: skip
    if made and Accelerator().is_main_process:
        write_lora(args.out, *made)
    return 0


def chosen_recipe(args: argparse.Namespace, default: str) -> DPORecipe:
    """The recipe that the command line asks for."""
    steps = [f"steps={args.steps}", "passes=0"] if args.steps is not None else []
    return override(DPO_RECIPES[args.recipe or default](), args.set + steps)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the trainers of clips and of pictures have in common."""
    parser.add_argument("--model", required=True, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument(
        "--clips", required=True, type=Path, help="folder of rated clips, with captions.jsonl"
    )
    parser.add_argument("--ratings", type=Path, help="default: ratings.jsonl in the folder of clips")
    parser.add_argument("--out", required=True, type=Path, help="LoRA to write (.safetensors)")
    parser.add_argument("--recipe", choices=sorted(DPO_RECIPES), help="default: by the model")
    parser.add_argument("--steps", type=int, help="optimiser steps in all; default: the recipe's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a field of the recipe"
    )
    parser.add_argument("--run", type=Path, help="folder of the run; default: below runs/")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run, or start it if there is none"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.dpo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--category", required=True, help="a category of the catalog")
    parser.add_argument("--stage1", required=True, type=Path, help="stage-1 weights (training.motion)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
