"""Jobs that survive: the two stages of the core as a durable workflow, behind DBOS 3.4.0.

A gateway that dies leaves its jobs to the others, or to itself after a restart: a finished first frame is not
drawn again. DBOS restarts only what its own executor id left behind, and with the default id a second process
would re-run what a first one is running. So every start of a gateway has an id of its own and a lease on it,
by the database's clock; every gateway hands the jobs of ids without a lease back to the queue.
"""

import asyncio
import hashlib
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dbos import DBOS, SetEnqueueOptions, SetWorkflowID

from huvidpo.errors import Cancelled, InvalidRequest
from service import metrics, tracing, webhooks
from service.backlog import Backlog
from service.errors import INTERNAL, NotFound, QueueFull, Unavailable, row_of, to_dict
from service.generation import LEAVING, Begun, Drawn, Finished, Generation, Plan, Progress, Queued
from service.job_rows import FIRST_TURN, Job, Rows, new_job
from service.keys import Keys
from service.lineage import weights_of
from service.request_id import CALLER, REQUEST_ID, TRACE_PARENT
from service.schemas import GenerateRequest
from service.settings import Settings
from service.store import open_store

logger = logging.getLogger(__name__)
QUEUE, WEBHOOKS = "clips", "webhooks"
MAX_TELLING = 100  # webhooks one gateway is at, most of them waiting for their next try
APPLICATION, VERSION = "huvidpo", "1"  # the version changes only when the workflow's steps do
POLL_SECONDS = 0.1  # of the queue
SWEEP_SECONDS = 1.0  # between two looks for expired and abandoned jobs
ORPHANS_SECONDS = 3600.0  # between two looks for files that belong to no job
LOOK_SECONDS = 0.08  # between two looks at whether what runs here is still wanted: a cancel waits for one
RETRY_SECONDS = 1.0  # between two tries at what is away
ENQUEUE_SECONDS = 5.0  # DBOS waits for its database for ever, a caller does not
WATCH_SECONDS = 0.2  # between two looks at a job that somebody watches
FORGOTTEN_SECONDS = 10.0  # a row so long in the queue may have lost its workflow: it is enqueued again
GIVEN_UP = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")  # DBOS's statuses
MAX_PAGE = 100  # jobs in one answer
T = TypeVar("T")


class _Unwanted(Exception):
    """The job was cancelled or deleted, or another gateway has it: there is nothing to say to anybody."""


@dataclass(frozen=True)
class Page:
    jobs: list[Job]
    has_more: bool


