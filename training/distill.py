"""Fewer steps: one LoRA with which the video UNet of every category needs two to four, by distillation.

    python -m training.distill --model tiny --of horse horses horse.safetensors \\
        --of rain rains rain.safetensors --out fast.safetensors
    python -m training.distill --model tiny --of horse horses horse.safetensors \\
        --of rain rains rain.safetensors --out fast.safetensors --resume

Latent consistency distillation (LCM, arXiv 2310.04378; as a LoRA, 2311.05556). The network learns to see,
from any point of the path on which DDIM takes noise to a clip, the clip at its end: what it answers at a
timestep must be what its own moving average answers `skip` timesteps further on, where one step of DDIM by
the network with the LoRA off, guidance folded in, has taken the sample. Frame 0 is clean throughout, and not
counted.

`--of CATEGORY CLIPS WEIGHTS`, for each category: clips as `training.motion` takes them, and the category's
weights. Steps go round the categories; the LoRA is of them all. `training.merge --fast` puts it into each
one's weights, after its preferences. Checkpoint, curves, sample clips and `recipe.toml` go to
`runs/distill/<model>`. SIGTERM or Ctrl-C saves and exits with 3; the same command with `--resume` goes on.
Several processes: `torchrun --nproc-per-node N -m -- training.distill ...`, on GPUs also `accelerate launch
-m`.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from diffusers import DDIMScheduler
from torch import Tensor, nn

from huvidpo import command, video
from huvidpo.catalog import Category, Model, load_catalog
from huvidpo.config import SamplingOptions
from huvidpo.files import hash_tensors, make_folder, make_way, write_bytes
from huvidpo.loading import check_lineage, load_video_unet
from huvidpo.pipeline import VideoPipeline
from huvidpo.schedule import guide
from huvidpo.unet import VideoUNet, fingerprint
from preferences.metrics import psnr
from training.adapter import adapter_off, adapter_tensors, add_adapter
from training.data import Clips, embed_texts, load_clips, rows_for
from training.dpo import write_lora
from training.inversion import split
from training.lineage import commit
from training.loop import STOPPED, TrainingError, averaged, run_is_kept, train
from training.losses import add_noise, prediction_type
from training.merge import DISTILLED
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
from training.recipes import DISTILL_RECIPES, DistillRecipe, override, read_settings, recipe_of

SIGMA_DATA, TIMESTEP_SCALE = 0.5, 10.0  # of the boundary condition, as in LCM
CLIPS = 2  # sample clips of each category


@dataclass(frozen=True)
class Given:
    """A category to distil: `--of`."""

    category: Category
    clips: Path
    weights: Path


@dataclass(frozen=True)
class Source:
    """What a category brings: clips, and its weights beside the parameters that they go into."""

    name: str
    clips: Clips
    weights: list[tuple[nn.Parameter, Tensor]]


def boundary(timesteps: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out), float32 [B, 1, ...] of `ndim` axes, at `timesteps` [B]: 1 and 0 at timestep 0, where
    the sample is the answer, and all but 0 and 1 from the next on (LCM, section 4.1).
    """
    scaled = TIMESTEP_SCALE * timesteps.float().view(-1, *[1] * (ndim - 1))
    square = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / square, scaled / square.sqrt()


