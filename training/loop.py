"""The one training loop, for every stage: evaluate, sample, save, stop?, step, log.

A stage hands in its model (whatever requires a gradient trains) and a `Task`: how to draw a batch and what
it costs. All randomness of a batch comes from `(seed, draw)`, so a checkpoint needs only the weights, the
optimiser, the moving average and the step: a resumed run continues exactly as if it had never stopped.
"""

import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors
from huvidpo.errors import HuViDPOError
from huvidpo.files import make_folder, say, write_text
from training.curves import draw as draw_curves
from training.recipes import Recipe, to_toml

CHECKPOINT = "checkpoint.safetensors"
STOPPED = 3
"""Exit status of a trainer that was asked to stop (SIGTERM, Ctrl-C) and saved: neither done (0) nor refused
(2), so that nothing which needs its weights comes after it.
"""
MOST_SKIPS = 20
"""Times in a row that a step may overflow in fp16. Each halves the loss scale; GradScaler starts at 2**16."""
HEADLINES = 13  # metrics of an evaluation that are printed, the first ones; TensorBoard has all
# Fields that may differ between a run and its continuation: they change nothing about a single step.
FREE_FIELDS = frozenset({
    "steps", "passes", "save_every", "sample_every", "log_every", "sample_steps", "teacher_steps",
})  # fmt: skip


class TrainingError(HuViDPOError):
    """A run that cannot start, resume or go on."""


