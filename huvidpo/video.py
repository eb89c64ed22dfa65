"""The one place that encodes and decodes video. Frames are uint8 [F, H, W, 3] in RGB."""

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from huvidpo.errors import HuViDPOError, InvalidRequest
from huvidpo.pictures import to_rgb
from huvidpo.readers import Ffmpeg, Timeline, Webp, is_webp

FORMATS = {"mp4": "video/mp4", "gif": "image/gif", "webp": "image/webp"}  # format -> media type
GIF_FPS = 50  # the most: browsers play a frame of less than 20 ms as one of 100 ms
MAX_FRAMES = 10_000  # of a decoded video, unless told otherwise
Pick = Callable[[int, float], np.ndarray]
"""(number of frames, their rate) -> the numbers of those wanted."""
# mbtree off: x264 (core 165) on AVX-512 lets it read past each row of macroblocks, so that files of a width
# that is not a multiple of 256 pixels depend on what the memory held before. At one crf that makes clips
# larger by up to a half, and closer to the frames by up to 1 dB.
X264 = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}

# How the pixels are coded, said in the file: players guess otherwise, by the picture's height.
BT709 = {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}


def encode(frames: np.ndarray, fps: float, format: str = "mp4") -> bytes:
    """The file of a clip: "mp4" (H.264, yuv420p, index first), "gif" or "webp", both looping. The same frames
    give the same bytes, on one kind of CPU.

    `frames`: uint8 [F, H, W, 3]. Raises InvalidRequest for another shape or type, an unknown format, an fps
    that is not positive, and for mp4 with an odd height or width (yuv420p halves both).
    """
    _check_frames(frames)
    if not fps > 0:
        raise InvalidRequest(f"fps: got {fps!r}, expected a number above 0", "fps")
    if format not in FORMATS:
        raise InvalidRequest(f"format: got {format!r}, allowed: {', '.join(FORMATS)}", "format")
    return _encode_mp4(frames, fps) if format == "mp4" else _encode_animation(frames, fps, format)


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise InvalidRequest(
            f"frames: got {frames.dtype} {list(frames.shape)}, expected uint8 [F, H, W, 3]", "frames"
        )


def _encode_mp4(frames: np.ndarray, fps: float) -> bytes:
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise InvalidRequest(
            f"frames: {width} x {height} pixels, H.264 in yuv420p wants even sides", "frames"
        )
    target = io.BytesIO()

    def reopen(url: str, flags: int, options: dict) -> io.BytesIO:
        return io.BytesIO(target.getvalue())  # faststart reads its own output back to put the index first

    with av.open(target, "w", format="mp4", options={"movflags": "+faststart"}, io_open=reopen) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # clips are short; the cores belong to the model
        for tag, value in BT709.items():
            setattr(stream.codec_context, tag, value)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def _encode_animation(frames: np.ndarray, fps: float, format: str) -> bytes:
    if format == "gif" and fps > GIF_FPS:  # in the same time, as much of it as GIF can show
        count = max(1, round(len(frames) * GIF_FPS / fps))
        frames = frames[((np.arange(count) + 0.5) * len(frames) / count).astype(int)]
        fps = GIF_FPS
    images = [Image.fromarray(frame) for frame in frames]
    target = io.BytesIO()
    unit = 10 if format == "gif" else 1  # milliseconds: GIF counts in hundredths of a second
    ends = np.round(np.arange(len(frames) + 1) * 1000 / fps / unit) * unit
    duration = np.diff(ends).astype(int).tolist()
    images[0].save(
        target,
        format,
        save_all=True,
        append_images=images[1:],
        duration=duration,
        loop=0,
        **({"quality": 90} if format == "webp" else {}),
    )
    return target.getvalue()


def decode(
    source: bytes | str | Path,
    fps: float | None = None,
    max_frames: int = MAX_FRAMES,
    *,
    pick: Pick | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, float]:
    """The frames of any video ffmpeg reads, or of an animated WebP, and their rate in frames per second.

    Frames are taken by time at a constant rate, `fps` or the video's mean rate: each is what the video showed
    in the middle of its period, so a variable frame rate plays at its true speed. `pick`, given their number
    (at most `max_frames`) and rate, says which of them are wanted: only those are kept, and what lies before
    them is skipped where the file allows. `size` (height, width): each is cropped to that at once.

    Frames come upright, in square pixels, transparent parts on white, and interlaced ones without combs. Of a
    damaged video the frames before the damage are used, with a warning. Raises InvalidRequest for what is not
    a video, and whatever `pick` raises.
    """
    reader = Webp(source) if is_webp(source) else Ffmpeg(source)
    timelines = reader.timelines()
    while timeline := _translated(next, timelines, None):
        rate = fps or timeline.rate
        shown = timeline.shown_at(rate, max_frames)
        chosen = shown if pick is None else shown[pick(len(shown), rate)]
        kept = _translated(_collect, reader, timeline, set(chosen.tolist()), size)
        if kept is not None:
            return np.stack([kept[index] for index in chosen.tolist()]), rate
    raise InvalidRequest("video: no frame of it can be decoded; re-encode it with ffmpeg", "video")


def _collect(
    reader: Ffmpeg | Webp, timeline: Timeline, wanted: set[int], size: tuple[int, int] | None
) -> dict[int, np.ndarray] | None:
    """The wanted frames by number; None where the file does not hold what `timeline` says."""
    kept = {}
    for index, image in reader.frames(timeline, wanted):
        kept[index] = crop_to_aspect(image, *size) if size else image
    return kept if kept.keys() == wanted else None


def _translated(read: Callable[..., Any], *arguments: Any) -> Any:
    """`read(*arguments)`, where what ffmpeg and Pillow raise at broken files becomes an InvalidRequest."""
    try:
        return read(*arguments)
    except HuViDPOError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise InvalidRequest(f"video: cannot be read: {reason}", "video") from error


def crop_to_aspect(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest centred part of uint8 [H, W, 3] with the aspect of `height` x `width`, resized to that
    (Lanczos).
    """
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted)


def read_image(source: bytes | str | Path) -> np.ndarray:
    """Any image Pillow reads as uint8 [H, W, 3], see `to_rgb`. Raises InvalidRequest."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow's decoders raise whatever they like on broken files
        raise InvalidRequest(f"first_frame: not a readable image: {error}", "first_frame") from error
