"""A process of tests/jobs_process.py, and what to say to it."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Engine:
    """One process of tests/jobs_process.py."""

    def __init__(self, folder: Path, database_url: str = "", steps=None, runners=None, **settings: Any):
        self.folder, self.log = folder, folder / "log"
        self.log.touch()
        given = {
            "settings": {"data": str(folder), "database_url": database_url, "lease_seconds": 2} | settings,
            "log": str(self.log),
            "steps": {"first_frame": 0.002, "video": 0.01} | (steps or {}),
            "runners": runners or {},
        }
        self.errors = (folder / f"errors-{time.monotonic_ns()}").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "jobs_process.py"), json.dumps(given)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.executor = ""

    def ready(self) -> "Engine":
        self.executor = self.answer()["ready"]
        return self

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, Path(self.errors.name).read_text()[-3000:]
        return json.loads(line)

    def do(self, what: str, **fields: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"do": what, **fields}).encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def wait(self, id: str, condition=lambda job: job["status"] in ("completed", "failed"), seconds=30):
        deadline = time.monotonic() + seconds
        while not condition(job := self.do("get", id=id)):
            assert time.monotonic() < deadline, job
            time.sleep(0.02)
        return job

    def lines(self) -> Counter[str]:
        return Counter(self.log.read_text().splitlines())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As at SIGTERM: stdin ends, the engine stops in order."""
        self.process.stdin.close()
        assert self.process.wait(20) == 0, Path(self.errors.name).read_text()[-3000:]
