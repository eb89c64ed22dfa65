"""What is watched while preferences are learnt: metrics, their plot, and when a run should end.

Every evaluation goes into `monitors.jsonl` of the run, one line each, and into `monitors.png`. Errors are
those of the noise prediction, at fixed timesteps with one fixed noise for all samples, so evaluations can be
compared:

    accuracy    share of pairs with a margin above 0: the better sample gained more on the reference
    margin      mean, 5th and 95th percentile over the pairs
    drift       rise of the error over the reference's, as a share of it; of winners and losers apart, in all
                and per quarter of the noise schedule (t0 the least noise). Winners should fall. That both
                rise, the losers more, is DPO's known failure.
    rewards/    the same in TRL's words: chosen, rejected, margins, accuracies (`training.losses.rewards`)
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors
from huvidpo.files import whole_file, write_text
from training.curves import panels
from training.loop import TrainingError
from training.losses import PairErrors, accuracy, rewards
from training.rated import PairRows
from training.recipes import DPORecipe

NOT_BY_CHANCE = 1.96  # standard errors from one half: 95 %
FILE, PLOT = "monitors.jsonl", "monitors.png"
BEST = "best_*.safetensors"  # by step: those that may still turn out to be the best, usually one


def pair_metrics(
    errors: Tensor, reference: Tensor, pairs: PairRows, quarters: np.ndarray, prefix: str, beta: float
) -> dict[str, float]:
    """Metrics of `pairs` from the errors [rows, K] of each sample at K timesteps; `quarters` [K] says which
    quarter of the schedule each is in. A pair's margin is its mean over the timesteps.
    """
    if not len(pairs):
        return {}
    rows = (errors[pairs.winner], errors[pairs.loser], reference[pairs.winner], reference[pairs.loser])
    both = PairErrors(*rows)
    margins = both.margin.mean(dim=1)
    low, high = np.percentile(margins.numpy(), (5, 95))
    found = {
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
        found[f"{who}_drift"] = float(drift.mean() / before.mean())
        for quarter in np.unique(quarters):
            at = torch.from_numpy(quarters == quarter)
            found[f"{who}_drift_t{quarter}"] = float(drift[:, at].mean() / before[:, at].mean())
    in_trls_words = rewards(both.winner_drift.mean(dim=1), both.loser_drift.mean(dim=1), beta)
    found |= {name: float(value) for name, value in in_trls_words.items()}
    return {f"{prefix}_{name}": value for name, value in found.items()}


class Monitors:
    """Who follows a preference run: `training.loop.Callback`.

    Raises TrainingError for a `monitors.jsonl` in `folder` that another version wrote.
    """

    def __init__(self, folder: Path, recipe: DPORecipe):
        self.folder, self.recipe = folder, recipe
        self.evaluations: list[dict[str, Any]] = read_evaluations(folder)
        self.steps: list[dict[str, float]] = []  # metrics of the steps since the last evaluation

    def on_step(self, metrics: dict[str, float]) -> None:
        self.steps.append(metrics)

    def on_evaluate(self, step: int, metrics: dict[str, float], weights: dict[str, Tensor]) -> None:
        """Note an evaluation, draw the plot, and keep the weights if they are the best so far.

        Raises TrainingError for metrics that are not finite: they are no JSON, and compare to nothing.
        """
        if wrong := [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]:
            raise TrainingError(
                f"the evaluation at step {step} is not finite: {', '.join(wrong)}; lower lr and start anew"
            )
        norms = [taken["grad_norm"] for taken in self.steps]
        found = {"step": step, **metrics} | ({"grad_norm": float(np.mean(norms))} if norms else {})
        self.steps = []
        self.evaluations = [*self._until(step - 1), found]  # a resumed run makes some again
        text = "".join(json.dumps(evaluation) + "\n" for evaluation in self.evaluations)
        write_text(self.folder / FILE, text)
        plot(self.evaluations, self.folder / PLOT)
        if self.best(step) == found:
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
            save_tensors(best_file(self.folder, step), tensors, {"evaluation": json.dumps(found)})

    def on_save(self, step: int) -> None:
        """Drop the weights that no run which goes on from `step` can find to be the best."""
        best = self.best(step)
        for file in self.folder.glob(BEST):
            if best and file != best_file(self.folder, best["step"]):
                file.unlink()

    def stop(self, step: int) -> str:
        """Winners drift too far, or held-out accuracy has not become better for `patience` evaluations."""
        done, recipe = self._until(step), self.recipe
        if not done:
            return ""
        if self._drifted(done[-1]):
            limit = recipe.max_winner_drift
            return f"winners drift by {self._drift(done[-1]):+.1%} (max_winner_drift {limit:.1%})"
        ranked = max(range(len(done)), key=lambda i: (*_held_out(done[i]), -i))
        if recipe.patience and len(done) - 1 - ranked >= recipe.patience:
            best = done[ranked]
            return f"held-out accuracy {_held_out(best)[0]:.2f} of step {best['step']} did not become better"
        return ""

    def best(self, step: int) -> dict[str, Any] | None:
        """The evaluation up to `step` whose weights are to be written: the best on held-out pairs where the
        recipe has patience, else the last; never the untouched network, never one whose winners drifted too
        far.
        """
        fit = [found for found in self._until(step) if found["step"] > 0 and not self._drifted(found)]
        if not self.recipe.patience:
            return fit[-1] if fit else None
        return max(fit, key=_held_out, default=None)

    def best_weights(self, step: int) -> tuple[int, dict[str, Tensor]]:
        """Step and parameters of `best`. Raises TrainingError where there is none."""
        best = self.best(step)
        if best is None:
            raise TrainingError(
                f"winners drifted beyond max_winner_drift {self.recipe.max_winner_drift} before the first "
                "evaluation with a LoRA: lower lr, or evaluate more often (sample_every)"
            )
        return best["step"], load_tensors(best_file(self.folder, best["step"]))

    def _until(self, step: int) -> list[dict[str, Any]]:
        return [found for found in self.evaluations if found["step"] <= step]

    def _drifted(self, found: dict[str, Any]) -> bool:
        limit = self.recipe.max_winner_drift
        return limit is not None and self._drift(found) > limit

    def _drift(self, found: dict[str, Any]) -> float:
        return max(found["train_winner_drift"], found.get("held_out_winner_drift", -np.inf))


def verdict(found: dict[str, Any], held_out: int) -> str:
    """What an evaluation (the one whose weights are written) says of a run, in words.

    `held_out`: how many pairs were kept from training. Only they show whether what was learnt holds.
    """
    return "; ".join([_accuracy_in_words(found, held_out), *_side_effects(found)])


def _accuracy_in_words(found: dict[str, Any], held_out: int) -> str:
    trained = f"{found['train_accuracy']:.2f} on the pairs it was trained on"
    if "held_out_accuracy" not in found or not held_out:
        return f"accuracy {trained}; no pairs were held out, so whether that holds is not known"
    share = found["held_out_accuracy"]
    accuracy = f"held-out accuracy {share:.2f} of {held_out} pair{'s' * (held_out != 1)} ({trained})"
    if share <= 0.5:
        return f"{accuracy}: nothing was learnt that holds"
    if 2 * (share - 0.5) * math.sqrt(held_out) < NOT_BY_CHANCE:
        return f"{accuracy}: so few pairs may do that by chance; rate more clips to know"
    return f"{accuracy}: it learnt a preference that holds"


def _side_effects(found: dict[str, Any]) -> list[str]:
    group = "held_out" if "held_out_winner_drift" in found else "train"
    said = []
    if (drift := found[f"{group}_winner_drift"]) > 0:
        said.append(f"winners became worse, too (error {drift:+.1%}): lower lr, or raise anchor")
    if found.get("frame_difference", 1.0) < 0.9 * found.get("frame_difference_before", 0.0):
        share = found["frame_difference"] / found["frame_difference_before"]
        said.append(f"samples move {share:.0%} as much as before: the gate may refuse that")
    return said


def best_file(folder: Path, step: int) -> Path:
    """Weights of an evaluation that was the best when it was made; the evaluation is in its metadata."""
    return folder / BEST.replace("*", f"{step:06d}")


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """What a run has noted, by step; torn lines count for nothing. Raises TrainingError as `Monitors`."""
    file = folder / FILE
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    lines += [read_metadata(best)["evaluation"] for best in folder.glob(BEST)]
    found = [evaluation for line in lines if (evaluation := _parse(line))]
    if not all("step" in evaluation and "train_rewards/margins" in evaluation for evaluation in found):
        raise TrainingError(f"{file} is of another version of this program: start anew, with another --run")
    by_step = {evaluation["step"]: evaluation for evaluation in found}
    return [by_step[step] for step in sorted(by_step)]


def _parse(line: str) -> dict[str, Any] | None:
    """The object of a line, None for one that a crash tore."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _held_out(found: dict[str, Any]) -> tuple[float, float]:
    """What makes one evaluation better than another; without held-out pairs none is."""
    return found.get("held_out_accuracy", 0.5), found.get("held_out_margin", 0.0)


