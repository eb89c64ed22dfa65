"""Jobs through kills, freezes and a database that goes away: what is lost, stuck, made twice, and how fast.

    python -m benchmarks.jobs_survive                  100 jobs, 10 faults, 20 s without database: 5 minutes
    python -m benchmarks.jobs_survive --seed 3         other faults

Two gateways as they are deployed, on one Postgres and one folder of clips, and two runners of each stage, all
processes of their own. The runners are those of painted_runner.py, whose log says what was computed when.

Calm: from POST to the moment the job is on the device; from POST .../cancel to the moment the device is free.
Faults: a seeded choice of process, killed with its children (and started again) or stopped for up to twice
the lease, a gateway while it has a job; jobs are asked for with Idempotency-Key meanwhile. Then: `lost` were
accepted and did not end well, `stuck` did not end at all, `doubled` are in the list twice, `made_again` began
anew after their picture or clip was stored. `wasted` was computed to the end more than once before it was
stored, as when a runner dies with it. What is found is held against the targets; where one is missed the
status is 1.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import psycopg

from benchmarks import common
from benchmarks.common import ROOT, record
from benchmarks.painted_runner import notes_of
from benchmarks.service_overhead import free_port
from deploy.rehearsal.cluster import Postgres

LEASE_SECONDS = 5
STEP_SECONDS = 0.05  # of denoising; the first frame has the model's own number
STEPS = 20  # of a clip
ASK_SECONDS = 3.0  # until a gateway that does not answer is given up for the other
START_SECONDS = 120.0
STUCK_SECONDS = 90.0  # after the last fault
LOOK_SECONDS = 0.05
ARRIVE_SECONDS = 1.4  # between two jobs, on average
TARGETS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "nothing lost, doubled, stuck or unreadable": lambda found: (
        not any(found[name] for name in ("lost", "doubled", "stuck", "unreadable"))
    ),
    "nothing made again": lambda found: not any(found["made_again"].values()),
    "takeover <= lease + 2 s, and seen": lambda found: (
        max(found["takeover_s"], default=0) <= LEASE_SECONDS + 2
        and (bool(found["takeover_s"]) or not any("gateway" in str(fault) for fault in found["faults"]))
    ),
    "enqueue to device p95 <= 150 ms": lambda found: found["enqueue_ms"]["p95"] <= 150,
    "cancel to free device <= one step + 100 ms": lambda found: (
        found["cancel_ms"]["max"] <= 1000 * STEP_SECONDS + 100
    ),
    "503 without database": lambda found: found["without_database"] == [503],
}


@dataclass(eq=False)
class Process:
    name: str
    port: int
    command: list[str]
    environment: dict[str, str]
    log: Path
    running: subprocess.Popen[bytes] | None = None
    executor: str = ""  # id that a gateway has since its start

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def gateway(self) -> bool:
        return self.name.startswith("gateway")

    async def start(self) -> None:
        """Until it is ready. Raises RuntimeError."""
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        async with httpx.AsyncClient(base_url=self.url, timeout=ASK_SECONDS) as client:
            while time.monotonic() < deadline and self.running.poll() is None:
                with suppress(httpx.HTTPError):
                    answer = await client.get("/readyz" if self.gateway else "/describe")
                    if answer.status_code == 200 and (self.gateway or answer.json()["ready"]):
                        return
                await asyncio.sleep(0.1)
        raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-3000:]}")

    def signal(self, number: signal.Signals) -> None:
        """To it and its children, which BentoML gives sessions of their own."""
        assert self.running is not None
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.running.pid)
            for process in (parent, *parent.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        if number == signal.SIGKILL:
            self.running.wait()


class Watch(Thread):
    """What happens to the jobs, with the times at which it was seen."""

    def __init__(self, database_url: str, clips: Path, painted: Path):
        super().__init__(daemon=True)
        self.noted: dict[tuple[int, str, str], list[float]] = {}  # seed, stage, what -> when a runner did it
        self.holders: dict[str, list[tuple[float, str]]] = {}  # job -> whose it was, from when on
        self.status: dict[str, str] = {}
        self.executors: set[str] = set()  # all that ever had a lease
        self.stored: dict[tuple[str, str], float] = {}  # job, stage -> when its file was there
        self._url, self._clips, self._painted = database_url, clips, painted.open()
        self._begun_line = ""

    def run(self) -> None:
        while True:
            with suppress(psycopg.Error), psycopg.connect(self._url, autocommit=True) as connection:
                while True:
                    self._look_at_files()
                    self._look_at_notes()
                    self._look_at_rows(connection)
                    time.sleep(LOOK_SECONDS)
            time.sleep(LOOK_SECONDS)

    def _look_at_notes(self) -> None:
        notes, self._begun_line = notes_of(self._begun_line + self._painted.read())
        for one in notes:
            self.noted.setdefault((one["seed"], one["stage"], one["what"]), []).append(one["at"])

    def _look_at_files(self) -> None:
        for folder in self._clips.glob("video_*"):
            for stage, name in (("first_frame", "first_frame.png"), ("video", "clip.mp4")):
                if (folder.name, stage) not in self.stored and (folder / name).exists():
                    self.stored[folder.name, stage] = time.time()

    def _look_at_rows(self, connection: psycopg.Connection[Any]) -> None:
        now = time.time()
        self.executors |= {one for (one,) in connection.execute("select executor from huvidpo_leases")}
        for id, executor, status in connection.execute("select id, executor, status from huvidpo_jobs"):
            self.status[id] = status
            history = self.holders.setdefault(id, [])
            if executor and (not history or history[-1][1] != executor):
                history.append((now, executor))

    def held_by(self, executor: str) -> list[str]:
        """Jobs it is at."""
        return [
            id
            for id, history in self.holders.items()
            if self.status[id] == "in_progress" and history[-1:] and history[-1][1] == executor
        ]


@dataclass
class Scene:
    gateways: list[Process]
    runners: list[Process]
    watch: Watch
    rng: random.Random
    ids: dict[str, int] = field(default_factory=dict)  # accepted job -> seed
    refusals: Counter[str] = field(default_factory=Counter)

    @property
    def processes(self) -> list[Process]:
        return [*self.gateways, *self.runners]

    async def start(self, process: Process) -> None:
        before = set(self.watch.executors)
        await process.start()
        if process.gateway:
            assert await until(lambda: self.watch.executors - before, START_SECONDS)
            (process.executor,) = self.watch.executors - before

    async def ask(self, seed: int, **fields: Any) -> str:
        """Id of an accepted job: asked for at either gateway until one accepts it."""
        body = {"prompt": "a horse", "category": "horse", "seed": seed, "num_frames": 4}
        body |= {"num_inference_steps": STEPS} | fields
        headers = {"Idempotency-Key": f"job {seed}"}
        while True:
            gateway = self.rng.choice(self.gateways)
            try:
                async with httpx.AsyncClient(base_url=gateway.url, timeout=ASK_SECONDS) as client:
                    answer = await client.post("/v1/videos", json=body, headers=headers)
                if answer.status_code == 200:
                    self.ids[answer.json()["id"]] = seed
                    return answer.json()["id"]
                self.refusals[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                self.refusals[type(error).__name__] += 1
            await asyncio.sleep(0.3)

    async def ended(self, ids: list[str], seconds: float) -> bool:
        return await until(
            lambda: all(self.watch.status.get(id) in ("completed", "failed") for id in ids), seconds
        )

    async def takeover(self, ids: list[str], executor: str, since: float) -> list[float]:
        """Seconds until each of the jobs was another's; without those that the executor had ended."""
        found = []
        for id in ids:
            history = self.watch.holders[id]
            await until(lambda id=id, h=history: h[-1][1] != executor or self._over(id), STUCK_SECONDS)
            later = [at for at, holder in history if at > since and holder != executor]
            if later or not self._over(id):
                found.append(round((later or [time.time()])[0] - since, 2))
        return found

    def _over(self, id: str) -> bool:
        return self.watch.status[id] != "in_progress"

    def noted(self, seed: int, stage: str, what: str) -> list[float]:
        """When the runners did that for the job."""
        return self.watch.noted.get((seed, stage, what), [])


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("12 jobs, 3 faults, 3 s without Postgres")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--jobs", type=int, default=100, help="while there are faults")
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--calm", type=int, default=30, help="jobs one by one, and as many cancelled")
    parser.add_argument("--without-database", type=float, default=20.0, metavar="SECONDS")
    args = parser.parse_args(arguments)
    if args.quick:
        args.jobs, args.faults, args.calm, args.without_database = 12, 3, 3, 3.0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # Postgres runs as somebody else
        found = asyncio.run(survive(args, Path(folder)))
    missed = [name for name, met in TARGETS.items() if not met(found)]
    print(json.dumps(found, indent=2))
    print("\n".join(f"{'MISSED' if name in missed else 'met':<8}{name}" for name in TARGETS))
    if not args.quick:
        record(args, missed=missed, **found)
    if missed:
        sys.exit(1)


