"""A folder of clips to judge: videos, and `captions.jsonl` with one line about each.

    {"video": "0007.mp4", "caption": "a horse runs, cartoon style", "prompt": "a horse runs", "style":
     "cartoon", "category": "horse", "seed": 7, "model": "sd14", "lineage": {"stage": "motion", ...}}

Only `video` and `caption` are needed: clips that people filmed have no seed.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path

from pydantic.dataclasses import dataclass

from huvidpo.checks import STRICT, NotBlank, check, raises
from huvidpo.errors import HuViDPOError, InvalidRequest
from huvidpo.files import write_text
from huvidpo.text import read_text

CAPTIONS_FILE = "captions.jsonl"


class ClipFolderError(HuViDPOError, ValueError):
    """A folder of clips that cannot be read; the message names every line at fault."""


@raises(ClipFolderError)
@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClipEntry:
    """One line of `captions.jsonl`."""

    video: NotBlank  # file, relative to the folder
    caption: str  # the whole text given to the text encoder, style applied
    prompt: str = ""  # without the style; the caption where the line has none
    style: str = ""
    category: str = ""
    seed: int | None = None
    model: str = ""  # of the catalog
    lineage: dict[str, str] = field(default_factory=dict)  # of the weights that made the clip

    def __post_init__(self) -> None:
        if not self.prompt:
            object.__setattr__(self, "prompt", self.caption)


def read_clips(folder: Path) -> list[ClipEntry]:
    """The clips of `folder` in the order of its `captions.jsonl`; further keys of a line are ignored.

    Raises ClipFolderError naming every malformed line, missing video and video named twice.
    """
    try:
        text = read_text(folder / CAPTIONS_FILE)
    except OSError as error:
        want = 'lines like {"video": "0001.mp4", "caption": "a horse runs"}'
        raise ClipFolderError(f"{folder} needs {CAPTIONS_FILE} with {want}: {error}") from error
    except InvalidRequest as error:
        raise ClipFolderError(f"{folder}: {error}") from error
    clips: dict[str, ClipEntry] = {}
    problems = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: it splits at U+2028
        if not line.strip():
            continue
        try:
            entry = _parse(line, folder)
            if entry.video in clips:
                raise ClipFolderError(f"{entry.video} is named twice")
            clips[entry.video] = entry
        except ClipFolderError as error:
            problems.append(f"{CAPTIONS_FILE} line {number}: {error}")
    if problems or not clips:
        raise ClipFolderError(f"{folder}: " + "\n  ".join(problems or [f"{CAPTIONS_FILE} names no clips"]))
    return list(clips.values())


def write_clips(folder: Path, clips: Sequence[ClipEntry]) -> None:
    """Write `captions.jsonl`, all at once."""
    lines = [json.dumps(dataclasses.asdict(clip), ensure_ascii=False) + "\n" for clip in clips]
    write_text(folder / CAPTIONS_FILE, "".join(lines))


def _parse(line: str, folder: Path) -> ClipEntry:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ClipFolderError(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ClipFolderError("not an object")
    names = {part.name for part in dataclasses.fields(ClipEntry)}
    entry = ClipEntry(**{name: value for name, value in record.items() if name in names})
    check("caption", entry.caption, NotBlank, ClipFolderError)
    if not (folder / entry.video).resolve().is_relative_to(folder.resolve()):
        raise ClipFolderError(f"video: {entry.video} lies outside the folder")
    if not (folder / entry.video).is_file():
        raise ClipFolderError(f"video: there is no file {entry.video}")
    return entry
