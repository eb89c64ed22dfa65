"""API keys: who may call, how much, and whose a job is. The file HUVIDPO_API_KEYS names has a line each:

    name:sha256 [rate=<clips a minute>] [concurrency=<clips in the making>] [priority=high|normal|low]

python -m service.keys ann >> keys.txt        # the key itself is printed on stderr, once
python -m service.keys shop rate=30 concurrency=4 >> keys.txt
"""

import hashlib
import hmac
import math
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from service.errors import QueueFull, Unauthenticated
from service.files import Reread
from service.order import Priority
from service.request_id import Caller

RETRY_SECONDS = 5  # for who has as many clips in the making as it may
_LINE = re.compile(
    r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})(?: rate=([1-9]\d{0,5}))?(?: concurrency=([1-9]\d{0,5}))?"
    r"(?: priority=(high|normal|low))?"
)


@dataclass(frozen=True)
class _Key:
    hash: str
    rate: int | None = None  # clips it may ask for per minute, as many at once; None: any number
    concurrency: int | None = None  # clips it may have in the making
    priority: Priority = "normal"


class Keys:
    """The keys of a file, read again when it has changed; with no file, everybody is "" and may call.

    Raises ValueError for a file that cannot be read as keys, naming the line. One that becomes so later
    changes nothing: the keys read before stay good. Rates are those of this process.
    """

    def __init__(self, file: str):
        self._file = Reread("HUVIDPO_API_KEYS", file, _parse) if file else None
        self._keys = self._file.get() if self._file else {}
        self._left: dict[str, tuple[float, float]] = {}  # of the rate: how many, and when that was
        self._making: Counter[str] = Counter()

    def check(self, authorization: str) -> str:
        """The name of the key in "Bearer <key>". Raises Unauthenticated."""
        if self._file is None:
            return ""
        self._keys = self._file.get()
        scheme, _, key = authorization.partition(" ")
        given, found = _hash(key.strip()), ""
        for name, known in self._keys.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(given, known.hash):
                found = name
        if scheme.lower() != "bearer" or not found:
            raise Unauthenticated("send a key of this service as `Authorization: Bearer <key>`")
        return found

    def spend(self, name: str) -> None:
        """One clip is asked for. Raises QueueFull when the key's rate does not allow it."""
        rate = self._of(name).rate
        if rate is None:
            return
        now = time.monotonic()
        left, before = self._left.get(name, (float(rate), now))
        left = min(left + (now - before) * rate / 60, float(rate))
        if left < 1:
            wait = math.ceil((1 - left) * 60 / rate)
            raise QueueFull(f"this key may ask for {rate} clips a minute, wait {wait} seconds", wait)
        self._left[name] = (left - 1, now)

    @contextmanager
    def place(self, name: str) -> Iterator[None]:
        """While somebody waits for a clip. Raises QueueFull when as many of this key do as may."""
        self.check_place(name, self._making[name])
        self._making[name] += 1
        try:
            yield
        finally:
            self._making[name] -= 1

    def check_place(self, name: str, making: int) -> None:
        """Raises QueueFull when `making` clips are as many as the key may have."""
        most = self._of(name).concurrency
        if most is not None and making >= most:
            raise QueueFull(
                f"{making} clips of this key are in the making, at most {most} may be; wait for one",
                RETRY_SECONDS,
            )

    def caller(self, name: str) -> Caller:
        return Caller(name, self._of(name).priority)

    def limits_places(self, name: str) -> bool:
        return self._of(name).concurrency is not None

    def _of(self, name: str) -> _Key:
        return self._keys.get(name, _Key(""))


def _parse(file: Path) -> dict[str, _Key]:
    keys: dict[str, _Key] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (found := _LINE.fullmatch(line.strip())) or found[1] in keys:
            raise ValueError(
                f"{file}, line {number}: expected a new name, a colon and a sha256 in hex, then at most "
                "rate=<1..999999> concurrency=<1..999999> priority=<high, normal or low>"
            )
        rate, concurrency = (int(text) if text else None for text in found.group(3, 4))
        keys[found[1]] = _Key(found[2], rate, concurrency, cast(Priority, found[5] or "normal"))
    return keys


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def main(name: str, *limits: str) -> None:
    key = secrets.token_urlsafe(32)
    line = " ".join((f"{name}:{_hash(key)}", *limits))
    if not _LINE.fullmatch(line):
        sys.exit(
            f"got {' '.join((name, *limits))!r}, expected a name of 1 to 64 of A-Z a-z 0-9 . _ -, "
            "then at most rate=<number> concurrency=<number> priority=<high, normal or low>"
        )
    print(key, file=sys.stderr)
    print(line)


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
