"""The core: one request in, events out. Every door of the service (HTTP today) calls `Generation.generate`;
limits, metrics and errors are settled here, so nothing in this file knows of the web.
"""

import asyncio
import dataclasses
import math
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from huvidpo.catalog import Catalog
from huvidpo.config import MAX_SEED, ClipRequest, SamplingOptions
from huvidpo.errors import InvalidRequest
from huvidpo.watermark import LEAST, fits
from huvidpo.words import known_words, warnings_of
from service import image_url, metrics
from service.errors import FrameCheckFailed, QueueFull, TimedOut, Unavailable, from_dict, row_of
from service.images import read_first_frame
from service.order import PRIORITIES, Priority
from service.policy import Policy, Verdict
from service.request_id import CALLER, DOOR
from service.schemas import MEDIA_TYPES, Format, GenerateRequest, RunnerJob
from service.settings import Settings

MAX_FETCHES = 8  # pictures in memory at once that requests named by their addresses
UNKNOWN_SECONDS = 5.0  # to wait for a place while nothing is known of how long clips take
LEAVING = "the service is shutting down, try again in a few seconds"


class Runner(Protocol):
    """A stage, wherever it runs: a job in, the messages of runners.py out (accepted, ..., done or error).

    Closing the generator cancels the job.
    """

    def __call__(self, job: RunnerJob) -> AsyncGenerator[dict[str, Any], None]: ...


@dataclass(frozen=True)
class Started:
    """The request is accepted and everything it left open is decided."""

    request: ClipRequest
    model: str
    warnings: tuple[str, ...] = ()  # see Plan
    verdict: Verdict | None = None  # see Plan


@dataclass(frozen=True)
class Queued:
    """The runner of `stage` ("first_frame" or "video") has the request in its queue; said again when it moves
    up. `position` others run or wait before it. In `eta` seconds the clip should be done; None while too few
    were made to tell.
    """

    stage: str
    position: int
    eta: float | None


@dataclass(frozen=True)
class Begun:
    """The device of `stage` ("first_frame" or "video") works on the request; said before its first step."""

    stage: str


@dataclass(frozen=True)
class Progress:
    """`step` of `total` denoising steps of `stage` ("first_frame" or "video") are done."""

    stage: str
    step: int
    total: int


@dataclass(frozen=True)
class Finished:
    """The clip. `seconds` by stage: queue, encode (both runners), video, and first_frame unless uploaded.

    `backends`: what video, and first_frame unless uploaded, ran on. `weights` of the same: SHA-256 of the
    category's, and of the network, that made it; None for the base model, or while a runner that has just
    started hashes them. `strength`: of the preferences in the category's.
    """

    data: bytes
    media_type: str
    seed: int
    model: str
    seconds: dict[str, float]
    backends: dict[str, str]
    weights: dict[str, str | None]
    warnings: tuple[str, ...] = ()  # see Plan
    verdict: Verdict | None = None  # see Plan
    frames_verdict: dict[str, str] | None = None  # see Plan
    strength: float = 1.0  # of the preferences in the category's weights


@dataclass(frozen=True)
class Drawn:
    """The first frame, a PNG of the model's size."""

    png: bytes


Event = Started | Queued | Begun | Progress | Drawn | Finished


@dataclass
class Plan:
    """A request with everything decided, and what its stages report as they end; see Finished."""

    clip: ClipRequest
    format: Format
    deadline: float  # time of the event loop
    caller: str = ""  # name of the API key
    priority: Priority = "normal"
    warnings: tuple[str, ...] = ()  # sentences for the caller: words that the model was never trained on
    verdict: Verdict | None = None  # on what the request says; None: not asked for, or no policy
    seconds: dict[str, float] = field(default_factory=lambda: {"queue": 0.0, "encode": 0.0})
    backends: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str | None] = field(default_factory=dict)
    frames_verdict: dict[str, str] | None = None  # on the clip; None: not there yet, or nobody looked
    id: str = field(default_factory=lambda: uuid4().hex)  # of its job in either runner
    detach: bool = False  # whether its job in a runner outlives this gateway for a while
    begun_elsewhere: bool = False  # whether another gateway may have brought it to a runner


