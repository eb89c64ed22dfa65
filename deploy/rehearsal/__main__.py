"""The deployment, rehearsed on this machine: real parts, load, one fault after the other, a report.

    python -m deploy.rehearsal                      # all of it, about ten minutes on two cores
    python -m deploy.rehearsal --drills 0 1 4       # some
    python -m deploy.rehearsal --list

Postgres, Prometheus, Alertmanager, two gateways, two first-frame and two video runners run as processes in
the environment that deploy/kubernetes gives their pods (overlay cpu-tiny), each with an address of its own on
loopback. It needs a mount namespace (`unshare`): there the hosts file is its own, the volume of clips small.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploy.rehearsal import report
from deploy.rehearsal.cluster import CONTAINER, DATABASE, Cluster, Postgres
from deploy.rehearsal.drills import CLEAR_SECONDS, DRILLS, PATIENCE_SECONDS, Drill, Failed, Scene
from deploy.rehearsal.manifests import ROOT, pod_specs, render
from deploy.rehearsal.traffic import Traffic
from deploy.rehearsal.watch import Watch

INSIDE = "HUVIDPO_REHEARSAL_ROOT"
PODS = {"gateway": 2, "first-frame": 2, "video": 2}
SMALL = PODS | {"gateway": 1, "first-frame": 1}  # enough for the drills of video runners
QUICK = {"HUVIDPO_BACKEND": "torch"}  # with --small: the default compiles at every start
SETTINGS = {
    "HUVIDPO_THREADS": "1", "OMP_NUM_THREADS": "1",  # eight processes share two cores
    "HUVIDPO_REQUEST_TIMEOUT": str(PATIENCE_SECONDS),
}  # fmt: skip
KEY = "for-trying"  # of the overlay's secret
RATE = 0.8  # requests a second
DATA_MIB = 64  # the volume of clips
CATEGORIES = ["horse", "rain"]  # two, so that batches mix


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.rehearsal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--drills", type=int, nargs="+", metavar="N", help="by number (all)")
    parser.add_argument("--list", action="store_true", help="the drills with their numbers")
    parser.add_argument(
        "--small", action="store_true", help="one gateway, one first-frame runner; no engines"
    )
    parser.add_argument("--rate", type=float, default=RATE, help=f"requests a second ({RATE})")
    parser.add_argument("--keep", action="store_true", help="leave the logs, also when all is well")
    parser.add_argument("--record", action="store_true", help="write docs/rehearsal.md and its picture anew")
    args = parser.parse_args()
    if args.list:
        for number, drill in enumerate(DRILLS):
            print(f"{number:3} {drill.name}: {', '.join(drill.alerts) or 'no alert'}")
        return
    if INSIDE not in os.environ:
        sys.exit(_inside(args.keep))
    chosen = [DRILLS[number] for number in args.drills] if args.drills else list(DRILLS)
    pods, settings = (SMALL, SETTINGS | QUICK) if args.small else (PODS, SETTINGS)
    result = asyncio.run(rehearse(Path(os.environ[INSIDE]), pods, settings, chosen, args.rate))
    report.show(result)
    if args.record:
        report.write(result, ROOT)
    sys.exit(1 if result["failed"] else 0)


def _inside(keep: bool) -> int:
    """This command again, in a mount namespace with a hosts file and a small volume; its status."""
    root = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    root.chmod(0o755)  # Postgres runs as somebody else
    (root / "hosts").write_text("127.0.0.1 localhost\n")
    (root / "data").mkdir()
    mounts = (
        f'mount --bind "{root}/hosts" /etc/hosts && mount -t tmpfs -o size={DATA_MIB}m tmpfs "{root}/data"'
        ' && exec "$@"'
    )
    own = [] if os.getuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    command = [*CONTAINER, *own, "sh", "-c", mounts, "rehearsal", sys.executable, *sys.orig_argv[1:]]
    try:
        status = subprocess.run(command, env=os.environ | {INSIDE: str(root)}, cwd=ROOT).returncode
    except FileNotFoundError:
        raise SystemExit("the rehearsal needs unshare (Linux, package util-linux)") from None
    if status == 0 and not keep:
        shutil.rmtree(root, ignore_errors=True)
    else:
        print(f"logs are in {root}")
    return status


async def rehearse(
    root: Path, pods: dict[str, int], settings: dict[str, str], drills: list[Drill], rate: float
) -> dict[str, Any]:
    """What report.py shows. `pods`: how many of each component; `settings`: variables beside those of the
    manifests. Raises FileNotFoundError for a program that is not installed.
    """
    began = time.monotonic()

    def now() -> float:
        return time.monotonic() - began

    def tell(text: str) -> None:
        print(f"{now():6.1f} s  {text}", flush=True)

    specs = pod_specs(render("overlays/cpu-tiny"))
    cluster = Cluster(root, root / "data", root / "hosts", specs, settings, tell=tell)
    watch = Watch(cluster, root / "watch", now)
    postgres = Postgres(root / "postgres", DATABASE)
    traffic = Traffic(cluster, KEY, rate, CATEGORIES)
    scene = Scene(cluster, postgres, traffic, watch)
    background = []
    timeline: list[dict[str, Any]] = []
    try:
        tell("starting")
        for component, count in pods.items():
            for _ in range(count):
                await cluster.start(cluster.add(component))
        background.append(asyncio.create_task(cluster.look_after()))
        await watch.start()
        await scene.all_ready()
        ready = now()
        tell("ready")
        load = asyncio.create_task(traffic.run())
        background.append(load)
        for drill in drills:
            timeline.append(await _do(drill, scene, tell, now))
        load.cancel()
        tell("waiting for what was asked for")
        await traffic.settle()
        audit = await traffic.audit()
    finally:
        for task in background:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await watch.close()
        await cluster.close()
        postgres.stop()
    failed = [entry["drill"] for entry in timeline if entry["problem"]]
    failed += [name for name in ("lost", "duplicated", "stuck", "unreadable") if audit[name]]
    return {
        "ready": ready, "seconds": now(), "timeline": timeline, "alerts": watch.alerts, "audit": audit,
        "failed": failed, "outcomes": {door: dict(count) for door, count in traffic.outcomes().items()},
        "asked": [
            {"door": a.door, "at": a.at - began, "outcome": a.outcome, "seconds": a.seconds}
            for a in traffic.asked
        ],
    }  # fmt: skip


async def _do(drill: Drill, scene: Scene, tell: Any, now: Any) -> dict[str, Any]:
    """One drill, with its alerts clear at the end; what goes wrong is noted, and the next one follows."""
    tell(drill.name)
    entry: dict[str, Any] = {"drill": drill.name, "from": now(), "alerts": drill.alerts, "problem": None}
    try:
        await scene.all_ready()
        await drill.run(scene)
        entry["mended"] = now()
        if not await scene.watch.until(lambda firing: not firing, CLEAR_SECONDS):
            raise Failed(
                f"still firing after {CLEAR_SECONDS:.0f} s: {', '.join(sorted(scene.watch.firing()))}"
            )
    except (Failed, TimeoutError) as error:
        entry["problem"] = str(error)
        tell(f"FAILED: {error}")
    entry["to"] = now()
    return entry


if __name__ == "__main__":
    main()
