"""What is watched while preferences are learnt: figures, their plot, and when a run should end.

Every look goes into `monitors.jsonl` of the run, one line each, and into `monitors.png`. Errors are those of
the noise prediction, at fixed timesteps with one fixed noise for all samples, so looks can be compared:

    accuracy    share of pairs with a margin above 0: the better sample gained more on the reference
    margin      mean, 5th and 95th percentile over the pairs
    drift       rise of the error over the reference's, as a share of it; of winners and losers apart, in all
                and per quarter of the noise schedule (t0 the least noise). Winners should fall. That both
                rise, the losers more, is DPO's known failure.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from huvidpo.checkpoint import load_tensors, save_tensors
from training.losses import PairErrors, accuracy
from training.rated import PairRows
from training.recipes import DPORecipe

FILE, PLOT, BEST = "monitors.jsonl", "monitors.png", "best.safetensors"


def pair_figures(
    errors: Tensor, reference: Tensor, pairs: PairRows, levels: np.ndarray, prefix: str
) -> dict[str, float]:
    """Figures of `pairs` from the errors [rows, K] of each sample at K timesteps; `levels` [K] says which
    quarter of the schedule each is in. A pair's margin is its mean over the timesteps.
    """
    if not len(pairs):
        return {}
    rows = (errors[pairs.winner], errors[pairs.loser], reference[pairs.winner], reference[pairs.loser])
    both = PairErrors(*rows)
    margins = both.margin.mean(dim=1)
    low, high = np.percentile(margins.numpy(), (5, 95))
    figures = {
        "accuracy": float(accuracy(margins)),
        "margin": float(margins.mean()),
        "margin_p5": float(low),
        "margin_p95": float(high),
    }
    drifts = {
        "winner": (both.winner_drift, both.reference_winner),
        "loser": (both.loser_drift, both.reference_loser),
    }
    for who, (drift, before) in drifts.items():
        figures[f"{who}_drift"] = float(drift.mean() / before.mean())
        for level in np.unique(levels):
            at = torch.from_numpy(levels == level)
            figures[f"{who}_drift_t{level}"] = float(drift[:, at].mean() / before[:, at].mean())
    return {f"{prefix}_{name}": value for name, value in figures.items()}


class Monitors:
    """The watch of a preference run: `training.loop.Watch`."""

    def __init__(self, folder: Path, recipe: DPORecipe):
        self.folder, self.recipe = folder, recipe
        self.looks: list[dict[str, Any]] = []
        self.steps: list[dict[str, float]] = []  # figures of the steps since the last look
        if (folder / FILE).exists():
            lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
            self.looks = [json.loads(line) for line in lines]

    def stepped(self, figures: dict[str, float]) -> None:
        self.steps.append(figures)

    def evaluated(self, step: int, figures: dict[str, float], weights: dict[str, Tensor]) -> None:
        """Note a look, draw the plot, and keep the weights if they are the best so far."""
        norms = [taken["grad_norm"] for taken in self.steps]
        look = {"step": step, **figures} | ({"grad_norm": float(np.mean(norms))} if norms else {})
        self.steps = []
        self.looks = [*self._until(step - 1), look]  # a resumed run takes some looks again
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(look) + "\n" for look in self.looks)
        (self.folder / FILE).write_text(text, encoding="utf-8")
        plot(self.looks, self.folder / PLOT)
        if self.best(step) == look:
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
            save_tensors(self.folder / BEST, tensors, {"step": str(step)})

    def stop(self, step: int) -> str:
        """Winners drift too far, or held-out accuracy has not become better for `patience` looks."""
        looks, recipe = self._until(step), self.recipe
        if not looks:
            return ""
        if self._drifted(looks[-1]):
            limit = recipe.max_winner_drift
            return f"winners drift by {self._drift(looks[-1]):+.1%} (max_winner_drift {limit:.1%})"
        ranked = max(range(len(looks)), key=lambda i: (*_held_out(looks[i]), -i))
        if recipe.patience and len(looks) - 1 - ranked >= recipe.patience:
            best = looks[ranked]
            return f"held-out accuracy {_held_out(best)[0]:.2f} of step {best['step']} did not become better"
        return ""

    def best(self, step: int) -> dict[str, Any] | None:
        """The look up to `step` whose weights are to be written: the best on held-out pairs where the recipe
        has patience, else the last; never the untouched network, never one whose winners drifted too far.
        """
        fit = [look for look in self._until(step) if look["step"] > 0 and not self._drifted(look)]
        if not self.recipe.patience:
            return fit[-1] if fit else None
        return max(fit, key=_held_out, default=None)

    def best_weights(self, step: int) -> tuple[int, dict[str, Tensor]] | None:
        """Step and parameters of `best`, if there is one."""
        look = self.best(step)
        return (look["step"], load_tensors(self.folder / BEST)) if look else None

    def _until(self, step: int) -> list[dict[str, Any]]:
        return [look for look in self.looks if look["step"] <= step]

    def _drifted(self, look: dict[str, Any]) -> bool:
        limit = self.recipe.max_winner_drift
        return limit is not None and self._drift(look) > limit

    def _drift(self, look: dict[str, Any]) -> float:
        return max(look["train_winner_drift"], look.get("held_out_winner_drift", -np.inf))


def _held_out(look: dict[str, Any]) -> tuple[float, float]:
    """What makes one look better than another; without held-out pairs none is."""
    return look.get("held_out_accuracy", 0.5), look.get("held_out_margin", 0.0)


PANELS = {
    "accuracy": ("train_accuracy", "held_out_accuracy"),
    "margin": ("train_margin", "train_margin_p5", "train_margin_p95", "held_out_margin"),
    "drift, share of the reference's error": (
        "train_winner_drift", "train_loser_drift", "held_out_winner_drift", "held_out_loser_drift",
    ),
    "norms": ("grad_norm", "lora_norm"),
    "winner drift by noise": tuple(f"train_winner_drift_t{level}" for level in range(4)),
    "loser drift by noise": tuple(f"train_loser_drift_t{level}" for level in range(4)),
    "motion of samples": ("motion", "motion_before", "change"),
    "SSIM of samples": ("ssim", "ssim_before"),
}  # fmt: skip


def plot(looks: list[dict[str, Any]], file: Path) -> None:
    """One panel per kind of figure over the steps, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 7), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 4).flat, PANELS.items(), strict=True):
        for name in names:
            points = [(look["step"], look[name]) for look in looks if name in look]
            points = [point for point in points if title != "norms" or point[1] > 0]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_title(title)
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend(fontsize="x-small")
            axes.set_yscale("log" if title == "norms" else "linear")
    figure.savefig(file, dpi=80)
