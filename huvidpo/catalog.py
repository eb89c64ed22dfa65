"""Models, categories and styles: data files, read and checked once.

The built-in entries are `huvidpo/data/*.toml`. The folder named by the environment variable HUVIDPO_CATALOG
may hold more `*.toml` files of the same form; an entry there replaces the built-in one of its name.

A component of a model is written `{ path = "...", subfolder = "..." }` for a local folder or
`{ repo = "owner/name", subfolder = "..." }` for the model hub. Relative paths resolve against the folder
named by HUVIDPO_WEIGHTS where they exist there, else against the project root; a repo that exists as
`$HUVIDPO_WEIGHTS/owner/name` is read from there. A model may be written `like` an earlier one, with
what differs.
"""

import dataclasses
import functools
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Gt
from pydantic import AfterValidator, BeforeValidator
from pydantic.dataclasses import dataclass

from huvidpo.checks import STRICT, Number, check, raises
from huvidpo.config import SamplingOptions
from huvidpo.errors import CatalogError, InvalidRequest

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = "tiny"
_SECTIONS = ("models", "categories", "styles")
_Entry = TypeVar("_Entry")


def _commit(revision: str) -> str:
    if not re.fullmatch(r"([0-9a-f]{40})?", revision):
        raise ValueError("which is not a commit of 40 hex digits: names of branches and tags move")
    return revision


@raises(CatalogError)
@dataclass(frozen=True, config=STRICT)
class Component:
    """Where one part of a model lives: `location` is an absolute folder or a hub id. `revision`: commit of
    that repository which is fetched, 40 hex digits; empty: its newest.
    """

    location: str
    subfolder: str = ""
    revision: Annotated[str, AfterValidator(_commit)] = ""

    def within(self, subfolder: str) -> "Component":
        """Another part of the same."""
        return Component(self.location, subfolder, self.revision)

    @classmethod
    def at(cls, where: str | Path, subfolder: str = "") -> "Component":
        """Where somebody says it is: a folder, seen from where they are, or the id of one on the hub."""
        here = isinstance(where, Path) or Path(where).is_dir()
        return cls(str(Path(where).resolve()) if here else str(where), subfolder)


def _component(entry: Any) -> Any:
    """A part as a file writes it, { path or repo, subfolder, revision }, as a Component."""
    if not isinstance(entry, dict):
        return entry
    where = {**entry}
    if "repo" in where:
        repo = check("repo", where.pop("repo"), str, CatalogError)
        mirror = _weights_folder() / repo
        if mirror.is_dir():  # whatever commit it is a copy of
            return Component(str(mirror), **(where | {"revision": ""}))
        return Component(repo, **where)
    path = check("path", where.pop("path", None), str, CatalogError)
    return Component(str(_local(path)), **where)


def _local(path: Any) -> Any:
    if not isinstance(path, str):
        return path
    given = _weights_folder() / path
    return given if given.exists() else PROJECT_ROOT / path


def _weights_folder() -> Path:
    return Path(os.environ.get("HUVIDPO_WEIGHTS") or PROJECT_ROOT).resolve()


def _with_prompt(template: str) -> str:
    if "{prompt}" not in template:
        raise ValueError("which does not contain {prompt}")
    return template


_Gib = Annotated[Number, Gt(0)]
_Part = Annotated[Component, BeforeValidator(_component)]
_File = Annotated[Path, BeforeValidator(_local)]


@raises(CatalogError)
@dataclass(frozen=True, config=STRICT)
class Recipes:
    """Names of training's recipes, by stage; None: a trainer must be told one."""

    motion: str | None = None
    dpo: str | None = None
    dpo_image: str | None = None
    distill: str | None = None


@raises(CatalogError)
@dataclass(frozen=True, config=STRICT)
class GpuNeeds:
    """Most GPU memory in half precision, GiB, CUDA's own apart."""

    first_frame: _Gib
    video: _Gib  # one request, without categories
    category: _Gib  # each one that is loaded
    request: _Gib  # each one more that is denoised at once


