"""Stage 2, preferences: a LoRA that makes clips, or first frames, the ones people prefer, by DPO.

    python -m training.dpo --model tiny --category horse --clips clips/horse --stage1 horse.safetensors \\
        --out horse_lora.safetensors
    python -m training.dpo --model tiny --category horse --clips clips/horse --stage1 horse.safetensors \\
        --out horse_lora.safetensors --resume
    python -m training.dpo --model sd14 --category horse --clips clips/horse --stage1 horse.safetensors \\
        --out horse_lora.safetensors --set loss=ipo --set anchor=1
    python -m training.dpo --model tiny --recipe tiny_dpo_image --clips pictures \\
        --out first_frame_lora.safetensors --full first_frame_unet

CLIPS is a folder of rated clips (`judging.candidates` makes one, `judging.ratings report` shows it). The
reference of DPO is the network after stage 1, which is the one in training with its LoRA off. OUT receives
the LoRA alone; `training.merge` puts it into the category's weights.

A recipe whose `frames` is 1 trains the first-frame network on pictures instead (Diffusion-DPO, arXiv
2311.12908): the files of CLIPS are pictures, or videos of which the first frame is taken; all its categories
train the one network, and there is no --category and no --stage1. `--full` also writes the whole merged UNet
as a diffusers folder, which a model of the catalog names as `first_frame_unet`.

The run's folder, by default `runs/dpo/<model>-<category>` or `runs/dpo/<model>-first_frame`, has the
checkpoint, TensorBoard events, samples and the monitors (`monitors.jsonl`, `monitors.png`: see
training.monitors). SIGTERM or Ctrl-C saves and exits with 3; the same command with `--resume` goes on from
there. Several processes: `torchrun --nproc-per-node N -m -- training.dpo ...`, on GPUs also `accelerate
launch -m`.
"""

import argparse
import dataclasses
import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from huvidpo import command, video
from huvidpo.catalog import Catalog, Category, Model, Style, load_catalog
from huvidpo.checkpoint import save_tensors, with_weights
from huvidpo.config import ClipRequest, SamplingOptions
from huvidpo.files import hash_tensors, make_folder, make_way, whole_file, write_bytes
from huvidpo.loading import check_lineage, load_video_unet
from huvidpo.lora import merge
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from huvidpo.unet import fingerprint
from preferences.metrics import ssim
from training.adapter import adapter_norm, adapter_off, adapter_tensors, add_adapter
from training.data import check_lengths, embed_texts, rows_for
from training.lineage import commit, write_network
from training.loop import STOPPED, TrainingError, run_is_kept, train
from training.losses import (
    Stats,
    add_noise,
    dpo_loss,
    kto_loss,
    noise_error,
    noise_prediction,
    segment_errors,
)
from training.monitors import Monitors, pair_metrics, verdict
from training.motion import (
    add_run_options,
    build_pipeline,
    in_native_precision,
    read_stage1,
    sample_clips,
    sampling_options,
    start_accelerate,
    use_threads,
)
from training.rated import PairRows, Rated, load_rated
from training.recipes import DPO_RECIPES, DPORecipe, Stage, override, read_settings, recipe_of

CLIPS, PICTURES = 2, 8  # samples made at each evaluation
LEVELS = 4  # fixed timesteps of the monitors: the middle of each quarter of the recipe's range
WATCHED = 32  # samples of either side, trained on and held out, that the monitors look at

Condition = tuple[Tensor, Tensor]
"""SDXL's embeddings of a text: hidden states [L, D] and the pooled projection [P]."""


# The task: what a step costs (METHOD section 5), and what is measured between steps


