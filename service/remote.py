"""The gateway's end of the hop to a runner. The only file that touches BentoML's private client.

Two things its proxy does not do (1.4.39): send anything but pickle or JSON, and close a stream when its
reader stops. So requests go out on the proxy's own aiohttp session, and the raw response is closed here: the
runner notices and drops the job.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp

from service import hop
from service.errors import Unavailable
from service.request_id import REQUEST_ID
from service.schemas import RunnerJob


async def run(proxy: Any, job: RunnerJob, accept_timeout: float) -> AsyncGenerator[dict[str, Any], None]:
    """The messages of `runners.stream` for `job`, from the service behind a BentoML dependency `proxy`.

    Raises Unavailable when the runner does not accept within `accept_timeout` seconds or goes away.
    """
    response: aiohttp.ClientResponse | None = None
    try:
        session = await _session(proxy)
        async with asyncio.timeout(accept_timeout):
            headers = {"Content-Type": hop.MEDIA_TYPE, "X-Request-Id": REQUEST_ID.get()}
            response = await session.post("/run", data=hop.pack_job(job), headers=headers)
        if response.status != 200:
            raise RuntimeError(f"the runner answered {response.status}: {(await response.text())[:500]}")
        async for message in hop.messages(response.content):
            yield message
    except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
        raise Unavailable("a runner is starting or restarting, try again in a few seconds") from error
    finally:
        if response is not None:
            response.close()


async def is_ready(proxy: Any, timeout: float) -> bool:
    """True when the runner answers its own /readyz with 200 within `timeout` seconds."""
    try:
        session = await _session(proxy)
        async with asyncio.timeout(timeout), session.get("/readyz") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def _session(proxy: Any) -> aiohttp.ClientSession:
    return await proxy.to_async._session_manager.get_session()
