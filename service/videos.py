"""The videos API that OpenAI's clients, vLLM-Omni, SGLang and LiteLLM speak, over the job engine: /v1/videos.

What it adds to that contract: category and style, the fields of vLLM-Omni (num_frames, seed, ...), cancel,
Idempotency-Key. A cancelled job reads as failed with the code "cancelled". To look at a job that failed is no
error: 200.
"""

import asyncio
import base64
import io
import json
import re
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image, ImageSequence
from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from huvidpo.catalog import Catalog
from huvidpo.errors import InvalidRequest
from huvidpo.video import decode
from service.errors import BadFields, MalformedBody, NotFound, Unavailable
from service.events import EventStream, sse
from service.feedback import answer_feedback
from service.generation import Generation
from service.http import answer_generate
from service.job_rows import Job
from service.jobs import JobEngine
from service.lineage import of_job
from service.marks import verify
from service.order import Priority
from service.ranges import serve
from service.schemas import MEDIA_TYPES, OTHER_NAMES, Format, GenerateRequest, parse

_VERIFIER = ThreadPoolExecutor(1)  # a clip at a time: the cores belong to the model
SPRITES = 16  # most pictures of a spritesheet, in rows of four
DATA_URL = re.compile(r"data:image/(png|jpeg|webp);base64,", re.IGNORECASE)
# The core's name of a field -> this API's
NAMES = {ours: other for other, ours in OTHER_NAMES.items()} | {
    "first_frame": "input_reference", "image_url": "input_reference"
}  # fmt: skip


class Reference(BaseModel):
    """An image in a JSON body: its bytes, as a data URL; or its address, where those are followed."""

    model_config = ConfigDict(extra="forbid")

    image_url: str


class VideoRequest(BaseModel):
    """The body of POST /v1/videos. In a form everything is text, so text that reads as a number is one."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    model: str | None = None
    seconds: float | None = None
    size: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    preference_strength: float | None = None
    category: str | None = None
    style: str | None = None
    format: Format = "mp4"
    priority: Priority | None = None
    input_reference: Reference | None = None
    webhook_url: Annotated[str, Field(max_length=2000)] | None = None


class RemixRequest(BaseModel):
    """The body of POST /v1/videos/{id}/remix."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str


def videos_app(engine: Callable[[], JobEngine]) -> Starlette:
    """The routes below /v1, and /feedback. `engine` is asked at each request: it starts after them."""
    door = _Door(engine)
    return Starlette(
        routes=[
            Route("/v1/videos", door.create, methods=["POST"]),
            Route("/v1/videos", door.page, methods=["GET"]),
            Route("/v1/videos/sync", door.sync, methods=["POST"]),
            Route("/v1/videos/{id}", door.retrieve, methods=["GET"]),
            Route("/v1/videos/{id}", door.delete, methods=["DELETE"]),
            Route("/v1/videos/{id}/content", door.content, methods=["GET"]),
            Route("/v1/videos/{id}/events", door.events, methods=["GET"]),
            Route("/v1/videos/{id}/lineage", door.lineage, methods=["GET"]),
            Route("/v1/videos/{id}/remix", door.remix, methods=["POST"]),
            Route("/v1/videos/{id}/cancel", door.cancel, methods=["POST"]),
            Route("/feedback", door.feedback, methods=["POST"]),
            Route("/v1/provenance/verify", door.verify, methods=["POST"]),
            Route("/v1/models", door.models, methods=["GET"]),
            Route("/v1/models/{id}", door.model, methods=["GET"]),
        ]
    )


