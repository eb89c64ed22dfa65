"""The networks of SD 1.4 and SDXL at full size, or tiny, with random weights, and their inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from huvidpo.unet import VideoUNet

Call = Callable[..., Tensor]

VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
}
SD14: dict[str, Any] = {
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
}
SDXL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
}
TINY_SDXL: dict[str, Any] = {
    "block_out_channels": [32, 32, 32],
    "attention_head_dim": [2, 2, 2],
    "transformer_layers_per_block": [1, 1, 1],
    "cross_attention_dim": 32,
    "projection_class_embeddings_input_dim": 80,
    "addition_time_embed_dim": 8,
}
TOKENS = 77


@dataclass(frozen=True)
class Size:
    """What is measured. Latent pixels; a pixel of the clip is an eighth of one."""

    video: dict[str, Any]
    image: dict[str, Any]
    vae: dict[str, Any]
    frames: int
    height: int
    width: int
    side: int
    """of the first frame, which is square"""
    steps: dict[str, int]
    """of the pipelines' loops"""


FULL = Size(SD14, SDXL, VAE, 16, 40, 64, 128, {"video": 50, "sdxl": 30})
TINY = Size(
    SD14 | {"block_out_channels": [32, 32, 32, 32], "cross_attention_dim": 32, "attention_head_dim": 2},
    SDXL | TINY_SDXL,
    VAE | {"block_out_channels": [32] * 4, "layers_per_block": 1},
    frames=2,
    height=8,
    width=8,
    side=8,
    steps={"video": 2, "sdxl": 2},
)


def scatter(network: nn.Module) -> nn.Module:
    """Zero-initialised weights (gates, temporal outputs) get small values: else their errors stay hidden."""
    for p in network.parameters():
        if p.ndim > 1 and not p.any():
            p.data.normal_(0, 0.02 * p[0].numel() ** -0.5)
    return network


def unet(name: str, size: Size, device: str, dtype: torch.dtype, channels_last: bool = False) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        network = (
            VideoUNet.from_config(size.video)
            if name == "video"
            else UNet2DConditionModel.from_config(size.image)
        )
    scatter(network).eval().requires_grad_(False)
    layout = torch.channels_last if channels_last else torch.preserve_format
    return nn.Module.to(network, device, dtype, memory_format=layout)  # diffusers' own .to warns


def vae(size: Size, device: str, dtype: torch.dtype) -> AutoencoderKL:
    torch.manual_seed(0)
    with torch.device(device):
        network = AutoencoderKL.from_config(size.vae).eval().requires_grad_(False)
    return nn.Module.to(network, dtype)


def inputs(name: str, size: Size, device: str, dtype: torch.dtype, lines: int = 2) -> tuple[Tensor, ...]:
    """Those of one step; `lines`: two per request, as guidance is on."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    timestep = torch.linspace(900, 100, lines, device=device)
    if name == "video":
        text = normal(lines, TOKENS, size.video["cross_attention_dim"])
        return normal(lines, 4, size.frames, size.height, size.width), timestep, text
    config, ids = size.image, 6
    pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
    sizes = torch.full((lines, ids), 8.0 * size.side, device=device, dtype=dtype)
    latents, text = (
        normal(lines, 4, size.side, size.side),
        normal(lines, TOKENS, config["cross_attention_dim"]),
    )
    return latents, timestep, text, normal(lines, pooled), sizes


def forward(name: str, network: nn.Module) -> Call:
    """The network as a function of `inputs`."""
    if name == "video":
        return network

    def sdxl(latents: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, sizes: Tensor) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": sizes}
        return network(latents, timestep, text, added_cond_kwargs=added, return_dict=False)[0]

    return sdxl
