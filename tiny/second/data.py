"""Rendered pictures and encoded clips of the second world, made once and kept; what is there is left alone.

`stills.npy`: uint8 [N, S, S, 3], any moment of N scenes. `clips/0000.npy`, ...: float16 latents
[64, C, 48, s, s] of whole clips, rendered and encoded block by block: pixels of clips are not kept. Scenes
follow from seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from huvidpo.files import whole_file
from tiny.second.common import CHANNELS, SIDE, SIZE, Workshop, to_unit
from tiny.second.world import FRAMES, Scene, random_scenes, render, view_of

SEEDS = {"stills": 21, "clips": 22, "held_out": 23}
EVERY_STILL = 24  # one clip of so many is a picture in which nothing moves
BLOCK = 64  # clips to a file
TALLY = {"stills": 40_960, "clips": 4_096, "held_out": 64}


def scenes(kind: str, count: int | None = None) -> list[Scene]:
    """The scenes of a split. Held-out ones are of the world's own kind all."""
    count = count or TALLY[kind]
    return random_scenes(count, SEEDS[kind], 0 if kind == "held_out" else EVERY_STILL)


def render_still(scene: Scene) -> np.ndarray:
    """One moment [S, S, 3]: what a clip shows at its start and, of a later phase, further on."""
    return render(scene, 1, SIZE, view_of(scene))[0]


def render_clip(scene: Scene) -> np.ndarray:
    return render(scene, FRAMES, SIZE)


def _in_order(shop: Workshop, draw, todo: Sequence[Scene]) -> Iterator[np.ndarray]:
    """`draw` of each scene, by several processes where the workshop has them."""
    if shop.workers == 1:
        yield from map(draw, todo)
        return
    with get_context("fork" if not shop.on_gpu else "spawn").Pool(shop.workers) as pool:
        yield from pool.imap(draw, todo, chunksize=4)


def write_stills(shop: Workshop, count: int | None = None) -> None:
    file = shop.data / "stills.npy"
    todo = scenes("stills", count)
    if file.exists():
        return
    shop.data.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as unfinished:
        shape = (len(todo), SIZE, SIZE, 3)
        store = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
        drawn = _in_order(shop, render_still, todo)
        for i, picture in enumerate(tqdm(drawn, "stills", len(todo), mininterval=30)):
            store[i] = picture
        store.flush()


def stills(shop: Workshop) -> np.ndarray:
    return np.load(shop.data / "stills.npy", mmap_mode="r")


@torch.no_grad()
def encode(shop: Workshop, vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
    """uint8 [N, S, S, 3] -> float16 [N, C, s, s]."""
    found = []
    for start in range(0, len(pictures), batch):
        pixels = to_unit(np.ascontiguousarray(pictures[start : start + batch]), shop.device)
        with shop.autocast():
            latents = vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        found.append(latents.float().cpu().numpy().astype(np.float16))
    return np.concatenate(found)


def write_still_latents(shop: Workshop, vae: AutoencoderKL) -> None:
    file = shop.data / "stills_latents.npy"
    if file.exists():
        return
    pictures = stills(shop)
    with whole_file(file) as unfinished:
        shape = (len(pictures), CHANNELS, SIDE, SIDE)
        store = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
        for start in tqdm(range(0, len(pictures), 512), "encode", mininterval=30):
            store[start : start + 512] = encode(shop, vae, pictures[start : start + 512])
        store.flush()


def write_clip_latents(shop: Workshop, vae: AutoencoderKL, count: int | None = None) -> None:
    """Render and encode the training clips, a file for every `BLOCK` of them; a stopped run goes on."""
    todo, folder = scenes("clips", count), shop.data / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [b for b in range(0, len(todo), BLOCK) if not block_file(folder, b).exists()]
    drawn = _in_order(shop, render_clip, [scene for b in missing for scene in todo[b : b + BLOCK]])
    for start in tqdm(missing, "clips", mininterval=30):
        block = []
        for _ in todo[start : start + BLOCK]:
            latents = encode(shop, vae, next(drawn))
            block.append(latents.transpose(1, 0, 2, 3))
        with whole_file(block_file(folder, start)) as unfinished, unfinished.open("wb") as stream:
            np.save(stream, np.stack(block))


def block_file(folder: Path, start: int) -> Path:
    return folder / f"{start // BLOCK:04d}.npy"


class ClipLatents:
    """The encoded training clips, read through memory maps."""

    def __init__(self, shop: Workshop) -> None:
        self.blocks = [np.load(file, mmap_mode="r") for file in sorted((shop.data / "clips").glob("*.npy"))]
        self.scenes = scenes("clips")[: len(self)]

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def window(self, index: int, start: int, frames: int) -> np.ndarray:
        """float32 [C, frames, s, s] of a clip from frame `start` on."""
        clip = self.blocks[index // BLOCK][index % BLOCK]
        return clip[:, start : start + frames].astype(np.float32)
