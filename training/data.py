"""Clips and captions -> latents and text embeddings, each computed once.

Two kinds of folder are read:

* **videos**: any container ffmpeg reads, captioned by `captions.jsonl` (one `{"video": ..., "caption": ...}`
  a line)
  or by a text file beside each video (`horse1.mp4`, `horse1.txt`). Their latents are cached on disk per
  clip, VAE and size.
* **a latent store**: `latents.npy`, float16 [N, C, F, h, w] as the VAE scales them, and `captions.json`, a
  list of N
  strings: for base pre-training on thousands of clips. It is read through a memory map.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from huvidpo import video
from huvidpo.errors import HuViDPOError, InvalidRequest
from huvidpo.files import hash_facts, hash_file, hash_tensors, whole_file
from huvidpo.latents import to_latents
from huvidpo.text import read_text
from preferences.clips import CAPTIONS_FILE, read_clips
from training.recipes import ClipRecipe, DistillRecipe, MotionRecipe

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".dv", ".flv", ".gif", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".webp", ".wmv", ".y4m",
})  # fmt: skip


class ClipsError(HuViDPOError, ValueError):
    """A folder of clips that cannot be trained on; the message names every file or line at fault."""


@dataclass(frozen=True)
class Clips:
    """Clips as latents. A mirrored copy is one more row, so shuffling rows is also the random flip."""

    latents: np.ndarray
    """float16 [rows, C, F, h, w], as the network sees them (VAE scale applied); may be a memory map."""
    captions: list[str]
    """One per row."""
    train_rows: np.ndarray
    """Rows that are trained on."""
    eval_rows: np.ndarray
    """Rows that are evaluated on: the held-out clips, or the first training rows."""
    fingerprint: str
    """sha256 over what the rows were made from."""

    def read(self, rows: np.ndarray) -> Tensor:
        """Latents of `rows` [N]: float32 [N, C, F, h, w]."""
        return torch.from_numpy(self.latents[rows].astype(np.float32))


def load_clips(folder: Path, vae: AutoencoderKL, recipe: MotionRecipe | DistillRecipe, cache: Path) -> Clips:
    """The clips of `folder`: a latent store where it holds `latents.npy`, else videos with captions.

    Raises ClipsError on anything malformed, a store whose shape does not fit `recipe`, or too few clips to
    hold out.
    """
    if not folder.is_dir():
        raise ClipsError(f"{folder} is not a folder of clips")
    if (folder / "latents.npy").exists():
        latents, captions, fingerprint = _open_store(folder, recipe)
    else:
        latents, captions, fingerprint = _encode_folder(folder, vae, recipe, cache)
    copies = 2 if recipe.flip else 1
    train, held = split_rows(len(captions), recipe.holdout, copies)
    return Clips(latents, captions * copies, train, held, fingerprint)


def split_rows(clips: int, holdout: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to evaluate on, where row = copy * clips + clip: the LAST clips are held out.

    With `holdout` 0 the first (at most 8) clips serve for both. Raises ClipsError when nothing is left to
    train on.
    """
    if clips <= holdout:
        raise ClipsError(f"{clips} clips are too few to hold out {holdout}")
    rows = np.arange(copies * clips).reshape(copies, clips)
    held = rows[0, clips - holdout :] if holdout else rows[0, :8]
    return rows[:, : clips - holdout].reshape(-1), held


