"""Streams of server-sent events, as plain ASGI; what they say of clips is in tests/e2e/test_events.py."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

from huvidpo.catalog import load_catalog
from service import events
from service.events import EventStream, sse
from service.job_rows import new_job
from service.settings import Settings
from service.videos import _changes


def test_a_stream_closes_its_source_when_the_client_leaves():
    """At once, though the next event never comes."""
    closed, sent = [], []

    async def source():
        try:
            yield sse("step", {"step": 1}, 7)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cleaning up may take a while
            closed.append(True)

    async def main():
        started = asyncio.Event()

        async def send(message):
            sent.append(message)
            if message.get("body"):
                started.set()

        async def receive():
            await started.wait()
            return {"type": "http.disconnect"}

        await EventStream(source())({"type": "http"}, receive, send)

    asyncio.run(main())
    assert closed == [True]
    assert dict(sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
    assert sent[1]["body"] == b'id: 7\nevent: step\ndata: {"step": 1}\n\n'


def test_silence_is_filled_with_comments(monkeypatch):
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.01)

    async def main():
        heard = asyncio.Event()

        async def source():
            await heard.wait()
            yield "one"

        async for event in events.beating(source()):
            yield event
            heard.set()

    async def collect():
        return [event async for event in main()]

    got = asyncio.run(collect())
    assert (got[0], got[-1], set(got)) == (": still here\n\n", "one", {": still here\n\n", "one"})


def test_a_job_waits_begins_and_steps():
    """`started` of each stage comes before its steps; who comes back is not told again."""
    asked = {"prompt": "rain", "category": "rain", "style": None, "seed": 1, "negative_prompt": None}
    asked |= {"format": "mp4", "frames": 4, "fps": 8, "steps": 2, "guidance": 7.5}
    job = new_job("video_1", "", asked, total=3, source=None)
    claimed = replace(job, status="in_progress")
    ended = replace(claimed, done=3, status="completed", completed_at=job.created_at)
    seen = [
        job, claimed, replace(claimed, position=1), replace(claimed, stage="first_frame"),
        replace(claimed, stage="first_frame", done=1), replace(claimed, done=1, position=0),
        replace(claimed, stage="video", done=2),  # one look for both
        ended,
    ]  # fmt: skip

    async def heard(last, states):
        async def watch(id, owner):
            for state in states:
                yield state

        core = SimpleNamespace(catalog=load_catalog(), settings=Settings())
        engine = SimpleNamespace(watch=watch, core=core)
        lines = [event.splitlines() async for event in _changes(engine, "video_1", "", last)]
        return [tuple(line for line in one if line and not line.startswith("data")) for one in lines]

    begins, moves = ("event: started",), ("event: in_progress",)
    assert asyncio.run(heard(-1, seen)) == [
        ("id: 0", "event: queued"), ("id: 1", *moves), moves, begins, ("id: 2", *moves), moves, begins,
        ("id: 3", *moves), ("id: 5", "event: completed"),
    ]  # fmt: skip
    assert asyncio.run(heard(2, seen[4:])) == [
        moves,
        begins,
        ("id: 3", *moves),
        ("id: 5", "event: completed"),
    ]
