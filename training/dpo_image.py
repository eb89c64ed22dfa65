"""Preferences of the first frame: Diffusion-DPO (arXiv 2311.12908) of an SDXL-shaped UNet on rated pictures.

    python -m training.dpo_image --model tiny --clips pictures --out first_frame_lora.safetensors \\
        --full first_frame_unet
    python -m training.dpo_image --model tiny --clips pictures --out first_frame_lora.safetensors --resume

CLIPS is a folder as `training.dpo` takes it, whose files are pictures, or videos of which the first frame is
taken; all its categories train the one network. The loss is that of clips, on 4-D latents. OUT receives the
LoRA; `--full` also the whole merged UNet as a diffusers folder, which a model of the catalog names as
`first_frame_unet`. The run's folder, by default `runs/dpo_image/<model>`, is as that of `training.dpo`.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from huvidpo.catalog import Catalog, Model, Style, load_catalog
from huvidpo.config import ClipRequest, SamplingOptions
from huvidpo.errors import HuViDPOError
from huvidpo.lora import merge
from huvidpo.pipeline import FirstFramePipeline
from training.data import fingerprint_tensors
from training.dpo import add_arguments, chosen_recipe, fit, write_lora
from training.dpo_task import DPOTask
from training.lineage import write_network
from training.loop import TrainingError
from training.motion import start_accelerate
from training.rated import load_rated
from training.recipes import DPORecipe

SAMPLES = 8  # pictures made at each look at the monitors

Condition = tuple[Tensor, Tensor]
"""SDXL's embeddings of a text: hidden states [L, D] and the pooled projection [P]."""


@dataclass(frozen=True)
class PictureNetwork:
    """The first-frame network: `training.dpo_task.Network`."""

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
        hidden, pooled = (
            torch.stack(part) for part in zip(*(self.texts[caption] for caption in captions), strict=True)
        )
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
        Image.fromarray(np.concatenate(samples, axis=1)).save(folder / f"step_{step:06d}.png")


def run(
    recipe: DPORecipe, model: Model, clips: Path, folder: Path, *, ratings: Path | None, resume: bool
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Train a LoRA of `model`'s first-frame UNet on the rated pictures of `clips`. As `training.dpo.run`."""
    accelerator = start_accelerate(recipe)
    pipeline = load_pipeline(model, accelerator.device)
    unet = pipeline.pipe.unet
    provenance = {"stage": "dpo_image", "model": model.name, "base": fingerprint_tensors(unet.state_dict())}
    with accelerator.main_process_first():  # the others find what it cached
        rated = load_rated(clips, "", pipeline.pipe.vae, recipe, folder.parent / "cache", ratings)
    network = build_network(model, pipeline, recipe, rated.captions)
    config = pipeline.pipe.scheduler.config
    task = DPOTask(
        rated, rated.captions, network, DDIMScheduler.from_config(config), recipe, accelerator.device
    )
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return fit(unet, task, folder, accelerator=accelerator, provenance=provenance, resume=resume)


def load_pipeline(model: Model, device: torch.device) -> FirstFramePipeline:
    """The first-frame pipeline of `model`, float32; its prompts are whole captions."""
    pipe = FirstFramePipeline.from_catalog(model.name, device=device, dtype=torch.float32).pipe
    return FirstFramePipeline(pipe, Catalog({}, {}, {"": Style("", "{prompt}")}))


def build_network(
    model: Model, pipeline: FirstFramePipeline, recipe: DPORecipe, captions: list[str]
) -> PictureNetwork:
    """The network with every text encoded, once."""
    device = pipeline.pipe.unet.device
    texts = {caption: encode(pipeline, caption) for caption in sorted(set(captions))}
    size = (recipe.height, recipe.width)
    options: SamplingOptions = model.defaults.replace(
        first_frame_size=size, first_frame_steps=recipe.sample_steps
    )
    requests = [
        ClipRequest(prompt=caption, category="", style="", seed=seed, options=options)
        for seed, caption in enumerate(sorted(texts)[:SAMPLES])
    ]
    with torch.no_grad():
        embeddings = pipeline.encode_prompt(requests)
    time_ids = torch.tensor([*size, 0.0, 0.0, *size], device=device)
    return PictureNetwork(pipeline, texts, time_ids, requests, embeddings)


@torch.no_grad()
def encode(pipeline: FirstFramePipeline, caption: str) -> Condition:
    pipe = pipeline.pipe
    hidden, _, pooled, _ = pipe.encode_prompt(
        caption, do_classifier_free_guidance=False, device=pipe.unet.device
    )
    return hidden[0], pooled[0]


def write_full(folder: Path, model: Model, lora: dict[str, Tensor], lineage: dict[str, str]) -> None:
    """The whole UNet with the LoRA merged in, as `training.lineage.write_network` has it."""
    unet: UNet2DConditionModel = load_pipeline(model, torch.device("cpu")).pipe.unet
    unet.load_state_dict(merge(unet.state_dict(), lora, float(lineage["lora_alpha"])), strict=False)
    write_network(folder, unet, lineage)


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        return _main(args)
    except HuViDPOError as error:
        print(f"training.dpo_image: {error}", file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    model = load_catalog().model(args.model)
    recipe = chosen_recipe(args, "tiny_dpo_image" if args.model == "tiny" else "paper_dpo_image")
    if recipe.prompt != "own":
        raise TrainingError(f"prompt is {recipe.prompt!r}; a picture is always shown with its own caption")
    if recipe.frames != 1:
        raise TrainingError(
            f"frames is {recipe.frames}; pictures have 1: clips are the business of training.dpo"
        )
    folder = args.run or Path("runs") / "dpo_image" / model.name
    made = run(recipe, model, args.clips, folder, ratings=args.ratings, resume=args.resume)
    if made and Accelerator().is_main_process:
        write_lora(args.out, *made)
        if args.full:
            write_full(args.full, model, *made)
            print(f"{args.full}: the whole UNet")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.dpo_image",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--full", type=Path, help="also write the whole merged UNet into this folder, fp16")
    return parser


if __name__ == "__main__":
    sys.exit(main())
