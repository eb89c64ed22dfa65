"""A gateway's job engine in a process of its own, over runners that paint instead of denoise: in the same
process, or at the addresses of `runners`.

Commands come in as lines of JSON, answers go out the same way. `log` gets "<stage> <seed>" when a stage
begins, the same and "step" after each step, and "done" when it has ended.
"""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from huvidpo.catalog import load_catalog
from huvidpo.video import encode
from service import runners
from service.errors import to_dict
from service.generation import Generation
from service.images import to_png
from service.jobs import JobEngine
from service.request_id import REQUEST_ID, TRACE_PARENT
from service.router import Router
from service.schemas import GenerateRequest
from service.settings import Settings


def runner(stage: str, log: Path, step_seconds: float):
    def note(text: str) -> None:
        with log.open("a") as file:
            file.write(text + "\n")

    async def run(job):
        yield {"event": "queued", "position": 0, "eta": None}
        note(f"{stage} {job.seed}")
        note(f"{stage} {job.seed} of {REQUEST_ID.get()} in {TRACE_PARENT.get()}")
        options = runners.to_clip_request(job).options
        total = options.first_frame_steps if stage == "first_frame" else options.steps
        for step in range(1, total + 1):
            await asyncio.sleep(step_seconds)
            note(f"{stage} {job.seed} step")
            yield {"event": "step", "step": step, "total": total}
        note(f"{stage} {job.seed} done")
        frames = np.full((options.frames, 32, 32, 3), 127, np.uint8)
        data = to_png(frames[0]) if stage == "first_frame" else encode(frames, 8)
        yield {
            "event": "done", "data": data, "queued": 0.0, "seconds": 0.1, "encode": 0.0, "backend": "painter"
        }  # fmt: skip

    return run


async def main(settings: Settings, log: Path, steps: dict[str, float], addresses: dict[str, str]) -> None:
    routers = [Router(stage, address, settings.accept_timeout) for stage, address in addresses.items()]
    for router in routers:
        await router.start()
    stages = routers or [runner(stage, log, steps[stage]) for stage in ("first_frame", "video")]
    core = Generation(settings, load_catalog(), *stages)

    async def withdraw(id: str) -> None:
        for router in routers:
            await router.withdraw(id)

    core.withdraw = withdraw
    engine = JobEngine(core, settings)
    await engine.start()
    print(json.dumps({"ready": engine.executor}), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        command = json.loads(line)
        do = command.pop("do")
        try:
            if do == "create":
                key, webhook = command.pop("key", None), command.pop("webhook", None)
                TRACE_PARENT.set(command.pop("trace", ""))
                whole = {"prompt": "a horse", "category": "horse", "style": "cartoon", "steps": 4} | command
                answer = await engine.create(GenerateRequest(**whole), idempotency_key=key, webhook=webhook)
            else:
                answer = await getattr(engine, do)(**command)
            told = dataclasses.asdict(answer) if answer is not None else {}
        except Exception as error:
            told = {"error_": to_dict(error)}
        print(json.dumps(told), flush=True)
    await engine.stop()
    for router in routers:
        await router.close()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(main(Settings(**given["settings"]), Path(given["log"]), given["steps"], given["runners"]))
