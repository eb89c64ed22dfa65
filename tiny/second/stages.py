"""The trainings of the second generation: CLIP, VAE, video base, first frame. Each goes on where it stopped.

`python -m tiny.second.build` runs them; every one is a `training.loop.Task`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from huvidpo.hardware import prepare_to_train
from huvidpo.loading import load_part, load_tokenizer
from huvidpo.unet import VideoUNet
from preferences.metrics import psnr
from preferences.thumbnails import tile
from tiny.autoencoder import fold_normalisation, reconstruction_loss
from tiny.common import scheduler
from tiny.second import data, networks, words
from tiny.second.common import (
    CHANNELS,
    CONTEXT,
    SIDE,
    SIZE,
    TextTower,
    Workshop,
    part,
    to_pixels,
    to_unit,
)
from tiny.second.world import CATEGORIES, FRAMES, STYLES, Scene, random_scene
from training.lineage import commit, write_network
from training.losses import add_noise, motion_loss, prediction_target
from training.recipes import Recipe

KL_WEIGHT = 1e-5
CROP = 64  # pixels
TIME_IDS = (SIZE, SIZE, 0, 0, SIZE, SIZE)  # original size, crop corner, target size, as SDXL has them
EMPTY = 0.1  # share of captions left empty, for classifier-free guidance
DROPS = (0.0, 0.3)  # chance that a caption leaves colour, place or style out
WINDOWS = ((16, 4), (16, 4), (24, 3), (48, 1))
"""Frames and clips of a batch of the video base, in turn at random: all lengths up to a whole clip."""
SAMPLE_STEPS = 8


def recipes(on_gpu: bool) -> dict[str, Recipe]:
    """The recipe of each stage: overnight on one or two cores, or within 8 minutes on one card."""
    base = Recipe(warmup_steps=200, cooldown=0.25, precision="bf16", lr=1e-3, ema=0.998)
    stages = {
        "clip": replace(base, steps=4_000, batch_size=128, weight_decay=0.1, ema=0.995, save_every=100,
                        sample_every=500),
        "vae": replace(base, steps=6_000, batch_size=16, lr=2e-3, save_every=200, sample_every=1_000),
        "video": replace(base, steps=30_000, batch_size=4, lr=6e-4, ema=0.9995, save_every=200,
                         sample_every=1_500),
        "first_frame": replace(base, steps=12_000, batch_size=64, ema=0.999, save_every=100,
                               sample_every=1_000),
    }  # fmt: skip
    if on_gpu:  # steps are bound by their start, not by their size: larger batches, fewer steps
        stages["vae"] = replace(stages["vae"], batch_size=64, steps=5_000)
        stages["video"] = replace(stages["video"], batch_size=32, steps=4_000, lr=1e-3, ema=0.998)
        stages["first_frame"] = replace(stages["first_frame"], batch_size=256, steps=5_000, ema=0.998)
    return stages


def draw_captions(scenes: list[Scene], rng: np.random.Generator, empty: float = EMPTY) -> list[str]:
    return [
        "" if rng.random() < empty else words.caption(scene, rng, float(rng.choice(DROPS)))
        for scene in scenes
    ]


@dataclass(frozen=True)
class Stage:
    """What the tasks share for the loop."""

    shop: Workshop
    batch: int

    def describe(self, draw: int) -> str:
        return f"random samples number {draw}"

    def evaluate(self, model: Any) -> dict[str, float]:
        return {}

    def sample(self, step: int, folder: Path) -> None:
        """Nothing to look at."""

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Drawn on the CPU, so that a run is the same on any device."""
        return torch.randn(shape, generator=generator).to(self.shop.device)

    def timesteps(self, schedule: DDIMScheduler, count: int, generator: torch.Generator) -> Tensor:
        total = schedule.config.num_train_timesteps
        return torch.randint(total, (count,), generator=generator).to(self.shop.device)


def save_sheet(rows: list[list[np.ndarray]], file: Path, scale: int = 2) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet = tile(rows)
    Image.fromarray(sheet.repeat(scale, 0).repeat(scale, 1)).save(file)


# CLIP


