"""What stands around every command line: one line for an error, one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from huvidpo import command
from huvidpo.errors import InvalidRequest
from huvidpo.files import write_bytes

ROOT = Path(__file__).resolve().parents[2]


def fails(error: Exception):
    def work() -> int:
        raise error

    return work


def test_errors_of_ours_and_of_disks_are_one_line(tmp_path, capsys, small_files):
    assert command.run("a.b", lambda: 4) == 4
    assert command.run("a.b", fails(InvalidRequest("steps: got 0"))) == command.FAILED
    with small_files(100):
        full = command.run("a.b", lambda: write_bytes(tmp_path / "x", bytes(200)) or 0)
    assert full == command.FAILED
    assert command.run("a.b", lambda: (tmp_path / "gone").read_bytes() and 0) == command.FAILED
    assert capsys.readouterr().err.splitlines() == [
        "a.b: steps: got 0",
        f"a.b: {tmp_path}/x: File too large",
        f"a.b: {tmp_path}/gone: No such file or directory",
    ]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), KeyError("ours"), OSError("plain")])
def test_other_errors_are_ours_to_see(error):
    with pytest.raises(type(error)):
        command.run("a.b", fails(error))


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_one_of_several_processes_does_nothing_unless_it_may(monkeypatch, capsys, name):
    monkeypatch.setenv(name, "2")
    monkeypatch.setenv("RANK", "0")
    assert command.launched() == 2
    assert command.run("a.b", fails(AssertionError())) == command.FAILED
    assert capsys.readouterr().err == (
        "a.b: got 2 processes, it runs in one: start it without torchrun or accelerate launch\n"
    )
    monkeypatch.setenv("RANK", "1")
    assert command.run("a.b", fails(AssertionError())) == command.FAILED
    assert capsys.readouterr().err == ""
    assert command.run("a.b", lambda: 0, several=True) == 0
    assert command.run("a.b", fails(InvalidRequest("alone")), several=True) == command.FAILED
    assert capsys.readouterr().err == "a.b, process 1: alone\n"


def test_libraries_say_nothing_before_we_do():
    """Of the slowest to load; before, two notes of transformers came first."""
    done = subprocess.run(
        [sys.executable, "-m", "training.dpo", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=_plain(),
    )
    assert done.stderr == ""
    assert done.stdout.startswith("usage: python -m training.dpo")


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "VERBOSITY" not in name}


def test_the_tiny_familys_commands_are_one_process(tmp_path):
    """They have no `main` in common: their package says it."""
    asked = [sys.executable, "-m", "tiny.world", "--out", str(tmp_path / "out")]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, env=_plain() | {"WORLD_SIZE": "2"})
    assert done.returncode == 1
    assert done.stderr == "tiny: got 2 processes, it runs in one: start it without a launcher\n"
    assert not (tmp_path / "out").exists()
