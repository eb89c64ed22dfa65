"""A runner's desk and the gateway's end of the hop, over real HTTP; jobs that the tests hold back."""

import asyncio
import logging
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace

import aiohttp
import pytest
import uvicorn
from ports import free_port

from service import hop, remote
from service.desk import PREFIX, Desk, DeskDoor
from service.errors import QueueFull, Unavailable, to_dict
from service.http import Guard
from service.request_id import REQUEST_ID, TRACE_PARENT
from service.schemas import RunnerJob


class Work:
    """What a desk runs: every step waits for a permit."""

    def __init__(self):
        self.permits = asyncio.Semaphore(0)
        self.begun = self.ended = self.steps = 0
        self.error: Exception | None = None
        self.seen: list[tuple[str, str]] = []

    async def __call__(self, job):
        self.begun += 1
        self.seen.append((REQUEST_ID.get(), TRACE_PARENT.get()))
        try:
            if self.error:
                yield hop.pack({"event": "error"} | to_dict(self.error))
                return
            yield hop.pack({"event": "accepted", "position": 0, "eta": None})
            for step in (1, 2, 3):
                await self.permits.acquire()
                self.steps += 1
                yield hop.pack({"event": "step", "step": step, "total": 3})
            yield hop.pack({"event": "done"}, job.prompt.encode())
        finally:
            self.ended += 1

    def allow(self, steps=3):
        for _ in range(steps):
            self.permits.release()


def job(id="1", **fields):
    known = {"category": "horse", "style": "cartoon", "seed": 1, "negative_prompt": None, "options": {}}
    return RunnerJob(id=id, prompt="a horse", **known, **fields)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def read(messages, most=99):
    """Names of the events, the data of the last."""
    names, last = [], {}
    async with aclosing(messages) as stream:
        async for message in stream:
            last = hop.unpack(message) if isinstance(message, bytes) else message
            names.append(last["event"])
            if len(names) == most:
                break
    return names, last.get("data")


WHOLE = (["accepted", "step", "step", "step", "done"], b"a horse")


def test_a_job_that_is_brought_twice_is_done_once_and_read_twice():
    async def main():
        work = Work()
        desk = Desk(work)
        first = asyncio.ensure_future(read(desk.bring("1", job())))
        await until(lambda: work.begun)
        work.allow(1)
        await until(lambda: work.steps)
        second = asyncio.ensure_future(read(desk.bring("1", job())))
        await asyncio.sleep(0)
        work.allow(2)
        assert await first == WHOLE
        assert await second == WHOLE
        assert work.begun == 1
        work.allow()
        assert await read(desk.bring("1", job())) == WHOLE  # nobody held it: it is done anew
        assert work.begun == 2

    asyncio.run(main())


def test_a_job_that_nobody_reads_ends():
    async def main():
        work = Work()
        desk = Desk(work)
        assert await read(desk.bring("1", job()), most=1) == (["accepted"], None)
        await until(lambda: work.ended)
        with pytest.raises(Exception, match="no such job"):
            desk.heard("1")

    asyncio.run(main())


def test_a_detached_job_lives_for_its_lease_and_keeps_its_result():
    async def main():
        work = Work()
        desk = Desk(work, lease=600)
        await read(desk.bring("1", job(detach=True)), most=1)
        work.allow()
        await until(lambda: work.ended)  # done, with nobody there
        assert await read(desk.bring("1", job(detach=True))) == WHOLE
        assert work.begun == 1
        desk.withdraw("1")
        with pytest.raises(Exception, match="no such job"):
            desk.heard("1")

        desk.lease = 0.05
        await read(desk.bring("2", job("2", detach=True)), most=1)
        await until(lambda: work.ended == 2)
        assert work.steps == 3  # given up before its first

    asyncio.run(main())


def test_a_gateway_that_is_not_heard_of_reads_no_more():
    """Its connection is open: nothing says that the reader is gone."""

    async def main():
        work = Work()
        desk = Desk(work, lease=0.3)
        silent = asyncio.ensure_future(read(desk.bring("1", job())))
        loud = asyncio.ensure_future(read(desk.bring("2", job("2"))))
        await until(lambda: work.begun == 2)
        while not silent.done():
            desk.heard("2")
            await asyncio.sleep(0.005)
        assert (await silent)[0] == ["accepted", "error"]
        work.allow()
        assert await loud == WHOLE

    asyncio.run(main())


