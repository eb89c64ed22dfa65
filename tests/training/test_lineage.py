import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from huvidpo.checkpoint import save_tensors
from huvidpo.files import hash_file
from training import lineage
from training.lineage import card_path, carried_on, commit, write_card


def test_commit_is_that_of_this_checkout() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", commit())


def test_a_checkout_is_dirty_by_its_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run ships is in the repository too: it must not make the next run dirty."""
    monkeypatch.setattr(lineage, "PROJECT_ROOT", tmp_path)
    assert commit() == "unknown"
    for name in ("models/horse.card.json", "training/loop.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "1"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "models/horse.card.json").write_text("2")
    assert commit() == clean
    (tmp_path / "training/loop.py").write_text("2")
    assert commit() == f"{clean}-dirty"


def test_card_repeats_the_lineage_and_the_metrics(tmp_path: Path) -> None:
    file = tmp_path / "horse.safetensors"
    lineage = {"stage": "dpo", "recipe": '{"lr": 0.1}', "stage1_recipe": '{"lr": 0.2}', "base": "ab12"}
    save_tensors(file, {"a": torch.ones(2)}, lineage)
    card = write_card(file, {"win_rate": 0.75})
    assert card == card_path(file) == tmp_path / "horse.card.json"
    assert json.loads(card.read_text()) == {
        "file": "horse.safetensors",
        "sha256": hash_file(file),
        "bytes": file.stat().st_size,
        "lineage": lineage | {"recipe": {"lr": 0.1}, "stage1_recipe": {"lr": 0.2}},
        "metrics": {"win_rate": 0.75},
    }
    write_card(file)  # replaces it
    assert json.loads(card.read_text())["metrics"] == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["horse.card.json", "horse.safetensors"]


def test_an_earlier_stage_is_carried_on() -> None:
    assert carried_on({"clips": "c0"}, "stage1") == {"stage1_clips": "c0"}