class Task(Protocol):
    """What one stage of training brings to the loop."""

    def loss(
        self, model: nn.Module, draw: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of batch number `draw`, and metrics to log. All randomness comes from `generator`
        (CPU).
        """

    def describe(self, draw: int) -> str:
        """Which samples batch `draw` holds, for error messages."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics that compare one step with another; must not depend on torch's global random state."""

    def sample(self, step: int, folder: Path) -> None:
        """Write sample clips of the network as it is now into `folder`."""


class Callback(Protocol):
    """Who follows a run and may end it early. In the main process only."""

    def on_step(self, metrics: dict[str, float]) -> None:
        """What a step gave: loss, gradient norm and the task's own."""

    def on_evaluate(self, step: int, metrics: dict[str, float], weights: dict[str, Tensor]) -> None:
        """What `Task.evaluate` found after `step` steps, and the weights (live ones) it looked at."""

    def on_save(self, step: int) -> None:
        """The checkpoint of `step` is on the disk: a resumed run goes on from there, not from before."""

    def stop(self, step: int) -> str:
        """Why the run should end at `step`, or nothing. A pure function of what was found up to there, which
        a resumed run's callback knows, too.
        """


@dataclass(frozen=True)
class Trained:
    """Where a run stands when the loop returns."""

    step: int
    weights: dict[str, Tensor]
    """Trained tensors by name: the moving average where the recipe keeps one."""
    seconds_per_step: float
    """Mean of this sitting, evaluation and saving left out; nan without a step."""
    complete: bool
    """All steps are done, or the callback ended the run: nothing is left to resume."""


@dataclass
class State:
    """What a checkpoint holds besides the recipe."""

    params: dict[str, nn.Parameter]
    optimizer: Any
    ema: dict[str, Tensor]
    step: int = 0


def train(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    folder: Path,
    *,
    accelerator: Accelerator,
    identity: dict[str, str],
    resume: bool,
    accumulation: int = 1,
    callback: Callback | None = None,
    average: dict[str, Tensor] | None = None,
) -> Trained:
    """Train what requires a gradient in `model` until `recipe.steps`, SIGTERM or Ctrl-C (both save first).

    Each step takes the mean gradient of `accumulation` batches per process; `callback` may end the run early.
    `average`, for a task that looks at the moving average: copies of the trained parameters, to keep it in.
    Checkpoint, recipe, TensorBoard events, their curves as a picture and samples go into `folder`. With
    `resume` the run there goes on (or starts); `identity` (base and clips, say) must equal the run's. Raises
    TrainingError when a run is there without `resume`, is a different one, or when the loss or gradient stops
    being finite: before the optimiser moves, naming the batch. In fp16 a gradient may overflow: the step is
    tried again at half the loss scale, MOST_SKIPS times at most; until it succeeds nothing advances.
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        params.values(), recipe.lr, weight_decay=recipe.weight_decay, eps=recipe.adam_eps
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if average is None:
        average = {name: p.detach().clone() for name, p in params.items()} if recipe.ema else {}
    state = State(params, optimizer, average)
    identity = {**identity, "processes": str(accelerator.num_processes), "precision": recipe.precision}
    weights_and_moments = (3 + bool(average)) * sum(4 * param.numel() for param in params.values())
    checkpoints = 1 if (folder / CHECKPOINT).exists() else 2  # a new one is written beside the old one
    make_folder(folder, checkpoints * weights_and_moments)
    _open_run(folder / CHECKPOINT, state, recipe, identity, accelerator, resume)
    if accelerator.is_main_process:
        write_text(folder / "recipe.toml", to_toml(recipe))
    start, seconds = state.step, 0.0
    raw = accelerator.unwrap_model(prepared)

    with stop_requests() as stop, _Log(folder, recipe, state.step, accelerator.is_main_process) as log:
        while True:
            last = state.step >= recipe.steps
            fresh = state.step > start or start == 0  # else the run before has done it
            due = recipe.sample_every and (last or state.step % recipe.sample_every == 0)
            if fresh and due and accelerator.is_main_process:
                with averaged(state.params, state.ema), _eval_mode(raw):
                    found = task.evaluate(raw)
                    log.scalars("eval", found, state.step)
                    task.sample(state.step, folder / "samples")
                    if callback is not None:
                        callback.on_evaluate(state.step, found, dict(params))
            reason = callback.stop(state.step) if callback is not None and accelerator.is_main_process else ""
            last = _any(last or bool(reason), accelerator)
            stopping = _any(bool(stop), accelerator)
            saving = state.step > start and (last or state.step % recipe.save_every == 0)
            if saving or (stopping and fresh):
                _save(folder / CHECKPOINT, state, recipe, identity, accelerator)
                if callback is not None and accelerator.is_main_process:
                    callback.on_save(state.step)
            if last or stopping:
                log.end(state.step, reason)
                break
            began = time.perf_counter()
            metrics = train_step(prepared, task, state, recipe, accelerator, accumulation)
            elapsed = time.perf_counter() - began
            seconds += elapsed
            log.step(state.step, {**metrics, "seconds": elapsed})
            if callback is not None:
                callback.on_step(metrics)
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    weights = state.ema or {name: p.detach() for name, p in params.items()}
    mean_seconds = seconds / (state.step - start) if state.step > start else math.nan
    return Trained(state.step, weights, mean_seconds, last)


def train_step(
    model: nn.Module,
    task: Task,
    state: State,
    recipe: Recipe,
    accelerator: Accelerator,
    accumulation: int = 1,
) -> dict[str, float]:
    """One optimiser step; returns its metrics. Raises TrainingError before moving on a loss or gradient that
    is not finite, in fp16 after MOST_SKIPS tries. `skipped`: the tries that overflowed, which moved nothing.
    """
    lr = learning_rate(recipe, state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    draws = _draws(state.step, accumulation, accelerator)
    skipped = 0
    metrics = _try_step(model, task, state, draws, recipe, accelerator)
    while state.optimizer.step_was_skipped:
        skipped += 1
        if skipped == MOST_SKIPS:
            what = f"gradient norm, tried {MOST_SKIPS} times at ever smaller loss scales,"
            raise TrainingError(_not_finite(what, metrics["grad_norm"], state.step, _names(task, draws)))
        metrics = _try_step(model, task, state, draws, recipe, accelerator)
    if state.ema:
        _average(state, recipe)
    state.step += 1
    metrics = _mean(metrics, accelerator) | {"lr": lr}
    return metrics | ({"skipped": float(skipped)} if accelerator.scaler is not None else {})


def _draws(step: int, accumulation: int, accelerator: Accelerator) -> list[int]:
    """Numbers of this process's batches of a step: 2 batches in one process are those of 2 processes with one
    batch each.
    """
    parts = range(step * accumulation, (step + 1) * accumulation)
    return [part * accelerator.num_processes + accelerator.process_index for part in parts]


def _try_step(
    model: nn.Module, task: Task, state: State, draws: list[int], recipe: Recipe, accelerator: Accelerator
) -> dict[str, float]:
    """Gradients and a move of the optimiser, which fp16's loss scaler may skip."""
    metrics: dict[str, float] = {}
    for draw in draws:
        with contextlib.nullcontext() if draw == draws[-1] else accelerator.no_sync(model):
            found = _backward(model, task, state.step, draw, recipe, accelerator, len(draws))
        metrics = {name: metrics.get(name, 0.0) + value / len(draws) for name, value in found.items()}
    norm = float(accelerator.clip_grad_norm_(list(state.params.values()), recipe.clip_norm))
    if accelerator.scaler is None and not math.isfinite(norm):
        raise TrainingError(_not_finite("gradient norm", norm, state.step, _names(task, draws)))
    state.optimizer.step()
    state.optimizer.zero_grad()
    return {**metrics, "grad_norm": norm}


def _backward(
    model: nn.Module,
    task: Task,
    step: int,
    draw: int,
    recipe: Recipe,
    accelerator: Accelerator,
    accumulation: int,
) -> dict[str, float]:
    """Add the gradient of batch `draw`, its share of the step; returns the loss of all processes and the
    task's metrics of this one, which `train_step` gathers.
    """
    seed = _seed(recipe.seed, draw)
    torch.manual_seed(seed)  # dropout
    loss, metrics = task.loss(model, draw, torch.Generator().manual_seed(seed))
    mean_loss = accelerator.reduce(loss.detach(), "mean").item()
    if not math.isfinite(mean_loss):
        raise TrainingError(_not_finite("loss", mean_loss, step, task.describe(draw)))
    accelerator.backward(loss / accumulation)
    return {"loss": mean_loss, **metrics}


def learning_rate(recipe: Recipe, step: int, done: float | None = None) -> float:
    """Learning rate of step number `step` (from 0): warm-up, plateau, cool-down. A run is prolonged from its
    plateau. `done`: the share of the run, 0 to 1, that lies behind, where it is not the recipe's steps that
    end it.
    """
    warmup = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
    to_come = recipe.steps - step if done is None else (1 - done) * recipe.steps
    left = min(1.0, to_come / max(1.0, recipe.cooldown * recipe.steps))
    return recipe.lr * warmup * (0.05 + 0.95 * left if recipe.cooldown else 1.0)


def select_trainable(model: nn.Module, parts: tuple[str, ...]) -> list[str]:
    """Let parameters whose names contain one of `parts` train, freeze the others; ("all",) trains everything.

    Returns the names. Raises TrainingError when a part matches nothing, or when it picks a normalisation:
    those stay frozen unless everything trains (METHOD sections 4 and 5). torch 2.13 on CPU crashes in
    GroupNorm's backward when its weight trains while its channels-last input needs no gradient, which is so
    after frozen first convolutions.
    """
    everything = parts == ("all",)
    chosen = [
        name for name, _ in model.named_parameters() if everything or any(part in name for part in parts)
    ]
    for part in () if everything else parts:
        if not any(part in name for name in chosen):
            raise TrainingError(f"trainable part {part!r} matches no parameter of {type(model).__name__}")
    norms = {
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, nn.GroupNorm | nn.LayerNorm)
    }
    if not everything and (
        wrong := [name for name in chosen if any(name.startswith(norm) for norm in norms)]
    ):
        raise TrainingError(f"normalisations stay frozen unless all weights train, but {wrong[0]} was chosen")
    model.requires_grad_(False)
    for name, param in model.named_parameters():
        param.requires_grad_(name in set(chosen))
    return chosen


