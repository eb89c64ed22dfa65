"""The bento: what `bentoml build` puts into it, and that it serves by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.conftest import ROOT

TOP = {"LICENSE", "README.md", "bentofile.yaml", "huvidpo", "models", "preferences", "service"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bento")


@pytest.fixture(scope="module")
def tag(home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
        cwd=ROOT,
        env=os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().rsplit("\n", 1)[-1].removeprefix("__tag__:")


def source(home: Path, tag: str) -> Path:
    return home / "bentos" / tag.replace(":", "/") / "src"


def test_what_ships(home, tag):
    folder = source(home, tag)
    assert {path.name for path in folder.iterdir()} == TOP
    shipped = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    tracked = subprocess.run(
        ["git", "ls-files", "huvidpo", "preferences", "service", "models"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    assert {
        name
        for name in tracked
        if name.endswith((".py", ".toml", ".safetensors", ".json", ".html", ".css", ".js"))
        and "/judge/" not in name
    } <= shipped
    assert not [name for name in shipped if "/judge/" in name]  # of the gate, which does not run there


def test_it_serves_by_tag_from_anywhere(home, tag, start_server, tmp_path):
    server = start_server(tag, cwd=tmp_path, BENTOML_HOME=str(home), HUVIDPO_BACKEND="torch")
    server.wait_ready()
    answer = server.generate(steps=2, frames=4)
    assert (answer.status_code, answer.headers["x-model"]) == (200, "tiny")
    assert answer.content[4:8] == b"ftyp"
    assert not list(tmp_path.iterdir())
    server.stop()


@pytest.mark.long
def test_it_serves_by_folder(home, tag, start_server, tmp_path):
    server = start_server(str(source(home, tag).parent), cwd=tmp_path)
    server.wait_ready()
    assert server.generate(steps=1, frames=2).status_code == 200
    server.stop()
