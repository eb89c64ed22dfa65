"""What is exported: one row per network, and the sizes its axes take for a model of the catalog.

The row feeds export, build, check and, through the manifest, the runtime. An axis is a name; `axis_sizes`
gives it a number, or a Span where it stays dynamic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from export.networks import (
    IMAGE_UNET,
    PROJECTED_TEXT,
    TEXT,
    VAE,
    VIDEO_UNET,
    ClipUNet,
    Exportable,
    ImageUNet,
    ProjectedTextEncoder,
    TextEncoder,
    VaeDecoder,
    VaeEncoder,
    read_config,
)
from huvidpo.catalog import Component, Model
from huvidpo.engines import manifest
from huvidpo.latents import IMAGES_AT_ONCE

PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Span:
    """Sizes a dynamic axis takes: multiples of `step` from `min` to `max`, tuned for `opt`."""

    min: int
    opt: int
    max: int
    step: int = 1


Sizes = Mapping[str, int | Span]


@dataclass(frozen=True)
class Port:
    """An input or output: `dtype` is torch's name, or `real` for the network's precision."""

    name: str
    dtype: str
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    name: str
    kind: type  # the class of the network
    wrapper: type[Exportable]
    component: Callable[[Model], Component]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    per_category: bool = False  # whether categories have weights of their own


def _unet_of(model: Model) -> Component:
    return model.first_frame_unet or _part(model, "unet")


def _part(model: Model, name: str) -> Component:
    return Component(model.first_frame.location, name)


IDS = Port("input_ids", "int64", ("batch", "tokens"))
HIDDEN = ("batch", "tokens", "width")
LATENT = ("batch", "channels", "height", "width")
IMAGE = ("batch", "colours", "image_height", "image_width")
CLIP = ("batch", "channels", "frames", "height", "width")
TIMESTEP = Port("timestep", "float32", ("batch",))
PROMPT = Port("encoder_hidden_states", "real", ("batch", "tokens", "text_width"))
PENULTIMATE = Port("penultimate_hidden_state", "real", HIDDEN)
MOMENTS = Port("moments", "real", ("batch", "moments", "height", "width"))

ROWS: tuple[Row, ...] = (
    Row(
        "text_encoder",
        TEXT,
        TextEncoder,
        lambda model: _part(model, "text_encoder"),
        (IDS,),
        (Port("last_hidden_state", "real", HIDDEN), PENULTIMATE),
    ),
    Row(
        "text_encoder_2",
        PROJECTED_TEXT,
        ProjectedTextEncoder,
        lambda model: _part(model, "text_encoder_2"),
        (IDS,),
        (Port("text_embeds", "real", ("batch", "projected")), PENULTIMATE),
    ),
    Row(
        "first_frame_unet",
        IMAGE_UNET,
        ImageUNet,
        _unet_of,
        (
            Port("sample", "real", LATENT),
            TIMESTEP,
            PROMPT,
            Port("text_embeds", "real", ("batch", "projected")),
            Port("time_ids", "real", ("batch", "time_ids")),
        ),
        (Port("prediction", "real", ("batch", "predicted", "height", "width")),),
    ),
    Row(
        "first_frame_vae_decoder",
        VAE,
        VaeDecoder,
        lambda model: _part(model, "vae"),
        (Port("z", "real", LATENT),),
        (Port("sample", "real", IMAGE),),
    ),
    Row(
        "video_text_encoder",
        TEXT,
        TextEncoder,
        lambda model: model.video_text_encoder,
        (IDS,),
        (Port("last_hidden_state", "real", HIDDEN), PENULTIMATE),
    ),
    Row(
        "video_vae_encoder",
        VAE,
        VaeEncoder,
        lambda model: model.video_vae,
        (Port("x", "real", IMAGE),),
        (MOMENTS,),
    ),
    Row(
        "video_vae_decoder",
        VAE,
        VaeDecoder,
        lambda model: model.video_vae,
        (Port("z", "real", LATENT),),
        (Port("sample", "real", IMAGE),),
    ),
    Row(
        "video_unet",
        VIDEO_UNET,
        ClipUNet,
        lambda model: model.video_unet,
        (Port("sample", "real", CLIP), TIMESTEP, PROMPT),
        (Port("prediction", "real", ("batch", "predicted", "frames", "height", "width")),),
        per_category=True,
    ),
)


@dataclass(frozen=True)
class Network:
    """A row for one model of the catalog, in one precision."""

    row: Row
    model: Model
    config: dict[str, Any]
    sizes: Sizes
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)

    def type_of(self, port: Port) -> str:
        return self.precision if port.dtype == "real" else port.dtype

    def profiles(self, ports: tuple[Port, ...]) -> tuple[manifest.Port, ...]:
        """The ports with the shapes they may have, as the builder and the runtime want them."""
        return tuple(
            manifest.Port(port.name, self.type_of(port), *(self.shape(port, end) for end in ENDS))
            for port in ports
        )

    def shape(self, port: Port, end: str) -> tuple[int, ...]:
        """`end`: min, opt or max."""
        sizes = [self.sizes[axis] for axis in port.axes]
        return tuple(size if isinstance(size, int) else getattr(size, end) for size in sizes)

    def sample_inputs(self, chosen: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random inputs, with `chosen` sizes for the dynamic axes."""
        generator = torch.Generator().manual_seed(seed)
        inputs = {}
        for port in self.row.inputs:
            shape = [chosen.get(axis, self.sizes[axis]) for axis in port.axes]
            inputs[port.name] = self._sample(port, shape, generator)
        return inputs

    def _sample(self, port: Port, shape: list[Any], generator: torch.Generator) -> Tensor:
        dtype = getattr(torch, self.type_of(port))
        if port.name == "input_ids":
            vocabulary: Any = self.sizes["vocabulary"]
            ids = torch.randint(vocabulary - 1, shape, generator=generator)
            ids[:, -1] = vocabulary - 1  # the end of text, CLIP's last token
            return ids
        if port.name in ("timestep", "time_ids"):
            return torch.randint(1000, shape, generator=generator).to(dtype)
        return torch.randn(shape, generator=generator).to(dtype)


