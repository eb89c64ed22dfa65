"""Engines from start to end on the random family: built ahead of time without a GPU, cached, refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from export import build as build_module
from export.build import Job, Target, build, main, target_of, usable
from huvidpo.catalog import DEFAULT_MODEL, Model, load_catalog
from huvidpo.engines.manifest import Manifest, find_engine, read_manifest
from huvidpo.engines.networks import ROWS, network_of
from huvidpo.errors import EngineError

UNET = ROWS["video_unet"]
ONNX = Target("onnxruntime")


def job(model: Model, category: str, precision: str = "float32") -> Job:
    weights = model.categories / load_catalog().category(category).weights
    return Job(network_of(UNET, model, precision), category, weights)


@pytest.fixture(scope="module")
def horse(model: Model, cache: Path) -> tuple[Path, Manifest]:
    outcome = build(job(model, "horse"), ONNX, cache)
    assert outcome.how == "built"
    return outcome.folder, outcome.manifest


def test_an_onnx_engine_is_found_with_its_manifest(horse: tuple[Path, Manifest], cache: Path):
    folder, manifest = horse
    asked = {"network": "video_unet", "model": DEFAULT_MODEL, "category": "horse", "backend": "onnxruntime"}
    assert find_engine(cache, **asked) == (folder, manifest)
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx",
        "weights.safetensors",
        "manifest.json",
        "parity.json",
    }
    report = json.loads((folder / "parity.json").read_text())
    assert len(report) == 2
    assert all(row["passed"] for row in report)


def test_the_same_is_never_built_twice(horse: tuple[Path, Manifest], model: Model, cache: Path):
    outcome = build(job(model, "horse"), ONNX, cache)
    assert (outcome.how, outcome.folder) == ("cached", horse[0])


def test_categories_share_the_graph_and_not_the_engine(
    horse: tuple[Path, Manifest], model: Model, cache: Path
):
    rain = build(job(model, "rain"), ONNX, cache, shapes=0)
    assert rain.manifest.onnx_sha256 == horse[1].onnx_sha256
    assert rain.manifest.weights_sha256 != horse[1].weights_sha256
    assert rain.folder != horse[0]


def test_categories_without_weights_share_one_build(model: Model, cache: Path):
    first = build(job(model, "smile"), ONNX, cache, shapes=0)
    second = build(job(model, "birds"), ONNX, cache, shapes=0)
    assert (first.how, second.how) == ("built", "linked")
    assert second.manifest.category == "birds"
    files = [outcome.folder / "weights.safetensors" for outcome in (first, second)]
    assert files[0].samefile(files[1])


def test_a_broken_engine_is_built_anew(model: Model, cache: Path):
    outcome = build(job(model, "guitar"), ONNX, cache, shapes=0)
    (outcome.folder / "model.onnx").unlink()
    assert not usable(outcome.folder)
    assert not outcome.folder.exists()
    assert build(job(model, "guitar"), ONNX, cache, shapes=0).how in ("built", "linked")


def test_a_failed_build_leaves_nothing(model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build_module, "to_plan", _fail)
    before = set(cache.iterdir())
    with pytest.raises(EngineError, match="on purpose"):
        build(job(model, "horse"), Target("tensorrt-rtx", "1.2.3", ("8.9",)), cache, shapes=0)
    assert set(cache.iterdir()) == before


def _fail(*_: object) -> int:
    raise EngineError("on purpose")


def test_engines_for_four_gpus_without_one(model: Model, cache: Path):
    """The whole way: graph, a category's weights, TensorRT's plan for SM 8.0, 8.6, 8.9 and 12.0."""
    pytest.importorskip("tensorrt_rtx")
    target = target_of("tensorrt-rtx", [])
    outcome = build(job(model, "horse"), target, cache, shapes=0)
    assert outcome.manifest.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    assert outcome.manifest.tensorrt_version == target.version
    assert (outcome.folder / "engine.plan").stat().st_size == outcome.manifest.bytes > 10_000
    assert outcome.peak_bytes > 50e6
    assert not (outcome.folder / "weights.safetensors").exists()
    assert (cache / "logs" / f"{outcome.folder.name[:16]}.log").is_file()
    assert read_manifest(outcome.folder) == outcome.manifest
    assert build(job(model, "horse"), target, cache).how == "cached"


def test_a_shape_outside_what_the_graph_takes_is_explained(model: Model, cache: Path):
    pytest.importorskip("tensorrt_rtx")
    network = network_of(UNET, model, "float32")
    wrong = dataclasses.replace(network, sizes=network.sizes | {"channels": 9})
    # the graph keeps its 8 channels: only the profile asks for 9
    wrong_job = dataclasses.replace(job(model, "rain"), network=wrong)
    with pytest.MonkeyPatch.context() as patch:
        right = build_module.skeleton(network, cache)
        patch.setattr(build_module, "skeleton", lambda *_: right)
        with pytest.raises(EngineError, match=r"could not build the engine: .* Choose sizes"):
            build(wrong_job, target_of("tensorrt-rtx", ["sm89"]), cache, shapes=0)


def test_command_line(model: Model, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = tmp_path / "report.json"
    asked = [
        "--model",
        DEFAULT_MODEL,
        "--network",
        "video_vae_decoder",
        "--backend",
        "onnxruntime",
        "--precision",
        "float32",
    ]
    assert main([*asked, "--cache", str(cache), "--report", str(report)]) == 0
    out = capsys.readouterr().out
    assert "video_vae_decoder" in out
    assert "peak memory" in out
    assert json.loads(report.read_text())[0]["passed"]
    assert main([*asked, "--cache", str(cache)]) == 0
    assert "cached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "big"], "model: got 'big', known"),
        (
            ["--model", DEFAULT_MODEL, "--category", "cats", "--backend", "onnxruntime"],
            "category: got 'cats', known",
        ),
        (["--model", DEFAULT_MODEL, "--backend", "onnxruntime", "--target", "sm89"], "leave it out"),
        (["--model", DEFAULT_MODEL, "--backend", "tensorrt-rtx", "--target", "sm90"], "--target sm90"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, model: Model, cache: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*arguments, "--cache", str(cache)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("export.build: ")
    assert said in error
