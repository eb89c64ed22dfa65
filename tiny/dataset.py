"""Render the training set once: clips, first frames and their scenes, as memory-mapped arrays.

    python -m tiny.dataset --out runs/tiny/data              # ~8 minutes on two cores
    python -m tiny.dataset --out runs/tiny/data --clips 64 --stills 256    # a quick look

Files: `clips.npy` uint8 [N, 16, 64, 64, 3], `stills.npy` uint8 [M, 64, 64, 3] (first frames of further
scenes), `clips.json`, `stills.json` (their scenes). Seeds differ between the two and from the held-out set.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from huvidpo.files import make_folder, write_text
from tiny.world import FRAMES, SIZE, Scene, random_scenes, render

CLIPS = 8192
SEEDS = {"clips": 1, "stills": 2, "held_out": 3}


def scenes(kind: str, count: int) -> list[Scene]:
    """`count` random scenes of a split, categories and styles in turn so that each is equally frequent."""
    return random_scenes(count, SEEDS[kind])


def write_split(folder: Path, kind: str, count: int, frames: int) -> None:
    """Render one split to `<kind>.npy` and `<kind>.json`; a split that is complete is left alone."""
    done = folder / f"{kind}.json"
    todo = scenes(kind, count)
    if done.exists() and len(json.loads(done.read_text())) == count:
        return
    shape = (count, frames, SIZE, SIZE, 3) if frames > 1 else (count, SIZE, SIZE, 3)
    store = np.lib.format.open_memmap(folder / f"{kind}.npy", mode="w+", dtype=np.uint8, shape=shape)
    with Pool() as pool:
        jobs = pool.imap(_render, ((scene, frames) for scene in todo), chunksize=16)
        for i, clip in enumerate(tqdm(jobs, total=count, desc=kind, unit="clip")):
            store[i] = clip
    store.flush()
    write_text(done, json.dumps([dataclasses.asdict(scene) for scene in todo]))


def _render(job: tuple[Scene, int]) -> np.ndarray:
    scene, frames = job
    clip = render(scene, frames)
    return clip if frames > 1 else clip[0]


def load_split(folder: Path, kind: str) -> tuple[np.ndarray, list[Scene]]:
    """The pictures (memory-mapped) and scenes of a split.

    Raises FileNotFoundError that names the command to run when the split is missing.
    """
    if not (folder / f"{kind}.json").exists():
        raise FileNotFoundError(f"{folder}/{kind}.json is missing: run python -m tiny.dataset --out {folder}")
    records = json.loads((folder / f"{kind}.json").read_text())
    return np.load(folder / f"{kind}.npy", mmap_mode="r"), [Scene(**record) for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--stills", type=int, default=40960)
    parser.add_argument("--held-out", type=int, default=256)
    args = parser.parse_args()
    make_folder(args.out)
    write_split(args.out, "held_out", args.held_out, FRAMES)
    write_split(args.out, "stills", args.stills, 1)
    write_split(args.out, "clips", args.clips, FRAMES)


if __name__ == "__main__":
    main()
