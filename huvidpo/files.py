"""Files written whole or not at all, and the one way to hash files, tensors and plain facts."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huvidpo.errors import FolderError

if TYPE_CHECKING:
    from torch import Tensor


REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in your quota",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENOTDIR: "a part of that path is a file; choose another",
    errno.EEXIST: "it is a file; choose another name for the folder",
    errno.EISDIR: "it is a folder; name a file",
}


def say(error: OSError) -> str:
    """What a disk's error is about, and what to do, in one sentence."""
    where = f"{error.filename}: " if error.filename else ""
    remedy = REMEDIES.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + (f"; {remedy}" if remedy else "")


def make_folder(folder: Path, room: int = 0) -> None:
    """The one rule for folders that are written to: those that are missing are made.

    Called before the work whose results go there. Raises FolderError where nothing can be written, or fewer
    than `room` bytes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        error.filename = str(folder)  # of the folder, not of the file that was tried
        raise FolderError(f"cannot write to {say(error)}") from error
    if free < room:
        has, wants = f"{free / 1e6:,.0f} MB are free", f"{room / 1e6:,.0f} MB are needed"
        raise FolderError(f"{folder}: {has}, {wants}; {REMEDIES[errno.ENOSPC]} or choose another")


def make_way(file: Path) -> None:
    """`make_folder` for a file that is to be written. Raises FolderError where it is a folder, too."""
    make_folder(file.parent)
    if file.is_dir():
        raise FolderError(f"{file}: {REMEDIES[errno.EISDIR]}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to write beside `path`; it takes the place of `path` when the block ends.

    A reader sees the old file or the new one, never half of it, even after a power cut. When the block
    raises, the old file stays and the new one is removed. Missing folders are made. Raises OSError.
    """
    part = _beside(path)
    try:
        part.touch(exist_ok=False)
        mode = part.stat().st_mode  # as any new file has it; safetensors makes its own private
        yield part
        part.chmod(mode)
        _sync(part)
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            error.filename = str(path)  # a write into a file that is open says no name
        raise
    sync_folder(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """`whole_file` for a folder: `path` is there with all its files, or not at all.

    Raises OSError where `path` is a folder with files already, unless the block removes it as its last act.
    """
    part = _beside(path)
    try:
        part.mkdir()
        yield part
        for inside in (*part.rglob("*"), part):
            _sync(inside)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """`whole_file` of `data`."""
    with whole_file(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`whole_file` of `text` in UTF-8."""
    write_bytes(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files as durable as their contents. Raises OSError."""
    _sync(folder)


def _beside(path: Path) -> Path:
    """A hidden name of its own in the folder of `path`, so that a rename never crosses file systems."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Hashes: sha256 in hexadecimal. They are stored in lineage, caches and manifests, so they must not change.


def hash_file(path: Path) -> str:
    """Of a file's bytes, as `sha256sum` prints it. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_tensors(tensors: "Mapping[str, Tensor]", precision: str = "") -> str:
    """Over names, types, shapes and values: equal for equal weights, whatever file they came from.

    `precision` (float32, float16, ...): floating-point tensors count as cast to it, so float16 weights loaded
    in float32 for a float16 engine hash as they do from their file.
    """
    import torch  # late: the process that builds TensorRT plans reads manifests without it

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        if precision and tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, precision))
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_facts(facts: Any) -> str:
    """Over plain data, whatever the order of an object's keys; what JSON lacks counts as `str` has it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
