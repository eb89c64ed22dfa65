"""Where the files of jobs live: a local folder, or any object store by URL.

Steps of a job hand on keys, never bytes. Every method may wait for a disk or a network, and raises
Unavailable when that is away, full or closed to us.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from huvidpo.files import say, write_bytes
from service.errors import NotFound, Unavailable

logger = logging.getLogger(__name__)
GONE = "the file is gone: it was deleted or has expired"
AWAY = "the store of clips is away or full, try again in a few seconds"
_JOB = re.compile(r"video_[0-9a-f]{32}")  # nothing else is ever taken for an orphan


class Folder:
    """Files by key, "<job>/<name>". What is there is whole: a file appears in one move, or not at all."""

    def __init__(self, path: Path):
        self._path = path

    def put(self, key: str, data: bytes) -> None:
        """Replaces what is there: the last of several attempts at a step wins."""
        with _translated():
            write_bytes(self._path / key, data)

    def path(self, key: str) -> Path:
        """Raises NotFound."""
        path = self._path / key
        if not path.is_file():
            raise NotFound(GONE)
        return path

    def has(self, key: str) -> bool:
        return (self._path / key).is_file()

    def read(self, key: str) -> bytes:
        """Raises NotFound."""
        with _translated():
            return self.path(key).read_bytes()

    def delete(self, job: str) -> None:
        """All files of a job; none is fine too."""
        shutil.rmtree(self._path / job, ignore_errors=True)

    def jobs(self) -> list[str]:
        """The jobs that have files."""
        if not self._path.is_dir():
            return []
        with _translated():
            return [one.name for one in self._path.iterdir() if _JOB.fullmatch(one.name)]

    def age(self, job: str) -> float:
        """Seconds since the last file of a job was written; 0 without any."""
        with _translated():
            times = [one.stat().st_mtime for one in (self._path / job, *(self._path / job).glob("*"))]
        return time.time() - max(times, default=time.time())


class Bucket:
    """The same in an object store, where a single put is atomic by itself: an attempt that is killed leaves
    nothing, not even a temporary name. Credentials come from the environment alone, as the store's own tools
    read them (AWS_*, GOOGLE_*, AZURE_*)."""

    def __init__(self, store: Any):
        self._store = store

    def put(self, key: str, data: bytes) -> None:
        with _translated(missing=Unavailable(AWAY)):  # it is the bucket that is not there
            obstore.put(self._store, key, data, use_multipart=False)

    def has(self, key: str) -> bool:
        try:
            self.head(key)
        except NotFound:
            return False
        return True

    def head(self, key: str) -> tuple[int, str]:
        """Bytes and ETag. Raises NotFound."""
        with _translated():
            found = obstore.head(self._store, key)
        return found["size"], found["e_tag"] or f'"{found["size"]}-{found["last_modified"].timestamp():.0f}"'

    def read(self, key: str) -> bytes:
        with _translated():
            return bytes(obstore.get(self._store, key).bytes())

    def range(self, key: str, start: int, end: int) -> bytes:
        """Bytes start..end, without the end. Raises NotFound."""
        with _translated():
            return bytes(obstore.get_range(self._store, key, start=start, end=end))

    def delete(self, job: str) -> None:
        with _translated():
            if paths := [one["path"] for one in self._list(job)]:
                obstore.delete(self._store, paths)

    def jobs(self) -> list[str]:
        with _translated():
            prefixes = obstore.list_with_delimiter(self._store)["common_prefixes"]
        return [one for one in prefixes if _JOB.fullmatch(one)]

    def age(self, job: str) -> float:
        with _translated():
            times = [one["last_modified"].timestamp() for one in self._list(job)]
        return time.time() - max(times, default=time.time())

    def _list(self, job: str) -> list[Any]:
        return list(obstore.list(self._store, prefix=job).collect())


Store = Folder | Bucket


def open_store(url: str, folder: Path) -> Store:
    """The folder where no URL is given. Nothing is connected to yet. Raises ValueError."""
    if not url:
        return Folder(folder)
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Folder(Path(parts.path))
    # options take the environment's place
    plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    try:
        store = from_url(
            url,
            client_options={"connect_timeout": "5s", "timeout": "60s", "allow_http": plain},
            # jobs have their own patience, and a caller has little
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
        )
    except BaseError as error:
        raise ValueError(f"HUVIDPO_STORE_URL: {_first_line(error)}") from None
    return Bucket(store)


@contextmanager
def _translated(missing: Exception | None = None) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:  # obstore raises it too
        raise missing or NotFound(GONE) from error
    except OSError as error:
        logger.warning("the store of clips: %s", say(error))
        reason = error.strerror or type(error).__name__
        raise Unavailable(f"clips cannot be stored at the moment: {reason}") from error
    except BaseError as error:
        logger.warning("the store of clips: %s", _first_line(error))
        raise Unavailable(AWAY) from error


def _first_line(error: BaseError) -> str:
    return str(error).split("\n", 1)[0]
