"""Images through the VAE and back. h w: latent height and width, H W: pixels."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

IMAGES_AT_ONCE = 8  # images that pass the VAE together: bounds its memory


def to_latents(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] -> normalised latents [N, C, h, w] float32.

    The mode of the posterior: nothing is drawn.
    """
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
    chunks = pixels.split(IMAGES_AT_ONCE)
    latents = torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in chunks]).float()
    mean, std = _latent_moments(vae)
    return (latents - mean) / std


def from_latents(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Normalised latents [N, C, h, w] -> uint8 [N, H, W, 3]."""
    mean, std = _latent_moments(vae)
    chunks = (latents.float() * std + mean).to(vae.dtype).split(IMAGES_AT_ONCE)
    pixels = torch.cat([vae.decode(chunk).sample for chunk in chunks]).float()
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _latent_moments(vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Mean and std [C or 1, 1, 1] of the VAE's latents, from its config."""
    config = vae.config
    mean = torch.tensor(config.latents_mean or [0.0], device=vae.device).view(-1, 1, 1)
    std = torch.tensor(config.latents_std or [1.0], device=vae.device).view(-1, 1, 1)
    return mean, std / config.scaling_factor
