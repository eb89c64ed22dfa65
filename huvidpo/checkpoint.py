"""The only file that reads or writes weights; knows the names of LAMP, HuViDPO and diffusers checkpoints."""

import copy
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from huvidpo.errors import CheckpointError
from huvidpo.files import whole_file
from huvidpo.lora import merge, peft_names, split_lora

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
    except Exception as error:  # damaged pickles raise whatever the byte that is wrong makes of them
        raise CheckpointError(f"cannot read weights from {path}: {first_line(error)}") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} does not hold a flat table of named tensors")
    return dict(tensors)


def load_folder(folder: StrPath, stem: str = "diffusion_pytorch_model") -> dict[str, Tensor]:
    """The tensors of a network's folder in diffusers' layout: one file or shards, .safetensors or .bin, under
    its plain name or its fp16 one; the first of these that is there.

    Raises CheckpointError if none is, or if a shard or a tensor that its index names is not there.
    """
    folder = Path(folder)
    for suffix in ("safetensors", "bin"):
        for variant in ("", ".fp16"):
            single = folder / f"{stem}{variant}.{suffix}"
            if single.is_file():
                return load_tensors(single)
            # diffusers before 0.31 put the variant elsewhere in the name of the index
            for index in (f"{stem}.{suffix}.index{variant}.json", f"{stem}{variant}.{suffix}.index.json"):
                if (folder / index).is_file():
                    return _load_shards(folder / index)
    raise CheckpointError(f"{folder} holds no {stem}.safetensors or .bin, whole, in shards or as .fp16")


def _load_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index} holds no weight_map of tensor names to file names")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        tensors |= load_tensors(index.parent / Path(shard).name)
    if tensors.keys() != places.keys():
        differ = sorted(tensors.keys() ^ places.keys())
        raise CheckpointError(
            f"the shards of {index} and its weight_map differ in {len(differ)} tensors: {listing(differ)}; "
            "copy the whole folder again"
        )
    return tensors


def read_json(path: StrPath) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError for a file that is missing, damaged or another."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError naming the tensors of `what` that hold NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise CheckpointError(
            f"{what}: {len(bad)} tensors hold NaN or infinity: {listing(bad)}; the training diverged, the "
            "file is damaged, or the values are too large for the data type (float16 ends at 65504)"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, found without a copy of the tensor."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    low, high = tensor.detach().aminmax()
    return bool(low.isfinite() & high.isfinite())


def save_tensors(path: StrPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file all at once: a reader sees the old file or the new one, never half of it.

    Raises CheckpointError for a tensor that is not finite (a cast to float16 may overflow); the old file
    stays.
    """
    check_finite(tensors, f"{path} is not written")
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with whole_file(Path(path)) as part:
        try:
            save_file(plain, part, metadata=dict(metadata))
        except SafetensorError as error:  # of a disk, whose error number is in the text alone
            if found := re.search(r"os error (\d+)", str(error)):
                number = int(found[1])
                raise OSError(number, os.strerror(number), str(path)) from error
            raise
        _sort_header(part)


def _sort_header(path: Path) -> None:
    """Put the metadata of a safetensors file in order, which safetensors leaves to chance, so that equal runs
    write equal files.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size, "the same header, in another order, is no longer"
        file.seek(8)
        file.write(text.ljust(size))


def read_metadata(path: StrPath) -> dict[str, str]:
    """The metadata a .safetensors file was saved with, without reading its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read metadata from {path}: {first_line(error)}") from error


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
    check_finite(tensors, "the checkpoint")
    module.load_state_dict(tensors)
    return module


def listing(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def with_weights(base: Module, tensors: Mapping[str, Tensor]) -> Module:
    """A new module with `tensors` in place of base's of those names; all others are base's very storage.

    `base` is untouched. The new tensors take base's dtype and device. CheckpointError for a wrong name or
    shape, and for a value that is not finite in base's dtype.
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
        new = torch.empty_like(old, requires_grad=False).copy_(tensor.detach())  # in base's memory format
        check_finite({name: new}, "the weights")
        setattr(owner, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    return module


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under our names. Raises CheckpointError where two of them get one name."""
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = inflated_name(name)
        if new in ours:
            raise CheckpointError(f"{name}: another tensor of the file is also called {new} here; keep one")
        ours[new] = tensor
    return ours


def load_lamp(folder: StrPath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration, tensors under our names) of a LAMP or HuViDPO checkpoint.

    `folder` is the UNet's folder (config.json beside diffusion_pytorch_model.*, see `load_folder`) or the
    pipeline folder whose `unet/` it is. Raises CheckpointError if a file is missing or damaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "unet").is_dir():
        folder = folder / "unet"
    return read_json(folder / "config.json"), renamed(load_folder(folder))


def adapted_tensors(unet: nn.Module, path: StrPath, alpha: float | None = None) -> dict[str, Tensor]:
    """What a file of tensors, of adapters or of both makes of `unet`: the tensors to put in place of its own.

    Adapters may be named as peft does (HuViDPO's `model_weights_epoch_N.pth`, a state dict of the whole
    network or of its adapters alone), or as kohya and diffusers do. Each adapted layer becomes
    W + alpha / rank * B A with `alpha`, else the file's own, else 32 for peft's names (the paper's, which its
    files do not say) and the rank for the others'. Raises CheckpointError if a name matches nothing or a half
    of a pair is missing.
    """
    try:
        weights = [name for name in unet.state_dict() if name.endswith(".weight")]
        tensors, alphas, default = peft_names(renamed(load_tensors(path)), weights)
        lora, full = split_lora(tensors)
        check_fits(unet, full)
        if not lora:
            return full
        if alpha is not None:
            alphas, default = {}, alpha
        return full | merge({**unet.state_dict(), **full}, lora, default, alphas)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_huvidpo_lora(unet: Module, path: StrPath, alpha: float | None = None) -> Module:
    """`unet` with a file of adapters merged in, see `adapted_tensors`."""
    return with_weights(unet, adapted_tensors(unet, path, alpha))
