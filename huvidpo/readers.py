"""Readers of video files: when their frames show, and the pixels of those that are wanted.

`video.decode` is the door. Each reader gives timelines, the quick one first, and the frames by their numbers
in one; where a file does not hold what its timeline says (it is damaged, or its times are wrong), the next
timeline is what can be decoded.
"""

import contextlib
import dataclasses
import io
import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from huvidpo.errors import InvalidRequest
from huvidpo.pictures import on_white, to_rgb

logger = logging.getLogger(__name__)

Source = bytes | str | Path
Numbered = Iterator[tuple[int, np.ndarray]]
"""(number in the timeline, uint8 [H, W, 3])"""

MAX_PIXELS = 2**26  # of a frame: 8192 x 8192
MAX_STRETCH = 8  # of a pixel; beyond, the file is wrong about it
UNTIMED = ("avi",)  # containers that number packets in the order of decoding


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video show."""

    times: np.ndarray  # seconds [N] from the first on, rising
    length: float  # seconds
    rate: float  # frames per second, the mean
    stamps: tuple[int, ...] = ()  # the file's own times, by which to know frames; without, they are counted

    def shown_at(self, rate: float, most: int) -> np.ndarray:
        """Numbers of the frames that show in the middle of each period of 1 / rate seconds, at least one."""
        periods = max(1, math.ceil(self.length * rate - 0.5))
        middles = (np.arange(min(periods, most)) + 0.5) / rate
        return (np.searchsorted(self.times, middles, side="right") - 1).clip(0)


def open_bytes(source: Source) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


class Ffmpeg:
    """A video by ffmpeg, on one thread: the cores belong to the model."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[Any, Any]]:
        """(container, its video stream). Raises InvalidRequest where there is none."""
        with av.open(open_bytes(self.source), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise InvalidRequest("video: the file has no video stream", "video")
            if stream.width * stream.height > MAX_PIXELS:
                came = f"{stream.width} x {stream.height} pixels"
                raise InvalidRequest(f"video: got {came}, at most {MAX_PIXELS} are read", "video")
            stream.thread_count = 1
            yield container, stream

    def timelines(self) -> Iterator[Timeline]:
        """By its packets, without decoding; then by what can be decoded."""
        quick = self.by_packets()
        if quick:
            yield quick
        counted = self.by_frames()
        if quick and len(counted.times) < len(quick.times):
            logger.warning(
                "%s: damaged after %d of its %d frames: those are used; re-encode it with ffmpeg for more",
                "the video" if isinstance(self.source, bytes) else self.source,
                len(counted.times),
                len(quick.times),
            )
        if len(counted.times):
            yield counted

    def by_packets(self) -> Timeline | None:
        """None where times are missing, or not all different."""
        with self.open() as (container, stream):
            if container.format.name in UNTIMED:
                return None
            packets = [
                (packet.pts, packet.duration or 0)
                for packet in until_damage(container.demux(stream))
                if packet.size and not packet.is_corrupt and not packet.is_discard
            ]
            stamps = {pts for pts, _ in packets if pts is not None}
            if not packets or len(stamps) < len(packets):
                return None
            return timeline(sorted(packets), stream)

    def by_frames(self) -> Timeline:
        with self.open() as (container, stream):
            decoded = until_damage(container.decode(stream))
            frames = [(frame.pts, frame.duration or 0) for frame in decoded]
            times = [pts for pts, _ in frames]
            told = None not in times and container.format.name not in UNTIMED
            if frames and told and all(a < b for a, b in itertools.pairwise(times)):
                return dataclasses.replace(timeline(frames, stream), stamps=())
            rate = mean_rate(stream)
            return Timeline(np.arange(len(frames)) / rate, len(frames) / rate, rate)

    def frames(self, timeline: Timeline, wanted: set[int]) -> Numbered:
        """From the key frame before the first of them, where the file leads there; else from its start."""
        first, last = min(wanted), max(wanted)
        numbers = {stamp: number for number, stamp in enumerate(timeline.stamps)}
        for start in (first, 0) if first and numbers else (0,):
            led = not start
            with self.open() as (container, stream):
                if start:
                    container.seek(timeline.stamps[start], stream=stream)
                for count, frame in enumerate(until_damage(container.decode(stream))):
                    number = numbers.get(frame.pts, -1) if numbers else count
                    led = led or 0 <= number <= start
                    if not led:
                        break  # too far, or nowhere
                    if number in wanted:
                        yield number, pixels(frame, stream)
                    if number >= last:
                        break
            if led:
                return


def timeline(stamped: list[tuple[int, int]], stream: Any) -> Timeline:
    """Of (time, duration) in the stream's units, the times rising."""
    unit, rate = float(stream.time_base), mean_rate(stream)
    stamps = [stamp for stamp, _ in stamped]
    times = (np.array(stamps) - stamps[0]) * unit
    return Timeline(times, float(times[-1] + (stamped[-1][1] * unit or 1 / rate)), rate, tuple(stamps))


def mean_rate(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def until_damage(items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except av.FFmpegError:
        return


def pixels(frame: Any, stream: Any) -> np.ndarray:
    """RGB of a decoded frame as a viewer shows it, turned as the container's display matrix says."""
    if any(component.is_alpha for component in frame.format.components):
        image = on_white(frame.to_ndarray(format="rgba"))
    else:
        image = frame.to_ndarray(format="rgb24")
    if frame.interlaced_frame:
        image = deinterlace(image)
    height, width = image.shape[:2]
    stretch = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    if stretch != 1 and 1 / MAX_STRETCH <= stretch <= MAX_STRETCH:
        square = (max(1, round(width * stretch)), height)
        image = np.asarray(Image.fromarray(image).resize(square, Image.Resampling.LANCZOS))
    return np.rot90(image, round(frame.rotation / 90) % 4)  # degrees counter-clockwise


def deinterlace(image: np.ndarray) -> np.ndarray:
    """The upper of the two fields of uint8 [H, W, 3], which show different times, over the whole height."""
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image[::2]).resize((width, height), Image.Resampling.BILINEAR))


def is_webp(source: Source) -> bool:
    """ffmpeg reads no animated WebP."""
    try:
        head = source[:12] if isinstance(source, bytes) else _beginning(Path(source), 12)
    except OSError:
        return False
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def _beginning(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


class Webp:
    """A WebP by Pillow, animated or not."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def timelines(self) -> Iterator[Timeline]:
        with Image.open(open_bytes(self.source), formats=["WEBP"]) as image:
            count = getattr(image, "n_frames", 1)
            ends = np.cumsum([self.milliseconds(image, number) for number in range(count)]) / 1000
        yield Timeline(np.r_[0, ends[:-1]], float(ends[-1]), len(ends) / float(ends[-1]))

    @staticmethod
    def milliseconds(image: Image.Image, number: int) -> float:
        image.seek(number)
        image.load()  # it knows only then
        return image.info.get("duration") or 100  # what browsers make of none

    def frames(self, timeline: Timeline, wanted: set[int]) -> Numbered:
        with Image.open(open_bytes(self.source), formats=["WEBP"]) as image:
            for number in sorted(wanted):
                image.seek(number)
                yield number, to_rgb(image)
