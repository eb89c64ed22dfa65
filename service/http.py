"""The HTTP door: the guard around the application, and the answer to POST /generate_video. No BentoML."""

import asyncio
import json
import logging
import re
import struct
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import quote

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import tracing
from service.browsers import check_host, check_site
from service.errors import (
    INTERNAL,
    STATUS_CODES,
    SlowBody,
    TimedOut,
    TooLarge,
    Unavailable,
    WrongMediaType,
    row_of,
    shape,
    to_dict,
)
from service.events import generate_events
from service.generation import Finished, Generation, count_request
from service.metrics import ANSWERS
from service.request_id import REQUEST_ID, TRACE_PARENT
from service.schemas import GenerateRequest, parse
from service.waiting import Gone, while_connected

logger = logging.getLogger(__name__)
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Read = Callable[[Request], Awaitable[GenerateRequest]]

access = logging.getLogger("service.access")
UNTRACED = {"/livez", "/readyz", "/healthz", "/metrics", "/describe"}  # asked again and again by machines
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
HELD_BODIES = 8  # of the largest size, in memory at once
LEFT = 499  # the client went before there was an answer
_KEPT_HEADERS = {b"allow", b"content-range", b"retry-after", b"www-authenticate"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MESSAGES = {
    404: "there is nothing at this path; clips are made by POST /generate_video",
    405: "this path does not answer this method",
    503: "not ready: a runner is loading or gone",
    504: "the answer took too long",
}


class Guard:
    """Outermost ASGI layer. No body passes it that is too large, slow, or of a media type nobody reads
    (BentoML's pickle above all), nor more of them than there is memory for; no request that a page of another
    site made a browser send. Exceptions, and error answers made by the framework, leave it in the one JSON
    shape.

    Every answer carries X-Request-Id: the caller's own when it is 1-64 of A-Z a-z 0-9 . _ -, else a new one.
    Every answer, whoever made it, has one line in the log and counts once in the metric. What is not HTTP,
    such as a websocket, is closed here.
    """

    def __init__(
        self,
        app: App,
        *,
        max_body: int,
        paths: frozenset[str] = frozenset(),
        prefixes: tuple[str, ...] = (),
        forms: tuple[str, ...] = (),
        admit: Callable[[Scope, Headers], None] = lambda scope, headers: None,
        reads: str = "application/json",
        hosts: frozenset[str] | None = None,
        body_seconds: float = 60.0,
    ):
        self.app = app
        self.max_body = max_body  # bytes
        # all others end here: BentoML's metrics keep a series for every path they see
        self.paths, self.prefixes = paths, prefixes
        self.forms = forms  # paths that read multipart/form-data too
        self.admit = admit  # raises for who may not call, before the body is read
        self.reads = reads  # media type of bodies
        self.hosts = hosts  # see browsers.check_host; None: all, for what browsers do not reach
        self.body_seconds = body_seconds  # a body has to come within
        self._held = 0  # bytes of bodies that came and whose requests are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._close(scope, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        REQUEST_ID.set(request_id)
        TRACE_PARENT.set(headers.get("traceparent", "")[:64])
        span: Span = INVALID_SPAN
        if scope["path"] not in UNTRACED:
            method = scope["method"] if scope["method"] in METHODS else "_OTHER"
            span = tracing.start(f"{method} {self._label(scope['path'])}", SpanKind.SERVER)
            TRACE_PARENT.set(tracing.header(span))
        answer, started = _Answer(send, request_id), time.monotonic()
        try:
            await self._answer(scope, headers, receive, answer)
        except Gone:
            answer.status = LEFT
        except Exception as error:
            if row_of(error) is INTERNAL:
                logger.exception("request %s failed", request_id)
            await answer.fail(error)
        except asyncio.CancelledError:
            answer.status = answer.status or LEFT
            raise
        finally:
            status = answer.status or LEFT
            self._account(scope, status, time.monotonic() - started, request_id)
            tracing.answered(span, status, failure=status >= 500)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer") -> None:
        if self.hosts is not None:
            check_host(headers, self.hosts)
        check_site(scope["method"], headers)
        if not self._known(scope["path"]):
            await answer.fail_status(404)
            return
        self.admit(scope, headers)
        body = b""
        try:
            if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                body = await self._read(scope["path"], headers, receive)
                receive = _replay(body, receive)
            await self.app(scope, receive, answer.send)
            await answer.finish()
        finally:
            self._held -= len(body)

    def _known(self, path: str) -> bool:
        return path in self.paths or path.startswith(self.prefixes)

    def _label(self, path: str) -> str:
        return path if path in self.paths else next((p for p in self.prefixes if path.startswith(p)), "other")

    def _account(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        """One line and one count. No label comes from a stranger: what has no own path here is "other"."""
        path = scope["path"]
        ANSWERS.labels(self._label(path), str(status)).inc()
        client = (scope.get("client") or ("-",))[0]
        key = scope.get("state", {}).get("key") or "-"
        facts = {
            "client": client, "key": key, "method": scope.get("method", "-"), "path": path[:200],
            "status": status, "seconds": round(seconds, 4),
        }  # fmt: skip
        access.info("%s %s %s %r %d %.3f s %s", *facts.values(), request_id, extra=facts)

    async def _close(self, scope: Scope, send: Send) -> None:
        """A websocket is refused before it is accepted; uvicorn answers that with 403."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            self._account(scope, 403, 0.0, uuid.uuid4().hex)

    async def _read(self, path: str, headers: Headers, receive: Receive) -> bytes:
        """The whole body, held from now on. Raises WrongMediaType, TooLarge, SlowBody, Unavailable."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_body:
            raise self._too_large()
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.body_seconds):
                await self._collect(parts, receive)
            body = b"".join(parts)
            self._check_type(path, headers, body)
        except TimeoutError:
            self._held -= sum(map(len, parts))
            raise SlowBody(f"the body did not come within {self.body_seconds:g} seconds") from None
        except BaseException:
            self._held -= sum(map(len, parts))
            raise
        return body

    async def _collect(self, parts: list[bytes], receive: Receive) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._held += len(parts[-1])
            if size > self.max_body:
                raise self._too_large()
            if self._held > HELD_BODIES * self.max_body:
                raise Unavailable("too much is being uploaded at once, try again in a few seconds")
            more = message.get("more_body", False)

    def _check_type(self, path: str, headers: Headers, body: bytes) -> None:
        media_type = headers.get("content-type", "").split(";")[0].strip().lower()
        allowed = [self.reads, *(["multipart/form-data"] if path in self.forms else [])]
        if body and media_type not in allowed:
            raise WrongMediaType(
                f"Content-Type: got {media_type[:100]!r}, only {' or '.join(allowed)} is read here"
            )

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self.max_body} bytes")