PANELS = {
    "accuracy": ("train_accuracy", "held_out_accuracy"),
    "margin": ("train_margin", "train_margin_p5", "train_margin_p95", "held_out_margin"),
    "drift, share of the reference's error": (
        "train_winner_drift", "train_loser_drift", "held_out_winner_drift", "held_out_loser_drift",
    ),
    "norms": ("grad_norm", "lora_norm"),
    "winner drift by noise": tuple(f"train_winner_drift_t{level}" for level in range(4)),
    "loser drift by noise": tuple(f"train_loser_drift_t{level}" for level in range(4)),
    "difference of samples' frames": ("frame_difference", "frame_difference_before", "change"),
    "SSIM of samples": ("ssim", "ssim_before"),
}  # fmt: skip


def plot(evaluations: list[dict[str, Any]], file: Path) -> None:
    """One panel per kind of metric over the steps, as PNG."""
    figure, every = panels(2, 4)
    for axes, (title, names) in zip(every, PANELS.items(), strict=True):
        for name in names:
            points = [(found["step"], found[name]) for found in evaluations if name in found]
            points = [point for point in points if title != "norms" or point[1] > 0]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_title(title)
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend(fontsize="x-small")
            axes.set_yscale("log" if title == "norms" else "linear")
    with whole_file(file) as part:
        figure.savefig(part, format="png", dpi=80)
