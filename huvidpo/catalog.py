"""Models, categories and styles: data files, read and checked once.

The built-in entries are `huvidpo/data/*.toml`. The folder named by the environment variable HUVIDPO_CATALOG
may hold more `*.toml` files of the same form; an entry there replaces the built-in one of its name.

A component of a model is written `{ path = "...", subfolder = "..." }` for a local folder or
`{ repo = "owner/name", subfolder = "..." }` for the model hub. Relative paths resolve against the folder
named by HUVIDPO_WEIGHTS where they exist there, else against the project root; a repo that exists as
`$HUVIDPO_WEIGHTS/owner/name` is read from there.
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huvidpo.config import ATTENTION_MODES, SamplingOptions
from huvidpo.errors import CatalogError, InvalidRequest

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = "tiny"
_SECTIONS = ("models", "categories", "styles")
_VIDEO_PARTS = ("unet", "scheduler", "text_encoder", "tokenizer", "vae")
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Component:
    """Where one part of a model lives: `location` is an absolute folder or a hub id."""

    location: str
    subfolder: str = ""


@dataclass(frozen=True)
class Model:
    """A pair of first-frame and video models, and the sampling options measured for it."""

    name: str
    description: str
    first_frame: Component  # a StableDiffusionXLPipeline folder
    first_frame_unet: Component | None  # replaces that pipeline's UNet (a Diffusion-DPO one)
    video_unet: Component  # a VideoUNet, a UNet2DConditionModel (inflated on load) or a LAMP checkpoint
    video_scheduler: Component
    video_text_encoder: Component
    video_tokenizer: Component
    video_vae: Component
    categories: Path  # folder of the categories' weights
    defaults: SamplingOptions
    attention_mode: str | None = None  # of checkpoints that do not say theirs, and of image UNets inflated


@dataclass(frozen=True)
class Category:
    """A kind of motion. `weights`: a file, or a folder in LAMP's layout, in a model's `categories`."""

    name: str
    motion_prompt: str
    weights: str


@dataclass(frozen=True)
class Style:
    """A look: `template` contains `{prompt}`; `negative` is used when a request brings no negative prompt."""

    name: str
    template: str
    negative: str = ""

    def apply(self, prompt: str) -> str:
        """The full prompt given to the text encoders."""
        return self.template.replace("{prompt}", prompt.strip())


@dataclass(frozen=True)
class Catalog:
    models: dict[str, Model]
    categories: dict[str, Category]
    styles: dict[str, Style]

    def model(self, name: str) -> Model:
        """Raises InvalidRequest listing the known names, as `category` and `style` do."""
        return _look_up(self.models, "model", name)

    def category(self, name: str) -> Category:
        return _look_up(self.categories, "category", name)

    def style(self, name: str) -> Style:
        return _look_up(self.styles, "style", name)


def load_catalog() -> Catalog:
    """The built-in catalog and what HUVIDPO_CATALOG adds. Raises CatalogError naming file and entry."""
    folders = [Path(__file__).parent / "data"]
    if extra := os.environ.get("HUVIDPO_CATALOG"):
        folders.append(Path(extra))
    catalog = Catalog({}, {}, {})
    for folder in folders:
        if not folder.is_dir():
            raise CatalogError(f"HUVIDPO_CATALOG: {folder} is not a folder")
        for path in sorted(folder.glob("*.toml")):
            _read_file(path, catalog)
    return catalog


def _read_file(path: Path, catalog: Catalog) -> None:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogError(f"{path}: {error}") from error
    if unknown := set(tables) - set(_SECTIONS):
        raise CatalogError(f"{path}: unknown section {sorted(unknown)}, known: {', '.join(_SECTIONS)}")
    parsers = {"models": _model, "categories": _category, "styles": _style}
    for section, entries in tables.items():
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise CatalogError(f"{path}: expected tables [{section}.<name>]")
        for name, entry in entries.items():
            try:
                getattr(catalog, section)[name] = parsers[section](name, dict(entry))
            except (KeyError, TypeError, ValueError) as error:
                raise CatalogError(f"{path}: [{section}.{name}]: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"missing key {error}" if isinstance(error, KeyError) else str(error)


def _model(name: str, entry: dict[str, Any]) -> Model:
    video = entry.pop("video")
    unet = entry.pop("first_frame_unet", None)
    parts = {f"video_{part}": _component(video.pop(part)) for part in _VIDEO_PARTS}
    model = Model(
        name=name,
        description=entry.pop("description", ""),
        first_frame=_component(entry.pop("first_frame")),
        first_frame_unet=_component(unet) if unet else None,
        categories=_local(entry.pop("categories")),
        defaults=SamplingOptions().replace(**entry.pop("defaults", {})),
        attention_mode=_attention_mode(entry.pop("attention_mode", None)),
        **parts,
    )
    _refuse_rest({**entry, **video})
    return model


def _attention_mode(mode: str | None) -> str | None:
    if mode is not None and mode not in ATTENTION_MODES:
        raise ValueError(f"attention_mode: got {mode!r}, allowed: {', '.join(ATTENTION_MODES)}")
    return mode


def _component(entry: dict[str, str]) -> Component:
    entry = dict(entry)
    subfolder = entry.pop("subfolder", "")
    if "repo" in entry:
        repo = entry.pop("repo")
        mirror = _weights_folder() / repo
        location = str(mirror) if mirror.is_dir() else repo
    else:
        location = str(_local(entry.pop("path")))
    _refuse_rest(entry)
    return Component(location, subfolder)


def _local(path: str) -> Path:
    given = _weights_folder() / path
    return given if given.exists() else PROJECT_ROOT / path


def _weights_folder() -> Path:
    return Path(os.environ.get("HUVIDPO_WEIGHTS") or PROJECT_ROOT).resolve()


def _category(name: str, entry: dict[str, Any]) -> Category:
    category = Category(name, entry.pop("motion_prompt"), entry.pop("weights", f"{name}.safetensors"))
    _refuse_rest(entry)
    return category


def _style(name: str, entry: dict[str, Any]) -> Style:
    style = Style(name, entry.pop("template"), entry.pop("negative", ""))
    _refuse_rest(entry)
    if "{prompt}" not in style.template:
        raise ValueError(f"template {style.template!r} does not contain {{prompt}}")
    return style


def _refuse_rest(entry: dict[str, Any]) -> None:
    if entry:
        raise ValueError(f"unknown key {', '.join(sorted(entry))}")


def _look_up(entries: dict[str, _Entry], kind: str, name: str) -> _Entry:
    if not isinstance(name, str) or name not in entries:
        raise InvalidRequest(f"{kind}: got {name!r}, known: {', '.join(entries)}", kind)
    return entries[name]
