"""New weights of a category are taken while its runner serves, without a restart.

Every few seconds the files of all categories are looked at. One that is another, and was already so at the
look before, is hashed, loaded and proved as at the start, beside the compute thread, and runs from the next
batch on. What is wrong with it is said once, and the earlier weights go on. A file that changes while it is
read is not taken.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from huvidpo.catalog import Catalog
from huvidpo.errors import CheckpointError, HuViDPOError
from service import metrics
from service.files import sha256_of
from service.lineage import publish, weights_file

logger = logging.getLogger(__name__)
Signature = tuple[tuple[str, int, int, int], ...]
"""name, time of the last change, bytes and inode of a file, or of each in a folder; () if there is none"""


class Reloadable(Protocol):
    """A model whose categories may be replaced; see runners.VideoModel."""

    @property
    def running(self) -> Sequence[Any]: ...

    @property
    def pipeline(self) -> Any: ...

    @property
    def loaded(self) -> Mapping[str, str]: ...

    def load_beside(self, category: str, file: Path) -> Any: ...

    def replace(self, category: str, network: Any, sha256: str) -> None: ...


class Watch:
    """`loaded`: SHA-256 of the weights that each category was loaded from, as they are hashed, which takes a
    while; none for one that runs on the base model. Made before they are loaded.
    """

    def __init__(self, catalog: Catalog, model: str):
        folder = catalog.model(model).categories
        self.weights = {name: folder / category.weights for name, category in catalog.categories.items()}
        self.loaded: dict[str, str] = {}
        # or refused; None: unknown, so it is taken anew
        self._taken = {name: signature(path) for name, path in self.weights.items()}
        self._before = dict(self._taken)  # at the look before
        self._told: dict[str, tuple[str, str, str]] = {}  # labels of the metric
        self._hashing = threading.Thread(target=self._hash, daemon=True)
        self._hashing.start()

    def start(self, model: Reloadable, seconds: float) -> None:
        """Looks every `seconds` for as long as the process lives; never if that is 0."""
        if seconds:
            threading.Thread(target=self._look_forever, args=(model, seconds), daemon=True).start()

    def _hash(self) -> None:
        for name, path in self.weights.items():
            file = weights_file(path)
            try:
                sha256 = sha256_of(file) if file else ""
                if signature(path) != self._taken[name]:
                    self._taken[name] = None  # unknown what was loaded: it is taken again
                    continue
                if sha256:
                    self.loaded[name] = sha256
                self._told[name] = publish(name, file, sha256)
            except OSError as error:
                logger.warning("the weights of %s cannot be hashed: %s", name, error)
                self._taken[name] = None

    def _look_forever(self, model: Reloadable, seconds: float) -> None:
        self._hashing.join()
        while True:
            time.sleep(seconds)
            self.look(model)

    def look(self, model: Reloadable) -> None:
        """Takes what is new. Raises nothing."""
        self._hashing.join()
        for name, path in self.weights.items():
            now, before = signature(path), self._before[name]
            self._before[name] = now
            if now == before and now != self._taken[name]:
                self._taken[name] = now
                self._take(model, name, path)

    def _take(self, model: Reloadable, name: str, path: Path) -> None:
        old = model.pipeline
        try:
            if (file := weights_file(path)) is None:
                raise CheckpointError(f"there are no weights at {path}")
            sha256 = sha256_of(file)
            if sha256 == model.loaded.get(name):
                return
            network = model.load_beside(name, path)
            if signature(path) != self._taken[name]:
                self._taken[name] = None  # taken once it stays as it is
                raise CheckpointError(f"{path} changed while it was read")
        except Exception as error:  # of any kind: whatever is wrong with the new ones, the earlier ones serve
            known = isinstance(error, (HuViDPOError, OSError))
            logger.error(
                "new weights of %s are refused, the earlier ones go on: %s", name, error, exc_info=not known
            )
            metrics.RELOADS.labels("refused").inc()
            return
        model.replace(name, network, sha256)
        if name in self._told:
            metrics.WEIGHTS.labels(*self._told[name]).set(0)
        self._told[name] = publish(name, file, sha256)
        metrics.RELOADS.labels("taken").inc()
        logger.info("%s runs on new weights from the next batch on: %s", name, sha256)
        # which holds the earlier weights: there is room for two of a kind only
        while any(one is old for one in model.running):
            time.sleep(0.05)


def signature(path: Path) -> Signature | None:
    """Of a file or a folder as it is now; None while that cannot be told."""
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
        stats = [(file, file.stat()) for file in files]
    except OSError:
        return None
    return tuple((str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino) for file, stat in stats)