class LastResort:
    """ASGI: `app`, whose answer has to begin within `timeout` seconds; else it is a 504. In the place of
    BentoML's (1.4.39), whose timers hold all that a request had until they ring, answered or not, and which
    waits for them when `app` fails.
    """

    def __init__(self, app: App, timeout: float):
        self.app, self.timeout = app, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def begun(message: Message) -> None:
            limit.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout(self.timeout) as limit:
                await self.app(scope, receive, begun)
        except TimeoutError:
            if not limit.expired():
                raise
            late = error_response(TimedOut(_MESSAGES[504]), scope["state"]["request_id"])
            await late(scope, receive, send)


class ReadAgain:
    """ASGI: `app`, asked again for the metrics, up to three times, where another process had just begun its
    file of them: until that has its size, prometheus_client (0.26) fails to read it.
    """

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for wait in (0.01, 0.05, 0.25) if scope.get("path") == "/metrics" else ():
            with suppress(struct.error):
                return await self.app(scope, receive, send)
            await asyncio.sleep(wait)
        await self.app(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hands out the body that was read already, then the connection's own messages."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


class _Answer:
    """Passes good answers through; holds an error answer back until the application is done."""

    def __init__(self, send: Send, request_id: str):
        self._send, self.request_id = send, request_id
        self.started = False
        self.status = 0  # of the answer, once there is one
        self._held: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
            self.status = message["status"]
            if message["status"] >= 400:
                self._held = message
                return
            self.started = True
        elif self._held is not None:
            self._body += message.get("body", b"")
            return
        await self._send(message)

    async def finish(self) -> None:
        """Sends the error answer held back: as it is when it has our shape, else rewritten."""
        if self._held is None:
            return
        if _has_our_shape(self._body):
            await self._send(self._held)
            await self._send({"type": "http.response.body", "body": self._body})
        else:
            kept = [(name, value) for name, value in self._held["headers"] if name.lower() in _KEPT_HEADERS]
            await self.fail_status(self._held["status"], kept)

    async def fail_status(self, status: int, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Our shape for an answer the framework made, with those of its headers that say what to do."""
        code = STATUS_CODES.get(status, "bad_request" if status < 500 else INTERNAL.code)
        message = _MESSAGES.get(
            status, "the request was refused" if status < 500 else to_dict(RuntimeError())["message"]
        )
        response = problem_response(status, {"code": code, "message": message}, self.request_id)
        ours = {name.lower() for name, _ in response.raw_headers}
        response.raw_headers += [(name, value) for name, value in headers if name.lower() not in ours]
        await self._respond(response)

    async def fail(self, error: Exception) -> None:
        if not self.started:  # else the client has half an answer: closing the connection is all that is left
            await self._respond(error_response(error, self.request_id))

    async def _respond(self, response: Response) -> None:
        self.started, self.status = True, response.status_code
        response.headers["x-request-id"] = self.request_id
        await self._send(
            {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )
        await self._send({"type": "http.response.body", "body": response.body})


def _has_our_shape(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(error, dict) and "code" in error


def error_response(error: Exception, request_id: str) -> Response:
    """Any exception as an answer of the one JSON shape."""
    return problem_response(row_of(error).status, to_dict(error), request_id)


def problem_response(status: int, problem: dict[str, Any], request_id: str) -> Response:
    retry_after = problem.pop("retry_after", 5 if status == 503 else None)
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(shape(status, problem, request_id), status_code=status, headers=headers)


async def read_json(request: Request) -> GenerateRequest:
    return parse(GenerateRequest, await request.body())


async def answer_generate(core: Generation, request: Request, read: Read = read_json) -> Response:
    """POST /generate_video: the clip, its making as events where `Accept` asks for them, or an error. The
    work is cancelled as soon as the client is gone.
    """
    request_id = request.state.request_id
    await request.body()  # all of it: what comes after is the news that the client has left
    try:
        if wants_events(request):
            preview = request.query_params.get("preview") in ("1", "true")
            return await generate_events(core, await _read(read, request), request_id, preview)
        return _clip_response(await while_connected(_generate(core, request, read), request.receive))
    except Gone:
        return Response(status_code=LEFT)  # nobody reads it; access logs do
    except Exception as error:
        if row_of(error) is INTERNAL:
            logger.exception("request %s failed", request_id)
        return error_response(error, request_id)


def wants_events(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "").lower()


async def _read(read: Read, request: Request) -> GenerateRequest:
    try:
        return await read(request)
    except Exception as error:
        count_request(row_of(error).code)
        raise


async def _generate(core: Generation, request: Request, read: Read) -> Finished:
    async with aclosing(core.generate(await _read(read, request))) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event
    raise RuntimeError("generation ended without a clip")


def _clip_response(clip: Finished) -> Response:
    timing = ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in clip.seconds.items())
    headers = {
        "X-Seed": str(clip.seed),
        "X-Model": clip.model,
        "X-Backend": ", ".join(f"{stage}={backend}" for stage, backend in clip.backends.items()),
        "Server-Timing": timing,
    }
    if weights := clip.weights.get("video"):
        scaled = "" if clip.strength == 1 else f"; preference_strength={clip.strength:g}"
        headers["X-Weights"] = weights + scaled
    if clip.warnings:
        headers["X-Warning"] = _ascii(" ".join(clip.warnings))
    if clip.verdict:
        told = clip.verdict.told()
        headers["X-Prompt-Verdict"] = " ".join((told["action"], *told["lists"]))
    if clip.frames_verdict:
        headers["X-Frames-Verdict"] = _ascii(" ".join(clip.frames_verdict.values()).strip())
    return Response(clip.data, media_type=clip.media_type, headers=headers)


def _ascii(text: str) -> str:
    """As headers may have it: the rest percent-encoded."""
    return quote(text, safe=" ,:.'")
