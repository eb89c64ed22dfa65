"""Stage 1, motion: teach the video UNet how one kind of thing moves, from a handful of clips.

    python -m training.motion --model tiny --category horse --clips horses --out horse.safetensors
    python -m training.motion --model tiny --category horse --clips horses --out horse.safetensors --resume
    python -m training.motion --model sd14 --category horse --clips horses --out horse.safetensors \\
        --set noising=ddim_inversion
    python -m training.motion --model tiny --category horse --clips more --stage1 horse.safetensors \\
        --out better.safetensors
    python -m training.motion --model tiny --recipe tiny_base --base unet2d --clips store --out base

CLIPS is a folder of videos with captions or a latent store (`training.data` says how either looks). OUT
receives the trained tensors only, fp16, with their provenance; with `trainable=all` OUT is a folder with the
whole VideoUNet. With `--stage1` a category goes on from what an earlier run wrote. Checkpoint, TensorBoard
events, their curves (`curves.png`), sample clips, below the real one as pictures, and `recipe.toml`, which
`--settings` takes again, go to `runs/motion/<model>-<category>`. SIGTERM or Ctrl-C saves and exits with 3;
the same command with `--resume` goes on from there. Several processes:
`torchrun --nproc-per-node N -m -- training.motion ...`, on GPUs also `accelerate launch -m`.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel

from huvidpo import command, video
from huvidpo.catalog import Catalog, Component, Model, load_catalog
from huvidpo.checkpoint import check_fits, load_tensors, read_metadata, save_tensors
from huvidpo.config import ClipRequest, SamplingOptions
from huvidpo.errors import CheckpointError
from huvidpo.files import hash_tensors, make_folder, make_way, whole_file, write_bytes
from huvidpo.hardware import cpu_has_bfloat16
from huvidpo.loading import (
    check_lineage,
    load_part,
    load_scheduler_config,
    load_tokenizer,
    load_video_unet,
)
from huvidpo.pipeline import VideoPipeline
from huvidpo.unet import VideoUNet, fingerprint
from preferences.thumbnails import strip
from training.data import Clips, embed_texts, load_clips, rows_for
from training.inversion import InvertedNoise, invert_clips
from training.lineage import carried_on, commit, write_network
from training.loop import STOPPED, Trained, TrainingError, run_is_kept, select_trainable, train
from training.losses import add_noise, motion_loss, prediction_target
from training.recipes import (
    MOTION_RECIPES,
    ClipRecipe,
    MotionRecipe,
    Recipe,
    override,
    read_settings,
    recipe_of,
)

RecipeT = TypeVar("RecipeT", bound=Recipe)
PATIENCE = timedelta(days=7)  # longer than any work that one process does for all
EVAL_LEVELS = (0.125, 0.375, 0.625, 0.875)  # timesteps of the evaluation, as shares of the schedule


@dataclass(frozen=True)
class MotionTask:
    """Stage 1 for the loop: `training.loop.Task`."""

    clips: Clips
    texts: dict[str, Tensor]
    scheduler: DDIMScheduler
    pipeline: VideoPipeline
    """Holds the network in training: makes the sample clips."""
    recipe: MotionRecipe
    sampling: SamplingOptions
    """How sample clips are made."""
    device: torch.device
    inverted: InvertedNoise | None = None

    def loss(
        self, model: nn.Module, draw: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch: one timestep per clip, its own noise per frame, frame 0 clean."""
        rows = self._rows(draw)
        latents = self._latents(rows)
        timesteps, noise = self._noise(rows, latents, generator)
        dropped = torch.rand(len(rows), generator=generator) < self.recipe.text_drop
        text = self._text(
            ["" if drop else self.clips.captions[row] for row, drop in zip(rows, dropped, strict=True)]
        )
        return self._loss(model, latents, noise, timesteps, text), {}

    def describe(self, draw: int) -> str:
        return ", ".join(f"row {row} ({self.clips.captions[row]!r})" for row in self._rows(draw))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean loss on the evaluation rows at four fixed timesteps with fixed random noise."""
        generator = torch.Generator().manual_seed(0)
        total = self.scheduler.config.num_train_timesteps
        losses = []
        for start in range(0, len(self.clips.eval_rows), self.recipe.batch_size):
            rows = self.clips.eval_rows[start : start + self.recipe.batch_size]
            latents = self._latents(rows)
            text = self._text([self.clips.captions[row] for row in rows])
            for level in EVAL_LEVELS:
                noise = torch.randn(latents.shape, generator=generator).to(self.device)
                timesteps = torch.full((len(rows),), int(level * total), device=self.device)
                losses.append(float(self._loss(model, latents, noise, timesteps, text)) * len(rows))
        return {"loss": sum(losses) / (len(self.clips.eval_rows) * len(EVAL_LEVELS))}

    def sample(self, step: int, folder: Path) -> None:
        """A clip from the first frame and caption of the first evaluation row, always with the same noise;
        and a picture of it below the real one.
        """
        row, options = self.clips.eval_rows[:1], self.sampling
        captions = [self.clips.captions[row[0]]]
        (clip,) = sample_clips(self.pipeline, self._latents(row)[:, :, 0], captions, self.texts, options)
        make_folder(folder)
        write_bytes(folder / f"step_{step:06d}.mp4", video.encode(clip, options.fps))
        rows = [np.asarray(strip(frames, 8, 96)) for frames in (self._real(row[0]), clip)]
        with whole_file(folder / f"step_{step:06d}.png") as part:
            Image.fromarray(np.concatenate(rows)).save(part, "PNG")

    def _real(self, row: int) -> np.ndarray:
        """The clip of a row as the VAE gives it back: uint8 [F, H, W, 3]."""
        request = ClipRequest(prompt=self.clips.captions[row], category="", seed=0, options=self.sampling)
        (clip,) = self.pipeline.decode([request], [*self._latents(np.array([row]))])
        assert clip is not None, "nobody cancels it"
        return clip

    def _rows(self, draw: int) -> np.ndarray:
        return rows_for(self.clips.train_rows, draw, self.recipe.batch_size, self.recipe.seed)

    def _latents(self, rows: np.ndarray) -> Tensor:
        return self.clips.read(rows).to(self.device)

    def _text(self, captions: list[str]) -> Tensor:
        return torch.stack([self.texts[caption] for caption in captions]).to(self.device)

    def _noise(self, rows: np.ndarray, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.inverted is None:
            timesteps = self._timesteps(len(rows), generator)
            noise = torch.randn(latents.shape, generator=generator)
        else:
            chosen = torch.randint(len(self.inverted.timesteps), (len(rows),), generator=generator)
            timesteps = self.inverted.timesteps[chosen]
            noise = torch.from_numpy(self.inverted.noise[rows, chosen.numpy()].astype(np.float32))
        return timesteps.to(self.device), noise.to(self.device)

    def _timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 [count]: uniform, or by `timestep_shift` more of the noisy ones."""
        total, shift = self.scheduler.config.num_train_timesteps, self.recipe.timestep_shift
        if shift == 1:  # drawn as ever, so that older runs can be made again
            return torch.randint(total, (count,), generator=generator)
        uniform = torch.rand(count, generator=generator)
        return (total * shift * uniform / (1 + (shift - 1) * uniform)).long().clamp(max=total - 1)

    def _loss(
        self, model: nn.Module, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor
    ) -> Tensor:
        noisy = add_noise(self.scheduler, latents, noise, timesteps)
        target = prediction_target(self.scheduler, latents, noise, timesteps)
        return motion_loss(model(noisy, timesteps, text), target)


