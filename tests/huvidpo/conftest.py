from pathlib import Path

import pytest
from family import build_random_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight family (v-prediction, zero terminal SNR)."""
    return build_random_family(tmp_path_factory.mktemp("family"))
