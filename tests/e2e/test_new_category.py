"""docs/new-category.md: every command of it as it is written, at reduced steps."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from e2e.conftest import kill
from ports import free_port

from huvidpo import video
from huvidpo.checkpoint import load_tensors, read_metadata

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "new-category.md"
# What is made smaller. Everything else runs as the page says.
REDUCED = {
    "-m training.motion ": "-m training.motion --steps 3 --set batch_size=2 --set frames=4 ",
    "--count 8 ": "--count 6 ",
    "-m training.dpo ": "-m training.dpo --steps 3 --set sample_every=3 --set frames=4 ",
    "-m judging.promote ": "-m judging.promote --count 3 ",  # 3 wins of 3 prove nothing: refused
}
QUICK = '[models.tiny]\nlike = "tiny"\ndefaults = { steps = 2, first_frame_steps = 2 }\n'
"""Beside the page's own entry of the catalog: every clip that is made takes two steps."""
REFUSED = 4  # promote's verdict; a failure would be 2


def candle(seed: int, frames: int = 16, size: int = 64) -> np.ndarray:
    """A flame that flickers over a candle, uint8 [frames, size, size, 3]."""
    rng = np.random.default_rng(seed)
    background, sway = rng.integers(5, 60, 3), rng.uniform(2, 5)
    y, x = np.mgrid[:size, :size]
    clip = np.tile(background.astype(np.uint8), (frames, size, size, 1))
    clip[:, 40:, 26:38] = rng.integers(180, 240, 3)
    for t in range(frames):
        lean = sway * np.sin(1.3 * t + seed) * (38 - y).clip(0) / 20
        flame = np.hypot((x - 32 - lean) / 5, (y - 30) / (10 + np.cos(2.1 * t))) < 1
        clip[t][flame] = (255, 190, 60)
    return clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose tools are installed, with clips: links to this one, but for what the page writes."""
    folder = tmp_path_factory.mktemp("tutorial")
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("models", "runs"):
            (folder / path.name).symlink_to(path)
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    for name in ("dev.done", "serve.done"):
        (folder / ".venv" / name).touch()
    (folder / "models/tiny/categories").mkdir(parents=True)
    (folder / "candle/catalog").mkdir(parents=True)
    (folder / "candle/catalog/quick.toml").write_text(QUICK)
    (folder / "candle_clips").mkdir()
    for i in range(8):
        (folder / "candle_clips" / f"{i}.mp4").write_bytes(video.encode(candle(i), 8))
        (folder / "candle_clips" / f"{i}.txt").write_text("a candle flame flickers in the dark")
    return folder


class Terminal:
    """bash in `folder`: what a block exports or sources holds for the next."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.port = folder, port
        own = {"HUVIDPO_WEIGHTS": str(folder), "OMP_NUM_THREADS": "1", "HUVIDPO_THREADS": "1"}
        own |= {
            "HF_HUB_OFFLINE": "1",
            "BENTOML_HOME": str(folder / "home"),
            "HUVIDPO_DATA": str(folder / "data"),
        }
        own |= {"HUVIDPO_GRPC_PORT": str(free_port()), "HUVIDPO_BACKEND": "torch"}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HUVIDPO_")}
        self.env = clean | own

    def run(self, block: str, allowed: int = 0) -> str:
        """Its output. Asserts its exit status."""
        script = f"trap 'declare -px > exported' EXIT\n{block}"
        done = subprocess.run(
            self._bash(script), cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == allowed, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    @contextmanager
    def serving(self, block: str, path: str) -> Iterator[None]:
        """`block`, which serves until Ctrl-C: once it answers 200 at `path`."""
        log = self.folder / "log.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                self._bash(block),
                cwd=self.folder,
                env=self.env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            for _ in range(1500):
                assert process.poll() is None, log.read_text()[-4000:]
                try:
                    if httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
            else:
                raise AssertionError(f"not ready:\n{log.read_text()[-4000:]}")
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            finally:
                kill(process)

    def _bash(self, script: str) -> list[str]:
        exported = self.folder / "exported"
        before = f"source {exported}\n" if exported.exists() else ""
        return ["bash", "-euo", "pipefail", "-c", before + script]


def blocks(port: int) -> list[str]:
    """Every fenced block, the commands of REDUCED smaller and the ports free ones."""
    text = TUTORIAL.read_text(encoding="utf-8")
    script = "\0".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    ports = {
        "localhost:3000": f"localhost:{port}",
        "make serve": f"make serve PORT={port}",
        "-m service.rating ": f"-m service.rating --port {port} ",
    }
    for old, new in (REDUCED | ports).items():
        assert old in script, f"the page no longer says {old!r}"
        script = script.replace(old, new)
    return script.split("\0")


@pytest.mark.long  # tests/test_docs_commands.py parses the page's commands
@pytest.mark.timeout(900)
def test_every_command_of_the_page(folder: Path) -> None:
    port = free_port()
    terminal, script = Terminal(folder, port), blocks(port)
    served = script.index(f"make serve PORT={port}\n")
    said = ""
    for block in script[:served]:
        if "-m service.rating " in block:
            with terminal.serving(block, "/"):
                pass
        else:
            said += terminal.run(block, REFUSED if "judging.promote" in block else 0)
    check_files(folder, said)
    with terminal.serving(script[served], "/readyz"):
        generate, models = (terminal.run(block) for block in script[served + 1 :])
    assert generate == ""
    assert video.decode(folder / "candle.mp4")[0].shape == (16, 64, 64, 3)
    stage1 = read_metadata(folder / "candle" / "stage1.safetensors")
    (candle,) = [entry for entry in json.loads(models)["categories"] if entry["name"] == "candle"]
    assert stage1["clips"] in json.dumps(candle)
    assert stage1["base"] in json.dumps(candle)


def check_files(folder: Path, said: str) -> None:
    """What the page says is where, and that the gate said what to copy where."""
    merged = folder / "candle" / "candle.safetensors"
    assert read_metadata(merged)["category"] == "candle"
    assert json.loads(merged.with_suffix(".card.json").read_text())["lineage"]["category"] == "candle"
    stage1 = load_tensors(folder / "candle" / "stage1.safetensors")
    assert stage1.keys() < load_tensors(merged).keys()
    shipped = folder / "models/tiny/categories/candle.safetensors"
    assert "refused: it wins" in said
    assert f"cp candle/stage1.safetensors {shipped}" in said
    assert shipped.read_bytes() == (folder / "candle" / "stage1.safetensors").read_bytes()
    assert (folder / "runs/dpo/tiny-candle/monitors.png").is_file()