class JobEngine:
    """One per process: DBOS keeps its state in module globals. `start` and `stop` on the server's loop."""

    def __init__(self, core: Generation, settings: Settings, keys: Keys | None = None):
        self.core, self.settings, self.keys = core, settings, keys or Keys("")
        self._adding = asyncio.Lock()  # for owners whose jobs are counted
        folder = Path(settings.data).expanduser()
        self.store = open_store(settings.store_url, folder / "clips")
        self.feedback = folder / "feedback"  # clips that people judged, and what they said
        self._backlog = Backlog(self.feedback, core.catalog, settings.model)
        self.rows = Rows(settings.database_url or f"sqlite:///{folder}/jobs.sqlite")
        self._system_url = settings.database_url or f"sqlite:///{folder}/workflows.sqlite"
        self.executor = uuid.uuid4().hex
        self._running: set[asyncio.Task[Any]] = set()
        self._stages: dict[str, asyncio.Task[Any]] = {}  # job -> what reads from its runner
        self._background: list[asyncio.Task[None]] = []
        self._trust_leases_at = 0.0  # time.monotonic

    async def start(self) -> None:
        await self.rows.prepare()
        await self.rows.renew_lease(self.executor, self.settings.lease_seconds)
        self._workflow, self._tell = self._register(), self._register_webhook()
        DBOS(
            config={
                "name": APPLICATION,
                "application_version": VERSION,
                "executor_id": self.executor,
                "system_database_url": self._system_url,
                "log_level": "WARNING",
            }
        )
        DBOS.launch()
        await DBOS.register_queue_async(
            QUEUE, worker_concurrency=self.settings.job_concurrency, polling_interval_sec=POLL_SECONDS
        )
        await DBOS.register_queue_async(
            WEBHOOKS, worker_concurrency=MAX_TELLING, polling_interval_sec=SWEEP_SECONDS
        )
        forever = (
            self._renew_forever(),
            self._sweep_forever(),
            self._tidy_forever(),
            self._drop_forever(),
        )
        self._background = [asyncio.create_task(task) for task in forever]

    async def stop(self) -> None:
        """What runs here goes back to the queue, for another gateway or the next start of this one."""
        tasks = [*self._background, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(DBOS.destroy)
        # DBOS had put its own threads in the place of the loop's, and has ended them
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        with suppress(Unavailable):
            await self.rows.drop_leases([self.executor])
        self.rows.close()

    async def create(
        self,
        request: GenerateRequest,
        owner: str = "",
        idempotency_key: str | None = None,
        source: str | None = None,
        webhook: str | None = None,
    ) -> Job:
        """A queued job; with an idempotency key, the job that the same key and request made before.

        Raises InvalidRequest, Conflict (the key was used for another request), QueueFull, Unavailable.
        """
        if self.core.draining:
            raise Unavailable(LEAVING)
        if webhook is not None:
            await webhooks.check(webhook, self.settings)
        sent = request.model_dump_json() + (webhook or "")
        fingerprint = hashlib.sha256(sent.encode()).hexdigest()
        plan = self.core.admit(request)
        if made := await self.rows.made(owner, idempotency_key, fingerprint):
            return made  # what an address holds now, if anything, is another matter
        if request.image_url is not None:
            await self._check_room(owner)  # before it is fetched, and once more when it is there
        frame = await self.core.frame_of(request, plan)
        options = {name: getattr(plan.clip.options, name) for name in ("steps", "guidance", "frames", "fps")}
        options |= {name: getattr(plan.clip, name) for name in ("seed", "style", "preference_strength")}
        options["first_frame"] = None
        decided = request.model_copy(update=options)
        asked, id = decided.model_dump(exclude={"image_url"}), f"video_{uuid.uuid4().hex}"
        told = {"warnings": list(plan.warnings), "prompt_verdict": plan.verdict and plan.verdict.told()}
        job = new_job(id, owner, asked, _steps(plan, frame), source, webhook, **told)
        try:
            async with self._adding if self.keys.limits_places(owner) else nullcontext():
                if await self.rows.made(owner, idempotency_key, fingerprint) is None:
                    await self._check_room(owner)
                if frame is not None:
                    await asyncio.to_thread(self.store.put, _frame_key(job.id), frame)
                turn = await self.rows.next_turn(owner, plan.priority)
                job = replace(job, turn=turn, trace=TRACE_PARENT.get() or None)
                stored = await self.rows.add(job, idempotency_key, fingerprint)
        except BaseException:
            await self._discard(job.id)
            raise
        if stored.id != job.id:
            await self._discard(job.id)
            return stored
        await self._enqueue(job.id, job.turn)
        return job

    async def _discard(self, id: str) -> None:
        """Files without a row. What a store that is away keeps of them goes with the orphans."""
        with suppress(Unavailable):
            await asyncio.to_thread(self.store.delete, id)

    async def _check_room(self, owner: str) -> None:
        """Raises QueueFull when too many jobs wait, or the owner has as many as it may."""
        waiting = await self.rows.count("queued")
        if waiting >= self.settings.max_queued_jobs:
            raise QueueFull(f"{waiting} jobs are waiting, try again in a minute", 60)
        if self.keys.limits_places(owner):
            self.keys.check_place(owner, await self.rows.active(owner))

    async def get(self, id: str, owner: str = "") -> Job:
        """Raises NotFound, also for a job of another owner."""
        return await self.rows.get(id, owner)

    async def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> "Page":
        """Up to `limit` (1..100) jobs, those that follow `after`. Raises InvalidRequest, NotFound."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit: got {limit}, expected 1 to {MAX_PAGE}", "limit")
        jobs = await self.rows.page(owner, after, limit + 1, newest_first)
        return Page(jobs[:limit], len(jobs) > limit)

    def clip(self, job: Job) -> str:
        """The key of a completed job's file. Raises NotFound."""
        if job.status != "completed" or job.clip is None:
            raise NotFound(f"the video has no content: its status is {job.status}")
        return job.clip

    def first_frame(self, job: Job) -> str:
        """The key of the PNG, which is there once it is drawn."""
        return _frame_key(job.id)

    async def read_clip(self, job: Job) -> bytes:
        """The file of a completed job. Raises NotFound, Unavailable."""
        return await asyncio.to_thread(self.store.read, self.clip(job))

    async def clip_sha256(self, job: Job) -> str:
        """Of the file of a completed job. Raises NotFound, Unavailable."""
        if known := (job.report or {}).get("sha256"):
            return known
        data = await self.read_clip(job)  # the row is of an earlier release
        return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())

    async def cancel(self, id: str, owner: str = "") -> Job:
        """The job, which ends within one denoising step if it had not ended. Raises NotFound."""
        await self.rows.get(id, owner)
        if await self.rows.fail(id, to_dict(Cancelled("the job was cancelled")), self.settings.job_retention):
            metrics.JOBS.labels("cancelled").inc()
            self._drop({id})
            await DBOS.cancel_workflow_async(id)
        return await self.rows.get(id, owner)

    async def delete(self, id: str, owner: str = "") -> None:
        """The job is cancelled if it had not ended; row and files go. Raises NotFound."""
        await self.cancel(id, owner)
        await self._forget(id)

    async def watch(self, id: str, owner: str = "") -> AsyncIterator[Job]:
        """The job as it is, then whenever it has changed, until it has ended. Raises NotFound, Unavailable:
        also when this gateway leaves, another will know.
        """
        job = await self.rows.get(id, owner)
        yield job
        while not job.ended:
            if self.core.draining:
                raise Unavailable(LEAVING)
            await asyncio.sleep(WATCH_SECONDS)
            now = await self.rows.get(id, owner)
            if now != job:
                job = now
                yield job

    async def _enqueue(self, id: str, turn: int) -> None:
        """A second time changes nothing. If it fails now, the sweeper does it later: the row is there."""
        try:
            async with asyncio.timeout(ENQUEUE_SECONDS):
                with SetWorkflowID(id), SetEnqueueOptions(priority=turn):
                    await DBOS.enqueue_workflow_async(QUEUE, self._workflow, id)
        except Exception:
            logger.exception("job %s could not be enqueued yet", id)

    async def _forget(self, id: str) -> None:
        await asyncio.to_thread(self.store.delete, id)
        await self.rows.delete(id)
        for workflow in (id, _telling(id)):
            await DBOS.delete_workflow_async(workflow)

    # The workflow. Steps return keys; what DBOS has recorded of a step is not run again.

    def _register(self) -> Callable[[str], Any]:
        @DBOS.step(name="first_frame")
        async def first_frame(id: str) -> str:
            return await self._here(self._draw(id))

        @DBOS.step(name="video")
        async def video(id: str, frame: str) -> str:
            return await self._here(self._animate(id, frame))

        @DBOS.step(name="fail")
        async def fail(id: str, problem: dict[str, Any]) -> None:
            if await _insist(lambda: self.rows.fail(id, problem, self.settings.job_retention)):
                metrics.JOBS.labels(problem["code"]).inc()

        @DBOS.workflow(name="clip")
        async def clip(id: str) -> None:
            try:
                await video(id, await first_frame(id))
            except _Unwanted:
                return
            except Exception as error:
                if row_of(error) is INTERNAL:
                    logger.exception("job %s failed", id)
                await fail(id, to_dict(error))

        return clip

    def _register_webhook(self) -> Callable[[str, str], Any]:
        @DBOS.step(name="deliver")
        async def deliver(url: str, body: str) -> int:
            return await self._here(webhooks.deliver(url, body, self.settings))

        @DBOS.workflow(name="webhook")
        async def webhook(url: str, body: str) -> None:
            for wait in (*webhooks.WAITS, None):
                try:
                    status = await deliver(url, body)
                except InvalidRequest as error:
                    logger.warning("%s", error)
                    break
                if 200 <= status < 300:
                    metrics.WEBHOOKS.labels("ok").inc()
                    return
                if status == webhooks.GONE or wait is None:
                    break
                await DBOS.sleep_async(wait)
            metrics.WEBHOOKS.labels("failed").inc()

        return webhook

    async def _here(self, step: Awaitable[T]) -> T:
        """The step as a task that `stop` cancels: DBOS then records nothing, and it runs again elsewhere."""
        task = asyncio.ensure_future(step)
        self._running.add(task)
        try:
            return await task
        finally:
            self._running.discard(task)

    async def _draw(self, id: str) -> str:
        key = _frame_key(id)
        job, taken_over = await self._claim(id)
        there = await self._stored(id, lambda: self.store.has(key))
        if there:  # uploaded, or drawn by one who died before saying so
            return key
        plan = self._plan(job, taken_over)
        with _traced(job, "first_frame", taken_over):
            drawn = await self._patiently(id, lambda: self._last(id, self.core.draw(plan), 0))
        await self._stored(id, lambda: self.store.put(key, drawn.png))
        report = _report(plan)
        await _insist(lambda: self.rows.set_first_frame(id, key, report))
        return key

    async def _animate(self, id: str, frame: str) -> str:
        job, taken_over = await self._claim(id)
        plan = self._plan(job, taken_over)
        png = await self._stored(id, lambda: self.store.read(frame))
        before = job.total - plan.clip.options.steps
        weights = await asyncio.to_thread(
            weights_of, self.core.catalog, self.settings.model, job.request["category"]
        )
        with _traced(job, "video", taken_over):
            clip = await self._patiently(id, lambda: self._last(id, self.core.animate(plan, png), before))
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(clip.data).hexdigest())
        key = f"{id}/{sha256[:16]}.{plan.format}"  # no other attempt writes other bytes to it
        await self._stored(id, lambda: self.store.put(key, clip.data))
        report = _report(plan, job.report) | {"model": clip.model, "media_type": clip.media_type}
        report["frames_verdict"] = clip.frames_verdict
        report |= {"bytes": len(clip.data), "sha256": sha256}
        report["weights"] = _that_ran(weights, plan.weights["video"])
        if not await _insist(lambda: self.rows.complete(id, key, report, self.settings.job_retention)):
            await self._clear_up(id)
            raise _Unwanted
        metrics.JOBS.labels("ok").inc()
        return key

    async def _clear_up(self, id: str) -> None:
        """Files written after the job was deleted go too; those of a job that ended otherwise stay."""
        try:
            await _insist(lambda: self.rows.get(id))
        except NotFound:
            await self._discard(id)

    async def _claim(self, id: str) -> tuple[Job, bool]:
        """The job, and whether it is taken over from another gateway."""
        before = await _insist(lambda: self.rows.holder(id))
        if not await _insist(lambda: self.rows.claim(id, self.executor)):
            raise _Unwanted
        try:
            job = await _insist(lambda: self.rows.get(id))
        except NotFound:
            raise _Unwanted from None
        return job, before not in (None, self.executor)

    def _plan(self, job: Job, taken_over: bool) -> Plan:
        """A gateway that takes the job over finds what a runner does for it by the job's id."""
        CALLER.set(self.keys.caller(job.owner))
        REQUEST_ID.set(job.id)
        plan = self.core.plan(GenerateRequest(**job.request))
        plan.id, plan.detach, plan.begun_elsewhere = job.id, True, taken_over
        return plan

    async def _patiently(self, id: str, stage: Callable[[], Awaitable[T]]) -> T:
        """A runner that is full or away is waited for, as long as a request may take; so is a full disk."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.request_timeout
        while True:
            try:
                return await stage()
            except (Unavailable, QueueFull):
                if loop.time() > end:
                    raise
            await asyncio.sleep(RETRY_SECONDS)
            if not await _insist(lambda: self.rows.wanted(id, self.executor)):
                raise _Unwanted

    async def _stored(self, id: str, call: Callable[[], T]) -> T:
        """A store that is away is waited for like a runner: the clip that was made is not lost at once."""
        return await self._patiently(id, lambda: asyncio.to_thread(call))

    async def _last(self, id: str, stage: AsyncGenerator[Any, None], before: int) -> Any:
        """The result of a stage; its steps are noted in the row. Raises _Unwanted as soon as that is so."""
        reading = self._stages[id] = asyncio.ensure_future(self._read(id, stage, before))
        try:
            await asyncio.wait({reading})
        finally:
            del self._stages[id]
            reading.cancel()
            await asyncio.wait({reading})
        result = None if reading.cancelled() else reading.result()
        if result is None:
            await self._let_go(id)
            raise _Unwanted
        return result

    async def _read(self, id: str, stage: AsyncGenerator[Any, None], before: int) -> Drawn | Finished | None:
        """None as soon as nobody wants the result here."""
        async with aclosing(stage) as events:
            async for event in events:
                if isinstance(event, Drawn | Finished):
                    return event
                if not await self._note(id, event, before):
                    return None
        raise RuntimeError("a stage ended without a result")

    async def _let_go(self, id: str) -> None:
        """Of what runs for a job that has ended; of one that another gateway has, that one finds it there."""
        with suppress(Unavailable):
            try:
                over = (await self.rows.get(id)).ended
            except NotFound:
                over = True
            if over:
                await self.core.withdraw(id)

    async def _note(self, id: str, event: Begun | Progress | Queued, before: int) -> bool:
        """Whether the job is still wanted here. A database that is away is no reason to stop."""
        try:
            if isinstance(event, Queued):
                return await self.rows.waits(id, self.executor, event.position, event.eta)
            step = event.step if isinstance(event, Progress) else 0
            return await self.rows.step(id, self.executor, event.stage, before + step)
        except Unavailable:
            return True

    def _drop(self, ids: Iterable[str]) -> None:
        """Nobody wants what is done for these jobs here."""
        for id in ids:
            if id in self._stages:
                self._stages[id].cancel()

    async def _drop_forever(self) -> None:
        """Between two steps too, and while jobs wait for a runner; one question for all of them."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not (running := set(self._stages)):
                continue
            try:
                self._drop(running - set(await self.rows.held(self.executor)))
            except Unavailable:
                pass  # no reason to stop
            except Exception:
                logger.exception("looking for jobs that are not wanted any more failed, it is tried again")

    # What every gateway does for all of them.

    async def _renew_forever(self) -> None:
        """Beside the sweep: DBOS may make that wait, and a lease must not run out meanwhile."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.rows.renew_lease(self.executor, self.settings.lease_seconds)
            except Unavailable as error:
                logger.warning("%s", error)
                # the others could not renew theirs either: they get the time to do it
                self._trust_leases_at = math.inf
                continue
            if self._trust_leases_at == math.inf:
                self._trust_leases_at = time.monotonic() + self.settings.lease_seconds

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self._sweep()
                await self._take_over()
            except Unavailable as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("looking after the jobs failed, it is tried again")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _count(self) -> None:
        """For the metrics: what waits in the database, and what people said that no weights know of yet."""
        states, age = await self.rows.census()
        for state, jobs in states.items():
            metrics.ACTIVE_JOBS.labels(state).set(jobs)
        metrics.OLDEST_JOB.set(age)
        if backlog := await asyncio.to_thread(self._backlog.count):
            for category, records in backlog.items():
                metrics.FEEDBACK.labels(category).set(records)

    async def _sweep(self) -> None:
        await self._count()
        for id, turn in await self.rows.waiting(FORGOTTEN_SECONDS):
            if await DBOS.get_workflow_status_async(id) is None:
                await self._enqueue(id, turn or FIRST_TURN)
        await self._close_stuck()
        for job in await self.rows.untold():
            with SetWorkflowID(_telling(job.id)):
                await DBOS.enqueue_workflow_async(
                    WEBHOOKS, self._tell, job.webhook or "", webhooks.event_of(job)
                )
            await self.rows.set_told(job.id)

    async def _tidy_forever(self) -> None:
        """Beside the sweep, which a store that is away must not hold up."""
        next_look = 0.0
        while True:
            try:
                for id in await self.rows.expired():
                    await self._forget(id)
                if time.monotonic() >= next_look:
                    await self._drop_orphans()
                    next_look = time.monotonic() + ORPHANS_SECONDS
            except Unavailable as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("expired jobs could not be removed, it is tried again")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _drop_orphans(self) -> None:
        """Files that no row knows of: an attempt was killed while its job was being deleted, say. Only those
        that any row would have lost by now go: two databases may share a store by mistake."""
        oldest = self.settings.job_retention + ORPHANS_SECONDS
        ids = await asyncio.to_thread(self.store.jobs)
        for id in set(ids) - await self.rows.known(ids):
            if await asyncio.to_thread(self.store.age, id) > oldest:
                logger.warning("files of %s belong to no job, they are removed", id)
                await asyncio.to_thread(self.store.delete, id)

    async def _close_stuck(self) -> None:
        """A workflow that DBOS has given up, after 100 recoveries say, leaves a row that nobody else ends."""
        if ids := await self.rows.in_progress():
            given_up = await DBOS.list_workflows_async(
                workflow_ids=ids, status=list(GIVEN_UP), load_input=False, load_output=False
            )
            for one in given_up:
                logger.error("job %s is given up: its workflow is %s", one.workflow_id, one.status)
                await self.rows.fail(one.workflow_id, to_dict(RuntimeError()), self.settings.job_retention)

    async def _take_over(self) -> None:
        """Hands the running jobs of executors without a lease back to the queue."""
        pending = await DBOS.list_workflows_async(status="PENDING", load_input=False, load_output=False)
        leases = await self.rows.leases()
        if time.monotonic() < self._trust_leases_at:  # asked last: DBOS waits for a database that is away
            return
        holders = {one.executor_id for one in pending if one.executor_id}
        dead = [one for one in holders if one != self.executor and not leases.get(one)]
        if dead:
            logger.warning("gateways %s are gone, their jobs go on", ", ".join(dead))
            await asyncio.to_thread(recover, dead)
        await self.rows.drop_leases(
            [one for one, alive in leases.items() if not alive and one not in holders]
        )


def recover(executors: list[str]) -> None:
    """The one private call of DBOS that is used, pinned by a contract test: what those executors were running
    goes back to its queue. Doing it twice, or in two gateways, changes nothing."""
    DBOS._recover_pending_workflows(executors)


async def _insist(call: Callable[[], Awaitable[T]]) -> T:
    """The database is waited for: what a stage has made is not lost because it is away for a while."""
    while True:
        try:
            return await call()
        except Unavailable as error:
            logger.warning("%s", error)
        await asyncio.sleep(RETRY_SECONDS)


@contextmanager
def _traced(job: Job, stage: str, taken_over: bool) -> Iterator[None]:
    """What is done inside is part of the request that made the job, whichever gateway does it."""
    TRACE_PARENT.set(job.trace or "")
    span = tracing.start(f"job {stage}", taken_over=taken_over)
    TRACE_PARENT.set(tracing.header(span))
    try:
        yield
    except _Unwanted:
        raise
    except Exception as error:
        tracing.failed(span, error)
        raise
    finally:
        span.end()


def _telling(id: str) -> str:
    """Id of the workflow that tells of a job's end."""
    return f"{id}-webhook"


def _frame_key(id: str) -> str:
    return f"{id}/first_frame.png"


def _steps(plan: Plan, frame: bytes | None) -> int:
    options = plan.clip.options
    return options.steps + (options.first_frame_steps if frame is None else 0)


def _that_ran(weights: dict[str, Any] | None, sha256: str | None) -> dict[str, Any] | None:
    """What is known of the weights that a runner has named: the catalog's file, if it is the same; all of it,
    while the runner hashes its own.
    """
    if sha256 is None or (weights and weights["sha256"] == sha256):
        return weights
    return {"file": None, "bytes": None, "sha256": sha256, "adapter": None, "lineage": {}, "metrics": {}}


def _report(plan: Plan, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Seconds and backends by stage, added to those of the stage before."""
    before = before or {"seconds": {}, "backends": {}, "first_frame_weights": None}
    seconds = {stage: before["seconds"].get(stage, 0.0) for stage in before["seconds"] | plan.seconds}
    for stage, value in plan.seconds.items():
        seconds[stage] += value
    first = plan.weights.get("first_frame") or before.get("first_frame_weights")
    return {
        "seconds": seconds, "backends": before["backends"] | plan.backends, "first_frame_weights": first
    }  # fmt: skip
