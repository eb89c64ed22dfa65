"""Every benchmark still runs: `--quick`, at its smallest sizes."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common import ROOT, timed
from benchmarks.soak import slope
from huvidpo.hardware import limited_isa

QUICK = [
    "backends --only plain torch_fp32",
    "backends --only torch_fp32 openvino_fp32 openvino_any_shape --no-clips",
    "capacity",
    "categories_resident",
    "gpu",
    "mixed_batch --backend torch --dtype float32",
    "options",
    "scheduling",
    "service_overhead --no-server",  # tests/e2e starts servers
    "unet_forward",
    "unet_sd14",
]
LONG = ["dpo_beta", "dpo_memory", "full_width"]
# equal_numbers is run before and after a change; export_full_size builds for four GPUs, --quick or not;
# scheduling_service needs a server; watermark reads what has no mark, which takes long:
# tests/huvidpo/test_watermark.py does the same; jobs_survive and soak take a minute each:
# tests/service/test_jobs.py kills too, with the painted_runner
APART = {"common", "equal_numbers", "export_full_size", "scheduling_service", "watermark"}
APART |= {"jobs_survive", "painted_runner", "soak"}
APART |= {"cluster_report", "cluster_scaled", "cluster_served", "cluster_simulated"}  # parts of capacity


def test_every_benchmark_is_run_here():
    files = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert files == {line.split()[0] for line in QUICK + LONG} | APART


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


@pytest.mark.parametrize("line", [*QUICK, *(pytest.param(line, marks=pytest.mark.long) for line in LONG)])
def test_a_benchmark_runs_quickly_and_records_nothing(line, results, capsys):
    name, *options = line.split()
    if name == "gpu" and not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="needs a CUDA device, none is here"):
            importlib.import_module("benchmarks.gpu").main(["--quick"])
        return
    before = {path: path.stat().st_size for path in results.iterdir()}
    importlib.import_module(f"benchmarks.{name}").main(["--quick", *options])
    said = capsys.readouterr().out
    assert said.strip()
    assert limited_isa() or "skipped" not in said
    assert {path: path.stat().st_size for path in results.iterdir()} == before


def test_a_timing_leaves_out_the_calls_that_warm_up():
    calls = []
    timing = timed(lambda: calls.append(len(calls)), 3, warmup=2)
    assert calls == [0, 1, 2, 3, 4]
    assert len(timing.walls) == len(timing.cpus) == 3
    assert timing.median == sorted(timing.walls)[1]
    assert timing.least_cpu == min(timing.cpus)


def test_a_slope_tells_a_leak_from_what_fills_up():
    hours = np.linspace(0.0, 0.5, 600)
    noise = np.repeat(np.random.default_rng(0).normal(0.0, 1.0, 60), 10)  # samples come ten alike
    steady, leaking = slope(hours, 500 + noise), slope(hours, 500 + 40 * hours + noise)
    filling = slope(hours, 500 + 20 * (1 - np.exp(-hours / 0.05)) + 0.01 * noise)
    assert steady["low"] < 0 < steady["high"]
    assert 0 < leaking["low"] < 40 < leaking["high"]
    assert filling["per_hour"] > 10 * abs(filling["second_half_per_hour"])
    assert (leaking["last"] - leaking["first"]) == pytest.approx(40 * 0.5 * 19 / 20, abs=3)
