"""The builder's process: refusals before a build, failures that say what to do."""

import sys
from pathlib import Path

import pytest

from export import to_tensorrt
from export.to_tensorrt import (
    ADVICE,
    OTHERWISE,
    advice,
    build_plan,
    capabilities_of,
    failure,
)
from huvidpo.engines.flavours import import_flavour
from huvidpo.engines.manifest import Port
from huvidpo.errors import EngineError

PORT = Port("x", "float32", (1, 3), (2, 3), (4, 3))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("[E] Error Code 2: OutOfMemory (Requested size was 2 bytes)", "--max-batch"),
        ("std::bad_alloc", "--max-batch"),
        ("the builder died with signal 9", "--max-batch"),
        ("CUDA initialization failure with error: 35", "--backend tensorrt-rtx"),
        ("Unable to load library: libcuda.so.1", "--backend tensorrt-rtx"),
        ("Error Code 4: x: kMIN dimensions in profile 0 are [2] but input has static dimension 3", "spans"),
        ("In node 3 with operator: Foo: No importer registered for op: Foo", "HUVIDPO_BACKEND=torch"),
        ("Could not find any implementation for node {ForeignNode}", "HUVIDPO_BACKEND=torch"),
        ("ModelImporter: failed to parse ONNX model", "skeletons"),
        ("something never seen", OTHERWISE),
    ],
)
def test_every_message_ends_in_what_to_do(message: str, said: str):
    assert said in advice([message])
    text = failure("tensorrt-rtx", [message], Path("x.log"))
    assert text.endswith(advice([message]))
    assert "x.log" in text
    assert "\n" not in text


def test_the_first_message_counts_and_the_missing_driver_does_not():
    mismatch = "API Usage Error (Dimension mismatch for tensor z and profile 0)"
    driver = "Cuda Runtime (In catchCudaError: cudaError 35: CUDA driver version is insufficient)"
    assert "spans" in advice([mismatch, driver])
    assert advice(["something never seen", driver]) == OTHERWISE


def test_advice_is_one_sentence():
    for _, sentence in [*ADVICE, ("", OTHERWISE)]:
        assert sentence.endswith(".")
        assert sentence.rstrip(".").count(". ") == 0


def test_targets():
    assert capabilities_of("tensorrt-rtx", []) == ("8.0", "8.6", "8.9", "12.0")
    assert capabilities_of("tensorrt-rtx", ["sm120", "sm89", "sm89"]) == ("8.9", "12.0")
    with pytest.raises(EngineError, match=r"--target sm90: tensorrt-rtx builds for sm75, .*; choose one"):
        capabilities_of("tensorrt-rtx", ["sm90"])
    with pytest.raises(EngineError, match="leave --target out, or use --backend tensorrt-rtx"):
        capabilities_of("tensorrt", ["sm89"])


def test_a_flavour_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="pip install tensorrt-cu13, use tensorrt-rtx, or serve with"):
        import_flavour("tensorrt")


def test_a_file_that_is_no_graph(tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    log = tmp_path / "logs" / "bad.log"
    with pytest.raises(EngineError, match=r"could not build the engine: .* Delete the skeletons folder"):
        build_plan(tmp_path / "bad.onnx", tmp_path / "p", (PORT,), "tensorrt-rtx", ("8.9",), log)
    assert log.stat().st_size  # TensorRT's own words


def test_a_builder_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="died with exit code 1 .*log: .*" + OTHERWISE[:20]):
        build_plan(tmp_path / "x", tmp_path / "p", (PORT,), "tensorrt-rtx", ("8.9",), tmp_path / "log")


def test_the_builder_imports_no_torch():
    """Its memory is the engine's: torch would add half a gigabyte."""
    import subprocess

    code = "import sys, export.to_tensorrt; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=to_tensorrt.PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
