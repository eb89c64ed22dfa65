"""The trainings of the judge's four networks, each a `training.loop.Task` over rendered clips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tiny.common import to_unit
from tiny.judge import networks
from tiny.judge.corruptions import spoil, strength
from tiny.judge.data import SEEDS
from tiny.judge.worlds import World
from training.recipes import Recipe

GREY = 127.5  # grey levels to a unit
PATCH = 16  # places per side of the critic's map
CLIPS, MOMENTS = 8, 4  # of a batch: clips, and moments of each
HELD_OUT = 64  # clips at the end that only evaluate

BASE = Recipe(
    batch_size=CLIPS, lr=2e-3, warmup_steps=100, cooldown=0.4, precision="bf16", ema=0.997, weight_decay=1e-3,
    save_every=250, sample_every=500,
)  # fmt: skip
RECIPES = {
    "predictor": replace(BASE, steps=5_000, lr=7e-4),  # 2e-3 diverges
    "reader": replace(BASE, steps=2_500),
    "clock": replace(BASE, steps=2_500),
    "critic": replace(BASE, steps=5_000, lr=1e-3),
}


@dataclass(frozen=True)
class Renders:
    """The judge's clips with their scenes' labels; the last HELD_OUT are not trained on."""

    world: World
    folder: Path

    @cached_property
    def clips(self) -> np.ndarray:
        return np.load(self.folder / "clips.npy", mmap_mode="r")

    @cached_property
    def subjects(self) -> np.ndarray:
        return np.load(self.folder / "subjects.npy", mmap_mode="r")

    @cached_property
    def labels(self) -> Tensor:
        """[N, kinds], the place of each value."""
        scenes = self.world.scenes(len(self.clips), SEEDS["train"])
        return torch.tensor([self.world.label_indices(scene) for scene in scenes])

    def drawn(self, g: Generator, count: int = CLIPS) -> Tensor:
        """Which clips to train on."""
        return torch.randint(len(self.clips) - HELD_OUT, (count,), generator=g)

    @property
    def held_out(self) -> Tensor:
        return torch.arange(len(self.clips) - HELD_OUT, len(self.clips))

    def pixels(self, index: Tensor) -> Tensor:
        """float [B, F, 3, S, S] in -1..1."""
        return to_unit(torch.from_numpy(np.stack([self.clips[i] for i in index.tolist()]))).contiguous()

    def told(self, index: Tensor) -> Tensor:
        """What a request tells, [B, told]."""
        return one_hot(self.world, self.labels[index])


def one_hot(world: World, labels: Tensor) -> Tensor:
    """The kinds in `world.told` of labels [B, kinds], one-hot side by side, [B, told]."""
    kinds = list(world.labels)
    parts = [F.one_hot(labels[:, kinds.index(k)], len(world.labels[k])) for k in world.told]
    return torch.cat(parts, 1).float()


def moments(g: Generator, frames: int, clips: int = CLIPS) -> Tensor:
    """[clips, MOMENTS] later frames."""
    return torch.randint(1, frames, (clips, MOMENTS), generator=g)


def at(clips: Tensor, t: Tensor) -> Tensor:
    """[B, F, ...] at t [B, T] -> [B, T, ...]."""
    return clips[torch.arange(len(clips))[:, None], t]


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@dataclass(frozen=True)
class Training:
    """What the four tasks share."""

    renders: Renders

    def describe(self, draw: int) -> str:
        return f"random moments number {draw}"

    def sample(self, step: int, folder: Path) -> None:
        """The figures say it all."""


@dataclass(frozen=True)
class Prediction(Training):
    """The predictor: absolute error, and the log-likelihood of that error for the spread."""

    def costs(self, model: Any, index: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        clips = self.renders.pixels(index)
        with autocast():
            picture, spread = model(clips[:, 0], self.renders.told(index), t)
        error = (picture.float() - at(clips, t)).abs()
        unsure = (error.detach().mean(2, keepdim=True) / spread.float() + spread.float().log()).mean()
        return error.mean(), unsure, error.square().mean((1, 2, 3, 4))

    def loss(self, model: Any, draw: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        index = self.renders.drawn(generator)
        error, unsure, _ = self.costs(model, index, moments(generator, self.renders.world.frames))
        return error + 0.01 * unsure, {"unsure": unsure.item()}

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        frames = self.renders.world.frames
        later = torch.arange(1, frames, max(1, (frames - 1) // 8))
        parts = self.renders.held_out.split(8)
        squares = torch.cat([self.costs(model, part, later.repeat(len(part), 1))[2] for part in parts])
        return {"psnr_db": float((10 * (4 / squares).log10()).mean())}


@dataclass(frozen=True)
class Reading(Training):
    """The reader: cross-entropy of labels, and of the subject's place."""

    def costs(self, model: Any, index: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        frames = at(self.renders.pixels(index), t).flatten(0, 1)
        labels = self.renders.labels[index].repeat_interleave(t.shape[1], 0).T
        covered = np.stack([self.renders.subjects[i] for i in index.tolist()])
        there = at(torch.from_numpy(covered).float() / 255, t).flatten(0, 1)
        with autocast():
            read, subject = model(frames)
        logits = [logits.float() for logits in read.values()]
        wrong = torch.stack([F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)])
        right = torch.stack([(x.argmax(1) == y).float().mean() for x, y in zip(logits, labels, strict=True)])
        return wrong, right, F.binary_cross_entropy_with_logits(subject.float(), there)

    def loss(self, model: Any, draw: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        index = self.renders.drawn(generator)
        t = torch.randint(self.renders.world.frames, (CLIPS, MOMENTS), generator=generator)
        wrong, _, outside = self.costs(model, index, t)
        return wrong.sum() + outside, {"subject": outside.item()}

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        index = self.renders.held_out
        t = torch.arange(4).mul(self.renders.world.frames // 4).repeat(len(index), 1)
        _, right, outside = self.costs(model, index, t)
        shares = dict(zip(self.renders.world.labels, right.tolist(), strict=True))
        return {**shares, "subject": outside.item()}


@dataclass(frozen=True)
class Timing(Training):
    """The clock: which of -3 .. 3 frames lie between two."""

    def costs(self, model: Any, index: Tensor, t: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
        clips = self.renders.pixels(index)
        known = self.renders.told(index).repeat_interleave(t.shape[1], 0)
        with autocast():
            logits = model(at(clips, t).flatten(0, 1), at(clips, t + apart).flatten(0, 1), known).float()
        want = (apart + networks.SPAN).flatten()
        return F.cross_entropy(logits, want), (logits.argmax(1) == want).float().mean()

    def pairs(self, g: Generator, clips: int) -> tuple[Tensor, Tensor]:
        """Earlier frames, and how many frames later the others are, [clips, MOMENTS] each."""
        frames = self.renders.world.frames
        apart = torch.randint(-networks.SPAN, networks.SPAN + 1, (clips, MOMENTS), generator=g)
        t = torch.rand(clips, MOMENTS, generator=g) * (frames - apart.abs())
        return t.long() + (-apart).clamp(min=0), apart

    def loss(self, model: Any, draw: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        index = self.renders.drawn(generator)
        wrong, right = self.costs(model, index, *self.pairs(generator, CLIPS))
        return wrong, {"right": right.item()}

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        index = self.renders.held_out
        wrong, right = self.costs(model, index, *self.pairs(Generator().manual_seed(0), len(index)))
        return {"cross_entropy": wrong.item(), "right": right.item()}


def seen_by_critic(clips: Tensor, t: Tensor, picture: Tensor, spread: Tensor) -> Tensor:
    """What the critic sees at moments t [B, T] of clips [B, F, 3, S, S]: [B T, 16, S, S]."""
    now, last = at(clips, t), clips.shape[1] - 1
    before, after = at(clips, t - 1), at(clips, (t + 1).clamp(max=last))
    first = clips[:, :1].expand_as(now)
    return torch.cat([now, before - now, after - now, first, picture - now, spread.log()], 2).flatten(0, 1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """log2(1 + mean absolute difference in grey levels) of 16 x 16 places: [..., 3, S, S] -> [..., 16, 16]"""
    apart = GREY * (a - b).abs().mean(-3)
    pooled = F.avg_pool2d(apart.flatten(0, -3)[:, None], apart.shape[-1] // PATCH)[:, 0]
    return torch.log2(1 + pooled).unflatten(0, apart.shape[:-2])


@dataclass(frozen=True)
class Criticism(Training):
    """The critic: how far spoilt clips are from the truth, and that the truth is not."""

    predictor: Any
    plain: float = 0.15
    """Share of clips that are left as they are."""
    predicted: float = 0.1
    """Share of clips mixed with what the predictor expects, which must not be taken for the truth."""

    def drawn(self, g: Generator, index: Tensor) -> tuple[Tensor, Tensor]:
        """The truth and what was made of it, [B, F, 3, S, S] each."""
        truth, others = self.renders.pixels(index), self.renders.pixels(self.renders.drawn(g, len(index)))
        clips, later = truth.clone(), torch.arange(1, truth.shape[1])[None]
        for i, kind in enumerate(torch.rand(len(index), generator=g).tolist()):
            if kind < self.predicted:
                with autocast():
                    picture, _ = self.predictor(
                        truth[i : i + 1, 0], self.renders.told(index[i : i + 1]), later
                    )
                clips[i, 1:] += strength(g, 0.1, 1) * (picture[0].float() - truth[i, 1:])
            elif kind > self.predicted + self.plain:
                clips[i] = spoil(truth[i], others[i], g)
        return truth, clips

    def costs(self, model: Any, index: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
        """What the critic says and what it should say, log2(1 + grey levels), [B T, 16, 16]."""
        with torch.no_grad():
            truth, clips = self.drawn(g, index)
            known, t = self.renders.told(index), moments(g, truth.shape[1], len(index))
            with autocast():
                picture, spread = self.predictor(truth[:, 0], known, t)
            seen = seen_by_critic(clips, t, picture.float(), spread.float())
            want = distance(at(clips, t), at(truth, t)).flatten(0, 1)
        with autocast():
            said = model(seen, known.repeat_interleave(t.shape[1], 0), t.flatten())
        return said.float(), want

    def loss(self, model: Any, draw: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        said, want = self.costs(model, self.renders.drawn(generator), generator)
        return (said - want).abs().mean(), {}

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        said, want = self.costs(model, self.renders.held_out, Generator().manual_seed(0))
        means = torch.stack([said.mean((1, 2)), want.mean((1, 2))])
        true = want.amax((1, 2)) == 0
        return {
            "off": (said - want).abs().mean().item(),
            "correlation": torch.corrcoef(means)[0, 1].item(),
            "of_truth": means[0, true].mean().item(),
        }
