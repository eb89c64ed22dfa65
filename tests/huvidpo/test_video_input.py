"""Videos as people bring them: of any container and age, large, damaged, of pixels that are no squares."""

import io
import logging
import resource
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from huvidpo.errors import InvalidRequest
from huvidpo.pictures import to_rgb
from huvidpo.video import crop_to_aspect, decode, encode, read_image

LEVELS = [16 + 14 * k for k in range(16)]


def flat(level: int, width: int = 64, height: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def written(
    frames: list[np.ndarray],
    format: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 8,
    options: dict[str, str] | None = None,
    prepare: Callable[[Any], None] = lambda context: None,
    title: str = "",
) -> bytes:
    """A file of `frames`, by ffmpeg."""
    target = io.BytesIO()
    with av.open(target, "w", format=format) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        prepare(stream.codec_context)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def levels(frames: np.ndarray) -> list[int]:
    return frames[:, 32, 32, 1].tolist()


CONTAINERS = {
    "mp4": {},
    "mp4, ten key frames": {"options": {"g": "2"}},
    "avi with B-frames": {"format": "avi"},
    "raw H.264": {"format": "h264"},
    "avi of MPEG-4": {"format": "avi", "codec": "mpeg4", "options": {"bf": "2", "qscale": "2"}},
    "transport stream": {"format": "mpegts"},
    "program stream": {"format": "mpeg", "codec": "mpeg2video", "rate": 25, "options": {"qscale": "2"}},
    "matroska": {"format": "matroska"},
    "flash": {"format": "flv"},
    "raw pictures": {"format": "matroska", "codec": "ffv1", "pix_fmt": "bgr0"},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_frame_comes_once_and_in_order(kind: str) -> None:
    data = written([flat(level) for level in LEVELS], **CONTAINERS[kind])
    frames, _ = decode(data)
    np.testing.assert_allclose(levels(frames), LEVELS, atol=6)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_only_what_is_picked_is_kept(kind: str) -> None:
    """Later frames are found from the key frame before them, wherever the file has one."""
    data = written([flat(level) for level in LEVELS], **CONTAINERS[kind])
    asked = []

    def pick(count: int, fps: float) -> np.ndarray:
        asked.append((count, fps))
        return np.array([9, 11, 11, 14])

    frames, fps = decode(data, pick=pick, size=(16, 24))
    assert frames.shape == (4, 16, 24, 3)
    np.testing.assert_allclose(frames[:, 8, 8, 1], np.array(LEVELS)[[9, 11, 11, 14]], atol=6)
    assert asked == [(16, fps)]


def test_picked_frames_are_those_of_the_whole() -> None:
    generator = np.random.default_rng(0)
    data = encode(generator.integers(0, 256, (24, 48, 64, 3), dtype=np.uint8), 8)
    whole = decode(data)[0]
    chosen = np.array([5, 6, 20])
    part = decode(data, pick=lambda count, fps: chosen, size=(32, 32))[0]
    assert np.array_equal(part, np.stack([crop_to_aspect(frame, 32, 32) for frame in whole[chosen]]))


def test_a_long_video_takes_the_memory_of_its_wanted_frames(tmp_path: Path) -> None:
    """600 frames of 1280 x 720 are 1.7 GB of pixels."""
    stamp = np.zeros((720, 1280, 3), np.uint8)
    (tmp_path / "long.mp4").write_bytes(written([stamp] * 600, options={"preset": "ultrafast"}, rate=24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pick = lambda count, fps: np.arange(count // 2, count // 2 + 16)  # noqa: E731
    assert decode(tmp_path / "long.mp4", pick=pick, size=(64, 64))[0].shape == (16, 64, 64, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


@pytest.mark.parametrize(
    ("stretch", "shape"), [(Fraction(2), (64, 128)), (Fraction(1, 2), (64, 32)), (Fraction(1), (64, 64))]
)
def test_pixels_that_are_not_square(stretch: Fraction, shape: tuple[int, int]) -> None:
    """A disc stays round."""
    y, x = np.mgrid[:64, :64]
    disc = np.hypot((x - 32) * float(stretch), y - 32) < 14
    data = written(
        [np.repeat(disc[..., None] * np.uint8(255), 3, axis=2)] * 3,
        prepare=lambda c: setattr(c, "sample_aspect_ratio", stretch),
    )
    frame = decode(data)[0][1, ..., 1] > 128
    assert frame.shape == shape
    assert abs(int(frame.any(0).sum()) - int(frame.any(1).sum())) <= 2
    assert frame.any(1).sum() == pytest.approx(27, abs=2)


def test_interlaced_frames_come_without_combs() -> None:
    """Two fields of one frame show a bar at two places: seen together it has teeth."""
    frames = []
    for number in range(8):
        frame = flat(16, 96)
        frame[0::2, 6 * number : 6 * number + 16] = 235
        frame[1::2, 6 * number + 24 : 6 * number + 40] = 235
        frames.append(frame)

    options = {"qscale": "2", "flags": "+ildct+ilme"}
    data = written(frames, "mpeg", "mpeg2video", rate=25, options=options)
    with av.open(io.BytesIO(data)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    rows = decode(data)[0][2].astype(int)[..., 1]
    assert np.abs(np.diff(rows, axis=0)).mean() < 4


def test_transparent_frames_are_on_white() -> None:
    """Their hidden colour showed."""
    hidden = np.dstack([flat(0), np.zeros((64, 64), np.uint8)])
    hidden[..., 0] = 255
    hidden[:32, :, 3] = 255
    frame = decode(written([hidden] * 2, "matroska", "ffv1", "bgra"))[0][0]
    assert frame[10, 10].tolist() == [255, 0, 0]
    assert frame[50, 50].tolist() == [255, 255, 255]


def test_colours_are_coded_as_the_file_says() -> None:
    colour = (200, 30, 40)
    data = encode(np.full((4, 720, 1280, 3), colour, np.uint8), 8)
    with av.open(io.BytesIO(data)) as container:
        context = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)
        assert (context.color_primaries, context.color_trc) == (1, 1)
        as_hd = frame.to_ndarray(format="rgb24", src_colorspace="ITU709")[300, 300]
    np.testing.assert_allclose(as_hd, colour, atol=3)
    np.testing.assert_allclose(decode(data)[0][1, 300, 300], colour, atol=3)


@pytest.mark.parametrize("matrix", ["ITU709", "ITU601"])
@pytest.mark.parametrize("spread", ["MPEG", "JPEG"])
def test_colour_tags_are_read(matrix: str, spread: str) -> None:
    colour = np.full((64, 64, 3), (200, 30, 40), np.uint8)
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace = {"ITU709": 1, "ITU601": 5}[matrix]
        stream.codec_context.color_range = {"MPEG": 1, "JPEG": 2}[spread]
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(colour, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=spread)
            frame.pts, frame.time_base = number, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    np.testing.assert_allclose(decode(target.getvalue())[0][1, 32, 32], (200, 30, 40), atol=4)


@pytest.mark.parametrize("fps", [50, 60, 90, 120])
def test_gif_plays_as_long_as_the_clip(fps: int) -> None:
    """Browsers make 100 ms of a frame of less than 20."""
    frames = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    durations = []
    with Image.open(io.BytesIO(encode(frames, fps, "gif"))) as image:
        for number in range(image.n_frames):
            image.seek(number)
            durations.append(image.info["duration"])
    assert min(durations) >= 20
    assert sum(durations) == pytest.approx(12_000 / fps, abs=10)


def test_our_own_webp_is_read() -> None:
    clip = np.stack([flat(level) for level in LEVELS])
    frames, fps = decode(encode(clip, 8, "webp"))
    assert (frames.shape, fps) == (clip.shape, 8)
    np.testing.assert_allclose(levels(frames), LEVELS, atol=4)
    still = io.BytesIO()
    Image.fromarray(clip[3]).save(still, "WEBP")
    assert decode(still.getvalue(), pick=lambda count, fps: np.arange(count))[0].shape == (1, 64, 64, 3)


def test_a_title_in_another_encoding_stops_nothing() -> None:
    data = written([flat(100)] * 4, "avi", "mpeg4", title="TTTT").replace(b"TTTT", b"T\xe9\xe8T")
    assert len(decode(data)[0]) == 4


@pytest.mark.parametrize("damage", ["garbled", "cut"])
def test_the_frames_before_damage_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    generator = np.random.default_rng(0)
    noise = [
        generator.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(24)
    ]
    data = bytearray(encode(np.stack(noise), 8))  # its index comes first
    end = len(data)
    if damage == "cut":
        del data[end * 7 // 10 :]
    else:
        data[end * 9 // 10 : end * 99 // 100] = generator.bytes(end * 99 // 100 - end * 9 // 10)
    (tmp_path / "bad.mp4").write_bytes(data)
    with caplog.at_level(logging.WARNING, "huvidpo"):
        frames, _ = decode(tmp_path / "bad.mp4")
    assert 10 <= len(frames) < 24
    difference = [
        np.abs(ours.astype(int) - theirs).mean() for ours, theirs in zip(frames, noise, strict=False)
    ]
    assert max(difference) < 30  # that to another frame is 85
    if damage == "garbled":
        assert "bad.mp4: damaged after" in caplog.text
    caplog.clear()
    assert len(decode(tmp_path / "bad.mp4", pick=lambda count, fps: np.arange(4, 8))[0]) == 4


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["mp4", "gif", "webp", "avi"]),
    place=st.floats(0, 1),
    value=st.integers(0, 255),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_videos_raise_errors_of_ours_alone(kind: str, place: float, value: int, cut: float) -> None:
    clip = [flat(level, 16, 16) for level in LEVELS[:4]]
    good = written(clip, "avi") if kind == "avi" else encode(np.stack(clip), 8, kind)
    data = bytearray(good)
    data[int(place * (len(data) - 1))] = value
    try:
        frames, fps = decode(bytes(data[: int(cut * len(data))]), max_frames=100)
    except InvalidRequest:
        return
    assert frames.dtype == np.uint8
    assert fps > 0


# Pictures


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_keep_their_upper_8(format: str) -> None:
    for values in (RAMP, RAMP // 300):  # a dark one too
        pixels = read_image(saved(Image.fromarray(values), format))
        assert np.array_equal(pixels, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_floating_point_and_32_bits() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(8, 0)
    for values in (ramp, ramp * 255, (ramp * 65535).astype(np.int32)):
        pixels = read_image(saved(Image.fromarray(values), "TIFF"))
        np.testing.assert_allclose(pixels[..., 0], ramp * 255, atol=1.01)
    assert read_image(saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")).max() == 0


def transparent(mode: str) -> bytes:
    """Wholly transparent, with a colour that nobody is to see."""
    if mode == "P":
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 255, 0, 0])
        return saved(image, transparency=1)
    if mode in ("RGB", "L"):
        colour = (255, 0, 0) if mode == "RGB" else 7
        return saved(Image.new(mode, (4, 4), colour), transparency=colour)
    return saved(Image.new(mode, (4, 4), (255, 0, 0, 0) if mode == "RGBA" else (7, 0)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pictures_are_on_white(mode: str) -> None:
    assert (read_image(transparent(mode)) == 255).all()


def test_half_transparent_is_half_white() -> None:
    pixels = read_image(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 128))))
    np.testing.assert_allclose(pixels[0, 0], (255, 127, 127), atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_opaque_mode_is_read(mode: str) -> None:
    image = Image.new("RGB", (4, 2), (255, 255, 255)).convert(mode)
    pixels = read_image(saved(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"))
    assert pixels.shape == (2, 4, 3)
    assert pixels.min() >= 254
    assert to_rgb(image).dtype == np.uint8


@settings(max_examples=60, deadline=None)
@given(
    format=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"]),
    place=st.floats(0, 1),
    value=st.binary(min_size=1, max_size=4),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_raise_errors_of_ours_alone(
    format: str, place: float, value: bytes, cut: float
) -> None:
    data = bytearray(
        saved(Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)), format)
    )
    start = int(place * (len(data) - 1))
    data[start : start + len(value)] = value
    try:
        assert read_image(bytes(data[: int(cut * len(data))])).dtype == np.uint8
    except InvalidRequest:
        return


def test_a_png_with_a_wrong_length_is_refused() -> None:
    """Pillow raises SyntaxError."""
    data = bytearray(
        saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    )
    at = data.index(b"IDAT")
    data[at - 4 : at] = struct.pack(">I", 1000)
    with pytest.raises(InvalidRequest, match="not a readable image"):
        read_image(bytes(data))
