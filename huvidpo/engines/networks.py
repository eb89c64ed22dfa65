"""THE table of networks that may run elsewhere than in torch: one row each.

A row gives the network's class, how it is called, its ports (the names and axes of inputs and outputs), the
engine class that stands in for it, and where its weights are in a model of the catalog. Export, build,
comparison and runtime read it. An axis is a name; `axis_sizes` gives it a number, or a Span where it stays
dynamic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig

from huvidpo import hub
from huvidpo.catalog import Component, Model
from huvidpo.engines import manifest
from huvidpo.engines.base import (
    DecoderEngine,
    Engine,
    EngineSpec,
    FirstFrameEngine,
    PlainFirstFrameEngine,
    VideoEngine,
)
from huvidpo.latents import IMAGES_AT_ONCE
from huvidpo.loading import load_config, vae_dtype, video_unet_config
from huvidpo.unet import VideoUNet

TIME_IDS = 6  # of SDXL: original size, crop, target size


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
    kind: Any
    """The network's class."""
    engine: type[Engine]
    call: Callable[..., Tensor]
    """(module, *inputs in the order of the ports) -> its output."""
    component: Callable[[Model], Component]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    per_category: bool = False
    """Whether categories have weights of their own."""


def call_first_frame_unet(
    module: Any,
    sample: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    text_embeds: Tensor,
    time_ids: Tensor,
) -> Tensor:
    added = {"text_embeds": text_embeds, "time_ids": time_ids}
    return module(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]


def call_plain_first_frame_unet(
    module: Any, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
) -> Tensor:
    return module(sample, timestep, encoder_hidden_states, return_dict=False)[0]


