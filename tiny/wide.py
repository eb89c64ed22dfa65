"""Continue the tiny family's video base on clips seen anyhow, so that motion is read from the picture.

    python -m tiny.wide --threads 2     # makes its clips first; a stopped run goes on

The base (`tiny.video`) has seen every subject at one place, facing one way, at one moment of its motion. Here
every other batch is of the family's world, as it is, mirrored or moved; the others are of the second world
(`tiny.second`): any moment of a motion, other looks, sizes and places, up to 48 frames, and pictures in which
nothing moves, whatever the caption says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from huvidpo.catalog import Component
from huvidpo.files import make_folder, whole_file
from huvidpo.loading import load_part, load_tokenizer, load_video_unet
from huvidpo.unet import VideoUNet
from preferences.metrics import psnr
from preferences.thumbnails import tile
from tiny import dataset, world
from tiny.common import FAMILY, RUNS, parse_recipe, scheduler, to_unit
from tiny.second import world as second
from training.lineage import commit, write_network
from training.loop import STOPPED, train
from training.losses import add_noise, motion_loss, prediction_target
from training.motion import in_native_precision, start_accelerate
from training.recipes import Recipe

RECIPE = Recipe(
    steps=2_400, batch_size=4, lr=4e-4, warmup_steps=100, cooldown=0.4, precision="bf16", ema=0.995,
    save_every=50, sample_every=400,
)  # fmt: skip
FOLDER = RUNS / "wide"
SEEDS = {"first": 31, "second": 32}
TALLY = {"first": 1_280, "second": 768}
EVERY_STILL = 12  # one clip of so many of the second world is a picture in which nothing moves
WINDOWS = ((16, 4), (16, 4), (24, 3), (48, 1))
"""Frames and clips of a batch of the second world, in turn at random."""
MOST_RIGHT, MOST_DOWN = 16, 8  # pixels
EMPTY = 0.1  # share of captions left empty
DROPS = (0.0, 0.3)  # chance that a caption leaves colour, place or style out
SHOWN = (0, 2, 4, 6, 8, 11, 15)


def moved(clip: np.ndarray, right: int, down: int) -> np.ndarray:
    """A clip [F, H, W, 3] moved by whole pixels; what comes into view repeats the edge."""
    far = max(abs(right), abs(down))
    wide = np.pad(clip, ((0, 0), (far, far), (far, far), (0, 0)), mode="edge")
    size = clip.shape[1]
    return wide[:, far - down :, far - right :][:, :size, :size]


def seen_anyhow(clip: np.ndarray, seed: int) -> np.ndarray:
    """A clip as it is, mirrored, moved or both; by even numbers: pixel art has blocks of two pixels."""
    rng = np.random.default_rng((seed, 4))
    if rng.random() < 0.4:
        return clip
    clip = clip[:, :, ::-1] if rng.random() < 0.6 else clip
    right, down = (
        2 * int(rng.integers(-most // 2, most // 2 + 1)) * int(rng.random() < 0.7)
        for most in (MOST_RIGHT, MOST_DOWN)
    )
    return moved(clip, right, down)


def first_scenes() -> list[world.Scene]:
    return world.random_scenes(TALLY["first"], SEEDS["first"])


def second_scenes() -> list[second.Scene]:
    """Those that the family has words for: its own colours, the camera stands still."""
    rng = np.random.default_rng(SEEDS["second"])
    scenes = second.random_scenes(TALLY["second"], SEEDS["second"], EVERY_STILL)
    names = {c: world.BRIGHT if c == "fireworks" else tuple(world.COLOURS) for c in second.CATEGORIES}
    return [
        replace(s, camera=second.STILL, colour=str(rng.choice(names.get(s.category, tuple(world.COLOURS)))))
        for s in scenes
    ]


def words_of(scene: world.Scene | second.Scene, rng: np.random.Generator) -> str:
    """A caption in the family's own words. Of a picture in which nothing moves it names any action."""
    if rng.random() < EMPTY:
        return ""
    category = scene.category if scene.category in world.CATEGORIES else str(rng.choice(world.CATEGORIES))
    named = world.Scene(category, scene.style, scene.place, scene.colour, 0)
    return world.caption(named, rng, float(rng.choice(DROPS)))


