"""Waiting for one thing without missing another."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class Gone(Exception):
    """The client left: there is nobody to answer."""


async def while_connected(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What `work` returns; it is cancelled as soon as the client is gone. Raises Gone, and what `work` does.

    The body has to be read before: what comes after it is the news that the client has left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def ticking(events: AsyncGenerator[Any, None], seconds: float) -> AsyncGenerator[Any, None]:
    """The events, and None whenever `seconds` pass without one."""
    following = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=seconds)
            if not done:
                yield None
                continue
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            yield event
            following = asyncio.ensure_future(anext(events))
    finally:
        following.cancel()
        await asyncio.wait({following})
