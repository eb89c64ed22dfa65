"""What people prefer: an append-only JSONL file of ratings, comparisons and retractions.

One record a line. Any number of people and processes may append to one file at once; nothing is ever changed
in it: an undo is one more line. `docs/preferences.md` lists every field.

    {"kind": "rating", "id": ..., "rater": "ann", "time": ..., "category": "horse", "clip": "0003.mp4",
     "sha256": ..., "prompt": "a horse runs", "seed": 3, "lineage": {...}, "score": 7.5, "criteria": null}
    {"kind": "comparison", ..., "clip_a": "0003.mp4", "sha256_a": ..., "clip_b": "0005.mp4", "sha256_b": ...,
     "answer": "a", "prompt": "a horse runs"}
    {"kind": "segment_comparison", ... as a comparison ..., "frames": 16, "segment_frames": 5,
     "segments": ["a", "tie", "b"]}
    {"kind": "retraction", ..., "of": <id of a record of the same rater>}
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from huvidpo.checks import STRICT, NotBlank, Text, check, raises
from huvidpo.errors import HuViDPOError
from huvidpo.files import sync_folder, write_bytes, write_text

RATINGS_FILE = "ratings.jsonl"  # in the folder of the clips, unless told otherwise
SCORES = (0.0, 10.0)  # lowest and highest score (the paper's scale, decimals allowed)
SEGMENT_FRAMES = 5  # of a segment, unless told otherwise: three segments of 16 frames but the first
CRITERIA = ("aesthetics", "consistency", "alignment")  # of the paper's user study, each 1..5


class PreferencesError(HuViDPOError, ValueError):
    """Preferences that cannot be read, written or used; the message names every line or record at fault."""


def _id(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{32}", text):
        raise ValueError("expected 32 hexadecimal digits")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("expected 64 hexadecimal digits")
    return text


def _utc(text: str) -> str:
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError:
        offset = None
    if offset != timedelta(0):
        raise ValueError("expected ISO 8601 in UTC (...+00:00)")
    return text


def _below(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or str(path) != text or text == ".":
        raise ValueError("expected a path below the ratings' folder, with / and no ..")
    return text


def _all_marks(criteria: dict[str, int]) -> dict[str, int]:
    if set(criteria) != set(CRITERIA):
        raise ValueError(f"expected {', '.join(CRITERIA)}: whole numbers from 1 to 5")
    return criteria


Clip = Annotated[NotBlank, AfterValidator(_below)]  # path relative to the JSONL's folder, with "/"
Sha256 = Annotated[str, AfterValidator(_sha256)]  # of the clip's file
Choice = Literal["a", "b", "tie"]  # the better one
Score = Annotated[float, Interval(ge=SCORES[0], le=SCORES[1])]
Criteria = Annotated[dict[str, Annotated[int, Interval(ge=1, le=5)]], AfterValidator(_all_marks)]


def _new_id() -> str:
    return uuid.uuid4().hex


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@raises(PreferencesError)
@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Common:
    """What every record has. Raises PreferencesError for a field that is not what it should be."""

    kind: ClassVar[str]

    rater: NotBlank  # whoever judged; any text that is not empty
    category: Text  # of the clip; clips of one category only are ever compared ("" where clips have none)
    id: Annotated[str, AfterValidator(_id)] = field(default_factory=_new_id)  # uuid4, 32 hexadecimal digits
    time: Annotated[str, AfterValidator(_utc)] = field(default_factory=_now)  # ISO 8601, in UTC


@raises(PreferencesError)
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rating(_Common):
    """One person's opinion of one clip: a score, the paper's three criteria, or both."""

    kind: ClassVar[str] = "rating"

    clip: Clip
    sha256: Sha256
    prompt: Text
    seed: int | None = None  # None: the clip was not made by a model
    lineage: dict[Text, Text] = field(default_factory=dict)  # of the model that made the clip
    score: Score | None = None  # 0..10, decimals allowed; higher is better
    criteria: Criteria | None = None

    def __post_init__(self) -> None:
        if self.score is None and self.criteria is None:
            raise PreferencesError("score and criteria are both missing; a skipped clip is not recorded")


@raises(PreferencesError)
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Comparison(_Common):
    """One person's choice between two clips shown side by side."""

    kind: ClassVar[str] = "comparison"

    clip_a: Clip
    sha256_a: Sha256
    clip_b: Clip
    sha256_b: Sha256
    answer: Choice
    prompt: Text = ""  # that both were made for; empty where they differ

    def __post_init__(self) -> None:
        if self.clip_a == self.clip_b:
            raise PreferencesError(f"clip_a and clip_b are both {self.clip_a!r}; expected two clips")