class _Door:
    def __init__(self, engine: Callable[[], JobEngine]):
        self._engine = engine

    async def create(self, request: Request) -> Response:
        engine = self._engine()
        wanted, webhook = await read(request, engine.core)
        key = request.headers.get("idempotency-key")
        try:
            job = await engine.create(wanted, owner(request), key, webhook=webhook)
        except InvalidRequest as error:
            raise renamed(error) from error
        return self._answer(engine, job)

    async def sync(self, request: Request) -> Response:
        """The clip itself, as POST /generate_video answers."""
        core = self._engine().core

        async def read_alone(request: Request) -> GenerateRequest:
            wanted, webhook = await read(request, core)
            if webhook is not None:
                raise InvalidRequest(
                    "webhook_url: only jobs have one, made by POST /v1/videos", "webhook_url"
                )
            return wanted

        return await answer_generate(core, request, read_alone)

    async def retrieve(self, request: Request) -> Response:
        engine = self._engine()
        return self._answer(engine, await engine.get(request.path_params["id"], owner(request)))

    async def page(self, request: Request) -> Response:
        engine, asked = self._engine(), request.query_params
        limit, order = asked.get("limit", "20"), asked.get("order", "desc")
        if not limit.isdecimal():
            raise InvalidRequest(f"limit: got {limit[:20]!r}, expected a number", "limit")
        if order not in ("asc", "desc"):
            raise InvalidRequest(f"order: got {order[:20]!r}, expected asc or desc", "order")
        page = await engine.page(owner(request), asked.get("after"), int(limit), order == "desc")
        data = [video(job, engine.core) for job in page.jobs]
        ids = [one["id"] for one in data] or [None]
        more = {"has_more": page.has_more, "first_id": ids[0], "last_id": ids[-1]}
        return JSONResponse({"object": "list", "data": data} | more)

    async def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        await self._engine().delete(id, owner(request))
        return JSONResponse({"id": id, "object": "video.deleted", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        engine = self._engine()
        return self._answer(engine, await engine.cancel(request.path_params["id"], owner(request)))

    async def remix(self, request: Request) -> Response:
        """The same request with another prompt, and the same seed."""
        engine = self._engine()
        source = await engine.get(request.path_params["id"], owner(request))
        prompt = parse(RemixRequest, await request.body()).prompt
        wanted = parse(GenerateRequest, json.dumps(source.request | {"prompt": prompt}).encode())
        key = request.headers.get("idempotency-key")
        return self._answer(engine, await engine.create(wanted, owner(request), key, source=source.id))

    async def events(self, request: Request) -> Response:
        """The job as server-sent events: as it is, then whenever it changes, until it has ended.

        An event's id counts what has happened to the job, so a reader that comes back with Last-Event-ID, to
        whichever gateway, hears only what is new. What only moves it up in a queue has no id.
        """
        engine, id, seen = self._engine(), request.path_params["id"], request.headers.get("last-event-id", "")
        await engine.get(id, owner(request))  # while there can still be a 404
        return EventStream(_changes(engine, id, owner(request), int(seen) if seen.isdecimal() else -1))

    async def content(self, request: Request) -> Response:
        engine = self._engine()
        job = await engine.get(request.path_params["id"], owner(request))
        variant = request.query_params.get("variant", "video")
        if variant == "first_frame":  # there before the clip is
            return await serve(request, engine.store, engine.first_frame(job), "image/png")
        key = engine.clip(job)
        if variant == "video":
            name = f"{job.id}.{job.request['format']}"
            sha256 = (job.report or {}).get("sha256")
            return await serve(request, engine.store, key, MEDIA_TYPES[job.request["format"]], name, sha256)
        make = {"thumbnail": thumbnail, "spritesheet": spritesheet}.get(variant)
        if make is None:
            raise InvalidRequest(
                f"variant: got {variant[:20]!r}, expected video, thumbnail, spritesheet or first_frame",
                "variant",
            )
        data = await asyncio.to_thread(engine.store.read, key)
        data, media_type = await asyncio.to_thread(make, data, job.request["format"])
        return Response(data, media_type=media_type)

    async def lineage(self, request: Request) -> Response:
        engine = self._engine()
        job = await engine.get(request.path_params["id"], owner(request))
        return JSONResponse(await _lineage(engine, job))

    async def feedback(self, request: Request) -> Response:
        return await answer_feedback(self._engine(), request, owner(request))

    async def verify(self, request: Request) -> Response:
        """What a file says of where it comes from; it is sent as the field `file` of a form."""
        try:
            async with request.form(max_files=1, max_fields=1) as form:
                file = form.get("file")
                data = await file.read() if isinstance(file, UploadFile) else b""
        except Exception as error:  # python-multipart and Starlette each have their own
            raise MalformedBody("the body is not a form as multipart/form-data says") from error
        engine = self._engine()
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(_VERIFIER, verify, data, engine.settings)
        if marked := found["watermark"]:
            job = await engine.rows.begins_with(f"video_{marked['id']}", owner(request))
            marked["video"] = await _lineage(engine, job) if job else None
        return JSONResponse(found)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(self._engine().settings.model)]})

    async def model(self, request: Request) -> Response:
        served = self._engine().settings.model
        if request.path_params["id"] != served:
            raise NotFound(f"model: got {request.path_params['id'][:40]!r}, this server has {served}")
        return JSONResponse(_model(served))

    def _answer(self, engine: JobEngine, job: Job) -> Response:
        headers = {} if job.ended else {"openai-poll-after-ms": str(poll_after_ms(job))}
        return JSONResponse(video(job, engine.core), headers=headers)


def owner(request: Request) -> str:
    """Name of the API key the request came with; "" where the service has no keys."""
    return request.scope.get("state", {}).get("key", "")


