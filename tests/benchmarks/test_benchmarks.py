"""Every benchmark still runs: `--quick`, at its smallest sizes."""

import importlib
from pathlib import Path

import pytest
import torch

from benchmarks.common import ROOT, timed

QUICK = [
    "backends --only plain torch_fp32",
    "backends --only torch_fp32 openvino_fp32 --no-clips",
    "categories_resident",
    "dpo_beta",
    "dpo_memory",
    "full_width",
    "gpu",
    "options",
    "scheduling",
    "service_overhead --no-server",  # tests/e2e starts servers
    "unet_forward",
    "unet_sd14",
]
# equal_numbers is run before and after a change; export_full_size builds for four GPUs, --quick or not;
# scheduling_service needs a server; watermark reads what has no mark, which takes long:
# tests/huvidpo/test_watermark.py does the same
APART = {"common", "equal_numbers", "export_full_size", "scheduling_service", "watermark"}


def test_every_benchmark_is_run_here():
    files = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert files == {line.split()[0] for line in QUICK} | APART


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is recorded; threads and catalog as they were, after the test."""
    for name in ("HUVIDPO_CATALOG", "HUVIDPO_ENGINES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    threads = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # threads that wait for each other crawl on a busy machine
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield ROOT / "benchmarks" / "results"
    torch.set_num_threads(threads)


@pytest.mark.parametrize("line", QUICK)
def test_a_benchmark_runs_quickly_and_records_nothing(line, results, capsys):
    name, *options = line.split()
    if name == "gpu" and not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="needs a CUDA device, none is here"):
            importlib.import_module("benchmarks.gpu").main(["--quick"])
        return
    before = {path: path.stat().st_size for path in results.iterdir()}
    importlib.import_module(f"benchmarks.{name}").main(["--quick", *options])
    assert capsys.readouterr().out.strip()
    assert {path: path.stat().st_size for path in results.iterdir()} == before


def test_a_timing_leaves_out_the_calls_that_warm_up():
    calls = []
    timing = timed(lambda: calls.append(len(calls)), 3, warmup=2)
    assert calls == [0, 1, 2, 3, 4]
    assert len(timing.walls) == len(timing.cpus) == 3
    assert timing.median == sorted(timing.walls)[1]
    assert timing.least_cpu == min(timing.cpus)
