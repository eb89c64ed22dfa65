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
    "categories/birds.safetensors": "d9ece4976071b3a1fe67fae98f2e855e0bbc8876798936f07323c6859734af1f",
    "categories/fireworks.safetensors": "c7f7d3b33c2cda03a4086e27cb95fc2c2d46fc3fb72be44cb9377e0b15a4e109",
    "categories/guitar.safetensors": "17e0322d69d58895688e1647e6c47fe85133a9a34355a1ab7dc6f56d908e8039",
    "categories/helicopter.safetensors": "6944d48bb19b4bd426d2fc49dc2f8992670d9a054f6e705f3842c9344fd550e4",
    "categories/horse.safetensors": "db536d9279b3f021b9e231a7a473c2f398fd397e1c26582e420782621e451935",
    "categories/rain.safetensors": "1c214e843a5f6defe51859471040c3e718b768aced988d88002ff0df5ea923e8",
    "categories/smile.safetensors": "8ef36e9f43488be75a88b69351d8e4d4cc4a6dc1d96247d2a9152cdf2d3f466d",
    "categories/waterfall.safetensors": "df072c6fcb5397e554f2fe4d3beb0db95d32dbf032fb63ed3061ae0d39230e30",
    "first_frame/unet/diffusion_pytorch_model.safetensors": (
        "7638394763b2069915b1a6f9c488f828cd862666228bbc02b9ffb5f333d49137"
    ),
    "video/unet/diffusion_pytorch_model.safetensors": (
        "53fbc9ebb0ad9eaf283242cd9917dcbbe0eb0ea7225dac803412a576cbdd8f64"
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
    assert set(adapter_path(preferred[0]).parent.iterdir()) == {adapter_path(file) for file in preferred}
    for file in preferred:
        merged, adapter = load_tensors(file), adapter_path(file)
        without = at_strength(merged, file, 0.0)  # raises for that of other weights
        changed = {name for name in merged if not torch.equal(without[name], merged[name])}
        assert changed == set(pair_halves(load_tensors(adapter)))
        assert read_metadata(adapter)["stage1"] == read_metadata(file)["stage1"]
