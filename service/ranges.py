"""Answers a file of a store over HTTP, with Range: no file of an object store is ever held whole."""

import asyncio
import re
from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from service.store import Bucket, Folder, Store

CHUNK = 1 << 20  # bytes read from an object store at once
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


async def serve(
    request: Request,
    store: Store,
    key: str,
    media_type: str,
    filename: str | None = None,
    sha256: str | None = None,
) -> Response:
    """`sha256` of the file, where it is known, is its ETag.

    Raises NotFound, Unavailable; HTTPException 416 for a range that the file does not have.
    """
    known = {"ETag": f'"{sha256}"'} if sha256 else {}
    if known and known["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=known)
    if isinstance(store, Folder):
        return FileResponse(store.path(key), headers=known, media_type=media_type, filename=filename)
    size, etag = await asyncio.to_thread(store.head, key)
    headers = {"Accept-Ranges": "bytes", "ETag": etag} | known
    if filename:
        headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    wanted = None
    if request.headers.get("if-range", headers["ETag"]) == headers["ETag"]:
        wanted = asked_range(request.headers.get("range", ""), size)
    start, end = wanted or (0, size)
    headers["Content-Length"] = str(end - start)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if wanted else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    # read before the status is said, so that a store that is away is a 503
    first = await asyncio.to_thread(store.range, key, start, min(start + CHUNK, end))
    return StreamingResponse(_rest(store, key, first, start, end), status, headers, media_type)


async def _rest(store: Bucket, key: str, data: bytes, start: int, end: int) -> AsyncIterator[bytes]:
    yield data
    for at in range(start + CHUNK, end, CHUNK):
        yield await asyncio.to_thread(store.range, key, at, min(at + CHUNK, end))


def asked_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for the whole file, also where several ranges
    are asked for, as HTTP allows. Raises HTTPException 416."""
    found = _RANGE.fullmatch(header.strip())
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < int(first):
            return None  # no range at all, HTTP says
    if start >= end:
        raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
    return start, end
