"""Where a file of weights comes from: the lineage in its safetensors metadata, and the card beside it; what
goes with it where it is copied: card and adapter.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from huvidpo.catalog import PROJECT_ROOT, adapter_path
from huvidpo.checkpoint import read_metadata
from huvidpo.files import hash_file, whole_file, whole_folder, write_text

CODE = ("*.py", "*.toml", "requirements/*.txt")  # what a run follows from; data and weights have own hashes


def commit() -> str:
    """The project's git commit, `-dirty` when its code differs from it; `unknown` outside a checkout.

    Weights and documents do not count: what ships is rewritten by the very runs that ask.
    """
    head = _git("rev-parse", "HEAD")
    changed = head and _git("status", "--porcelain", "--", *CODE)
    return f"{head}-dirty" if changed else head or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT_ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def carried_on(earlier: Mapping[str, str], stage: str) -> dict[str, str]:
    """The lineage of an earlier stage inside that of a later one: its keys, each as `<stage>_<key>`."""
    return {f"{stage}_{key}": value for key, value in earlier.items()}


def card_path(file: Path) -> Path:
    """horse.safetensors -> horse.card.json, beside it."""
    return file.with_suffix(".card.json")


def write_card(file: Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write the card of a safetensors file: its name, hash, size, lineage (metadata), adapter and `metrics`.

    Recipes, JSON texts in the metadata, are spelt out. Returns the card's path; an older card is replaced.
    """
    card = card_path(file)
    write_text(card, _card(file, file, metrics or {}))
    return card


def place(weights: Path, target: Path, metrics: Mapping[str, Any]) -> None:
    """Copy a safetensors file to `target`, with the adapter that is merged into it, and write its card beside
    it. When anything fails, what was there stays, all files of it.
    """
    adapter = adapter_path(weights)
    with ExitStack() as files:
        part, card = (
            files.enter_context(whole_file(target)),
            files.enter_context(whole_file(card_path(target))),
        )
        shutil.copyfile(weights, part)
        card.write_text(_card(part, weights, metrics, target.name), encoding="utf-8")
        if adapter.is_file():
            shutil.copyfile(adapter, files.enter_context(whole_file(adapter_path(target))))
    if not adapter.is_file():
        adapter_path(target).unlink(missing_ok=True)  # of the weights that were there


def metrics_of(weights: Path) -> dict[str, Any]:
    """Those of the card beside them; none without one."""
    card = card_path(weights)
    metrics = json.loads(card.read_text(encoding="utf-8"))["metrics"] if card.is_file() else {}
    return dict(metrics)


def keep_previous(target: Path) -> None:
    """A copy of weights that are to be replaced, in the folder `previous` beside them, named by their
    SHA-256. Nothing where there is no file.
    """
    if target.is_file():
        kept = previous(target) / f"{target.stem}.{hash_file(target)}{target.suffix}"
        place(target, kept, metrics_of(target))  # anew if it is there: the latest was kept last


def previous(target: Path) -> Path:
    return target.parent / "previous"


def _card(file: Path, weights: Path, metrics: Mapping[str, Any], name: str = "") -> str:
    """Of `file`, `weights` or a copy of them that will be called `name`."""
    lineage = {key: _spelt_out(key, value) for key, value in sorted(read_metadata(file).items())}
    facts = {"file": name or file.name, "sha256": hash_file(file), "bytes": file.stat().st_size}
    if (adapter := adapter_path(weights)).is_file():
        facts["adapter"] = {"sha256": hash_file(adapter), "bytes": adapter.stat().st_size}
    return json.dumps({**facts, "lineage": lineage, "metrics": dict(metrics)}, indent=1) + "\n"


def write_network(folder: Path, network: Any, provenance: Mapping[str, str]) -> None:
    """A diffusers network as a folder, fp16, with its lineage in `training.json`; an older one goes last."""
    with whole_folder(folder) as part:
        network.half().to(memory_format=torch.contiguous_format).save_pretrained(part)
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # a path of this machine
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (part / "training.json").write_text(json.dumps(dict(provenance), indent=1) + "\n", encoding="utf-8")
        for file in part.iterdir():
            file.chmod((part / "training.json").stat().st_mode)  # safetensors makes its own private
        shutil.rmtree(folder, ignore_errors=True)


def _spelt_out(key: str, value: str) -> Any:
    return json.loads(value) if key == "recipe" or key.endswith("_recipe") else value
