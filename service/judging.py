"""What a person is asked on the rating page, and what becomes of the answer. No web imports.

A task is one clip to score, two clips to choose between, as a whole or for each segment of their frames too,
or one clip to mark by the user study's criteria.
Nothing is kept in memory: clips, tasks and answers are read anew each time, so that a crash, a second server
or a clip added while people rate loses nothing.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from huvidpo import video
from huvidpo.errors import InvalidRequest
from preferences.clips import ClipEntry, ClipFolderError, read_clips
from preferences.records import (
    RATINGS_FILE,
    Comparison,
    Opinion,
    PreferencesError,
    Rating,
    Retraction,
    SegmentComparison,
    append,
    comparable,
    read_records,
    segments_of,
)
from service.errors import NotFound
from service.files import sha256_of

Mode = Literal["score", "compare", "segments", "study"]
Choice = Literal["left", "right", "tie"]
Answer = float | Choice | dict[str, Any]
"""Of score; of compare; of segments (`whole`: a choice, `parts`: one for each), study (criterion: mark)."""
PICTURES = (".gif", ".webp")  # clips that browsers show as pictures
NEIGHBOURS = 2  # clips of the category that each is compared with, before and after it in a shuffled ring
_TO_RECORD: dict[str, Literal["a", "b", "tie"]] = {"left": "a", "right": "b", "tie": "tie"}
_FROM_RECORD: dict[str, Choice] = {"a": "left", "b": "right", "tie": "tie"}
Parts = tuple[tuple[float, float], ...]
"""From and to, seconds, of each segment."""
Rings = Sequence[tuple[Callable[["Clip"], Any], int]]
"""What the clips of a ring share, and with how many neighbours on each meets."""


@dataclass(frozen=True)
class Clip:
    """A clip as the page shows it. `name`: path relative to the judged folder, with "/"."""

    path: Path
    name: str
    sha256: str
    entry: ClipEntry

    @property
    def id(self) -> str:
        """What stands in addresses: tells nothing of name or model, and changes with the file."""
        return _digest(self.name, self.sha256)[:24]


@dataclass(frozen=True)
class Task:
    """One question: a clip, or two side by side with the left one first."""

    id: str
    clips: tuple[Clip, ...]
    parts: Parts = ()
    """Each segment that is asked about; none: clips are judged as a whole."""


def clips_of(folder: Path) -> list[Clip]:
    """The clips of a folder with `captions.jsonl`. Raises ClipFolderError."""
    return [to_clip(folder, entry.video, entry) for entry in read_clips(folder)]


def to_clip(folder: Path, name: str, entry: ClipEntry) -> Clip:
    path = folder / name
    return Clip(path, str(PurePosixPath(name)), sha256_of(path), entry)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# Tasks


def tasks_for(mode: Mode, clips: Sequence[Clip], rater: str, segment_frames: int = 0) -> list[Task]:
    """The rater's tasks: random to the eye, the same order each time that rater comes back.

    `segment_frames`: of each segment, from frame 1 on, in the mode of that name.
    """
    if mode == "compare":
        pairs = _pairs(clips, rater, [(_category, NEIGHBOURS), (_category_and_prompt, 1)])
        tasks = [_side_by_side(a, b, rater) for a, b in pairs]
    elif mode == "segments":
        pairs = _pairs(of_a_first_frame(clips), rater, [(_first_frame, 1)])
        tasks = [_side_by_side(a, b, rater, parts_of(a, segment_frames)) for a, b in pairs]
    else:
        tasks = [Task(clip.id, (clip,)) for clip in clips]
    return sorted(tasks, key=lambda task: _digest(rater, mode, task.id))


def _side_by_side(a: Clip, b: Clip, rater: str, parts: Parts = ()) -> Task:
    task = _digest(*sorted((a.id, b.id)))[:24]
    left, right = sorted((a, b), key=lambda clip: _digest(rater, task, clip.id))
    return Task(task, (left, right), parts)


def _pairs(clips: Iterable[Clip], rater: str, rings: Rings) -> list[tuple[Clip, Clip]]:
    """Each clip with its neighbours in rings shuffled per rater. With two of a category's ring, so that its
    clips hang together, and one of a prompt's, they are 2 to 3 pairs for every clip of the folder.
    """
    shuffled = sorted(clips, key=lambda clip: _digest(rater, clip.id))
    pairs: dict[frozenset[str], tuple[Clip, Clip]] = {}
    for key, neighbours in rings:
        for _, members in groupby(sorted(shuffled, key=key), key):
            ring = list(members)
            for a, b in _ring_pairs(ring, neighbours):
                pairs.setdefault(frozenset((a.id, b.id)), (a, b))
    return list(pairs.values())


def _ring_pairs(ring: list[Clip], neighbours: int) -> list[tuple[Clip, Clip]]:
    steps = range(1, min(neighbours, len(ring) - 1) + 1)
    return [(clip, ring[(i + step) % len(ring)]) for step in steps for i, clip in enumerate(ring)]


def _category(clip: Clip) -> str:
    return clip.entry.category


def _category_and_prompt(clip: Clip) -> tuple[str, str]:
    return clip.entry.category, clip.entry.prompt


def _first_frame(clip: Clip) -> tuple[str, str]:
    return clip.entry.category, clip.entry.lineage["first_frame"]


# Segments


def of_a_first_frame(clips: Iterable[Clip]) -> list[Clip]:
    """Those that a model made from a first frame it was given, a filmed clip's say (`judging.candidates`)."""
    return [clip for clip in clips if "first_frame" in clip.entry.lineage]