def consistency(scheduler: DDIMScheduler, answer: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
    """f: the clean clip [B, C, F, h, w], float32, that a network's `answer` at `sample` means (LCM Eq. 9)."""
    clean, _ = split(scheduler, answer.float(), sample, _abar(scheduler, timesteps, sample))
    skip, out = boundary(timesteps, sample.ndim)
    return skip * sample + out * clean


def ddim_step(
    scheduler: DDIMScheduler, answer: Tensor, sample: Tensor, timesteps: Tensor, following: Tensor
) -> Tensor:
    """`sample` [B, C, F, h, w] at `timesteps` [B] taken to `following` [B] by a network's `answer`; frame 0
    stays (DDIM, arXiv 2010.02502, Eq. 12, eta 0).
    """
    clean, noise = split(scheduler, answer.float(), sample, _abar(scheduler, timesteps, sample))
    abar = _abar(scheduler, following, sample)
    moved = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    return torch.cat([sample[:, :, :1], moved[:, :, 1:]], dim=2)


def huber_loss(answer: Tensor, target: Tensor, c: float) -> Tensor:
    """Mean over frames 1.. of sqrt((answer - target)^2 + c^2) - c, fp32: a scalar (LCM's pseudo-Huber)."""
    apart = answer[:, :, 1:].float() - target[:, :, 1:].float()
    return ((apart.square() + c**2).sqrt() - c).mean()


def _abar(scheduler: DDIMScheduler, timesteps: Tensor, sample: Tensor) -> Tensor:
    abar = scheduler.alphas_cumprod.to(sample.device)[timesteps].float()
    return abar.view(-1, *[1] * (sample.ndim - 1))


@dataclass
class DistillTask:
    """Consistency distillation for the loop: `training.loop.Task`.

    Teacher, student and the student's moving average are one network: its LoRA off, on, and averaged.
    """

    sources: list[Source]
    texts: dict[str, Tensor]
    scheduler: DDIMScheduler
    pipeline: VideoPipeline
    """Holds the network in training: makes the sample clips."""
    recipe: DistillRecipe
    sampling: SamplingOptions
    """How the teacher makes sample clips; the student's have fewer steps and no guidance."""
    params: Mapping[str, nn.Parameter]
    """What trains: the LoRA."""
    average: dict[str, Tensor]
    """Its moving average, which the loop keeps."""
    device: torch.device
    before: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Sample clips without the LoRA, which never change: made at the first evaluation."""
    samples: list[np.ndarray] = field(default_factory=list)
    """Of the last evaluation."""

    def loss(
        self, model: nn.Module, draw: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch of one category: each clip at a timestep of its own."""
        source, rows = self._batch(draw)
        self._put_in(source)
        clean = self._latents(source, rows)
        text = self._text([source.clips.captions[row] for row in rows])
        timesteps, guidance, noise = self._noise(clean, generator)
        sample = add_noise(self.scheduler, clean, noise, timesteps)
        with torch.no_grad():
            target = self._target(model, sample, timesteps, text, guidance)
        answer = model(sample, timesteps, text)
        student = consistency(self.scheduler, answer, sample, timesteps)
        return huber_loss(student, target, self.recipe.huber), {}

    def _target(
        self, model: nn.Module, sample: Tensor, timesteps: Tensor, text: Tensor, guidance: Tensor
    ) -> Tensor:
        """What the moving average answers a step of the teacher further on."""
        following = (timesteps - self.recipe.skip).clamp(min=0)
        with adapter_off(model):
            answer = self._guided(model, sample, timesteps, text, guidance)
        further = ddim_step(self.scheduler, answer, sample, timesteps, following)
        with averaged(self.params, self.average):
            answer = model(further, following, text)
        return consistency(self.scheduler, answer, further, following)

    def _guided(
        self, model: nn.Module, sample: Tensor, timesteps: Tensor, text: Tensor, guidance: Tensor
    ) -> Tensor:
        if self.recipe.highest_guidance == 1:
            return model(sample, timesteps, text)
        empty = self._text([""]).expand_as(text)
        both = model(torch.cat([sample] * 2), torch.cat([timesteps] * 2), torch.cat([empty, text]))
        unconditional, conditional = both.float().chunk(2)
        return guide(unconditional, conditional, guidance)

    def _noise(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Timesteps int64 [B] on the teacher's grid, guidance [B] and noise, shape as `clean`."""
        recipe, few = self.recipe, len(clean)
        levels = self.scheduler.config.num_train_timesteps // recipe.skip
        timesteps = recipe.skip * (1 + torch.randint(levels, (few,), generator=generator)) - 1
        low, high = recipe.lowest_guidance, recipe.highest_guidance
        guidance = low + (high - low) * torch.rand(few, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        return timesteps.to(self.device), guidance.to(self.device), noise.to(self.device)

    def describe(self, draw: int) -> str:
        source, rows = self._batch(draw)
        return f"{source.name}: " + ", ".join(f"row {row} ({source.clips.captions[row]!r})" for row in rows)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """PSNR, dB, of clips of few steps to the teacher's of many, from the same noise: by the student, and
        by the teacher itself, which is what there is to beat.
        """
        if not self.before:
            with adapter_off(model):
                self.before = {
                    "many": self._render(self.recipe.teacher_steps, self.sampling.guidance),
                    "few": self._render(self.recipe.sample_steps, self.sampling.guidance),
                }
        self.samples = self._render(self.recipe.sample_steps, guidance=1.0)
        many = self.before["many"]
        return {"psnr": nearness(self.samples, many), "psnr_before": nearness(self.before["few"], many)}

    def sample(self, step: int, folder: Path) -> None:
        """Write the samples of `evaluate`: the teacher's of many steps, of few, and the student's, one below
        the other; clips side by side.
        """
        make_folder(folder)
        rows = [np.concatenate(row, axis=2) for row in (*self.before.values(), self.samples)]
        clip = np.concatenate(rows, axis=1)
        write_bytes(folder / f"step_{step:06d}.mp4", video.encode(clip, self.sampling.fps))

    def _render(self, steps: int, guidance: float) -> list[np.ndarray]:
        """Sample clips uint8 [F, H, W, 3] of every category by the network as it is now."""
        options = self.sampling.replace(steps=steps, guidance=guidance)
        clips = []
        for source in self.sources:
            self._put_in(source)
            rows = source.clips.eval_rows[:CLIPS]
            captions = [source.clips.captions[row] for row in rows]
            first = self._latents(source, rows)[:, :, 0]
            clips += sample_clips(self.pipeline, first, captions, self.texts, options)
        return clips

    def _batch(self, draw: int) -> tuple[Source, np.ndarray]:
        """The category of a batch, and its rows."""
        turn, place = divmod(draw, len(self.sources))
        source = self.sources[place]
        return source, rows_for(source.clips.train_rows, turn, self.recipe.batch_size, self.recipe.seed)

    @torch.no_grad()
    def _put_in(self, source: Source) -> None:
        for parameter, tensor in source.weights:
            parameter.copy_(tensor)

    def _latents(self, source: Source, rows: np.ndarray) -> Tensor:
        return source.clips.read(rows).to(self.device)

    def _text(self, captions: list[str]) -> Tensor:
        return torch.stack([self.texts[caption] for caption in captions]).to(self.device)


def nearness(clips: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Mean over clips uint8 [F, H, W, 3] of the PSNR, dB, of frames 1..; at most 60, where both are equal."""
    found = [psnr(one[1:], other[1:]) for one, other in zip(clips, others, strict=True)]
    return float(np.mean(np.minimum(found, 60.0)))


def run(
    recipe: DistillRecipe, model: Model, given: Sequence[Given], folder: Path, *, resume: bool
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Distil `model`'s video UNet over the weights of all categories; the run is kept in `folder`.

    Returns the LoRA's tensors and their provenance, None when the run was interrupted (and saved). Raises
    TrainingError (see `training.loop.train`), ClipsError and CheckpointError.
    """
    recipe = in_native_precision(recipe)
    accelerator = start_accelerate(recipe)
    unet = load_video_unet(model.video_unet, torch.float32, model.attention_mode)
    check_lineage(unet, [one.weights for one in given])
    weights = {one.category.name: read_stage1(unet, one.weights) for one in given}
    provenance = {"stage": DISTILLED, "model": model.name, "base": fingerprint(unet)}
    provenance["attention_mode"] = unet.config.attention_mode
    torch.manual_seed(recipe.seed)  # of the LoRA's first values
    unet = unet.to(accelerator.device, memory_format=torch.channels_last)
    task = build_task(recipe, model, unet, given, weights, folder.parent / "cache", accelerator)
    provenance |= {f"weights_{name}": hash_tensors(tensors) for name, tensors in weights.items()}
    provenance |= {f"clips_{source.name}": source.clips.fingerprint for source in task.sources}
    unet.train()
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    trained = train(
        unet,
        task,
        recipe,
        folder,
        accelerator=accelerator,
        identity=provenance,
        resume=resume,
        average=task.average,
    )
    if not trained.complete:
        if accelerator.is_main_process:
            print(f"stopped and saved at step {trained.step} of {recipe.steps}; go on with --resume")
        return None
    made = {
        "steps": str(trained.step),
        "commit": commit(),
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "lora_rank": str(recipe.lora_rank),
        "lora_alpha": str(recipe.lora_alpha),
    }
    return adapter_tensors(trained.weights), provenance | made


def build_task(
    recipe: DistillRecipe,
    model: Model,
    unet: VideoUNet,
    given: Sequence[Given],
    weights: Mapping[str, Mapping[str, Tensor]],
    cache: Path,
    accelerator: Accelerator,
) -> DistillTask:
    """Clips and text embeddings of every category, and the LoRA in `unet`.

    A weight that categories differ in and one of them lacks is there the base's. Raises TrainingError for a
    `skip` beyond the model's timesteps, HuViDPOError for a model that predicts what training does not know.
    """
    device = accelerator.device
    pipeline = build_pipeline(model, unet, device)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler_config)
    prediction_type(scheduler)  # one that is known
    if recipe.skip > (total := scheduler.config.num_train_timesteps):
        raise TrainingError(f"skip is {recipe.skip}; allowed: 1 to {total}, the model's timesteps")
    with accelerator.main_process_first():  # the others find what it cached
        clips = {one.category.name: load_clips(one.clips, pipeline.vae, recipe, cache) for one in given}
    captions = [caption for some in clips.values() for caption in some.captions]
    texts = embed_texts(captions, pipeline.tokenizer, pipeline.text_encoder)
    differing = {name for tensors in weights.values() for name in tensors}
    of_base = {name: tensor.clone() for name, tensor in unet.state_dict().items() if name in differing}
    add_adapter(unet, recipe)
    by_name = {name.replace(".base_layer.", "."): p for name, p in unet.named_parameters()}
    sources = [
        Source(name, clips[name], [(by_name[n], tensor) for n, tensor in (of_base | dict(own)).items()])
        for name, own in weights.items()
    ]
    params = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in params.items()}
    sampling = sampling_options(model, recipe)
    return DistillTask(sources, texts, scheduler, pipeline, recipe, sampling, params, average, device)


# The command line


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("training.distill", lambda: _main(args), several=True)


def _main(args: argparse.Namespace) -> int:
    if args.threads is not None:
        use_threads(args.threads)
    catalog = load_catalog()
    model = catalog.model(args.model)
    settings = read_settings(args.settings) if args.settings else []
    steps = [f"steps={args.steps}"] if args.steps is not None else []
    recipe = override(recipe_of(model, "distill", args.recipe), [*settings, *args.set, *steps])
    given = [Given(catalog.category(name), Path(clips), Path(weights)) for name, clips, weights in args.of]
    _check(given)
    folder = args.run or Path("runs") / "distill" / model.name
    make_folder(folder)
    make_way(args.out)
    made = run(recipe, model, given, folder, resume=args.resume)
    if made is None:
        return STOPPED
    if PartialState().is_main_process:
        with run_is_kept(folder):
            write_lora(args.out, *made)
    return 0


def _check(given: Sequence[Given]) -> None:
    names = [one.category.name for one in given]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TrainingError(f"--of names {', '.join(twice)} more than once; give each category once")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument(
        "--of",
        nargs=3,
        action="append",
        required=True,
        metavar=("CATEGORY", "CLIPS", "WEIGHTS"),
        help="a category, its folder of clips and its weights; once for each category",
    )
    parser.add_argument("--out", required=True, type=Path, help="LoRA to write (.safetensors)")
    add_run_options(parser, DISTILL_RECIPES, run="runs/distill/<model>")
    return parser


if __name__ == "__main__":
    sys.exit(main())
