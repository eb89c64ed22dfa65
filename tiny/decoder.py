"""Continue the tiny VAE's decoder on pictures seen anyhow; its encoder stays, and with it every latent.

    python -m tiny.decoder --threads 1    # an hour on one core; a stopped run goes on

`tiny.autoencoder` has seen crops of the family's world, filmed one way round. Here whole pictures are given
back, as `tiny.views` films them: mirrored, moved, from any moment on, and of the second world. No network
that was trained on the VAE's latents has to be trained again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from huvidpo.catalog import Component
from huvidpo.files import make_folder, whole_file
from huvidpo.hardware import mixed_precision, prepare_to_train
from huvidpo.loading import load_part
from tiny import dataset, views, world
from tiny.autoencoder import FOLDER, mean_psnr, reconstruction_loss
from tiny.common import DATA, fit, parse_recipe, to_unit
from tiny.second import world as second
from training.lineage import commit, write_network
from training.recipes import Recipe

CLIPS, FRAMES = 2400, 12
"""Clips, and frames of each, drawn at random."""
SCENES, PICTURES = 16, 64  # held out: clips in every view, pictures of the second world
SEED = 77
RECIPE = Recipe(
    steps=2000, batch_size=16, lr=8e-4, warmup_steps=50, cooldown=0.4, precision="bf16", ema=0.995,
    save_every=100, sample_every=400,
)  # fmt: skip


def frames_of(number: int) -> np.ndarray:
    """Some frames of clip `number` of `tiny.views`: uint8 [FRAMES, 64, 64, 3]."""
    clip = views.film(number).pixels
    return clip[np.random.default_rng((SEED, number)).choice(len(clip), FRAMES, replace=False)]


def pictures(path: Path, clips: int) -> np.ndarray:
    """uint8 [clips * FRAMES, 64, 64, 3], memory-mapped: rendered once into `path`."""
    shape = (clips * FRAMES, world.SIZE, world.SIZE, 3)
    if not path.exists() or np.load(path, mmap_mode="r").shape != shape:
        make_folder(path.parent)
        with whole_file(path) as part, Pool() as pool:
            store = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
            found = pool.imap(frames_of, range(clips), chunksize=8)
            for number, frames in enumerate(tqdm(found, total=clips, desc=path.stem, unit="clip")):
                store[number * FRAMES : (number + 1) * FRAMES] = frames
            store.flush()
    return np.load(path, mmap_mode="r")


def held_out() -> dict[str, Tensor]:
    """Pictures [N, 3, 64, 64] that nothing was trained on: by view, and of the second world."""
    scenes = dataset.scenes("held_out", SCENES)
    clips = {name: views.held_out(scenes, name)[:, ::5] for name in views.VIEWS}
    others = [second.render(s, 1, world.SIZE) for s in second.random_scenes(PICTURES, SEED)]
    return {
        name: to_unit(torch.from_numpy(np.ascontiguousarray(found))).flatten(0, 1)
        for name, found in {**clips, "second world": np.stack(others)}.items()
    }


@dataclass(frozen=True)
class Decoding:
    """Training of the decoder for the loop: `training.loop.Task`."""

    vae: AutoencoderKL
    """Holds the decoder in training."""
    pictures: np.ndarray
    test: dict[str, Tensor]

    def loss(
        self, model: nn.Module, draw: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(self.pictures), (RECIPE.batch_size,), generator=generator).numpy()
        pixels = to_unit(torch.from_numpy(self.pictures[rows])).contiguous(memory_format=torch.channels_last)
        with mixed_precision():
            with torch.no_grad():
                posterior = self.vae.encode(pixels).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=generator)
                latents = self.vae.post_quant_conv(posterior.mean + posterior.std * noise)
            out = model(latents)
        return reconstruction_loss(out.float(), pixels), {}

    def describe(self, draw: int) -> str:
        return f"random pictures number {draw}"

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """PSNR in dB by view."""
        return {name: mean_psnr(self.vae, test) for name, test in self.test.items()}

    def sample(self, step: int, folder: Path) -> None:
        """The PSNR says it all."""


def main() -> None:
    recipe = parse_recipe("Continue the tiny VAE's decoder.", RECIPE)
    seen = pictures(DATA / "anyhow.npy", CLIPS)
    vae = prepare_to_train(load_part(AutoencoderKL, Component.at(FOLDER), torch.float32))
    fit("decoder", vae.decoder, Decoding(vae, seen, held_out()), recipe)
    facts = {"stage": "decoder", "steps": str(recipe.steps), "recipe": json.dumps(asdict(recipe))}
    write_network(FOLDER, vae, {**facts, "commit": commit()})


if __name__ == "__main__":
    main()
