"""The parts of a catalog model, read from disk or hub onto a device: each whole, or refused.

The libraries fill a tensor that a file lacks with random numbers, and only log it. Here such a part is an
error: every network of theirs comes through `load_part`.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from huvidpo import hub
from huvidpo.catalog import Component, Model
from huvidpo.checkpoint import (
    Module,
    adapted_tensors,
    check_finite,
    check_fits,
    first_line,
    listing,
    load_lamp,
    read_json,
    read_metadata,
    with_weights,
)
from huvidpo.errors import CheckpointError, HuViDPOError
from huvidpo.schedule import make_scheduler
from huvidpo.strength import at_strength
from huvidpo.unet import VideoUNet, attention_mode, fingerprints, network_settings, video_config

logger = logging.getLogger(__name__)


def device_and_dtype(
    device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.float16 if device.type == "cuda" else torch.float32)


def to_device(module: Module, device: torch.device) -> Module:
    """`module` on `device`; on CUDA with the weights of its convolutions channels last.

    That is how the UNets' activations lie there: else every convolution turns its input around.
    """
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    return nn.Module.to(module, device, memory_format=layout)  # type: ignore[call-overload]


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
    source = hub.local(source, kind.config_name)
    with readable(kind.__name__, source):
        return dict(kind.load_config(source.location, subfolder=source.subfolder).items())


def load_part(kind: Any, source: Component, dtype: torch.dtype | None = None, **settings: Any) -> Any:
    """A network of diffusers or transformers, on the CPU, with exactly the tensors of its files.

    `dtype` None: that of `kind`'s library; a half takes the files in float16 where there are both.
    `settings` go before those of its config. Raises CheckpointError
    for files that are damaged or miss a tensor, and for a tensor that the network has not, that is of another
    shape or not finite.
    """
    name, half = kind.__name__, is_half(dtype)
    options = {} if dtype is None else {"dtype": dtype}
    source = hub.local(source, hub.NETWORK, half)
    with readable(name, source):
        found = hub.weights([file.name for file in folder_of(source).iterdir()], half)
        network, report = kind.from_pretrained(
            source.location,
            subfolder=source.subfolder,
            variant=found[0] or None if found else None,
            output_loading_info=True,
            **options,
            **settings,
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


def is_half(dtype: torch.dtype | None) -> bool:
    return dtype in (torch.float16, torch.bfloat16)


def load_first_frame_pipe(model: Model, device: torch.device, dtype: torch.dtype) -> Any:
    """The StableDiffusionXLPipeline, or StableDiffusionPipeline, of `model` with its networks on `device`.

    Raises CheckpointError as `load_part`, and for a pipeline of another class.
    """
    whole, encoders = model.first_frame, first_frame_encoders(model)
    folders = {name: whole.within(name) for name in ("vae", "unet", "scheduler")}
    parts: dict[str, Any] = {
        "vae": load_vae(folders["vae"], device, dtype),
        "unet": load_part(UNet2DConditionModel, model.first_frame_unet or folders["unet"], dtype),
    }
    for number, kind in encoders.items():
        encoder = load_part(kind, whole.within(f"text_encoder{number}"), dtype)
        tokenizer = load_tokenizer(whole.within(f"tokenizer{number}"), encoder)
        parts |= {f"text_encoder{number}": encoder, f"tokenizer{number}": tokenizer}
    for name in ("unet", *(f"text_encoder{number}" for number in encoders)):
        to_device(parts[name], device)
    if len(encoders) == 1:
        scheduler = make_scheduler(load_scheduler_config(folders["scheduler"]), "ddim", 1)
        return StableDiffusionPipeline(
            **parts,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    hub.local(folders["scheduler"], "scheduler_config.json")
    root = hub.local(whole, "model_index.json")
    with readable("StableDiffusionXLPipeline", whole):
        return StableDiffusionXLPipeline.from_pretrained(root.location, add_watermarker=False, **parts)


def first_frame_encoders(model: Model) -> dict[str, Any]:
    """The class of each text encoder of the first-frame pipeline, by the end of its name: "", "_2"."""
    root = hub.local(model.first_frame, "model_index.json")
    kind = read_json(folder_of(root) / "model_index.json").get("_class_name")
    if kind == "StableDiffusionXLPipeline":
        return {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
    if kind == "StableDiffusionPipeline":
        return {"": CLIPTextModel}
    raise CheckpointError(
        f"the first-frame pipeline at {folder_of(root)} is a {kind}; known are StableDiffusionXLPipeline and "
        "StableDiffusionPipeline"
    )


def fetch(model: Model, dtype: torch.dtype, stages: Sequence[str] = ("first_frame", "video")) -> None:
    """Have what `stages` of `model` need from the hub on this machine, the size of it all said first. Raises
    CheckpointError as `hub.fetch`.
    """
    hub.fetch(parts_of(model, dtype, stages))


def parts_of(model: Model, dtype: torch.dtype, stages: Sequence[str]) -> list[hub.Part]:
    """What `stages` of `model` need. The video UNet in full precision: its hash is what weights of categories
    are of.
    """
    half = is_half(dtype)
    parts: list[hub.Part] = []
    if "first_frame" in stages:
        where = model.first_frame
        for number in first_frame_encoders(model) if not Path(where.location).is_absolute() else ():
            parts.append(hub.Part(where.within(f"text_encoder{number}"), hub.NETWORK, half))
            parts.append(hub.Part(where.within(f"tokenizer{number}"), hub.TOKENIZER))
        parts.append(hub.Part(model.first_frame_unet or where.within("unet"), hub.NETWORK, half))
        parts += _vae_parts(where.within("vae"), dtype)
        parts.append(hub.Part(where.within("scheduler"), DDIMScheduler.config_name))
    if "video" in stages:
        parts.append(hub.Part(model.video_unet, hub.NETWORK))
        parts.append(hub.Part(model.video_text_encoder, hub.NETWORK, half))
        parts.append(hub.Part(model.video_tokenizer, hub.TOKENIZER))
        parts += _vae_parts(model.video_vae, dtype)
        parts.append(hub.Part(model.video_scheduler, DDIMScheduler.config_name))
    return parts


def _vae_parts(source: Component, dtype: torch.dtype) -> list[hub.Part]:
    if Path(source.location).is_absolute():
        return []
    half = is_half(vae_dtype(load_config(AutoencoderKL, source), dtype))
    return [hub.Part(source, hub.NETWORK, half)]


def load_tokenizer(source: Component, text_encoder: Any) -> CLIPTokenizer:
    """The tokenizer of `text_encoder`, a CLIP of transformers: it pads to that one's context.

    Raises CheckpointError for damaged files and for another vocabulary than the text encoder's: transformers
    makes an empty one of missing files.
    """
    source = hub.local(source, hub.TOKENIZER)
    with readable("CLIPTokenizer", source):
        tokenizer = CLIPTokenizer.from_pretrained(source.location, subfolder=source.subfolder)
    config = getattr(text_encoder.config, "text_config", text_encoder.config)
    last = max(tokenizer.get_vocab().values())
    if len(tokenizer) != config.vocab_size or last >= config.vocab_size:
        raise CheckpointError(
            f"the tokenizer at {folder_of(source)} has {len(tokenizer)} tokens, up to the id {last}, "
            f"its text encoder {config.vocab_size}; give the tokenizer that came with the text encoder"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return tokenizer


def load_scheduler_config(source: Component) -> dict[str, Any]:
    """A scheduler's config as it stands in its file, for `schedule.make_scheduler`.

    Raises CheckpointError for one that no sampler can follow, and for one that does not say its betas: a
    scheduler's defaults are no model's.
    """
    config = load_config(DDIMScheduler, source)
    missing = [name for name in ("beta_schedule", "beta_start", "beta_end") if name not in config]
    if missing and not config.get("trained_betas"):
        raise CheckpointError(
            f"the scheduler at {folder_of(source)} does not say {', '.join(missing)}; write what the model "
            "was trained with into its scheduler_config.json"
        )
    with readable("the scheduler", source):
        make_scheduler(config, "ddim", 1)
    return config


def vae_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """SDXL's VAE overflows in float16 and says `force_upcast`: it stays in float32. Those of Stable Diffusion
    1.x and 2.x, which say nothing, run in float16; in bfloat16, whose steps show in a picture, one must say
    that it may.
    """
    upcast = config.get("force_upcast", dtype == torch.bfloat16)
    return torch.float32 if upcast else dtype


def load_vae(source: Component, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """In the dtype that `vae_dtype` gives."""
    dtype = vae_dtype(load_config(AutoencoderKL, source), dtype)
    return load_part(AutoencoderKL, source, dtype).to(device)


def video_unet_config(source: Component, attention: str | None = None) -> dict[str, Any]:
    """VideoUNet's settings for a VideoUNet, an image UNet to inflate or a LAMP checkpoint.

    `attention`: the mode of a checkpoint whose config does not say it (else it is refused), and of an image
    UNet, which has none: HuViDPO's, if None.
    """
    with readable("the video UNet", source):
        config = load_config(VideoUNet, source)
        if config.get("_class_name") == "UNet2DConditionModel":
            config["attention_mode"] = attention or "first_prev"
        config["attention_mode"] = attention_mode(config, attention, folder_of(source))
        return video_config(config)


def load_video_unet(source: Component, dtype: torch.dtype, attention: str | None = None) -> VideoUNet:
    """A VideoUNet, a UNet2DConditionModel (inflated) or a LAMP checkpoint: the config says which.

    `attention`: see `video_unet_config`.
    """
    with readable("the video UNet", source):
        kind = load_config(VideoUNet, source).get("_class_name")
        mode = video_unet_config(source, attention)["attention_mode"]
        if kind == "UNet3DConditionModel":
            folder = folder_of(hub.local(source, hub.NETWORK))
            unet = nn.Module.to(VideoUNet.from_lamp(folder, mode), dtype)  # diffusers' own .to warns
            check_finite(unet.state_dict(), f"the video UNet at {folder}")
            return unet
        if kind == "UNet2DConditionModel":
            return VideoUNet.from_2d(load_part(UNet2DConditionModel, source, dtype), mode)
        return load_part(VideoUNet, source, dtype, attention_mode=mode)


def load_category(base: VideoUNet, weights: Path, attention: str | None = None) -> VideoUNet:
    """`base` (float32) with a category's weights, see `load_categories`; `base` if there are none."""
    check_lineage(base, [weights])
    tensors = category_tensors(base, weights, attention)
    return with_weights(base, tensors) if tensors else base