def length_of(clip: Clip) -> tuple[int, float]:
    """Frames, and frames per second. Raises ClipFolderError for what is not a video."""
    return _length(clip.path, clip.sha256)


@lru_cache(maxsize=65536)
def _length(path: Path, sha256: str) -> tuple[int, float]:
    try:
        frames, fps = video.decode(path)
    except InvalidRequest as error:
        raise ClipFolderError(f"{path}: {error}") from error
    return len(frames), fps


def parts_of(clip: Clip, segment_frames: int) -> Parts:
    """From and to, seconds, of each segment of so many frames."""
    frames, fps = length_of(clip)
    return tuple((part.start / fps, part.stop / fps) for part in segments_of(frames, segment_frames))


def check_segments(clips: Sequence[Clip], folder: Path) -> None:
    """Raises ClipFolderError where clips cannot be compared segment by segment."""
    made = of_a_first_frame(clips)
    if not _pairs(made, "", [(_first_frame, 1)]):
        raise ClipFolderError(
            f"{folder}: no two clips were made from the first frame of one filmed clip, and segments are "
            "compared of such; make them with judging.candidates --beside CLIPS --structural ETA"
        )
    if pictures := [clip.name for clip in made if clip.path.suffix.lower() in PICTURES]:
        raise ClipFolderError(
            f"{folder}: {pictures[0]} is a picture to a browser, which plays it as a whole only; segments "
            "are compared of videos: mp4 or webm"
        )
    lengths = {length_of(clip): clip.name for clip in made}
    if len(lengths) > 1 or min(lengths)[0] < 2:
        found = ", ".join(
            f"{name} {frames} at {fps:g} fps" for (frames, fps), name in sorted(lengths.items())
        )
        raise ClipFolderError(
            f"{folder}: frames: got {found}; expected two or more, as many and at the same rate in each clip"
        )


# Answers


@dataclass
class Judging:
    """What is judged, and the file the answers go to. Safe to use from several threads and processes."""

    folder: Path
    modes: tuple[Mode, ...] = ("score", "compare")
    read: Callable[[Path], list[Clip]] = clips_of
    ratings: Path | None = None
    """Where answers go; None: ratings.jsonl of the folder."""
    segment_frames: int = 0
    """Of each segment that is asked about; then that is the one mode. 0: clips are judged as a whole."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if self.segment_frames:
            self.modes = ("segments",)

    @property
    def file(self) -> Path:
        return self.ratings or self.folder / RATINGS_FILE

    def check(self) -> None:
        """Raises ClipFolderError or PreferencesError where nobody can be asked: the folder or its ratings are
        malformed, or the file judges the same category in another way, of which no pairs could be made.
        """
        clips, records = self.clips(), read_records(self.file)
        if self.segment_frames:
            check_segments(clips, self.folder)
        asked = {clip.entry.category for clip in clips}
        for record in records:
            if not any(comparable(record.category, category) for category in asked):
                continue
            by = record.segment_frames if isinstance(record, SegmentComparison) else 0
            if by != self.segment_frames:
                raise PreferencesError(
                    f"{self.file} judges {record.category or 'these'} clips {_way(by)}, and here people are "
                    f"asked about them {_way(self.segment_frames)}; pairs are made of one kind: name another "
                    "file with --ratings"
                )

    def clips(self) -> list[Clip]:
        return self.read(self.folder)

    def clip(self, clip_id: str) -> Clip:
        """Raises NotFound."""
        return _find(self.clips(), clip_id, "clip")

    def session(self, mode: Mode, rater: str) -> tuple[list[Task], dict[str, Answer]]:
        """The rater's tasks in order, and the answers given so far by the task's id."""
        tasks = self._tasks(mode, rater)
        records = self._records(mode, rater)
        given = {task.id: found[-1] for task in tasks if (found := _answers_to(task, records))}
        return tasks, {task.id: _answer(task, given[task.id]) for task in tasks if task.id in given}

    def submit(self, mode: Mode, rater: str, task_id: str, answer: Answer) -> None:
        """Saves one answer; it is on the disk when this returns. A new answer replaces an earlier one.

        Raises NotFound for a task that is not (or no longer) the rater's, InvalidRequest for another number
        of segments than it has, PreferencesError when the record cannot be written or is out of range.
        """
        task = _find(self._tasks(mode, rater), task_id, "task")
        if isinstance(answer, dict) and len(task.parts) != (given := len(answer.get("parts", ()))):
            raise InvalidRequest(f"answer: got {given} parts, expected {len(task.parts)}", "answer")
        with self._lock:
            earlier = _answers_to(task, self._records(mode, rater))
            if earlier and _answer(task, earlier[-1]) == answer:
                return  # sent again by a page that never heard our answer
            append(self.file, _record(task, rater, answer, self.segment_frames))
            # After the new one: a crash in between leaves both, and the later one counts.
            for record in earlier:
                self._retract(record)

    def undo(self, mode: Mode, rater: str) -> str | None:
        """Takes the rater's latest answer back. Returns its task, None if there was none."""
        tasks = self._tasks(mode, rater)
        with self._lock:
            for record in reversed(self._records(mode, rater)):
                for task in tasks:
                    if _answers_to(task, [record]):
                        self._retract(record)
                        return task.id
        return None

    def _tasks(self, mode: Mode, rater: str) -> list[Task]:
        return tasks_for(mode, self.clips(), rater, self.segment_frames)

    def _retract(self, record: Opinion) -> None:
        append(self.file, Retraction(rater=record.rater, category=record.category, of=record.id))

    def _records(self, mode: Mode, rater: str) -> list[Opinion]:
        return [r for r in read_records(self.file) if r.rater == rater and _mode_of(r) == mode]


