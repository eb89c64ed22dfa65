"""The gateway's end of the hop: all runners of a stage, and to which of them a job goes.

BentoML knows one address of a service. Here it may be several, by commas, and a name is every address that it
has, looked up again and again: a headless Service's are its pods. Each runner says what waits in it (GET
/describe of desk.py); of a few that are drawn a job goes where the least does. One that does not answer gets
nothing until it does.

BentoML's own client (1.4.39) sends pickle or JSON only, and does not close a stream whose reader stops: the
responses are closed here, so the runner notices and drops the job.
"""

import asyncio
import logging
import random
import socket
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from opentelemetry.trace import SpanKind

from huvidpo.config import ClipRequest
from huvidpo.errors import InvalidRequest
from service import hop, metrics, tracing
from service.errors import QueueFull, Unavailable
from service.request_id import REQUEST_ID
from service.schemas import RunnerJob

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # between two looks at the names, and at what waits in each runner
ANSWER_SECONDS = 2.0  # that a runner has to describe itself
# Runners of which a job goes to the best, at random: what gateways know is a second old, and of all runners
# they would take the same one. With many runners fewer clips are late so (benchmarks/capacity.py).
DRAWN = 5
UNKNOWN_SECONDS = 1.0  # of work in a job, where the runner has not learnt yet
ALIVE_SECONDS = 10.0  # between two signs of life: a third of the lease of desk.py
RETRY_SECONDS = 0.2
WITHDRAW_SECONDS = 2.0
KEPT_PLACES = 10_000  # jobs that were left at a runner, of which it is known at which
LAST = ("done", "error")  # events that end a job
LOST = (aiohttp.ClientError, OSError, asyncio.IncompleteReadError)  # a TimeoutError is an OSError


@dataclass(eq=False)
class _Peer:
    """A runner. `report`: what it said of itself when it was asked last; None if that was nothing."""

    url: str
    session: aiohttp.ClientSession
    report: dict[str, Any] | None = None
    sent: float = 0.0  # seconds of work sent there since
    jobs: int = 0  # of this gateway that are there

    @property
    def ready(self) -> bool:
        return self.report is not None and self.report["ready"]

    @property
    def full(self) -> bool:
        return self.report is not None and self.report["waiting"] >= self.report["queue_size"]

    def gives(self, job: RunnerJob | ClipRequest) -> bool:
        """Whether its category can have that strength of preferences there."""
        return job.preference_strength == 1 or job.category in (self.report or {}).get("scalable", ())

    def cost(self, job: RunnerJob) -> tuple[float, bool, float]:
        """What to be least in: seconds of work before the job, then whether its category's weights are not
        there. Runners that are equal are drawn from.
        """
        report = self.report or {}
        there = job.category in report.get("weights", ())
        return report.get("queued_seconds", 0.0) + self.sent, not there, random.random()

    def take(self) -> None:
        self.jobs += 1
        self.sent += (self.report or {}).get("seconds_per_job") or UNKNOWN_SECONDS


