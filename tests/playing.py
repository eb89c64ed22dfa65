"""Whether a video on a page plays, as a person would see it."""

import time
from typing import Any

WAIT = 60  # seconds, for a busy machine


def wait_until_past(video: Any, seconds: float) -> None:
    """Wait until a locator's video has come so far; wait_for_function would need eval: pages forbid it."""
    deadline = time.monotonic() + WAIT
    while video.evaluate("video => video.currentTime") <= seconds:
        assert time.monotonic() < deadline, f"no video past {seconds} s in {WAIT} s"
        video.page.wait_for_timeout(100)