def _find(items: Iterable[Any], wanted: str, kind: str) -> Any:
    for item in items:
        if item.id == wanted:
            return item
    raise NotFound(f"this {kind} is not here any more: the folder has changed; reload the page")


def _way(segment_frames: int) -> str:
    return f"by segments of {segment_frames} frames" if segment_frames else "as a whole"


def _mode_of(record: Opinion) -> Mode:
    if isinstance(record, SegmentComparison):
        return "segments"
    if isinstance(record, Comparison):
        return "compare"
    return "score" if record.score is not None else "study"


def _answers_to(task: Task, records: Sequence[Opinion]) -> list[Opinion]:
    """Those of `records` that judge exactly the task's clips, whatever the side."""
    wanted = {(clip.name, clip.sha256) for clip in task.clips}
    return [record for record in records if _judged(record) == wanted]


def _judged(record: Opinion) -> set[tuple[str, str]]:
    if isinstance(record, Rating):
        return {(record.clip, record.sha256)}
    return {(record.clip_a, record.sha256_a), (record.clip_b, record.sha256_b)}


def _answer(task: Task, record: Opinion) -> Answer:
    """The answer as this task shows it."""
    if isinstance(record, Rating):
        return record.score if record.score is not None else dict(record.criteria or {})
    turned = record.clip_a != task.clips[0].name
    if isinstance(record, SegmentComparison):
        parts = [_shown(choice, turned) for choice in record.segments]
        return {"whole": _shown(record.answer, turned), "parts": parts}
    return _shown(record.answer, turned)


def _shown(answer: str, turned: bool) -> Choice:
    """A record's choice as a task shows it, `turned` where clip a of the record is on the right."""
    sides: dict[str, Choice] = {"a": "right", "b": "left", "tie": "tie"} if turned else _FROM_RECORD
    return sides[answer]


def _record(task: Task, rater: str, answer: Answer, segment_frames: int) -> Opinion:
    clip, entry = task.clips[0], task.clips[0].entry
    if len(task.clips) == 2:
        other = task.clips[1]
        about: dict[str, Any] = {
            "rater": rater,
            "category": entry.category,
            "clip_a": clip.name,
            "sha256_a": clip.sha256,
            "clip_b": other.name,
            "sha256_b": other.sha256,
            "prompt": entry.prompt if entry.prompt == other.entry.prompt else "",
        }
        if not isinstance(answer, dict):
            return Comparison(answer=_TO_RECORD[str(answer)], **about)
        return SegmentComparison(
            answer=_TO_RECORD[answer["whole"]],
            frames=length_of(clip)[0],
            segment_frames=segment_frames,
            segments=[_TO_RECORD[choice] for choice in answer["parts"]],
            **about,
        )
    opinion = {"criteria": answer} if isinstance(answer, dict) else {"score": answer}
    shown = {name: getattr(entry, name) for name in ("category", "prompt", "seed", "lineage")}
    return Rating(rater=rater, clip=clip.name, sha256=clip.sha256, **shown, **opinion)