def load_categories(
    base: VideoUNet,
    weights: Mapping[str, Path],
    attention: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, VideoUNet]:
    """One network per category, in `dtype` on `device`; they share the tensors that are base's.

    `weights`: of a category, a file of tensors or adapters (`checkpoint.adapted_tensors`) or a folder in
    LAMP's layout; one without any is `base`, with a warning. `base` is float32 and on the CPU, where its hash
    is that of its files and adapters are merged, and ends up in `dtype` on `device` itself. `attention`: the
    mode of folders whose config does not say it. Raises CheckpointError for weights that do not fit `base`,
    were trained on another, or attend to other frames.
    """
    check_lineage(base, weights.values())
    changes = {
        name: {key: tensor.to(device) for key, tensor in _changes(base, file, attention, dtype).items()}
        for name, file in weights.items()
    }
    to_device(nn.Module.to(base, dtype), device)
    check_finite(base.state_dict(), "the video UNet")
    return {name: with_weights(base, tensors) if tensors else base for name, tensors in changes.items()}


def load_beside(
    resident: VideoUNet, source: Component, weights: Path, attention: str | None, strength: float = 1.0
) -> VideoUNet:
    """One more network over the base that `load_categories` left `resident`, with the weights of a category.

    `source` is where that base came from: it is read again, in float32, on the CPU. `strength`: of the
    category's preferences, see strength.py. Raises as `load_categories`, and where there are no weights.
    """
    if not weights.exists():
        raise CheckpointError(f"there are no weights at {weights}")
    base = load_video_unet(source, torch.float32, attention)
    check_lineage(base, [weights])
    tensors = _changes(base, weights, attention, resident.dtype, strength)
    return with_weights(resident, tensors) if tensors else resident


