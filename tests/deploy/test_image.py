"""The image: what its recipe promises, and, where one was built, that it serves as a cluster would run it."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
import yaml
from ports import free_port

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SCRIPTS = ["service/entrypoint.sh", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("deploy/**/*.sh"))]
PATHS = {"HUVIDPO_ENGINES", "HUVIDPO_WEIGHTS", "HUVIDPO_CATALOG"}  # read by huvidpo, not by the service


def stages() -> dict[str, list[str]]:
    """Name of a stage -> its instructions, in one line each."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE)).splitlines():
        if start := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[start[2]] = list(found.get(start[1], []))
        elif found and line:
            found[list(found)[-1]].append(line)
    return found


@pytest.mark.parametrize(
    "command", [["hadolint", "Dockerfile"], ["shellcheck", *SCRIPTS]], ids=["docker", "sh"]
)
def test_linters_find_nothing(command):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", ["cpu", "cuda", "train"])
def test_images_run_without_root_and_without_a_compiler(target):
    lines = stages()[target]
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]
    assert not [line for line in lines if re.search(r"\b(apt|apt-get|gcc|pip)\b", line)]
    assert sum(line.endswith("/opt/venv /opt/venv") for line in lines) == 1


def test_bases_are_pinned():
    assert re.findall(r"^ARG BASE=(.*)", DOCKERFILE, re.M) == ["python:3.11.14-slim-bookworm"]
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) <= {"${BASE}", *stages()}
    unpinned = re.findall(r"pip install (.*)", DOCKERFILE)
    assert all("-r /requirements/" in line for line in unpinned)
    assert "==" in re.search(r'^ARG TENSORRT="(.*)"', DOCKERFILE, re.M)[1]


def test_variables_are_read_by_somebody():
    known = {f"HUVIDPO_{field.name.upper()}" for field in fields(Settings)} | PATHS
    assert set(re.findall(r"HUVIDPO_\w+", DOCKERFILE)) <= known


def test_the_service_ships_what_the_bento_ships():
    include = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]
    copied = {name for line in stages()["cpu"] for name in re.findall(r"^COPY (\w+) \w+$", line)}
    assert copied == {name.split("/")[0] for name in include if "/" in name.lstrip("/")}


def test_neither_ships_what_serving_does_not_read():
    """The judge of the gate, and weights that were replaced."""
    excluded = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["exclude"]
    assert "models/*/judge/" in excluded
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {name.rstrip("/") for name in excluded} <= set(ignored)


def test_the_ignore_file_lets_through_what_is_copied():
    let = (ROOT / ".dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.M):
        for name in line.split()[:-1]:
            assert re.search(rf"^!{re.escape(name)}(/\*\.txt)?$", let, re.M), name


@pytest.mark.skipif("HUVIDPO_IMAGE" not in os.environ, reason="HUVIDPO_IMAGE names no built image")
def test_a_built_image_serves_a_clip(tmp_path):
    """As root, after deploy/image/build.sh or bento.sh; HUVIDPO_IMAGE=localhost/huvidpo:cpu, say."""
    port = free_port()
    own = {"BENTOML_PORT": str(port), "HUVIDPO_GRPC_PORT": str(free_port()), "BENTOML_HOST": "127.0.0.1"}
    own |= {"HUVIDPO_DATA": "/data", "BENTOML_HOME": "/tmp/bentoml"}  # ours has them already
    command = [ROOT / "deploy/image/run.py", os.environ["HUVIDPO_IMAGE"], tmp_path]
    with subprocess.Popen(command, env=os.environ | own) as running:
        try:
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
            deadline = time.monotonic() + 300
            status = 0
            while status != 200 and time.monotonic() < deadline and running.poll() is None:
                time.sleep(0.5)
                with suppress(httpx.TransportError):
                    status = client.get("/readyz").status_code
            assert status == 200
            body = {"prompt": "a white horse runs", "category": "horse", "style": "realistic"}
            answer = client.post("/generate_video", json=body)
            assert (answer.status_code, answer.content[4:8]) == (200, b"ftyp")
            assert {path.name for path in tmp_path.iterdir()} >= {"jobs.sqlite"}  # it writes there alone
        finally:
            running.terminate()
