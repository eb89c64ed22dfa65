"""Backends called like the module they replace, so that a pipeline never asks which one it holds.

    torch         the modules as they are
    openvino      CPU; the UNets, converted at start                                     cpu_engines.py
    onnxruntime   CPU; the UNets, from the graphs of `export.build --backend onnxruntime`  cpu_engines.py
    tensorrt      CUDA; UNets and VAE decoders, from the plans of `export.build`           gpu_engines.py
    auto          the fastest that works here, else torch, with a warning that says why

A `Run` is a function of tensors: a network's inputs, in the order of its row in export/profiles.py, to its
output. An engine gives it the network's own signature.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from huvidpo.attention import KeysValues
from huvidpo.config import BACKENDS
from huvidpo.engines.manifest import Port
from huvidpo.errors import EngineError, InvalidRequest

logger = logging.getLogger(__name__)

Run = Callable[..., Tensor]
OnLoad = Callable[[float], None]
"""told the seconds that an engine took to load, or to compile for a new shape, while a batch waited"""
Modules = dict[str, dict[str, Any]]
"""network -> category ("" for networks that serve all) -> the module, or what stands in for it"""


@dataclass(frozen=True)
class Place:
    """What engines are made for."""

    model: str  # of the catalog
    device: torch.device
    lines: int  # of a batch: requests, twice as many with guidance
    frames: int
    height: int  # latent pixels
    width: int  # latent pixels
    tokens: int  # of the text encoder's context
    on_load: OnLoad = lambda seconds: None


class Engine:
    """Holds what the pipelines ask of a network beside calling it."""

    def __init__(self, module: Any, run: Run):
        self.config, self.dtype, self.device = module.config, module.dtype, module.device
        self.run = run


class VideoEngine(Engine):
    """VideoUNet. Projects the text itself, each step: less than 0.1 % of the work."""

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        text_kv: Sequence[KeysValues] | None = None,
    ) -> Tensor:
        text = text_kv[0][0] if text_kv is not None else encoder_hidden_states
        if text is None:
            raise ValueError("give encoder_hidden_states [B, L, D], or text_kv from project_text")
        return self.run(sample, per_line(timestep, sample), text)

    def project_text(self, encoder_hidden_states: Tensor) -> list[KeysValues]:
        """In the form of VideoUNet's, so that callers can pick rows; it is the text as it came."""
        return [(encoder_hidden_states, encoder_hidden_states)]


class FirstFrameEngine(Engine):
    """The UNet of diffusers' SDXL pipeline."""

    def __init__(self, module: Any, run: Run):
        super().__init__(module, run)
        self.add_embedding = module.add_embedding  # the pipeline checks its width

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        added_cond_kwargs: Mapping[str, Tensor],
        timestep_cond: None = None,
        cross_attention_kwargs: None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        added = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"].to(sample.dtype)
        out = self.run(sample, per_line(timestep, sample), encoder_hidden_states, *added)
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)


class DecoderEngine(Engine):
    """A VAE whose decoder runs elsewhere; the encoder sees one image per clip and stays."""

    def __init__(self, module: Any, run: Run):
        super().__init__(module, run)
        self.encode = module.encode

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        out = self.run(z)
        return DecoderOutput(sample=out) if return_dict else (out,)


KINDS: dict[str, type[Engine]] = {
    "video_unet": VideoEngine,
    "first_frame_unet": FirstFrameEngine,
    "video_vae_decoder": DecoderEngine,
    "first_frame_vae_decoder": DecoderEngine,
}


UNETS = ("video_unet", "first_frame_unet")
NETWORKS = {"openvino": UNETS, "onnxruntime": UNETS, "tensorrt": tuple(KINDS)}
"""what each backend runs; the rest takes milliseconds and stays with torch"""

LIMITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""largest |engine - torch| / |torch|, Euclidean norms"""


def per_line(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """A timestep, or one per line of the batch, as float32 [B]."""
    return torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))


def call_module(network: str, module: Any, inputs: Sequence[Tensor]) -> Tensor:
    """What an engine's `run` computes, by the module itself."""
    if network == "video_unet":
        return module(*inputs)
    if network == "first_frame_unet":
        added = {"text_embeds": inputs[3], "time_ids": inputs[4]}
        return module(*inputs[:3], added_cond_kwargs=added, return_dict=False)[0]
    return module.decode(*inputs, return_dict=False)[0]