# Checkpoints


def _open_run(
    path: Path, state: State, recipe: Recipe, identity: dict[str, str], accelerator: Accelerator, resume: bool
) -> None:
    if not path.exists():
        return
    if not resume:
        raise TrainingError(
            f"{path.parent} holds a run already: add --resume to go on, or choose another --run"
        )
    metadata = read_metadata(path)
    _check_same_run(path, metadata, recipe, identity)
    _restore(state, load_tensors(path), int(metadata["step"]))
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(json.loads(metadata["scaler"]))


def _check_same_run(path: Path, metadata: dict[str, str], recipe: Recipe, identity: dict[str, str]) -> None:
    then, now = json.loads(metadata["recipe"]), json.loads(_to_json(recipe))
    changed = [f"{k}: {then.get(k)} -> {now.get(k)}" for k in sorted(then | now) if then.get(k) != now.get(k)]
    changed = [text for text in changed if text.split(":")[0] not in FREE_FIELDS]
    before = {k: metadata.get(k, "") for k in identity}  # an older run lacks what was not told apart then
    changed += [f"{k}: {before[k] or 'none'} -> {v or 'none'}" for k, v in identity.items() if before[k] != v]
    if changed:
        raise TrainingError(f"{path} is another run; it cannot go on with {'; '.join(changed)}")