class Router:
    """The runners of `stage`, at `addresses`. `start` before, and `close` after, on the event loop.

    A runner that does not accept a job within `accept_timeout` seconds counts as lost.
    """

    def __init__(self, stage: str, addresses: str, accept_timeout: float):
        self.stage, self.accept_timeout = stage, accept_timeout
        self._addresses = addresses.split(",")
        self._peers: dict[str, _Peer] = {}
        self._places: OrderedDict[str, str] = OrderedDict()  # id of a job -> URL of the runner that has it
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.look()
        self._looking = asyncio.create_task(self._look_forever())

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        for peer in self._peers.values():
            await peer.session.close()

    @property
    def ready(self) -> bool:
        """Whether a runner can take jobs."""
        return any(peer.ready for peer in self._peers.values())

    def weights(self) -> dict[str, list[str]]:
        """SHA-256 of the weights that ready runners have of each category, several while they change."""
        found: dict[str, set[str]] = {}
        for peer in self._peers.values():
            for category, sha256 in ((peer.report or {}).get("weights", {}) if peer.ready else {}).items():
                found.setdefault(category, set()).add(sha256)
        return {category: sorted(hashes) for category, hashes in found.items()}

    def check_strength(self, clip: ClipRequest) -> None:
        """Raises InvalidRequest when no ready runner can give its category another strength than 1."""
        ready = [peer for peer in self._peers.values() if peer.ready]
        if ready and not any(peer.gives(clip) for peer in ready):
            raise InvalidRequest(
                f"preference_strength: got {clip.preference_strength:g}; the weights of {clip.category} that "
                "run here have one strength only: leave it out, or send 1",
                "preference_strength",
            )

    def check_room(self) -> None:
        """Raises QueueFull when the queue of every runner is full, with the seconds until one has a place."""
        ready = [peer for peer in self._peers.values() if peer.ready]
        if ready and all(peer.full for peer in ready):
            wait = min(peer.report["retry_after"] for peer in ready if peer.report)
            wait = max(1, round(wait * random.uniform(1.0, 1.25)))
            raise QueueFull(f"all {self.stage} runners are full, try again in {wait} seconds", wait)

    async def __call__(self, job: RunnerJob) -> AsyncGenerator[dict[str, Any], None]:
        """The messages of `runners.stream` for `job`. A runner that is lost before it has accepted the job is
        replaced by another one, or asked a second time: it does a job once.

        Closing the generator cancels the job; one with `detach` is left to whoever brings it again, until
        it is withdrawn. Raises Unavailable when there is no runner, or it goes away.
        """
        accepted, tried = False, list[_Peer]()
        while True:
            peer = await self._choose(job, tried)
            if job.detach and tried and peer is not tried[-1]:
                await self._withdraw(tried[-1], job.id)  # it may have begun, and would go on for its lease
            tried.append(peer)
            peer.take()
            try:
                async with aclosing(self._bring(peer, job)) as messages:
                    async for message in messages:
                        accepted = True
                        if message["event"] in LAST:  # whose reader comes back for no more
                            self._places.pop(job.id, None)
                        yield message
                return
            except LOST as error:
                peer.report = None  # until it answers
                if accepted or len(tried) > 1 or isinstance(error, TimeoutError):
                    unavailable = "a runner is starting or restarting, try again in a few seconds"
                    raise Unavailable(unavailable) from error
            finally:
                peer.jobs -= 1
            await asyncio.sleep(RETRY_SECONDS)

    async def withdraw(self, id: str) -> None:
        """Nobody wants the job, which was left at its runner, any more."""
        if peer := self._peers.get(self._places.get(id, "")):
            await self._withdraw(peer, id)

    # --- which one ---

    async def _choose(self, job: RunnerJob, tried: Collection[_Peer]) -> _Peer:
        """Where the job is, if it is anywhere; else where the least waits, of DRAWN that have room. Raises
        Unavailable.
        """
        peers = [peer for peer in self._peers.values() if peer not in tried] or list(self._peers.values())
        if not peers:
            raise Unavailable(f"there is no {self.stage} runner, try again in a few seconds")
        if job.id not in self._places and job.begun_elsewhere:
            await self._find(job.id)
        known = self._peers.get(self._places.get(job.id, ""))
        if known in peers and known.report:
            peer = known
        else:
            ready = [peer for peer in peers if peer.ready]
            able = [peer for peer in ready if peer.gives(job)] or ready or peers
            room = [peer for peer in able if not peer.full] or able
            peer = min(random.sample(room, min(DRAWN, len(room))), key=lambda peer: peer.cost(job))
        if job.detach:
            self._places[job.id] = peer.url
            if len(self._places) > KEPT_PLACES:
                self._places.popitem(last=False)
        return peer

    async def _find(self, id: str) -> None:
        """Asks all runners for a job that another gateway may have brought to one of them."""

        async def has(peer: _Peer) -> bool:
            with suppress(*LOST):
                async with asyncio.timeout(ANSWER_SECONDS), peer.session.head(_path(id)) as response:
                    return response.status == 204
            return False

        peers = list(self._peers.values())
        for peer, there in zip(peers, await asyncio.gather(*map(has, peers)), strict=True):
            if there:
                self._places[id] = peer.url

    # --- what there is ---

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:
                logger.exception("looking for %s runners failed, it is tried again", self.stage)

    async def look(self) -> None:
        """Who there is now, and how each is."""
        urls = await self._resolve()
        for url in urls - self._peers.keys():
            self._peers[url] = _Peer(url, _session(url))
        for peer in [peer for url, peer in self._peers.items() if url not in urls]:
            peer.report = None
            if not peer.jobs:
                del self._peers[peer.url]
                await peer.session.close()
        await asyncio.gather(*(_ask(peer) for url, peer in self._peers.items() if url in urls))
        ready = sum(peer.ready for peer in self._peers.values())
        metrics.RUNNERS.labels(self.stage, "ready").set(ready)
        metrics.RUNNERS.labels(self.stage, "not_ready").set(len(self._peers) - ready)

    async def _resolve(self) -> set[str]:
        """Every address of every name. One that cannot be looked up just now keeps those it had."""
        urls = set[str]()
        for address in self._addresses:
            parts = urlsplit(address)
            if parts.scheme == "file":
                urls.add(address)
                continue
            loop, port = asyncio.get_running_loop(), parts.port or 80
            try:
                found = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
            except OSError as error:
                logger.warning("%s: %s", parts.hostname, error.strerror)
                urls |= self._peers.keys()
                continue
            hosts = {str(where[0]) for *_, where in found}
            # of one that is named in both families, so that it does not count as two
            hosts = {host for host in hosts if ":" not in host} or hosts
            urls |= {f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts}
        return urls

    # --- the hop ---

    async def _bring(self, peer: _Peer, job: RunnerJob) -> AsyncGenerator[dict[str, Any], None]:
        headers = {"Content-Type": hop.MEDIA_TYPE, "X-Request-Id": REQUEST_ID.get()}
        span = tracing.start(f"hop to {self.stage}", SpanKind.CLIENT)
        if trace_parent := tracing.header(span):
            headers["traceparent"] = trace_parent
        try:
            async with aclosing(self._read(peer, job, headers)) as messages:
                async for message in messages:
                    yield message
        except Exception as error:
            tracing.failed(span, error)
            raise
        finally:
            span.end()

    async def _read(
        self, peer: _Peer, job: RunnerJob, headers: dict[str, str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        async with asyncio.timeout(self.accept_timeout):
            response = await peer.session.put(_path(job.id), data=hop.pack_job(job), headers=headers)
        try:
            if response.status != 200:
                raise RuntimeError(f"the runner answered {response.status}: {(await response.text())[:500]}")
            async with _signs_of_life(peer, job.id):
                async for message in hop.messages(response.content):
                    yield message
        finally:
            response.close()

    async def _withdraw(self, peer: _Peer, id: str) -> None:
        if self._places.get(id) == peer.url:
            del self._places[id]
        with suppress(*LOST):
            async with asyncio.timeout(WITHDRAW_SECONDS):
                (await peer.session.delete(_path(id))).release()


async def _ask(peer: _Peer) -> None:
    """Raises nothing: a runner that does not describe itself is not used."""
    report = None
    with suppress(*LOST, ValueError):
        async with asyncio.timeout(ANSWER_SECONDS), peer.session.get("/describe") as response:
            if response.status == 200:
                report = await response.json()
    peer.report, peer.sent = report, 0.0


def _session(url: str) -> aiohttp.ClientSession:
    """Of one runner: as many connections as there are jobs, kept for the next one."""
    timeout, parts = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_SECONDS), urlsplit(url)
    if parts.scheme == "file":
        socket_ = aiohttp.UnixConnector(unquote(parts.path), limit=0)
        return aiohttp.ClientSession("http://runner", connector=socket_, timeout=timeout)
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


@asynccontextmanager
async def _signs_of_life(peer: _Peer, id: str) -> AsyncIterator[None]:
    async def signs() -> None:
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            with suppress(*LOST):
                (await peer.session.post(_path(id))).release()

    task = asyncio.ensure_future(signs())
    try:
        yield
    finally:
        task.cancel()


def _path(id: str) -> str:
    return f"/jobs/{id}"