async def nothing(id: str) -> None:
    """Where runners keep nothing."""


@dataclass
class Generation:
    settings: Settings
    catalog: Catalog
    first_frame: Runner
    video: Runner
    # file, media type, request, SHA-256 of the weights that ran -> the file, signed
    mark: Callable[[bytes, str, ClipRequest, str | None], bytes] | None = None
    watermark: Callable[[str], str] | None = None  # id of a clip -> what its frames are marked with
    # raises QueueFull when no runner of a stage has a place: before any work, so no frame is drawn in vain
    check_room: Callable[[], None] = lambda: None
    withdraw: Callable[[str], Awaitable[None]] = nothing  # nobody wants what a plan with `detach` left behind
    # raises InvalidRequest when no runner can give its category another strength: before any work, too
    check_strength: Callable[[ClipRequest], None] = lambda clip: None
    in_flight: int = field(default=0, init=False)
    draining: bool = field(default=False, init=False)
    _limits: set[asyncio.Timeout] = field(default_factory=set, init=False)  # of what is waited for
    _end: float = field(default=math.inf, init=False)  # loop time, of the drain
    _fetching: int = field(default=0, init=False)
    _ends: dict[int, float] = field(default_factory=dict, init=False)  # loop time a plan's clip is expected
    _animating: float | None = field(default=None, init=False)  # seconds from first frame to clip, lately

    def __post_init__(self) -> None:
        self._words = known_words(self.catalog.model(self.settings.model))
        self._policy = Policy(self.settings.policy_file)

    def drain(self, seconds: float) -> None:
        """Admits nothing more; what is in flight after `seconds` raises Unavailable. For the event loop."""
        self.draining = True
        self._end = asyncio.get_running_loop().time() + seconds
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(min(self._end, limit.when() or math.inf))

    async def generate(
        self, request: GenerateRequest, seconds: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """Started; Queued, Begun and Progress of each stage, with Drawn between them; Finished. Closing the
        generator cancels the work within one denoising step. `seconds` the caller waits for at most.

        Raises InvalidRequest, QueueFull, Unavailable, TimedOut; anything else is a fault of ours.
        """
        category = request.category if request.category in self.catalog.categories else "unknown"
        outcome = "cancelled"  # what closing the generator leaves behind
        try:
            self._enter()
            try:
                async with aclosing(self._generate(request, seconds)) as events:
                    async for event in events:
                        if isinstance(event, Finished):
                            outcome = "ok"
                        yield event
            finally:
                self._exit()
        except Exception as error:
            outcome = row_of(error).code
            raise
        finally:
            count_request(outcome, category)

    def _enter(self) -> None:
        if self.draining:
            raise Unavailable(LEAVING)
        if self.in_flight >= self.settings.max_in_flight:
            wait = self._retry_after()
            raise QueueFull(
                f"{self.in_flight} requests are being worked on, try again in {wait} seconds", wait
            )
        self.check_room()
        self.in_flight += 1
        metrics.IN_FLIGHT.inc()

    def _retry_after(self) -> int:
        """Seconds until the next clip should be done."""
        now = asyncio.get_running_loop().time()
        return _spread(min(self._ends.values(), default=now + UNKNOWN_SECONDS) - now)

    def _exit(self) -> None:
        self.in_flight -= 1
        metrics.IN_FLIGHT.dec()

    async def _generate(self, request: GenerateRequest, seconds: float | None) -> AsyncGenerator[Event, None]:
        plan = self.admit(request, seconds)
        yield Started(plan.clip, self.settings.model, plan.warnings, plan.verdict)
        frame = await self.frame_of(request, plan)
        if frame is None:
            async with aclosing(self.draw(plan)) as drawing:
                async for drawn in drawing:
                    if isinstance(drawn, Drawn):
                        frame = drawn.png
                    yield drawn
        assert frame is not None
        async with aclosing(self._animate_in_time(plan, frame)) as events:
            async for event in events:
                yield event

    async def _animate_in_time(self, plan: Plan, frame: bytes) -> AsyncGenerator[Any, None]:
        """There was room before the frame was drawn: if it is taken since, one waits for another place."""
        while True:
            try:
                async with aclosing(self.animate(plan, frame)) as events:
                    async for event in events:
                        yield event
                return
            except QueueFull as full:
                wait = min(full.retry_after, self._left(plan))
                if wait <= 0:
                    raise self._late(plan, begun=False) from full
            await asyncio.sleep(wait)

    def _left(self, plan: Plan) -> float:
        """Seconds until the plan is given up."""
        return min(plan.deadline, self._end) - asyncio.get_running_loop().time()

    async def draw(self, plan: Plan) -> AsyncGenerator[Queued | Begun | Progress | Drawn, None]:
        """The first stage alone: prompt -> first frame."""
        async with aclosing(self._run("first_frame", self.first_frame, _job(plan), plan)) as events:
            async for event in events:
                yield Drawn(event) if isinstance(event, bytes) else event

    async def animate(
        self, plan: Plan, png: bytes
    ) -> AsyncGenerator[Queued | Begun | Progress | Finished, None]:
        """The second stage alone: first frame -> clip."""
        job = _job(plan)
        job.first_frame = png
        if self.watermark and self._can_be_marked(plan.clip.options):
            job.watermark = self.watermark(plan.id)
        started = asyncio.get_running_loop().time()
        async with aclosing(self._run("video", self.video, job, plan)) as events:
            async for event in events:
                if isinstance(event, bytes):
                    self._animating = asyncio.get_running_loop().time() - started
                    yield self._finished(plan, await self._marked(plan, event))
                else:
                    yield event

    async def _marked(self, plan: Plan, data: bytes) -> bytes:
        if self.mark is None:
            return data
        return await asyncio.to_thread(
            self.mark, data, MEDIA_TYPES[plan.format], plan.clip, plan.weights.get("video")
        )

    def _finished(self, plan: Plan, data: bytes) -> Finished:
        for stage, value in plan.seconds.items():
            metrics.STAGE_SECONDS.labels(stage).observe(value)
        return Finished(
            data,
            MEDIA_TYPES[plan.format],
            plan.clip.seed,
            self.settings.model,
            plan.seconds,
            plan.backends,
            plan.weights,
            plan.warnings,
            plan.verdict,
            plan.frames_verdict,
            plan.clip.preference_strength,
        )

    def admit(self, request: GenerateRequest, seconds: float | None = None) -> Plan:
        """`plan`, with the policy's verdict: once for every request, before it waits for anything. Raises
        ContentRefused too.
        """
        plan = self.plan(request, seconds)
        texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        plan.verdict = self._policy.judge(texts)
        return plan

    def plan(self, request: GenerateRequest, seconds: float | None = None) -> Plan:
        """The request with the model's defaults and a seed filled in, to be done within `seconds`, or as many
        as a request may take. Raises InvalidRequest.
        """
        category = self.catalog.category(request.category)
        caller = CALLER.get()
        priority = request.priority or caller.priority
        if PRIORITIES.index(priority) < PRIORITIES.index(caller.priority):
            allowed = " or ".join(PRIORITIES[PRIORITIES.index(caller.priority) :])
            raise InvalidRequest(f"priority: got {priority}, this key may ask for {allowed}", "priority")
        style = self.catalog.style(request.style).name
        options = self.catalog.model(self.settings.model).defaults.replace(
            steps=request.steps, guidance=request.guidance, frames=request.frames, fps=request.fps
        )
        for name, limit in {"steps": self.settings.max_steps, "frames": self.settings.max_frames}.items():
            asked = getattr(request, name)
            if asked is not None and asked > limit:
                raise InvalidRequest(f"{name}: got {asked}, this server allows at most {limit}", name)
        if request.image_url is not None and not self.settings.image_url_seconds:
            raise InvalidRequest(
                "image_url: addresses are not followed here, send the picture itself: first_frame, its bytes "
                "in base64",
                image_url.FIELD,
            )
        self._can_be_marked(options)
        clip = ClipRequest(
            prompt=request.prompt,
            category=request.category,
            style=style,
            seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
            negative_prompt=request.negative_prompt,
            preference_strength=1.0 if request.preference_strength is None else request.preference_strength,
            options=options,
        )
        self.check_strength(clip)
        most = min(self.settings.request_timeout, math.inf if seconds is None else seconds)
        deadline = asyncio.get_running_loop().time() + most
        return Plan(
            clip,
            request.format,
            deadline,
            caller=caller.name,
            priority=priority,
            warnings=warnings_of(request.prompt, category, self._words),
        )

    def _can_be_marked(self, options: SamplingOptions) -> bool:
        """Raises InvalidRequest where they have to be."""
        large = fits(options.height, options.width)
        if not large and self.settings.watermark == "required":
            raise InvalidRequest(
                f"watermark: this server marks every clip, and the {options.width} x {options.height} pixels "
                f"of its model are too few for a mark, at least {LEAST} x {LEAST} are needed; "
                "HUVIDPO_WATERMARK=auto lets such clips out unmarked"
            )
        return large

    async def frame_of(self, request: GenerateRequest, plan: Plan) -> bytes | None:
        """The picture that came with the request, or that it names, as a PNG of the model's size; None if
        it is to be drawn. Raises InvalidRequest, Unavailable.
        """
        if request.first_frame is not None:
            return await self._first_frame(request.first_frame, plan.clip.options, "first_frame")
        if request.image_url is None:
            return None
        if self._fetching >= MAX_FETCHES:
            raise Unavailable("too many pictures are being fetched at once, try again in a few seconds")
        self._fetching += 1
        try:
            seconds = min(self.settings.image_url_seconds, self._left(plan))
            most = self.settings.max_body_mib * 2**20
            data = await image_url.fetch(request.image_url, max(seconds, 0.0), most)
            return await self._first_frame(data, plan.clip.options, image_url.FIELD)
        finally:
            self._fetching -= 1

    async def _first_frame(self, data: bytes, options: SamplingOptions, field: str) -> bytes:
        most = self.settings.max_image_megapixels * 1_000_000
        return await asyncio.to_thread(read_first_frame, data, options.height, options.width, most, field)

    async def _run(
        self, stage: str, runner: Runner, job: RunnerJob, plan: Plan
    ) -> AsyncGenerator[Queued | Begun | Progress | bytes, None]:
        """Queued, Begun and Progress of one stage, then its result; seconds and backend go to `plan`. They
        only go forward: a batch that failed is begun again, one request after the other.
        """
        loop, expected, accepted = asyncio.get_running_loop(), None, 0.0
        done: int | None = None  # steps, once it has begun
        try:
            async with aclosing(self._until(runner(job), plan)) as lines:
                async for line in lines:
                    if line["event"] in ("accepted", "queued"):
                        eta = self._expect(plan, stage, line["eta"])
                        if line["event"] == "accepted":
                            expected, accepted = line["eta"], loop.time()
                            self._check_time(plan, eta, line["position"])
                        yield Queued(stage, line["position"], eta)
                    elif line["event"] in ("started", "step"):
                        if done is None:  # runners of an earlier release say steps only
                            done = 0
                            yield Begun(stage)
                        if line["event"] == "step" and line["step"] > done:
                            done = line["step"]
                            yield Progress(stage, done, line["total"])
                    elif line["event"] == "error":
                        raise from_dict(line)
                    elif line["event"] == "done":
                        if expected and not plan.begun_elsewhere:  # else it was said at another time
                            metrics.ETA_RATIO.labels(stage).observe((loop.time() - accepted) / expected)
                        if job.watermark and not line.get("marked") and self.settings.watermark == "required":
                            raise Unavailable("the runner is of a release that cannot mark clips: update it")
                        plan.frames_verdict = line.get("frames_verdict")
                        if plan.frames_verdict is None and self.settings.checks_frames:
                            raise FrameCheckFailed(
                                f"the {stage} runner has not looked at what it made, so it is not given out: "
                                "HUVIDPO_FRAME_CHECK has to be set there too"
                            )
                        if stage == "video" and line.get("strength", 1.0) != plan.clip.preference_strength:
                            raise Unavailable(
                                "the runner is of a release that knows no preference_strength: update it"
                            )
                        plan.seconds["queue"] += line["queued"]
                        plan.seconds[stage] = line["seconds"]
                        plan.seconds["encode"] += line["encode"]
                        plan.backends[stage] = line["backend"]
                        plan.weights[stage] = line.get("weights")
                        yield line["data"]
                        return
        finally:
            self._ends.pop(id(plan), None)
        raise RuntimeError(f"the {stage} runner ended without a result")

    def _check_time(self, plan: Plan, eta: float | None, position: int) -> None:
        """Raises TimedOut for a clip that somebody waits for and that would come too late: now, not then."""
        left = plan.deadline - asyncio.get_running_loop().time()
        if eta is not None and eta > left and not plan.detach:
            raise TimedOut(
                f"it would be ready in {eta:.0f} seconds, and has {left:.0f}: allow it more time, or ask "
                "again when less is waiting",
                _spread(eta - left) if position else None,
            )

    def _late(self, plan: Plan, begun: bool) -> TimedOut | Unavailable:
        """Why the time of a plan is over, whose stage had or had not begun."""
        if asyncio.get_running_loop().time() >= self._end:
            return Unavailable(LEAVING)
        if begun:
            return TimedOut("not ready in time; ask for fewer steps or frames")
        self._ends.pop(id(plan), None)
        wait = self._retry_after()
        return TimedOut(f"it still waited when its time was over, try again in {wait} seconds", wait)

    def _expect(self, plan: Plan, stage: str, eta: float | None) -> float | None:
        """Seconds until the clip should be done, from those until `stage` is; remembers when that will be."""
        after = 0.0 if stage == "video" else self._animating
        if eta is None or after is None:
            return None
        self._ends[id(plan)] = asyncio.get_running_loop().time() + eta + after
        return eta + after

    async def _until(
        self, lines: AsyncGenerator[dict[str, Any], None], plan: Plan
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The lines as they come. Raises TimedOut when the next one is late for the plan's deadline,
        Unavailable when it is late for the end of the drain.
        """
        begun = False
        async with aclosing(lines):
            while True:
                limit = asyncio.timeout_at(min(plan.deadline, self._end))
                self._limits.add(limit)
                try:
                    async with limit:
                        line = await anext(lines)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise self._late(plan, begun) from None
                finally:
                    self._limits.discard(limit)
                begun = begun or line["event"] in ("started", "step")
                yield line


def _spread(seconds: float) -> int:
    """Whole seconds, 1 or more; a little different for each who asks: all would come back at once."""
    return max(1, math.ceil(seconds * random.uniform(1.0, 1.25)))


def count_request(outcome: str, category: str = "unknown") -> None:
    """Once for every request, by whoever knows how it ended. The names of keys are the operator's: few."""
    metrics.REQUESTS.labels(outcome, category, DOOR.get(), CALLER.get().name or "anonymous").inc()


def _job(plan: Plan) -> RunnerJob:
    clip = plan.clip
    return RunnerJob(
        prompt=clip.prompt,
        category=clip.category,
        style=clip.style,
        seed=clip.seed,
        negative_prompt=clip.negative_prompt,
        preference_strength=clip.preference_strength,
        options=dataclasses.asdict(clip.options),
        format=plan.format,
        id=plan.id,
        seconds=max(0.0, plan.deadline - asyncio.get_running_loop().time()),
        detach=plan.detach,
        begun_elsewhere=plan.begun_elsewhere,
        caller=plan.caller,
        priority=plan.priority,
    )
