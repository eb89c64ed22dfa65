"""Rated clips (or pictures) as the preference trainers need them: latents, captions and who beat whom.

The folder is that of `judging.candidates`: files, `captions.jsonl` and `ratings.jsonl`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL

from preferences.clips import read_clips
from preferences.pairs import Pair, by_segment, check_files, make_pairs, rank
from preferences.records import (
    RATINGS_FILE,
    PreferencesError,
    comparable,
    ratings_hash,
    read_records,
    segments_of,
)
from training.data import encode_videos, fingerprint_texts
from training.recipes import DPORecipe


@dataclass(frozen=True)
class PairRows:
    """Pairs as rows of `Rated`: [pairs] each."""

    winner: np.ndarray
    loser: np.ndarray
    weight: np.ndarray
    """Gap between the ratings, mean 1."""
    labels: np.ndarray | None = None
    """[pairs, segments], as of `preferences.pairs.Pair`; None: the winners are better as a whole."""

    def __len__(self) -> int:
        return len(self.winner)

    def among(self, rows: np.ndarray) -> "PairRows":
        """Those of which both samples are in `rows`."""
        kept = np.isin(self.winner, rows) & np.isin(self.loser, rows)
        labels = None if self.labels is None else self.labels[kept]
        return PairRows(self.winner[kept], self.loser[kept], self.weight[kept], labels)

    def by_segment(self) -> "PairRows":
        """Each segment with a winner as a pair of its own, where segment k of K of row r is row r K + k."""
        if self.labels is None:
            return self
        pair, segment = self.labels.nonzero()
        first, second = (rows[pair] * self.labels.shape[1] + segment for rows in (self.winner, self.loser))
        turned = self.labels[pair, segment] < 0
        return PairRows(np.where(turned, second, first), np.where(turned, first, second), self.weight[pair])


@dataclass(frozen=True)
class Rated:
    """The judged samples of a folder, one row each."""

    names: list[str]
    """Files, relative to the folder."""
    latents: np.ndarray
    """float16 [rows, C, F, h, w] of clips, [rows, C, h, w] of pictures, as the network sees them."""
    captions: list[str]
    train: PairRows
    held_out: PairRows
    train_rows: np.ndarray
    held_out_rows: np.ndarray
    strength: np.ndarray
    """[rows] Bradley-Terry log-odds, mean 0: above 0 a sample is better than the average one."""
    clips: str
    """Hash of what the rows were made from."""
    ratings: str
    """Hash of the ratings file."""
    segment_frames: int | None = None
    """Of the segments that pairs have labels of, from frame 1 on; None: they are judged as a whole."""


def load_rated(
    folder: Path,
    category: str,
    vae: AutoencoderKL,
    recipe: DPORecipe,
    cache: Path,
    ratings: Path | None = None,
) -> Rated:
    """The clips of `folder` that were judged, by `ratings` (default: its `ratings.jsonl`).

    Those that name no category are of the one that is asked for. With `recipe.frames` 1 they are pictures:
    image files, or the first frames of videos. Raises PreferencesError for ratings that make no pair, that
    are of another category, by segments and whole clips both or, by segments, of another length, or whose
    clips are missing, changed or without a caption; ClipFolderError and ClipsError for the folder and files
    that cannot be read.
    """
    ratings = ratings or folder / RATINGS_FILE
    captions = {entry.video: entry.caption for entry in read_clips(folder)}
    records = read_records(ratings)
    judged = rank(records)
    segments = by_segment(r for r in records if comparable(category, r.category))
    ranked = [clip for clip in judged if comparable(category, clip.category)]
    if not ranked:
        there = ", ".join(sorted({clip.category for clip in judged})) or "none at all"
        raise PreferencesError(
            f"{ratings} judges no clip of category {category!r}, but of {there}: rate some, or name that one"
        )
    check_files(ranked, folder)
    if unknown := [clip.clip for clip in ranked if clip.clip not in captions]:
        raise PreferencesError(f"{folder}: judged clips without a caption: {', '.join(unknown)}")
    if segments.labels and segments.frames != recipe.frames:
        raise PreferencesError(
            f"{ratings} judges segments of clips of {segments.frames} frames, and the recipe's frames is "
            f"{recipe.frames}: set it to theirs"
        )
    pairs = make_pairs(
        ranked,
        tie=recipe.tie,
        holdout=recipe.holdout,
        seed=recipe.seed,
        same_prompt=recipe.same_prompt,
        labels=segments.labels,
    )
    count = len(segments_of(segments.frames, segments.segment_frames)) if segments.labels else 0
    names = sorted(clip.clip for clip in ranked)
    latents, keys = encode_videos([folder / name for name in names], vae, recipe, cache)
    place = {name: row for row, name in enumerate(names)}
    strength = {clip.clip: clip.strength for clip in ranked}
    shown = [captions[name] for name in names]
    return Rated(
        names=names,
        latents=latents[:, :, 0] if recipe.frames == 1 else latents,
        captions=shown,
        train=_rows(pairs.train, place, count),
        held_out=_rows(pairs.held_out, place, count),
        train_rows=np.array([place[name] for name in sorted(pairs.train_clips)], int),
        held_out_rows=np.array([place[name] for name in sorted(pairs.held_out_clips)], int),
        strength=np.array([strength[name] for name in names]),
        clips=fingerprint_texts(*keys, *shown),
        ratings=ratings_hash(ratings),
        segment_frames=segments.segment_frames or None,
    )


def _rows(pairs: list[Pair], place: dict[str, int], segments: int) -> PairRows:
    labels = np.array([pair.labels for pair in pairs], np.int8)
    return PairRows(
        np.array([place[pair.winner] for pair in pairs], int),
        np.array([place[pair.loser] for pair in pairs], int),
        np.array([pair.weight for pair in pairs], np.float32),
        labels.reshape(len(pairs), segments) if segments else None,
    )
