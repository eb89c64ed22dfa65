"""What a person is asked on the rating page, and what becomes of the answer. No web imports.

A task is one clip to score, two clips to choose between, or one clip to mark by the user study's criteria.
Nothing is kept in memory: clips, tasks and answers are read anew each time, so that a crash, a second server
or a clip added while people rate loses nothing.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from preferences.clips import ClipEntry, read_clips
from preferences.records import (
    RATINGS_FILE,
    Comparison,
    Opinion,
    Rating,
    Retraction,
    append,
    read_records,
)
from service.errors import NotFound
from service.files import sha256_of

Mode = Literal["score", "compare", "study"]
Choice = Literal["left", "right", "tie"]
Answer = float | Choice | dict[str, int]  # of the modes score, compare and study
NEIGHBOURS = (
    2  # clips of the category that each clip is compared with, before and after it in a shuffled ring
)
_TO_RECORD: dict[str, Literal["a", "b", "tie"]] = {"left": "a", "right": "b", "tie": "tie"}
_FROM_RECORD = {answer: choice for choice, answer in _TO_RECORD.items()}


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


def clips_of(folder: Path) -> list[Clip]:
    """The clips of a folder with `captions.jsonl`. Raises ClipFolderError."""
    return [to_clip(folder, entry.video, entry) for entry in read_clips(folder)]


def to_clip(folder: Path, name: str, entry: ClipEntry) -> Clip:
    path = folder / name
    return Clip(path, str(PurePosixPath(name)), sha256_of(path), entry)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


# Tasks


def tasks_for(mode: Mode, clips: Sequence[Clip], rater: str) -> list[Task]:
    """The rater's tasks: random to the eye, the same order each time that rater comes back."""
    if mode == "compare":
        tasks = [_side_by_side(a, b, rater) for a, b in _pairs(clips, rater)]
    else:
        tasks = [Task(clip.id, (clip,)) for clip in clips]
    return sorted(tasks, key=lambda task: _digest(rater, mode, task.id))


def _side_by_side(a: Clip, b: Clip, rater: str) -> Task:
    task = _digest(*sorted((a.id, b.id)))[:24]
    left, right = sorted((a, b), key=lambda clip: _digest(rater, task, clip.id))
    return Task(task, (left, right))


def _pairs(clips: Iterable[Clip], rater: str) -> list[tuple[Clip, Clip]]:
    """Pairs within a category. Each clip meets its neighbours of a ring shuffled per rater (so the clips of a
    category hang together), and those of its prompt in another: 2 to 3 pairs for every clip of the folder.
    """
    shuffled = sorted(clips, key=lambda clip: _digest(rater, clip.id))
    pairs: dict[frozenset[str], tuple[Clip, Clip]] = {}
    for key, neighbours in ((_category, NEIGHBOURS), (_category_and_prompt, 1)):
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


# Answers


@dataclass
class Judging:
    """What is judged, and the file the answers go to. Safe to use from several threads and processes."""

    folder: Path
    modes: tuple[Mode, ...] = ("score", "compare")
    read: Callable[[Path], list[Clip]] = clips_of
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def file(self) -> Path:
        return self.folder / RATINGS_FILE

    def clips(self) -> list[Clip]:
        return self.read(self.folder)

    def clip(self, clip_id: str) -> Clip:
        """Raises NotFound."""
        return _find(self.clips(), clip_id, "clip")

    def session(self, mode: Mode, rater: str) -> tuple[list[Task], dict[str, Answer]]:
        """The rater's tasks in order, and the answers given so far by the task's id."""
        tasks = tasks_for(mode, self.clips(), rater)
        records = self._records(mode, rater)
        given = {task.id: found[-1] for task in tasks if (found := _answers_to(task, records))}
        return tasks, {task.id: _answer(task, given[task.id]) for task in tasks if task.id in given}

    def submit(self, mode: Mode, rater: str, task_id: str, answer: Answer) -> None:
        """Saves one answer; it is on the disk when this returns. A new answer replaces an earlier one.

        Raises NotFound for a task that is not (or no longer) the rater's, PreferencesError when the record
        cannot be written or the answer is out of range.
        """
        task = _find(tasks_for(mode, self.clips(), rater), task_id, "task")
        with self._lock:
            earlier = _answers_to(task, self._records(mode, rater))
            if earlier and _answer(task, earlier[-1]) == answer:
                return  # sent again by a page that never heard our answer
            append(self.file, _record(task, rater, answer))
            # After the new one: a crash in between leaves both, and the later one counts.
            for record in earlier:
                self._retract(record)

    def undo(self, mode: Mode, rater: str) -> str | None:
        """Takes the rater's latest answer back. Returns its task, None if there was none."""
        tasks = tasks_for(mode, self.clips(), rater)
        with self._lock:
            for record in reversed(self._records(mode, rater)):
                for task in tasks:
                    if _answers_to(task, [record]):
                        self._retract(record)
                        return task.id
        return None

    def _retract(self, record: Opinion) -> None:
        append(self.file, Retraction(rater=record.rater, category=record.category, of=record.id))

    def _records(self, mode: Mode, rater: str) -> list[Opinion]:
        return [r for r in read_records(self.file) if r.rater == rater and _mode_of(r) == mode]


def _find(items: Iterable[Any], wanted: str, kind: str) -> Any:
    for item in items:
        if item.id == wanted:
            return item
    raise NotFound(f"this {kind} is not here any more: the folder has changed; reload the page")


def _mode_of(record: Opinion) -> Mode:
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
    choice: Choice = _FROM_RECORD[record.answer]  # type: ignore[assignment]
    if record.clip_a == task.clips[0].name or choice == "tie":
        return choice
    return "right" if choice == "left" else "left"


def _record(task: Task, rater: str, answer: Answer) -> Opinion:
    clip, entry = task.clips[0], task.clips[0].entry
    if len(task.clips) == 2:
        other = task.clips[1]
        return Comparison(
            rater=rater,
            category=entry.category,
            clip_a=clip.name,
            sha256_a=clip.sha256,
            clip_b=other.name,
            sha256_b=other.sha256,
            answer=_TO_RECORD[str(answer)],
            prompt=entry.prompt if entry.prompt == other.entry.prompt else "",
        )
    opinion = {"criteria": answer} if isinstance(answer, dict) else {"score": answer}
    about = {name: getattr(entry, name) for name in ("category", "prompt", "seed", "lineage")}
    return Rating(rater=rater, clip=clip.name, sha256=clip.sha256, **about, **opinion)
