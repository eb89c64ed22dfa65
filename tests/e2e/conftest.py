"""A real `bentoml serve` in the repository root, on a free loopback port."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from clips import write_clip
from family import build_random_family
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families

from preferences.clips import ClipEntry, write_clips

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 300  # torch takes its time on a machine that is busy with something else


class Server:
    """`bentoml serve`, without arguments unless given any: it has to find everything by itself."""

    def __init__(self, folder: Path, *args: str, cwd: Path = ROOT, **env: str):
        port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "serve.log"
        own = {
            "BENTOML_HOME": str(folder / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOST": "127.0.0.1",
        }
        own |= {
            "BENTOML_PORT": str(port),
            "HUVIDPO_GRPC_PORT": str(self.grpc_port),
            "HUVIDPO_DATA": str(folder / "data"),
            "OMP_NUM_THREADS": "1",
            "HUVIDPO_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "XDG_RUNTIME_DIR": str(folder),  # where it takes turns: with no server but itself
        }
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HUVIDPO_", "PROMETHEUS_"))
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bentoml", "serve", *args],
                cwd=cwd,
                env=clean | own | env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.client = httpx.Client(base_url=self.url, timeout=300)

    def wait_ready(self) -> set[int]:
        """The statuses /readyz answered with until it was 200."""
        seen = set()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended:\n{self.tail()}"
            with suppress(httpx.TransportError):
                seen.add(self.client.get("/readyz", timeout=30).status_code)
            if 200 in seen:
                return seen
            time.sleep(0.2)
        raise AssertionError(f"not ready after {START_SECONDS} seconds:\n{self.tail()}")

    def generate(self, **fields: Any) -> httpx.Response:
        body = {
            "prompt": "a white horse runs on mars",
            "category": "horse",
            "style": "realistic",
            "steps": 1,
        } | fields
        return self.client.post("/generate_video", json=body)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of `name` that carry `labels`."""
        text = self.client.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def runner(self, name: str) -> psutil.Process:
        """The newest process of a runner service."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return max(
            (child for child in children if name in child.cmdline()), key=lambda child: child.create_time()
        )

    def stop(self, timeout: float = 60) -> float:
        """SIGTERM, as an orchestrator does. Returns the seconds it took to exit."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout)
        finally:
            self.client.close()
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        return time.monotonic() - started

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


@pytest.fixture(scope="session")
def random_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers; those still running at the end of the session are stopped."""
    servers: list[Server] = []

    def start(*args: str, cwd: Path = ROOT, **env: str) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("serve"), *args, cwd=cwd, **env))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def rated_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one clip, which the server shows at /rate."""
    folder = tmp_path_factory.mktemp("rated")
    write_clip(folder / "0.mp4")
    write_clips(folder, [ClipEntry(video="0.mp4", caption="a horse runs")])
    return folder


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server], random_family: Path, rated_clips: Path) -> Server:
    """One server with random weights for all tests that leave it as it was."""
    server = start_server(
        HUVIDPO_CATALOG=str(random_family / "catalog"),
        HUVIDPO_MAX_BODY_MIB="1",
        HUVIDPO_RATING_CLIPS=str(rated_clips),
        HUVIDPO_BACKEND="torch",  # the default compiles for each of the many shapes these tests ask for
    )
    assert server.wait_ready() <= {200, 503}
    return server
