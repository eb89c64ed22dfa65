"""The only file that reads or writes weights; knows the names of LAMP, HuViDPO and diffusers checkpoints."""

import copy
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from huvidpo.errors import CheckpointError
from huvidpo.lora import merge, split_lora

Module = TypeVar("Module", bound=nn.Module)
StrPath = str | Path

# The one rename table: (pattern, replacement), applied in order to every foreign tensor name.
RENAMES: tuple[tuple[str, str], ...] = (
    # peft and accelerate wrappers
    (r"^(?:module\.)?base_model\.model\.", ""),
    (r"\.base_layer\.", "."),
    # a plain convolution of the image UNet is the per-frame part of ours; LAMP's names already are ours
    (
        r"(^conv_in|^conv_out|\.conv1|\.conv2|\.conv_shortcut|samplers\.0\.conv)\.(weight|bias)$",
        r"\1.conv2d.\2",
    ),
)


def inflated_name(name: str) -> str:
    """Our name of a tensor named by diffusers' UNet2DConditionModel, by LAMP, or by peft around either."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_tensors(path: StrPath) -> dict[str, Tensor]:
    """Read tensors from a .safetensors file, or from .bin/.pt/.pth without running pickled code.

    Raises CheckpointError if the file is missing, damaged, or holds anything else than named tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} does not hold a flat table of named tensors")
    return dict(tensors)


def save_tensors(path: StrPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file all at once: a reader sees the old file or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        temporary.touch()
        mode = temporary.stat().st_mode  # of any new file; safetensors makes its own private
        save_file(plain, temporary, metadata=dict(metadata))
        temporary.chmod(mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_metadata(path: StrPath) -> dict[str, str]:
    """The metadata a .safetensors file was saved with, without reading its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read metadata from {path}: {error}") from error


def check_fits(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for a tensor whose name or shape is not one of `module`'s."""
    own = module.state_dict()
    unknown = [name for name in tensors if name not in own]
    if unknown:
        raise CheckpointError(f"{len(unknown)} tensors match nothing in the model: {listing(unknown)}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)}; the model has {list(own[name].shape)}"
            )


def load_strict(module: Module, tensors: Mapping[str, Tensor]) -> Module:
    """Fill `module` with exactly `tensors`; CheckpointError if a name is missing, unknown or misshapen."""
    missing = [name for name in module.state_dict() if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{len(missing)} tensors of the model are not in the checkpoint: {listing(missing)}"
        )
    check_fits(module, tensors)
    module.load_state_dict(tensors)
    return module


def listing(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def with_weights(base: Module, tensors: Mapping[str, Tensor]) -> Module:
    """A new module with `tensors` in place of base's of those names; all others are base's very storage.

    `base` is untouched. The new tensors take base's dtype and device. CheckpointError for a wrong name or
    shape.
    """
    check_fits(base, tensors)
    # New Parameter objects over the old storage: moving or casting the copy later leaves base alone.
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in base.parameters()}
    shared |= {id(buffer): buffer.detach() for buffer in base.buffers()}
    module = copy.deepcopy(base, shared)
    for name, tensor in tensors.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        old = getattr(owner, leaf)
        new = tensor.detach().to(old.device, old.dtype, copy=True)
        setattr(owner, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    return module


def changed_tensors(base: nn.Module, tuned: nn.Module) -> dict[str, Tensor]:
    """The tensors of `tuned` that differ from `base`'s: `with_weights(base, ...)` makes `tuned` of them."""
    own, new = base.state_dict(), tuned.state_dict()
    if own.keys() != new.keys():
        raise CheckpointError(
            f"the two models differ in their tensors: {listing(sorted(own.keys() ^ new.keys()))}"
        )
    return {name: tensor for name, tensor in new.items() if not torch.equal(own[name], tensor)}


def load_lamp(folder: StrPath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration, tensors under our names) of a LAMP or HuViDPO checkpoint.

    `folder` is the UNet's folder (config.json beside diffusion_pytorch_model.safetensors or .bin) or the
    pipeline folder whose `unet/` it is. Raises CheckpointError if a file is missing or damaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "unet").is_dir():
        folder = folder / "unet"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {folder / 'config.json'}: {error}") from error
    for suffix in ("safetensors", "bin"):
        weights = folder / f"diffusion_pytorch_model.{suffix}"
        if weights.is_file():
            return config, {inflated_name(name): tensor for name, tensor in load_tensors(weights).items()}
    raise CheckpointError(f"{folder} holds no diffusion_pytorch_model.safetensors or .bin")


def load_huvidpo_lora(unet: Module, path: StrPath, alpha: float = 32.0) -> Module:
    """`unet` with HuViDPO's LoRA file merged in: `model_weights_epoch_N.pth`, a peft state dict.

    W + alpha / rank * B A for each adapted layer; `alpha` is not in the file, 32 is the paper's. Full
    tensors in the file replace the model's. Raises CheckpointError if a name matches nothing or a half of a
    pair is missing.
    """
    lora, full = split_lora({inflated_name(name): tensor for name, tensor in load_tensors(path).items()})
    try:
        return with_weights(unet, full | merge({**unet.state_dict(), **full}, lora, alpha))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
