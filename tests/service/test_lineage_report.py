"""GET /models and the metric: which weights are served, and where they come from."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from prometheus_client import REGISTRY
from safetensors.torch import save_file

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.checkpoint import read_metadata
from service.lineage import describe, publish, weights_file


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    """The built-in catalog, the tiny model's weights replaced by horse's (DPO), rain's (LAMP's layout)."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "mine.toml").write_text(
        '[categories.rain]\nmotion_prompt = "rain falls"\nweights = "rain"\n', encoding="utf-8"
    )
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path))
    catalog = load_catalog()
    weights = tmp_path / "weights"
    lineage = {"stage": "dpo", "commit": "abc", "clips": "123"}
    save_file({"x": torch.zeros(2)}, weights / "horse.safetensors", lineage)
    (weights / "rain" / "unet").mkdir(parents=True)
    torch.save({"x": torch.zeros(2)}, weights / "rain" / "unet" / "diffusion_pytorch_model.bin")
    object.__setattr__(catalog.models[DEFAULT_MODEL], "categories", weights)
    return catalog


def of(catalog, name):
    return next(one for one in describe(catalog, DEFAULT_MODEL)["categories"] if one["name"] == name)[
        "weights"
    ]


def test_lineage_is_what_the_file_says(catalog):
    file = catalog.models[DEFAULT_MODEL].categories / "horse.safetensors"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    lineage = read_metadata(file)
    assert lineage["stage"] == "dpo"
    assert of(catalog, "horse") == {
        "file": "horse.safetensors",
        "bytes": file.stat().st_size,
        "sha256": sha256,
        "adapter": None,
        "lineage": lineage,
        "metrics": {},
    }
    assert of(catalog, "rain")["file"] == "diffusion_pytorch_model.bin"
    assert of(catalog, "rain")["lineage"] == {}
    assert of(catalog, "smile") is None
    answer = describe(catalog, DEFAULT_MODEL)
    assert answer["model"] == DEFAULT_MODEL
    assert {style["name"] for style in answer["styles"]} == set(catalog.styles)
    json.dumps(answer)


def test_metrics_come_from_the_card_of_this_very_file(catalog):
    file = catalog.models[DEFAULT_MODEL].categories / "horse.safetensors"
    card = file.with_suffix(".card.json")
    facts = {"sha256": of(catalog, "horse")["sha256"], "metrics": {"win_rate": 0.7}}
    save_file({"x": torch.zeros(3)}, file, {"stage": "dpo"})  # another file: the card is of the old one
    card.write_text(json.dumps(facts))
    assert of(catalog, "horse")["metrics"] == {}
    save_file({"x": torch.zeros(2)}, file, {"stage": "dpo", "commit": "def"})
    card.write_text(json.dumps(facts | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}))
    assert of(catalog, "horse")["metrics"] == {"win_rate": 0.7}


def test_a_damaged_card_is_left_out(catalog):
    (catalog.models[DEFAULT_MODEL].categories / "horse.card.json").write_text("{")
    assert of(catalog, "horse")["metrics"] == {}


def test_metric(catalog):
    folder = catalog.models[DEFAULT_MODEL].categories
    sha256 = of(catalog, "horse")["sha256"]
    publish("horse", folder / "horse.safetensors", sha256)
    publish("smile", None, "")
    rain = weights_file(folder / "rain")
    publish("rain", rain, of(catalog, "rain")["sha256"])

    def value(**labels):
        return REGISTRY.get_sample_value("huvidpo_category_weights_info", labels)

    assert value(category="horse", stage="dpo", sha256=sha256) == 1
    assert value(category="smile", stage="base", sha256="") == 1
    assert value(category="rain", stage="unknown", sha256=of(catalog, "rain")["sha256"]) == 1


def test_it_takes_no_torch():
    code = "import sys, service.pages; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
