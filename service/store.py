"""Where the files of jobs live: a folder per job. Steps of a job hand on keys, never bytes."""

import shutil
from pathlib import Path

from huvidpo.files import write_bytes
from service.errors import NotFound


class Store:
    """Files by key, "<job>/<name>". What is there is whole: a file appears in one move, or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder

    def put(self, key: str, data: bytes) -> None:
        """Replaces what is there: the last of several attempts at a step wins."""
        write_bytes(self.folder / key, data)

    def path(self, key: str) -> Path:
        """Raises NotFound."""
        path = self.folder / key
        if not path.is_file():
            raise NotFound("the file is gone: it was deleted or has expired")
        return path

    def read(self, key: str) -> bytes:
        """Raises NotFound."""
        return self.path(key).read_bytes()

    def delete(self, job: str) -> None:
        """All files of a job; none is fine too."""
        shutil.rmtree(self.folder / job, ignore_errors=True)
