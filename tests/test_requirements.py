"""requirements/*.txt against pyproject.toml, and what writes them."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_spec = importlib.util.spec_from_file_location("lock", ROOT / "requirements" / "lock.py")
lock = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lock)


def named(lines) -> dict[str, str]:
    """Name -> version, of lines such as "Some_Name==1.2; sys_platform == 'linux'"."""
    pairs = [line.partition(";")[0].strip().split("==") for line in lines if "==" in line.partition(";")[0]]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


@pytest.mark.parametrize("file", ["serve", "train", "dev"])
def test_what_pyproject_pins_is_what_is_installed(file):
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    installed = named(text.splitlines())
    direct = named(lock.wanted(PROJECT)[file])
    assert len(direct) >= len(PROJECT["dependencies"])
    assert {name: installed.get(name) for name in direct} == direct
    assert text.startswith(lock.HEADER)


def test_lines_name_no_build_and_no_cuda():
    found = [("torch", "2.13.0+cpu"), ("nvidia-cublas", "1"), ("Jinja2", "3.1"), ("triton", "3")]
    report = {"install": [{"metadata": {"name": name, "version": version}} for name, version in found]}
    assert lock.pins(report) == ["Jinja2==3.1", "torch==2.13.0"]