def call_video_unet(module: Any, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """Keys and values of the prompt included: they are under 1 % of its work."""
    return module(sample, timestep, encoder_hidden_states)


def call_decoder(module: Any, z: Tensor) -> Tensor:
    return module.decode(z, return_dict=False)[0]


def _part(model: Model, name: str) -> Component:
    return model.first_frame.within(name)


LATENT = Port("sample", "real", ("batch", "channels", "height", "width"))
CLIP = Port("sample", "real", ("batch", "channels", "frames", "height", "width"))
TIMESTEP = Port("timestep", "float32", ("batch",))
PROMPT = Port("encoder_hidden_states", "real", ("batch", "tokens", "text_width"))
Z = Port("z", "real", ("batch", "channels", "height", "width"))
IMAGE = Port("sample", "real", ("batch", "colours", "image_height", "image_width"))

ROWS = {
    row.name: row
    for row in (
        Row(
            "first_frame_unet",
            UNet2DConditionModel,
            FirstFrameEngine,
            call_first_frame_unet,
            lambda model: model.first_frame_unet or _part(model, "unet"),
            (
                LATENT,
                TIMESTEP,
                PROMPT,
                Port("text_embeds", "real", ("batch", "projected")),
                Port("time_ids", "real", ("batch", "time_ids")),
            ),
            (Port("prediction", "real", ("batch", "predicted", "height", "width")),),
        ),
        Row(
            "plain_first_frame_unet",
            UNet2DConditionModel,
            PlainFirstFrameEngine,
            call_plain_first_frame_unet,
            lambda model: model.first_frame_unet or _part(model, "unet"),
            (LATENT, TIMESTEP, PROMPT),
            (Port("prediction", "real", ("batch", "predicted", "height", "width")),),
        ),
        Row(
            "first_frame_vae_decoder",
            AutoencoderKL,
            DecoderEngine,
            call_decoder,
            lambda model: _part(model, "vae"),
            (Z,),
            (IMAGE,),
        ),
        Row(
            "video_vae_decoder",
            AutoencoderKL,
            DecoderEngine,
            call_decoder,
            lambda model: model.video_vae,
            (Z,),
            (IMAGE,),
        ),
        Row(
            "video_unet",
            VideoUNet,
            VideoEngine,
            call_video_unet,
            lambda model: model.video_unet,
            (CLIP, TIMESTEP, PROMPT),
            (Port("prediction", "real", ("batch", "predicted", "frames", "height", "width")),),
            per_category=True,
        ),
    )
}


def first_frame_row(config: Mapping[str, Any]) -> str:
    """Which row a first-frame UNet of this config is: SDXL's, or that of Stable Diffusion 1.x."""
    sdxl = config.get("addition_embed_type") == "text_time"
    return "first_frame_unet" if sdxl else "plain_first_frame_unet"


def rows_of(model: Model) -> list[Row]:
    """The rows that a model has."""
    own = first_frame_row(load_config(UNet2DConditionModel, ROWS["first_frame_unet"].component(model)))
    return [row for row in ROWS.values() if row.kind is not UNet2DConditionModel or row.name == own]


def sample_inputs(row: Row, sizes: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random inputs by name, float32 on the CPU; `sizes` has a number for each axis of the inputs."""
    generator = torch.Generator().manual_seed(seed)

    def sample(port: Port) -> Tensor:
        shape = [sizes[axis] for axis in port.axes]
        if port.name == "timestep":
            return torch.linspace(999, 1, shape[0])
        if port.name == "time_ids":
            return torch.full(shape, 64.0)
        return torch.randn(shape, generator=generator)

    drawn = {port.name: sample(port) for port in sorted(row.inputs, key=lambda port: port.name)}
    return {port.name: drawn[port.name] for port in row.inputs}


def spec_inputs(row: Row, config: Mapping[str, Any], spec: EngineSpec) -> tuple[Tensor, ...]:
    """Random inputs of a network of this `config` at the sizes an engine is made for, float32 on the CPU."""
    lines = 1 if row.kind is AutoencoderKL else spec.lines
    sizes = {"batch": lines, "frames": spec.frames, "height": spec.height, "width": spec.width}
    return tuple(sample_inputs(row, sizes | {"tokens": spec.tokens} | fixed_sizes(row, config)).values())


def fixed_sizes(row: Row, config: Mapping[str, Any]) -> dict[str, int]:
    """The axes whose sizes a network's configuration decides."""
    if row.kind is AutoencoderKL:
        return {"channels": config["latent_channels"], "colours": config["in_channels"]}
    sizes = {
        "channels": config["in_channels"],
        "predicted": config["out_channels"],
        "text_width": config["cross_attention_dim"],
    }
    if all(port.name != "text_embeds" for port in row.inputs):
        return sizes
    pooled = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
    return sizes | {"projected": pooled, "time_ids": TIME_IDS}


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
        """Random inputs of the ports' types, with `chosen` sizes for the dynamic axes."""
        inputs = sample_inputs(self.row, {**self.sizes, **chosen}, seed)
        return {
            port.name: inputs[port.name].to(getattr(torch, self.type_of(port))) for port in self.row.inputs
        }


ENDS = ("min", "opt", "max")


def network_of(row: Row, model: Model, precision: str, requests: int = 4) -> Network:
    """`requests`: most requests that share a batch; with guidance each takes two lines of it."""
    config = read_config(row.kind, row.component(model), model.attention_mode)
    if row.kind is AutoencoderKL:
        precision = str(vae_dtype(config, getattr(torch, precision))).removeprefix("torch.")
    return Network(row, model, config, axis_sizes(row, model, config, requests), precision)


def read_config(kind: Any, source: Component, attention: str | None = None) -> dict[str, Any]:
    """The configuration of a component, as a plain table; `attention`: see `video_unet_config`."""
    return video_unet_config(source, attention) if kind is VideoUNet else load_config(kind, source)


def axis_sizes(row: Row, model: Model, config: Mapping[str, Any], requests: int) -> Sizes:
    """The size of every axis that the row's ports name, from the model's configurations and defaults."""
    video, defaults = row.name.startswith("video"), model.defaults
    vae = read_config(AutoencoderKL, model.video_vae if video else _part(model, "vae"))
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    pixels = (defaults.height, defaults.width) if video else defaults.first_frame_size
    sides = [side // factor for side in pixels]
    fixed = fixed_sizes(row, config)
    if row.kind is AutoencoderKL:
        height, width = spans(sides, 1)
        return {
            **fixed,
            "batch": Span(1, IMAGES_AT_ONCE if video else 1, IMAGES_AT_ONCE),
            "height": height,
            "width": width,
            "image_height": scaled(height, factor),
            "image_width": scaled(width, factor),
        }
    height, width = spans(sides, 2 ** (len(config["block_out_channels"]) - 1))
    guided = (defaults.guidance if video else defaults.first_frame_guidance) > 1
    encoder = model.video_text_encoder if video else _part(model, "text_encoder")
    encoder = hub.local(encoder, "config.json")
    text = CLIPTextConfig.from_pretrained(encoder.location, subfolder=encoder.subfolder)
    frames = {"frames": Span(2, defaults.frames, 2 * defaults.frames)} if video else {}
    return {
        **fixed,
        **frames,
        "batch": Span(1, 2 if guided else 1, 2 * requests),
        "height": height,
        "width": width,
        "tokens": text.max_position_embeddings,
    }


def spans(sides: list[int], step: int) -> list[Span]:
    """Per side: from half the smaller one to 5/4 of the larger one, so that either orientation fits."""
    low, high = -(-min(sides) // (2 * step)) * step, -(-5 * max(sides) // (4 * step)) * step
    return [Span(low, side, high, step) for side in sides]


def scaled(span: Span, factor: int) -> Span:
    return Span(*(factor * size for size in (span.min, span.opt, span.max, span.step)))
