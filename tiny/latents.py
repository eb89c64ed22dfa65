"""Encode the rendered pictures once with the tiny VAE: float16 latents beside the pixels.

    python -m tiny.latents

Files in runs/tiny/data: `stills_latents.npy` [N, 12, 16, 16] and the latent store `clips_latents/`
(`latents.npy` [N, 12, 16, 16, 16] as channels, frames, height, width, and `captions.json`) that
`training.motion` reads, for the base; the same for stage 1: 256 clips of each category, as they were filmed
and in two other views (runs/tiny/motion/<category>), of some 256 others in five (runs/tiny/more/<category>).
What is there already is kept if its captions are the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from huvidpo.catalog import Component
from huvidpo.files import make_folder, whole_file, write_text
from huvidpo.hardware import mixed_precision, prepare_to_train
from huvidpo.loading import load_part
from tiny import dataset, views
from tiny.common import DATA, FAMILY, RUNS, to_unit
from tiny.dataset import CLIPS, load_split
from tiny.world import CATEGORIES, FRAMES, Scene, caption, render


@torch.no_grad()
def encode_to(path: Path, pictures: np.ndarray, vae: AutoencoderKL) -> None:
    """Latents of uint8 [N, (F,) 64, 64, 3] as float16 [N, 12, (F,) 16, 16]; a finished file is kept."""
    if path.exists():
        return
    frames = pictures.shape[1] if pictures.ndim == 5 else 1
    shape = (len(pictures), 12, *((frames,) if pictures.ndim == 5 else ()), 16, 16)
    batch = 128 // frames
    with whole_file(path) as part:
        store = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        for start in tqdm(range(0, len(pictures), batch), desc=path.stem, mininterval=5):
            block = to_unit(torch.from_numpy(pictures[start : start + batch]))
            flat = block.flatten(0, -4).contiguous(memory_format=torch.channels_last)
            with mixed_precision():
                mean = vae.encode(flat).latent_dist.mean
            if frames > 1:
                mean = mean.unflatten(0, (-1, frames)).transpose(1, 2)
            store[start : start + batch] = mean.float().numpy()
        store.flush()


def write_store(folder: Path, clips: np.ndarray, scenes: list[Scene], vae: AutoencoderKL) -> None:
    """A latent store as `training.data` reads it. Some captions lose words, as the prompts of people do."""
    make_folder(folder)
    rng = np.random.default_rng(0)
    captions = json.dumps([caption(scene, rng, drop=float(rng.choice([0.0, 0.3]))) for scene in scenes])
    names, latents = folder / "captions.json", folder / "latents.npy"
    if not names.exists() or names.read_text(encoding="utf-8") != captions:
        latents.unlink(missing_ok=True)  # of other clips, or of nobody knows which
        write_text(names, captions)
    encode_to(latents, clips, vae)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-clips", type=int, default=3072, help="clips of all categories for the base")
    parser.add_argument("--motion-clips", type=int, default=256, help="clips of each category for stage 1")
    parser.add_argument("--only", choices=("stills", "base", "motion"))
    args = parser.parse_args()
    vae = prepare_to_train(
        load_part(AutoencoderKL, Component.at(FAMILY / "first_frame", "vae"), torch.float32)
    )
    vae.eval()
    if args.only in (None, "stills"):
        encode_to(DATA / "stills_latents.npy", load_split(DATA, "stills")[0], vae)
    if args.only in (None, "base"):
        clips, scenes = load_split(DATA, "clips")
        write_store(DATA / "clips_latents", clips[: args.base_clips], scenes[: args.base_clips], vae)
    if args.only in (None, "motion"):
        rest = dataset.scenes("clips", CLIPS)[args.base_clips :]  # clips that `tiny.video` has not seen
        for category in CATEGORIES:
            chosen = [scene for scene in rest if scene.category == category][: 2 * args.motion_clips]
            write_views(RUNS / "motion" / category, chosen[: args.motion_clips], views_of, vae)
            write_views(RUNS / "more" / category, chosen[args.motion_clips :], more_views_of, vae)


def write_views(
    folder: Path, scenes: list[Scene], seen_by: Callable[[Scene], np.ndarray], vae: AutoencoderKL
) -> None:
    """The store of all views of some scenes."""
    seen = np.stack([seen_by(scene) for scene in scenes])
    named = [scene for scene in scenes for _ in range(seen.shape[1])]
    write_store(folder, seen.reshape(-1, *seen.shape[2:]), named, vae)


def views_of(scene: Scene) -> np.ndarray:
    """A clip as it was filmed and, so that its motion is not learned as one place's or one moment's, mirrored
    or from another moment on, and mirrored or moved from any moment on: uint8 [3, 16, 64, 64, 3].
    """
    clip, rng = render(scene, views.SHORT), np.random.default_rng((scene.seed, 6))
    starts = views.SHORT - FRAMES + 1
    turned = clip[:, :, ::-1] if rng.random() < 0.5 else clip
    later = int(rng.integers(1, starts)) if rng.random() < 0.5 else 0
    anyhow, anywhen = views.seen_anyhow(clip, rng), int(rng.integers(starts))
    return np.stack([clip[:FRAMES], turned[later:][:FRAMES], anyhow[anywhen:][:FRAMES]])


def more_views_of(scene: Scene) -> np.ndarray:
    """A clip as it was filmed, mirrored, from another moment on, from another one on and mirrored, and from
    a third on, mirrored or moved: uint8 [5, 16, 64, 64, 3].
    """
    clip, rng = render(scene, views.SHORT), np.random.default_rng((scene.seed, 7))
    mirrored, anyhow = clip[:, :, ::-1], views.seen_anyhow(clip, rng)
    moments = rng.integers(1, views.SHORT - FRAMES + 1, 3)
    later = [seen[start:] for seen, start in zip((clip, mirrored, anyhow), moments, strict=True)]
    return np.stack([part[:FRAMES] for part in (clip, mirrored, *later)])


if __name__ == "__main__":
    main()
