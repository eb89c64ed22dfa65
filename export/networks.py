"""The networks in the form that exports: thin modules whose `forward` has the graph's inputs by name.

`empty` makes a network from its configuration in memory that is never touched, `load` reads one with weights.
The wrappers hold it as `network`, so that its tensors keep their names behind one prefix.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from huvidpo.catalog import Component
from huvidpo.loading import load_category, load_part, load_video_unet
from huvidpo.unet import VideoUNet, video_config

PREFIX = "network."


class Exportable(nn.Module):
    """Holds a network as `network`; subclasses say how it is called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network


class TextEncoder(Exportable):
    """CLIP's text tower -> (last hidden state, the one before the last layer), each [B, L, D]."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network(input_ids, output_hidden_states=True)
        return out.last_hidden_state, out.hidden_states[-2]


class ProjectedTextEncoder(Exportable):
    """CLIP's text tower with its projection -> (text embeds [B, P], hidden state before the last layer)."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network(input_ids, output_hidden_states=True)
        return out.text_embeds, out.hidden_states[-2]


class ImageUNet(Exportable):
    """SDXL's UNet. Its sinusoids of `time_ids` are float32: cast, or the graph would join two types."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.network.add_time_proj.register_forward_hook(lambda _, __, out: out.to(self.network.dtype))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.network(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]


class ClipUNet(Exportable):
    """The video UNet, keys and values of the prompt included: they are under 1 % of its work."""

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.network(sample, timestep, encoder_hidden_states)


class VaeEncoder(Exportable):
    """Images -> mean and log variance of the posterior, [N, 2C, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network.encode(x, return_dict=False)[0].parameters


class VaeDecoder(Exportable):
    def forward(self, z: Tensor) -> Tensor:
        return self.network.decode(z, return_dict=False)[0]


def read_config(kind: type, source: Component) -> dict[str, Any]:
    """The configuration of a component, as a plain table."""
    if kind in (CLIPTextModel, CLIPTextModelWithProjection):
        return CLIPTextConfig.from_pretrained(source.location, subfolder=source.subfolder).to_dict()
    config = dict(kind.load_config(source.location, subfolder=source.subfolder))  # type: ignore[attr-defined]
    if kind is VideoUNet and config.get("_class_name") != "VideoUNet":
        return video_config(config)  # an image UNet or LAMP's
    return config


def empty(kind: type, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """A network of `kind` whose weights are memory never written: it costs no RAM, whatever its size."""
    with torch.device("meta"):
        if kind in (CLIPTextModel, CLIPTextModelWithProjection):
            network = kind(CLIPTextConfig(**config))
        else:
            network = kind.from_config(config)  # type: ignore[attr-defined]
    network = nn.Module.to_empty(nn.Module.to(network, dtype), device="cpu")
    saved = network.state_dict()
    for name, buffer in network.named_buffers():
        if name not in saved:  # a constant, so its value goes into the graph
            if not name.endswith("position_ids"):
                raise AssertionError(f"{name}: constants of this kind are not known")
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return network.eval().requires_grad_(False)


def load(kind: type, source: Component, dtype: torch.dtype, category: Path | None = None) -> Any:
    """The network with its weights, of a category if given, in `dtype` on the CPU."""
    if kind is VideoUNet:
        unet = load_video_unet(source, dtype)
        network: Any = load_category(unet, category) if category else unet
    else:
        network = load_part(kind, source, dtype)
    return network.eval().requires_grad_(False)


IMAGE_UNET, VIDEO_UNET, VAE = UNet2DConditionModel, VideoUNet, AutoencoderKL
TEXT, PROJECTED_TEXT = CLIPTextModel, CLIPTextModelWithProjection