def run(
    recipe: MotionRecipe,
    model: Model,
    name: str,
    clips: Path,
    folder: Path,
    *,
    base: Path | None,
    stage1: Path | None = None,
    resume: bool,
) -> tuple[Trained, VideoUNet, dict[str, str]]:
    """Train `model`'s video UNet (or the one in folder `base`) on `clips`; the run is kept in `folder`.

    `stage1`: weights of a category over that UNet, to go on from. Returns where the run stands, the network
    and its provenance. `name` says what is learnt. Raises TrainingError (see `training.loop.train` and
    `read_start`), ClipsError and CheckpointError.
    """
    recipe = in_native_precision(recipe)
    accelerator = start_accelerate(recipe)
    source = Component.at(base) if base else model.video_unet
    torch.manual_seed(recipe.seed)
    unet = load_video_unet(source, torch.float32, model.attention_mode)
    base_hash = fingerprint(unet)
    unet = unet.to(accelerator.device, memory_format=torch.channels_last)
    trainable = select_trainable(unet, recipe.trainable)
    start, earlier = read_start(stage1, unet, trainable) if stage1 else ({}, {})
    task = build_task(recipe, model, unet, clips, folder.parent / "cache", accelerator)
    unet.load_state_dict(start, strict=False)
    unet.train()
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    identity = {
        "base": base_hash,
        "clips": task.clips.fingerprint,
        "earlier": hash_tensors(start) if start else "",
    }
    trained = train(unet, task, recipe, folder, accelerator=accelerator, identity=identity, resume=resume)
    provenance = {
        **earlier,
        "stage": "motion",
        "model": model.name,
        "category": name,
        "steps": str(trained.step),
        "commit": commit(),
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "attention_mode": unet.config.attention_mode,
        **{key: value for key, value in identity.items() if value},
    }
    return trained, unet, provenance