@dataclass
class DPOTask:
    """Preferences for the loop: `training.loop.Task`. Clips and pictures differ in `network` alone.

    The network in training is its own reference: the same weights with the LoRA off. Both samples of a pair
    get one timestep and one noise, and go through the network together.
    """

    rated: Rated
    captions: list[str]
    """What each row is shown with."""
    network: "VideoNetwork | PictureNetwork"
    scheduler: DDIMScheduler
    recipe: DPORecipe
    device: torch.device
    before: dict[str, Any] = field(default_factory=dict)
    """Errors and samples of the reference, which never change: made at the first evaluation."""
    samples: list[np.ndarray] = field(default_factory=list)
    """Of the last evaluation."""

    def loss(
        self, model: nn.Module, draw: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch of pairs, or of single samples for kto."""
        chosen = self._chosen(draw)
        noise, timesteps = self._noise(len(chosen), generator)
        learn = self._kto if self.recipe.loss == "kto" else self._pairs
        loss, stats = learn(model, chosen, noise, timesteps)
        return loss, {name: float(value) for name, value in stats.items()}

    def _pairs(
        self, model: nn.Module, chosen: np.ndarray, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Stats]:
        """Winners, then their losers: one timestep and one noise per pair."""
        recipe, pairs = self.recipe, self.rated.train
        rows = np.concatenate([pairs.winner[chosen], pairs.loser[chosen]])
        both = torch.cat([noise, noise]), torch.cat([timesteps, timesteps])
        with torch.no_grad(), adapter_off(model):
            reference = self._predict(model, rows, *both)
        policy = self._predict(model, rows, *both)
        weights = torch.from_numpy(pairs.weight[chosen]).to(self.device) if recipe.gap_weights else None
        labels = None if pairs.labels is None else torch.from_numpy(pairs.labels[chosen]).to(self.device)
        return dpo_loss(
            policy,
            reference,
            noise,
            beta=recipe.beta,
            kind=recipe.loss,  # type: ignore[arg-type]  # not kto
            smoothing=recipe.label_smoothing,
            anchor=recipe.anchor,
            winner_weight=recipe.winner_weight,
            safeguard=recipe.safeguard,
            weights=weights,
            labels=labels,
            segment_frames=self.rated.segment_frames,
        )

    def _kto(
        self, model: nn.Module, rows: np.ndarray, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Stats]:
        """Single samples, good or bad by the sign of their strength."""
        with torch.no_grad(), adapter_off(model):
            reference = noise_error(self._predict(model, rows, noise, timesteps), noise)
        policy = noise_error(self._predict(model, rows, noise, timesteps), noise)
        strength = torch.from_numpy(self.rated.strength).float().to(self.device)
        mean = strength[self.units()].abs().mean()
        weights = strength[rows].abs() / mean if self.recipe.gap_weights else None
        return kto_loss(policy, reference, strength[rows] > 0, beta=self.recipe.beta, weights=weights)

    def _predict(self, model: nn.Module, rows: np.ndarray, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise [N, ...] that `model` sees in samples `rows` [N], in one forward or in halves."""
        halves = 1 if self.recipe.one_forward or len(rows) % 2 else 2
        parts = zip(np.split(rows, halves), noise.chunk(halves), timesteps.chunk(halves), strict=True)
        return torch.cat([self._forward(model, *part) for part in parts])

    def _forward(self, model: nn.Module, rows: np.ndarray, noise: Tensor, timesteps: Tensor) -> Tensor:
        latents = torch.from_numpy(self.rated.latents[rows].astype(np.float32)).to(self.device)
        noisy = add_noise(self.scheduler, latents, noise, timesteps)
        answer = self.network.answer(model, noisy, timesteps, [self.captions[row] for row in rows])
        return noise_prediction(self.scheduler, answer, noisy, timesteps)

    def _chosen(self, draw: int) -> np.ndarray:
        return rows_for(self.units(), draw, self.recipe.batch_size, self.recipe.seed)

    def _noise(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise [count, ...] and timesteps [count]."""
        low, high = self._timestep(self.recipe.lowest_timestep), self._timestep(self.recipe.highest_timestep)
        timesteps = torch.randint(low, max(high, low + 1), (count,), generator=generator)
        noise = torch.randn(count, *self.rated.latents.shape[1:], generator=generator)
        return noise.to(self.device), timesteps.to(self.device)

    def _timestep(self, share: float) -> int:
        return int(share * self.scheduler.config.num_train_timesteps)

    def units(self) -> np.ndarray:
        """What one pass goes through: pairs, or for kto the rows of samples that are not average."""
        if self.recipe.loss == "kto":
            return self.rated.train_rows[self.rated.strength[self.rated.train_rows] != 0]
        return np.arange(len(self.rated.train))

    def describe(self, draw: int) -> str:
        rated, chosen = self.rated, self._chosen(draw)
        if self.recipe.loss == "kto":
            return ", ".join(rated.names[row] for row in chosen)
        pairs = zip(rated.train.winner[chosen], rated.train.loser[chosen], strict=True)
        return ", ".join(f"{rated.names[winner]} over {rated.names[loser]}" for winner, loser in pairs)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The monitors: metrics of pairs, of the adapter and of samples; details come last."""
        if not self.before:
            with adapter_off(model):
                self.before = {"errors": self._error_table(model), "samples": self.network.render()}
        errors = self._error_table(model)
        quarters = (4 * self._levels()).astype(int)  # of the schedule
        found: dict[str, float] = {}
        for prefix, pairs in {"train": self.rated.train, "held_out": self.rated.held_out}.items():
            seen = pairs.among(self._watched()).by_segment()
            found |= pair_metrics(errors, self.before["errors"], seen, quarters, prefix, self.recipe.beta)
        self.samples = self.network.render()
        compared = self.network.compare(self.samples, self.before["samples"])
        found |= {"lora_norm": adapter_norm(model)} | compared
        return dict(sorted(found.items(), key=lambda item: bool(re.search(r"_[tp]\d+$|rewards/", item[0]))))

    def sample(self, step: int, folder: Path) -> None:
        """Write the samples of `evaluate`."""
        make_folder(folder)
        self.network.write(self.samples, folder, step)

    def _levels(self) -> np.ndarray:
        """Timesteps [LEVELS] of the monitors, as shares of the schedule."""
        low, high = self.recipe.lowest_timestep, self.recipe.highest_timestep
        return low + (high - low) * (np.arange(LEVELS) + 0.5) / LEVELS

    def _watched(self) -> np.ndarray:
        return np.concatenate([self.rated.train_rows[:WATCHED], self.rated.held_out_rows[:WATCHED]])

    def _error_table(self, model: nn.Module) -> Tensor:
        """Errors [rows, LEVELS] of the watched rows (nan elsewhere), with one fixed noise per timestep; where
        pairs are by segments, rows are as `PairRows.by_segment` counts them.
        """
        rated = self.rated
        segments = 1 if rated.train.labels is None else rated.train.labels.shape[1]
        table = torch.full((len(rated.names), segments, LEVELS), torch.nan)
        generator = torch.Generator().manual_seed(0)
        rows = self._watched()
        for level, share in enumerate(self._levels()):
            one = torch.randn(1, *self.rated.latents.shape[1:], generator=generator).to(self.device)
            for start in range(0, len(rows), 2 * self.recipe.batch_size):
                part = rows[start : start + 2 * self.recipe.batch_size]
                noise = one.expand(len(part), *one.shape[1:])
                timesteps = torch.full((len(part),), self._timestep(share), device=self.device)
                answer = self._forward(model, part, noise, timesteps)
                table[part, :, level] = segment_errors(answer, noise, rated.segment_frames).cpu()
        return table.flatten(0, 1)


# The two networks


@dataclass(frozen=True)
class VideoNetwork:
    """The video network of a category, on clips."""

    pipeline: VideoPipeline
    """Holds the network in training: makes the sample clips."""
    texts: dict[str, Tensor]
    first: Tensor
    """Latents [N, C, h, w] that sample clips start from."""
    captions: list[str]
    """Of the sample clips."""
    sampling: SamplingOptions

    def answer(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, captions: list[str]) -> Tensor:
        """What `model` predicts for noisy latents, shape as `noisy`."""
        text = torch.stack([self.texts[caption] for caption in captions]).to(noisy.device)
        return model(noisy, timesteps, text)

    def render(self) -> list[np.ndarray]:
        """Samples of the network as it is now, always of the same captions and noise: uint8 [F, H, W, 3]."""
        return sample_clips(self.pipeline, self.first, self.captions, self.texts, self.sampling)

    def compare(self, now: list[np.ndarray], before: list[np.ndarray]) -> dict[str, float]:
        """Mean difference of adjacent frames (grey levels of 255) and SSIM, of both."""
        found = {}
        for suffix, clips in {"": now, "_before": before}.items():
            moved = [np.abs(np.diff(clip.astype(np.float32), axis=0)).mean() for clip in clips]
            found["frame_difference" + suffix] = float(np.mean(moved))
            found["ssim" + suffix] = float(np.mean([ssim(clip) for clip in clips]))
        return found

    def write(self, samples: list[np.ndarray], folder: Path, step: int) -> None:
        clip = np.concatenate(samples, axis=2)  # side by side
        write_bytes(folder / f"step_{step:06d}.mp4", video.encode(clip, self.sampling.fps))


@dataclass(frozen=True)
class PictureNetwork:
    """The first-frame network, SDXL-shaped, on pictures; methods as those of `VideoNetwork`."""

    pipeline: FirstFramePipeline
    """Holds the network in training: makes the sample pictures."""
    texts: dict[str, Condition]
    time_ids: Tensor
    """[6] SDXL's size condition: an uncropped picture of its own size."""
    requests: list[ClipRequest]
    """The sample pictures."""
    embeddings: dict[str, Tensor]
    """Their texts, by the pipeline's argument names."""

    def answer(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, captions: list[str]) -> Tensor:
        parts = zip(*(self.texts[caption] for caption in captions), strict=True)
        hidden, pooled = (torch.stack(part) for part in parts)
        added = {"text_embeds": pooled, "time_ids": self.time_ids.expand(len(captions), -1)}
        return model(noisy, timesteps, hidden, added_cond_kwargs=added, return_dict=False)[0]

    def render(self) -> list[np.ndarray]:
        latents = self.pipeline.prepare_latents(self.requests).to(self.time_ids.device)
        done = self.pipeline.denoise(self.requests, latents, self.embeddings)
        return [picture for picture in self.pipeline.decode(done) if picture is not None]

    def compare(self, now: list[np.ndarray], before: list[np.ndarray]) -> dict[str, float]:
        """Mean difference from the reference's pictures, in grey levels of 255."""
        return {"change": float(np.abs(np.stack(now).astype(np.float32) - np.stack(before)).mean())}

    def write(self, samples: list[np.ndarray], folder: Path, step: int) -> None:
        with whole_file(folder / f"step_{step:06d}.png") as part:
            Image.fromarray(np.concatenate(samples, axis=1)).save(part, "PNG")


@dataclass(frozen=True)
class Inputs:
    """What the command line names."""

    model: Model
    clips: Path
    ratings: Path | None
    category: Category | None
    """None for pictures, like `stage1`."""
    stage1: Path | None


Setup = tuple[Any, DPOTask, dict[str, str]]
"""The network, a diffusers UNet without its LoRA yet; its task; and the provenance of the weights."""


def set_up_clips(recipe: DPORecipe, given: Inputs, cache: Path, accelerator: Accelerator) -> Setup:
    """The video network after stage 1, and its rated clips."""
    model, category, stage1, device = given.model, given.category, given.stage1, accelerator.device
    assert category is not None
    assert stage1 is not None
    base = load_video_unet(model.video_unet, torch.float32, model.attention_mode)
    motion = read_stage1(base, stage1)
    origin = {"base": fingerprint(base), "stage1": hash_tensors(motion)}
    origin["attention_mode"] = base.config.attention_mode
    check_lineage(base, [stage1])
    unet = with_weights(base, motion).to(device, memory_format=torch.channels_last)
    pipeline = build_pipeline(model, unet, device)
    with accelerator.main_process_first():  # the others find what it cached
        rated = load_rated(given.clips, category.name, pipeline.vae, recipe, cache, given.ratings)
    captions = [category.motion_prompt] * len(rated.names) if recipe.prompt == "category" else rated.captions
    texts = embed_texts(captions, pipeline.tokenizer, pipeline.text_encoder)
    shown = (rated.held_out_rows if len(rated.held_out_rows) else rated.train_rows)[:CLIPS]
    first = torch.from_numpy(rated.latents[shown][:, :, 0].astype(np.float32)).to(device)
    sampling = sampling_options(model, recipe)
    network = VideoNetwork(pipeline, texts, first, [captions[row] for row in shown], sampling)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler_config)
    task = DPOTask(rated, captions, network, scheduler, recipe, device)
    return unet, task, {"stage": "dpo", "model": model.name, "category": category.name, **origin}


def set_up_pictures(recipe: DPORecipe, given: Inputs, cache: Path, accelerator: Accelerator) -> Setup:
    """The first-frame network, and its rated pictures."""
    model, device = given.model, accelerator.device
    pipeline = load_first_frame(model, device)
    unet = pipeline.pipe.unet
    base = hash_tensors(unet.state_dict())
    with accelerator.main_process_first():  # the others find what it cached
        rated = load_rated(given.clips, "", pipeline.pipe.vae, recipe, cache, given.ratings)
    network = picture_network(model, pipeline, recipe, rated.captions)
    scheduler = DDIMScheduler.from_config(pipeline.pipe.scheduler.config)
    task = DPOTask(rated, rated.captions, network, scheduler, recipe, device)
    return unet, task, {"stage": "dpo_image", "model": model.name, "base": base}


def load_first_frame(model: Model, device: torch.device) -> FirstFramePipeline:
    """The first-frame pipeline of `model`, float32; its prompts are whole captions.

    Raises TrainingError for one that is not SDXL's.
    """
    pipeline = FirstFramePipeline.from_catalog(model.name, device=device, dtype=torch.float32)
    if not pipeline.sdxl:
        raise TrainingError(
            f"model {model.name!r} draws by Stable Diffusion 1.x; preferences are of SDXL's UNets"
        )
    pipe = pipeline.pipe
    return FirstFramePipeline(pipe, Catalog({}, {}, {"": Style("", "{prompt}")}))


@torch.no_grad()
def picture_network(
    model: Model, pipeline: FirstFramePipeline, recipe: DPORecipe, captions: list[str]
) -> PictureNetwork:
    """The network with every text encoded, once."""
    pipe, device = pipeline.pipe, pipeline.pipe.unet.device

    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
        check_lengths(captions, tokenizer)

    def encode(caption: str) -> Condition:
        hidden, _, pooled, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, device=device)
        return hidden[0], pooled[0]

    texts = {caption: encode(caption) for caption in sorted(set(captions))}
    size = (recipe.height, recipe.width)
    options = model.defaults.replace(first_frame_size=size, first_frame_steps=recipe.sample_steps)
    requests = [
        ClipRequest(prompt=caption, category="", style="", seed=seed, options=options)
        for seed, caption in enumerate(sorted(texts)[:PICTURES])
    ]
    time_ids = torch.tensor([*size, 0.0, 0.0, *size], device=device)
    return PictureNetwork(pipeline, texts, time_ids, requests, pipeline.encode_prompt(requests))


