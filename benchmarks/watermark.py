"""What the watermark survives: `python -m benchmarks.watermark`. CPU only, ten minutes.

Clips of 16 frames of 320 x 512 from the photographs that scikit-image brings, passed by a camera two pixels a
frame, each with a mark of its own, in the service's own encoding. Then what may happen to them, and how many
still give their id; what has no mark is read too.
"""

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageFilter

from benchmarks.common import parser, record
from huvidpo import watermark
from huvidpo.video import decode, encode

KEY = b"the key of the benchmark"
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png")


def clip_of(photograph: Path, height: int = 320, width: int = 512, frames: int = 16) -> np.ndarray:
    image = Image.open(photograph).convert("RGB")
    scale = max((height + 40) / image.height, (width + 40) / image.width)
    size = (round(image.width * scale) + 1, round(image.height * scale) + 1)
    picture = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    return np.stack([picture[t : t + height, 2 * t : 2 * t + width] for t in range(frames)])


def again(frames: np.ndarray, crf: int) -> np.ndarray:
    """Encoded once more as H.264, x264's preset medium."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": str(crf), "preset": "medium"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return decode(target.getvalue())[0]


def each(change: Callable[[Image.Image], Image.Image]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda clip: np.stack([np.asarray(change(Image.fromarray(frame))) for frame in clip])


def sized(by: float) -> Callable[[np.ndarray], np.ndarray]:
    return each(lambda image: image.resize((int(image.width * by) // 2 * 2, int(image.height * by) // 2 * 2)))


def cropped(clip: np.ndarray, y: float, x: float) -> np.ndarray:
    """A tenth of the picture's area away, at a place of 0 to 1."""
    height, width = (round(side * 0.9**0.5) // 2 * 2 for side in clip.shape[1:3])
    top, left = round(y * (clip.shape[1] - height)), round(x * (clip.shape[2] - width))
    return clip[:, top : top + height, left : left + width]


def noisy(clip: np.ndarray) -> np.ndarray:
    return (clip + np.random.default_rng(0).normal(0, 8, clip.shape)).clip(0, 255).astype(np.uint8)


ATTACKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda clip: clip,
    "CRF 23": lambda clip: again(clip, 23),
    "CRF 28": lambda clip: again(clip, 28),
    "CRF 32": lambda clip: again(clip, 32),
    "half size": sized(0.5),
    "double size": sized(2),
    "crop 10 %, corner": lambda clip: cropped(clip, 0, 0),
    "crop 10 %, other corner": lambda clip: cropped(clip, 1, 1),
    "crop 10 %, anywhere": lambda clip: cropped(clip, 0.3, 0.8),
    "crop 10 % + CRF 28": lambda clip: again(cropped(clip, 0.3, 0.8), 28),
    "half size + CRF 23": lambda clip: again(sized(0.5)(clip), 23),
    "half size + CRF 28": lambda clip: again(sized(0.5)(clip), 28),
    "all three": lambda clip: again(sized(0.5)(cropped(clip, 0.3, 0.8)), 28),
    "every other frame, reordered": lambda clip: clip[::-2],
    "4 frames of 16": lambda clip: clip[6:10],
    "one frame": lambda clip: clip[7:8],
    "brighter, more contrast": lambda clip: (clip * 1.2 + 5.0).clip(0, 255).astype(np.uint8),
    "gamma 1.5": lambda clip: (255 * (clip / 255) ** 1.5).astype(np.uint8),
    "mirrored": lambda clip: clip[:, :, ::-1],
    "turned by 1 degree": each(lambda image: image.rotate(1, Image.Resampling.BICUBIC)),
    "turned by 5 degrees": each(lambda image: image.rotate(5, Image.Resampling.BICUBIC)),
    "stretched by a fifth": each(lambda image: image.resize((image.width * 6 // 5, image.height))),
    "letterboxed": lambda clip: np.pad(clip, ((0, 0), (40, 40), (0, 0), (0, 0))),
    "gif": lambda clip: decode(encode(clip, 8, "gif"))[0],
    "webp": lambda clip: decode(encode(clip, 8, "webp"))[0],
    "noise of 8 levels": noisy,
    "blur of 1 pixel": each(lambda image: image.filter(ImageFilter.GaussianBlur(1))),
    "blur of 3 pixels": each(lambda image: image.filter(ImageFilter.GaussianBlur(3))),
    "another key's mark over it": lambda clip: watermark.embed(clip, watermark.signs(b"another", bytes(12))),
}


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def measure(photographs: Sequence[str], attacks: Sequence[str], frames: int = 16) -> dict[str, Any]:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    rng = np.random.default_rng(0)
    survived = dict.fromkeys(attacks, 0)
    psnr, embed, encoding, passed, marked = [], [], [], 0, []
    for name in photographs:
        plain, id = clip_of(folder / name)[:frames], rng.bytes(watermark.ID_BYTES)
        started = time.perf_counter()
        clip = watermark.embed(plain, watermark.signs(KEY, id))
        embedded = time.perf_counter()
        file = encode(clip, 8)
        encoding.append(time.perf_counter() - embedded)
        embed.append(embedded - started)
        psnr.append(decibels(clip, plain))
        clip = decode(file)[0]
        marked.append((clip, plain, id))
        for attack in attacks:
            survived[attack] += watermark.read(ATTACKS[attack](clip)[:12], KEY) == id
        passed += watermark.read(plain, KEY) is not None
        passed += watermark.read(clip, b"another key") is not None
        print(name, flush=True)
    average = np.mean([clip for clip, _, _ in marked], axis=0).astype(np.uint8)
    clip, plain, id = marked[0]
    difference = clip.astype(int) - plain  # an attacker who has both
    forged = (marked[-1][1] + difference).clip(0, 255).astype(np.uint8)
    return {
        "clips": len(photographs),
        "survived": survived,
        "psnr_db": {"least": min(psnr), "mean": float(np.mean(psnr))},
        "seconds": {"embed": float(np.median(embed)), "encode": float(np.median(encoding))},
        "read_without_a_mark_of_the_key": {"clips": 2 * len(photographs), "passed": passed},
        "average_of_all_clips": (found := watermark.read(average, KEY)) and found.hex(),
        "mark_copied_onto_another_clip_is_read": watermark.read(forged, KEY) == id,
    }


def main(arguments: list[str] | None = None) -> None:
    args = parser(quick="one clip, one change to it").parse_args(arguments)
    if args.quick:
        print(measure(PHOTOGRAPHS[:1], ["none"], frames=2))
        return
    record(args, **measure(PHOTOGRAPHS, list(ATTACKS)))


if __name__ == "__main__":
    main()
