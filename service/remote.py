"""The gateway's end of the hop to a runner. The only file that touches BentoML's private client.

Two things its proxy does not do (1.4.39): send anything but pickle or JSON, and close a stream when its
reader stops. So requests go out on the proxy's own aiohttp session, and the raw response is closed here: the
runner notices and drops the job.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import aiohttp

from service import hop
from service.errors import Unavailable
from service.request_id import REQUEST_ID, TRACE_PARENT
from service.schemas import RunnerJob

ALIVE_SECONDS = 10.0  # between two signs of life: a third of the lease of desk.py
RETRY_SECONDS = 0.2
WITHDRAW_SECONDS = 2.0
LOST = (aiohttp.ClientError, OSError, asyncio.IncompleteReadError)  # a TimeoutError is an OSError


async def run(
    proxy: Any, job: RunnerJob, accept_timeout: float, leaving: Callable[[], bool] = lambda: False
) -> AsyncGenerator[dict[str, Any], None]:
    """The messages of `runners.stream` for `job`, from the service behind a BentoML dependency `proxy`. A
    runner that is lost before it has accepted the job is asked a second time: it does a job once.

    Closing the generator cancels the job; one with `detach` is left to whoever brings it again if the gateway
    is `leaving`. Raises Unavailable when the runner does not accept within `accept_timeout` seconds or goes
    away.
    """
    accepted, again = False, True
    while True:
        try:
            async with aclosing(_bring(proxy, job, accept_timeout)) as messages:
                async for message in messages:
                    accepted = True
                    yield message
            return
        except LOST as error:
            if accepted or not again or isinstance(error, TimeoutError):
                unavailable = "a runner is starting or restarting, try again in a few seconds"
                raise Unavailable(unavailable) from error
        except (GeneratorExit, asyncio.CancelledError):
            if job.detach and not leaving():
                await _withdraw(proxy, job.id)
            raise
        again = False
        await asyncio.sleep(RETRY_SECONDS)


async def is_ready(proxy: Any, timeout: float) -> bool:
    """True when the runner answers its own /readyz with 200 within `timeout` seconds."""
    try:
        session = await _session(proxy)
        async with asyncio.timeout(timeout), session.get("/readyz") as response:
            return response.status == 200
    except LOST:
        return False


async def _bring(proxy: Any, job: RunnerJob, accept_timeout: float) -> AsyncGenerator[dict[str, Any], None]:
    session = await _session(proxy)
    headers = {"Content-Type": hop.MEDIA_TYPE, "X-Request-Id": REQUEST_ID.get()}
    if trace_parent := TRACE_PARENT.get():
        headers["traceparent"] = trace_parent
    async with asyncio.timeout(accept_timeout):
        response = await session.put(_path(job.id), data=hop.pack_job(job), headers=headers)
    try:
        if response.status != 200:
            raise RuntimeError(f"the runner answered {response.status}: {(await response.text())[:500]}")
        async with _signs_of_life(session, job.id):
            async for message in hop.messages(response.content):
                yield message
    finally:
        response.close()


@asynccontextmanager
async def _signs_of_life(session: aiohttp.ClientSession, id: str) -> AsyncIterator[None]:
    async def signs() -> None:
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            with suppress(*LOST):
                (await session.post(_path(id))).release()

    task = asyncio.ensure_future(signs())
    try:
        yield
    finally:
        task.cancel()


async def _withdraw(proxy: Any, id: str) -> None:
    with suppress(*LOST):
        async with asyncio.timeout(WITHDRAW_SECONDS):
            (await (await _session(proxy)).delete(_path(id))).release()


def _path(id: str) -> str:
    return f"/jobs/{id}"


async def _session(proxy: Any) -> aiohttp.ClientSession:
    return await proxy.to_async._session_manager.get_session()
