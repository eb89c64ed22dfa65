"""API keys: who may call, and whose a job is. The file HUVIDPO_API_KEYS names has a line "name:sha256" each.

python -m service.keys ann >> keys.txt        # the key itself is printed on stderr, once
"""

import hashlib
import hmac
import re
import secrets
import sys
from pathlib import Path

from service.errors import Unauthenticated

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")


class Keys:
    """The keys of a file, read again when it has changed; with no file, everybody is "" and may call.

    Raises ValueError for a file that cannot be read as keys, naming the line.
    """

    def __init__(self, file: str):
        self._file = Path(file).expanduser() if file else None
        self._read_at = 0
        self._hashes: dict[str, str] = {}
        self._refresh()

    def check(self, authorization: str) -> str:
        """The name of the key in "Bearer <key>". Raises Unauthenticated."""
        if self._file is None:
            return ""
        self._refresh()
        scheme, _, key = authorization.partition(" ")
        given, found = _hash(key.strip()), ""
        for name, known in self._hashes.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(given, known):
                found = name
        if scheme.lower() != "bearer" or not found:
            raise Unauthenticated("send a key of this service as `Authorization: Bearer <key>`")
        return found

    def _refresh(self) -> None:
        if self._file is None:
            return
        try:
            changed = self._file.stat().st_mtime_ns
            if changed != self._read_at:
                self._hashes = _parse(self._file)
                self._read_at = changed
        except OSError as error:
            raise ValueError(f"HUVIDPO_API_KEYS: {self._file} cannot be read: {error.strerror}") from error


def _parse(file: Path) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (found := _LINE.fullmatch(line.strip())) or found[1] in hashes:
            raise ValueError(f"{file}, line {number}: expected a new name, a colon and a sha256 in hex")
        hashes[found[1]] = found[2]
    return hashes


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def main(name: str) -> None:
    key = secrets.token_urlsafe(32)
    line = f"{name}:{_hash(key)}"
    if not _LINE.fullmatch(line):
        sys.exit(f"name: got {name!r}, expected 1 to 64 of A-Z a-z 0-9 . _ -")
    print(key, file=sys.stderr)
    print(line)


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
