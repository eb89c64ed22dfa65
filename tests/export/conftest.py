"""A random family, its networks, and one cache of engines for the session: a graph is exported once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from family import build_plain_family, build_random_family

from huvidpo.catalog import DEFAULT_MODEL, Model, load_catalog


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def catalog_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_family(tmp_path_factory.mktemp("family")) / "catalog"


@pytest.fixture(scope="session")
def model(catalog_folder: Path) -> Model:
    """The random family, which is the catalog's `tiny` while these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUVIDPO_CATALOG", str(catalog_folder))
        return load_catalog().model(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The random family whose first frames Stable Diffusion 1.x draws."""
    folder = build_plain_family(tmp_path_factory.mktemp("plain"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUVIDPO_CATALOG", str(folder / "catalog"))
        return load_catalog().model(DEFAULT_MODEL)


@pytest.fixture(autouse=True)
def random_catalog(catalog_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each test by itself: the tests of other folders must not see it."""
    monkeypatch.setenv("HUVIDPO_CATALOG", str(catalog_folder))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of engines, whose graphs it shares with other processes of the same run: a minute for each."""
    folder, base = tmp_path_factory.mktemp("engines"), tmp_path_factory.getbasetemp()
    graphs = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "skeletons"
    graphs.mkdir(exist_ok=True)
    (folder / "skeletons").symlink_to(graphs)
    return folder
