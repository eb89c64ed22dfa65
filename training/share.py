"""Give a category to others, and take theirs: weights, card and catalog entry at one URL.

    python -m training.share push --model tiny --category candle --to hf://ann/candle
    python -m training.share push --model tiny --category candle --to file:///mnt/shared/candle
    python -m training.share pull --model tiny --category candle --from hf://ann/candle

A URL is a repository of the model hub (hf://owner/name; `hf auth login` first, to push) or any folder that
fsspec reaches: file://, s3://, gs://, https:// (to pull). There lie `<category>.safetensors`, its card with
hash and lineage, the adapter of its preferences (`<category>.adapter.safetensors`) if it has one, the catalog
entry as `<category>.toml` and a README.md for people. What is pulled is checked against its card and the
model's base before it is put among the model's categories, whole or not at all.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from huvidpo import command
from huvidpo.catalog import DEFAULT_MODEL, Category, Model, adapter_path, load_catalog
from huvidpo.checkpoint import check_fits, first_line, load_tensors
from huvidpo.errors import HuViDPOError
from huvidpo.files import hash_file, make_folder, write_text
from huvidpo.loading import check_lineage, load_video_unet
from huvidpo.strength import at_strength
from training.lineage import card_path, metrics_of, place, write_card


class ShareError(HuViDPOError):
    """A URL that cannot be read or written, or what lies there is not what its card says."""


def push(model: Model, category: Category, url: str) -> list[str]:
    """Write a category to `url`; returns the names of its files. The card is last: with it all is there.

    Raises ShareError, also for a category without weights of its own.
    """
    weights = model.categories / category.weights
    if not weights.is_file():
        raise ShareError(f"{weights} is not there: only a category with weights of its own can be given")
    adapter = adapter_path(weights)
    if not card_path(weights).is_file() or (
        adapter.is_file() and b'"adapter"' not in card_path(weights).read_bytes()
    ):
        write_card(weights, metrics_of(weights))
    card = card_path(weights).read_bytes()
    _make_repository(url)
    large = {f"{category.name}.safetensors": weights, adapter_name(category.name): adapter}
    large = {name: file for name, file in large.items() if file.is_file()}
    files = {
        "README.md": readme(model, category, json.loads(card)).encode(),
        f"{category.name}.toml": entry(category).encode(),
        f"{category.name}.card.json": card,
    }
    for name, file in large.items():
        with file.open("rb") as source, opened(url, name, "wb") as target:
            shutil.copyfileobj(source, target)
    for name, data in files.items():
        with opened(url, name, "wb") as target:
            target.write(data)
    return [*large, *files]


def pull(model: Model, name: str, url: str) -> Path:
    """Put the category `name` from `url` among the model's; returns its weights' file.

    Raises ShareError for files that differ from their card, CheckpointError for weights of another base, or
    an adapter of other weights, or what does not fit.
    """
    with opened(url, f"{name}.card.json") as source:
        raw = source.read()
    try:
        card = json.loads(raw)
        sha256, adapter = card["sha256"], card["adapter"]["sha256"] if "adapter" in card else None
        metrics = dict(card.get("metrics", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise ShareError(f"{url}/{name}.card.json is no card: {first_line(error)}") from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.safetensors"
        _fetch(url, file.name, file, sha256)
        base = load_video_unet(model.video_unet, torch.float32, model.attention_mode)
        tensors = load_tensors(file)
        check_fits(base, tensors)
        check_lineage(base, [file])
        if adapter:
            _fetch(url, adapter_name(name), adapter_path(file), adapter)
            at_strength(tensors, file, 0.0)
        target = model.categories / file.name
        place(file, target, metrics)
    return target


def _fetch(url: str, name: str, file: Path, sha256: str) -> None:
    """Raises ShareError for another file than the card names."""
    file.parent.mkdir(exist_ok=True)
    with opened(url, name) as source, file.open("wb") as stream:
        shutil.copyfileobj(source, stream)
    if (found := hash_file(file)) != sha256:
        raise ShareError(f"{url}/{name} is not the file of its card (sha256 {found[:12]}...)")


def adapter_name(category: str) -> str:
    """Of the file at a URL, where all lie side by side."""
    return f"{category}.adapter.safetensors"


def pull_entry(name: str, url: str, folder: Path) -> Path:
    """Put the catalog entry of a category into a folder of catalog files."""
    file = folder / f"{name}.toml"
    with opened(url, f"{name}.toml") as source:
        write_text(file, source.read().decode("utf-8"))
    return file


def entry(category: Category) -> str:
    """A category as the catalog writes it."""
    return f"[categories.{category.name}]\nmotion_prompt = {json.dumps(category.motion_prompt)}\n"


def readme(model: Model, category: Category, card: dict[str, Any]) -> str:
    """The page of a repository: what it is, what it came from, how to use it."""
    lineage = card.get("lineage", {})
    how = f"python -m training.share pull --model {model.name} --category {category.name} --from THIS_URL"
    rows = [f"| {key} | {value} |" for key, value in sorted(lineage.items()) if isinstance(value, str)]
    return "\n".join([
        "---", "library_name: huvidpo", "pipeline_tag: text-to-video", "tags: [huvidpo, video]", "---", "",
        f"# {category.name}: weights of a category for HuViDPO's model `{model.name}`", "",
        f"Motion: {category.motion_prompt}. {card['bytes'] / 1e6:.1f} MB, sha256 `{card['sha256']}`.", "",
        f"    {how}", "",
        "| lineage | |", "|---|---|", *rows, "",
    ])  # fmt: skip


@contextmanager
def opened(url: str, name: str, mode: str = "rb") -> Iterator[BinaryIO]:
    """A file of `url`. What fsspec and the file systems behind it raise becomes a ShareError."""
    import fsspec

    try:
        with fsspec.open(f"{url.rstrip('/')}/{name}", mode, auto_mkdir=True) as file:
            yield file
    except (OSError, ImportError, ValueError) as error:
        raise ShareError(f"{url}/{name}: {first_line(error)}") from error


def _make_repository(url: str) -> None:
    """Of the model hub, which has to be there before files are written."""
    if not url.startswith("hf://"):
        return
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(url.removeprefix("hf://").strip("/"), exist_ok=True)
    except (OSError, ValueError) as error:
        raise ShareError(f"{url}: {first_line(error)}; log in with: hf auth login") from error


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("training.share", lambda: args.work(args))


def _push(args: argparse.Namespace) -> int:
    catalog = load_catalog()
    names = push(catalog.model(args.model), catalog.category(args.category), args.url)
    print(f"{args.url}: {', '.join(names)}")
    return 0


def _pull(args: argparse.Namespace) -> int:
    catalog = load_catalog()
    model = catalog.model(args.model)
    make_folder(model.categories)
    print(pull(model, args.category, args.url))
    if args.category not in catalog.categories:
        folder = os.environ.get("HUVIDPO_CATALOG")
        if folder:
            print(pull_entry(args.category, args.url, Path(folder)))
        else:
            print(f"the catalog lacks it: put {args.url}/{args.category}.toml where HUVIDPO_CATALOG points")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.share",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    for name, work, flag in (("push", _push, "--to"), ("pull", _pull, "--from")):
        one = commands.add_parser(name)
        one.set_defaults(work=work)
        one.add_argument("--model", default=DEFAULT_MODEL, help=f"a model of the catalog ({DEFAULT_MODEL})")
        one.add_argument("--category", required=True, help="its name")
        one.add_argument(flag, dest="url", required=True, metavar="URL", help="hf://owner/name, s3://...")
    return parser


if __name__ == "__main__":
    sys.exit(main())
