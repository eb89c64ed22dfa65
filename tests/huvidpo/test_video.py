import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from huvidpo.errors import InvalidRequest
from huvidpo.video import FORMATS, crop_to_aspect, decode, encode, read_image


def moving_square(frames: int = 16, height: int = 32, width: int = 48) -> np.ndarray:
    clip = np.full((frames, height, width, 3), 40, dtype=np.uint8)
    for i in range(frames):
        clip[i, 8:16, 2 * i : 2 * i + 8] = (220, 180, 60)
    return clip


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in grey levels: chroma is stored at half size."""
    return float(np.abs(a.mean(axis=-1) - b.mean(axis=-1)).mean())


def numbered(levels: list[int], seconds: list[float]) -> bytes:
    """A Matroska file of flat frames of the given grey levels, each shown from its second on."""
    target = io.BytesIO()
    with av.open(target, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for level, second in zip(levels, seconds, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(second * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def test_mp4_comes_back() -> None:
    clip = moving_square()
    frames, fps = decode(encode(clip, 8))
    assert (frames.shape, frames.dtype, fps) == (clip.shape, np.uint8, 8)
    assert difference(frames, clip) < 2


def test_mp4_is_what_browsers_play() -> None:
    data = encode(moving_square(), 8)
    assert 0 < data.index(b"moov") < data.index(b"mdat")  # +faststart
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.average_rate) == (16, 8)


# Encodes waves of several sizes, each twice from two threads, and prints what differs and all digests.
ENCODE_ALL = """
import hashlib
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from huvidpo.video import FORMATS, encode

def digest(job):
    (height, width), format = job
    y, x, t = np.mgrid[:height, :width, :16]
    waves = np.stack([np.sin(x / 7 + t / 3), np.cos(y / 5 + t / 4), np.sin((x + y) / 9 - t / 5)], axis=-1)
    frames = np.ascontiguousarray(np.moveaxis(127 + 100 * waves, 2, 0).astype(np.uint8))
    return hashlib.sha256(encode(frames, 8, format)).hexdigest()

sizes = [(64, 64), (50, 70), (96, 96), (18, 34), (130, 162)]
jobs = [(size, format) for size in sizes for format in FORMATS]
with ThreadPoolExecutor(2) as pool:
    first, again = list(pool.map(digest, jobs)), list(pool.map(digest, jobs))
