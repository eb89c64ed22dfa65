"""Where gateways bring their jobs to a runner. A job has an id, and is done once however often it is brought.

    PUT /jobs/{id}       a job, packed as in hop.py: answers with the messages of runners.py. The same id
                         again reads them too, from the first: those that were, then those to come
    POST /jobs/{id}      says that the gateway that reads is alive
    DELETE /jobs/{id}    the job is not wanted any more by the one who brought it
    HEAD /jobs/{id}      204 if the job is here, else 404
    GET /describe        what the runner is, and how much waits in it, as JSON

A job that nobody reads ends within one denoising step; one that was brought with `detach` ends after the
lease, in which it may be read again, done or not. A gateway that has not been heard of for a lease is taken
to read no more: its connection may be open still. What failed is not kept, and is tried anew.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service import hop
from service.errors import NotFound, TimedOut, Unavailable, to_dict
from service.http import App, Receive, Scope, Send
from service.schemas import RunnerJob
from service.waiting import while_connected

PREFIX, DESCRIBE = "/jobs/", "/describe"
LEASE_SECONDS = 30.0  # three times what gateways let pass between two signs of life, see router.py
Run = Callable[[RunnerJob], AsyncGenerator[bytes, None]]


@dataclass(eq=False)
class _Held:
    """A job that somebody reads, or may come back to."""

    id: str
    detach: bool
    readers: int = 0
    heard: float = 0.0  # time of a monotonic clock
    messages: list[bytes] = field(default_factory=list)
    ended: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None

    def tell(self, *messages: bytes, ended: bool = False) -> None:
        """Adds messages, and wakes who reads."""
        self.messages += messages
        self.ended = self.ended or ended
        self.news.set()
        self.news = asyncio.Event()


class Desk:
    """`run`: the messages of a job; closing it cancels the job. For one event loop."""

    def __init__(self, run: Run, lease: float = LEASE_SECONDS):
        self._run, self.lease = run, lease
        self._held: dict[str, _Held] = {}

    async def bring(self, id: str, job: RunnerJob) -> AsyncGenerator[bytes, None]:
        """All messages of the job `id`, which starts if it is not here. Closing the generator leaves it."""
        held = self._held.get(id) or self._start(id, job)
        held.readers, held.detach = held.readers + 1, held.detach or job.detach
        held.heard = time.monotonic()
        read = 0
        try:
            while True:
                news = held.news
                while read < len(held.messages):
                    read += 1
                    yield held.messages[read - 1]
                if held.ended:
                    return
                await news.wait()
        finally:
            held.readers -= 1
            held.heard = time.monotonic()
            self._let_go(held)

    def has(self, id: str) -> bool:
        return id in self._held

    def heard(self, id: str) -> None:
        """Its gateway lives. Raises NotFound."""
        if id not in self._held:
            raise NotFound("no such job is here")
        self._held[id].heard = time.monotonic()

    def withdraw(self, id: str) -> None:
        """Whoever brought the job does not come back for it; others may still read it."""
        if (held := self._held.get(id)) is not None:
            held.detach = False
            self._let_go(held)

    def _let_go(self, held: _Held) -> None:
        if not held.readers and not held.detach:
            self._drop(held)

    def _start(self, id: str, job: RunnerJob) -> _Held:
        held = self._held[id] = _Held(id, job.detach)
        held.work = asyncio.ensure_future(self._do(held, job))
        asyncio.get_running_loop().call_later(self.lease, self._look, held)
        return held

    async def _do(self, held: _Held, job: RunnerJob) -> None:
        try:
            async with asyncio.timeout(job.seconds), aclosing(self._run(job)) as messages:
                async for message in messages:
                    held.tell(message)
        except TimeoutError:
            held.tell(_error(TimedOut("not ready in time; ask for fewer steps or frames")))
        finally:
            held.tell(ended=True)
            if held.messages and hop.unpack(held.messages[-1])["event"] == "error":
                self._drop(held)

    def _look(self, held: _Held) -> None:
        """Once the lease would be over if the gateway has not been heard of since."""
        if self._held.get(held.id) is not held:
            return
        left = held.heard + self.lease - time.monotonic()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._look, held)
        else:
            self._drop(held)

    def _drop(self, held: _Held) -> None:
        """The next one that brings the id starts anew; who reads now is told the end."""
        if self._held.get(held.id) is held:
            del self._held[held.id]
        if not held.ended and held.work is not None:
            held.work.cancel()
            held.tell(_error(Unavailable("the job was given up: its gateway was not heard of")), ended=True)


def _error(error: Exception) -> bytes:
    return hop.pack({"event": "error"} | to_dict(error))


class DeskDoor:
    """ASGI: the desk's paths, and `app` for all others. `desk` and `describe` are called once `app` has
    started.
    """

    def __init__(self, app: App, desk: Callable[[], Desk], describe: Callable[[], dict[str, Any]]):
        self.app, self._desk, self._describe = app, desk, describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == DESCRIBE and scope["method"] == "GET":
            body = json.dumps(self._describe())
            await Response(body, media_type="application/json")(scope, receive, send)
            return
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        id, request, desk = scope["path"].removeprefix(PREFIX), Request(scope, receive), self._desk()
        if scope["method"] == "PUT":
            job = hop.unpack_job(await request.body())
            await while_connected(_answer(desk.bring(id, job), send), receive)
        elif scope["method"] == "DELETE":
            desk.withdraw(id)
            await Response(status_code=204)(scope, receive, send)
        elif scope["method"] == "HEAD":
            await Response(status_code=204 if desk.has(id) else 404)(scope, receive, send)
        elif scope["method"] == "POST":
            desk.heard(id)
            await Response(status_code=204)(scope, receive, send)
        else:
            await Response(status_code=405, headers={"Allow": "DELETE, HEAD, POST, PUT"})(
                scope, receive, send
            )


async def _answer(messages: AsyncGenerator[bytes, None], send: Send) -> None:
    headers = [(b"content-type", hop.MEDIA_TYPE.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async with aclosing(messages):
        async for message in messages:
            await send({"type": "http.response.body", "body": message, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
