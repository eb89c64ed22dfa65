"""A runner's desk and the gateway's end of the hop, over real HTTP; jobs that the tests hold back."""

import asyncio
import json
import logging
import socket
from collections import Counter
from contextlib import aclosing, asynccontextmanager

import aiohttp
import pytest
import uvicorn
from ports import free_port

from huvidpo.config import ClipRequest
from huvidpo.errors import InvalidRequest
from service import hop, router
from service.desk import DESCRIBE, PREFIX, Desk, DeskDoor
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
        self.report = {
            "ready": True,
            "waiting": 0,
            "queue_size": 4,
            "queued_seconds": 0.0,
            "retry_after": 1.0,
        }
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


def asked(strength):
    return ClipRequest("a horse", "horse", 1, preference_strength=strength)


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
    """A desk behind the guard on a loopback port, and its address."""
    desk = Desk(work)
    door = DeskDoor(lambda *_: None, lambda: desk, lambda: work.report)
    app = Guard(door, max_body=2**20, paths=frozenset({DESCRIBE}), prefixes=(PREFIX,), reads=hop.MEDIA_TYPE)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_level=logging.ERROR))
    serving = asyncio.ensure_future(server.serve())
    await until(lambda: server.started)
    yield desk, f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


@asynccontextmanager
async def routing(*addresses, **options):
    routed = router.Router("video", ",".join(addresses), 10, **options)
    await routed.start()
    try:
        yield routed
    finally:
        await routed.close()


