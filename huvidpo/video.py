"""The one place that encodes and decodes video. Frames are uint8 [F, H, W, 3] in RGB."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from huvidpo.errors import InvalidRequest

FORMATS = {"mp4": "video/mp4", "gif": "image/gif", "webp": "image/webp"}  # format -> media type
MAX_FRAMES = 10_000  # of a decoded video, unless told otherwise
# mbtree off: x264 (core 165) on AVX-512 lets it read past each row of macroblocks, so that files of a width
# that is not a multiple of 256 pixels depend on what the memory held before. At one crf that makes clips
# larger by up to a half, and closer to the frames by up to 1 dB.
X264 = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}


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
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def _encode_animation(frames: np.ndarray, fps: float, format: str) -> bytes:
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
    source: bytes | str | Path, fps: float | None = None, max_frames: int = MAX_FRAMES
) -> tuple[np.ndarray, float]:
    """The frames of any video ffmpeg reads, upright, and their rate in frames per second.

    Frames are taken by time at a constant rate, `fps` or the video's mean rate: each is what the video showed
    in the middle of its period, so a variable frame rate plays at its true speed. Decoding stops after
    `max_frames`. Raises InvalidRequest for what is not a video (ffmpeg reads no animated WebP).
    """
    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        with av.open(opened) as container:
            if not container.streams.video:
                raise InvalidRequest("video: the file has no video stream", "video")
            stream = container.streams.video[0]
            stream.thread_count = 1
            return _resample(container, stream, fps, max_frames)
    except (av.FFmpegError, OSError) as error:
        raise InvalidRequest(f"video: cannot be read: {error}", "video") from error


def _resample(container: Any, stream: Any, fps: float | None, max_frames: int) -> tuple[np.ndarray, float]:
    mean_rate = float(stream.average_rate or stream.guessed_rate or 25)
    rate = fps or mean_rate
    images: list[np.ndarray] = []
    start: float | None = None
    shown = None  # the frame on screen

    def show_until(time: float) -> None:
        """Take what is on screen in the middle of each output period that ends up before `time`."""
        if (len(images) + 0.5) / rate >= time:
            return
        image = _upright(shown)
        while (len(images) + 0.5) / rate < time and len(images) < max_frames:
            images.append(image)

    for frame in container.decode(stream):
        time = frame.time or 0.0
        if start is None:
            start = time
        else:
            show_until(time - start)
        if len(images) >= max_frames:
            break
        shown = frame
    if shown is None or start is None:
        raise InvalidRequest("video: it holds no frames", "video")
    length = float((shown.duration or 0) * shown.time_base) or 1 / mean_rate
    show_until((shown.time or 0.0) - start + length)
    return np.stack(images), rate


def _upright(frame: Any) -> np.ndarray:
    """RGB pixels, turned as the container's display matrix says (degrees counter-clockwise)."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)


def crop_to_aspect(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest centred part of uint8 [H, W, 3] with the aspect of `height` x `width`, resized to that
    (Lanczos).
    """
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted)


def read_image(source: bytes | str | Path) -> np.ndarray:
    """Any image Pillow reads, upright by its EXIF orientation, as uint8 [H, W, 3]. Raises InvalidRequest."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, Image.DecompressionBombError, ValueError) as error:
        raise InvalidRequest(f"first_frame: not a readable image: {error}", "first_frame") from error
