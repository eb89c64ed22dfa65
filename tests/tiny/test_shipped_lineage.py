"""Where the shipped weights come from: nobody can repeat a run whose code was never committed."""

import json
from pathlib import Path

import torch

from huvidpo.catalog import adapter_path
from huvidpo.checkpoint import load_tensors, read_metadata
from huvidpo.files import hash_file
from huvidpo.lora import pair_halves
from huvidpo.strength import at_strength
from tiny.common import FAMILY

ROOT = Path(__file__).parents[2]
# Made before this rule, when a checkout also counted as dirty for the weights that earlier runs had just
# written into it. A file that is trained again leaves the list; none may join it.
OLDER = {
    "first_frame/unet/diffusion_pytorch_model.safetensors": (
        "7638394763b2069915b1a6f9c488f828cd862666228bbc02b9ffb5f333d49137"
    ),
}


def lineage(file: Path) -> dict[str, str]:
    """What a file of weights says, and what the run that wrote its folder says."""
    run = file.parent / "training.json"
    return read_metadata(file) | (json.loads(run.read_text(encoding="utf-8")) if run.is_file() else {})


def test_no_file_ships_from_a_commit_that_is_none() -> None:
    family = ROOT / FAMILY
    files = {path.relative_to(family).as_posix(): path for path in family.rglob("*.safetensors")}
    dirty = {name: file for name, file in files.items() if any("-dirty" in v for v in lineage(file).values())}
    assert {name: hash_file(file) for name, file in dirty.items()}.items() <= OLDER.items()
    assert OLDER.keys() <= dirty.keys(), "trained again from a commit: take it off the list"


def test_every_category_with_preferences_ships_the_adapter_of_them() -> None:
    preferred = [
        f for f in (ROOT / FAMILY / "categories").glob("*.safetensors") if "lora_rank" in read_metadata(f)
    ]
    kept = set(adapter_path(ROOT / FAMILY / "categories" / "any.safetensors").parent.glob("*"))
    assert kept == {adapter_path(file) for file in preferred}
    for file in preferred:
        merged, adapter = load_tensors(file), adapter_path(file)
        without = at_strength(merged, file, 0.0)  # raises for that of other weights
        changed = {name for name in merged if not torch.equal(without[name], merged[name])}
        assert changed == set(pair_halves(load_tensors(adapter)))
        assert read_metadata(adapter)["stage1"] == read_metadata(file)["stage1"]