def test_the_hop_carries_who_asks_and_a_reader_that_leaves_ends_the_job():
    async def main():
        work = Work()
        async with runner(work) as (_, address), routing(address) as routed:
            REQUEST_ID.set("mine")
            TRACE_PARENT.set("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            work.allow()
            assert await read(routed(job())) == WHOLE
            assert work.seen == [("mine", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
            await read(routed(job("2")), most=1)
            await until(lambda: work.ended == 2)
            await read(routed(job("3", detach=True)), most=1)
            assert work.ended == 2  # it may be brought again
            await routed.withdraw("3")
            await until(lambda: work.ended == 3)

    asyncio.run(main())


def test_what_a_gateway_leaves_goes_on_for_the_next_one():
    """Which finds the runner that has the job, whichever has the least to do."""

    async def main():
        work, idle = Work(), Work()
        idle.report["queued_seconds"] = 5.0
        async with runner(work) as (_, first), runner(idle) as (_, second):
            async with routing(first, second) as routed, routing(first, second) as heir:
                await read(routed(job(detach=True)), most=1)
                await read(heir(job(detach=True, begun_elsewhere=True)), most=1)
            work.allow()
            work.report["queued_seconds"] = 10.0
            async with routing(first, second) as routed:
                assert await read(routed(job(detach=True, begun_elsewhere=True))) == WHOLE
        assert (work.begun, idle.begun) == (1, 0)

    asyncio.run(main())


@asynccontextmanager
async def broken(*, accept=False):
    """A runner that describes itself, and drops every job, or every job once it has accepted it."""
    asked: list[str] = []
    report = json.dumps({"ready": True, "waiting": 0, "queue_size": 4, "queued_seconds": 0.0})

    async def answer(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            headers = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(report)}"
            writer.write(f"{headers}\r\nConnection: close\r\n\r\n{report}".encode())
        else:
            asked.append(" ".join(head.split()[:2]))
            if accept:
                line = hop.pack({"event": "accepted", "position": 0, "eta": None})
                head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                writer.write(head + b"%x\r\n%b\r\n" % (len(line), line))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        yield f"http://{host}:{port}", asked


@pytest.mark.parametrize("another", [True, False])
def test_a_runner_that_is_lost_before_it_accepts(another, monkeypatch):
    """Another one gets the job; where there is none, it is asked once more."""
    monkeypatch.setattr(router, "RETRY_SECONDS", 0.0)

    async def main():
        work = Work()
        work.report["queued_seconds"] = 9.0
        work.allow()
        async with (
            broken() as (bad, asked),
            runner(work) as (_, good),
            routing(*([bad, good] if another else [bad])) as routed,
        ):
            if another:
                assert await read(routed(job())) == WHOLE
            else:
                with pytest.raises(Unavailable):
                    await read(routed(job()))
            assert set(asked) == {"PUT /jobs/1"}
            assert len(asked) >= (1 if another else 2)  # the client's library may try again by itself

    asyncio.run(main())


def test_a_runner_that_may_have_begun_is_told_before_another_one_is_asked(monkeypatch):
    """A detached job whose gateway lost its runner before it accepted would be done there for its lease."""
    monkeypatch.setattr(router, "RETRY_SECONDS", 0.0)

    async def main():
        work = Work()
        work.report["queued_seconds"] = 9.0
        work.allow()
        async with broken() as (bad, asked), runner(work) as (_, good), routing(bad, good) as routed:
            assert await read(routed(job(detach=True))) == WHOLE
        assert (asked[0], asked[-1], work.begun) == ("PUT /jobs/1", "DELETE /jobs/1", 1)

    asyncio.run(main())


def test_a_runner_that_is_lost_later_is_not_replaced():
    async def main():
        work = Work()
        work.report["queued_seconds"] = 9.0
        async with broken(accept=True) as (bad, asked), runner(work) as (_, good):
            async with routing(bad, good) as routed:
                with pytest.raises(Unavailable):
                    await read(routed(job()))
            assert (asked, work.begun) == (["PUT /jobs/1"], 0)

    asyncio.run(main())


def test_gateways_that_know_the_same_do_not_all_send_to_one_runner():
    """Each draws some runners with room, and takes the best of these; the worst never."""

    def peer(n):
        report = {"ready": True, "waiting": 64 * (n == 0), "queue_size": 64, "queued_seconds": float(n)}
        return router._Peer(f"http://{n}", None, report)

    async def main():
        routed = router.Router("video", "http://a", 10)
        routed._peers = {f"http://{n}": peer(n) for n in range(20)}
        return Counter([(await routed._choose(job(), [])).url for _ in range(300)])

    chosen = asyncio.run(main())
    assert len(chosen) > 5
    assert set(chosen) <= {f"http://{n}" for n in range(1, 21 - router.DRAWN)}
    assert chosen["http://1"] > 300 / 19


def test_where_a_job_was_is_forgotten_when_it_has_ended():
    """By readers that leave with the last message, as the core does; every job would be remembered else."""

    async def main():
        work = Work()
        async with runner(work) as (_, address), routing(address) as routed:
            work.allow(6)
            for id in ("1", "2"):
                assert await read(routed(job(id, detach=True)), most=len(WHOLE[0])) == WHOLE
            work.error = QueueFull("full", 3)
            assert await read(routed(job("3", detach=True)), most=1) == (["error"], None)
            assert not routed._places

    asyncio.run(main())


def test_jobs_go_where_the_least_waits():
    """What was sent since a runner reported counts; between equals, the one with the category's weights."""

    async def main():
        busy, free = Work(), Work()
        busy.report |= {"queued_seconds": 2.5, "seconds_per_job": 1.0}
        free.report |= {"seconds_per_job": 1.0}
        async with runner(busy) as (_, first), runner(free) as (_, second), routing(first, second) as routed:
            for work in (busy, free):
                work.allow(60)
            for number in range(5):
                assert await read(routed(job(str(number)))) == WHOLE
            assert (busy.begun, free.begun) == (1, 4)  # 2.5 | 0, 1, 2, 3 -> 3.5 | 3
            busy.report |= {"queued_seconds": 0.0, "weights": {"horse": "5e7"}}
            for number in range(5, 9):
                await routed.look()
                await read(routed(job(str(number))))
            assert (busy.begun, free.begun) == (5, 4)
            with pytest.raises(
                InvalidRequest, match=r"got 0\.5; the weights of horse that run here have one"
            ):
                routed.check_strength(asked(0.5))
            free.report["scalable"] = ["horse"]
            await routed.look()
            for strength in (0.5, 1):
                routed.check_strength(asked(strength))
            await read(routed(job("9", preference_strength=0.5)))  # though it has not the weights yet
            assert (busy.begun, free.begun) == (5, 5)

    asyncio.run(main())


def test_runners_come_go_and_fill_up(monkeypatch):
    """A name is every address it has; one that is lost from it gets nothing more."""

    async def main():
        here, there = Work(), Work()
        async with runner(here) as (_, first), runner(there) as (_, second):
            ports, found = [int(url.rpartition(":")[2]) for url in (first, second)], []
            loop = asyncio.get_running_loop()

            async def look_up(host, port, **_):
                assert (host, port) == ("video.example", 3000)
                if not found:
                    raise socket.gaierror("no such name")
                return [(None, None, None, "", ("127.0.0.1", port)) for port in found]

            monkeypatch.setattr(loop, "getaddrinfo", look_up)
            monkeypatch.setattr(router, "_session", lambda url: aiohttp.ClientSession(url))
            real = router.Router._resolve

            async def resolve(self):
                return {f"http://127.0.0.1:{port}" for port in found} if found else await real(self)

            monkeypatch.setattr(router.Router, "_resolve", resolve)
            async with routing("http://video.example:3000") as routed:
                assert not routed.ready
                with pytest.raises(Unavailable, match="no video runner"):
                    await read(routed(job()))
                for work in (here, there):
                    work.allow(30)
                found[:] = ports[:1]
                await routed.look()
                assert routed.ready
                await read(routed(job("1")))
                found[:] = ports[1:]
                await routed.look()
                await read(routed(job("2")))
                assert (here.begun, there.begun) == (1, 1)
                found.clear()  # nobody knows the name just now: who was known stays
                await routed.look()
                assert routed.ready
                there.report["waiting"] = 4
                await routed.look()
                with pytest.raises(QueueFull, match="all video runners are full"):
                    routed.check_room()
                there.report["waiting"] = 3
                await routed.look()
                routed.check_room()

    asyncio.run(main())


def test_a_name_in_both_families_is_one_runner(monkeypatch):
    async def main():
        async def look_up(host, port, **_):
            hosts = {"both": ["10.0.0.1", "fd00::1"], "six": ["fd00::2"], "127.0.0.2": ["127.0.0.2"]}[host]
            return [(None, None, None, "", (host, port)) for host in hosts]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        addresses = "http://both:3000,http://six:3000,file:///run/a%20b.sock,tcp://127.0.0.2:9"
        urls = await router.Router("video", addresses, 10)._resolve()
        assert urls == {
            "http://10.0.0.1:3000",
            "http://[fd00::2]:3000",
            "file:///run/a%20b.sock",
            "http://127.0.0.2:9",
        }

    asyncio.run(main())


def test_a_runner_says_what_it_is():
    async def main():
        async with runner(Work()) as (desk, address), aiohttp.ClientSession(address) as session:
            async with session.get("/describe") as answer:
                assert (answer.status, (await answer.json())["ready"]) == (200, True)
            async with session.head("/jobs/1") as answer:
                assert answer.status == 404
            reading = asyncio.ensure_future(read(desk.bring("1", job())))
            await until(lambda: desk.has("1"))
            async with session.head("/jobs/1") as answer:
                assert answer.status == 204
            reading.cancel()

    asyncio.run(main())
