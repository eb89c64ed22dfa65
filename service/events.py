"""Server-sent events: how a stream of them is sent, and what POST /generate_video says as one.

accepted  {"model", "seed", "warnings", "prompt_verdict"}
                                            warnings: sentences, of words that the model does not know;
                                            prompt_verdict: {"action", "lists"}, or null without a policy
queued    {"stage", "position", "eta"}      position: requests before it; eta: seconds, or null
started   {"stage"}                         the device works on it
step      {"stage", "step", "total"}        step 1, 2, ... of the denoising steps of both stages
preview   {"media_type", "data"}            the first frame in base64, where it was asked for
done      {"media_type", "data", "seed", "model", "seconds", "backends", "frames_verdict"}
                                            the clip in base64; frames_verdict: {"action", "reason"}, or null
error     {"error": {...}}                  instead of done, in the one JSON shape
"""

import base64
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import INTERNAL, row_of, shape, to_dict
from service.generation import Begun, Drawn, Event, Finished, Generation, Progress, Queued, Started
from service.schemas import GenerateRequest
from service.waiting import Gone, ticking, while_connected

logger = logging.getLogger(__name__)
MEDIA_TYPE = "text/event-stream"
BEAT_SECONDS = 15.0  # of silence until a comment is sent: proxies close what seems dead


class EventStream(StreamingResponse):
    """`events`, as they come. When the client leaves they are closed at once, not with the next one."""

    def __init__(self, events: AsyncGenerator[str, None]):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would collect them
        super().__init__(beating(events), media_type=MEDIA_TYPE, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(Gone):
            await while_connected(self._send(send), receive)
        if self.background is not None:
            await self.background()

    async def _send(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]  # Starlette knows it as an iterator
            await self.stream_response(send)


def sse(name: str, data: dict[str, Any], id: int | None = None) -> str:
    """One event as it is sent."""
    number = "" if id is None else f"id: {id}\n"
    return f"{number}event: {name}\ndata: {json.dumps(data)}\n\n"


async def beating(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events, and comments while there are none."""
    async with aclosing(events), aclosing(ticking(events, BEAT_SECONDS)) as ticks:
        async for event in ticks:
            yield ": still here\n\n" if event is None else event


async def generate_events(
    core: Generation, request: GenerateRequest, request_id: str, preview: bool
) -> EventStream:
    """The clip of POST /generate_video as a stream. Raises what is known before there is any work, as
    `Generation.generate` does; what goes wrong later is the last event.
    """
    events = core.generate(request)
    accepted = await anext(events)
    assert isinstance(accepted, Started)
    drawn = 0 if request.first_frame or request.image_url else accepted.request.options.first_frame_steps
    return EventStream(_lines(accepted, events, drawn, request_id, preview))


async def _lines(
    accepted: Started, events: AsyncGenerator[Event, None], drawn: int, request_id: str, preview: bool
) -> AsyncGenerator[str, None]:
    """`drawn`: denoising steps of the first stage."""
    yield sse("accepted", _accepted(accepted))
    total = drawn + accepted.request.options.steps
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Queued):
                    data = {"stage": event.stage, "position": event.position, "eta": event.eta}
                    yield sse("queued", data)
                elif isinstance(event, Begun):
                    yield sse("started", {"stage": event.stage})
                elif isinstance(event, Progress):
                    step = event.step + (drawn if event.stage == "video" else 0)
                    yield sse("step", {"stage": event.stage, "step": step, "total": total})
                elif isinstance(event, Drawn) and preview:
                    yield sse("preview", {"media_type": "image/png", "data": _text(event.png)})
                elif isinstance(event, Finished):
                    yield sse("done", _clip(event))
    except Exception as error:
        if row_of(error) is INTERNAL:
            logger.exception("request %s failed", request_id)
        yield sse("error", shape(row_of(error).status, to_dict(error), request_id))


def _accepted(accepted: Started) -> dict[str, Any]:
    verdict = accepted.verdict and accepted.verdict.told()
    told = {"warnings": list(accepted.warnings), "prompt_verdict": verdict}
    return {"model": accepted.model, "seed": accepted.request.seed} | told


def _clip(clip: Finished) -> dict[str, Any]:
    return {
        "media_type": clip.media_type,
        "data": _text(clip.data),
        "seed": clip.seed,
        "model": clip.model,
        "seconds": clip.seconds,
        "backends": clip.backends,
        "frames_verdict": clip.frames_verdict,
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
