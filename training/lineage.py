"""Where a file of weights comes from: the lineage in its safetensors metadata, and the card beside it."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from huvidpo.catalog import PROJECT_ROOT
from huvidpo.checkpoint import read_metadata
from huvidpo.files import hash_file, whole_folder, write_text


def commit() -> str:
    """The project's git commit, `-dirty` when files differ from it; `unknown` outside a checkout."""
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(PROJECT_ROOT), *describe]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def carried_on(earlier: Mapping[str, str], stage: str) -> dict[str, str]:
    """The lineage of an earlier stage inside that of a later one: its keys, each as `<stage>_<key>`."""
    return {f"{stage}_{key}": value for key, value in earlier.items()}


def card_path(file: Path) -> Path:
    """horse.safetensors -> horse.card.json, beside it."""
    return file.with_suffix(".card.json")


def write_card(file: Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write the card of a safetensors file: its name, hash, size, lineage (metadata) and `metrics`.

    Recipes, JSON texts in the metadata, are spelt out. Returns the card's path; an older card is replaced.
    """
    lineage = {key: _spelt_out(key, value) for key, value in sorted(read_metadata(file).items())}
    facts = {"file": file.name, "sha256": hash_file(file), "bytes": file.stat().st_size}
    card = card_path(file)
    text = json.dumps({**facts, "lineage": lineage, "metrics": dict(metrics or {})}, indent=1)
    write_text(card, text + "\n")
    return card


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
