"""Prometheus and Alertmanager as deployed, with all durations of the rules shortened, and what they say."""

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from deploy.rehearsal.cluster import Cluster
from deploy.rehearsal.manifests import ROOT

FASTER = 60  # a minute of the rules is a second here
PROMETHEUS, ALERTMANAGER, RECEIVER = ("127.1.9.1", 9090), ("127.1.9.2", 9093), ("127.1.9.3", 9095)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def faster(duration: str) -> str:
    """ "5m" -> "5s"; nothing becomes shorter than a second, Prometheus's interval here."""
    number, unit = int(duration[:-1]), duration[-1]
    return f"{max(1, round(number * _SECONDS[unit] / FASTER))}s"


def faster_rules(text: str) -> str:
    """The rules with every `for:`, `interval:` and range that much shorter."""
    rules = yaml.safe_load(text)
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\[(\d+[smhd])\]", lambda m: f"[{faster(m[1])}]", rule["expr"])
            if "for" in rule:
                rule["for"] = faster(rule["for"])
    return yaml.safe_dump(rules)


@dataclass
class Watch:
    """`alerts`: (seconds, name, "firing" or "resolved") as Alertmanager delivered them. Raises
    FileNotFoundError for what is not installed.
    """

    cluster: Cluster
    root: Path
    now: Callable[[], float] = time.monotonic
    alerts: list[tuple[float, str, str]] = field(default_factory=list)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _server: web.AppRunner | None = None

    def __post_init__(self) -> None:
        for name, program in PROGRAMS.items():
            if program is None:
                raise FileNotFoundError(
                    f"no {name} is installed: apt-get install prometheus prometheus-alertmanager"
                )

    async def start(self) -> None:
        self.root.mkdir(parents=True)
        rules = (ROOT / "deploy/prometheus/rules.yaml").read_text()
        (self.root / "rules.yaml").write_text(faster_rules(rules))
        (self.root / "alertmanager.yaml").write_text(yaml.safe_dump(_routes()))
        self.write_targets()
        (self.root / "prometheus.yaml").write_text(yaml.safe_dump(self._config()))
        await self._receive()
        address = "{0[0]}:{0[1]}".format
        self._run(
            "alertmanager", f"--config.file={self.root}/alertmanager.yaml",
            f"--storage.path={self.root}/alertmanager", f"--web.listen-address={address(ALERTMANAGER)}",
            "--cluster.listen-address=",
        )  # fmt: skip
        self._run(
            "prometheus", f"--config.file={self.root}/prometheus.yaml",
            f"--storage.tsdb.path={self.root}/data", f"--web.listen-address={address(PROMETHEUS)}",
            "--query.lookback-delta=5s", "--rules.alert.resend-delay=1s", "--rules.alert.for-grace-period=0s",
        )  # fmt: skip

    def write_targets(self) -> None:
        """What a cluster's discovery would find."""
        targets = [
            {
                "targets": [pod.url.removeprefix("http://")],
                "labels": {"job": f"huvidpo-{pod.spec.component}", "pod": pod.name},
            }
            for pod in self.cluster.pods
            if not pod.leaving
        ]
        (self.root / "targets.yaml").write_text(yaml.safe_dump(targets))

    def firing(self) -> set[str]:
        states: dict[str, str] = {}
        for _, name, state in self.alerts:
            states[name] = state
        return {name for name, state in states.items() if state == "firing"}

    async def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait()
        if self._server is not None:
            await self._server.cleanup()

    def _config(self) -> dict[str, Any]:
        return {
            "global": {"scrape_interval": "1s", "scrape_timeout": "900ms", "evaluation_interval": "1s"},
            "rule_files": [str(self.root / "rules.yaml")],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": ["{}:{}".format(*ALERTMANAGER)]}]}]
            },
            "scrape_configs": [
                {
                    "job_name": "huvidpo",
                    "file_sd_configs": [
                        {"files": [str(self.root / "targets.yaml")], "refresh_interval": "1s"}
                    ],
                }
            ],
        }

    def _run(self, name: str, *arguments: str) -> None:
        program = PROGRAMS[name]
        assert program is not None
        with (self.root / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen([program, *arguments], stdout=log, stderr=subprocess.STDOUT)
            )

    async def _receive(self) -> None:
        async def told(request: web.Request) -> web.Response:
            group = await request.json()  # of one name: it fires while one of its alerts does
            name, state = group["groupLabels"]["alertname"], group["status"]
            if (name in self.firing()) != (state == "firing"):
                self.alerts.append((self.now(), name, state))
            return web.Response()

        app = web.Application()
        app.router.add_post("/{receiver}", told)
        self._server = web.AppRunner(app)
        await self._server.setup()
        await web.TCPSite(self._server, *RECEIVER).start()

    async def until(self, wanted: Callable[[set[str]], bool], seconds: float) -> bool:
        """Whether what fires was so within that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not wanted(self.firing()):
                    await asyncio.sleep(0.2)
                return True
        return False


def _routes() -> dict[str, Any]:
    """One receiver for all, told at once: by name, so that an alert of several pods is one."""
    url = "http://{}:{}/all".format(*RECEIVER)
    return {
        "route": {
            "receiver": "all", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s",
            "repeat_interval": "1h",
        },
        "receivers": [{"name": "all", "webhook_configs": [{"url": url, "send_resolved": True}]}],
    }  # fmt: skip


PROGRAMS = {
    "prometheus": shutil.which("prometheus"),
    "alertmanager": shutil.which("alertmanager") or shutil.which("prometheus-alertmanager"),
}