def render_first(scene: world.Scene) -> np.ndarray:
    return seen_anyhow(world.render(scene), scene.seed)


def render_second(scene: second.Scene) -> np.ndarray:
    return second.render(scene, second.FRAMES, world.SIZE)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """uint8 [F, 64, 64, 3] -> float16 [12, F, 16, 16]."""
    pixels = to_unit(torch.from_numpy(np.ascontiguousarray(pictures)))
    parts = [
        vae.encode(part.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        for part in pixels.split(16)
    ]
    return torch.cat(parts).transpose(0, 1).numpy().astype(np.float16)


def latents(name: str, draw: Callable, scenes: Sequence, frames: int, vae: AutoencoderKL) -> np.ndarray:
    """The encoded clips [N, 12, frames, 16, 16] of some scenes, made once."""
    file = FOLDER / f"{name}.npy"
    if not file.exists():
        make_folder(FOLDER)
        with whole_file(file) as part, Pool() as pool:
            store = np.lib.format.open_memmap(
                part, mode="w+", dtype=np.float16, shape=(len(scenes), 12, frames, 16, 16)
            )
            drawn = pool.imap(draw, scenes, chunksize=4)
            for i, clip in enumerate(tqdm(drawn, name, len(scenes), mininterval=10)):
                store[i] = encode(vae, clip)
            store.flush()
    return np.load(file, mmap_mode="r")


@dataclass(frozen=True)
class Continuing:
    """`training.loop.Task`: the rest of a clip from its first frame and words."""

    clips: dict[str, np.ndarray]
    scenes: dict[str, list]
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    vae: AutoencoderKL
    model: VideoUNet
    schedule: DDIMScheduler

    def loss(self, model: Any, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((5, draw))
        source = ("first", "second")[draw % 2]
        frames, few = (16, 4) if source == "first" else WINDOWS[int(rng.integers(len(WINDOWS)))]
        chosen = rng.integers(len(self.clips[source]), size=few)
        starts = rng.integers(self.clips[source].shape[2] - frames + 1, size=few)
        windows = [self.clips[source][i, :, s : s + frames] for i, s in zip(chosen, starts, strict=True)]
        clean = torch.from_numpy(np.stack(windows).astype(np.float32))
        text = self.embedded([words_of(self.scenes[source][i], rng) for i in chosen])
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(self.schedule.config.num_train_timesteps, (few,), generator=generator)
        answer = model(add_noise(self.schedule, clean, noise, t), t, text)
        return motion_loss(answer, prediction_target(self.schedule, clean, noise, t)), {}

    @torch.no_grad()
    def embedded(self, texts: list[str]) -> Tensor:
        longest = self.text_encoder.config.max_position_embeddings
        options = {"padding": "max_length", "truncation": True, "max_length": longest, "return_tensors": "pt"}
        return self.text_encoder(self.tokenizer(texts, **options).input_ids).last_hidden_state

    def describe(self, draw: int) -> str:
        return f"random clips number {draw}"

    @torch.no_grad()
    def continued(self, model: Any, first: np.ndarray, texts: list[str], frames: int = 16) -> np.ndarray:
        """Clips uint8 [N, frames, 64, 64, 3] from first pictures [N, 64, 64, 3], always of the same noise."""
        start = torch.from_numpy(encode(self.vae, first).swapaxes(0, 1)).float()
        x = torch.randn(len(first), 12, frames, 16, 16, generator=torch.Generator().manual_seed(0))
        text, steps = self.embedded(texts), scheduler()
        steps.set_timesteps(8)
        for t in steps.timesteps:
            x[:, :, 0] = start
            x = steps.step(model(x, t.expand(len(x)), text).float(), t, x).prev_sample
        x[:, :, 0] = start
        pictures = self.vae.decode(x.transpose(1, 2).flatten(0, 1)).sample.clamp(-1, 1)
        pixels = (pictures.movedim(1, -1) * 127.5 + 127.5).round().byte().numpy()
        return pixels.reshape(len(first), frames, *pixels.shape[1:])

    def evaluate(self, model: Any) -> dict[str, float]:
        """What 8 held-out clips of each view gain in PSNR over a frozen first frame."""
        result: dict[str, float] = {}
        for name, clips, texts in held_out_views():
            made = self.continued(model, clips[:, 0], texts)
            frozen = [psnr(c[:1].repeat(15, 0), c[1:]) for c in clips]
            ours = [psnr(m[1:], c[1:]) for m, c in zip(made, clips, strict=True)]
            result[name] = float(np.mean(np.subtract(ours, frozen)))
        return result

    def sample(self, step: int, folder: Path) -> None:
        """Truth above, ours below: a clip of each view."""
        make_folder(folder)
        rows: list[list[np.ndarray]] = []
        for _, clips, texts in held_out_views():
            made = self.continued(self.model, clips[3:4, 0], texts[3:4])
            rows += [[clip[t] for t in SHOWN] for clip in (clips[3], made[0])]
        sheet = tile(rows)
        Image.fromarray(sheet.repeat(2, 0).repeat(2, 1)).save(folder / f"{step:06d}.png")


def held_out_views() -> Iterator[tuple[str, np.ndarray, list[str]]]:
    """Views of 8 scenes that nothing is trained on, one of each category: name, clips and captions."""
    scenes = dataset.scenes("held_out", 8)
    clips = np.stack([world.render(scene) for scene in scenes])
    texts = [world.caption(scene) for scene in scenes]
    views: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "as it is": lambda clip: clip,
        "mirrored": lambda clip: clip[:, :, ::-1],
        "8 px right": lambda clip: moved(clip, 8, 0),
        "16 px left": lambda clip: moved(clip, -16, 0),
    }
    for name, view in views.items():
        yield name, np.stack([view(clip) for clip in clips]), texts
    others = [replace(s, camera=second.STILL, colour="red") for s in second.random_scenes(8, 33)]
    named = [world.caption(world.Scene(s.category, s.style, s.place, s.colour, 0)) for s in others]
    yield "second world", np.stack([second.render(s, 16, world.SIZE) for s in others]), named


def main() -> int:
    recipe = in_native_precision(parse_recipe("Continue the tiny video base on clips seen anyhow.", RECIPE))
    accelerator = start_accelerate(recipe)
    source = FAMILY / "first_frame"
    vae = load_part(AutoencoderKL, Component.at(source, "vae"), torch.float32).eval()
    vae = vae.to(memory_format=torch.channels_last)
    scenes: dict[str, list] = {"first": first_scenes(), "second": second_scenes()}
    clips = {
        "first": latents("first", render_first, scenes["first"], world.FRAMES, vae),
        "second": latents("second", render_second, scenes["second"], second.FRAMES, vae),
    }
    text_encoder = load_part(CLIPTextModel, Component.at(source, "text_encoder"), torch.float32).eval()
    tokenizer = load_tokenizer(Component.at(source, "tokenizer"), text_encoder)
    unet = load_video_unet(Component.at(FAMILY / "video", "unet"), torch.float32, None)
    unet = unet.to(memory_format=torch.channels_last).train()
    task = Continuing(clips, scenes, text_encoder, tokenizer, vae, unet, scheduler())
    trained = train(
        unet, task, recipe, FOLDER / "run", accelerator=accelerator, identity={"model": "wide"}, resume=True
    )
    if not trained.complete:
        print(f"stopped and saved at step {trained.step} of {recipe.steps}; the same command goes on")
        return STOPPED
    unet.load_state_dict(trained.weights, strict=False)
    facts = {"stage": "base", "model": "tiny", "steps": str(recipe.steps), "commit": commit()}
    write_network(FAMILY / "video" / "unet", unet, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
