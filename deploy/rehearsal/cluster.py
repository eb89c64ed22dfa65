"""Pods without a cluster. Each is a process with an address of its own on loopback, in the environment that
the manifests give it; names are looked up in /etc/hosts, which this process has for itself (see __main__.py).
What a kubelet does is done here: the ready ones are in the hosts file, the dead ones are started again.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy.rehearsal.manifests import ROOT, PodSpec

PROBE_SECONDS = 1.0  # between two looks at a pod; a cluster looks every five
UNREADY_AFTER = 3  # probes in a row, as Kubernetes has it
START_SECONDS = 240.0  # on a busy machine
DATABASE, USER = "127.1.9.9", "huvidpo"  # where Postgres listens, and for whom: as the manifests' secret says
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Processes of its own: they end with the first of them, and with this program."""


@dataclass(eq=False)
class Pod:
    name: str
    spec: PodSpec
    address: str
    folder: Path
    held: bool = False  # whether it stays dead
    leaving: bool = False
    ready: bool = False
    misses: int = 0
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.spec.environment['BENTOML_PORT']}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """To the container's first process, as a kubelet does; SIGSTOP and SIGCONT to all, as a freezer."""
        assert self.process is not None
        with suppress(psutil.NoSuchProcess):
            inside = psutil.Process(self.process.pid).children(recursive=True)
            for process in inside if number in (signal.SIGSTOP, signal.SIGCONT) else inside[:1]:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)


@dataclass
class Cluster:
    """`data`: the volume that all gateways share. `settings`: variables beside those of the manifests."""

    root: Path
    data: Path
    hosts: Path
    specs: dict[str, PodSpec]
    settings: dict[str, str] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    tell: Callable[[str], Any] = print
    _numbers: Iterator[int] = field(default_factory=count)
    _probes: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=PROBE_SECONDS))

    def add(self, component: str) -> Pod:
        """Not started yet; of an address that no other had."""
        number = next(self._numbers)
        name = f"{component}-{number}"
        address = f"127.1.{number // 250}.{number % 250 + 1}"
        pod = Pod(name, self.specs[component], address, self.root / "pods" / name)
        self.pods.append(pod)
        return pod

    def of(self, component: str, ready: bool = True) -> list[Pod]:
        """In order; the ready ones, or all that are not leaving."""
        return [
            pod
            for pod in self.pods
            if pod.spec.component == component and not pod.leaving and (pod.ready or not ready)
        ]

    async def start(self, pod: Pod) -> None:
        environment = self.environment(pod)
        log = (pod.folder / "log").open("ab")
        pod.process = await asyncio.create_subprocess_exec(
            *CONTAINER, "sh", "service/entrypoint.sh", cwd=ROOT, env=environment, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        log.close()
        pod.misses = 0

    def environment(self, pod: Pod) -> dict[str, str]:
        """As the manifests have it, with folders of this machine in the place of volumes."""
        places = {}
        for path, volume in pod.spec.mounts.items():
            shared = volume == "data" and pod.spec.component == "gateway"
            places[path] = self.data if shared else pod.folder / volume
            places[path].mkdir(parents=True, exist_ok=True)
        for path, content in pod.spec.files.items():
            Path(_placed(path, places)).write_bytes(content)
        environment = {name: _placed(value, places) for name, value in pod.spec.environment.items()}
        own = {
            "BENTOML_HOST": pod.address,
            "TMPDIR": _placed("/tmp", places),
            "HOME": _placed("/tmp", places),
        }
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "LANG": "C.UTF-8"} | environment | own | self.settings

    async def until_ready(self, pods: Iterable[Pod]) -> None:
        """Raises TimeoutError."""
        pods = list(pods)
        deadline = time.monotonic() + START_SECONDS
        while not all(pod.ready for pod in pods):
            if time.monotonic() > deadline:
                late = [pod.name for pod in pods if not pod.ready]
                raise TimeoutError(
                    f"not ready after {START_SECONDS:.0f} s: {', '.join(late)}; see {self.root}/pods"
                )
            await asyncio.sleep(0.2)

    async def end(self, pod: Pod) -> float:
        """SIGTERM, and SIGKILL once its grace is over; its name first. Returns the seconds it took."""
        assert pod.process is not None
        began, pod.leaving, pod.ready = time.monotonic(), True, False
        self._write_hosts()
        pod.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(pod.process.wait(), pod.spec.grace_seconds)
        except TimeoutError:
            pod.signal(signal.SIGKILL)
            await pod.process.wait()
            self.tell(f"{pod.name} did not end within its grace of {pod.spec.grace_seconds} s")
        return time.monotonic() - began

    async def look_after(self) -> None:
        """For ever."""
        while True:
            await asyncio.gather(*(self._look(pod) for pod in self.pods if not pod.leaving))
            self._write_hosts()
            await asyncio.sleep(PROBE_SECONDS)

    async def _look(self, pod: Pod) -> None:
        if not pod.alive:
            pod.ready = False
            if pod.process is not None and not pod.held:
                self.tell(f"{pod.name} has ended with {pod.process.returncode}: started again")
                await self.start(pod)
            return
        try:
            good = (await self._probes.get(f"{pod.url}/readyz")).status_code == 200
        except httpx.HTTPError:
            good = False
        pod.misses = 0 if good else pod.misses + 1
        pod.ready = good or (pod.ready and pod.misses < UNREADY_AFTER)

    def _write_hosts(self) -> None:
        lines = ["127.0.0.1 localhost", f"{DATABASE} postgres"]
        lines += [f"{pod.address} {pod.spec.component}" for pod in self.pods if pod.ready and not pod.leaving]
        text = "\n".join(lines) + "\n"
        if self.hosts.read_text() != text:
            self.hosts.write_text(text)  # in place: it is mounted

    async def close(self) -> None:
        await self._probes.aclose()
        for pod in self.pods:
            pod.signal(signal.SIGCONT)
            pod.signal(signal.SIGKILL)
            if pod.process is not None:
                await pod.process.wait()


class Postgres:
    """One of its own in `folder`, as the user postgres when we are root: it refuses to be that. Raises
    FileNotFoundError where none is installed.
    """

    def __init__(self, folder: Path, address: str, port: int = 5432, database: str = USER):
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not programs:
            raise FileNotFoundError("no Postgres is installed: apt-get install postgresql")
        self.programs, self.folder, self.address, self.port = programs[-1], folder, address, port
        self._user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        folder.mkdir(parents=True, exist_ok=True)
        if self._user:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", folder / "data", "-U", USER, "-A", "trust", "--no-sync")
        self.start()
        self.url = self.create(database)

    def create(self, database: str) -> str:
        """The URL of a new one."""
        self._run("createdb", "-h", self.address, "-p", self.port, "-U", USER, database)
        return f"postgresql://{USER}@{self.address}:{self.port}/{database}"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses={self.address} -c fsync=off"
        log = self.folder / "log"
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: Any) -> None:
        # pg_ctl's server inherits its output: a pipe would never end
        command = [*self._user, str(self.programs / program), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _placed(value: str, places: dict[str, Path]) -> str:
    """`value`, if it is a path in a mounted folder, as a path of this machine."""
    for path, folder in places.items():
        if value == path or value.startswith(f"{path}/"):
            return f"{folder}{value[len(path) :]}"
    return value
