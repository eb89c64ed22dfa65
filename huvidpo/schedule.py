"""Samplers of the video model: noise, denoising steps that leave frame 0 alone, and LAMP's frame corrections.

Everything is a plain function of tensors. Shapes: B batch, C channels, F frames, H W latent height and width.
Latents are float32 [B, C, F, H, W]; frame 0 is the clean latent of the first frame throughout.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from huvidpo.errors import Cancelled

StepCallback = Callable[[int, int, Tensor], Sequence[bool] | None]
"""(step from 1, total steps, latents) -> None to go on, or one keep-flag per request still in the batch."""

Denoiser = Callable[[Tensor, Tensor, list[int]], Tensor]
"""(latents [B, C, F, H, W], timestep [], rows) -> prediction [B, C, F, H, W].

`rows`: which requests of the first batch the B latents belong to, once others have been dropped."""

SETTLE_FRACTION = 0.6
"""LAMP pulls frame 1 towards frame 0 after steps with index > 30 of its 50: the last two fifths."""


def make_scheduler(config: dict[str, Any], sampler: str, steps: int) -> Any:
    """A fresh scheduler from the model's config, with its timesteps set, on the CPU as its tables are.

    "ddim": Denoising Diffusion Implicit Models (arXiv 2010.02502), eta 0. "dpm++": DPM-Solver++ 2M (arXiv
    2211.01095). Prediction type, betas, zero terminal SNR and timestep spacing are those of the config.
    """
    if sampler == "ddim":
        scheduler = DDIMScheduler.from_config(config)
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(
            config, algorithm_type="dpmsolver++", solver_order=2
        )
    scheduler.set_timesteps(steps)
    return scheduler


def mix_noise(noise: Tensor, share: float) -> Tensor:
    """Frames 1.. become share * noise of frame 0 + (1 - share) * their own; frame 0 keeps its own.

    LAMP's shared noise, share 0.2. Its std is sqrt(0.2^2 + 0.8^2) = 0.825, as in the original.
    """
    first, rest = noise[:, :, :1], noise[:, :, 1:]
    return torch.cat([first, share * first + (1 - share) * rest], dim=2)


def guide(unconditional: Tensor, conditional: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598); `scale` [B] holds one strength per request."""
    return unconditional + scale.view(-1, 1, 1, 1, 1) * (conditional - unconditional)


def step_frames(scheduler: Any, prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """One scheduler step on frames 1..; frame 0 stays as it is."""
    moved = scheduler.step(prediction[:, :, 1:], timestep, latents[:, :, 1:], return_dict=False)[0]
    return torch.cat([latents[:, :, :1], moved], dim=2)


def adain(content: Tensor, style: Tensor) -> Tensor:
    """`content` [..., H, W] with the mean and std over H, W of `style` (arXiv 1703.06868; eps as in LAMP)."""
    mean, std = _moments(content)
    style_mean, style_std = _moments(style)
    return (content - mean) / std * style_std + style_mean


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=(-2, -1), keepdim=True)
    return mean, (variance + 1e-8).sqrt()


def correct_step(latents: Tensor, index: int, settle_after: float) -> Tensor:
    """LAMP's correction after the step of `index` (from 0).

    Past `settle_after`, frame 1 takes frame 0's moments; after every step frames 2.. take frame 1's.
    """
    first, second, rest = latents[:, :, :1], latents[:, :, 1:2], latents[:, :, 2:]
    if index > settle_after:
        second = adain(second, first)
    return torch.cat([first, second, adain(rest, second)], dim=2)


def correct_end(latents: Tensor) -> Tensor:
    """LAMP's correction after the last step: frames 1.. take frame 0's moments."""
    first, rest = latents[:, :, :1], latents[:, :, 1:]
    return torch.cat([first, adain(rest, first)], dim=2)


def match_histogram(frames: np.ndarray) -> np.ndarray:
    """Each frame of uint8 [F, H, W, 3] with the colour histogram, channel by channel, of frame 0."""
    matched = frames.copy()
    for channel in range(frames.shape[-1]):
        values, ranks, _ = _ranks(frames[0, ..., channel])
        for plane in matched[1:, ..., channel]:
            _, own_ranks, positions = _ranks(plane)
            plane[...] = np.interp(own_ranks, ranks, values).round()[positions].reshape(plane.shape)
    return matched


def _ranks(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values that occur, the share of pixels not above each of them, and each pixel's position in that
    list.
    """
    values, positions, counts = np.unique(plane, return_inverse=True, return_counts=True)
    return values, counts.cumsum() / plane.size, positions


@torch.no_grad()
def sample(
    model: Denoiser,
    latents: Tensor,
    scheduler: Any,
    *,
    corrections: str = "none",
    settle_after: float | None = None,
    on_step: StepCallback | None = None,
) -> tuple[Tensor, list[int]]:
    """Denoise frames 1.. of `latents` [B, C, F, H, W], whose frame 0 is clean and stays so.

    Each step the model sees the clean frame 0 with the current timestep. `scheduler` has its timesteps set;
    `settle_after` is a step index, by default SETTLE_FRACTION of the steps. Returns the latents of the
    requests that `on_step` did not drop, and their rows in the first batch.
    Raises Cancelled as soon as none is left.
    """
    rows = list(range(len(latents)))
    total = len(scheduler.timesteps)
    settle_after = SETTLE_FRACTION * total if settle_after is None else settle_after
    for index, timestep in enumerate(scheduler.timesteps):
        latents = step_frames(scheduler, model(latents, timestep, rows), timestep, latents)
        if corrections == "lamp":
            latents = correct_step(latents, index, settle_after)
        keep = on_step(index + 1, total, latents) if on_step else None
        if keep is not None and not all(keep):
            kept = kept_indices(keep)
            rows = [rows[i] for i in kept]
            latents = latents[kept]
            drop_history(scheduler, kept)
    return (correct_end(latents) if corrections == "lamp" else latents), rows


def kept_indices(keep: Sequence[bool]) -> list[int]:
    """Positions of the requests that go on. Raises Cancelled when there are none."""
    kept = [i for i, flag in enumerate(keep) if flag]
    if not kept:
        raise Cancelled("every request of the batch was dropped")
    return kept


def drop_history(scheduler: Any, kept: list[int]) -> None:
    """Keep only some requests of the past predictions that a multistep scheduler remembers."""
    if past := getattr(scheduler, "model_outputs", None):
        scheduler.model_outputs = [None if output is None else output[kept] for output in past]