@dataclass(frozen=True)
class Matching(Stage):
    """Pictures and captions, symmetric cross-entropy."""

    tokenizer: CLIPTokenizer
    pictures: np.ndarray
    scenes: list[Scene]
    held_out: tuple[np.ndarray, list[Scene]]

    def tokens(self, texts: list[str]) -> Tensor:
        """[N, longest]: the text tower is causal, padding to the whole context would change nothing."""
        options = {"padding": "longest", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        return self.tokenizer(texts, **options).input_ids.to(self.shop.device)

    def embed(self, model: CLIPModel, pictures: np.ndarray, texts: list[str]) -> tuple[Tensor, Tensor]:
        with self.shop.autocast():
            out = model(input_ids=self.tokens(texts), pixel_values=to_unit(pictures, self.shop.device))
        return out.image_embeds.float(), out.text_embeds.float()

    def loss(self, model: Any, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((1, draw))
        chosen = np.sort(rng.choice(len(self.pictures), min(self.batch, len(self.pictures)), replace=False))
        texts = draw_captions([self.scenes[i] for i in chosen], rng, empty=0)
        images, captions = self.embed(model, self.pictures[chosen], texts)
        scale = model.logit_scale.exp().clamp(max=100)
        logits = scale * images @ captions.T
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2, {}

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        """Recall of the right one among the held-out captions, plain and in sentences never trained on."""
        pictures, scenes = self.held_out
        rng = np.random.default_rng(0)
        result = {}
        for name, texts in {
            "plain": [words.plain(s) for s in scenes],
            "other_words": [words.held_out(s, rng) for s in scenes],
        }.items():
            images, captions = self.embed(model, pictures, texts)
            best = (images @ captions.T).argmax(1).cpu()
            result[f"recall_{name}"] = float((best == torch.arange(len(best))).float().mean())
        return result


def train_clip(shop: Workshop, recipe: Recipe) -> None:
    tokenizer = networks.build_tokenizer()
    model = networks.build_clip(tokenizer).to(shop.device)
    held = data.scenes("held_out")
    pictures = np.stack([data.render_still(s) for s in held])
    scenes = data.scenes("stills")
    task = Matching(shop, recipe.batch_size, tokenizer, data.stills(shop), scenes, (pictures, held))
    shop.fit("clip", model, task, recipe)
    print(task.evaluate(model), flush=True)
    model = model.cpu().half()
    folder = shop.family / "clip"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    half = (0.5, 0.5, 0.5)
    CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=SIZE, image_mean=half, image_std=half
    ).save_pretrained(folder)
    for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        kind.from_pretrained(folder, dtype=torch.float16).save_pretrained(shop.first_frame / name)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(shop.first_frame / name)


# VAE


@dataclass(frozen=True)
class Reconstruction(Stage):
    """Random crops, aligned to the blocks of pixel art."""

    pictures: np.ndarray
    test: np.ndarray
    """Held-out pictures."""

    def loss(self, model: Any, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((2, draw))
        step = SIZE // 32
        places = rng.integers(0, (SIZE - CROP) // step + 1, (self.batch, 2)) * step
        chosen = rng.integers(len(self.pictures), size=self.batch)
        crops = [
            self.pictures[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(chosen, places, strict=True)
        ]
        crops = [
            crop[:, ::-1] if flip else crop
            for crop, flip in zip(crops, rng.random(len(crops)) < 0.5, strict=True)
        ]
        pixels = to_unit(np.stack(crops), self.shop.device).contiguous(memory_format=torch.channels_last)
        with self.shop.autocast():
            posterior = model.encode(pixels).latent_dist
            noise = self.noise(tuple(posterior.mean.shape), generator)
            out = model.decode(posterior.mean + posterior.std * noise).sample
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(out.float(), pixels) + KL_WEIGHT * kl, {}

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        with self.shop.autocast():
            pixels = to_unit(self.test, self.shop.device).contiguous(memory_format=torch.channels_last)
            out = model.decode(model.encode(pixels).latent_dist.mean).sample
        found = to_pixels(out)
        return {"psnr_db": float(np.mean([psnr(a, b) for a, b in zip(found, self.test, strict=True)]))}


def train_vae(shop: Workshop, recipe: Recipe) -> None:
    test = np.stack([data.render_still(s) for s in data.scenes("held_out")])
    vae = prepare_to_train(networks.build_vae()).to(shop.device)
    pictures = data.stills(shop)
    task = Reconstruction(shop, recipe.batch_size, pictures, test)
    shop.fit("vae", vae, task, recipe)
    # into quant_conv: diffusers' SDXL pipeline knows `latents_mean` of four channels only
    vae = vae.cpu()
    fold_normalisation(vae, to_unit(np.ascontiguousarray(pictures[:512]), torch.device("cpu")))
    print(task.evaluate(vae.to(shop.device)), flush=True)
    vae.cpu().half().to(memory_format=torch.contiguous_format).save_pretrained(shop.first_frame / "vae")


def load_vae(shop: Workshop) -> AutoencoderKL:
    vae = load_part(AutoencoderKL, part(shop.first_frame, "vae"), torch.float32)
    return prepare_to_train(vae).eval().to(shop.device)


@torch.no_grad()
def decode(shop: Workshop, vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """[N, C, s, s] -> uint8 [N, S, S, 3]."""
    with shop.autocast():
        return np.concatenate([to_pixels(vae.decode(part).sample) for part in latents.split(32)])


# Video base


@dataclass(frozen=True)
class Continuing(Stage):
    """Clips from any moment on, of several lengths, given their first frame."""

    clips: data.ClipLatents
    towers: TextTower
    vae: AutoencoderKL
    model: VideoUNet
    schedule: DDIMScheduler
    held_out: tuple[np.ndarray, list[Scene]]
    """Whole clips uint8 [N, 48, S, S, 3]."""

    def loss(self, model: Any, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((3, draw))
        frames, few = WINDOWS[int(rng.integers(len(WINDOWS)))]
        chosen = rng.integers(len(self.clips), size=few * self.batch // 4)
        starts = rng.integers(FRAMES - frames + 1, size=len(chosen))
        windows = [self.clips.window(i, s, frames) for i, s in zip(chosen, starts, strict=True)]
        latents = torch.from_numpy(np.stack(windows)).to(self.shop.device)
        text = self.towers(draw_captions([self.clips.scenes[i] for i in chosen], rng))[2]
        noise = self.noise(tuple(latents.shape), generator)
        timesteps = self.timesteps(self.schedule, len(chosen), generator)
        noisy = add_noise(self.schedule, latents, noise, timesteps)
        target = prediction_target(self.schedule, latents, noise, timesteps)
        return motion_loss(model(noisy, timesteps, text), target), {}

    @torch.no_grad()
    def continued(self, model: Any, first: np.ndarray, texts: list[str], frames: int) -> np.ndarray:
        """Clips uint8 [N, frames, S, S, 3] from first pictures [N, S, S, 3], always the same noise."""
        start = torch.from_numpy(data.encode(self.shop, self.vae, first)).float().to(self.shop.device)
        shape = (len(first), CHANNELS, frames, SIDE, SIDE)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.shop.device)
        text, steps = self.towers(texts)[2], scheduler()
        steps.set_timesteps(SAMPLE_STEPS)
        for t in steps.timesteps:
            latents[:, :, 0] = start
            with self.shop.autocast():
                parts = zip(latents.split(4), text.split(4), strict=True)
                now = t.to(self.shop.device)
                out = torch.cat([model(x, now.expand(len(x)), words_) for x, words_ in parts]).float()
            latents = steps.step(out, t, latents).prev_sample
        latents[:, :, 0] = start
        pixels = decode(self.shop, self.vae, latents.transpose(1, 2).flatten(0, 1))
        return pixels.reshape(len(first), frames, SIZE, SIZE, 3)

    def evaluate(self, model: Any) -> dict[str, float]:
        """PSNR of 16 held-out clips' frames 1..15 to the truth, beside a frozen frame's and the VAE's."""
        truths, scenes = self.held_out
        truths, scenes = truths[:16, :16], scenes[:16]
        made = self.continued(model, truths[:, 0], [words.plain(s) for s in scenes], 16)
        rows = []
        for clip, truth in zip(made, truths, strict=True):
            latents = torch.from_numpy(data.encode(self.shop, self.vae, truth)).float().to(self.shop.device)
            ceiling = decode(self.shop, self.vae, latents)
            moving = (np.ptp(truth.astype(int), 0).max(-1) > 12)[None, ..., None].repeat(15, 0).repeat(3, -1)
            rows.append([
                psnr(clip[1:], truth[1:]), psnr(clip[1:][moving], truth[1:][moving]),
                psnr(truth[:1].repeat(15, 0), truth[1:]), psnr(ceiling[1:], truth[1:]),
            ])  # fmt: skip
        names = ("psnr", "psnr_moving", "psnr_frozen", "psnr_vae")
        return dict(zip(names, np.mean(rows, 0).tolist(), strict=True))

    def sample(self, step: int, folder: Path) -> None:
        """Four held-out clips, 48 frames: the truth above, ours below."""
        truths, scenes = self.held_out
        rows: list[list[np.ndarray]] = []
        for truth, scene in zip(truths[16:], scenes[16:], strict=True):
            made = self.continued(self.model, truth[:1], [words.plain(scene)], FRAMES)[0]
            shown = (0, 2, 4, 6, 10, 16, 24, 36, 47)
            rows += [[clip[t] for t in shown] for clip in (truth, made)]
        save_sheet(rows, folder / f"{step:06d}.png", 1)


def train_video(shop: Workshop, recipe: Recipe) -> None:
    held = data.scenes("held_out")[:20]
    truths = np.stack([data.render_clip(s) for s in held])
    unet = networks.build_video().to(shop.device, memory_format=torch.channels_last)
    vae, towers, clips = load_vae(shop), TextTower(shop), data.ClipLatents(shop)
    task = Continuing(shop, recipe.batch_size, clips, towers, vae, unet, scheduler(), (truths, held))
    shop.fit("video", unet, task, recipe)
    folder = shop.family / "video"
    scheduler().save_pretrained(folder / "scheduler")
    facts = {"stage": "base", "model": "tiny", "steps": str(recipe.steps), "commit": commit()}
    write_network(folder / "unet", unet.cpu(), facts)


# First frame


@dataclass(frozen=True)
class Denoising(Stage):
    """Pictures from captions; v-prediction, zero terminal SNR (Lin et al. 2023, arXiv:2305.08891)."""

    latents: np.ndarray
    scenes: list[Scene]
    towers: TextTower
    vae: AutoencoderKL
    model: UNet2DConditionModel
    schedule: DDIMScheduler

    def condition(self, pooled: Tensor) -> dict[str, Tensor]:
        sizes = torch.tensor([TIME_IDS], dtype=torch.float32, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": sizes.repeat(len(pooled), 1)}

    def loss(self, model: Any, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((4, draw))
        chosen = np.sort(rng.choice(len(self.latents), min(self.batch, len(self.latents)), replace=False))
        clean = torch.from_numpy(self.latents[chosen].astype(np.float32)).to(self.shop.device)
        text, pooled, _ = self.towers(draw_captions([self.scenes[i] for i in chosen], rng))
        noise = self.noise(tuple(clean.shape), generator)
        t = self.timesteps(self.schedule, len(chosen), generator)
        noisy = self.schedule.add_noise(clean, noise, t).contiguous(memory_format=torch.channels_last)
        with self.shop.autocast():
            out = model(noisy, t, text, added_cond_kwargs=self.condition(pooled)).sample
        return F.mse_loss(out.float(), prediction_target(self.schedule, clean, noise, t)), {}

    @torch.no_grad()
    def sample(self, step: int, folder: Path) -> None:
        """A picture per category and style from fixed seeds."""
        rng = np.random.default_rng(0)
        texts = [words.plain(random_scene(rng, c, s)) for c in CATEGORIES for s in STYLES]
        text, pooled, _ = self.towers(texts + [""] * len(texts))
        shape = (len(texts), CHANNELS, SIDE, SIDE)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.shop.device)
        steps, added = scheduler(), self.condition(pooled)
        steps.set_timesteps(20)
        for t in steps.timesteps:
            with self.shop.autocast():
                both = self.model(torch.cat([latents] * 2), t, text, added_cond_kwargs=added).sample.float()
            cond, uncond = both.chunk(2)
            latents = steps.step(uncond + 3.0 * (cond - uncond), t, latents).prev_sample
        pictures = decode(self.shop, self.vae, latents)
        save_sheet(
            [list(pictures[i : i + 8]) for i in range(0, len(pictures), 8)], folder / f"{step:06d}.png"
        )


def train_first_frame(shop: Workshop, recipe: Recipe) -> None:
    unet = prepare_to_train(networks.build_first_frame()).to(shop.device)
    latents = np.load(shop.data / "stills_latents.npy", mmap_mode="r")
    task = Denoising(
        shop,
        recipe.batch_size,
        latents,
        data.scenes("stills"),
        TextTower(shop),
        load_vae(shop),
        unet,
        scheduler(),
    )
    shop.fit("first_frame", unet, task, recipe)
    assemble(shop, unet.cpu())


def assemble(shop: Workshop, unet: UNet2DConditionModel) -> None:
    """Write the UNet and the pipeline's index beside the VAE and text encoders that are there already."""
    folder = shop.first_frame
    unet.half().to(memory_format=torch.contiguous_format).save_pretrained(folder / "unet")
    scheduler().save_pretrained(folder / "scheduler")
    one = load_part(CLIPTextModel, part(folder, "text_encoder"))
    two = load_part(CLIPTextModelWithProjection, part(folder, "text_encoder_2"))
    StableDiffusionXLPipeline(
        vae=load_part(AutoencoderKL, part(folder, "vae")),
        text_encoder=one,
        text_encoder_2=two,
        tokenizer=load_tokenizer(part(folder, "tokenizer"), one),
        tokenizer_2=load_tokenizer(part(folder, "tokenizer_2"), two),
        unet=unet,
        scheduler=scheduler(),
        # Trained with the empty caption as "unconditional": an empty negative prompt is encoded, not zeroed.
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_config(folder)
