"""Hashes of files that are asked for again and again."""

from functools import lru_cache
from pathlib import Path

from huvidpo.files import hash_file


def sha256_of(path: Path) -> str:
    """sha256 of a file as it is now; it is read once, and again only when it changes. Raises OSError."""
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=65536)
def _sha256(path: Path, mtime_ns: int, size: int, inode: int) -> str:
    return hash_file(path)