@raises(PreferencesError)
@dataclass(frozen=True, kw_only=True, config=STRICT)
class SegmentComparison(Comparison):
    """A choice between two clips of one first frame that is made for each stretch of frames too."""

    kind: ClassVar[str] = "segment_comparison"

    frames: Annotated[int, Ge(2)]  # of either clip, the first included, which is given and not judged
    segment_frames: Annotated[int, Ge(1)]  # of each segment, from frame 1 on; the last has what is left
    segments: list[Choice]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.segments) != (count := len(segments_of(self.frames, self.segment_frames))):
            raise PreferencesError(
                f"segments: got {len(self.segments)}, expected {count}: {self.frames} frames but the first, "
                f"in segments of {self.segment_frames}"
            )


def segments_of(frames: int, segment_frames: int) -> list[range]:
    """The frames of each segment of a clip, from frame 1 on; the last has what is left."""
    starts = range(1, frames, segment_frames)
    return [range(start, min(start + segment_frames, frames)) for start in starts]


def comparable(category: str, other: str) -> bool:
    """Whether clips of these categories are compared; "" is of any."""
    return "" in (category, other) or category == other


@raises(PreferencesError)
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Retraction(_Common):
    """An undo: the record `of` the same rater no longer counts."""

    kind: ClassVar[str] = "retraction"

    of: NotBlank  # id of an earlier rating or comparison


Record = Rating | Comparison | Retraction
Opinion = Rating | Comparison
_KINDS: dict[str, type] = {
    record.kind: record for record in (Rating, Comparison, Retraction, SegmentComparison)
}


def check_score(score: Any) -> float:
    """`score` as a float. Raises PreferencesError unless it is a number from 0 to 10."""
    return check("score", score, Score, PreferencesError)


# The file


