"""POST /feedback: what people think of clips that the service made, as records that training reads.

    {"video": "video_...", "score": 8.5, "rater": "ann"}                       0 to 10
    {"videos": ["video_...", "video_..."], "better": "a", "rater": "ann"}      "a", "b" or "tie"

The clips are copied into a folder of their own, since those of jobs expire: `captions.jsonl`, `ratings.jsonl`
and the videos, as preferences/clips.py and preferences/records.py have them.
"""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from huvidpo.catalog import Catalog
from huvidpo.errors import InvalidRequest
from huvidpo.files import write_bytes
from preferences.clips import CAPTIONS_FILE, ClipEntry, read_clips, write_clips
from preferences.records import RATINGS_FILE, SCORES, Comparison, Opinion, Rating, append
from service.job_rows import Job
from service.jobs import JobEngine
from service.schemas import Rater, parse

Id = Annotated[str, Field(max_length=64)]


class FeedbackRequest(BaseModel):
    """The body: a score of one clip, or a choice between two."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    video: Id | None = None
    score: Annotated[float, Field(ge=SCORES[0], le=SCORES[1])] | None = None
    videos: Annotated[list[Id], Field(min_length=2, max_length=2)] | None = None
    better: Literal["a", "b", "tie"] | None = None
    rater: Rater | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "FeedbackRequest":
        given = {name for name in ("video", "score", "videos", "better") if getattr(self, name) is not None}
        if given not in ({"video", "score"}, {"videos", "better"}):
            raise PydanticCustomError("fields", "send video and score, or videos and better")
        return self


async def answer_feedback(engine: JobEngine, request: Request, owner: str) -> Response:
    """Saves one opinion; it is on the disk when this returns.

    Raises InvalidRequest, NotFound (for clips that are not there yet or any more, or are another key's).
    """
    asked = parse(FeedbackRequest, await request.body())
    ids = asked.videos or [asked.video or ""]
    jobs = [await engine.get(id, owner) for id in ids]
    clips = [(job, await engine.read_clip(job)) for job in jobs]
    folder = Folder(engine.feedback, engine.core.catalog)
    record = await run_in_threadpool(folder.save, clips, asked.score, asked.better, _rater(asked, owner))
    return JSONResponse({"object": "feedback", "id": record.id, "rater": record.rater, "videos": ids})


def _rater(asked: FeedbackRequest, owner: str) -> str:
    """A key speaks for its own users: two keys' "ann" are two people."""
    if asked.rater is None and not owner:
        raise InvalidRequest("rater: missing; say who judges, a nickname will do", "rater")
    return "/".join(name for name in (owner, asked.rater) if name)


class Folder:
    """Clips and what was said of them. Any number of threads and processes may add to one folder."""

    def __init__(self, path: Path, catalog: Catalog):
        self.path, self.catalog = path, catalog

    def save(
        self, clips: list[tuple[Job, bytes]], score: float | None, better: str | None, rater: str
    ) -> Opinion:
        """Keeps the clips (one with a score, two with what is better), then the opinion.

        Raises InvalidRequest for two clips that cannot be compared, PreferencesError or ClipFolderError when
        the folder cannot be written or read.
        """
        record = _opinion(clips, score, better, rater)
        with self._locked():
            self._keep(clips)
        append(self.path / RATINGS_FILE, record)
        return record

    def _keep(self, clips: list[tuple[Job, bytes]]) -> None:
        entries = read_clips(self.path) if (self.path / CAPTIONS_FILE).exists() else []
        known = {entry.video for entry in entries}
        new = [(job, data) for job, data in clips if _name(job) not in known]
        for job, data in new:
            write_bytes(self.path / _name(job), data)
        if new:
            write_clips(self.path, entries + [self._entry(job) for job, _ in new])

    def _entry(self, job: Job) -> ClipEntry:
        asked = job.request
        return ClipEntry(
            video=_name(job),
            caption=self.catalog.style(asked["style"]).apply(asked["prompt"]),
            prompt=asked["prompt"],
            style=asked["style"],
            category=asked["category"],
            seed=asked["seed"],
            model=(job.report or {}).get("model", ""),
            lineage=_lineage(job),
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file releases it
            yield


def _opinion(clips: list[tuple[Job, bytes]], score: float | None, better: str | None, rater: str) -> Opinion:
    (a, data_a), (b, data_b) = clips[0], clips[-1]
    asked = a.request
    if score is not None:
        return Rating(
            rater=rater, category=asked["category"], clip=_name(a), sha256=_sha256(data_a),
            prompt=asked["prompt"], seed=asked["seed"], lineage=_lineage(a), score=score,
        )  # fmt: skip
    if a.id == b.id:
        raise InvalidRequest(f"videos: got {a.id} twice, expected two clips", "videos")
    if asked["category"] != b.request["category"]:
        raise InvalidRequest(
            f"videos: a {asked['category']} and a {b.request['category']}; "
            "clips of one category are compared",
            "videos",
        )
    return Comparison(
        rater=rater, category=asked["category"], clip_a=_name(a), sha256_a=_sha256(data_a), clip_b=_name(b),
        sha256_b=_sha256(data_b), answer=better,  # type: ignore[arg-type]
        prompt=asked["prompt"] if asked["prompt"] == b.request["prompt"] else "",
    )  # fmt: skip


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _name(job: Job) -> str:
    return f"{job.id}.{job.request['format']}"


def _lineage(job: Job) -> dict[str, str]:
    """Of the weights that made the clip, as `judging.candidates` has it: without the recipes' long texts."""
    weights = (job.report or {}).get("weights")
    if not weights:
        return {"stage": "base"}
    metadata = {name: value for name, value in weights["lineage"].items() if not name.endswith("recipe")}
    strength = job.request.get("preference_strength", 1.0)
    if strength != 1:
        metadata["preference_strength"] = f"{strength:g}"
    return {"weights": weights["file"], "sha256": weights["sha256"], **metadata}
