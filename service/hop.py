"""What travels between the gateway and a runner, both ways: a line of JSON, then the raw bytes that go with
it, as many as "size" says.
"""

import json
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from service.schemas import RunnerJob

MEDIA_TYPE = "application/vnd.huvidpo.hop"


class Reader(Protocol):
    """Part of asyncio.StreamReader, which aiohttp's is not."""

    async def readline(self) -> bytes: ...

    async def readexactly(self, n: int) -> bytes: ...


def pack(head: dict[str, Any], data: bytes = b"") -> bytes:
    return json.dumps(head | {"size": len(data)}).encode() + b"\n" + data


def unpack(message: bytes) -> dict[str, Any]:
    """The fields of the line; `data` is what came with it, if anything."""
    line, _, data = message.partition(b"\n")
    return _with(json.loads(line), data)


async def messages(content: Reader) -> AsyncGenerator[dict[str, Any], None]:
    """Every message of a stream, as `unpack` gives it."""
    while line := await content.readline():
        head = json.loads(line)
        yield _with(head, await content.readexactly(head["size"]) if head["size"] else b"")


def _with(head: dict[str, Any], data: bytes) -> dict[str, Any]:
    del head["size"]
    return head | ({"data": data} if data else {})


def pack_job(job: RunnerJob) -> bytes:
    return pack(job.model_dump(exclude={"first_frame"}), job.first_frame or b"")


def unpack_job(message: bytes) -> RunnerJob:
    fields = unpack(message)
    first_frame = fields.pop("data", None)
    return RunnerJob(**fields, first_frame=first_frame)
