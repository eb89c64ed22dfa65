"""Streams of server-sent events, as plain ASGI; what they say of clips is in tests/e2e/test_events.py."""

import asyncio

from service import events
from service.events import EventStream, sse


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
