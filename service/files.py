"""Files that are asked for again and again: read anew only when they have changed."""

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

from huvidpo.files import hash_file

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Reread(Generic[T]):
    """What `parse` makes of an operator's file, which the setting `variable` names.

    Raises ValueError for one that cannot be read or parsed. One that becomes so later changes nothing: what
    was read before stays good.
    """

    def __init__(self, variable: str, file: str, parse: Callable[[Path], T]):
        self._variable, self._file, self._parse = variable, Path(file).expanduser(), parse
        self._read_at = self._changed()
        self._content = self._read()

    def get(self) -> T:
        changed = self._changed()
        if changed != self._read_at:
            self._read_at = changed  # also when it is broken: that is said once
            try:
                self._content = self._read()
            except ValueError as error:
                logger.error("what was read before stays good: %s", error)
        return self._content

    def _changed(self) -> int | None:
        """When; None: it is not there."""
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return None

    def _read(self) -> T:
        try:
            return self._parse(self._file)
        except OSError as error:
            raise ValueError(f"{self._variable}: {self._file} cannot be read: {error.strerror}") from error


def sha256_of(path: Path) -> str:
    """sha256 of a file as it is now; it is read once, and again only when it changes. Raises OSError."""
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=65536)
def _sha256(path: Path, mtime_ns: int, size: int, inode: int) -> str:
    return hash_file(path)
