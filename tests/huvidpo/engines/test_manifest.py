"""The engine cache's manifest: keys, refusals, damage."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.engines.manifest import (
    Manifest,
    Port,
    engines,
    find_engine,
    read_manifest,
    refusal,
    write_manifest,
)
from huvidpo.errors import EngineError

SAMPLE = Port("sample", "float16", (1, 4, 8), (2, 4, 16), (8, 4, 32))
PLAN = Manifest(
    network="video_unet",
    model=DEFAULT_MODEL,
    category="horse",
    backend="tensorrt-rtx",
    tensorrt_version="1.7.1.116",
    compute_capabilities=("8.0", "8.9"),
    precision="float16",
    inputs=(SAMPLE,),
    outputs=(dataclasses.replace(SAMPLE, name="prediction"),),
    onnx_sha256="a" * 64,
    weights_sha256="b" * 64,
    created="2026-11-22T10:00:00+00:00",
)


def store(cache: Path, manifest: Manifest, content: bytes = b"plan") -> Path:
    folder = cache / manifest.key()
    folder.mkdir(parents=True)
    for name in manifest.files():
        (folder / name).write_bytes(content)
    write_manifest(folder, dataclasses.replace(manifest, bytes=len(content) * len(manifest.files())))
    return folder


def test_a_manifest_survives_the_disk(tmp_path: Path):
    folder = store(tmp_path, PLAN)
    assert read_manifest(folder) == dataclasses.replace(PLAN, bytes=4)


@given(st.sampled_from([f.name for f in dataclasses.fields(Manifest)]))
def test_the_key_covers_what_decides_the_build_and_nothing_else(field: str):
    others = {
        "backend": "onnxruntime",
        "compute_capabilities": ("8.9",),
        "inputs": (dataclasses.replace(SAMPLE, max=(8, 4, 64)),),
        "outputs": (SAMPLE,),
        "build_seconds": 3.5,
        "bytes": 7,
    }
    other = dataclasses.replace(PLAN, **{field: others.get(field, "other")})
    assert (other.key() == PLAN.key()) == (field in ("build_seconds", "bytes", "created"))
    same_content = field in ("build_seconds", "bytes", "created", "model", "category")
    assert (other.content() == PLAN.content()) == same_content


def test_damage_is_refused_with_the_reason(tmp_path: Path):
    folder = store(tmp_path, PLAN)
    (folder / "engine.plan").write_bytes(b"ha")
    with pytest.raises(EngineError, match="holds 2 bytes, its manifest says 4: delete the folder"):
        read_manifest(folder)
    (folder / "engine.plan").unlink()
    with pytest.raises(EngineError, match=r"misses .*engine.plan: delete the folder"):
        read_manifest(folder)
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(facts | {"category": "rain"}))
    with pytest.raises(EngineError, match="changed or moved; delete the folder"):
        read_manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(facts | {"later": 1}))
    with pytest.raises(EngineError, match="cannot be read as a manifest"):
        read_manifest(folder)
    assert engines(tmp_path) == []


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        ({}, ""),
        ({"version": "1.7.1.116", "compute_capability": "8.9", "weights_sha256": "b" * 64}, ""),
        ({"version": "1.8.0.0"}, "built by TensorRT 1.7.1.116, here is 1.8.0.0"),
        ({"compute_capability": "12.0"}, "this GPU is 12.0: run .* with --target sm120"),
        ({"precision": "float32"}, "built in float16, the model runs in float32: .* HUVIDPO_DTYPE=float16"),
        ({"weights_sha256": "c" * 64}, "other weights than the model now has: run `python -m export.build"),
    ],
)
def test_stale_and_foreign_engines_are_refused(here: dict[str, str], reason: str):
    said = refusal(PLAN, **here)
    assert re.search(reason, said) if reason else not said


def test_find_takes_the_newest_that_may_be_used(tmp_path: Path):
    asked = {"network": "video_unet", "model": DEFAULT_MODEL, "category": "horse", "backend": "tensorrt-rtx"}
    with pytest.raises(EngineError, match=r"no tensorrt-rtx engine .* run `python -m export.build"):
        find_engine(tmp_path, **asked)
    old = store(tmp_path, PLAN)
    newer = dataclasses.replace(PLAN, weights_sha256="c" * 64, created="2026-11-23T10:00:00+00:00")
    new = store(tmp_path, newer)
    store(tmp_path, dataclasses.replace(PLAN, category="rain"))
    assert find_engine(tmp_path, **asked)[0] == new
    assert find_engine(tmp_path, **asked, weights_sha256="b" * 64)[0] == old
    with pytest.raises(EngineError, match=r"may be used: .*other weights.*; .*other weights"):
        find_engine(tmp_path, **asked, weights_sha256="d" * 64)


def test_ports():
    assert SAMPLE.allows((1, 4, 32))
    assert not SAMPLE.allows((1, 4, 33))
    assert not SAMPLE.allows((1, 4))
    with pytest.raises(ValueError, match="not min <= opt <= max"):
        Port("x", "float32", (2,), (1,), (3,))