def sample_inputs(network: str, config: Any, place: Place) -> tuple[Tensor, ...]:
    """Random inputs, float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    lines, size = place.lines, (place.height, place.width)
    if KINDS[network] is DecoderEngine:
        return (normal(1, config.latent_channels, *size),)
    text = normal(lines, place.tokens, config.cross_attention_dim)
    timestep = torch.linspace(999, 1, lines)
    if network == "video_unet":
        return normal(lines, config.in_channels, place.frames, *size), timestep, text
    ids = 6  # original size, crop, target size
    pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
    return (
        normal(lines, config.in_channels, *size),
        timestep,
        text,
        normal(lines, pooled),
        torch.full((lines, ids), 64.0),
    )


def most_lines(network: Any) -> int | None:
    """Lines of a batch that a network takes at most; None for a module, or an engine of any shape."""
    manifest = getattr(getattr(network, "run", None), "manifest", None)
    return manifest.inputs[0].max[0] if manifest else None


def check_inputs(ports: Sequence[Port], inputs: Sequence[Tensor]) -> None:
    """Raises InvalidRequest for a shape outside the profile, EngineError for another dtype."""
    for port, x in zip(ports, inputs, strict=True):
        if not port.allows(x.shape):
            low, high = (" x ".join(map(str, shape)) for shape in (port.min, port.max))
            came = " x ".join(map(str, x.shape))
            raise InvalidRequest(
                f"{port.name}: got {came}, this engine takes {low} to {high}: ask for another size, fewer "
                "frames or a smaller batch, or serve with HUVIDPO_BACKEND=torch"
            )
        if x.dtype != getattr(torch, port.dtype):
            raise EngineError(
                f"{port.name}: got {x.dtype}, this engine takes {port.dtype}: set HUVIDPO_DTYPE to the "
                "precision the engine was built in"
            )


def place_modules(backend: str, modules: Modules, place: Place) -> tuple[str, Modules]:
    """The backend used, and `modules` with engines in place of those it runs.

    `auto` tries what suits the device and falls back on torch; of any other name EngineError says why it
    cannot be had.
    """
    if backend not in BACKENDS:
        raise EngineError(f"backend: got {backend!r}, allowed: {', '.join(BACKENDS)}")
    if backend == "torch":
        return backend, modules
    wanted = backend
    if wanted == "auto":
        wanted = "tensorrt" if place.device.type == "cuda" else "openvino"
    try:
        return wanted, _engines(wanted, modules, place)
    except EngineError as error:
        if backend != "auto":
            raise
        logger.warning("%s: torch serves instead of %s: %s", place.model, wanted, error)
        return "torch", modules


def _engines(backend: str, modules: Modules, place: Place) -> Modules:
    _check_device(backend, place)
    if backend == "tensorrt":
        from huvidpo.engines.tensorrt import tensorrt as make
    elif backend == "openvino":
        from huvidpo.engines.openvino import check_memory
        from huvidpo.engines.openvino import openvino as make

        check_memory([module for network in UNETS for module in modules.get(network, {}).values()])
    else:
        from huvidpo.engines.openvino import onnxruntime as make
    return {
        network: _of_network(network, same, make, place) if network in NETWORKS[backend] else same
        for network, same in modules.items()
    }


def _of_network(
    network: str, same: dict[str, Any], make: Callable[..., Run], place: Place
) -> dict[str, Engine]:
    """Categories that share a module share its engine. The first engine is proved; others load when used."""
    engines: dict[int, Engine] = {}
    for category, module in same.items():
        if id(module) not in engines:
            run = make(network, category, module, place)
            if not engines:
                prove(network, run, module, place)
            engines[id(module)] = KINDS[network](module, run)
    return {category: engines[id(module)] for category, module in same.items()}


@torch.no_grad()
def prove(network: str, run: Run, module: Any, place: Place) -> None:
    """Run the network once by both, which also warms the engine up. Raises EngineError if they differ."""
    started = time.monotonic()
    inputs = sample_inputs(network, module.config, place)
    inputs = tuple(x.to(place.device, torch.float32 if x.ndim == 1 else module.dtype) for x in inputs)
    expected, got = call_module(network, module, inputs).float(), run(*inputs).float()
    error = ((got - expected).norm() / expected.norm()).item()
    logger.info("%s: differs from torch by %.1e, %.1f s", network, error, time.monotonic() - started)
    limit = LIMITS[module.dtype]
    if not error <= limit:  # nan is no less than it
        raise EngineError(
            f"the engine of {network} differs from torch by {error:.1e}, allowed are {limit:.0e}: "
            "serve with HUVIDPO_BACKEND=torch, or in another HUVIDPO_DTYPE"
        )


def _check_device(backend: str, place: Place) -> None:
    needed = "cuda" if backend == "tensorrt" else "cpu"
    if place.device.type != needed:
        raise EngineError(
            f"{backend} runs on {needed}, the device is {place.device}: set HUVIDPO_DEVICE={needed}, "
            "or HUVIDPO_BACKEND=auto"
        )
