"""Train the tiny VAE: 64 x 64 pixels <-> 12 x 16 x 16 latents of zero mean and unit variance.

    python -m tiny.autoencoder --threads 2

The normalisation of the latents is folded into `quant_conv` / `post_quant_conv`, so the model needs no
`latents_mean` (diffusers' SDXL pipeline assumes four channels there) and has scaling_factor 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from huvidpo.hardware import mixed_precision, prepare_to_train
from preferences.metrics import psnr
from tiny.common import DATA, FAMILY, fit, parse_recipe, to_unit
from tiny.dataset import load_split
from training.recipes import Recipe

BATCH, CROP = 32, 32
KL_WEIGHT = 1e-5
RECIPE = Recipe(
    steps=3000, batch_size=BATCH, lr=2e-3, warmup_steps=200, cooldown=0.25, precision="bf16", ema=0.998,
    save_every=250, sample_every=500,
)  # fmt: skip
FOLDER = FAMILY / "first_frame" / "vae"


def build() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=12,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        force_upcast=False,  # trained in bfloat16
    )


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 and squared error on colours, on chroma (else small saturated subjects go grey) and on edges."""
    difference = out - target
    chroma = difference - difference.mean(1, keepdim=True)
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + 2 * difference.square().mean() + 0.5 * chroma.abs().mean() + 0.5 * edges


def random_crops(clips: np.ndarray, generator: torch.Generator) -> Tensor:
    """[32, 3, 32, 32] crops of random frames; aligned to 2 pixels, the grid of the pixel-art style."""
    draw = lambda high: torch.randint(high, (BATCH,), generator=generator).tolist()  # noqa: E731
    index = zip(draw(len(clips)), draw(clips.shape[1]), draw(17), draw(17), strict=True)
    crops = [clips[n, t, 2 * y : 2 * y + CROP, 2 * x : 2 * x + CROP] for n, t, y, x in index]
    return to_unit(torch.from_numpy(np.stack(crops))).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Rescale so that the latents of `pictures` [N, 3, 64, 64] have mean 0 and variance 1 per channel."""
    mean = torch.cat([vae.encode(batch).latent_dist.mean for batch in pictures.split(64)])
    mu, sigma = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    channels = len(mu)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:channels] = (quant.bias[:channels] - mu) / sigma
    quant.weight[:channels] /= sigma[:, None, None, None]
    quant.bias[channels:] -= 2 * sigma.log()  # the log-variances of the posterior
    post.bias += (post.weight[:, :, 0, 0] * mu).sum(1)
    post.weight *= sigma[None, :, None, None]


@torch.no_grad()
def mean_psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean over pictures of the PSNR in dB of what the VAE gives back."""
    values = []
    for batch in pictures.split(64):
        out = vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1)
        values += [psnr(a.numpy(), b.numpy(), span=2) for a, b in zip(out, batch, strict=True)]
    return float(np.mean(values))


@dataclass(frozen=True)
class Reconstruction:
    """Training of the VAE for the loop: `training.loop.Task`."""

    clips: np.ndarray
    test: Tensor
    """Held-out pictures [N, 3, 64, 64]."""

    def loss(self, model: Any, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        crops = random_crops(self.clips, generator)
        with mixed_precision():
            posterior = model.encode(crops).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            out = model.decode(posterior.mean + posterior.std * noise).sample
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(out.float(), crops) + KL_WEIGHT * kl, {}

    def describe(self, draw: int) -> str:
        return f"random crops number {draw}"

    def evaluate(self, model: Any) -> dict[str, float]:
        return {"psnr_db": mean_psnr(model, self.test)}

    def sample(self, step: int, folder: Path) -> None:
        """The PSNR says it all."""


def main() -> None:
    recipe = parse_recipe("Train the tiny VAE.", RECIPE)
    clips, _ = load_split(DATA, "clips")
    held_out, _ = load_split(DATA, "held_out")
    test = to_unit(torch.from_numpy(np.ascontiguousarray(held_out[:, ::5]))).flatten(0, 1)
    vae = prepare_to_train(build())
    fit("vae", vae, Reconstruction(clips, test[:64]), recipe)
    fold_normalisation(vae, to_unit(torch.from_numpy(np.ascontiguousarray(clips[:512, 7]))))
    print(json.dumps({"held_out_psnr_db": round(mean_psnr(vae, test), 2), "steps": recipe.steps}))
    vae.half().save_pretrained(FOLDER)


if __name__ == "__main__":
    main()
