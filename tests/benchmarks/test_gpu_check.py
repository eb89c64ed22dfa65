"""The GPU check runs, at tiny size on the CPU, before anyone rents a GPU for it."""

import json
import math
import os
import subprocess
import sys
from collections import defaultdict

import pytest

from benchmarks.common import ROOT
from benchmarks.gpu_check import check

pytestmark = pytest.mark.long
SECTIONS = ("ceiling", "video", "sdxl", "loops", "training", "vae", "attention")  # not torch.compile: minutes


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.gpu_check.check", "--tiny", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """section -> its rows"""
    out = tmp_path_factory.mktemp("gpu_check")
    done = run("--out", str(out), "--label", "here", "--only", *SECTIONS)
    assert done.returncode == 0, done.stderr
    found = defaultdict(list)
    for line in (out / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["section"]].append(row)
    assert sum(map(len, found.values())) == sum(line.startswith("{") for line in done.stdout.splitlines())
    return found


def test_no_section_failed_or_was_skipped(rows):
    assert not [row for of_section in rows.values() for row in of_section if "reason" in row]
    assert set(rows) == {"machine", "ceiling", "video", "sdxl", "loop", "training", "vae", "attention"}
    assert all(row["label"] == "here" for of_section in rows.values() for row in of_section)
    assert rows["machine"][0]["weights"] == "random"


@pytest.mark.parametrize("network", ["video", "sdxl"])
def test_steps_are_timed_and_compared_with_fp32(rows, network):
    reference, *others = rows[network]
    assert reference["dtype"] == "fp32"
    assert "error" not in reference
    assert [row["dtype"] for row in others] == ["fp16", "fp16", "bf16"]
    assert all(row["ms"] > 0 and row["tflop"] > 0 and row["finite"] for row in rows[network][1:])
    assert all(1e-5 < row["error"] < 0.1 for row in others)  # lower precision shows, and is no other network


def test_loops_and_training_are_the_products_own(rows):
    loops = {row["what"]: row for row in rows["loop"]}
    assert {"video, 2 steps", "sdxl, 2 steps", "video, decode and colours"} <= set(loops)
    assert all(row["seconds"] > 0 for row in loops.values())
    motion, dpo = rows["training"]
    assert dpo["first_loss"] == pytest.approx(math.log(2))  # policy and reference are the same at first
    assert motion["estimate_gib"] > 0
    assert motion["left_out"] == dpo["left_out"] == 0


def test_vae_in_parts_and_attention_kernels(rows):
    assert [(row["what"], row["at_once"]) for row in rows["vae"]] == [
        ("8 frames", 8),
        ("8 frames", 2),
        ("first frame", 1),
    ]
    assert all(row["error"] < 1e-5 for row in rows["vae"])
    assert {row["what"] for row in rows["attention"]} == {"spatial", "text", "temporal", "vae"}
    assert all(row["ms"]["plain"] and row["ms"]["chosen"] for row in rows["attention"])


def test_an_unknown_section_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["check", "--tiny", "--out", str(tmp_path), "--only", "vdieo"])
    with pytest.raises(SystemExit, match="vdieo is none of ceiling, video"):
        check.main()
