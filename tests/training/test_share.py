"""Categories pushed to and pulled from a URL: file:// and memory://; no test reaches the hub (hf://)."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors
from huvidpo.files import hash_file
from huvidpo.loading import load_video_unet
from huvidpo.unet import fingerprint
from training.share import main


@pytest.fixture
def ours(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Categories of the random family that may change: horse, with its lineage."""
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    folder = tmp_path / "categories"
    folder.mkdir()
    for file in (family / "catalog").iterdir():
        text = file.read_text().replace(f"{family.resolve().as_posix()}/categories", str(folder))
        (catalog / file.name).write_text(text)
    monkeypatch.setenv("HUVIDPO_CATALOG", str(catalog))
    model = load_catalog().model(DEFAULT_MODEL)
    assert model.categories == folder
    base = load_video_unet(model.video_unet, torch.float32, model.attention_mode)
    tensors = load_tensors(family / "categories" / "horse.safetensors")
    save_tensors(folder / "horse.safetensors", tensors, {"base": fingerprint(base), "stage": "motion"})
    return folder


def run(verb: str, url: str, category: str = "horse") -> int:
    return main(
        [verb, "--model", DEFAULT_MODEL, "--category", category, "--to" if verb == "push" else "--from", url]
    )


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_what_is_pushed_is_what_is_pulled(ours, tmp_path, capsys, kind):
    url = f"file://{tmp_path}/shared/horse" if kind == "file" else "memory://shared/horse"
    weights = ours / "horse.safetensors"
    wanted = weights.read_bytes()
    assert run("push", url) == 0
    assert "horse.safetensors, README.md, horse.toml, horse.card.json" in capsys.readouterr().out
    shutil.rmtree(ours)
    assert run("pull", url) == 0
    assert weights.read_bytes() == wanted
    assert json.loads((ours / "horse.card.json").read_text())["sha256"] == hash_file(weights)


def test_the_page_and_the_entry_say_what_it_is(ours, tmp_path, monkeypatch, capsys):
    shared = tmp_path / "shared"
    assert run("push", f"file://{shared}") == 0
    page = (shared / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: huvidpo\n")
    assert hash_file(ours / "horse.safetensors") in page
    assert f"| base | {read_metadata(ours / 'horse.safetensors')['base']} |" in page
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "catalog" / "random.toml", other)
    (shared / "canter.toml").write_text((shared / "horse.toml").read_text().replace("horse]", "canter]"))
    for kind in ("safetensors", "card.json"):
        shutil.copy(shared / f"horse.{kind}", shared / f"canter.{kind}")
    monkeypatch.setenv("HUVIDPO_CATALOG", str(other))
    assert run("pull", f"file://{shared}", "canter") == 0  # a category that this catalog lacks
    assert load_catalog().category("canter").motion_prompt == load_catalog().category("horse").motion_prompt


def test_what_is_not_as_its_card_says_or_of_another_base_is_not_kept(ours, tmp_path, capsys):
    shared, url = tmp_path / "shared", f"file://{tmp_path}/shared"
    weights = ours / "horse.safetensors"
    assert run("push", url) == 0
    before = weights.read_bytes()
    card = shared / "horse.card.json"
    told = card.read_text()
    for text, message in {
        told.replace(json.loads(told)["sha256"], "0" * 64): "is not the file of its card",
        "{}": "is no card",
    }.items():
        card.write_text(text)
        assert run("pull", url) == 2
        assert message in capsys.readouterr().err
    save_tensors(shared / "horse.safetensors", load_tensors(weights), {"base": "0" * 64, "stage": "motion"})
    card.write_text(json.dumps({"sha256": hash_file(shared / "horse.safetensors")}))
    assert run("pull", url) == 2
    assert "base" in capsys.readouterr().err
    assert weights.read_bytes() == before


@pytest.mark.parametrize("url", ["file:///nowhere/at/all", "nothing://x/y", "memory://empty"])
def test_urls_that_cannot_be_read_are_one_line(ours, capsys, url):
    assert run("pull", url) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith(f"training.share: {url}/horse.card.json: ")


def test_only_weights_of_its_own_can_be_given(ours, tmp_path, capsys):
    assert run("push", f"file://{tmp_path}/shared", "rain") == 2
    assert "rain.safetensors is not there" in capsys.readouterr().err
