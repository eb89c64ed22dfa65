"""The operator's own look at all that was made, before it is given out or stored, where there is one:

    HUVIDPO_FRAME_CHECK=checks:look               # a module that Python finds, and a function in it
    HUVIDPO_FRAME_CHECK_ACTION=block              # or tag: it blocks nothing; or off: it is not asked

    def look(frames):                             # uint8 [F, H, W, 3]: a clip, or a first frame (F is 1)
        return "ok"                               # or "tag", "block"; or ("block", "why")

Runners ask it, before a clip is encoded.
"""

import asyncio
import importlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

import numpy as np

from service import metrics
from service.errors import ContentRefused, FrameCheckFailed
from service.request_id import REQUEST_ID
from service.settings import Settings

logger = logging.getLogger(__name__)
Look = Callable[[np.ndarray], Any]
LONGEST = 200  # characters of a reason
MAX_HUNG = 4  # threads that a function may keep for itself


def load(settings: Settings) -> "FrameCheck | None":
    """None where there is none. Raises ValueError for a function that cannot be imported."""
    name = settings.frame_check
    if not name or settings.frame_check_action == "off":
        return None
    module, _, function = name.partition(":")
    try:
        look = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may raise whatever it likes
        raise ValueError(f"HUVIDPO_FRAME_CHECK: {name!r} cannot be imported: {error}") from error
    if not callable(look):
        raise ValueError(f"HUVIDPO_FRAME_CHECK: got {name!r}, which is not a function")
    return FrameCheck(look, settings.frame_check_action == "block", settings.frame_check_seconds)


class FrameCheck:
    """Asks `look` for a clip at a time, on a thread that is the function's own for as long as it takes: one
    that hangs keeps that thread, and neither the process's end nor another clip waits for it.
    """

    def __init__(self, look: Look, blocks: bool = True, seconds: float = 10.0):
        self.look, self.blocks, self.seconds = look, blocks, seconds
        self._turn = asyncio.Lock()
        self._hung: list[Thread] = []

    async def verdict(self, frames: np.ndarray) -> dict[str, str]:
        """{"action": "ok" or "tag", "reason"} of a clip [F, H, W, 3] or a first frame [H, W, 3]; counted.

        Raises ContentRefused for "block"; FrameCheckFailed if the function raises, answers with anything else
        or takes too long. Unless it `blocks` both are tags.
        """
        # whoever leaves meanwhile does not let the next in: the function sees one clip at a time
        return await asyncio.shield(asyncio.ensure_future(self._verdict(frames)))

    async def _verdict(self, frames: np.ndarray) -> dict[str, str]:
        try:
            async with self._turn:
                action, reason = await self._ask(frames)
        except Exception:
            logger.exception("request %s: the frame check failed", REQUEST_ID.get())
            metrics.POLICY.labels("frames", "failed", "").inc()
            if self.blocks:
                raise FrameCheckFailed(
                    "the check that every clip has to pass here failed, so the clip is not given out; the "
                    "request id finds the reason in the server's log"
                ) from None
            return {"action": "tag", "reason": "the check failed"}
        if action == "block" and not self.blocks:
            action = "tag"
        metrics.POLICY.labels("frames", action, "").inc()
        if action == "block":
            why = f": {reason}" if reason else ""
            raise ContentRefused(f"this server does not give out what was made{why}")
        return {"action": action, "reason": reason}

    async def _ask(self, frames: np.ndarray) -> tuple[str, str]:
        self._hung = [thread for thread in self._hung if thread.is_alive()]
        if len(self._hung) >= MAX_HUNG:
            raise RuntimeError(f"{MAX_HUNG} calls of it have not come back: restart this runner")
        answer: Future[tuple[Any, BaseException | None]] = Future()
        thread = Thread(target=_call, args=(answer, self.look, frames), name="frame check", daemon=True)
        thread.start()
        try:
            async with asyncio.timeout(self.seconds):
                said, error = await asyncio.wrap_future(answer)
        except TimeoutError:
            self._hung.append(thread)
            raise TimeoutError(f"it has taken more than {self.seconds:g} seconds") from None
        if error is not None:
            raise RuntimeError(f"it raised {type(error).__name__}") from error
        return _read(said)


def _call(answer: Future[tuple[Any, BaseException | None]], look: Look, frames: np.ndarray) -> None:
    answer.set_running_or_notify_cancel()
    try:
        # a copy: it may write into what it gets
        answer.set_result((look((frames if frames.ndim == 4 else frames[None]).copy()), None))
    except BaseException as error:  # StopIteration and SystemExit too, which no event loop takes
        answer.set_result((None, error))


def _read(answer: Any) -> tuple[str, str]:
    action, reason = (answer, "") if isinstance(answer, str) else answer
    if action not in ("ok", "tag", "block") or not isinstance(reason, str):
        raise TypeError(f"got {answer!r:.200}, expected ok, tag or block, or one of them and a reason")
    return action, "".join(c for c in " ".join(reason.split()) if c.isprintable())[:LONGEST]