print([job for job, a, b in zip(jobs, first, again) if a != b], first)
"""


def test_same_frames_give_same_bytes() -> None:
    """In fresh processes, whose new memory glibc fills with another byte in each."""
    answers = set()
    for filling in ("0", "85", "170"):
        done = subprocess.run(
            [sys.executable, "-c", ENCODE_ALL],
            env=os.environ | {"MALLOC_PERTURB_": filling},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        answers.add(done.stdout)
    assert len(answers) == 1
    assert answers.pop().startswith("[] [")


@pytest.mark.parametrize("fps", [8, 12.5, 29.97])
def test_mp4_keeps_the_rate(fps: float) -> None:
    assert decode(encode(moving_square(), fps))[1] == pytest.approx(fps, rel=1e-3)


@pytest.mark.parametrize("format", ["gif", "webp"])
def test_animation_plays_at_the_rate_and_loops(format: str) -> None:
    clip = moving_square()
    with Image.open(io.BytesIO(encode(clip, 8, format))) as image:
        assert (image.format or "").lower() == format
        assert image.n_frames == 16
        assert image.info["loop"] == 0
        shown, milliseconds = [], 0
        for i in range(16):
            image.seek(i)
            shown.append(np.asarray(image.convert("RGB")))
            milliseconds += image.info["duration"]
    assert milliseconds == 2000
    assert difference(np.stack(shown), clip) < 3


def test_gif_decodes() -> None:
    frames, fps = decode(encode(moving_square(), 8, "gif"))
    assert frames.shape[1:] == (32, 48, 3)
    assert len(frames) / fps == pytest.approx(2, abs=0.1)  # seconds; its frames last .12 and .13 in turn


def test_decode_reads_files(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(encode(moving_square(), 8))
    assert decode(tmp_path / "clip.mp4")[0].shape == (16, 32, 48, 3)


def test_variable_rate_plays_at_its_true_speed() -> None:
    """0 s: 40, 0.1 s: 90, 0.2 s: 140 for 0.6 s, 0.8 s: 220. At 10 per second the long one shows six times."""
    data = numbered([40, 90, 140, 220, 220], [0.0, 0.1, 0.2, 0.8, 0.9])
    frames, fps = decode(data, fps=10)
    assert fps == 10
    levels = frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, [40, 90, 140, 140, 140, 140, 140, 140, 220], atol=2)


def test_decode_to_half_and_double_the_rate() -> None:
    data = encode(moving_square(), 8)
    whole = decode(data)[0]
    half = decode(data, fps=4)[0]
    double = decode(data, fps=16)[0]
    assert np.array_equal(half, whole[1::2])  # what shows in the middle of each quarter of a second
    assert np.array_equal(double, whole.repeat(2, axis=0))


def test_decode_stops_after_max_frames() -> None:
    assert len(decode(encode(moving_square(), 8), max_frames=5)[0]) == 5


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_video_comes_out_upright(turns: int) -> None:
    """Phones store the sensor's pixels, and in the track header a matrix that turns them clockwise."""
    clip = moving_square()
    data = bytearray(encode(clip, 8))
    one = 65536
    a, b, c, d = [(one, 0, 0, one), (0, one, -one, 0), (-one, 0, 0, -one), (0, -one, one, 0)][turns]
    matrix = b"".join(value.to_bytes(4, "big", signed=True) for value in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = matrix
    frames, _ = decode(bytes(data))
    clockwise = np.rot90(clip, -turns, axes=(1, 2))
    assert frames.shape == clockwise.shape
    assert difference(frames, clockwise) < 2


@pytest.mark.parametrize(
    ("frames", "fps", "format", "field"),
    [
        (np.zeros((4, 31, 32, 3), np.uint8), 8, "mp4", "frames"),
        (np.zeros((4, 32, 32, 3), np.float32), 8, "mp4", "frames"),
        (np.zeros((4, 32, 32), np.uint8), 8, "gif", "frames"),
        (np.zeros((0, 32, 32, 3), np.uint8), 8, "gif", "frames"),
        (np.zeros((4, 32, 32, 3), np.uint8), 0, "mp4", "fps"),
        (np.zeros((4, 32, 32, 3), np.uint8), 8, "avi", "format"),
    ],
)
def test_what_cannot_be_encoded_is_refused(frames: np.ndarray, fps: float, format: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        encode(frames, fps, format)
    assert error.value.field == field


@pytest.mark.parametrize("data", [b"", b"not a video", encode(moving_square(), 8)[:300]])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="video"):
        decode(data)


def test_sound_alone_is_refused() -> None:
    target = io.BytesIO()
    with av.open(target, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(InvalidRequest, match="no video stream"):
        decode(target.getvalue())


def test_every_format_has_a_media_type() -> None:
    assert FORMATS == {"mp4": "video/mp4", "gif": "image/gif", "webp": "image/webp"}


def test_crop_keeps_the_middle_and_never_squashes() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 50:150] = 255  # the central square
    assert (crop_to_aspect(image, 40, 40)[:, 2:-2] >= 250).all()
    y, x = np.mgrid[:128, :128]
    disc = np.repeat(((y - 64) ** 2 + (x - 64) ** 2 < 30**2)[..., None], 3, axis=2).astype(np.uint8) * 255
    wide = crop_to_aspect(disc, 40, 64)[..., 0] > 127
    height, width = wide.any(axis=1).sum(), wide.any(axis=0).sum()
    assert abs(int(height) - int(width)) <= 1  # still round


def test_crop_of_the_right_size_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    assert np.array_equal(crop_to_aspect(image, 32, 48), image)


def test_read_image_turns_by_exif(tmp_path: Path) -> None:
    image = Image.fromarray(moving_square()[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    image.save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "phone.png"), np.rot90(moving_square()[0], -1))
    with pytest.raises(InvalidRequest, match="first_frame"):
        read_image(b"no image")
