"""The rows of jobs and the leases of gateways, in SQLite or Postgres. What a door says of a job is its row.

Statuses go queued -> in_progress -> completed or failed, and never back; a cancelled job is a failed one with
the error code "cancelled". All changes are single statements with the status they expect, so two processes
that disagree cannot both win.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError

from service.errors import Conflict, NotFound, Unavailable
from service.order import Priority

ACTIVE = ("queued", "in_progress")
FIRST_TURN = 1000  # of an idle service: there is room before it
TURNS_OF_PRIORITY = {"high": -20, "normal": 0, "low": 20}  # jobs of its owner that it comes before, or after
_METADATA = sa.MetaData()
_JSON = sa.Text  # written and read here, so that both databases hold the same
JOBS = sa.Table(
    "huvidpo_jobs",
    _METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(100), nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("request", _JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("completed_at", sa.Double),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer),
    sa.Column("expected_at", sa.Double),
    sa.Column("error", _JSON),
    sa.Column("report", _JSON),
    sa.Column("first_frame", sa.String(200)),
    sa.Column("clip", sa.String(200)),
    sa.Column("source", sa.String(64)),
    sa.Column("executor", sa.String(64)),
    sa.Column("idempotency_key", sa.String(300)),
    sa.Column("turn", sa.Integer),  # of the jobs that wait, the least goes first
    sa.Column("webhook", sa.String(2000)),
    sa.Column("told", sa.Boolean),
    sa.Column("warnings", _JSON),
    sa.Column("prompt_verdict", _JSON),
    sa.Column("trace", sa.String(64)),
    sa.Column("stage", sa.String(20)),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("huvidpo_jobs_by_time", "owner", "created_at", "id"),
    sa.Index("huvidpo_jobs_by_status", "status", "expires_at"),
)
LEASES = sa.Table(
    "huvidpo_leases",
    _METADATA,
    sa.Column("executor", sa.String(64), primary_key=True),
    sa.Column("expires_at", sa.Double, nullable=False),  # the database's clock
)
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One row. Times are seconds since 1970; `done` of `total` denoising steps of both stages."""

    id: str
    owner: str  # name of the API key that made it; "" without keys
    status: str  # queued, in_progress, completed or failed
    request: dict[str, Any]  # fields of GenerateRequest, everything decided, without the first frame
    created_at: float
    started_at: float | None
    completed_at: float | None
    expires_at: float
    done: int
    total: int
    position: int | None  # requests before it in a runner's queue; None while it does not wait there
    expected_at: float | None  # when the clip should be there, where enough were made to tell
    error: dict[str, Any] | None  # as errors.to_dict makes it
    report: dict[str, Any] | None  # of the clip and its making, as jobs.py writes it
    first_frame: str | None  # key in the store
    clip: str | None  # key in the store
    source: str | None  # the job this one is a remix of
    webhook: str | None = None  # address that is told of the end
    turn: int = FIRST_TURN  # of the jobs that wait, the least goes first
    warnings: list[str] | None = None  # sentences for the caller; None: none, or made before there were any
    prompt_verdict: dict[str, Any] | None = None  # as policy.Verdict.told makes it; None: there was no policy
    trace: str | None = None  # traceparent of the request that made it
    stage: str | None = None  # first_frame or video, while its device works on the job

    @property
    def ended(self) -> bool:
        return self.status not in ACTIVE

    @property
    def progress(self) -> int:
        """Per cent, 0..100; 100 only once the clip is there."""
        return 100 if self.status == "completed" else min(99, 100 * self.done // max(self.total, 1))


class Rows:
    """Raises Unavailable from every method while the database cannot be reached."""

    def __init__(self, url: str):
        self._engine = _engine(url)
        postgres = self._engine.dialect.name == "postgresql"
        now = "extract(epoch from clock_timestamp())" if postgres else _SQLITE_NOW
        self._now: sa.ColumnElement[float] = sa.literal_column(now, sa.Double)

    async def prepare(self) -> None:
        """Makes the tables that are missing, and the columns of tables that an older version made."""
        await self._do(_prepare)

    def close(self) -> None:
        self._engine.dispose()

    async def add(self, job: Job, idempotency_key: str | None, fingerprint: str) -> Job:
        """The new row, or the one that the same key and fingerprint made before. Raises Conflict."""
        row = {f.name: getattr(job, f.name) for f in fields(Job)}
        row |= {name: json.dumps(row[name]) if row[name] is not None else None for name in _JSON_FIELDS}
        row |= {"idempotency_key": idempotency_key, "fingerprint": fingerprint}
        try:
            await self._do(lambda db: db.execute(sa.insert(JOBS).values(row)))
            return job
        except IntegrityError:
            made = await self.made(job.owner, idempotency_key, fingerprint)
        if made is None:  # deleted meanwhile
            raise Conflict(_USED)
        return made

    async def made(self, owner: str, idempotency_key: str | None, fingerprint: str) -> Job | None:
        """The job that the same key and fingerprint made before. Raises Conflict for another fingerprint."""
        if idempotency_key is None:
            return None
        same = (JOBS.c.owner == owner) & (JOBS.c.idempotency_key == idempotency_key)
        row = await self._do(lambda db: db.execute(sa.select(JOBS).where(same)).first())
        if row is not None and row.fingerprint != fingerprint:
            raise Conflict(_USED)
        return None if row is None else _job(row)

    async def get(self, id: str, owner: str | None = None) -> Job:
        """Raises NotFound, also for a job of another owner."""
        where = JOBS.c.id == id
        if owner is not None:
            where &= JOBS.c.owner == owner
        row = await self._do(lambda db: db.execute(sa.select(JOBS).where(where)).first())
        if row is None:
            raise NotFound(f"there is no job {id[:64]!r}: it was deleted, has expired or never was")
        return _job(row)

    async def begins_with(self, start: str, owner: str) -> Job | None:
        """The owner's job whose id begins so. `start` is ours, not a caller's: it holds no wildcards."""
        query = sa.select(JOBS).where(JOBS.c.id.startswith(start), JOBS.c.owner == owner).limit(1)
        row = await self._do(lambda db: db.execute(query).first())
        return None if row is None else _job(row)

    async def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> list[Job]:
        """Up to `limit` jobs of an owner by creation time, those that follow the job `after`."""
        where = JOBS.c.owner == owner
        if after is not None:
            last = await self.get(after, owner)
            here, there = sa.tuple_(JOBS.c.created_at, JOBS.c.id), sa.tuple_(last.created_at, last.id)
            where &= here < there if newest_first else here > there
        order = [column.desc() if newest_first else column for column in (JOBS.c.created_at, JOBS.c.id)]
        query = sa.select(JOBS).where(where).order_by(*order).limit(limit)
        return [_job(row) for row in await self._do(lambda db: db.execute(query).all())]

    async def count(self, status: str) -> int:
        query = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.status == status)
        return await self._do(lambda db: db.execute(query).scalar_one())

    async def next_turn(self, owner: str, priority: Priority) -> int:
        """For a new job of `owner`: after its own that have not ended, but level with the first that waits.
        So each owner's next job comes before anybody's second.
        """
        queued = sa.select(sa.func.min(JOBS.c.turn)).where(JOBS.c.status == "queued")
        running = sa.select(sa.func.max(JOBS.c.turn)).where(JOBS.c.status == "in_progress")
        own = sa.select(sa.func.max(JOBS.c.turn)).where(JOBS.c.status.in_(ACTIVE), JOBS.c.owner == owner)

        def look(db: sa.Connection) -> int:
            first = db.execute(queued).scalar() or db.execute(running).scalar() or FIRST_TURN
            return max(first, (db.execute(own).scalar() or 0) + 1)

        return max(1, await self._do(look) + TURNS_OF_PRIORITY[priority])

    async def active(self, owner: str) -> int:
        """How many jobs of an owner have not ended."""
        where = (JOBS.c.owner == owner, JOBS.c.status.in_(ACTIVE))
        query = sa.select(sa.func.count()).select_from(JOBS).where(*where)
        return await self._do(lambda db: db.execute(query).scalar_one())

    async def census(self) -> tuple[dict[str, int], float]:
        """Jobs that have not ended, by status, and the seconds that the oldest queued one has waited."""
        first = sa.func.min(JOBS.c.created_at)
        query = sa.select(JOBS.c.status, sa.func.count(), self._now - first).where(JOBS.c.status.in_(ACTIVE))
        found = await self._do(lambda db: db.execute(query.group_by(JOBS.c.status)).all())
        ages = {status: max(0.0, float(age)) for status, _, age in found}
        return dict.fromkeys(ACTIVE, 0) | {status: n for status, n, _ in found}, ages.get("queued", 0.0)

    async def holder(self, id: str) -> str | None:
        """The executor that works on the job, or did last."""
        query = sa.select(JOBS.c.executor).where(JOBS.c.id == id)
        return await self._do(lambda db: db.execute(query).scalar())

    async def claim(self, id: str, executor: str) -> bool:
        """This executor works on the job from now on; an earlier one's `step` is False. False: nobody wants
        it any more."""
        started = sa.func.coalesce(JOBS.c.started_at, self._now)
        values = {"status": "in_progress", "executor": executor, "started_at": started}
        return await self._update(_active(id), values)

    async def step(self, id: str, executor: str, stage: str, done: int) -> bool:
        """Notes that the stage's device is at the job, and progress, which only grows: what is done again
        after a takeover counts once. False when the job was cancelled or deleted, or is another executor's.
        """
        furthest = sa.case((JOBS.c.done > done, JOBS.c.done), else_=done)
        return await self._update(_held(id, executor), {"stage": stage, "done": furthest, "position": None})

    async def waits(self, id: str, executor: str, position: int, eta: float | None) -> bool:
        """Notes the place in a runner's queue, and the seconds until the clip; False as for `step`."""
        values = {"position": position, "expected_at": None if eta is None else self._now + eta}
        values |= {"stage": None}
        return await self._update(_held(id, executor), values)

    async def wanted(self, id: str, executor: str) -> bool:
        query = sa.select(JOBS.c.id).where(_held(id, executor))
        return await self._do(lambda db: db.execute(query).first()) is not None

    async def held(self, executor: str) -> list[str]:
        """Ids of the jobs that the executor works on."""
        where = (JOBS.c.executor == executor, JOBS.c.status == "in_progress")
        return await self._all(sa.select(JOBS.c.id).where(*where))

    async def set_first_frame(self, id: str, key: str, report: dict[str, Any]) -> bool:
        return await self._update(_active(id), {"first_frame": key, "report": json.dumps(report)})

    async def complete(self, id: str, clip: str, report: dict[str, Any], retention: float) -> bool:
        """False when the job is not wanted any more."""
        values = {"clip": clip, "report": json.dumps(report), "done": JOBS.c.total}
        return await self._end(id, "completed", retention, values)

    async def fail(self, id: str, error: dict[str, Any], retention: float) -> bool:
        """False when it had ended before."""
        return await self._end(id, "failed", retention, {"error": json.dumps(error)})

    async def _end(self, id: str, status: str, retention: float, values: dict[str, Any]) -> bool:
        times = {"completed_at": self._now, "expires_at": self._now + retention}
        over = {"status": status, "position": None, "stage": None}
        return await self._update(_active(id), values | times | over)

    async def delete(self, id: str) -> None:
        await self._do(lambda db: db.execute(sa.delete(JOBS).where(JOBS.c.id == id)))

    async def expired(self) -> list[str]:
        """Ids of ended jobs past their time."""
        query = sa.select(JOBS.c.id).where(JOBS.c.status.not_in(ACTIVE), JOBS.c.expires_at < self._now)
        return await self._all(query.limit(100))

    async def known(self, ids: list[str]) -> set[str]:
        """Those of the ids that have a row."""
        found: set[str] = set()
        for start in range(0, len(ids), 500):  # SQLite takes so many parameters
            query = sa.select(JOBS.c.id).where(JOBS.c.id.in_(ids[start : start + 500]))
            found |= set(await self._all(query))
        return found

    async def _all(self, query: Any) -> list[Any]:
        return list(await self._do(lambda db: db.execute(query).scalars().all()))

    async def untold(self) -> list[Job]:
        """Ended jobs whose webhook has not been handed to the queue."""
        where = (JOBS.c.webhook.is_not(None), JOBS.c.told.is_(None), JOBS.c.status.not_in(ACTIVE))
        query = sa.select(JOBS).where(*where).limit(100)
        return [_job(row) for row in await self._do(lambda db: db.execute(query).all())]

    async def set_told(self, id: str) -> None:
        await self._update(JOBS.c.id == id, {"told": True})

    async def waiting(self, seconds: float) -> list[tuple[str, int | None]]:
        """Ids and turns of jobs that have been queued for longer than `seconds`."""
        where = (JOBS.c.status == "queued", JOBS.c.created_at < self._now - seconds)
        query = sa.select(JOBS.c.id, JOBS.c.turn).where(*where)
        return [tuple(row) for row in await self._do(lambda db: db.execute(query).all())]

    async def in_progress(self) -> list[str]:
        return await self._all(sa.select(JOBS.c.id).where(JOBS.c.status == "in_progress"))

    async def renew_lease(self, executor: str, seconds: float) -> None:
        values = {"expires_at": self._now + seconds}

        def renew(db: sa.Connection) -> None:
            if not db.execute(sa.update(LEASES).where(LEASES.c.executor == executor).values(values)).rowcount:
                db.execute(sa.insert(LEASES).values(values | {"executor": executor}))

        await self._do(renew)

    async def drop_leases(self, executors: list[str]) -> None:
        await self._do(lambda db: db.execute(sa.delete(LEASES).where(LEASES.c.executor.in_(executors))))

    async def leases(self) -> dict[str, bool]:
        """Whether each known executor is alive."""
        query = sa.select(LEASES.c.executor, LEASES.c.expires_at > self._now)
        return {
            executor: bool(alive) for executor, alive in await self._do(lambda db: db.execute(query).all())
        }

    async def _update(self, where: sa.ColumnElement[bool], values: dict[str, Any]) -> bool:
        statement = sa.update(JOBS).where(where).values(values)
        return bool(await self._do(lambda db: db.execute(statement).rowcount))

    async def _do(self, work: Callable[[sa.Connection], T]) -> T:
        def in_transaction() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        try:
            return await asyncio.to_thread(in_transaction)
        except (OperationalError, InterfaceError) as error:
            raise Unavailable("the database of jobs cannot be reached, try again in a few seconds") from error


