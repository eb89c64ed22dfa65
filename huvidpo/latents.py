"""Images through the VAE and back. h w: latent height and width, H W: pixels."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from huvidpo.errors import NotFinite

IMAGES_AT_ONCE = 8  # images that pass the VAE together: bounds its memory
IMAGES_AT_ONCE_CUDA = 2  # where torch runs it on a GPU: a third of the memory, 0.06 s more per clip


def to_latents(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] -> normalised latents [N, C, h, w] float32.

    The mode of the posterior: nothing is drawn. Raises NotFinite where the VAE overflows.
    """
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
    chunks = pixels.split(_at_once(vae))
    latents = torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in chunks]).float()
    check_values(latents, "the VAE's latents of an image", vae.dtype)
    mean, std = _latent_moments(vae)
    return (latents - mean) / std


def from_latents(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Normalised latents [N, C, h, w] -> uint8 [N, H, W, 3].

    Raises NotFinite for latents or pixels that are not: as uint8 they would be a black picture.
    """
    check_values(latents, "the denoised latents", latents.dtype)
    mean, std = _latent_moments(vae)
    chunks = (latents.float() * std + mean).to(vae.dtype).split(_at_once(vae))
    pixels = torch.cat([vae.decode(chunk).sample for chunk in chunks]).float()
    check_values(pixels, "the VAE's pixels", vae.dtype)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def check_values(values: Tensor, what: str, dtype: torch.dtype) -> None:
    """Raise NotFinite where `values`, made in `dtype`, hold NaN or infinity."""
    if not values.isfinite().all():
        raise NotFinite(
            f"{what} hold NaN or infinity in {str(dtype).removeprefix('torch.')}; lower guidance, or use "
            "float32 or bfloat16, or other weights"
        )


def _at_once(vae: AutoencoderKL) -> int:
    """An engine's profile is for IMAGES_AT_ONCE."""
    on_gpu = isinstance(vae, nn.Module) and vae.device.type == "cuda"
    return IMAGES_AT_ONCE_CUDA if on_gpu else IMAGES_AT_ONCE


def _latent_moments(vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Mean and std [C or 1, 1, 1] of the VAE's latents, from its config."""
    config = vae.config
    mean = torch.tensor(config.latents_mean or [0.0], device=vae.device).view(-1, 1, 1)
    std = torch.tensor(config.latents_std or [1.0], device=vae.device).view(-1, 1, 1)
    return mean, std / config.scaling_factor
