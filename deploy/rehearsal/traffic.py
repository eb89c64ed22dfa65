"""Load as clients make it, at its own pace: jobs by OpenAI's client, clips that somebody waits for over HTTP
and gRPC. A job that was asked for and not answered is asked for again with the same Idempotency-Key.
"""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
import httpx
import openai

from deploy.rehearsal.cluster import Cluster, Pod
from service.protos import video_generation_pb2 as pb
from service.protos.video_generation_pb2_grpc import VideoGenerationStub

JOBS_SHARE, HTTP_SHARE = 0.5, 0.25  # of the requests; the rest is gRPC
STUCK_SECONDS = 240.0  # a job that has not ended by then
POLL_SECONDS = 0.5
SMALL = {"steps": 4, "frames": 8}  # of every clip, so that two cores keep up with eight processes


@dataclass
class Asked:
    """One request: `outcome` is "ok", or the code of its error; None until it has ended. `doomed`: it is
    meant to fail.
    """

    door: str
    at: float
    key: str
    id: str = ""
    outcome: str | None = None
    seconds: float = 0.0
    doomed: bool = False


@dataclass
class Traffic:
    """`rate`: requests a second, at Poisson's moments."""

    cluster: Cluster
    key: str
    rate: float
    categories: list[str]
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    asked: list[Asked] = field(default_factory=list)
    jobs_paused: bool = False
    _tasks: dict[asyncio.Task[None], str] = field(default_factory=dict)

    async def run(self) -> None:
        """For ever: it does not wait for answers."""
        while True:
            await asyncio.sleep(self.rng.expovariate(self.rate))
            dice = self.rng.random()
            door, call = (
                ("job", self._job) if dice < JOBS_SHARE
                else ("http", self.wait_for_clip) if dice < JOBS_SHARE + HTTP_SHARE
                else ("grpc", self._grpc)
            )  # fmt: skip
            if door != "job" or not self.jobs_paused:
                self.ask(door, call)

    def ask(self, door: str, call: Callable[[Asked], Awaitable[str]]) -> Asked:
        asked = Asked(door, time.monotonic(), uuid.UUID(int=self.rng.getrandbits(128)).hex)
        self.asked.append(asked)
        task = asyncio.create_task(self._follow(asked, call))
        self._tasks[task] = door
        task.add_done_callback(self._tasks.pop)
        return asked

    def ask_for_jobs(self, count: int, doomed: bool = False, **options: int) -> list[Asked]:
        made = [self.ask("job", lambda asked: self._job(asked, **options)) for _ in range(count)]
        for asked in made:
            asked.doomed = doomed
        return made

    async def settle(self, *doors: str) -> None:
        """Until everything that was asked there, or anywhere, has ended."""
        while open_ := [task for task, door in self._tasks.items() if door in doors or not doors]:
            await asyncio.wait(open_)

    def outcomes(self) -> dict[str, Counter[str]]:
        """Door -> how its requests ended."""
        found: dict[str, Counter[str]] = {}
        for asked in self.asked:
            found.setdefault(asked.door, Counter())[asked.outcome or "open"] += 1
        return found

    async def _follow(self, asked: Asked, call: Callable[[Asked], Awaitable[str]]) -> None:
        try:
            asked.outcome = await call(asked)
        except Exception as error:
            asked.outcome = f"broken: {type(error).__name__}"
        asked.seconds = time.monotonic() - asked.at

    def _gateway(self) -> Pod | None:
        """Whichever a Service would choose."""
        ready = self.cluster.of("gateway")
        return self.rng.choice(ready) if ready else None

    def _prompt(self) -> tuple[str, str]:
        category = self.rng.choice(self.categories)
        return f"{category} in the evening", category

    async def _job(self, asked: Asked, **options: int) -> str:
        prompt, category = self._prompt()
        options = SMALL | options
        deadline = asked.at + STUCK_SECONDS
        extra = {
            "category": category, "num_inference_steps": options["steps"], "num_frames": options["frames"],
            "seed": self.rng.randrange(2**31),
        }  # fmt: skip
        headers = {"Idempotency-Key": asked.key}
        while time.monotonic() < deadline:
            if pod := self._gateway():
                try:
                    async with self._client(pod) as client:
                        if not asked.id:
                            made = await client.videos.create(
                                prompt=prompt, extra_body=extra, extra_headers=headers
                            )
                            asked.id = made.id
                        video = await client.videos.retrieve(asked.id)
                    if video.status in ("completed", "failed"):
                        return "ok" if video.status == "completed" else str(video.error and video.error.code)
                except openai.APIConnectionError:
                    pass
                except openai.APIStatusError as error:
                    if error.status_code not in (429, 503):
                        return f"status {error.status_code}"
            await asyncio.sleep(POLL_SECONDS)
        return "stuck" if asked.id else "never accepted"

    def _client(self, pod: Pod) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{pod.url}/v1", api_key=self.key, max_retries=0, timeout=15)

    async def wait_for_clip(self, asked: Asked) -> str:
        prompt, category = self._prompt()
        body = {"prompt": prompt, "category": category} | SMALL
        return await self.wait_over_http(body)

    async def wait_over_http(self, body: Mapping[str, object]) -> str:
        if (pod := self._gateway()) is None:
            return "no gateway"
        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            async with httpx.AsyncClient(timeout=STUCK_SECONDS) as client:
                answer = await client.post(f"{pod.url}/generate_video", json=body, headers=headers)
        except httpx.TransportError:
            return "connection lost"
        if answer.status_code == 200:
            return "ok" if answer.content[4:8] == b"ftyp" else "not a clip"
        with suppress(ValueError, KeyError):
            return str(answer.json()["error"]["code"])
        return f"status {answer.status_code}"

    async def _grpc(self, asked: Asked) -> str:
        if (pod := self._gateway()) is None:
            return "no gateway"
        prompt, category = self._prompt()
        request = pb.GenerateRequest(
            prompt=prompt, category=category, steps=SMALL["steps"], frames=SMALL["frames"]
        )
        metadata = (("authorization", f"Bearer {self.key}"),)
        clip = b""
        async with grpc.aio.insecure_channel(f"{pod.address}:3001") as channel:
            try:
                stub = VideoGenerationStub(channel)
                async for event in stub.Generate(request, metadata=metadata, timeout=STUCK_SECONDS):
                    clip += event.chunk
            except grpc.aio.AioRpcError as error:
                return str(error.code().name.lower())
        return "ok" if clip[4:8] == b"ftyp" else "not a clip"

    async def audit(self) -> dict[str, int]:
        """What became of the jobs, by the service's own list: `lost` were accepted and are not there or have
        not ended well, `duplicated` are there more than once for one request, `unreadable` have no clip.
        """
        jobs = [asked for asked in self.asked if asked.door == "job" and asked.id]
        accepted = {asked.id for asked in jobs if not asked.doomed}
        pod = self._gateway()
        assert pod is not None
        listed = []
        async with self._client(pod) as client:
            async for video in client.videos.list(limit=100):
                listed.append(video)
            done = [video.id for video in listed if video.status == "completed"]
            unreadable = 0
            for id in done:
                content = await client.videos.download_content(id)
                unreadable += (await content.aread())[4:8] != b"ftyp"
        return {
            "accepted": len(accepted),
            "completed": len(accepted & set(done)),
            "lost": len(accepted - set(done)),
            "duplicated": len(listed) - len(jobs),
            "stuck": sum(asked.outcome == "stuck" for asked in self.asked),
            "unreadable": unreadable,
        }
