"""The watermark against what happens to clips, and against what would pass for one."""

import numpy as np
import pytest
from PIL import Image

from huvidpo import watermark
from huvidpo.errors import InvalidRequest
from huvidpo.video import decode, encode

KEY, ID = b"a key of the tests", bytes(range(12))


def scene(height=320, width=512, frames=6, seed=0) -> np.ndarray:
    """Clouds of all sizes that a camera passes, with hard edges and noise; uint8 [F, H, W, 3]."""
    rng = np.random.default_rng(seed)
    fx, fy = np.meshgrid(np.fft.fftfreq(width + 64), np.fft.fftfreq(height + 64))
    waves = np.fft.fft2(rng.normal(size=fx.shape)) / np.maximum(np.hypot(fx, fy), 1 / width)
    cloud = np.fft.ifft2(waves).real
    cloud = 128 + 45 * cloud / cloud.std()
    cloud[100:200, 150:300] += 60
    picture = np.stack([cloud, cloud * 0.9 + 10, 240 - cloud], -1) + rng.normal(0, 2, (*cloud.shape, 3))
    picture = picture.clip(0, 255).astype(np.uint8)
    return np.stack([picture[t : t + height, 2 * t : 2 * t + width] for t in range(frames)])


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


@pytest.fixture(scope="module")
def marked() -> np.ndarray:
    return decode(encode(watermark.embed(scene(), watermark.signs(KEY, ID)), 8))[0]


def test_the_mark_is_small():
    plain = scene()
    marked = watermark.embed(plain, watermark.signs(KEY, ID))
    error = np.mean((marked.astype(float) - plain) ** 2)
    assert 10 * np.log10(255**2 / error) >= 38
    assert marked.dtype == np.uint8
    assert np.abs(marked.astype(int) - plain).max() < 60


@pytest.mark.parametrize("happens", [
    lambda clip: clip,
    lambda clip: clip[:1],  # a picture of it
    lambda clip: clip[[5, 1, 1, 3]],
    lambda clip: clip[:, 17:305, 39:499],
    lambda clip: resized(clip, 160, 256),
    lambda clip: resized(clip, 640, 1024),
    lambda clip: clip[:, :, ::-1],
    lambda clip: (clip * 0.7 + 30).astype(np.uint8),
    lambda clip: (255 * (clip / 255) ** 1.4).astype(np.uint8),
    lambda clip: np.pad(clip, ((0, 0), (40, 40), (0, 0), (0, 0))),
    lambda clip: decode(encode(clip, 8, "webp"))[0],
], ids=[
    "as it is", "one", "shuffled", "crop", "half", "double", "mirror", "pale", "gamma", "letterbox", "webp",
])  # fmt: skip
def test_what_happens_to_clips_leaves_it(marked, happens):
    assert watermark.read(happens(marked), KEY) == ID


def test_nothing_else_passes_for_it(marked):
    noise = np.random.default_rng(1).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    flat = np.full((2, 256, 256, 3), 90, np.uint8)
    for clip in (scene(seed=1), noise, flat, flat[:, :40, :40]):
        assert watermark.read(clip, KEY) is None
    assert watermark.read(marked, b"the key of somebody else") is None


def test_a_mark_by_another_key_over_it_leaves_it(marked):
    other = b"the key of somebody else"
    twice = watermark.embed(marked, watermark.signs(other, ID[::-1]))
    assert (watermark.read(twice, KEY), watermark.read(twice, other)) == (ID, ID[::-1])


def test_the_code_mends_what_is_lost():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, watermark._BITS).astype(np.uint8)
    soft = 1.0 - 2.0 * watermark._encode(bits) + rng.normal(0, 0.8, watermark._CODED)
    assert np.mean((soft < 0) != watermark._encode(bits)) > 0.05
    assert np.array_equal(watermark._decode(soft[None])[0], bits)


def test_too_small_a_clip_is_refused():
    with pytest.raises(InvalidRequest, match="64 x 64 pixels are too few, at least 256 x 256"):
        watermark.embed(np.zeros((2, 64, 64, 3), np.uint8), watermark.signs(KEY, ID))
    with pytest.raises(InvalidRequest, match="got an id of 3 bytes, expected 12"):
        watermark.signs(KEY, b"abc")
