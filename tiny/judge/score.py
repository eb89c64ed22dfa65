"""What the judge says of a clip, from its pixels and what the request told; the truth is not at hand.

Five errors, each small for what the world would have shown (docs/judge.md):

    labels    later frames do not show what the request names
    subject   the subject is not where the first frame implies that it goes
    time      time does not run forwards, one frame a frame
    implied   pixels are not what the first frame implies
    critic    the critic's estimate of how far from the truth the clip is

Each counts by how far it lies above what true clips of the category have, in standard deviations of true
clips: below that next to nothing is gained, so that being smoother or surer than the truth is no way to win.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors
from huvidpo.errors import CheckpointError
from tiny.common import FAMILY, to_unit
from tiny.judge import networks
from tiny.judge.training import GREY, one_hot, seen_by_critic
from tiny.judge.worlds import WORLDS, World
from training.lineage import commit

FOLDER = FAMILY / "judge"
WEIGHTS = "judge.safetensors"
TERMS = ("labels", "subject", "time", "implied", "critic")
FLOOR = 4 / GREY  # 4 grey levels: no pixel is expected more exactly than that
BEND = 2.0  # how sharply what lies above the typical counts more than what lies below


@dataclass(frozen=True)
class Typical:
    """What true clips have of each term, in the order of TERMS."""

    mean: dict[str, list[float]]
    """By category."""
    deviation: list[float]
    """Within a category, over all of them."""


class Networks(nn.Module):
    """The four networks of a world's judge."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        told = sum(len(world.labels[kind]) for kind in world.told)
        counts = {kind: len(values) for kind, values in world.labels.items()}
        self.predictor = networks.Predictor(world.fold, told)
        self.critic = networks.Critic(world.fold, told)
        self.reader = networks.Reader(world.fold, counts)
        self.clock = networks.Clock(world.fold, told)


@dataclass(frozen=True)
class Expected:
    """What follows from a first frame and what the request told."""

    told: Tensor  # [1, told]
    shown: dict[str, int]  # kind -> the value that every frame should show
    category: str
    pictures: Tensor  # [F, 3, S, S], -1..1; the first one is the first frame
    spread: Tensor  # [F - 1, 1, S, S]
    centres: Tensor  # [F, 2]: of the subject in `pictures`


class Judge:
    """The networks, and what true clips of each category have of each term."""

    def __init__(self, nets: Networks, typical: Typical) -> None:
        self.nets, self.world, self.typical = nets.eval().requires_grad_(False), nets.world, typical

    @torch.no_grad()
    def expect(self, first: np.ndarray, labels: Mapping[str, str]) -> Expected:
        """`first`: uint8 [S, S, 3]. `labels`: kind -> value; those that every request tells must be there."""
        world = self.world
        kinds = list(world.labels)
        known = torch.zeros(1, len(kinds), dtype=torch.long)
        for kind in world.told:
            known[0, kinds.index(kind)] = world.labels[kind].index(labels[kind])
        told, frame = one_hot(world, known), unit(first[None])
        pictures, spread = self.nets.predictor(frame, told, torch.arange(1, world.frames)[None])
        pictures = torch.cat([frame, pictures[0]])
        shown = {kind: world.labels[kind].index(value) for kind, value in labels.items() if kind != "camera"}
        centres = centre(self.nets.reader(pictures)[1])
        return Expected(told, shown, labels["category"], pictures, spread[0], centres)

    def terms(self, clip: Tensor, expected: Expected) -> Tensor:
        """The five errors of a clip [F, 3, S, S] in -1..1, no longer than the world's, in the order of TERMS.
        Differentiable.
        """
        later, t = clip[1:], torch.arange(1, len(clip))[None]
        read, subject = self.nets.reader(later)
        labels = [F.log_softmax(read[kind], 1)[:, value] for kind, value in expected.shown.items()]
        astray = (centre(subject) - expected.centres[1 : len(clip)]).norm(dim=1)
        known = expected.told.expand(len(later), -1)
        clock = F.log_softmax(self.nets.clock(clip[:-1], later, known), 1)[:, networks.SPAN + 1]
        pictures, spread = expected.pictures[1 : len(clip)], expected.spread[: len(later)]
        implied = ((later - pictures).abs() / (spread + FLOOR)).mean()
        critic = self.nets.critic(seen_by_critic(clip[None], t, pictures[None], spread[None]), known, t[0])
        return torch.stack(
            [-torch.stack(labels).mean(), astray.mean(), -clock.mean(), implied, critic.mean()]
        )

    def log_score(self, terms: Tensor, category: str) -> Tensor:
        """Of terms [..., 5] the logarithm of the score: 10 times the geometric mean of 1 / (1 + how far above
        true clips' a term lies).
        """
        mean, deviation = torch.tensor(self.typical.mean[category]), torch.tensor(self.typical.deviation)
        above = F.softplus(BEND * (terms - mean) / deviation) / BEND
        return math.log(10) - above.log1p().mean(-1)

    @torch.no_grad()
    def score(self, clip: np.ndarray, expected: Expected) -> float:
        """0..10 of uint8 [F, S, S, 3]."""
        return float(self.log_score(self.terms(unit(clip), expected), expected.category).exp())


def unit(clip: np.ndarray) -> Tensor:
    """uint8 [F, S, S, 3] -> float [F, 3, S, S] in -1..1."""
    return to_unit(torch.from_numpy(np.ascontiguousarray(clip))).contiguous()


def centre(logits: Tensor) -> Tensor:
    """Of the subject [B, 16, 16] -> its middle [B, 2], down and right, in 64ths of the side."""
    share = logits.sigmoid() + 1e-3
    line = torch.arange(logits.shape[-1]) * 4.0 + 2
    total = share.sum((1, 2))
    return torch.stack([(share.sum(2) * line).sum(1), (share.sum(1) * line).sum(1)], 1) / total[:, None]


def build(world: World) -> Networks:
    torch.manual_seed(0)
    return Networks(world)


def save(nets: Networks, typical: Typical, folder: Path) -> None:
    """float16 safetensors, with the world's name, what is typical of it, and the commit."""
    tensors = {name: tensor.half() for name, tensor in nets.state_dict().items()}
    metadata = {"world": nets.world.name, "typical": json.dumps(asdict(typical)), "commit": commit()}
    save_tensors(folder / WEIGHTS, tensors, metadata)


def load(folder: Path = FOLDER) -> Judge:
    """Raises CheckpointError where there is none, or it is not whole."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"there is no judge in {folder}: run python -m tiny.judge")
    metadata = read_metadata(path)
    nets = Networks(WORLDS[metadata["world"]])
    nets.load_state_dict({name: tensor.float() for name, tensor in load_tensors(path).items()})
    return Judge(nets, Typical(**json.loads(metadata["typical"])))
