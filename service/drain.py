"""Leaving in good order, on SIGTERM: the gateway says that it is not ready and admits nothing more, finishes
what it has, and ends; then the runners do.

BentoML 1.4.39 stops all processes at once, and deletes the runners' sockets before: what had only its first
frame could not go on.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from service.generation import Generation

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.1
Handler = Callable[[int, FrameType | None], Any]


def install(core: Generation, grace: float) -> None:
    """From now on SIGTERM drains `core` for at most `grace` seconds before the server's own handler gets it.

    For the main thread, inside the server's event loop.
    """
    server = signal.getsignal(signal.SIGTERM)
    assert callable(server), "the server handles SIGTERM before the application starts"
    loop, draining = asyncio.get_running_loop(), list[asyncio.Task[None]]()

    def begin(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(start, number)

    def start(number: int) -> None:
        if not draining:  # a second signal changes nothing
            draining.append(loop.create_task(_drain(core, grace, lambda: server(number, None))))

    signal.signal(signal.SIGTERM, begin)


async def _drain(core: Generation, grace: float, leave: Callable[[], Any]) -> None:
    logger.info("draining: %d requests in flight, %g seconds to finish", core.in_flight, grace)
    core.drain(grace)
    while core.in_flight:
        await asyncio.sleep(POLL_SECONDS)
    leave()


def gateway_first() -> None:
    """In the process that starts the others: they are stopped one after the other, the gateway first."""
    from bentoml._internal.utils.circus import Arbiter
    from circus.exc import ConflictError
    from tornado import gen

    stop, stopping = Arbiter.stop, list[Any]()

    @gen.coroutine
    def in_turn(arbiter: Any) -> Any:
        if stopping:
            return
        stopping.append(arbiter)
        for watcher in arbiter.watchers:
            if watcher.name == "service":  # BentoML's name for the service that was asked for
                yield watcher._stop()
        while True:
            try:
                yield stop(arbiter)
                return
            except ConflictError:  # it is looking after the others just now
                yield gen.sleep(POLL_SECONDS)

    Arbiter.stop = in_turn  # type: ignore[method-assign, assignment]
