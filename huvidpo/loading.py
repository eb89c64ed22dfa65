"""The parts of a catalog model, read from disk or hub onto a device: each whole, or refused.

The libraries fill a tensor that a file lacks with random numbers, and only log it. Here such a part is an
error: every network of theirs comes through `load_part`.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from huvidpo.catalog import Component, Model
from huvidpo.checkpoint import (
    adapted_tensors,
    check_finite,
    first_line,
    listing,
    load_lamp,
    with_weights,
)
from huvidpo.errors import CheckpointError, HuViDPOError
from huvidpo.unet import VideoUNet

logger = logging.getLogger(__name__)


def device_and_dtype(
    device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.float16 if device.type == "cuda" else torch.float32)


def check_present(model: Model) -> None:
    """Raises CheckpointError for a local part of `model` that is not there: the hub would be asked for it."""
    parts = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    for name, part in parts.items():
        if not isinstance(part, Component) or not Path(part.location).is_absolute():
            continue
        if not folder_of(part).is_dir():
            raise CheckpointError(
                f"model {model.name!r}: its {name} is missing, there is no folder {folder_of(part)}"
            )


def folder_of(source: Component) -> Path:
    """Where a local part lies."""
    return Path(source.location) / source.subfolder


@contextlib.contextmanager
def readable(what: str, source: Component) -> Iterator[None]:
    """Inside, other libraries read `source`; what they raise at broken files becomes a CheckpointError."""
    try:
        yield
    except HuViDPOError:
        raise
    except Exception as error:  # of any kind: they parse what people downloaded
        raise CheckpointError(
            f"{what} at {folder_of(source)} cannot be loaded: {first_line(error)}"
        ) from error


def load_config(kind: Any, source: Component) -> dict[str, Any]:
    """The config of a part of diffusers' class `kind`, as it stands in its file."""
    with readable(kind.__name__, source):
        return dict(kind.load_config(source.location, subfolder=source.subfolder).items())


def load_part(kind: Any, source: Component, dtype: torch.dtype | None = None) -> Any:
    """A network of diffusers or transformers, on the CPU, with exactly the tensors of its files.

    `dtype` None: that of `kind`'s library. Raises CheckpointError for files that are damaged or miss a
    tensor, hold one that the network has not, or one of another shape or that is not finite.
    """
    name = kind.__name__
    options = {} if dtype is None else {"dtype": dtype}
    with readable(name, source):
        network, report = kind.from_pretrained(
            source.location,
            subfolder=source.subfolder,
            variant=_variant(source),
            output_loading_info=True,
            **options,
        )
    at = f"{name} at {folder_of(source)}"
    for what, trouble in (
        ("missing_keys", "are missing in its files"),
        ("unexpected_keys", "of its files match nothing in it"),
        ("mismatched_keys", "have another shape in its files"),
    ):
        if names := sorted(map(str, report[what])):
            raise CheckpointError(
                f"{at}: {len(names)} tensors {trouble}: {listing(names)}; its config.json and its weights "
                "must be of one model"
            )
    check_finite(network.state_dict(), at)
    return network


def _variant(source: Component) -> str | None:
    """ "fp16" for a local folder that has its weights by no other name."""
    folder = folder_of(source)
    names = [file.name for suffix in ("safetensors", "bin") for file in folder.glob(f"*.{suffix}")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def load_tokenizer(source: Component, text_encoder: Any) -> CLIPTokenizer:
    """The tokenizer of `text_encoder`, a CLIP of transformers: it pads to that one's context.

    Raises CheckpointError for damaged files and for another vocabulary than the text encoder's: transformers
    makes an empty one of missing files.
    """
    with readable("CLIPTokenizer", source):
        tokenizer = CLIPTokenizer.from_pretrained(source.location, subfolder=source.subfolder)
    config = getattr(text_encoder.config, "text_config", text_encoder.config)
    if len(tokenizer) != config.vocab_size:
        raise CheckpointError(
            f"the tokenizer at {folder_of(source)} has {len(tokenizer)} tokens, its text encoder "
            f"{config.vocab_size}; give the tokenizer that came with the text encoder"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return tokenizer


def load_scheduler_config(source: Component) -> dict[str, Any]:
    """A scheduler's config as it stands in its file, for `schedule.make_scheduler`.

    Raises CheckpointError for one that does not say its betas: a scheduler's defaults are no model's.
    """
    config = load_config(DDIMScheduler, source)
    missing = [name for name in ("beta_schedule", "beta_start", "beta_end") if name not in config]
    if missing and not config.get("trained_betas"):
        raise CheckpointError(
            f"the scheduler at {folder_of(source)} does not say {', '.join(missing)}; write what the model "
            "was trained with into its scheduler_config.json"
        )
    return config


def vae_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """SDXL's VAE overflows in float16: one that says `force_upcast`, or nothing, stays in float32."""
    return torch.float32 if config.get("force_upcast", True) else dtype


def load_vae(source: Component, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """In the dtype that `vae_dtype` gives."""
    dtype = vae_dtype(load_config(AutoencoderKL, source), dtype)
    return load_part(AutoencoderKL, source, dtype).to(device)


def load_video_unet(source: Component, dtype: torch.dtype) -> VideoUNet:
    """A VideoUNet, a UNet2DConditionModel (inflated) or a LAMP checkpoint: the config says which."""
    with readable("the video UNet", source):
        kind = load_config(VideoUNet, source).get("_class_name")
        if kind == "UNet3DConditionModel":
            unet = nn.Module.to(VideoUNet.from_lamp(folder_of(source)), dtype)  # diffusers' own .to warns
            check_finite(unet.state_dict(), f"the video UNet at {folder_of(source)}")
            return unet
        if kind == "UNet2DConditionModel":
            return VideoUNet.from_2d(load_part(UNet2DConditionModel, source, dtype))
        return load_part(VideoUNet, source, dtype)


def load_category(base: VideoUNet, weights: Path) -> VideoUNet:
    """`base` with a category's weights, a file or a folder in LAMP's layout; `base` if there are none."""
    if not weights.exists():
        logger.warning("no weights at %s: the base model is used", weights)
        return base
    return with_weights(base, load_lamp(weights)[1] if weights.is_dir() else adapted_tensors(base, weights))
