"""API keys: the file, and what is a key."""

import os
import subprocess
import sys

import pytest

from service import keys as keys_module
from service.errors import QueueFull, Unauthenticated
from service.keys import Keys


def make(file, *name: str) -> str:
    """A key as the command makes it; its line is added to the file."""
    made = subprocess.run(
        [sys.executable, "-m", "service.keys", *name], capture_output=True, text=True, check=True
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
    carl = make(file, "carl")
    os.utime(file, ns=(0, 3))
    assert keys.check(f"Bearer {carl}") == "carl"
    for broken in (lambda: file.write_text("half a li"), file.unlink):
        broken()  # while somebody writes it, say
        assert keys.check(f"Bearer {carl}") == "carl"


def test_a_rate_is_given_back_evenly(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(keys_module.time, "monotonic", lambda: now)
    file = tmp_path / "keys"
    make(file, "ann", "rate=3")
    make(file, "bob")
    keys = Keys(str(file))
    for _ in range(3):
        keys.spend("ann")
    with pytest.raises(QueueFull, match="3 clips a minute, wait 20 seconds") as refused:
        keys.spend("ann")
    assert refused.value.retry_after == 20
    now += 20
    keys.spend("ann")
    with pytest.raises(QueueFull):
        keys.spend("ann")
    now += 10_000
    for _ in range(3):  # no more is saved up
        keys.spend("ann")
    with pytest.raises(QueueFull):
        keys.spend("ann")
    for _ in range(100):
        keys.spend("bob")
        keys.spend("")


def test_places_are_given_back(tmp_path):
    file = tmp_path / "keys"
    make(file, "ann", "concurrency=2")
    keys = Keys(str(file))
    with keys.place("ann"), keys.place("ann"):
        with pytest.raises(QueueFull, match="2 clips of this key are in the making"), keys.place("ann"):
            pass
        with keys.place("bob"), keys.place("bob"), keys.place("bob"):
            pass
    with pytest.raises(RuntimeError), keys.place("ann"):
        raise RuntimeError
    with keys.place("ann"), keys.place("ann"):
        pass


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
    "line",
    [
        "ann",
        "ann:12",
        "a b:" + "0" * 64,
        "ann:" + "0" * 64 + " rate=0",
        "ann:" + "0" * 64 + " size=1",
        "ann:" + "0" * 64 + "\nann:" + "1" * 64,
    ],
)
def test_a_file_that_is_none(tmp_path, line):
    file = tmp_path / "keys"
    file.write_text(line)
    with pytest.raises(ValueError, match="line"):
        Keys(str(file))


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match="HUVIDPO_API_KEYS"):
        Keys(str(tmp_path / "keys"))
