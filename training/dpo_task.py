"""Preferences as a task of the training loop, for clips and for pictures alike (METHOD section 5).

The network in training is its own reference: the same weights with the LoRA off. Both samples of a pair get
one timestep and one noise, and go through the network together.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from training.adapter import adapter_norm, adapter_off
from training.data import rows_for
from training.losses import PairErrors, Stats, add_noise, kto_loss, noise_error, noise_prediction, pair_loss
from training.monitors import pair_figures
from training.rated import Rated
from training.recipes import DPORecipe

LOOKS = 4  # fixed timesteps of the monitors: the middle of each quarter of the recipe's range
WATCHED = 32  # samples of either side, trained on and held out, that the monitors look at


class Network(Protocol):
    """What differs between the video network and the first-frame network."""

    def answer(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, captions: list[str]) -> Tensor:
        """What `model` predicts for noisy latents, shape as `noisy`."""

    def render(self) -> list[np.ndarray]:
        """Samples of the network as it is now, always of the same captions and noise: uint8."""

    def compare(self, now: list[np.ndarray], before: list[np.ndarray]) -> dict[str, float]:
        """Figures of samples, `before` those of the reference."""

    def write(self, samples: list[np.ndarray], folder: Path, step: int) -> None:
        """Keep samples as files."""


@dataclass
class DPOTask:
    """Preferences for the loop: `training.loop.Task`."""

    rated: Rated
    captions: list[str]
    """What each row is shown with."""
    network: Network
    scheduler: DDIMScheduler
    recipe: DPORecipe
    device: torch.device
    before: dict[str, Any] = field(default_factory=dict)
    """Errors and samples of the reference, which never change: made at the first look."""
    samples: list[np.ndarray] = field(default_factory=list)
    """Of the last look."""

    def loss(
        self, model: nn.Module, draw: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch of pairs, or of single samples for kto."""
        chosen = self._chosen(draw)
        noise, timesteps = self._noise(len(chosen), generator)
        learn = self._kto if self.recipe.loss == "kto" else self._pairs
        loss, stats = learn(model, chosen, noise, timesteps)
        return loss, {name: float(value) for name, value in stats.items()}

    def describe(self, draw: int) -> str:
        rated, chosen = self.rated, self._chosen(draw)
        if self.recipe.loss == "kto":
            return ", ".join(rated.names[row] for row in chosen)
        pairs = zip(rated.train.winner[chosen], rated.train.loser[chosen], strict=True)
        return ", ".join(f"{rated.names[winner]} over {rated.names[loser]}" for winner, loser in pairs)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The monitors: figures of pairs, of the adapter and of samples; details come last."""
        if not self.before:
            with adapter_off(model):
                self.before = {"errors": self._table(model), "samples": self.network.render()}
        errors = self._table(model)
        shares = self._shares()
        levels = (4 * shares).astype(int)  # quarter of the schedule
        figures: dict[str, float] = {}
        for prefix, pairs in {"train": self.rated.train, "held_out": self.rated.held_out}.items():
            seen = pairs.among(self._watched())
            figures |= pair_figures(errors, self.before["errors"], seen, levels, prefix)
        self.samples = self.network.render()
        compared = self.network.compare(self.samples, self.before["samples"])
        figures |= {"lora_norm": adapter_norm(model)} | compared
        return dict(sorted(figures.items(), key=lambda item: bool(re.search(r"_[tp]\d+$", item[0]))))

    def sample(self, step: int, folder: Path) -> None:
        """Write the samples of `evaluate`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.network.write(self.samples, folder, step)

    def units(self) -> np.ndarray:
        """What one pass goes through: pairs, or for kto the rows of samples that are not average."""
        if self.recipe.loss == "kto":
            return self.rated.train_rows[self.rated.strength[self.rated.train_rows] != 0]
        return np.arange(len(self.rated.train))

    def _chosen(self, draw: int) -> np.ndarray:
        return rows_for(self.units(), draw, self.recipe.batch_size, self.recipe.seed)

    def _noise(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise [count, ...] and timesteps [count]."""
        low, high = self._timestep(self.recipe.lowest_timestep), self._timestep(self.recipe.highest_timestep)
        timesteps = torch.randint(low, max(high, low + 1), (count,), generator=generator)
        noise = torch.randn(count, *self.rated.latents.shape[1:], generator=generator)
        return noise.to(self.device), timesteps.to(self.device)

    def _timestep(self, share: float) -> int:
        return int(share * self.scheduler.config.num_train_timesteps)

    def _pairs(
        self, model: nn.Module, chosen: np.ndarray, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Stats]:
        """One timestep and one noise per pair, shared by winner and loser."""
        recipe, pairs = self.recipe, self.rated.train
        rows = np.concatenate([pairs.winner[chosen], pairs.loser[chosen]])
        noise, timesteps = torch.cat([noise, noise]), torch.cat([timesteps, timesteps])
        with torch.no_grad(), adapter_off(model):
            reference = self._errors(model, rows, noise, timesteps)
        errors = self._errors(model, rows, noise, timesteps)
        weights = torch.from_numpy(pairs.weight[chosen]).to(self.device) if recipe.gap_weights else None
        return pair_loss(
            PairErrors(*errors.chunk(2), *reference.chunk(2)),
            beta=recipe.beta,
            kind=recipe.loss,  # type: ignore[arg-type]  # not kto
            smoothing=recipe.label_smoothing,
            anchor=recipe.anchor,
            weights=weights,
        )

    def _kto(
        self, model: nn.Module, rows: np.ndarray, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Stats]:
        """Single samples, good or bad by the sign of their strength."""
        with torch.no_grad(), adapter_off(model):
            reference = self._errors(model, rows, noise, timesteps)
        errors = self._errors(model, rows, noise, timesteps)
        strength = torch.from_numpy(self.rated.strength).float().to(self.device)
        mean = strength[self.units()].abs().mean()
        weights = strength[rows].abs() / mean if self.recipe.gap_weights else None
        return kto_loss(errors, reference, strength[rows] > 0, beta=self.recipe.beta, weights=weights)

    def _errors(self, model: nn.Module, rows: np.ndarray, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`noise_error` [N] of `model` at samples `rows` [N], in one forward or in halves."""
        halves = 1 if self.recipe.one_forward or len(rows) % 2 else 2
        parts = zip(np.split(rows, halves), noise.chunk(halves), timesteps.chunk(halves), strict=True)
        return torch.cat([self._error(model, *part) for part in parts])

    def _error(self, model: nn.Module, rows: np.ndarray, noise: Tensor, timesteps: Tensor) -> Tensor:
        latents = torch.from_numpy(self.rated.latents[rows].astype(np.float32)).to(self.device)
        noisy = add_noise(self.scheduler, latents, noise, timesteps)
        answer = self.network.answer(model, noisy, timesteps, [self.captions[row] for row in rows])
        return noise_error(noise_prediction(self.scheduler, answer, noisy, timesteps), noise)

    def _shares(self) -> np.ndarray:
        """Timesteps [LOOKS] of the monitors, as shares of the schedule."""
        low, high = self.recipe.lowest_timestep, self.recipe.highest_timestep
        return low + (high - low) * (np.arange(LOOKS) + 0.5) / LOOKS

    def _watched(self) -> np.ndarray:
        return np.concatenate([self.rated.train_rows[:WATCHED], self.rated.held_out_rows[:WATCHED]])

    def _table(self, model: nn.Module) -> Tensor:
        """Errors [rows, LOOKS] of the watched rows (nan elsewhere), with one fixed noise per timestep."""
        table = torch.full((len(self.rated.names), LOOKS), torch.nan)
        generator = torch.Generator().manual_seed(0)
        rows = self._watched()
        for look, share in enumerate(self._shares()):
            noise = torch.randn(1, *self.rated.latents.shape[1:], generator=generator).to(self.device)
            for start in range(0, len(rows), 2 * self.recipe.batch_size):
                part = rows[start : start + 2 * self.recipe.batch_size]
                timesteps = torch.full((len(part),), self._timestep(share), device=self.device)
                error = self._error(model, part, noise.expand(len(part), *noise.shape[1:]), timesteps)
                table[part, look] = error.cpu()
        return table
