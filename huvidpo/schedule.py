"""Samplers of the video model: noise, denoising steps that leave frame 0 alone, and corrections of frames.

Everything is a plain function of tensors. Shapes: B batch, C channels, F frames, H W latent height and width.
Latents are float32 [B, C, F, H, W]; frame 0 is the clean latent of the first frame throughout.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from huvidpo.errors import Cancelled, CheckpointError, InvalidRequest

StepCallback = Callable[[int, int, Tensor], Sequence[bool] | None]
"""(step from 1, total steps, latents) -> None to go on, or one keep-flag per request still in the batch."""

Denoiser = Callable[[Tensor, Tensor, list[int]], Tensor]
"""(latents [B, C, F, H, W], timestep [], rows) -> prediction [B, C, F, H, W].

`rows`: which requests of the first batch the B latents belong to, once others have been dropped."""

SETTLE_FRACTION = 0.6
"""LAMP pulls frame 1 towards frame 0 after steps with index > 30 of its 50: the last two fifths."""

UNCHANGED = 8.0
"""Grey levels, mean of the channels, by which a pixel that has not changed may differ from frame 0."""


# What a scheduler's config says of the model: how it was trained, and where its steps lie. All else in it is
# about how that scheduler samples, or another's default.
OF_THE_MODEL = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
)
EARLIEST_START = 0.75  # of the timesteps: from below, the noise that sampling starts with is not what is seen


class DDIM(DDIMScheduler):
    """diffusers' DDIM at eta 0, whose every step leads to the next timestep, whatever their distance.

    diffusers takes num_train_timesteps // steps for the distance: with 334 steps it goes two back where the
    next timestep is three away.
    """

    def set_timesteps(self, timesteps: Sequence[int], device: Any = None) -> None:
        self.num_inference_steps = len(timesteps)
        self.timesteps = torch.tensor(timesteps, device=device)

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Eq. 12 of arXiv 2010.02502; the first of the tuple is the sample at the next timestep."""
        times = self.timesteps.tolist()
        following = times[times.index(int(timestep)) + 1 :]
        alpha = self.alphas_cumprod[int(timestep)]
        next_alpha = self.alphas_cumprod[following[0]] if following else self.final_alpha_cumprod
        signal, sigma = alpha**0.5, (1 - alpha) ** 0.5
        if self.config.prediction_type == "epsilon":
            clean, noise = (sample - sigma * model_output) / signal, model_output
        elif self.config.prediction_type == "v_prediction":
            clean = signal * sample - sigma * model_output
            noise = signal * model_output + sigma * sample
        else:
            clean, noise = model_output, (sample - signal * model_output) / sigma
        return (next_alpha**0.5 * clean + (1 - next_alpha) ** 0.5 * noise,)


def make_scheduler(config: dict[str, Any], sampler: str, steps: int, share: float = 1.0) -> Any:
    """A fresh scheduler from the model's config, with its timesteps set, on the CPU as its tables are.

    "ddim": Denoising Diffusion Implicit Models (arXiv 2010.02502), eta 0. "dpm++": DPM-Solver++ 2M (arXiv
    2211.01095). Prediction type, betas, zero terminal SNR and timestep spacing are those of the config, of
    whatever class it is. Predictions are never clipped: latents are not pixels, which lie in [-1, 1]. Raises
    InvalidRequest for more steps than the model has timesteps, CheckpointError for a config that no sampler
    here can follow.

    `share`: of the model's timesteps, above 0, where it starts; of the steps those below it follow. 1: all
    of them. Raises InvalidRequest for any other.
    """
    if not 0 < share <= 1:
        raise InvalidRequest(f"share: got {share:g}, expected a number above 0 and of at most 1", "share")
    model = {name: config[name] for name in OF_THE_MODEL if config.get(name) is not None}
    prediction = model.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise CheckpointError(
            f"the scheduler's config says prediction_type {prediction!r}; known are epsilon, v_prediction "
            "and sample"
        )
    if sampler == "ddim":
        scheduler = DDIM.from_config(model, clip_sample=False, thresholding=False)
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(
            model, algorithm_type="dpmsolver++", solver_order=2, thresholding=False
        )
    times = spread(scheduler.config, steps, lead=int(sampler == "dpm++"))
    if prediction == "epsilon" and scheduler.alphas_cumprod[times[0]] < 1e-6:
        raise CheckpointError(
            "the scheduler's config says prediction_type epsilon and starts at pure noise "
            "(rescale_betas_zero_snr), where noise says nothing of the clip; such models predict v"
        )
    if share < 1:
        start = max(0, round(share * scheduler.config.num_train_timesteps) - 1)
        times = [start, *(time for time in times if time < start)]
    scheduler.set_timesteps(timesteps=times)
    return scheduler


