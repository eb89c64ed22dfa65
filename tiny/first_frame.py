"""Train the SDXL-shaped first-frame UNet of the tiny family and write its StableDiffusionXLPipeline folder.

    python -m tiny.first_frame --threads 2

v-prediction with zero terminal SNR and trailing timesteps (Lin et al. 2023, arXiv:2305.08891); 10 % of the
captions are empty, for classifier-free guidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from huvidpo.catalog import Component
from huvidpo.files import make_folder
from huvidpo.hardware import mixed_precision, prepare_to_train
from huvidpo.loading import load_part, load_tokenizer
from preferences.thumbnails import tile
from tiny.common import DATA, FAMILY, fit, parse_recipe, scheduler
from tiny.dataset import load_split
from tiny.world import CATEGORIES, STYLES, Scene, caption, random_scene
from training.losses import prediction_target
from training.recipes import Recipe

BATCH, CONTEXT = 64, 48
SAMPLE_STEPS = 20
RECIPE = Recipe(
    steps=2400, batch_size=BATCH, lr=1e-3, warmup_steps=200, cooldown=0.25, precision="bf16", ema=0.998,
    save_every=100, sample_every=500,
)  # fmt: skip
FOLDER = FAMILY / "first_frame"
TIME_IDS = (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)  # original size, crop corner, target size, as SDXL has them


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=(2, 4),  # diffusers' name for the number of heads
        cross_attention_dim=256,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=128 + 6 * 32,
    )


def condition(pooled: Tensor) -> dict[str, Tensor]:
    """SDXL's added conditions for pooled text embeddings [N, 128]: an uncropped picture of its own size."""
    return {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS]).repeat(len(pooled), 1)}


def part(name: str) -> Component:
    """A part of the family's first-frame pipeline."""
    return Component.at(FOLDER, name)


class TextTowers:
    """Both text encoders as SDXL uses them: penultimate states side by side, and the pooled projection."""

    def __init__(self) -> None:
        self.one = load_part(CLIPTextModel, part("text_encoder"), torch.float32).eval()
        self.two = load_part(CLIPTextModelWithProjection, part("text_encoder_2"), torch.float32).eval()
        self.tokenizer = load_tokenizer(part("tokenizer"), self.one)

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Hidden states [N, 48, 256] and pooled embeddings [N, 128]."""
        options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        ids = self.tokenizer(texts, **options).input_ids
        first = self.one(ids, output_hidden_states=True)
        second = self.two(ids, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def assemble(unet: UNet2DConditionModel) -> None:
    """Write the UNet and the pipeline's index beside the VAE and text encoders that are there already."""
    unet.half().save_pretrained(FOLDER / "unet")
    (FOLDER / "unet" / "training.json").unlink(missing_ok=True)  # that of an aligned one
    scheduler().save_pretrained(FOLDER / "scheduler")
    one = load_part(CLIPTextModel, part("text_encoder"))
    two = load_part(CLIPTextModelWithProjection, part("text_encoder_2"))
    pipeline = StableDiffusionXLPipeline(
        vae=load_part(AutoencoderKL, part("vae")),
        text_encoder=one,
        text_encoder_2=two,
        tokenizer=load_tokenizer(part("tokenizer"), one),
        tokenizer_2=load_tokenizer(part("tokenizer_2"), two),
        unet=unet,
        scheduler=scheduler(),
        # Trained with the empty caption as "unconditional": an empty negative prompt is encoded, not zeroed.
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.save_config(FOLDER)


@torch.no_grad()
def sample_sheet(
    unet: UNet2DConditionModel, towers: TextTowers, vae: AutoencoderKL, guidance: float = 3.0
) -> np.ndarray:
    """One picture per category and style from fixed seeds: uint8 [8 * 64, 4 * 64, 3]."""
    rng = np.random.default_rng(0)
    captions = [caption(random_scene(rng, c, s)) for c in CATEGORIES for s in STYLES]
    text, pooled = towers(captions + [""] * len(captions))
    latents = torch.randn(len(captions), 12, 16, 16, generator=torch.Generator().manual_seed(0))
    steps = scheduler()
    steps.set_timesteps(SAMPLE_STEPS)
    added = condition(pooled)
    for t in steps.timesteps:
        with mixed_precision():
            cond, uncond = (
                unet(torch.cat([latents] * 2), t, text, added_cond_kwargs=added).sample.float().chunk(2)
            )
        latents = steps.step(uncond + guidance * (cond - uncond), t, latents).prev_sample
    pictures = (
        (vae.decode(latents).sample.clamp(-1, 1).movedim(1, -1) * 127.5 + 127.5)
        .round()
        .to(torch.uint8)
        .numpy()
    )
    return tile([list(pictures[i : i + 8]) for i in range(0, 32, 8)])


@dataclass(frozen=True)
class Denoising:
    """Training of the first-frame UNet for the loop: `training.loop.Task`."""

    latents: np.ndarray
    scenes: list[Scene]
    towers: TextTowers
    vae: AutoencoderKL
    model: UNet2DConditionModel
    schedule: DDIMScheduler

    def loss(self, model: Any, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(draw)
        chosen = np.sort(rng.choice(len(self.latents), BATCH, replace=False))
        drop, empty = rng.choice([0.0, 0.3], BATCH), rng.random(BATCH) < 0.1
        texts = [
            "" if e else caption(self.scenes[i], rng, d) for i, d, e in zip(chosen, drop, empty, strict=True)
        ]
        clean = torch.from_numpy(self.latents[chosen].astype(np.float32))
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(self.schedule.config.num_train_timesteps, (BATCH,), generator=generator)
        noisy = self.schedule.add_noise(clean, noise, t).contiguous(memory_format=torch.channels_last)
        with mixed_precision():
            text, pooled = self.towers(texts)
            out = model(noisy, t, text, added_cond_kwargs=condition(pooled)).sample
        return F.mse_loss(out.float(), prediction_target(self.schedule, clean, noise, t)), {}

    def describe(self, draw: int) -> str:
        return f"random pictures number {draw}"

    def evaluate(self, model: Any) -> dict[str, float]:
        return {}

    def sample(self, step: int, folder: Path) -> None:
        make_folder(folder)
        sheet = sample_sheet(self.model, self.towers, self.vae)
        Image.fromarray(sheet.repeat(2, 0).repeat(2, 1)).save(folder / f"{step:06d}.png")


def main() -> None:
    recipe = parse_recipe("Train the tiny first-frame UNet.", RECIPE)
    unet = prepare_to_train(build())
    vae = load_part(AutoencoderKL, part("vae"), torch.float32).eval()
    latents = np.load(DATA / "stills_latents.npy", mmap_mode="r")
    task = Denoising(latents, load_split(DATA, "stills")[1], TextTowers(), vae, unet, scheduler())
    fit("first_frame", unet, task, recipe)
    assemble(unet)


if __name__ == "__main__":
    main()