async def survive(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    postgres = Postgres(folder / "postgres", "127.0.0.1", free_port(), "jobs")
    painted = folder / "painted.log"
    painted.touch()
    gateways, runners = processes(folder, painted, postgres.url)
    watch = Watch(postgres.url, folder / "data" / "clips", painted)
    scene = Scene(gateways, runners, watch, random.Random(args.seed))
    began = time.monotonic()
    watch.start()
    try:
        await asyncio.gather(*(runner.start() for runner in runners))
        for gateway in gateways:
            await scene.start(gateway)
        tell(f"ready after {time.monotonic() - began:.0f} s")
        found = await calm(scene, args.calm) | await cancelled(scene, args.calm)
        tell(json.dumps(found))
        found |= await faults(scene, args, postgres)
        return found | await audit(scene) | {"seconds": round(time.monotonic() - began)}
    finally:
        for process in scene.processes:
            if process.running:
                process.signal(signal.SIGKILL)
        postgres.stop()


def processes(folder: Path, painted: Path, database_url: str) -> tuple[list[Process], list[Process]]:
    """Gateways and runners, not started yet."""
    names = ("first_frame-0", "first_frame-1", "video-0", "video-1")
    runners = [painted_process(folder, name, STEP_SECONDS, painted) for name in names]
    own = {"HUVIDPO_DATABASE_URL": database_url, "HUVIDPO_LEASE_SECONDS": str(LEASE_SECONDS)}
    own |= {"HUVIDPO_DATA": str(folder / "data")}
    return [gateway_process(folder, f"gateway-{n}", runners, **own) for n in range(2)], runners


def painted_process(folder: Path, name: str, step: float, painted: Path, more: float = 0.0) -> Process:
    """`name`: its stage, "-" and a number."""
    port, stage = free_port(), name.partition("-")[0]
    command = [sys.executable, "-m", "benchmarks.painted_runner", stage, str(port)]
    command += [str(step), str(painted), str(more)]
    return Process(name, port, command, _shared(folder), folder / f"{name}.log")


def gateway_process(folder: Path, name: str, runners: Sequence[Process], **own: str) -> Process:
    port = free_port()
    urls = {
        stage: ",".join(one.url for one in runners if one.name.startswith(stage))
        for stage in ("first_frame", "video")
    }
    own |= {
        "BENTOML_SERVE_COMPONENT": "http_server", "BENTOML_HOST": "127.0.0.1", "BENTOML_PORT": str(port),
        "BENTOML_SERVE_DEPENDS": f"FirstFrameRunner={urls['first_frame']} VideoRunner={urls['video']}",
        "BENTOML_HOME": str(folder / f"{name}-home"), "BENTOML_DO_NOT_TRACK": "True",
        "HUVIDPO_GRPC_PORT": "0", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = ["sh", "service/entrypoint.sh"]
    return Process(name, port, command, _shared(folder) | own, folder / f"{name}.log")


def _shared(folder: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(folder), "PYTHONPATH": str(ROOT)}


# --- what is measured ---


async def calm(scene: Scene, count: int) -> dict[str, Any]:
    """One job after the other, at moments that no loop of the service knows."""
    waits = []
    for seed in range(1000, 1000 + count):
        await asyncio.sleep(scene.rng.uniform(0.0, 0.3))
        asked = time.time()
        id = await scene.ask(seed, num_inference_steps=2)
        assert await scene.ended([id], STUCK_SECONDS)
        waits.append(scene.noted(seed, "first_frame", "begun")[0] - asked)
    return {"enqueue_ms": spread(waits)}


async def cancelled(scene: Scene, count: int) -> dict[str, Any]:
    """Each in the middle of a long clip, at either gateway."""
    waits = []
    for seed in range(2000, 2000 + count):
        id = await scene.ask(seed, num_inference_steps=100)
        assert await until(lambda seed=seed: len(scene.noted(seed, "video", "step")) >= 3, STUCK_SECONDS)
        await asyncio.sleep(scene.rng.uniform(0.0, 2 * STEP_SECONDS))
        asked = time.time()
        async with httpx.AsyncClient(base_url=scene.rng.choice(scene.gateways).url) as client:
            (await client.post(f"/v1/videos/{id}/cancel")).raise_for_status()
        assert await until(lambda seed=seed: scene.noted(seed, "video", "left"), STUCK_SECONDS)
        waits.append(scene.noted(seed, "video", "left")[0] - asked)
        del scene.ids[id]
    return {"cancel_ms": spread(waits)}


async def faults(scene: Scene, args: argparse.Namespace, postgres: Postgres) -> dict[str, Any]:
    """One after the other, while jobs are asked for; the database goes in the middle."""
    pairs = [(one, kill) for one in scene.processes for kill in (True, False)]
    rounds = 1 + args.faults // len(pairs)
    chosen = [pair for _ in range(rounds) for pair in scene.rng.sample(pairs, len(pairs))][: args.faults]
    asking = asyncio.create_task(feed(scene, args.jobs))
    done, statuses = list[dict[str, Any]](), set[int]()
    for number, (process, kill) in enumerate(chosen):
        if number == args.faults // 2:
            tell("no database")
            statuses = await without_database(scene, postgres, args.without_database)
        await asyncio.sleep(scene.rng.uniform(2.0, 4.0))
        if process in scene.gateways:  # one that holds nothing says nothing of how fast it is taken over
            await until(lambda one=process: one.executor and scene.watch.held_by(one.executor), STUCK_SECONDS)
        done.append(await (killed if kill else frozen)(scene, process))
        tell(json.dumps(done[-1]))
    await asking
    await scene.ended(list(scene.ids), STUCK_SECONDS)
    takeovers = [seconds for fault in done for seconds in fault.get("takeover_s", ())]
    return {
        "faults": done, "takeover_s": takeovers, "without_database": sorted(statuses),
        "refusals": dict(scene.refusals),
    }  # fmt: skip


async def killed(scene: Scene, process: Process) -> dict[str, Any]:
    at, executor = time.time(), process.executor
    held = scene.watch.held_by(executor) if executor else []
    process.signal(signal.SIGKILL)
    _, takeover = await asyncio.gather(scene.start(process), scene.takeover(held, executor, at))
    return {"killed": process.name, "takeover_s": takeover}


async def frozen(scene: Scene, process: Process) -> dict[str, Any]:
    least = LEASE_SECONDS + 2.5 if process in scene.gateways else 1.0  # long enough to be taken over
    at, executor, seconds = time.time(), process.executor, scene.rng.uniform(least, 2 * LEASE_SECONDS)
    held = scene.watch.held_by(executor) if executor else []
    process.signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.signal(signal.SIGCONT)
    takeover = await scene.takeover(held, executor, at)
    return {"frozen": process.name, "seconds": round(seconds, 1), "takeover_s": takeover}


async def feed(scene: Scene, count: int) -> None:
    """Jobs that nobody waits for, as they come."""
    asking = []
    for seed in range(count):
        await asyncio.sleep(scene.rng.expovariate(1.0 / ARRIVE_SECONDS))
        asking.append(asyncio.create_task(scene.ask(seed)))
    await asyncio.gather(*asking)


async def without_database(scene: Scene, postgres: Postgres, seconds: float) -> set[int]:
    """Statuses that POST answered with meanwhile, at both gateways."""
    postgres.stop()
    back, statuses = time.monotonic() + seconds, set[int]()
    body = {"prompt": "a horse", "category": "horse", "seed": 5000}
    while time.monotonic() < back:
        for gateway in scene.gateways:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
                statuses.add((await client.post("/v1/videos", json=body)).status_code)
        await asyncio.sleep(1.0)
    postgres.start()
    return statuses


async def audit(scene: Scene) -> dict[str, Any]:
    """By the service's own list, and by what the runners say they did."""
    listed, after = list[dict[str, Any]](), ""
    async with httpx.AsyncClient(base_url=scene.gateways[0].url, timeout=60) as client:
        while True:
            page = (await client.get(f"/v1/videos?limit=100{after}")).raise_for_status().json()
            listed += page["data"]
            after = f"&after={page['last_id']}"
            if not page["has_more"]:
                break
        completed = {one["id"] for one in listed if one["status"] == "completed"}
        unreadable = 0
        for id in completed:
            clip = await client.get(f"/v1/videos/{id}/content")
            unreadable += clip.content[4:8] != b"ftyp"
    ended = {one["id"] for one in listed if one["status"] in ("completed", "failed")}
    seeds = Counter(one["seed"] for one in listed)
    return {
        "accepted": len(scene.ids),
        "lost": len(scene.ids.keys() & ended - completed) + len(scene.ids.keys() - {v["id"] for v in listed}),
        "stuck": len(scene.ids.keys() - ended),
        "doubled": sum(count - 1 for count in seeds.values()),
        "unreadable": unreadable,
        **work_twice(scene),
    }


def work_twice(scene: Scene) -> dict[str, Any]:
    """By stage: jobs that began anew after their result was stored; results that were made and not kept."""
    again, wasted = Counter[str](), Counter[str]()
    for id, seed in scene.ids.items():
        for stage in ("first_frame", "video"):
            stored = scene.watch.stored.get((id, stage), float("inf")) + 2 * LOOK_SECONDS
            again[stage] += any(at > stored for at in scene.noted(seed, stage, "begun"))
            wasted[stage] += max(0, len(scene.noted(seed, stage, "done")) - 1)
    return {"made_again": dict(again), "wasted": dict(wasted)}


def spread(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    found = {"p50": cuts[49], "p95": cuts[94], "max": max(seconds)}
    return {name: round(1000 * value, 1) for name, value in found.items()}


async def until(condition: Callable[[], Any], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return True


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
