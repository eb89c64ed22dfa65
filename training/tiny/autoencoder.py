"""Train the tiny VAE: 64 x 64 pixels <-> 12 x 16 x 16 latents of zero mean and unit variance.

    python -m training.tiny.autoencoder --steps 8000 --threads 2

The normalisation of the latents is folded into `quant_conv` / `post_quant_conv`, so the model needs no
`latents_mean` (diffusers' SDXL pipeline assumes four channels there) and has scaling_factor 1.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from training.tiny.common import (
    DATA,
    FAMILY,
    FitConfig,
    common_arguments,
    fit,
    mixed_precision,
    prepare,
    to_unit,
)
from training.tiny.dataset import load_split

BATCH, CROP = 32, 32
KL_WEIGHT = 1e-5
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
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean over pictures of the PSNR in dB of what the VAE gives back."""
    errors = []
    for batch in pictures.split(64):
        out = vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(((out - batch) / 2).square().mean((1, 2, 3)))
    return float((-10 * torch.cat(errors).log10()).mean())


def main() -> None:
    args = common_arguments("Train the tiny VAE.", steps=8000).parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    clips, _ = load_split(DATA, "clips")
    held_out, _ = load_split(DATA, "held_out")
    test = to_unit(torch.from_numpy(np.ascontiguousarray(held_out[:, ::5]))).flatten(0, 1)
    vae = prepare(build())

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        crops = random_crops(clips, generator)
        with mixed_precision():
            posterior = vae.encode(crops).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            out = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = (
            0.5
            * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        )
        return reconstruction_loss(out.float(), crops) + KL_WEIGHT * kl

    def log(step: int, model: torch.nn.Module) -> None:
        print(f"\nstep {step}: {psnr(vae.eval(), test[:64]):.2f} dB on 64 held-out frames", flush=True)

    fit("vae", vae, loss_of, FitConfig(args.steps, lr=2e-3, ema=0.998), log)
    fold_normalisation(vae, to_unit(torch.from_numpy(np.ascontiguousarray(clips[:512, 7]))))
    result = {"held_out_psnr_db": round(psnr(vae, test), 2), "steps": args.steps}
    vae.half().save_pretrained(FOLDER)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