def rows_for(rows: np.ndarray, draw: int, batch_size: int, seed: int) -> np.ndarray:
    """Rows [batch_size] of the `draw`-th batch: every row once, shuffled, then shuffled anew, and so on.

    A pure function of its arguments, so that a resumed run meets the same batches in the same order.
    """
    places = np.arange(draw * batch_size, (draw + 1) * batch_size)
    orders = {
        e: np.random.default_rng((seed, int(e))).permutation(rows) for e in np.unique(places // len(rows))
    }
    return np.array([orders[place // len(rows)][place % len(rows)] for place in places])


# Videos and captions


def read_captions(folder: Path) -> list[tuple[Path, str]]:
    """(video, caption) pairs of a folder, in a fixed order.

    Raises ClipFolderError as `read_clips`, and ClipsError naming every video without a caption.
    """
    if (folder / CAPTIONS_FILE).exists():
        return [(folder / clip.video, clip.caption.strip()) for clip in read_clips(folder)]
    pairs, problems, skipped = read_sidecars(folder)
    if skipped:
        logger.warning("%s: left out, as no video's name ends so: %s", folder, ", ".join(skipped))
    if problems:
        shown = "\n  ".join(problems[:20])
        raise ClipsError(f"{folder} cannot be trained on:\n  {shown}")
    return pairs


def read_sidecars(folder: Path) -> tuple[list[tuple[Path, str]], list[str], list[str]]:
    """Videos with the text file beside each: (video, caption) pairs; what is wrong, one text per file; and
    the names of files left out, as no video's name ends so.
    """
    pairs, problems = [], []
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not is_hidden(path)]
    skipped = [path.name for path in files if path.suffix.lower() not in VIDEO_SUFFIXES | {".txt"}]
    for path in files:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        sidecar = path.with_suffix(".txt")
        try:
            caption = read_text(sidecar).strip() if sidecar.is_file() else ""
        except InvalidRequest as error:
            problems.append(f"{path.name}: {error}")
            continue
        if caption:
            pairs.append((path, caption))
        else:
            problems.append(f"{path.name}: {sidecar.name} is {'empty' if sidecar.is_file() else 'missing'}")
    if not pairs and not problems:
        problems = [f"no videos found; {_wanted()}"]
    return pairs, problems, skipped


def is_hidden(path: Path) -> bool:
    """Whether it is no file of the user's: macOS puts a `._horse1.mp4` beside each on foreign disks."""
    return path.name.startswith(".")


def _wanted() -> str:
    return f"want captions.jsonl, or videos ({' '.join(sorted(VIDEO_SUFFIXES))}) each with a .txt beside it"


def pick_frames(count: int, clip_fps: float, frames: int, fps: float) -> np.ndarray:
    """Which of `count` frames at `clip_fps` make a clip of `frames` at `fps`: the middle of the video.

    A video too short for that is spread over its whole length; no frame is ever shown twice (a stutter would
    be learnt), so one slower than `fps` gives consecutive frames. `frames` 1: the first, a picture. Raises
    ValueError for fewer than `frames` frames.
    """
    if count < frames:
        raise ValueError(f"has {count} frames; at least {frames} are needed")
    if frames == 1:
        return np.zeros(1, int)
    stride = min(max(1.0, clip_fps / fps), (count - 1) / (frames - 1))
    start = (count - 1 - stride * (frames - 1)) / 2
    return np.floor(start + stride * np.arange(frames) + 0.5).astype(int).clip(0, count - 1)


def read_clip(path: Path, recipe: ClipRecipe) -> np.ndarray:
    """A video as uint8 [F, height, width, 3], cropped to the recipe's aspect. Raises ClipsError naming the
    file.
    """
    try:
        return video.decode(
            path,
            pick=lambda count, fps: pick_frames(count, fps, recipe.frames, recipe.fps),
            size=(recipe.height, recipe.width),
        )[0]
    except (HuViDPOError, ValueError, OSError) as error:
        raise ClipsError(f"{path}: {error}") from error


# Latents


def _encode_folder(
    folder: Path, vae: AutoencoderKL, recipe: MotionRecipe | DistillRecipe, cache: Path
) -> tuple[np.ndarray, list[str], str]:
    pairs = read_captions(folder)
    paths, captions = [path for path, _ in pairs], [caption for _, caption in pairs]
    latents, keys = encode_videos(paths, vae, recipe, cache)
    if recipe.flip:
        mirrored, more = encode_videos(paths, vae, recipe, cache, mirrored=True)
        latents, keys = np.concatenate([latents, mirrored]), keys + more
    return latents, captions, fingerprint_texts(*keys, *captions)


def encode_videos(
    paths: Sequence[Path], vae: AutoencoderKL, recipe: ClipRecipe, cache: Path, mirrored: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Latents float16 [N, C, F, h, w] of videos (of pictures, with F 1), each computed once and kept in
    `cache`; and for each the hash of what it was made from. Raises ClipsError naming the file at fault.
    """
    vae_hash = hash_tensors(vae.state_dict())
    size = (recipe.frames, recipe.height, recipe.width, recipe.fps)
    keys = [fingerprint_texts(hash_file(path), vae_hash, *size, mirrored) for path in paths]
    files = [cache / "latents" / f"{key}.npy" for key in keys]
    rows = [
        _cached_latents(file, path, vae, recipe, mirrored)
        for file, path in zip(files, tqdm(paths, "encode", disable=None), strict=True)
    ]
    return np.stack(rows), keys


def _cached_latents(
    file: Path, path: Path, vae: AutoencoderKL, recipe: ClipRecipe, mirrored: bool
) -> np.ndarray:
    if not file.exists():
        frames = read_clip(path, recipe)
        if mirrored:  # the picture is mirrored, not its latents: a VAE does not commute with a mirror
            frames = np.ascontiguousarray(frames[:, :, ::-1])
        with torch.no_grad():
            latents = to_latents(vae, frames).transpose(0, 1)
        save_array(file, latents.cpu().numpy().astype(np.float16))
    return np.load(file)


def save_array(file: Path, array: np.ndarray) -> None:
    """Write an array so that a reader sees the whole of it or nothing."""
    with whole_file(file) as part, part.open("wb") as stream:
        np.save(stream, array)


def _open_store(folder: Path, recipe: MotionRecipe | DistillRecipe) -> tuple[np.ndarray, list[str], str]:
    if recipe.flip:
        raise ClipsError(f"{folder} is a latent store, which cannot be mirrored: --set flip=false")
    try:
        latents = np.load(folder / "latents.npy", mmap_mode="r")
        text = read_text(folder / "captions.json")
        captions = json.loads(text)
    except (OSError, ValueError, EOFError, RecursionError) as error:
        raise ClipsError(f"{folder} is no latent store that can be read: {error}") from error
    if not isinstance(captions, list) or not all(isinstance(c, str) and c.strip() for c in captions):
        raise ClipsError(f"{folder / 'captions.json'}: want a list of texts that are not empty")
    if latents.ndim != 5 or latents.dtype != np.float16 or latents.shape[2] != recipe.frames:
        want = f"float16 [N, C, {recipe.frames}, h, w]"
        raise ClipsError(f"{folder / 'latents.npy'} is {latents.dtype} {latents.shape}; want {want}")
    if len(captions) != len(latents):
        raise ClipsError(f"{folder}: {len(captions)} captions for {len(latents)} clips")
    return latents, captions, fingerprint_texts(hash_file(folder / "latents.npy"), text)


# Text


def check_lengths(texts: Sequence[str], tokenizer: Any) -> None:
    """Raise ClipsError naming the texts whose end the text encoder would not see."""
    room = tokenizer.model_max_length
    counts = [len(ids) for ids in tokenizer(list(texts)).input_ids]
    long = [f"{text[:60]!r}..., {n} tokens" for text, n in zip(texts, counts, strict=True) if n > room]
    if long:
        shown = "\n  ".join(long[:20])
        raise ClipsError(f"captions longer than the {room} tokens that are read; shorten:\n  {shown}")


@torch.no_grad()
def embed_texts(texts: Iterable[str], tokenizer: Any, text_encoder: Any) -> dict[str, Tensor]:
    """Text -> embedding [L, D] (last hidden state, as SD 1.x) of every text, and of the empty one.

    Raises ClipsError for a text beyond the text encoder's context, as sampling refuses such a prompt.
    """
    unique = ["", *sorted(set(texts) - {""})]
    check_lengths(unique, tokenizer)
    table: dict[str, Tensor] = {}
    for start in range(0, len(unique), 64):
        part = unique[start : start + 64]
        tokens = tokenizer(
            part,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        states = text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state
        table.update(zip(part, states.float().cpu(), strict=True))
    return table


# Fingerprints


def fingerprint_texts(*parts: object) -> str:
    """sha256 over texts (and what `str` makes of other things), in their order."""
    return hash_facts([str(part) for part in parts])