def _prepare(db: sa.Connection) -> None:
    if db.dialect.name == "postgresql":  # whose "create if it is not there" fails where two do it at once
        db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    _METADATA.create_all(db)
    there = {column["name"] for column in sa.inspect(db).get_columns(JOBS.name)}
    for column in JOBS.columns:
        if column.name not in there:
            kind = column.type.compile(db.dialect)
            db.execute(sa.text(f"ALTER TABLE {JOBS.name} ADD COLUMN {column.name} {kind}"))


_USED = "Idempotency-Key: it was used for another request, take a new one"
_LOCK = 0x48755669  # any number that no other program takes
_JSON_FIELDS = ("request", "error", "report", "warnings", "prompt_verdict")
_SQLITE_NOW = "((julianday('now') - 2440587.5) * 86400.0)"


def new_job(
    id: str,
    owner: str,
    request: dict[str, Any],
    total: int,
    source: str | None,
    webhook: str | None = None,
    **told: Any,
) -> Job:
    """A queued job, as it is before anything has happened to it. `told`: what the caller is told of it."""
    now = time.time()
    rest: dict[str, Any] = dict.fromkeys(
        ("started_at", "completed_at", "position", "expected_at", "error", "report", "first_frame", "clip")
    )
    return Job(
        id=id, owner=owner, status="queued", request=request, created_at=now, expires_at=now, done=0,
        total=total, source=source, webhook=webhook, **rest, **told,
    )  # fmt: skip


def _engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.drivername.startswith("postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
        return sa.create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": 5})
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": 10})

    @sa.event.listens_for(engine, "connect")
    def shared_between_processes(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine


def _active(id: str) -> sa.ColumnElement[bool]:
    return (JOBS.c.id == id) & JOBS.c.status.in_(ACTIVE)


def _held(id: str, executor: str) -> sa.ColumnElement[bool]:
    return (JOBS.c.id == id) & (JOBS.c.status == "in_progress") & (JOBS.c.executor == executor)


def _job(row: Any) -> Job:
    values = {f.name: getattr(row, f.name) for f in fields(Job)}
    values |= {name: json.loads(values[name]) for name in _JSON_FIELDS if values[name] is not None}
    return Job(**values)