async def read(request: Request, core: Generation) -> tuple[GenerateRequest, str | None]:
    """A JSON body or a form as the core's request, and its webhook. Raises InvalidRequest in our names."""
    asked, image = await _fields(request)
    address = None
    if asked.input_reference is not None:
        if image is not None:
            raise InvalidRequest(
                "input_reference: got a file and an image_url, expected one of them", "input_reference"
            )
        url = asked.input_reference.image_url
        if found := DATA_URL.match(url):
            image = url[found.end() :]
        elif core.settings.image_url_seconds and not url.lower().startswith("data:"):
            address = url
        else:
            off = "" if core.settings.image_url_seconds else "; addresses are not followed here"
            raise InvalidRequest(
                "input_reference: send the image as a file or as a data:image/png;base64,... URL, of a PNG, "
                f"JPEG or WebP{off}",
                "input_reference",
            )
    _check_model(asked, core)
    fields = {
        "prompt": asked.prompt,
        "category": asked.category if asked.category is not None else infer(asked.prompt, core.catalog),
        "style": asked.style,
        "seed": asked.seed,
        "steps": asked.num_inference_steps,
        "guidance": asked.guidance_scale,
        "frames": _frames(asked, core),
        "fps": asked.fps,
        "negative_prompt": asked.negative_prompt,
        "preference_strength": asked.preference_strength,
        "first_frame": image,
        "image_url": address,
        "format": asked.format,
        "priority": asked.priority,
    }
    try:
        wanted = parse(GenerateRequest, json.dumps(fields).encode())
        core.plan(wanted)
    except InvalidRequest as error:
        raise renamed(error) from error
    return wanted, asked.webhook_url


async def _fields(request: Request) -> tuple[VideoRequest, str | None]:
    """The body, and the uploaded image in base64."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return parse(VideoRequest, await request.body()), None
    image, fields, given = None, dict[str, Any](), set[str]()
    try:
        async with request.form(max_files=1, max_fields=50, max_part_size=2**24) as form:
            for name, value in form.multi_items():
                if name in given:
                    raise InvalidRequest(f"{name[:40]}: given more than once; give it once", None)
                given.add(name)
                if isinstance(value, UploadFile):
                    if name != "input_reference":
                        raise InvalidRequest(f"{name[:40]}: not a file field, known: input_reference", None)
                    image = base64.b64encode(await value.read()).decode("ascii")
                elif inner := re.fullmatch(r"input_reference\[(\w+)\]", name):
                    fields.setdefault("input_reference", {})[inner[1]] = value
                else:
                    fields[name] = value
    except InvalidRequest:
        raise
    except Exception as error:  # python-multipart and Starlette each have their own
        raise MalformedBody("the body is not a form as multipart/form-data says") from error
    return parse(VideoRequest, json.dumps(fields).encode()), image


def _check_model(asked: VideoRequest, core: Generation) -> None:
    served = core.settings.model
    if asked.model not in (None, served):
        raise InvalidRequest(f"model: got {asked.model[:40]!r}, this server has {served}", "model")
    options = core.catalog.model(served).defaults
    size = f"{options.width}x{options.height}"
    if asked.size not in (None, size):
        raise InvalidRequest(f"size: got {asked.size[:40]!r}, this model makes {size}", "size")
    for name in ("width", "height"):
        if getattr(asked, name) not in (None, getattr(options, name)):
            raise InvalidRequest(f"{name}: got {getattr(asked, name)}, this model makes {size}", name)


def _frames(asked: VideoRequest, core: Generation) -> int | None:
    """`num_frames`, or `seconds` at the frame rate."""
    if asked.seconds is None:
        return asked.num_frames
    fps = asked.fps or core.catalog.model(core.settings.model).defaults.fps
    frames = round(asked.seconds * fps) if 0 < asked.seconds < 1000 else 0
    most = core.settings.max_frames
    if asked.num_frames is not None and asked.num_frames != frames:
        raise InvalidRequest(f"seconds: {asked.seconds:g} at {fps} frames per second are {frames} frames, "
                             f"num_frames says {asked.num_frames}", "seconds")  # fmt: skip
    if not 2 <= frames <= most:
        raise InvalidRequest(
            f"seconds: got {asked.seconds:g}, this server allows {2 / fps:g} to {most / fps:g} "
            f"at {fps} frames per second",
            "seconds",
        )
    return frames


def infer(prompt: str, catalog: Catalog) -> str:
    """The one category that the prompt names, in singular or plural. Raises InvalidRequest."""
    words = {word.rstrip("s") for word in re.findall(r"\w+", prompt.lower())}
    named = [name for name in catalog.categories if name.lower().rstrip("s") in words]
    if len(named) != 1:
        found = f"the prompt names {', '.join(named)}" if named else "the prompt names none"
        raise InvalidRequest(f"category: {found}, choose one of: {', '.join(catalog.categories)}", "category")
    return named[0]


def renamed(error: InvalidRequest) -> InvalidRequest:
    """The same error in this API's names of the fields."""

    def text(message: str, field: str) -> str:
        return message.replace(f"{field}:", f"{NAMES.get(field, field)}:")

    if isinstance(error, BadFields):
        details = [
            {"field": NAMES.get(one["field"], one["field"]), "message": text(one["message"], one["field"])}
            for one in error.details
        ]
        return BadFields("; ".join(one["message"] for one in details), details[0]["field"], details)
    field = error.field or ""
    return type(error)(text(error.message, field), NAMES.get(field, field) or None)


