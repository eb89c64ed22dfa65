"""Losses as pure functions on latents [B, C, F, h, w].

Frame 0 is given to the network clean (it is the picture the clip starts from), so it is never noised and
never counted.
"""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from huvidpo.errors import HuViDPOError


def add_noise(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Frames 1.. of `latents` [B, C, F, h, w] noised to `timesteps` [B]; frame 0 stays clean."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    return torch.cat([latents[:, :, :1], noisy[:, :, 1:]], dim=2)


def prediction_target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should answer, by the scheduler's `prediction_type`: the noise, or the velocity.

    Raises HuViDPOError on any other prediction type.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise HuViDPOError(f"scheduler predicts {kind!r}; training knows epsilon and v_prediction")


def motion_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over frames 1.., in fp32: a scalar (METHOD section 4)."""
    return F.mse_loss(prediction[:, :, 1:].float(), target[:, :, 1:].float())
