"""The parts of a catalog model, read from disk or hub onto a device."""

import dataclasses
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from huvidpo.catalog import Component, Model
from huvidpo.checkpoint import load_lamp, load_tensors, with_weights
from huvidpo.errors import CheckpointError
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
        folder = Path(part.location) / part.subfolder
        if not folder.is_dir():
            raise CheckpointError(f"model {model.name!r}: its {name} is missing, there is no folder {folder}")


def load_vae(source: Component, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """SDXL's VAE overflows in float16: one that says `force_upcast` stays in float32."""
    upcast = AutoencoderKL.load_config(source.location, subfolder=source.subfolder).get("force_upcast", True)
    dtype = torch.float32 if upcast else dtype
    return AutoencoderKL.from_pretrained(source.location, subfolder=source.subfolder, dtype=dtype).to(device)


def load_video_unet(source: Component, dtype: torch.dtype) -> VideoUNet:
    """A VideoUNet, a UNet2DConditionModel (inflated) or a LAMP checkpoint: the config says which."""
    kind = VideoUNet.load_config(source.location, subfolder=source.subfolder).get("_class_name")
    if kind == "UNet3DConditionModel":
        unet = VideoUNet.from_lamp(Path(source.location) / source.subfolder)
        return nn.Module.to(unet, dtype)  # diffusers' own .to warns at every cast
    image_unet = kind == "UNet2DConditionModel"
    loader = UNet2DConditionModel if image_unet else VideoUNet
    unet = loader.from_pretrained(source.location, subfolder=source.subfolder, dtype=dtype)
    return VideoUNet.from_2d(unet) if image_unet else unet


def load_category(base: VideoUNet, weights: Path) -> VideoUNet:
    """`base` with a category's weights, a file or a folder in LAMP's layout; `base` if there are none."""
    if not weights.exists():
        logger.warning("no weights at %s: the base model is used", weights)
        return base
    return with_weights(base, load_lamp(weights)[1] if weights.is_dir() else load_tensors(weights))
