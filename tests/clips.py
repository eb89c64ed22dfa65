"""Made-up videos for tests."""

from pathlib import Path

import numpy as np

from huvidpo import video


def write_clip(
    path: Path,
    seed: int = 0,
    frames: int = 6,
    size: tuple[int, int] = (48, 64),
    fps: float = 8,
    format: str = "mp4",
) -> None:
    """A video of `size` (height, width) whose left half is dark and whose right half brightens."""
    picture = np.zeros((frames, *size, 3), np.uint8)
    picture[:, :, size[1] // 2 :] = np.linspace(60, 250, frames).astype(np.uint8)[:, None, None, None]
    picture[..., seed % 3] //= 2
    path.write_bytes(video.encode(picture, fps, format))