def test_what_failed_is_tried_anew_and_lateness_is_told():
    async def main():
        work = Work()
        desk = Desk(work)
        work.error = QueueFull("full", 3)
        assert (await read(desk.bring("1", job(detach=True))))[0] == ["error"]
        work.error = None
        work.allow()
        assert await read(desk.bring("1", job(detach=True))) == WHOLE
        names, _ = await read(desk.bring("2", job("2", seconds=0.05)))
        assert names == ["accepted", "error"]
        await until(lambda: work.ended == 3)

    asyncio.run(main())


@asynccontextmanager
async def runner(work):
    """A desk behind the guard on a loopback port, and what stands for BentoML's proxy of it."""
    desk = Desk(work)
    app = Guard(
        DeskDoor(lambda *_: None, lambda: desk), max_body=2**20, prefixes=(PREFIX,), reads=hop.MEDIA_TYPE
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_level=logging.ERROR))
    serving = asyncio.ensure_future(server.serve())
    await until(lambda: server.started)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield desk, proxy_of(session)
    server.should_exit = True
    await serving


def proxy_of(session):
    async def get_session():
        return session

    return SimpleNamespace(
        to_async=SimpleNamespace(_session_manager=SimpleNamespace(get_session=get_session))
    )


def test_the_hop_carries_who_asks_and_a_reader_that_leaves_ends_the_job():
    async def main():
        work = Work()
        async with runner(work) as (_, proxy):
            REQUEST_ID.set("mine")
            TRACE_PARENT.set("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            work.allow()
            assert await read(remote.run(proxy, job(), 10)) == WHOLE
            assert work.seen == [("mine", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
            for detach in (False, True):
                before = work.ended
                await read(remote.run(proxy, job("2", detach=detach), 10), most=1)
                await until(lambda before=before: work.ended == before + 1)

    asyncio.run(main())


def test_a_gateway_that_leaves_lets_the_next_one_go_on():
    async def main():
        work = Work()
        async with runner(work) as (_, proxy):
            await read(remote.run(proxy, job(detach=True), 10, leaving=lambda: True), most=1)
            work.allow()
            assert await read(remote.run(proxy, job(detach=True), 10)) == WHOLE
            assert work.begun == 1

    asyncio.run(main())


@pytest.mark.parametrize("drops", [1, 2])
def test_a_runner_that_is_lost_before_it_accepts_is_asked_once_more(drops, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.0)

    async def main():
        work, dropped = Work(), 0
        work.allow()

        async def drop(reader, writer):
            writer.close()

        async with runner(work) as (_, proxy):
            server = await asyncio.start_server(drop, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            async with server, aiohttp.ClientSession(f"http://{address[0]}:{address[1]}") as dropping:
                good = await proxy.to_async._session_manager.get_session()

                async def get_session():
                    nonlocal dropped
                    dropped += 1
                    return dropping if dropped <= drops else good

                proxy.to_async._session_manager.get_session = get_session
                if drops == 1:
                    assert await read(remote.run(proxy, job(), 10)) == WHOLE
                else:
                    with pytest.raises(Unavailable):
                        await read(remote.run(proxy, job(), 10))
        assert dropped == 2

    asyncio.run(main())


def test_a_runner_that_is_lost_later_is_not_asked_again():
    async def main():
        asked = 0

        async def accept_and_drop(reader, writer):
            nonlocal asked
            asked += 1
            await reader.readuntil(b"\r\n\r\n")
            line = hop.pack({"event": "accepted", "position": 0, "eta": None})
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head + b"%x\r\n%b\r\n" % (len(line), line))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(accept_and_drop, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        async with server, aiohttp.ClientSession(f"http://{address[0]}:{address[1]}") as session:
            with pytest.raises(Unavailable):
                await read(remote.run(proxy_of(session), job(), 10))
        assert asked == 1

    asyncio.run(main())
