"""The service with the weights that ship: everything at its defaults, as the README shows it."""

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pytest

from huvidpo.catalog import load_catalog
from huvidpo.hardware import limited_isa
from huvidpo.video import decode

FAMILY = Path(__file__).resolve().parents[2] / "models/tiny"
BACKEND = "torch" if limited_isa() else "openvino"
PARTS = ("first_frame/model_index.json", "first_frame/unet/config.json", "video/unet/config.json")
MISSING = [part for part in PARTS if not (FAMILY / part).is_file()]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"models/tiny is not complete yet: no {', '.join(MISSING)}"
)

PROMPTS = {
    "waterfall": "winter waterfall",
    "smile": "a woman smiles",
    "fireworks": "fireworks over the sea",
    "horse": "a white horse runs on the Mars",
    "guitar": "a man plays the guitar",
    "birds": "birds fly in the pink sky",
    "helicopter": "a white helicopter flies at night",
    "rain": "rain falls in the forest",
}


@pytest.fixture(scope="module")
def shipped(start_server):
    server = start_server()
    server.wait_ready()
    yield server
    server.stop()


def test_every_category_with_the_defaults(shipped):
    """Each in one style, each style in two categories."""
    catalog = load_catalog()
    assert set(PROMPTS) == set(catalog.categories)
    check(shipped, list(zip(PROMPTS, cycle(catalog.styles), strict=False)))


@pytest.mark.long
def test_every_category_in_every_style_with_the_defaults(shipped):
    check(shipped, list(product(PROMPTS, load_catalog().styles)))


def check(shipped, names):
    """A clip of each category and style: made by the default backend, no empty picture, and it moves."""

    def one(name):
        category, style = name
        body = {"prompt": PROMPTS[category], "category": category, "style": style, "seed": 1}
        return shipped.client.post("/generate_video", json=body)

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(one, names))
    for name, response in zip(names, responses, strict=True):
        assert response.status_code == 200, (name, response.text)
        assert response.headers["X-Backend"] == f"first_frame={BACKEND}, video={BACKEND}"
        frames, fps = decode(response.content)
        assert frames.shape == (16, 64, 64, 3)
        assert fps == 8
        assert frames.std() > 5, f"{name}: an empty picture"
        motion = np.abs(np.diff(frames.astype(int), axis=0)).mean()
        assert motion > 0.1, f"{name}: nothing moves"
