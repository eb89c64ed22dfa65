"""The core over two in-process runners: real batchers and streams, models that paint instead of denoise."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from prometheus_client import REGISTRY

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.errors import Cancelled, InvalidRequest
from huvidpo.video import decode
from service import frame_check, hop, runners
from service.batching import Batcher, OnStep
from service.errors import ContentRefused, QueueFull, TimedOut, Unavailable, row_of, to_dict
from service.events import _accepted, _clip, sse
from service.frame_check import MAX_HUNG, FrameCheck
from service.generation import Begun, Drawn, Finished, Generation, Progress, Queued, Started
from service.grpc_server import messages_of
from service.http import _clip_response
from service.images import to_png
from service.pace import Work
from service.request_id import CALLER, Caller
from service.schemas import GenerateRequest
from service.settings import Settings


@dataclass
class Painter:
    """Grey frames; `video` makes as many as asked for. Each step waits for a permit."""

    video: bool
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(10_000))
    seen: list[ClipRequest] = field(default_factory=list)
    steps: int = 0
    error: Exception | None = None
    backend: str = "torch"
    on_cpu: bool = False
    can_pause: bool = False
    max_batch: int | None = None
    loaded: dict[str, str] = field(default_factory=dict)

    def work(self, job) -> Work:
        options = runners.to_clip_request(job).options
        return Work(options.frames, options.steps if self.video else options.first_frame_steps)

    def prepare(self, job):
        return runners.to_clip_request(job), job.first_frame

    def cold(self, item) -> bool:
        return False

    def warm(self, item) -> None:
        raise AssertionError("nothing is cold")

    def can_share(self, a, b) -> bool:
        return True

    def weights(self, item) -> str | None:
        return "5e7" if self.video else None

    def run(self, items: Sequence, on_step: OnStep) -> list[np.ndarray | None]:
        self.seen += [clip for clip, _ in items]
        if self.error:
            raise self.error
        clip = items[0][0]
        total = clip.options.steps if self.video else clip.options.first_frame_steps
        for step in range(1, total + 1):
            assert self.permits.acquire(timeout=30)
            self.steps += 1
            if not any(on_step(step, total, None)):
                raise Cancelled("all dropped")
        assert not self.video or all(frame for _, frame in items)
        shape = (clip.options.frames, 64, 64, 3) if self.video else (64, 64, 3)
        return [np.full(shape, 127, np.uint8) for _ in items]


class Rig:
    def __init__(self, **settings):
        self.settings = Settings(**settings)
        self.painters = {"first_frame": Painter(video=False), "video": Painter(video=True)}
        self.batchers = {
            stage: Batcher(stage, lambda painter=painter: painter, max_batch=4, queue_size=8)
            for stage, painter in self.painters.items()
        }
        encode = {"first_frame": runners.encode_frame, "video": runners.encode_clip}

        def runner(stage):
            async def run(job):
                if self.full[stage] > 0:
                    self.full[stage] -= 1
                    yield {"event": "error"} | to_dict(QueueFull("full", 1))
                    return
                async with aclosing(self.stream(stage, job, encode[stage])) as lines:
                    async for line in lines:
                        yield hop.unpack(line)

            return run

        self.check: FrameCheck | None = None  # the operator's, of what was made
        self.full = Counter[str]()  # stage -> how many jobs more it refuses
        self.core = Generation(self.settings, load_catalog(), runner("first_frame"), runner("video"))

    def stream(self, stage, job, encode):
        return runners.stream(self.batchers[stage], job, encode, self.check)

    async def events(self, **fields):
        request = GenerateRequest(**{"prompt": "a horse", "category": "horse", "style": "cartoon"} | fields)
        async with aclosing(self.core.generate(request)) as events:
            return [event async for event in events]

    def close(self):
        for painter in self.painters.values():
            painter.permits.release(10_000)
        for batcher in self.batchers.values():
            batcher.close()


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


@contextmanager
def counted(name, by=1.0, **labels):
    if name == "huvidpo_requests_total":
        labels = {"door": "http", "key": "anonymous"} | labels
    before = REGISTRY.get_sample_value(name, labels) or 0.0
    yield
    assert (REGISTRY.get_sample_value(name, labels) or 0.0) - before == by


def test_events_of_a_request(rig):
    with counted("huvidpo_requests_total", outcome="ok", category="horse"):
        events = asyncio.run(rig.events(seed=7, steps=2))
    started, *progress, finished = events
    assert isinstance(started, Started)
    assert started.model == DEFAULT_MODEL
    assert started.request.seed == 7
    stages = [event.stage for event in progress if isinstance(event, Progress)]
    drawn = started.request.options.first_frame_steps
    assert stages == ["first_frame"] * drawn + ["video"] * 2
    kinds = [type(event) for event in progress]
    assert kinds == [Queued, Begun, *[Progress] * drawn, Drawn, Queued, Begun, Progress, Progress]
    assert isinstance(finished, Finished)
    assert finished.seed == 7
    assert finished.media_type == "video/mp4"
    assert set(finished.seconds) == {"queue", "first_frame", "video", "encode"}
    assert finished.backends == {"first_frame": "torch", "video": "torch"}
    assert finished.weights["video"] == "5e7"
    frames, fps = decode(finished.data)
    assert frames.shape == (16, 64, 64, 3)
    assert fps == 8


@pytest.mark.parametrize("begun", [True, False])
def test_a_stage_only_goes_forward(rig, begun):
    """A batch that failed is begun again, one after the other; earlier runners do not say "started"."""
    again = [("started", 0), ("step", 1), ("step", 2)]
    said = [*again, *again, ("step", 3)] if begun else [("step", 1), ("step", 2), ("step", 3)]

    async def runner(job):
        yield {"event": "accepted", "position": 0, "eta": None}
        for event, step in said:
            yield {"event": event, "step": step, "total": 3}
        told = {"queued": 0.0, "seconds": 0.0, "encode": 0.0, "backend": "none"}
        yield {"event": "done", "data": b"png"} | told

    async def main():
        plan = rig.core.plan(GenerateRequest(prompt="a horse", category="horse"))
        rig.core.first_frame = runner
        return [event async for event in rig.core.draw(plan)]

    steps = [Progress("first_frame", step, 3) for step in (1, 2, 3)]
    assert asyncio.run(main())[1:] == [Begun("first_frame"), *steps, Drawn(b"png")]


def test_waiting_is_told_with_the_seconds_to_expect(rig):
    def waits(events):
        return [(event.stage, event.position, event.eta) for event in events if isinstance(event, Queued)]

    assert waits(asyncio.run(rig.events(steps=2))) == [("first_frame", 0, None), ("video", 0, None)]
    rig.core._animating = 500.0  # what the second stage is known to take
    (_, _, whole), (_, _, rest) = waits(asyncio.run(rig.events(steps=2)))
    assert whole > 500 > rest > 0


def test_what_would_come_too_late_is_refused_at_once(rig):
    asyncio.run(rig.events(steps=2))
    rig.core._animating = 3600.0
    painter = rig.painters["first_frame"]
    done = painter.steps
    painter.permits = threading.Semaphore(0)
    with pytest.raises(TimedOut, match=r"would be ready in 36\d\d seconds, and has \d+: allow it more time"):
        asyncio.run(rig.events(steps=2))
    assert painter.steps == done  # not a step was done for it


@pytest.mark.parametrize(("position", "eta", "begun", "about"), [
    (3, None, False, 400),  # it waited to the end of its time: until the next clip is done
    (3, None, True, None),  # it is too much work, and would be again
    (3, 1000.0, False, 1000),  # by so much too late
    (0, 1000.0, False, None),  # for nobody's sake
])  # fmt: skip
def test_what_waited_too_long_is_told_when_to_come_back(rig, position, eta, begun, about):
    async def runner(job):
        yield {"event": "accepted", "position": position, "eta": eta}
        if begun:
            yield {"event": "started"}
        await asyncio.Event().wait()

    async def main():
        plan = rig.core.plan(GenerateRequest(prompt="a horse", category="horse"), seconds=0.05)
        rig.core.first_frame, rig.core._animating = runner, 0.0
        rig.core._ends = {0: asyncio.get_running_loop().time() + 400}
        async for _ in rig.core.draw(plan):
            pass

    with pytest.raises(TimedOut) as late:
        asyncio.run(main())
    wait = late.value.retry_after
    assert wait is None if about is None else 0.75 * about <= wait <= 1.5 * about


def test_a_key_may_lower_its_priority(rig):
    token = CALLER.set(Caller("shop", "normal"))
    try:
        plan = asyncio.run(planned(rig, priority="low"))
        assert (plan.caller, plan.priority) == ("shop", "low")
        assert asyncio.run(planned(rig)).priority == "normal"
        with pytest.raises(InvalidRequest, match="got high, this key may ask for normal or low"):
            asyncio.run(planned(rig, priority="high"))
    finally:
        CALLER.reset(token)


async def planned(rig, **fields):
    return rig.core.plan(GenerateRequest(prompt="a horse", category="horse", style="cartoon", **fields))


def test_words_that_the_model_does_not_know_are_told_at_every_door(rig):
    started, *_, finished = asyncio.run(rig.events(prompt="a zebra and a ZÈBRE on Mars", steps=1))
    (said,) = started.warnings
    assert said.endswith(": zebra, zèbre")
    assert finished.warnings == started.warnings
    header = _clip_response(finished).headers["x-warning"]
    assert (header.isascii(), unquote(header)) == (True, said)
    assert next(messages_of(started)).accepted.warnings == [said]
    assert f'"warnings": {json.dumps([said])}' in sse("accepted", _accepted(started))
    started, *_, finished = asyncio.run(rig.events(prompt="a horse on Mars", steps=1))
    assert started.warnings == ()
    assert "x-warning" not in _clip_response(finished).headers


def test_what_was_made_is_looked_at_before_it_is_given_out(rig):
    seen = []

    def look(frames):
        seen.append((frames.shape, frames.dtype, frames.max()))
        frames[:] = 0  # of its own
        return ("tag", "grey  é") if len(frames) > 1 else "ok"

    rig.check = FrameCheck(look)
    with counted("huvidpo_policy_verdicts_total", check="frames", action="tag", list=""):
        clip = asyncio.run(rig.events(steps=1))[-1]
    assert seen == [((1, 64, 64, 3), np.uint8, 127), ((16, 64, 64, 3), np.uint8, 127)]
    assert decode(clip.data)[0].max() > 100
    assert clip.frames_verdict == {"action": "tag", "reason": "grey é"}
    assert unquote(_clip_response(clip).headers["x-frames-verdict"]) == "tag grey é"
    assert _clip(clip)["frames_verdict"] == clip.frames_verdict
    message = next(messages_of(clip)).clip.frames_verdict
    assert (message.action, message.reason) == ("tag", "grey é")


@pytest.mark.parametrize("frames", [1, 16])
def test_what_the_check_blocks_is_not_given_out(rig, frames):
    rig.check = FrameCheck(lambda seen: ("block", "a logo") if len(seen) == frames else "ok")
    got, refused = asyncio.run(until_an_error(rig))
    assert (type(refused), str(refused)) == (
        ContentRefused,
        "this server does not give out what was made: a logo",
    )
    assert any(isinstance(event, Drawn) for event in got) is (frames == 16)
    assert not any(isinstance(event, Finished) for event in got)


@pytest.mark.parametrize(
    "answer",
    [
        ZeroDivisionError("secret"),
        StopIteration(),
        SystemExit(1),
        None,
        "fine",
        ("ok", 7),
        ("ok", "a", "b"),
        True,
    ],
)
def test_a_check_that_fails_gives_nothing_out(rig, caplog, answer):
    def look(frames):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    rig.check = FrameCheck(look)
    with (
        counted("huvidpo_requests_total", outcome="frame_check_failed", category="horse"),
        counted("huvidpo_policy_verdicts_total", check="frames", action="failed", list=""),
    ):
        got, error = asyncio.run(until_an_error(rig))
    assert not any(isinstance(event, Drawn | Finished) for event in got)
    assert row_of(error).status == 500
    assert "the request id finds the reason" in str(error)
    assert "secret" not in str(error)
    assert caplog.records[-1].exc_info


def test_a_check_that_hangs_holds_up_nobody_for_longer_than_it_may_take(rig, caplog):
    """Nor does it take more than a few threads: then it is asked no more, until one has come back."""
    hangs, asked = threading.Event(), []

    def look(frames):
        asked.append(threading.current_thread())
        hangs.wait(30)
        return "ok"

    rig.check = FrameCheck(look, seconds=0.01)
    for _ in range(MAX_HUNG + 1):
        got, error = asyncio.run(until_an_error(rig))
        assert row_of(error).code == "frame_check_failed"
        assert not any(isinstance(event, Drawn) for event in got)
    assert len(asked) == MAX_HUNG
    assert all(thread.daemon for thread in asked)  # the process can end
    assert "restart this runner" in str(caplog.records[-1].exc_info[1])
    hangs.set()
    for thread in asked:
        thread.join()
    rig.check.seconds = 30
    assert isinstance(asyncio.run(rig.events(steps=1))[-1], Finished)


def test_it_sees_one_clip_at_a_time_whoever_leaves():
    inside, most, goes_on = [], [], threading.Event()

    def look(frames):
        inside.append(1)
        most.append(len(inside))
        goes_on.wait(30)
        inside.pop()
        return "ok"

    async def main():
        check, frames = FrameCheck(look), np.zeros((1, 8, 8, 3), np.uint8)
        asks = [asyncio.create_task(check.verdict(frames)) for _ in range(3)]
        while not inside:
            await asyncio.sleep(0.001)
        asks[0].cancel()
        await asyncio.sleep(0.01)
        goes_on.set()
        return await asyncio.gather(*asks[1:])

    assert asyncio.run(main()) == [{"action": "ok", "reason": ""}] * 2
    assert max(most) == 1


@pytest.mark.parametrize(
    ("answer", "reason"), [("block", ""), (("block", "a\0 logo\n"), "a logo"), (None, "the check failed")]
)
def test_a_check_that_may_only_tag_blocks_nothing(rig, answer, reason):
    rig.core.settings = replace(rig.settings, frame_check="checks:look", frame_check_action="tag")
    rig.check = FrameCheck(lambda frames: answer, blocks=False)
    assert asyncio.run(rig.events(steps=1))[-1].frames_verdict == {"action": "tag", "reason": reason}


def test_a_runner_that_does_not_look_is_no_way_out(rig):
    rig.core.settings = replace(rig.settings, frame_check="checks:look")
    got, error = asyncio.run(until_an_error(rig))
    assert not any(isinstance(event, Drawn) for event in got)
    assert str(error).startswith("the first_frame runner has not looked at what it made")
    rig.core.settings = replace(rig.core.settings, frame_check_action="tag")
    assert asyncio.run(rig.events(steps=1))[-1].frames_verdict is None


async def until_an_error(rig):
    request = GenerateRequest(prompt="a horse", category="horse", style="cartoon", steps=1)
    events = []
    try:
        async for event in rig.core.generate(request):
            events.append(event)
    except Exception as error:
        return events, error
    raise AssertionError("there was no error")


def test_a_check_is_imported_by_name():
    assert frame_check.load(Settings(frame_check="json:loads")).look is json.loads
    assert not frame_check.load(Settings(frame_check="os.path:join", frame_check_action="tag")).blocks
    assert frame_check.load(Settings()) is None
    assert frame_check.load(Settings(frame_check="nowhere:look", frame_check_action="off")) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"frame_check": "nowhere:look"},
            "CHECK: 'nowhere:look' cannot be imported: No module named 'nowhere'",
        ),
        ({"frame_check": "json:look"}, "CHECK: 'json:look' cannot be imported: .*no attribute 'look'"),
        ({"frame_check": "json"}, "CHECK: got 'json', expected module:function"),
        ({"frame_check": "/tmp/a.py:look"}, "CHECK: got '/tmp/a.py:look', expected module:function"),
        ({"frame_check": "json:__name__"}, "CHECK: got 'json:__name__', which is not a function"),
        ({"frame_check_action": "warn"}, "CHECK_ACTION: got 'warn', allowed off, tag, block"),
        ({"frame_check_seconds": 0}, "CHECK_SECONDS: got 0, allowed 1 to 3600"),
    ],
)
def test_a_check_that_cannot_be_imported_ends_the_start(settings, says):
    with pytest.raises(ValueError, match=f"HUVIDPO_FRAME_{says}"):
        frame_check.load(Settings(**settings))


def test_the_check_that_the_docs_show():
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(page.partition("```python\n# checks.py\n")[2].partition("```")[0], names)
    said = [
        frame_check._read(names["look"](np.full((16, 8, 8, 3), level, np.uint8))) for level in (0, 127, 255)
    ]
    assert [action for action, _ in said] == ["tag", "ok", "block"]


def test_the_strength_of_preferences_is_what_runs_or_refused(rig, monkeypatch):
    assert asyncio.run(rig.events(steps=1))[-1].strength == 1
    assert asyncio.run(rig.events(steps=1, preference_strength=0.5))[-1].strength == 0.5
    assert rig.painters["video"].seen[-1].preference_strength == 0.5

    runner = rig.core.video

    async def older(job):  # which knows nothing of it, and says nothing
        async for line in runner(job):
            line.pop("strength", None)
            yield line

    monkeypatch.setattr(rig.core, "video", older)
    assert asyncio.run(rig.events(steps=1))[-1].strength == 1
    with pytest.raises(Unavailable, match="knows no preference_strength: update it"):
        asyncio.run(rig.events(steps=1, preference_strength=0.5))

    def refuse(clip):
        if clip.preference_strength != 1:
            raise InvalidRequest("no", "preference_strength")

    monkeypatch.setattr(rig.core, "check_strength", refuse)
    drawn = len(rig.painters["first_frame"].seen)
    asyncio.run(rig.events(steps=1, preference_strength=1.0))
    with pytest.raises(InvalidRequest):
        asyncio.run(rig.events(steps=1, preference_strength=0.0))
    assert len(rig.painters["first_frame"].seen) == drawn + 1  # no frame in vain


@pytest.mark.parametrize(("format", "media_type"), [("gif", "image/gif"), ("webp", "image/webp")])
def test_other_formats(rig, format, media_type):
    assert asyncio.run(rig.events(steps=1, format=format))[-1].media_type == media_type


def test_seed_is_picked_and_reported(rig):
    seeds = {asyncio.run(rig.events(steps=1))[-1].seed for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_request_reaches_the_models_whole(rig):
    asyncio.run(rig.events(steps=3, guidance=2, frames=4, fps=12, seed=5, negative_prompt="blur"))
    clip = rig.painters["video"].seen[0]
    assert (clip.prompt, clip.category, clip.style, clip.seed) == ("a horse", "horse", "cartoon", 5)
    assert (clip.options.steps, clip.options.guidance, clip.options.frames, clip.options.fps) == (3, 2, 4, 12)
    assert clip.negative_prompt == "blur"
    assert clip == rig.painters["first_frame"].seen[0]


def test_an_uploaded_first_frame_skips_the_first_stage(rig):
    events = asyncio.run(rig.events(steps=1, first_frame=to_png(np.zeros((30, 90, 3), np.uint8))))
    assert rig.painters["first_frame"].seen == []
    assert "first_frame" not in events[-1].seconds


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"category": "dance"}, "category", "known: waterfall"),
        ({"style": "noir"}, "style", "known: realistic"),
        ({"steps": 101}, "steps", "at most 100"),
        ({"frames": 65}, "frames", "at most 64"),
        ({"prompt": "  "}, "prompt", "empty"),
        ({"first_frame": b"x"}, "first_frame", "cannot be read"),
    ],
)
def test_bad_requests_reach_no_runner(rig, fields, field, says):
    with pytest.raises(InvalidRequest, match=says) as refused:
        asyncio.run(rig.events(**fields))
    assert refused.value.field == field
    assert not rig.painters["video"].seen
    assert not rig.painters["first_frame"].seen


def test_a_style_that_is_not_given_is_the_catalogs_first(rig):
    asyncio.run(rig.events(style=None, steps=1))
    (frame,), (clip,) = rig.painters["first_frame"].seen, rig.painters["video"].seen
    assert [job.style for job in (frame, clip)] == ["realistic", "realistic"]


def test_unknown_categories_do_not_become_metric_labels(rig):
    with (
        counted("huvidpo_requests_total", outcome="invalid_request", category="unknown"),
        pytest.raises(InvalidRequest),
    ):
        asyncio.run(rig.events(category="x" * 50))


def test_leaving_cancels_within_one_step(rig):
    video = rig.painters["video"]
    video.permits = threading.Semaphore(2)

    async def leave_after(steps):
        request = GenerateRequest(prompt="a horse", category="horse", style="cartoon", steps=50)
        async with aclosing(rig.core.generate(request)) as events:
            async for event in events:
                if isinstance(event, Progress) and event.stage == "video" and event.step == steps:
                    return

    with counted("huvidpo_requests_total", outcome="cancelled", category="horse"):
        asyncio.run(leave_after(2))
    video.permits.release(1000)
    assert asyncio.run(rig.events(steps=1))  # runs only once the first batch has ended
    assert video.steps == 3 + 1
    assert rig.core.in_flight == 0


def test_in_flight_requests_are_bounded():
    rig = Rig(max_in_flight=1)
    rig.painters["video"].permits = threading.Semaphore(0)

    async def main():
        first = asyncio.ensure_future(rig.events(steps=1))
        while not rig.painters["video"].seen:
            await asyncio.sleep(0.005)
        with pytest.raises(QueueFull) as refused:
            await rig.events()
        assert 5 <= refused.value.retry_after <= 7  # nothing was made yet: a guess, not the same for all
        rig.core._ends = {0: asyncio.get_running_loop().time() + 40}
        with pytest.raises(QueueFull) as refused:
            await rig.events()
        assert 40 <= refused.value.retry_after <= 50
        rig.painters["video"].permits.release(1)
        return await first

    assert isinstance(asyncio.run(main())[-1], Finished)
    rig.close()


def test_a_place_that_is_lost_after_the_frame_was_drawn_is_waited_for(rig):
    rig.full["video"] = 2
    events = asyncio.run(rig.events(steps=1))
    assert isinstance(events[-1], Finished)
    assert len(rig.painters["first_frame"].seen) == 1
    rig.full["first_frame"] = 1  # nothing is drawn yet: the client is told
    with pytest.raises(QueueFull):
        asyncio.run(rig.events(steps=1))


def test_a_place_that_does_not_come_is_a_timeout_once_the_frame_was_drawn(rig):
    """Never a 429, which says that nothing was done."""
    rig.full["video"] = 1_000_000

    async def main():
        plan = rig.core.plan(GenerateRequest(prompt="a horse", category="horse"), seconds=0)
        rig.core._ends = {0: asyncio.get_running_loop().time() + 400}
        async for _ in rig.core._animate_in_time(plan, b"png"):
            pass

    with pytest.raises(TimedOut, match="still waited") as late:
        asyncio.run(main())
    assert 300 <= late.value.retry_after <= 600


def test_no_frame_is_drawn_for_a_clip_that_has_no_place(rig):
    def full():
        raise QueueFull("all video runners are full", 7)

    rig.core.check_room = full
    with pytest.raises(QueueFull) as refused:
        asyncio.run(rig.events(steps=1))
    assert refused.value.retry_after == 7
    assert not rig.painters["first_frame"].seen


def test_requests_that_take_too_long_are_given_up():
    rig = Rig(request_timeout=1)
    rig.painters["video"].permits = threading.Semaphore(0)
    with counted("huvidpo_requests_total", outcome="timeout", category="horse"), pytest.raises(TimedOut):
        asyncio.run(rig.events())
    rig.close()


def test_errors_cross_the_hop_with_their_kind(rig):
    rig.painters["video"].error = InvalidRequest("prompt: too many tokens", "prompt")
    with pytest.raises(InvalidRequest, match="too many tokens") as refused:
        asyncio.run(rig.events())
    assert refused.value.field == "prompt"


def test_faults_of_ours_do_not_tell_their_text(rig):
    rig.painters["video"].error = RuntimeError("secret /path")
    with (
        counted("huvidpo_requests_total", outcome="internal", category="horse"),
        pytest.raises(RuntimeError) as fault,
    ):
        asyncio.run(rig.events())
    assert "secret" not in str(fault.value)


def test_a_stopped_runner_is_unavailable(rig):
    rig.batchers["video"].close()
    with pytest.raises(Unavailable):
        asyncio.run(rig.events())


def test_draining_finishes_what_is_in_flight_and_admits_nothing(rig):
    rig.painters["first_frame"].permits = threading.Semaphore(0)

    async def main():
        accepted = asyncio.ensure_future(rig.events(steps=1))
        while not rig.painters["first_frame"].seen:
            await asyncio.sleep(0.005)
        rig.core.drain(30)
        with pytest.raises(Unavailable):
            await rig.events()
        rig.painters["first_frame"].permits.release(1000)
        return await accepted

    assert isinstance(asyncio.run(main())[-1], Finished)
    assert rig.core.in_flight == 0


def test_what_the_drain_has_no_time_for_is_told(rig):
    rig.painters["video"].permits = threading.Semaphore(0)

    async def main():
        accepted = asyncio.ensure_future(rig.events(steps=1))
        while not rig.painters["video"].seen:
            await asyncio.sleep(0.005)
        rig.core.drain(0)
        await accepted

    with pytest.raises(Unavailable):
        asyncio.run(main())