# The run


def run(
    recipe: DPORecipe, given: Inputs, folder: Path, *, resume: bool
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Train a LoRA on rated clips (pictures, where `recipe.frames` is 1); the run is kept in `folder`.

    Returns its tensors and their provenance, None when the run was interrupted (and saved). Raises
    TrainingError (see `training.loop.train`), PreferencesError, ClipsError and CheckpointError.
    """
    recipe = in_native_precision(recipe)
    accelerator = start_accelerate(recipe)
    set_up = set_up_pictures if recipe.frames == 1 else set_up_clips
    unet, task, provenance = set_up(recipe, given, folder.parent / "cache", accelerator)
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    recipe = with_steps(recipe, len(task.units()), accelerator.num_processes)
    if recipe.patience and not len(task.rated.held_out):
        raise TrainingError("no pair is held out, so nothing can be patient: raise holdout, or patience=0")
    torch.manual_seed(recipe.seed)  # of the LoRA's first values
    add_adapter(unet, recipe)
    unet.train()
    provenance |= {"clips": task.rated.clips, "ratings": task.rated.ratings}
    if accelerator.is_main_process:
        print(said_of(task.rated, recipe.steps), flush=True)
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
        callback=monitors,
    )
    if not trained.complete:
        if accelerator.is_main_process:
            print(f"stopped and saved at step {trained.step} of {recipe.steps}; go on with --resume")
        return None
    step, weights = trained.step, trained.weights
    if recipe.sample_every and accelerator.is_main_process:
        step, weights = monitors.best_weights(trained.step)
        print(f"step {step}: {verdict(monitors.best(trained.step) or {}, len(task.rated.held_out))}")
    made = {
        "steps": str(step),
        "pairs": str(len(task.rated.train)),
        "held_out_pairs": str(len(task.rated.held_out)),
        "commit": commit(),
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "lora_rank": str(recipe.lora_rank),
        "lora_alpha": str(recipe.lora_alpha),
    }
    return adapter_tensors(weights), provenance | made


def said_of(rated: Rated, steps: int) -> str:
    """How little or much there is to learn from, whatever the number of steps."""
    train = f"{_pairs(rated.train)} of {len(rated.train_rows)} samples"
    held_out = f"{_pairs(rated.held_out)} of {len(rated.held_out_rows)} samples"
    by = f", by segments of {rated.segment_frames} frames" if rated.segment_frames else ""
    return f"to train on: {train}, {steps} steps; held out: {held_out}{by}"


def _pairs(rows: PairRows) -> str:
    return f"{len(rows)} pair{'s' * (len(rows) != 1)}"


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
    """A LoRA as it was trained, float32: what is merged is exactly what was evaluated."""
    save_tensors(file, {name: tensor.float().cpu() for name, tensor in tensors.items()}, provenance)
    print(f"{file}: {len(tensors) // 2} layers, the weights of step {provenance['steps']}")


def write_full(folder: Path, model: Model, lora: dict[str, Tensor], lineage: dict[str, str]) -> None:
    """The whole first-frame UNet with the LoRA merged in, as `training.lineage.write_network` has it."""
    unet: UNet2DConditionModel = load_first_frame(model, torch.device("cpu")).pipe.unet
    unet.load_state_dict(merge(unet.state_dict(), lora, float(lineage["lora_alpha"])), strict=False)
    write_network(folder, unet, lineage)
    print(f"{folder}: the whole UNet")


# The command line


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("training.dpo", lambda: _main(args), several=True)


def _main(args: argparse.Namespace) -> int:
    if args.threads is not None:
        use_threads(args.threads)
    catalog = load_catalog()
    model = catalog.model(args.model)
    settings = read_settings(args.settings) if args.settings else []
    stage: Stage = "dpo" if args.category or args.stage1 else "dpo_image"
    if not any(text.startswith("passes=") for text in settings):  # a run's own file says both
        settings = set_fields(settings, None)
    recipe = override(recipe_of(model, stage, args.recipe), settings)
    recipe = override(recipe, set_fields(args.set, args.steps))
    _check(args, recipe)
    category = catalog.category(args.category) if args.category else None
    folder = args.run or Path("runs") / "dpo" / f"{model.name}-{category.name if category else 'first_frame'}"
    make_folder(folder)
    make_way(args.out)
    if args.full:
        make_folder(args.full.parent)
    given = Inputs(model, args.clips, args.ratings, category, args.stage1)
    made = run(recipe, given, folder, resume=args.resume)
    if made is None:
        return STOPPED
    if PartialState().is_main_process:
        with run_is_kept(folder):
            write_lora(args.out, *made)
            if args.full:
                write_full(args.full, model, *made)
    return 0


def set_fields(assignments: list[str], steps: int | None) -> list[str]:
    """What `--set` and `--steps` change: whoever says the steps does not want those that passes make.

    Raises TrainingError where both are said: one of them would count for nothing.
    """
    if steps is not None:
        assignments = [*assignments, f"steps={steps}"]
    said = dict(text.partition("=")[::2] for text in assignments)
    if "steps" not in said or said.get("passes") == "0":
        return assignments
    if "passes" in said:
        raise TrainingError(
            f"got steps={said['steps']} and passes={said['passes']}, which make other steps: say one of them"
        )
    return [*assignments, "passes=0"]


def _check(args: argparse.Namespace, recipe: DPORecipe) -> None:
    """Raise TrainingError for options that are of the other network."""
    if recipe.frames == 1:
        if args.category or args.stage1:
            raise TrainingError("frames is 1, which trains the first frame: drop --category and --stage1")
        if recipe.prompt != "own":
            raise TrainingError(f"prompt is {recipe.prompt!r}; a picture is shown with its own caption")
    elif not (args.category and args.stage1):
        raise TrainingError(
            "clips need --category and --stage1, pictures a recipe whose frames is 1 (tiny_dpo_image, say)"
        )
    elif args.full:
        raise TrainingError("--full is for pictures; training.merge --full writes a whole video UNet")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.dpo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument("--category", help="of clips: a category of the catalog")
    parser.add_argument("--stage1", type=Path, help="of clips: stage-1 weights (training.motion)")
    parser.add_argument(
        "--clips", required=True, type=Path, help="folder of rated clips or pictures, with captions.jsonl"
    )
    parser.add_argument("--ratings", type=Path, help="default: ratings.jsonl in the folder of clips")
    parser.add_argument("--out", required=True, type=Path, help="LoRA to write (.safetensors)")
    parser.add_argument(
        "--full", type=Path, help="of pictures: also write the whole UNet into this folder, fp16"
    )
    add_run_options(
        parser,
        DPO_RECIPES,
        run="below runs/",
        recipe="of clips, by the model; those with `image` in their names are for pictures",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
