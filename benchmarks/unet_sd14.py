"""One forward of the video UNet at SD 1.4's size: 16 frames of 320 x 512 pixels, bfloat16, random weights.

    python -m benchmarks.unet_sd14              1.1 billion parameters; needs about 8 GB
    python -m benchmarks.unet_sd14 --quick      a small network, 4 frames: does it still run? records nothing

Prints seconds and peak memory (weights apart) and appends one JSON line to benchmarks/results/. One clip, no
guidance; the prompt's keys and values are projected before, as the pipeline does.
"""

import os
from typing import Any

import torch
from torch import nn

from benchmarks import common
from benchmarks.common import peak_bytes, record, timed
from huvidpo.unet import VideoUNet

SIZE = (16, 40, 64)  # frames, latent height, latent width


def random_unet(config: dict[str, Any], device: str) -> VideoUNet:
    """Random bfloat16 weights, made in place: never a float32 copy in memory."""
    with torch.device("meta"):
        unet = VideoUNet(**config)
    nn.Module.to(unet, torch.bfloat16).to_empty(device=device)
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.ones_(parameter)
    return unet.eval().requires_grad_(False)


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("a small network, 4 frames")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads on a CPU")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    config: dict[str, Any] = {"block_out_channels": (32, 64, 64, 64)} if args.quick else {}
    frames, height, width = (4, 8, 16) if args.quick else SIZE
    unet = random_unet(config, args.device)
    sample = torch.randn(1, 4, frames, height, width, device=args.device, dtype=torch.bfloat16)
    text_kv = unet.project_text(torch.randn(1, 77, 768, device=args.device, dtype=torch.bfloat16))

    @torch.no_grad()
    def call() -> torch.Tensor:
        return unet(sample, 500, text_kv=text_kv)

    assert call().isfinite().all(), "the forward gave numbers that are not finite"
    peak = peak_bytes(call, args.device)
    took = timed(call, args.repeats, args.device).median
    parameters = sum(p.numel() for p in unet.parameters())
    print(f"{parameters:,} parameters, {frames} frames of {height} x {width} latents: {took:.2f} s, ", end="")
    print(f"peak {peak / 2**20:,.0f} MB over {2 * parameters / 2**20:,.0f} MB of weights")
    if not args.quick:
        metrics = {"seconds": round(took, 3), "peak_mb": peak >> 20, "weights_mb": 2 * parameters >> 20}
        record(args, args.device, parameters=parameters, latents=[1, 4, frames, height, width], **metrics)


if __name__ == "__main__":
    main()
