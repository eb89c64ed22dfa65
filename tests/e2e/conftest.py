"""A real `bentoml serve` in the repository root, on a free loopback port; a real browser."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import pytest
from clips import write_clip
from family import add_preferences, build_random_family
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families

from preferences.clips import ClipEntry, write_clips

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGE_WAIT = 60_000  # milliseconds, for a busy machine
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
            kill(self.process)
        return time.monotonic() - started

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a server that still runs, and of its workers: each of those is a session of its own, so a
    signal to the server's group does not reach them, and they would go on without it.
    """
    if process.poll() is not None:
        return
    server = psutil.Process(process.pid)
    server.suspend()  # it starts no other worker meanwhile
    everyone = [*server.children(recursive=True), server]
    for one in everyone:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(everyone[:-1])
    process.wait()


@pytest.fixture(scope="session")
def random_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = build_random_family(tmp_path_factory.mktemp("family"))
    add_preferences(family)  # to horse
    return family


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


class Collector:
    """Takes spans as an OpenTelemetry collector does: OTLP over HTTP. `bodies` as they came."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        Thread(target=self._http.serve_forever, daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="session")
def server(
    start_server: Callable[..., Server], random_family: Path, rated_clips: Path, collector: Collector
) -> Server:
    """One server with random weights for all tests that leave it as it was."""
    policy = random_family / "policy.toml"
    policy.write_text(
        '[weapons]\naction = "block"\ndeny = ["gun"]\n[brands]\naction = "tag"\ndeny = ["acme"]'
    )
    (random_family / "looks.py").write_text(
        'SAYS = {13: ("block", "unlucky"), 12: ("tag", "a dozen")}\n'
        "def at_their_number(frames):\n    return SAYS.get(len(frames), 'ok')"
    )
    server = start_server(
        PYTHONPATH=str(random_family),
        HUVIDPO_FRAME_CHECK="looks:at_their_number",
        HUVIDPO_CATALOG=str(random_family / "catalog"),
        HUVIDPO_MAX_BODY_MIB="1",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="200",
        HUVIDPO_RATING_CLIPS=str(rated_clips),
        HUVIDPO_BACKEND="torch",  # the default compiles for each of the many shapes these tests ask for
        HUVIDPO_RELOAD_SECONDS="1",
        HUVIDPO_POLICY_FILE=str(policy),
    )
    assert server.wait_ready() <= {200, 503}
    return server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page as a new person would, and checks at the end that nothing went wrong in it."""
    problems, outside, contexts = list[str](), list[str](), list[Any]()

    def open_page(url: str, rater: str | None = None, **context: Any) -> Any:
        contexts.append(chromium.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(PAGE_WAIT)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console", lambda line: problems.append(line.text) if "Content Security" in line.text else None
        )
        own = (url.partition("#")[0], "blob:" + url.partition("#")[0])
        page.on(
            "request", lambda request: None if request.url.startswith(own) else outside.append(request.url)
        )
        page.goto(url)
        if rater:
            page.fill("#rater", rater)
            page.keyboard.press("Enter")
            page.wait_for_selector("#stage > *")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems
    assert not outside