def _restore(state: State, tensors: dict[str, Tensor], step: int) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        for index, (name, param) in enumerate(state.params.items()):
            param.copy_(tensors[f"model/{name}"])
            if f"step/{name}" in tensors:  # else it never had a gradient
                moments[index] = {key: tensors[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
            if state.ema:
                state.ema[name].copy_(tensors[f"ema/{name}"])
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.step = step


def _save(
    path: Path, state: State, recipe: Recipe, identity: dict[str, str], accelerator: Accelerator
) -> None:
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    tensors = {f"model/{name}": param.detach() for name, param in state.params.items()}
    tensors |= {f"ema/{name}": tensor for name, tensor in state.ema.items()}
    moments = state.optimizer.state_dict()["state"]
    for index, name in enumerate(state.params):
        tensors |= {f"{key}/{name}": tensor for key, tensor in moments.get(index, {}).items()}
    scaler = json.dumps(accelerator.scaler.state_dict()) if accelerator.scaler is not None else "{}"
    metadata = {"step": str(state.step), "recipe": _to_json(recipe), "scaler": scaler, **identity}
    save_tensors(path, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def _to_json(recipe: Recipe) -> str:
    return json.dumps(dataclasses.asdict(recipe))


# Small parts


@contextlib.contextmanager
def run_is_kept(folder: Path) -> Iterator[None]:
    """Around the writing of what the run in `folder` made: its TrainingError says that nothing is lost."""
    try:
        yield
    except OSError as error:
        kept = f"nothing is lost, {folder} holds the run: the same command with --resume writes it at once"
        raise TrainingError(f"{say(error)}; {kept}") from error


def _seed(seed: int, draw: int) -> int:
    return int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])


def _names(task: Task, draws: list[int]) -> str:
    return "; ".join(task.describe(draw) for draw in draws)


def _not_finite(what: str, value: float, step: int, batch: str) -> str:
    return f"{what} is {value} at step {step}, batch {batch}; the weights are those of the step before"


def _any(flag: bool, accelerator: Accelerator) -> bool:
    """Whether `flag` is set in any process: all of them have to stop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item())


def _mean(metrics: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """`metrics` over all processes, each of which has the same ones."""
    if accelerator.num_processes == 1:
        return metrics
    values = torch.tensor([metrics[name] for name in sorted(metrics)], device=accelerator.device)
    return dict(zip(sorted(metrics), accelerator.reduce(values, "mean").tolist(), strict=True))


def _average(state: State, recipe: Recipe) -> None:
    decay = min(recipe.ema or 0.0, (1 + state.step) / (10 + state.step))  # forgets the first steps sooner
    torch._foreach_lerp_(list(state.ema.values()), [p.detach() for p in state.params.values()], 1 - decay)


@contextlib.contextmanager
def averaged(params: Mapping[str, nn.Parameter], average: dict[str, Tensor]) -> Iterator[None]:
    """The moving average in place of the weights, without copying either."""

    def swap() -> None:
        for name, tensor in average.items():
            param = params[name]
            param.data, average[name] = tensor, param.data

    swap()
    try:
        yield
    finally:
        swap()


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills on the first SIGTERM or Ctrl-C; a second one acts at once, as usual."""
    caught: list[int] = []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Log:
    """A progress bar with seconds per step and loss, and TensorBoard scalars (means of `log_every` steps)."""

    def __init__(self, folder: Path, recipe: Recipe, start: int, main: bool):
        self.folder, self.every, self.main = folder, recipe.log_every, main
        self.sums: dict[str, float] = {}
        self.count = 0
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1) if main else None
        quiet = 0.5 if sys.stderr.isatty() else 30.0
        layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(
            total=recipe.steps,
            initial=start,
            mininterval=quiet,
            disable=not main,
            bar_format=layout,
            desc="train",
        )

    def step(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.bar.update()
        if step % self.every == 0:
            means = {name: value / self.count for name, value in self.sums.items()}
            self.bar.set_postfix_str(
                f"loss {means['loss']:.4f}, {means['seconds']:.2f} s/step", refresh=False
            )
            self.scalars("train", means, step)
            self.sums, self.count = {}, 0

    def scalars(self, group: str, metrics: dict[str, float], step: int) -> None:
        if self.writer is None:
            return
        for name, value in metrics.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)
        if group == "eval":
            self.writer.flush()
            draw_curves(self.folder)
            shown = ", ".join(f"{k} {v:.5g}" for k, v in list(metrics.items())[:HEADLINES])
            self.bar.write(f"step {step}: {shown}", file=sys.stderr)

    def end(self, step: int, reason: str) -> None:
        if reason:
            self.bar.write(f"step {step}: stopped early, {reason}", file=sys.stderr)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()
            draw_curves(self.folder)
