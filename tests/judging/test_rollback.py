"""What the gate replaces is kept, and put back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from huvidpo.catalog import adapter_path
from huvidpo.checkpoint import read_metadata
from huvidpo.errors import CheckpointError
from huvidpo.files import hash_file
from huvidpo.strength import write_adapter
from judging.promote import ship
from judging.rollback import earlier, roll_back


def weights(folder: Path, value: float) -> Path:
    file = folder / f"{value}.safetensors"
    save_file({"x": torch.full((2,), value)}, file, {"stage": "dpo"})
    return file


def test_back_and_forth(tmp_path):
    target = tmp_path / "categories" / "horse.safetensors"
    files = [weights(tmp_path, float(value)) for value in range(3)]
    hashes = [hash_file(file) for file in files]
    for number, file in enumerate(files):
        ship(file, target, {"accepted": True, "number": number})
    assert [file.stem.rpartition(".")[2] for file in earlier(target)] == [hashes[1], hashes[0]]
    assert roll_back(target) == hashes[1] == hash_file(target)
    card = json.loads(target.with_suffix(".card.json").read_text())
    assert card["sha256"] == hashes[1]
    assert card["metrics"]["promotion"]["number"] == 1
    assert card["lineage"] == {"stage": "dpo"}
    assert roll_back(target) == hashes[2]
    assert roll_back(target, hashes[0][:12]) == hashes[0] == hash_file(target)


def test_the_adapter_goes_with_its_weights(tmp_path):
    target = tmp_path / "categories" / "horse.safetensors"
    merged, plain = weights(tmp_path, 1.0), weights(tmp_path, 2.0)
    write_adapter(merged, {"x": torch.zeros(1)}, {})
    ship(merged, target, {})
    there = adapter_path(target)
    assert read_metadata(there) == {"merged": hash_file(target)}
    assert json.loads(target.with_suffix(".card.json").read_text())["adapter"]["sha256"] == hash_file(there)
    ship(plain, target, {})
    assert not there.exists()
    assert "adapter" not in json.loads(target.with_suffix(".card.json").read_text())
    roll_back(target)
    assert read_metadata(there) == {"merged": hash_file(target)}


def test_nothing_to_go_back_to(tmp_path):
    target = tmp_path / "categories" / "horse.safetensors"
    file = weights(tmp_path, 1.0)
    ship(file, target, {})
    with pytest.raises(CheckpointError, match=r"holds no earlier horse\.safetensors"):
        roll_back(target)
    ship(weights(tmp_path, 2.0), target, {})
    with pytest.raises(CheckpointError, match=r"holds no earlier horse\.safetensors zz\.\.\."):
        roll_back(target, "zz")
    kept = target.parent / "previous" / f"horse.{hash_file(file)}.safetensors"
    kept.write_bytes(b"damaged")
    there = target.read_bytes()
    with pytest.raises(CheckpointError, match="is damaged"):
        roll_back(target)
    assert target.read_bytes() == there