ENDS = ("min", "opt", "max")


def network_of(row: Row, model: Model, precision: str, requests: int = 4) -> Network:
    """`requests`: most requests that share a batch; with guidance each takes two lines of it.

    A VAE whose configuration says `force_upcast` overflows in float16: it stays in float32.
    """
    config = read_config(row.kind, row.component(model))
    if row.kind is VAE and config.get("force_upcast", True) and precision == "float16":
        precision = "float32"
    return Network(row, model, config, axis_sizes(row, model, config, requests), precision)


def axis_sizes(row: Row, model: Model, config: Mapping[str, Any], requests: int) -> Sizes:
    """The size of every axis that the row's ports name, from the model's configurations and defaults."""
    if row.kind in (TEXT, PROJECTED_TEXT):
        return {
            "batch": Span(1, 1, 2 * requests),
            "tokens": config["max_position_embeddings"],
            "width": config["hidden_size"],
            "projected": config["projection_dim"],
            "vocabulary": config["vocab_size"],
        }
    video = row.name.startswith("video")
    vae = read_config(VAE, model.video_vae if video else _part(model, "vae"))
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    defaults = model.defaults
    pixels = (defaults.height, defaults.width) if video else defaults.first_frame_size
    sides = [side // factor for side in pixels]
    if row.kind is VAE:
        height, width = spans(sides, 1)
        return {
            "batch": Span(1, IMAGES_AT_ONCE if video else 1, IMAGES_AT_ONCE),
            "channels": config["latent_channels"],
            "moments": 2 * config["latent_channels"],
            "colours": config["in_channels"],
            "height": height,
            "width": width,
            "image_height": scaled(height, factor),
            "image_width": scaled(width, factor),
        }
    height, width = spans(sides, 2 ** (len(config["block_out_channels"]) - 1))
    guided = (defaults.guidance if video else defaults.first_frame_guidance) > 1
    encoder = model.video_text_encoder if video else _part(model, "text_encoder")
    sizes: dict[str, int | Span] = {
        "batch": Span(1, 2 if guided else 1, 2 * requests),
        "channels": config["in_channels"],
        "predicted": config["out_channels"],
        "height": height,
        "width": width,
        "tokens": read_config(TEXT, encoder)["max_position_embeddings"],
        "text_width": config["cross_attention_dim"],
    }
    if video:
        return sizes | {"frames": Span(2, defaults.frames, 2 * defaults.frames)}
    ids = 6  # original size, crop and target size
    pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
    return sizes | {"projected": pooled, "time_ids": ids}


def spans(sides: list[int], step: int) -> list[Span]:
    """Per side: from half the smaller one to 5/4 of the larger one, so that either orientation fits."""
    low, high = -(-min(sides) // (2 * step)) * step, -(-5 * max(sides) // (4 * step)) * step
    return [Span(low, side, high, step) for side in sides]


def scaled(span: Span, factor: int) -> Span:
    return Span(*(factor * size for size in (span.min, span.opt, span.max, span.step)))