def _changes(
    base: VideoUNet, file: Path, attention: str | None, dtype: torch.dtype, strength: float = 1.0
) -> dict[str, Tensor]:
    """The tensors, in `dtype`, in which a category differs from `base`, which is float32 and on the CPU."""
    tensors = category_tensors(base, file, attention)
    if strength != 1:
        tensors = at_strength(tensors, file, strength)
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    own = base.state_dict()
    return {key: tensor for key, tensor in tensors.items() if not torch.equal(tensor, own[key].to(dtype))}


def category_tensors(base: VideoUNet, weights: Path, attention: str | None = None) -> dict[str, Tensor]:
    """The tensors that a category puts in place of those of `base`; none, warned of, without a file."""
    if weights.is_dir():
        config, tensors = load_lamp(weights)
        mode = attention_mode(config, attention, weights)
        check_settings(base, config | {"attention_mode": mode}, weights)
        check_fits(base, tensors)
        return tensors
    if weights.is_file():
        if is_lora_over_stage1(weights):
            raise CheckpointError(
                f"{weights} is a LoRA over stage-1 weights: merge both with `python -m training.merge` first"
            )
        return adapted_tensors(base, weights)
    if twin := next((path for path in weights.parent.glob(f"{weights.stem}*") if is_weights(path)), None):
        raise CheckpointError(
            f"there is no {weights}, but there is {twin.name}: name it by `weights` in the category's entry "
            "of the catalog"
        )
    logger.warning("no weights at %s: the base model is used", weights)
    return {}


