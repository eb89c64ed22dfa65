"""The doors beside BentoML's routes that live as long as the gateway's process does.

They start once BentoML has made the gateway and its runners' clients (not before: `bentoml.on_startup` comes
too early), and stop before it takes them down.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from service.errors import Unavailable
from service.generation import Generation
from service.http import App, Message, Receive, Scope, Send
from service.keys import Keys
from service.request_id import CALLER
from service.settings import Settings

if TYPE_CHECKING:
    from service.grpc_server import GrpcServer
    from service.jobs import JobEngine

PREFIX = "/v1/"  # what the videos API answers
FEEDBACK = "/feedback"
KEYED = ("/generate_video", FEEDBACK, PREFIX)  # paths that want a key where there are keys
WAITED_FOR = ("/generate_video", "/v1/videos/sync")  # paths that answer with the clip itself
MAKING = re.compile(r"/generate_video|/v1/videos(/sync|/[^/]+/remix)?")  # paths whose POST asks for a clip
GRACE = 20.0  # seconds that calls have to finish at shutdown


class Doors:
    """ASGI: `app`, whose lifespan starts and stops the doors too. `core` is called when `app` has started."""

    def __init__(self, app: App, settings: Settings, core: Callable[[], Generation]):
        self.app, self.settings, self._core = app, settings, core
        self.keys = Keys(settings.api_keys)
        self.jobs: JobEngine | None = None  # once started
        self._grpc: GrpcServer | None = None
        from service.videos import videos_app  # late: the runners need none of this

        self._videos = videos_app(self._engine)

    def admit(self, scope: Scope, headers: Headers) -> None:
        """Before anything of the body is read. Raises Unauthenticated, QueueFull."""
        if scope["path"].startswith(KEYED):
            scope["state"]["key"] = name = self.keys.check(headers.get("authorization", ""))
            CALLER.set(self.keys.caller(name))
            if scope["method"] == "POST" and MAKING.fullmatch(scope["path"]):
                self.keys.spend(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in WAITED_FOR:
            with self.keys.place(scope["state"].get("key", "")):
                await self._pass(scope, receive, send)
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"].startswith(PREFIX) or scope["path"] == FEEDBACK):
            await self._videos(scope, receive, send)
            return
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        async def received() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._stop()
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self._start()
            await send(message)

        await self.app(scope, received, sent)

    def _engine(self) -> "JobEngine":
        if self.jobs is None:
            raise Unavailable("the service is starting, try again in a few seconds")
        return self.jobs

    async def _start(self) -> None:
        from service import grpc_server
        from service.jobs import JobEngine

        self.jobs = JobEngine(self._core(), self.settings, self.keys)
        await self.jobs.start()
        if self.settings.grpc_port:
            self._grpc = await grpc_server.start(self.jobs, self.keys, self.settings)

    async def _stop(self) -> None:
        if self._grpc:
            await self._grpc.stop(GRACE)
        if self.jobs:
            await self.jobs.stop()
