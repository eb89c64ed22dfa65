"""The Python page and the notebook, run from top to bottom at reduced steps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from huvidpo import video
from huvidpo.checkpoint import read_metadata

DOCS = Path(__file__).parents[1] / "docs"
# What is made smaller. Everything else runs as it is written.
REDUCED = {
    "steps=20, first_frame_steps=20": "steps=2, first_frame_steps=2",
    '"steps=200", ': '"steps=2", "sample_every=0", ',
}


def cells(file: Path) -> list[str]:
    """The code of a page's ```python blocks, or of a notebook's cells."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        found = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    else:
        found = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    script = "\0".join(found)
    for old, new in REDUCED.items():
        assert old in script, f"{file.name} no longer says {old!r}"
        script = script.replace(old, new)
    return script.split("\0")


@pytest.mark.parametrize("name", ["python-api.md", "notebooks/first_hour.ipynb"])
def test_code_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for cell in cells(DOCS / name):
        exec(compile(cell, name, "exec"), names)
    shown, fps = video.decode(tmp_path / "horse.mp4")
    assert (shown.shape, fps) == ((16, 64, 64, 3), names["options"].fps)
    assert read_metadata(tmp_path / "horse.safetensors")["steps"] == "2"
    assert names["again"].shape == names["clip"].shape
    assert not np.array_equal(names["again"], names["clip"])  # its weights are new ones
    printed = capsys.readouterr().out
    assert "pixels per frame" in printed
    assert "steps - steps: got 0" in printed


def test_the_notebook_holds_the_pages_code():
    page, notebook = cells(DOCS / "python-api.md"), cells(DOCS / "notebooks/first_hour.ipynb")
    assert [cell.strip() for cell in page] == [cell for cell in notebook if "strip(clip" not in cell]