def append(path: Path, record: Record) -> None:
    """Add one record; when this returns it is on the disk. The file is made if it is not there.

    Raises PreferencesError when it cannot be written; the file is then as it was.
    """
    fields = {"kind": record.kind, **dataclasses.asdict(record)}
    line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    try:
        with _locked(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as file:
            size = os.fstat(file).st_size
            # A torn last line (a power cut) must stay a line of its own, not swallow this one.
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            _write_whole(file, b"\n" + line if torn else line, size)
            os.fsync(file)
        if size == 0:
            sync_folder(path.parent)
    except OSError as error:
        raise PreferencesError(f"{path}: the record was not saved: {error}") from error


def _write_whole(file: int, data: bytes, size: int) -> None:
    """All of `data` at the end of a file of `size` bytes, or OSError and nothing of it."""
    try:
        if os.write(file, data) != len(data):
            raise OSError("the disk is full")
    except OSError:
        os.ftruncate(file, size)
        raise


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    file = os.open(path, flags, 0o644)
    try:
        fcntl.flock(file, lock)  # closing the file releases it, as does the end of the process
        yield file
    finally:
        os.close(file)


def read_records(path: Path) -> list[Opinion]:
    """Ratings and comparisons in the order they were made, without those that were retracted.

    A file that is not there holds none. Raises PreferencesError naming the number of every malformed line and
    what is wrong with it.
    """
    records: dict[str, Opinion] = {}
    retracted: set[str] = set()
    problems: list[str] = []
    for number, line in enumerate(_read(path).split(b"\n"), start=1):  # not splitlines: it splits at U+2028
        if not line.strip():
            continue
        try:
            _note(_parse(line), records, retracted)
        except PreferencesError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise PreferencesError(
            f"{path}: {len(problems)} malformed lines:\n  " + "\n  ".join(problems) + "\n"
            f"python -m judging.ratings repair --clips {path.parent} keeps the others"
        )
    return [record for record in records.values() if record.id not in retracted]


@dataclass(frozen=True)
class Repair:
    """What `repair` made of a file."""

    kept: int
    """Lines that were whole."""
    filled: int
    """Lines that got a category."""
    dropped: list[str]
    """The others: number, and what is wrong."""
    before: Path
    """The file as it was."""


def repair(path: Path, category: str | None = None) -> Repair:
    """Leave in `path` the lines that can be read; `category` goes into those where it is missing or empty.

    The file as it was is kept beside it first. Raises PreferencesError when that cannot be written, and for a
    file that is not there; `path` is then as it was.
    """
    lines, dropped, filled = [], [], 0
    records: dict[str, Opinion] = {}
    try:
        with _locked(path, os.O_RDWR, fcntl.LOCK_EX) as file, open(file, "r+b", closefd=False) as stream:
            data = stream.read()
            for number, line in enumerate(data.split(b"\n"), start=1):
                if not line.strip():
                    continue
                whole = line if category is None else _with_category(line, category)
                try:
                    _note(_parse(whole), records, set())
                except PreferencesError as error:
                    dropped.append(f"line {number}: {error}")
                    continue
                filled += whole != line
                lines.append(whole + b"\n")
            before = path.with_name(f"{path.name}.{hashlib.sha256(data).hexdigest()[:12]}.before")
            write_bytes(before, data)
            stream.seek(0)
            stream.write(b"".join(lines))
            stream.truncate()
            stream.flush()
            os.fsync(file)
    except OSError as error:
        raise PreferencesError(f"{path} cannot be repaired: {error}") from error
    return Repair(len(lines) - filled, filled, dropped, before)


def _with_category(line: bytes, category: str) -> bytes:
    """`line` with the category, if it is an object that has none."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(fields, dict) or fields.get("category"):
        return line
    return json.dumps(fields | {"category": category}, ensure_ascii=False).encode()


def _note(record: Record, records: dict[str, Opinion], retracted: set[str]) -> None:
    """Add a record to the earlier ones. Raises PreferencesError for one that contradicts them."""
    if record.id in records:
        raise PreferencesError(f"id {record.id} is that of an earlier line")
    if isinstance(record, Retraction):
        retracted.add(_retracted(record, records))
    else:
        records[record.id] = record


def _parse(line: bytes) -> Record:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PreferencesError(f"not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise PreferencesError("not an object")
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise PreferencesError(f"kind: got {kind!r}, allowed: {', '.join(_KINDS)}")
    names = [part.name for part in dataclasses.fields(_KINDS[kind])]
    for problem, wrong in (("unknown", set(fields) - set(names)), ("missing", set(names) - set(fields))):
        if wrong:
            raise PreferencesError(f"{problem} field: {', '.join(sorted(wrong))}")
    return _KINDS[kind](**fields)


def _retracted(record: Retraction, earlier: Mapping[str, Opinion]) -> str:
    if record.of not in earlier:
        raise PreferencesError(f"of: got {record.of!r}, which is no rating or comparison of an earlier line")
    if earlier[record.of].rater != record.rater:
        raise PreferencesError(f"rater {record.rater!r} retracts a record of {earlier[record.of].rater!r}")
    return record.of


def _read(path: Path) -> bytes:
    try:
        # The shared lock waits for a writer that is in the middle of a line.
        with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as file, open(file, "rb", closefd=False) as stream:
            return stream.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise PreferencesError(f"{path}: cannot be read: {error}") from error


def ratings_hash(path: Path) -> str:
    """sha256 of the file as it is now, as `sha256sum` prints it: lineage of what is trained on it."""
    return hashlib.sha256(_read(path)).hexdigest()


# HuViDPO's own format


def read_huvidpo_json(path: Path) -> list[tuple[str, float]]:
    """(video, score 0..10) pairs of a JSON file `[{"video": ..., "score": ...}, ...]`, as HuViDPO has them.

    Raises PreferencesError naming every malformed entry.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PreferencesError(f"{path}: cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise PreferencesError(f'{path}: expected a list like [{{"video": "0001.mp4", "score": 7.5}}]')
    pairs, problems = [], []
    for number, entry in enumerate(entries, start=1):
        try:
            if not isinstance(entry, dict) or set(entry) != {"video", "score"}:
                raise PreferencesError('expected {"video": ..., "score": ...}')
            video = check("video", entry["video"], NotBlank, PreferencesError)
            pairs.append((video, check_score(entry["score"])))
        except PreferencesError as error:
            problems.append(f"entry {number}: {error}")
    if problems:
        raise PreferencesError(f"{path}: {len(problems)} malformed entries:\n  " + "\n  ".join(problems))
    return pairs


def huvidpo_json(scores: Mapping[str, float]) -> str:
    """video -> score 0..10 as `[{"video": ..., "score": ...}, ...]`. Raises PreferencesError."""
    entries = [{"video": video, "score": check_score(score)} for video, score in scores.items()]
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def write_huvidpo_json(path: Path, scores: Mapping[str, float]) -> None:
    """`huvidpo_json` into a file."""
    write_text(path, huvidpo_json(scores))