def _table(kind: Any) -> BeforeValidator:
    """A table of the file as keyword arguments of `kind`."""
    return BeforeValidator(lambda entry: kind(**entry) if isinstance(entry, dict) else entry)


@raises(CatalogError)
@dataclass(frozen=True, config=STRICT)
class Model:
    """A pair of first-frame and video models, and the sampling options measured for it."""

    name: str
    first_frame: _Part  # folder of a StableDiffusionXLPipeline, or of a StableDiffusionPipeline
    video_unet: _Part  # a VideoUNet, a UNet2DConditionModel (inflated on load) or a LAMP checkpoint
    video_scheduler: _Part
    video_text_encoder: _Part
    video_tokenizer: _Part
    video_vae: _Part
    categories: _File  # folder of the categories' weights
    description: str = ""
    first_frame_unet: _Part | None = None  # replaces the first-frame pipeline's UNet (a Diffusion-DPO one)
    defaults: Annotated[SamplingOptions, _table(SamplingOptions)] = SamplingOptions()
    recipes: Annotated[Recipes, _table(Recipes)] = Recipes()
    gpu_gib: Annotated[GpuNeeds, _table(GpuNeeds)] | None = None  # see gpu_memory.py; None: not known
    prompts: _File | None = None  # lines "category: prompt" to make clips of; None: the category's motion
    words: _File | None = None  # all that it was trained on, see words.py; None: any
    attention_mode: Literal["first_prev", "first"] | None = None  # of checkpoints that do not say theirs


@raises(CatalogError)
@dataclass(frozen=True, config=STRICT)
class Category:
    """A kind of motion. `weights`: a file, or a folder in LAMP's layout, in a model's `categories`."""

    name: str
    motion_prompt: str
    weights: str = ""  # "<name>.safetensors" unless given

    def __post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "weights", f"{self.name}.safetensors")


def adapter_path(weights: Path) -> Path:
    """Where the adapter that was merged into a category's weights lies, if it was kept; see strength.py."""
    return weights.parent / "adapters" / weights.name


@raises(CatalogError)
@dataclass(frozen=True, config=STRICT)
class Style:
    """A look: `template` contains `{prompt}`; `negative` is used when a request brings no negative prompt."""

    name: str
    template: Annotated[str, AfterValidator(_with_prompt)]
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

    def style(self, name: str | None) -> Style:
        """None, which every door takes for one not given, is the first of the catalog."""
        return _look_up(self.styles, "style", next(iter(self.styles)) if name is None else name)


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
    model = functools.partial(_model, catalog.models)
    kinds: dict[str, Any] = {"models": model, "categories": Category, "styles": Style}
    for section, entries in tables.items():
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise CatalogError(f"{path}: expected tables [{section}.<name>]")
        for name, entry in entries.items():
            try:
                getattr(catalog, section)[name] = kinds[section](**entry | {"name": name})
            except (CatalogError, InvalidRequest) as error:
                raise CatalogError(f"{path}: [{section}.{name}]: {error}") from error


def _model(known: dict[str, Model], like: Any = None, video: Any = None, **entry: Any) -> Model:
    """`video`: the table of the video model's parts. `like`: a model of `known`, whose parts and defaults
    stand where the entry has none of its own.
    """
    if like is not None and like not in known:
        raise CatalogError(f"like: got {like!r}, known by then: {', '.join(known)}")
    inherited: dict[str, Any] = {}
    if like is not None:
        inherited = {field.name: getattr(known[like], field.name) for field in dataclasses.fields(Model)}
        if isinstance(entry.get("defaults"), dict):
            entry["defaults"] = known[like].defaults.replace(**entry["defaults"])
    if not isinstance(video, dict) and not (inherited and video is None):
        raise CatalogError("video: expected a table of the video model's parts")
    return Model(**inherited | entry | {f"video_{part}": where for part, where in (video or {}).items()})


def _look_up(entries: dict[str, _Entry], kind: str, name: str) -> _Entry:
    if not isinstance(name, str) or name not in entries:
        raise InvalidRequest(f"{kind}: got {name!r}, known: {', '.join(entries)}", kind)
    return entries[name]
