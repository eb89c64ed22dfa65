"""Where the reference numbers lie, if this machine has them: HUVIDPO_REFERENCE, or beside the repository."""

import os
from pathlib import Path

import pytest

_folder = Path(os.environ.get("HUVIDPO_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))

REFERENCE: Path | None = _folder.resolve() if _folder.is_dir() else None

needs_reference = pytest.mark.skipif(
    REFERENCE is None, reason="reference numbers not on this machine; set HUVIDPO_REFERENCE to their folder"
)


def reference(*parts: str) -> Path:
    """A file under the reference folder, for tests marked `needs_reference`."""
    assert REFERENCE is not None
    return REFERENCE.joinpath(*parts)
