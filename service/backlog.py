"""How much people have said since the weights that run were made: what a next candidate would learn from."""

import logging
from datetime import datetime
from pathlib import Path

from huvidpo.catalog import Catalog
from preferences.records import RATINGS_FILE, PreferencesError, read_records
from service.lineage import weights_file

logger = logging.getLogger(__name__)
MAX_BYTES = 64 * 2**20  # of a file that is read every time something was added to it


class Backlog:
    def __init__(self, folder: Path, catalog: Catalog, model: str):
        self.path, self.catalog, self.model = folder / RATINGS_FILE, catalog, model
        self._seen: tuple[int, ...] = ()

    def count(self) -> dict[str, int]:
        """Records by category that are newer than the file of its weights; empty if nothing has changed since
        it was asked last. All of them for a category without weights of its own.
        """
        files = {
            name: weights_file(self.catalog.model(self.model).categories / category.weights)
            for name, category in self.catalog.categories.items()
        }
        since = {name: file.stat().st_mtime if file else 0.0 for name, file in files.items()}
        there = self.path.stat() if self.path.is_file() else None
        seen = (there.st_size if there else 0, *(int(time) for time in since.values()))
        if seen == self._seen:
            return {}
        self._seen = seen
        if there and there.st_size > MAX_BYTES:
            logger.warning("%s is too large to be counted: its backlog is not told any more", self.path)
            return {}
        counts = dict.fromkeys(since, 0)
        try:
            for record in read_records(self.path) if there else []:
                if datetime.fromisoformat(record.time).timestamp() > since.get(record.category, float("inf")):
                    counts[record.category] += 1
        except PreferencesError as error:
            logger.warning("%s", error)
            return {}
        return counts