def read_stage1(unet: VideoUNet, file: Path) -> dict[str, Tensor]:
    """A category's tensors. Raises CheckpointError for those of another network, and for weights that have
    been distilled: nothing goes in after that.
    """
    tensors = load_tensors(file)
    check_fits(unet, tensors)
    if "fast_lora" in read_metadata(file):
        raise CheckpointError(f"{file} has a LoRA of fewer steps in it already: give the weights before that")
    return tensors


def read_start(
    stage1: Path, unet: VideoUNet, trainable: list[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A category's weights to go on from, over the base `unet`, and their lineage as that of an earlier run.

    Raises CheckpointError for weights of another network or base, and for those that are no stage 1 any
    more, and TrainingError for a tensor that is not `trainable`: it would be missing from what is written.
    """
    tensors, facts = read_stage1(unet, stage1), read_metadata(stage1)
    check_lineage(unet, [stage1])
    if facts.get("stage", "motion") != "motion":
        raise CheckpointError(
            f"{stage1} is of stage {facts['stage']}; give the weights that training.motion wrote"
        )
    if lost := sorted(set(tensors) - set(trainable)):
        raise TrainingError(
            f"{stage1} has {len(lost)} tensors that this recipe does not train, {lost[0]} for one; name them "
            "too: --set trainable=..."
        )
    return tensors, carried_on(facts, "earlier")


def in_native_precision(recipe: RecipeT) -> RecipeT:
    """The recipe, in float32 where it asks a CPU without bfloat16 for that: ten times as fast there."""
    if recipe.precision != "bf16" or torch.cuda.is_available() or cpu_has_bfloat16():
        return recipe
    print(
        "this CPU has no bfloat16: training in float32 (precision=fp32), several times faster here",
        flush=True,
    )
    return dataclasses.replace(recipe, precision="fp32")


def start_accelerate(recipe: Recipe) -> Accelerator:
    """Of several processes, those that wait while the main one encodes, inverts or evaluates wait for as long
    as it takes: torch would end them after 10 minutes (NCCL) or 30 (gloo). A process that dies is noticed by
    the launcher, not by the others' impatience. Raises TrainingError for fp16 without a GPU, and where not
    as many processes work together as were asked for: alone, each would write the same files.
    """
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        raise TrainingError("precision fp16 needs a GPU; on a CPU use --set precision=bf16 (or fp32)")
    precision = "no" if recipe.precision == "fp32" else recipe.precision
    on_cpu = not torch.cuda.is_available()
    _check_launch(on_cpu)
    patient = InitProcessGroupKwargs(timeout=PATIENCE)
    # without `cpu`, accelerate makes of torchrun's processes on a CPU so many strangers
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision, kwargs_handlers=[patient])
    if accelerator.num_processes != command.launched():
        raise TrainingError(
            f"{command.launched()} processes started and do not find each other; use torchrun"
        )
    return accelerator


def _check_launch(on_cpu: bool) -> None:
    asked, local = command.launched(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # its mark of several processes, when it starts but one: as it does on CPUs
    if asked == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        raise TrainingError(
            "accelerate launch was asked for several processes and started one, as it does on CPUs: start "
            "torchrun --nproc-per-node N -m -- training.motion (or training.dpo) instead"
        )
    if not on_cpu and local > torch.cuda.device_count():
        raise TrainingError(f"{local} processes want as many GPUs, here are {torch.cuda.device_count()}")


def add_run_options(
    parser: argparse.ArgumentParser,
    recipes: Iterable[str],
    run: str,
    recipe: str = "as the catalog's entry says",
) -> None:
    """What every trainer is told alike: its recipe, where the run is kept, whether it goes on. `run` and
    `recipe` say what their defaults are.
    """
    parser.add_argument("--recipe", choices=sorted(recipes), help=f"default: {recipe}")
    parser.add_argument("--steps", type=int, help="optimiser steps in all; default: the recipe's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a field of the recipe"
    )
    parser.add_argument(
        "--settings", type=Path, help="TOML file of recipe fields, before --set; as a run's recipe.toml"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--run", type=Path, help=f"folder of the run; default: {run}")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run, or start it if there is none"
    )


def use_threads(count: int) -> None:
    """How many threads torch computes with. Raises TrainingError for less than one."""
    if count < 1:
        raise TrainingError(f"threads: got {count}, expected 1 or more")
    torch.set_num_threads(count)


def build_task(
    recipe: MotionRecipe, model: Model, unet: VideoUNet, folder: Path, cache: Path, accelerator: Accelerator
) -> MotionTask:
    """Clips, text embeddings and, for `ddim_inversion`, inverted noise: made once, before the first step.

    `unet` is still the frozen base; its inversion depends on it.
    """
    device = accelerator.device
    pipeline = build_pipeline(model, unet, device)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler_config)
    inverted = None
    with accelerator.main_process_first():  # the others find what it cached
        clips = load_clips(folder, pipeline.vae, recipe, cache)
        texts = embed_texts(clips.captions, pipeline.tokenizer, pipeline.text_encoder)
        if recipe.noising == "ddim_inversion":
            with accelerator.autocast():
                inverted = invert_clips(unet, scheduler, clips, texts, recipe.inversion_steps, cache, device)
    sampling = sampling_options(model, recipe)
    return MotionTask(clips, texts, scheduler, pipeline, recipe, sampling, device, inverted)


def build_pipeline(model: Model, unet: VideoUNet, device: torch.device) -> VideoPipeline:
    """The parts of a catalog model around a network in training, whose category is called ""."""
    vae = load_part(AutoencoderKL, model.video_vae).to(device).eval()
    text_encoder = load_part(CLIPTextModel, model.video_text_encoder).to(device).eval()
    tokenizer = load_tokenizer(model.video_tokenizer, text_encoder)
    config = load_scheduler_config(model.video_scheduler)
    return VideoPipeline({"": unet}, vae, text_encoder, tokenizer, config, Catalog({}, {}, {}))


def sampling_options(model: Model, recipe: ClipRecipe) -> SamplingOptions:
    """How a run makes its sample clips: as the model does, in the size of the recipe's clips."""
    return model.defaults.replace(
        frames=recipe.frames, height=recipe.height, width=recipe.width, steps=recipe.sample_steps
    )


def sample_clips(
    pipeline: VideoPipeline,
    first: Tensor,
    captions: list[str],
    texts: dict[str, Tensor],
    options: SamplingOptions,
) -> list[np.ndarray]:
    """Clips uint8 [F, H, W, 3] from first frames [N, C, h, w] (latents), always with the same noise."""
    ((category, unet),) = pipeline.unets.items()
    requests = [
        ClipRequest(prompt=caption, category=category, seed=seed, options=options)
        for seed, caption in enumerate(captions)
    ]
    prompts = [""] * len(captions) + captions if options.guidance > 1 else captions
    text = torch.stack([texts[prompt] for prompt in prompts]).to(first.device)
    latents = pipeline.prepare_latents(requests, first)
    clips = pipeline.decode(requests, pipeline.denoise(requests, latents, unet.project_text(text)))
    return [clip for clip in clips if clip is not None]  # none is: nothing was cancelled


def write_weights(file: Path, weights: dict[str, Tensor], provenance: dict[str, str]) -> None:
    """The trained tensors alone, fp16: what `huvidpo.checkpoint.with_weights` puts into a base."""
    save_tensors(file, {name: tensor.half().cpu() for name, tensor in weights.items()}, provenance)


def write_base(folder: Path, unet: VideoUNet, weights: dict[str, Tensor], provenance: dict[str, str]) -> None:
    """The whole VideoUNet with `weights`, as `training.lineage.write_network` has it."""
    unet.load_state_dict(weights, strict=False)
    write_network(folder, unet, provenance)


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("training.motion", lambda: _main(args), several=True)


def _main(args: argparse.Namespace) -> int:
    if args.threads is not None:
        use_threads(args.threads)
    catalog = load_catalog()
    model = catalog.model(args.model)
    settings = read_settings(args.settings) if args.settings else []
    recipe = recipe_of(model, "motion", args.recipe)
    steps = [f"steps={args.steps}"] if args.steps is not None else []
    recipe = override(recipe, [*settings, *args.set, *steps])
    whole = recipe.trainable == ("all",)
    if args.category is None and not whole:
        raise TrainingError(f"--category is missing; known: {', '.join(catalog.categories)}")
    name = catalog.category(args.category).name if args.category else "base"
    folder = args.run or Path("runs") / "motion" / f"{model.name}-{name}"
    make_folder(folder)
    make_folder(args.out.parent) if whole else make_way(args.out)

    trained, unet, provenance = run(
        recipe, model, name, args.clips, folder, base=args.base, stage1=args.stage1, resume=args.resume
    )
    if not trained.complete:
        if PartialState().is_main_process:
            print(f"stopped and saved at step {trained.step} of {recipe.steps}; go on with --resume")
        return STOPPED
    if PartialState().is_main_process:
        with run_is_kept(folder):
            if whole:
                write_base(args.out, unet, trained.weights, provenance)
            else:
                write_weights(args.out, trained.weights, provenance)
        print(f"{args.out}: {trained.step} steps, {trained.seconds_per_step:.2f} s/step")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.motion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument(
        "--category", help="a category of the catalog; may be left out when all weights train"
    )
    parser.add_argument(
        "--clips", required=True, type=Path, help="folder of videos and captions, or a latent store"
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="file (folder when all weights train) to write"
    )
    parser.add_argument("--base", type=Path, help="folder of the UNet to start from (2D ones are inflated)")
    parser.add_argument(
        "--stage1", type=Path, help="a category's weights to go on from (an earlier run's --out)"
    )
    add_run_options(parser, MOTION_RECIPES, run="runs/motion/<model>-<category>")
    return parser


if __name__ == "__main__":
    sys.exit(main())
