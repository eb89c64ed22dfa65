"""Made-up rated clips for tests."""

from pathlib import Path

from clips import write_clip
from PIL import Image

from huvidpo.files import hash_file
from preferences.clips import ClipEntry, write_clips
from preferences.records import RATINGS_FILE, Rating, append

SCORES = (9.0, 7.5, 6.0, 4.0, 2.5, 1.0)


def write_rated(folder: Path, *, pictures: bool = False, category: str = "horse") -> Path:
    """A folder of six clips (or pictures) in two prompts, each scored by one rater: 0 best, 5 worst."""
    folder.mkdir(parents=True)
    entries = []
    for i, score in enumerate(SCORES):
        name = f"{i:04d}.{'png' if pictures else 'mp4'}"
        if pictures:
            Image.new("RGB", (48, 48), (40 * i, 90, 200 - 30 * i)).save(folder / name)
        else:
            write_clip(folder / name, seed=i, frames=4 + i)
        caption = ("a horse runs", "a white horse runs on mars")[i % 2]
        entries.append(ClipEntry(video=name, caption=caption, category=category, seed=i))
        append(
            folder / RATINGS_FILE,
            Rating(
                rater="made up",
                category=category,
                clip=name,
                sha256=hash_file(folder / name),
                prompt=caption,
                score=score,
            ),
        )
    write_clips(folder, entries)
    return folder