def is_weights(path: Path) -> bool:
    return path.is_dir() or path.suffix in (".safetensors", ".pth", ".pt", ".bin")


def is_lora_over_stage1(file: Path) -> bool:
    """Whether `training.dpo` wrote it, and `training.merge` did not."""
    said = read_metadata(file) if file.suffix == ".safetensors" else {}
    return "stage1" in said and "lora" not in said


def check_settings(base: VideoUNet, config: Mapping[str, Any], weights: Path) -> None:
    """Raise CheckpointError naming the settings in which the network of `config` is not that of `base`."""
    with readable("the category", Component(str(weights))):
        ours, theirs = network_settings(base.config), network_settings(config)
    differ = [
        f"{name} {theirs[name]} (the model's {ours[name]})" for name in ours if ours[name] != theirs[name]
    ]
    if differ:
        raise CheckpointError(
            f"{weights}: its config.json is of another network than the model's, in {', '.join(differ)}; use "
            "the model it was trained on, or give that an entry of its own in the catalog"
        )


def check_lineage(base: VideoUNet, files: Iterable[Path]) -> None:
    """Raise CheckpointError for a file whose metadata names another base than `base` (float32), or another
    attention. A file from elsewhere says nothing.
    """
    own = [file for file in files if file.suffix == ".safetensors" and file.is_file()]
    said = {file: read_metadata(file) for file in own}
    mode = base.config.attention_mode
    # once for all files: it reads the whole network. Older files have the hash of the tensors alone.
    known = fingerprints(base) if any("base" in facts for facts in said.values()) else ("", "")
    for file, facts in said.items():
        if facts.get("attention_mode", mode) != mode:
            raise CheckpointError(
                f"{file} was trained with attention {facts['attention_mode']}, the model has {mode}: use the "
                "model it was trained on"
            )
        if "base" in facts and facts["base"] not in known:
            raise CheckpointError(
                f"{file} was trained on other weights: its base is {facts['base'][:12]}..., here it is "
                f"{known[0][:12]}...; give the files it was trained from"
            )