def video(job: Job, core: Generation) -> dict[str, Any]:
    """The video object of the contract, with what the contract has no field for."""
    asked, options = job.request, core.catalog.model(core.settings.model).defaults
    error = job.error and {"code": job.error["code"], "message": job.error["message"]}
    left = seconds_left(job)
    return {
        "id": job.id,
        "object": "video",
        "model": core.settings.model,
        "status": job.status,
        "progress": job.progress,
        "step": job.done,
        "total_steps": job.total,
        "queue_position": job.position,
        "stage": job.stage,
        "eta": left and round(left, 1),
        "created_at": int(job.created_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "expires_at": int(job.expires_at) if job.ended else None,
        "prompt": asked["prompt"],
        "seconds": f"{asked['frames'] / asked['fps']:g}",
        "size": f"{options.width}x{options.height}",
        "remixed_from_video_id": job.source,
        "error": error,
        "warnings": job.warnings or [],
        "prompt_verdict": job.prompt_verdict,
        "frames_verdict": (job.report or {}).get("frames_verdict"),
    } | {name: asked[name] for name in ("category", "style", "seed", "negative_prompt", "format")} | {
        "num_frames": asked["frames"],
        "fps": asked["fps"],
        "num_inference_steps": asked["steps"],
        "guidance_scale": asked["guidance"],
        "preference_strength": asked.get("preference_strength", 1.0),
    }  # fmt: skip


async def _lineage(engine: JobEngine, job: Job) -> dict[str, Any]:
    return of_job(job, await engine.clip_sha256(job) if job.status == "completed" else None)


async def _changes(engine: JobEngine, id: str, owner: str, last: int) -> AsyncGenerator[str, None]:
    """The events of a job after the one with the id `last`."""
    before: Job | None = None
    came_back = last >= 0
    with suppress(NotFound, Unavailable):  # deleted meanwhile; or the reader comes back by itself
        async for job in engine.watch(id, owner):
            number = event_id(job)
            known = before.stage if before else job.stage if came_back else None
            begun = job.stage is not None and job.stage != known
            if begun:
                yield sse("started", video(job, engine.core))
            if number > last:
                yield sse(job.status, video(job, engine.core), number)
            elif before and before.position != job.position and number == last and not begun:
                yield sse(job.status, video(job, engine.core))
            before, last = job, max(last, number)


def event_id(job: Job) -> int:
    """Grows with everything that happens to a job: 0 queued, 1 begun, then its steps, then its end."""
    return job.total + 2 if job.ended else job.done + (job.status == "in_progress")


def seconds_left(job: Job) -> float | None:
    """Until the clip should be there, as the runner's queue or else the steps so far tell."""
    if job.ended:
        return None
    if job.expected_at is not None:
        return max(job.expected_at - time.time(), 0.0)
    if job.started_at is None or not job.done:
        return None
    return max(time.time() - job.started_at, 0.0) / job.done * (job.total - job.done)


def poll_after_ms(job: Job) -> int:
    """When to ask again: when the clip should be there, within 0.2 to 5 seconds."""
    left = seconds_left(job)
    return round(1000 * min(max(1.0 if left is None else left, 0.2), 5.0))


def thumbnail(data: bytes, format: str) -> tuple[bytes, str]:
    """The clip's first picture as WebP."""
    return _encoded(Image.fromarray(_pictures(data, format)[0]), "webp")


def spritesheet(data: bytes, format: str) -> tuple[bytes, str]:
    """Up to 16 pictures, evenly over the clip, in rows of four as JPEG."""
    pictures = _pictures(data, format)
    indices = np.linspace(0, len(pictures) - 1, min(SPRITES, len(pictures))).round().astype(int)
    chosen = [pictures[i] for i in indices]
    height, width = chosen[0].shape[:2]
    sheet = Image.new("RGB", (4 * width, -(-len(chosen) // 4) * height))
    for i, picture in enumerate(chosen):
        sheet.paste(Image.fromarray(picture), (i % 4 * width, i // 4 * height))
    return _encoded(sheet, "jpeg")


def _pictures(data: bytes, format: str) -> list[np.ndarray]:
    if format == "mp4":
        return list(decode(data)[0])
    with Image.open(io.BytesIO(data)) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def _encoded(image: Image.Image, format: Literal["webp", "jpeg"]) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, format=format, quality=90)
    return buffer.getvalue(), f"image/{format}"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "huvidpo"}
