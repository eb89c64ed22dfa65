"""Renders for the judge, made once and kept in an ignored folder: clips, and where the subject is."""

from __future__ import annotations

from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from huvidpo.files import make_folder, whole_file
from tiny.judge.worlds import World

SEEDS = {"train": 41, "tune": 42, "calibrate": 43, "attack": 44}
"""Of the judge's own scenes: none of them is the family's (`tiny.dataset`)."""
MASK_SIDE = 16


def small_mask(subject: np.ndarray) -> np.ndarray:
    """uint8 [F, S, S] -> how much of each of 16 x 16 places the subject covers, uint8 [F, 16, 16], 0..255."""
    frames, size = subject.shape[:2]
    step = size // MASK_SIDE
    return subject.reshape(frames, MASK_SIDE, step, MASK_SIDE, step).mean((2, 4)).round().astype(np.uint8)


def _render(world: World, scene: Any) -> tuple[np.ndarray, np.ndarray]:
    clip, subject = world.render_with_subject(scene)
    return clip, small_mask(subject)


def write(world: World, folder: Path, count: int, workers: int = 1) -> None:
    """`clips.npy` uint8 [N, F, S, S, 3] and `subjects.npy` uint8 [N, F, 16, 16]; what is there is kept."""
    files = {name: folder / f"{name}.npy" for name in ("clips", "subjects")}
    if all(file.exists() for file in files.values()) and len(np.load(files["clips"], mmap_mode="r")) == count:
        return
    make_folder(folder)
    shape = (count, world.frames, world.size, world.size, 3)
    subjects = np.empty((count, world.frames, MASK_SIDE, MASK_SIDE), np.uint8)
    with whole_file(files["clips"]) as part, Pool(workers) as pool:
        store = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        made = pool.imap(partial(_render, world), world.scenes(count, SEEDS["train"]), chunksize=8)
        for i, (clip, subject) in enumerate(tqdm(made, "render", count, mininterval=10)):
            store[i], subjects[i] = clip, subject
        store.flush()
    with whole_file(files["subjects"]) as part, part.open("wb") as stream:
        np.save(stream, subjects)
