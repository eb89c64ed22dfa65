"""API keys: the file, and what is a key."""

import os
import subprocess
import sys

import pytest

from service.errors import Unauthenticated
from service.keys import Keys


def make(file, name: str) -> str:
    """A key as the command makes it; its line is added to the file."""
    made = subprocess.run(
        [sys.executable, "-m", "service.keys", name], capture_output=True, text=True, check=True
    )
    with file.open("a") as lines:
        lines.write(made.stdout)
    return made.stderr.strip()


def test_names_by_key_and_reload(tmp_path):
    file = tmp_path / "keys"
    ann = make(file, "ann")
    keys = Keys(str(file))
    assert keys.check(f"Bearer {ann}") == "ann"
    assert ann not in file.read_text()
    bob = make(file, "bob")
    os.utime(file, ns=(0, 1))
    assert (keys.check(f"Bearer {ann}"), keys.check(f"bearer {bob}")) == ("ann", "bob")
    file.write_text("# nobody\n")
    os.utime(file, ns=(0, 2))
    with pytest.raises(Unauthenticated):
        keys.check(f"Bearer {ann}")


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic {key}", "{key}", "Bearer {hash}"]
)
def test_what_is_no_key(tmp_path, given):
    file = tmp_path / "keys"
    key = make(file, "ann")
    given = given.format(key=key, hash=file.read_text().strip().partition(":")[2])
    with pytest.raises(Unauthenticated, match="Bearer"):
        Keys(str(file)).check(given)


def test_without_a_file_nobody_needs_one():
    assert Keys("").check("") == ""


@pytest.mark.parametrize(
    "line", ["ann", "ann:12", "a b:" + "0" * 64, "ann:" + "0" * 64 + "\nann:" + "1" * 64]
)
def test_a_file_that_is_none(tmp_path, line):
    file = tmp_path / "keys"
    file.write_text(line)
    with pytest.raises(ValueError, match="line"):
        Keys(str(file))


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match="HUVIDPO_API_KEYS"):
        Keys(str(tmp_path / "keys"))
