"""Turns on the cores of a host: processes that compute on its CPU run one batch at a time.

Each batch uses all cores, so that two at once get no more done than one after the other; and what queues
meanwhile makes the next batch larger. A stage whose results another one waits for goes before it, until that
has a full batch: then both in turn; and it says how many results it has just handed on, so that the other one
need not begin a moment before they arrive. A turn is held by `flock`, so it ends with its process.
"""

import fcntl
import logging
import os
import struct
import tempfile
import time
from pathlib import Path

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.002  # between looks at whether the cores are free
PATIENCE_SECONDS = 60.0  # then a batch runs beside whoever has not ended: the process may be stopped
HANDED = struct.Struct("=id")  # how many results, and when, by a clock that all processes of a host share


class Turns:
    """Of one runner. `leads`: other stages wait for its results. For one thread.

    Where `folder` cannot be written, every turn is given at once.
    """

    def __init__(self, leads: bool, folder: Path | None = None):
        self.leads, self.wished = leads, False
        self._name = b"lead" if leads else b"rest"
        self._files: tuple[int, int, int] | None = None  # cores, own wish, the other kind's
        try:
            folder = _folder() if folder is None else folder
            wishes = [_open(folder / name) for name in ("lead", "rest")]
            self._files = (_open(folder / "cores"), *(wishes if leads else reversed(wishes)))
        except OSError as error:
            logger.warning("the stages do not take turns on the cores of this host: %s", error)

    def wish(self, wished: bool) -> None:
        """Says to the other kind whether this one has something to run that should not wait for more. One
        voice for all of a kind: it is taken up again, if another one ends it, by `take`.
        """
        if self._files:
            self.wished = _lock(self._files[1]) if wished else _unlock(self._files[1])

    def take(self, wished: bool) -> bool:
        """Whether it is this one's turn now; `wished` as in `wish`. Of both kinds with a wish, the one goes
        that did not go last.
        """
        if not self._files:
            return True
        cores, _, other = self._files
        self.wish(wished)
        if not _lock(cores):
            return False
        free = _lock(other, fcntl.LOCK_SH)
        if free:
            _unlock(other)
        if free or (wished and os.pread(cores, 4, 0) != self._name):
            os.pwrite(cores, self._name, 0)
            return True
        _unlock(cores)
        return False

    def end(self, handed: int = 0) -> None:
        """`handed`: results that others wait for."""
        if not self._files:
            return
        if self.leads and handed:
            os.pwrite(self._files[0], HANDED.pack(handed, time.monotonic()), len(self._name))
        _unlock(self._files[0])

    @property
    def handed(self) -> tuple[int, float]:
        """How many results the leading stage handed on last, and when."""
        written = os.pread(self._files[0], HANDED.size, len(self._name)) if self._files else b""
        return HANDED.unpack(written) if len(written) == HANDED.size else (0, 0.0)


def _folder() -> Path:
    """Of this user and host alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(runtime) / f"huvidpo-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _lock(file: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(file: int) -> bool:
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