def noise_to_start(scheduler: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """Frames 1.. of `clean` as noisy as the first timestep has them, frame 0 clean: where `sample` starts
    from to make a clip again (SDEdit, arXiv 2108.01073).
    """
    alpha = scheduler.alphas_cumprod[scheduler.timesteps[0]]
    noisy = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    return torch.cat([clean[:, :, :1], noisy[:, :, 1:]], dim=2)


def spread(config: Any, steps: int, lead: int = 0) -> list[int]:
    """`steps` timesteps, falling, as `config` spaces them (Table 2 of arXiv 2305.08891), from pure noise.

    Where diffusers rounds their distance down to a whole number, and so starts far below the last timestep,
    the timesteps are rounded instead; equal where it divides. A spacing that starts too low for its few steps
    gives way to "trailing". `lead`: timesteps left out at the clean end, as diffusers does for DPM-Solver++.
    Raises InvalidRequest for more steps than timesteps.
    """
    total, spacing = config.num_train_timesteps, config.timestep_spacing
    if steps > total:
        raise InvalidRequest(
            f"steps: got {steps}, this model has {total} timesteps: ask for at most those", "steps"
        )
    count = min(steps + lead, total)
    if spacing == "leading":
        times = np.floor(np.arange(count) * (total / count) + 0.5)
        times += min(config.steps_offset, total - 1 - times[-1])
    elif spacing == "linspace":
        times = np.linspace(0, total - 1, count).round()
    elif spacing != "trailing":
        raise CheckpointError(
            f"the scheduler's config says timestep_spacing {spacing!r}; leading, linspace and trailing are "
            "known"
        )
    if spacing == "trailing" or times[-1] < EARLIEST_START * total:
        times = (total - np.arange(steps) * (total / steps)).round()[::-1] - 1
    return [int(time) for time in times[::-1][:steps]]


def first_frame_schedule(scheduler: Any, steps: int) -> tuple[Any, dict[str, Any]]:
    """A fresh scheduler like `scheduler`, of a first-frame pipeline, and how to ask the pipeline for `steps`.

    Its timesteps are spread as a video's where its class can be told them.
    """
    config = dict(scheduler.config)
    kind = DDIM if isinstance(scheduler, DDIMScheduler) else type(scheduler)
    fixed = {name: False for name in ("clip_sample", "thresholding") if name in config}
    fresh = kind.from_config(config, **fixed)
    own_sigmas = any(config.get(f"use_{name}_sigmas") for name in ("karras", "exponential", "beta"))
    if own_sigmas or "timesteps" not in inspect.signature(fresh.set_timesteps).parameters:
        return fresh, {"num_inference_steps": steps}
    lead = int(isinstance(fresh, DPMSolverMultistepScheduler))
    return fresh, {"timesteps": spread(fresh.config, steps, lead)}


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
    return torch.cat([first, second, adain(rest, second) if rest.shape[2] else rest], dim=2)


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


def keep_detail(frames: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Decoded frames uint8 [F, H, W, 3] with what the VAE lost of their first frame, `first` [H, W, 3], put
    back: all of it where a pixel is what it was in frame 0, less the further it is from that. Frame 0 is
    `first` itself.
    """
    decoded = frames.astype(np.float32)
    lost = first - decoded[0]
    apart = np.abs(decoded - decoded[0]).mean(-1, keepdims=True)
    return (decoded + np.exp(-np.square(apart / UNCHANGED)) * lost).round().clip(0, 255).astype(np.uint8)


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
    on_device = scheduler.timesteps.to(latents.device)  # a copy per step waits for the step before
    for index, timestep in enumerate(scheduler.timesteps):
        latents = step_frames(scheduler, model(latents, on_device[index], rows), timestep, latents)
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
