"""What the tiny family's trainers share: one resumable loop with EMA, and the CPU recipe."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

DATA = Path("runs/tiny/data")  # rendered by training.tiny.dataset
RUNS = Path("runs/tiny")  # checkpoints; ignored by git
FAMILY = Path("models/tiny")  # what ships


@dataclass(frozen=True)
class FitConfig:
    steps: int
    lr: float  # peak; see learning_rate
    warmup: int = 200
    weight_decay: float = 0.01
    ema: float = 0.998
    clip_norm: float = 1.0
    save_seconds: float = 60.0


def learning_rate(config: FitConfig, step: int) -> float:
    """Warm-up, constant, linear to a twentieth over the last quarter: a run can be prolonged."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    left = (config.steps - step) / (0.25 * config.steps)
    return config.lr * (0.05 + 0.95 * min(left, 1.0))


def fit(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    config: FitConfig,
    on_log: Callable[[int, nn.Module], None] | None = None,
    folder: Path = RUNS,
) -> nn.Module:
    """Train every parameter of `model` on `loss_of(step, generator)`; returns it with its averaged weights.

    The generator is seeded by the step, so a run that was stopped continues exactly as if it had not been.
    Raises FloatingPointError before the optimizer moves when a loss is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    average = {k: v.detach().clone().float() for k, v in model.state_dict().items()}
    checkpoint = folder / f"{name}.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc=name, mininterval=5)
    smooth, saved = None, time.monotonic()
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        model.train()
        loss = loss_of(step, torch.Generator().manual_seed(step))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss of step {step} is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        decay = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                average[key].lerp_(value.float(), 1 - decay)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}")
        last = step + 1 == config.steps
        if last or time.monotonic() - saved > config.save_seconds:
            folder.mkdir(parents=True, exist_ok=True)
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            saved = time.monotonic()
            if on_log is not None:
                on_log(step + 1, model)
    model.load_state_dict({k: average[k].to(v.dtype) for k, v in model.state_dict().items()})
    return model.eval()


def prepare(model: nn.Module) -> nn.Module:
    """The fast CPU recipe: channels_last, and GroupNorm kept in float32 under bf16 autocast."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model.to(memory_format=torch.channels_last)


@contextmanager
def mixed_precision() -> Iterator[None]:
    """bf16 autocast, attention as plain matmuls: the fused CPU kernel's backward took half of a CLIP step."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def scheduler() -> DDIMScheduler:
    """Of both diffusion models: v-prediction, zero terminal SNR, trailing timesteps (arXiv:2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float [N, 3, H, W] in [-1, 1], channels_last."""
    return (pixels.float() / 127.5 - 1).movedim(-1, -3)


def common_arguments(description: str, steps: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser
