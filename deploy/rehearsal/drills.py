"""What goes wrong, one thing after the other, while clients go on asking.

A drill breaks something, sees the alerts fire that are meant for it, mends it and sees them clear. Some are
there for the jobs alone: nothing may be lost.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.rehearsal.cluster import Cluster, Pod, Postgres
from deploy.rehearsal.traffic import Traffic
from deploy.rehearsal.watch import Watch

FIRE_SECONDS, CLEAR_SECONDS = 60.0, 120.0
HEAVY = {"steps": 100, "frames": 64}  # minutes of work, to be cancelled
PATIENCE_SECONDS = 75  # HUVIDPO_REQUEST_TIMEOUT here: how long a job waits for a runner


class Failed(Exception):
    """What was expected of the deployment did not happen."""


@dataclass
class Scene:
    cluster: Cluster
    postgres: Postgres
    traffic: Traffic
    watch: Watch

    async def all_ready(self) -> None:
        await self.cluster.until_ready([pod for pod in self.cluster.pods if not pod.leaving])

    async def fire(self, *alerts: str) -> None:
        """Raises Failed unless all of them fire by now or soon."""
        if not await self.watch.until(lambda firing: set(alerts) <= firing, FIRE_SECONDS):
            missing = sorted(set(alerts) - self.watch.firing())
            raise Failed(f"{', '.join(missing)} did not fire within {FIRE_SECONDS:.0f} s")


@dataclass(frozen=True)
class Drill:
    """`alerts` have to fire, and be clear afterwards; others may."""

    name: str
    run: Callable[[Scene], Awaitable[None]]
    alerts: tuple[str, ...] = ()


async def calm(scene: Scene) -> None:
    """Nothing happens, and nothing fires."""
    await asyncio.sleep(20)
    if scene.watch.firing():
        raise Failed(f"without a cause: {', '.join(sorted(scene.watch.firing()))}")


def killed(component: str) -> Callable[[Scene], Awaitable[None]]:
    async def run(scene: Scene) -> None:
        """kill -9, and the kubelet starts it again."""
        pod = scene.cluster.of(component)[0]
        pod.signal(signal.SIGKILL)
        await until(lambda: not pod.ready)
        await scene.all_ready()

    return run


def ended(component: str) -> Callable[[Scene], Awaitable[None]]:
    async def run(scene: Scene) -> None:
        """The pod is deleted: SIGTERM, drain, and another in its place."""
        pod = scene.cluster.of(component)[0]
        await remove(scene, pod)
        await grow(scene, component)

    return run


def frozen(component: str, seconds: float) -> Callable[[Scene], Awaitable[None]]:
    async def run(scene: Scene) -> None:
        """SIGSTOP: its connections stay open, and nobody answers."""
        pod = scene.cluster.of(component)[0]
        pod.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
            await scene.fire("HuvidpoTargetDown")
        finally:
            pod.signal(signal.SIGCONT)
        await scene.all_ready()

    return run


async def flapping(scene: Scene) -> None:
    """A pod that comes and goes."""
    pod = scene.cluster.of("first-frame")[0]
    for _ in range(4):
        pod.signal(signal.SIGSTOP)
        await asyncio.sleep(2.5)
        pod.signal(signal.SIGCONT)
        await asyncio.sleep(2.5)
    await scene.fire("HuvidpoTargetRestarts")
    await scene.all_ready()


async def no_video(scene: Scene) -> None:
    """All video runners are dead for longer than a job is patient: who waits is refused, jobs fail."""
    traffic = scene.traffic
    traffic.jobs_paused = True  # these are not to be lost
    await traffic.settle("job")
    pods = scene.cluster.of("video", ready=False)
    for pod in pods:
        pod.held = True
        pod.signal(signal.SIGKILL)
    doomed = traffic.ask_for_jobs(6, doomed=True)
    waiting = [asyncio.create_task(refused(scene)) for _ in range(3)]
    try:
        await scene.fire("HuvidpoRunnerMissing", "HuvidpoErrorsFast", "HuvidpoErrorsSlow")
        await until(lambda: all(asked.outcome for asked in doomed), 2 * PATIENCE_SECONDS)
        await scene.fire("HuvidpoJobsFail")
    finally:
        for task in waiting:
            task.cancel()
        for pod in pods:
            pod.held = False
        traffic.jobs_paused = False
    if not {asked.outcome for asked in doomed} <= {"unavailable", "timeout"}:
        raise Failed(f"jobs that could not be made ended as {', '.join(str(a.outcome) for a in doomed)}")


async def refused(scene: Scene) -> None:
    while True:
        asked = scene.traffic.ask("http", scene.traffic.wait_for_clip)
        while asked.outcome is None:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)


async def database_gone(scene: Scene) -> None:
    """For 20 seconds: what is asked for is refused, what runs goes on."""
    scene.postgres.stop()
    await asyncio.sleep(20)
    scene.postgres.start()
    await scene.all_ready()


async def disk_full(scene: Scene) -> None:
    """The volume of clips: what is made meanwhile is kept until there is room."""
    filler = scene.cluster.data / "filler"
    fill(filler)
    try:
        await asyncio.sleep(15)
    finally:
        filler.unlink()


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as out, suppress(OSError):
        while True:
            out.write(bytes(2**16))


async def flooded(scene: Scene) -> None:
    """Far more than two cores can do, from clients that do not go away when they are refused."""
    traffic = scene.traffic
    traffic.jobs_paused = True
    await traffic.settle("job")
    body = {"prompt": "rain in the evening", "category": "rain"} | HEAVY
    clients = [asyncio.create_task(insist(scene, body)) for _ in range(180)]
    await asyncio.sleep(20)
    for task in clients:
        task.cancel()
    traffic.jobs_paused = False


async def insist(scene: Scene, body: Mapping[str, object]) -> None:
    while True:
        await scene.traffic.wait_over_http(body)
        await asyncio.sleep(1)


async def rolled(scene: Scene) -> None:
    """New gateways come, then the old ones go, as a Deployment's update does."""
    old = scene.cluster.of("gateway")
    for pod in old:
        await grow(scene, "gateway")
        await remove(scene, pod)


async def remove(scene: Scene, pod: Pod) -> None:
    pod.leaving = True
    scene.watch.write_targets()
    await scene.cluster.end(pod)
    scene.cluster.pods.remove(pod)


async def grow(scene: Scene, component: str) -> Pod:
    pod = scene.cluster.add(component)
    await scene.cluster.start(pod)
    scene.watch.write_targets()
    await scene.cluster.until_ready([pod])
    return pod


async def until(condition: Callable[[], bool], seconds: float = FIRE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed("it did not happen in time")
        await asyncio.sleep(0.1)


DRILLS = (
    Drill("nothing happens", calm),
    Drill("kill -9 of a video runner", killed("video")),
    Drill("kill -9 of a first-frame runner", killed("first-frame")),
    Drill("kill -9 of a gateway", killed("gateway")),
    Drill("a video runner is deleted", ended("video")),
    Drill("a first-frame runner is deleted", ended("first-frame")),
    Drill("a video runner is frozen", frozen("video", 8), ("HuvidpoTargetDown",)),
    Drill("a gateway is frozen for longer than its lease", frozen("gateway", 14), ("HuvidpoTargetDown",)),
    Drill("a first-frame runner comes and goes", flapping, ("HuvidpoTargetRestarts",)),
    Drill("Postgres is away for 20 s", database_gone),
    Drill("the volume of clips is full for 15 s", disk_full),
    Drill(
        "all video runners are dead for longer than a job is patient",
        no_video,
        ("HuvidpoRunnerMissing", "HuvidpoErrorsFast", "HuvidpoErrorsSlow", "HuvidpoJobsFail"),
    ),
    Drill("ten times too much is asked for", flooded),
    Drill("gateways are replaced by newer ones", rolled),
)
NOT_REHEARSED = {
    "HuvidpoRefuses": "on two cores refusals come in bursts, with pauses that end it",
    "HuvidpoWorkWaits": "two minutes of work do not wait where requests have 75 seconds: they are refused",
    "HuvidpoClipsSlow": "clips that take half a minute each would be given up",
    "HuvidpoClipsSlowFast": "so they would here",
    "HuvidpoReloadRefused": "the runners read the built-in weights, which nobody should spoil",
    "HuvidpoEtaWrong": "it compares half an hour of estimates",
    "HuvidpoCancelSlow": "it compares half an hour of cancelled jobs",
    "HuvidpoMemory": "no device here has a limit that could be reached without harm",
    "HuvidpoJobOld": "a job would have to wait for a quarter of an hour",
    "HuvidpoFeedbackWaits": "200 people would have to be asked",
}
"""Alerts that only deploy/prometheus/rules_test.yaml makes fire, and why."""
