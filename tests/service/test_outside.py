"""Addresses that callers name: which are called at all, and pictures from a real TLS server on loopback.

The only thing that is not real is who is where: names are looked up in a table, and 127.0.0.1 is public.
"""

import asyncio
import gzip
import io
import ipaddress
import json
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from certificates import write_server_certificate
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from huvidpo.catalog import load_catalog
from huvidpo.errors import InvalidRequest
from huvidpo.video import encode
from service import generation, image_url, outside
from service.errors import Conflict, ContentRefused, QueueFull, Unavailable
from service.generation import Finished, Generation
from service.grpc_server import read as read_message
from service.http import Guard, answer_generate
from service.images import from_png, to_png
from service.jobs import JobEngine
from service.protos import video_generation_pb2 as messages
from service.schemas import GenerateRequest, parse
from service.settings import Settings
from service.videos import read

HOST = "pictures.example"
# What https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6- call not globally reachable;
# multicast; an address at which a cloud answers its own machines
V4 = """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 168.63.129.16/32"""
V6 = """::/8 100::/8 200::/7 400::/6 800::/5 1000::/4 4000::/2 8000::/1 2001::/32 2001:2::/48 2001:db8::/32"""
CLOSED_4 = [ipaddress.ip_network(one) for one in V4.split()]
CLOSED_6 = [ipaddress.ip_network(one) for one in V6.split()]
INSIDE_4 = st.sampled_from(CLOSED_4).flatmap(lambda network: st.ip_addresses(network=network))
INSIDE_6 = st.sampled_from(CLOSED_6).flatmap(lambda network: st.ip_addresses(network=network))
# how an IPv6 address may hold one of IPv4
WRAPS = {
    "mapped": lambda ip: (0xFFFF << 32) + int(ip), "compatible": int,
    "translated": lambda ip: (0xFFFF << 48) + int(ip),
    "NAT64": lambda ip: int(ipaddress.ip_address("64:ff9b::")) + int(ip),
    "local NAT64": lambda ip: int(ipaddress.ip_address("64:ff9b:1::")) + int(ip),
    "6to4": lambda ip: (0x2002 << 112) + (int(ip) << 80) + 1,
    "Teredo": lambda ip: (0x20010000 << 96) + (int(ip) ^ 0xFFFFFFFF),
}  # fmt: skip


@settings(deadline=None)
@given(INSIDE_4)
def test_no_address_of_a_private_network_is_public_however_it_is_wrapped(ip):
    assert not outside.is_public(str(ip))
    for name, wrap in WRAPS.items():
        assert not outside.is_public(str(ipaddress.IPv6Address(wrap(ip)))), name


@settings(deadline=None)
@given(INSIDE_6)
def test_nor_is_what_ipv6_gives_to_nobody(ip):
    held = ip.ipv4_mapped or (ip in outside._NAT64 and ipaddress.ip_address(int(ip) & 0xFFFFFFFF))
    assert not outside.is_public(str(ip)) or (held and not any(held in network for network in CLOSED_4))


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_the_others_are(ip):
    others = not any(ip in network for network in CLOSED_4)
    assert outside.is_public(str(ip)) is others
    assert outside.is_public(str(ipaddress.IPv6Address(WRAPS["NAT64"](ip)))) is others


@pytest.mark.parametrize(("address", "public"), [
    ("8.8.8.8", True), ("2606:4700::1111", True), ("100.64.0.1", False), ("224.0.0.1", False),
    ("ff02::1", False), ("2002:7f00:1::", False), ("::", False), ("::1", False), ("fe80::1%eth0", False),
    ("64:ff9b::808:808", True), ("192.0.2.1", False), ("255.255.255.255", False), ("fd00:ec2::254", False),
    ("fec0::1", False),
])  # fmt: skip
def test_public_addresses(address, public):
    assert outside.is_public(address) is public


@settings(deadline=None)
@given(st.text(max_size=60) | st.text(max_size=60).map(lambda text: f"https://{text}"))
def test_whatever_is_named_there_is_an_address_or_a_sentence(url):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *asked: [(0, 0, 0, "", ("10.0.0.1", 443))])
        with pytest.raises(
            InvalidRequest, match=r"^image_url: (expected an address|.* has no public address)"
        ):
            asyncio.run(outside.look_up(url, "image_url"))


class Pictures(ThreadingHTTPServer):
    """Answers every GET by `answer`, a function of the handler; `got` has what was asked for. `asked` are the
    names that were looked up, `where` the addresses that the next ones have.
    """

    def __init__(self, certificate):
        super().__init__(("127.0.0.1", 0), _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.got, self.asked, self.where = [], [], [["127.0.0.1"]]
        self.answer = lambda handler: send(handler, picture())
        self.url = f"https://{HOST}:{self.server_port}/a.png?token=secret"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def look_up(self, host, port, *more):
        if host[0].isdigit():
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        self.asked.append(host)
        addresses = self.where.pop(0) if len(self.where) > 1 else self.where[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    def handle_error(self, request, client_address):
        pass  # who does not trust us hangs up


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.got.append((self.path, dict(self.headers)))
        self.server.answer(self)

    def log_message(self, *line):
        pass


def send(handler, data, status=200, length=True, **headers):
    handler.send_response(status)
    for name, value in ({"Content_Type": "image/png"} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    if length:
        handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def picture(format="PNG", colour=(200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, format=format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return write_server_certificate(tmp_path_factory.mktemp("tls"), HOST)


@pytest.fixture
def pictures(authority, monkeypatch):
    server = Pictures(authority[1])
    public = outside.is_public
    monkeypatch.setattr(outside, "is_public", lambda address: address == "127.0.0.1" or public(address))
    trust = ssl.create_default_context(cafile=str(authority[0]))
    monkeypatch.setattr(outside, "_trust", lambda: trust)
    monkeypatch.setattr(socket, "getaddrinfo", server.look_up)
    yield server
    server.shutdown()
    server.server_close()


def fetch(url, seconds=30.0, most=10_000):
    return asyncio.run(image_url.fetch(url, seconds, most))


def test_a_picture_comes_whole_and_asks_for_nothing_else(pictures, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # would look the name up anew
    assert fetch(pictures.url) == picture()
    ((path, headers),) = pictures.got
    assert path == "/a.png?token=secret"
    assert headers["Host"] == f"{HOST}:{pictures.server_port}"
    assert "Authorization" not in headers
    assert "Cookie" not in headers


def test_a_name_that_means_another_machine_a_moment_later_is_of_no_use(pictures):
    """It is looked up once, and the connection goes to the address that was checked."""
    pictures.where = [["127.0.0.1"], ["10.0.0.1"]]
    assert fetch(pictures.url) == picture()
    assert pictures.asked == [HOST]
    with pytest.raises(InvalidRequest, match=f"image_url: the host '{HOST}' has no public address"):
        fetch(pictures.url)
    pictures.where = [["8.8.8.8", "10.0.0.1"]]  # one good address does not make up for another
    with pytest.raises(InvalidRequest, match="has no public address"):
        fetch(pictures.url)
    assert len(pictures.got) == 1


def test_the_certificate_has_to_be_that_of_the_name(pictures, monkeypatch):
    with pytest.raises(InvalidRequest, match="cannot be read over https"):
        fetch(pictures.url.replace(HOST, "other.example"))
    with pytest.raises(InvalidRequest, match="cannot be read over https"):
        fetch(pictures.url.replace(HOST, "127.0.0.1"))
    monkeypatch.setattr(outside, "_trust", httpx.create_ssl_context)
    with pytest.raises(InvalidRequest, match="cannot be read over https"):
        fetch(pictures.url)
    assert not pictures.got


@pytest.mark.parametrize(("answer", "says"), [
    (lambda one: send(one, b"", 302, Location="https://127.0.0.1/"), "another one, which is not followed"),
    (lambda one: send(one, b"", 307, Location="/b.png"), "leads to another one"),
    (lambda one: send(one, picture(), 404), "answered 404 instead of a picture"),
    (lambda one: send(one, picture(), 206), "answered 206"),
    (lambda one: send(one, b"<html>", Content_Type="text/html; charset=utf-8"), "something else than a PNG"),
    (lambda one: send(one, b"<svg/>", Content_Type="image/svg+xml"), "something else than a PNG"),
    (lambda one: send(one, b"x" * 10_001), "larger than 10000 bytes"),
    (lambda one: one.wfile.write(b"nonsense\r\n\r\n"), "cannot be read over https"),
    (lambda one: one.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nx"),
     "cannot be read over https"),
])  # fmt: skip
def test_what_is_no_picture_is_refused_in_a_sentence(pictures, caplog, answer, says):
    pictures.answer = answer
    with pytest.raises(InvalidRequest, match=f"^image_url: .*{says}") as refused:
        fetch(pictures.url)
    assert refused.value.field == "image_url"
    assert len(pictures.got) == 1
    assert "secret" not in str(refused.value) + caplog.text


def test_a_body_without_end_or_size_is_read_as_far_as_it_may_go(pictures):
    sent, gone = [0], threading.Event()

    def endless(handler):
        send(handler, b"", length=False)
        try:
            for _ in range(10_000):
                handler.wfile.write(b"x" * 10_000)
                sent[0] += 10_000
        finally:
            gone.set()

    pictures.answer = endless
    with pytest.raises(InvalidRequest, match="larger than 10000 bytes"):
        fetch(pictures.url)
    assert gone.wait(30)
    assert sent[0] < 100_000_000


def test_drops_do_not_win_time(pictures):
    """The limit is on all of it: one that sends something now and then is cut off too."""
    stop = threading.Event()

    def dropping(handler):
        send(handler, b"", length=False)
        while not stop.is_set():
            handler.wfile.write(b"x")
            time.sleep(0.01)

    pictures.answer = dropping
    with pytest.raises(InvalidRequest, match=r"did not come within 0\.3 seconds"):
        fetch(pictures.url, seconds=0.3)
    stop.set()


def painter(stage, seen):
    async def run(job):
        seen[stage].append(job)
        frames = np.full((job.options["frames"], 64, 64, 3), 127, np.uint8)
        data = to_png(frames[0]) if stage == "first_frame" else encode(frames, 8)
        told = {"queued": 0.0, "seconds": 0.1, "encode": 0.0, "backend": "painter"}
        yield {"event": "done", "data": data} | told

    return run


@pytest.fixture
def core(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('[weapons]\naction = "block"\ndeny = ["gun"]')
    settings = Settings(image_url_seconds=30, data=str(tmp_path), policy_file=str(policy))
    seen = {"first_frame": [], "video": []}
    core = Generation(settings, load_catalog(), *(painter(stage, seen) for stage in seen))
    core.seen = seen
    return core


def asking(url, **more):
    fields = {"prompt": "a horse", "category": "horse", "image_url": url} | more
    return parse(GenerateRequest, json.dumps(fields).encode())


async def clip_of(core, request):
    return [event async for event in core.generate(request)][-1]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_clip_from_a_picture_at_an_address(pictures, core, format):
    pictures.answer = lambda one: send(one, picture(format), Content_Type="application/octet-stream")
    assert isinstance(asyncio.run(clip_of(core, asking(pictures.url))), Finished)
    (job,) = core.seen["video"]
    assert not core.seen["first_frame"]
    frame = from_png(job.first_frame)
    assert frame.shape == (64, 64, 3)
    np.testing.assert_allclose(frame[32, 32], (200, 30, 30), atol=3)


def test_nothing_is_fetched_for_what_the_policy_blocks(pictures, core):
    with pytest.raises(ContentRefused):
        asyncio.run(clip_of(core, asking(pictures.url, prompt="a gun")))
    assert not pictures.asked


def test_addresses_are_not_followed_unless_that_is_turned_on(pictures, core):
    core.settings = Settings()
    with pytest.raises(
        InvalidRequest, match="image_url: addresses are not followed here, send the picture itself"
    ):
        asyncio.run(clip_of(core, asking(pictures.url)))
    assert not pictures.asked


def test_one_picture_is_enough(pictures):
    with pytest.raises(InvalidRequest, match="first_frame and image_url mean the same: send one of them"):
        asking(pictures.url, first_frame="eA==")


def test_what_is_fetched_is_read_as_uploads_are(pictures, core):
    unfolds = {"data": gzip.compress(picture()), "Content_Encoding": "gzip"}  # it was not asked to
    for sent in ({"data": picture()[:-30]}, unfolds):
        pictures.answer = lambda one, sent=sent: send(one, **sent)
        with pytest.raises(InvalidRequest, match="image_url: it cannot be read; send a whole PNG, JPEG or"):
            asyncio.run(clip_of(core, asking(pictures.url)))
    core.settings = Settings(image_url_seconds=30, max_image_megapixels=1)
    pictures.answer = lambda one: send(one, to_png(np.zeros((1001, 1000, 3), np.uint8)))
    with pytest.raises(InvalidRequest, match="image_url: 1000 x 1001 pixels, at most 1000000"):
        asyncio.run(clip_of(core, asking(pictures.url)))
    assert not core.seen["video"]


def test_only_so_many_are_fetched_at_once(pictures, core, monkeypatch):
    monkeypatch.setattr(generation, "MAX_FETCHES", 1)
    goes_on = threading.Event()

    def slow(handler):
        goes_on.wait(30)
        send(handler, picture())

    async def main():
        first = asyncio.create_task(clip_of(core, asking(pictures.url)))
        while not pictures.got:
            await asyncio.sleep(0.001)
        with pytest.raises(Unavailable, match="too many pictures are being fetched at once"):
            await clip_of(core, asking(pictures.url))
        goes_on.set()
        await first
        return await clip_of(core, asking(pictures.url))

    pictures.answer = slow
    assert isinstance(asyncio.run(main()), Finished)


def test_a_job_keeps_the_picture_and_not_the_address(pictures, core):
    """What the address holds later is nothing to it; nor to the same request that is sent again."""

    async def main():
        engine = JobEngine(core, core.settings)
        engine._enqueue = lambda *job: asyncio.sleep(0)  # nobody works on it
        await engine.rows.prepare()
        job = await engine.create(asking(pictures.url), "me", "key")
        kept = await asyncio.to_thread(engine.store.read, engine.first_frame(job))
        pictures.answer = lambda one: send(one, b"", 404)
        again = await engine.create(asking(pictures.url), "me", "key")
        with pytest.raises(InvalidRequest, match="answered 404"):
            await engine.create(asking(pictures.url), "me", "another")
        with pytest.raises(Conflict):
            await engine.create(asking(pictures.url + "2"), "me", "key")
        engine.settings = Settings(max_queued_jobs=1)
        with pytest.raises(QueueFull):
            await engine.create(asking(pictures.url), "me")
        engine.rows.close()
        return job, kept, again

    job, kept, again = asyncio.run(main())
    np.testing.assert_allclose(from_png(kept)[32, 32], (200, 30, 30), atol=3)
    assert again.id == job.id
    assert len(pictures.got) == 2
    assert GenerateRequest(**job.request).image_url is None
    files = [file.read_bytes() for file in Path(core.settings.data).rglob("*") if file.is_file()]
    assert not any(b"token=secret" in file for file in files)


def test_at_every_door(pictures, core):
    async def generate(request):
        return await answer_generate(core, request)

    async def videos(request):
        wanted, _ = await read(request, core)
        return JSONResponse(wanted.model_dump(include={"image_url", "first_frame"}))

    routes = [
        Route("/generate_video", generate, methods=["POST"]),
        Route("/v1/videos", videos, methods=["POST"]),
    ]
    paths = frozenset(route.path for route in routes)
    app = Guard(Starlette(routes=routes), max_body=10_000, paths=paths, forms=("/v1/videos",))

    async def post(path, **sent):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            return await client.post(path, **sent)

    body = {"prompt": "a horse", "category": "horse", "image_url": pictures.url}
    made = asyncio.run(post("/generate_video", json=body))
    assert (made.status_code, made.headers["content-type"]) == (200, "video/mp4")
    asked = {"prompt": "a horse", "input_reference": {"image_url": pictures.url}}
    form = {"prompt": (None, "a horse"), "input_reference[image_url]": (None, pictures.url)}
    for sent in ({"json": asked}, {"files": form}):
        told = asyncio.run(post("/v1/videos", **sent)).json()
        assert told == {"image_url": pictures.url, "first_frame": None}
    gif = {"prompt": "a horse", "input_reference": {"image_url": "data:image/gif;base64,eA=="}}
    message = asyncio.run(post("/v1/videos", json=gif)).json()["error"]["message"]
    assert message.endswith("URL, of a PNG, JPEG or WebP")
    refused = asyncio.run(post("/generate_video", json=body | {"image_url": "https://10.0.0.1/a.png"}))
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (422, "image_url")
    assert error["message"] == "image_url: the host '10.0.0.1' has no public address"
    message = messages.GenerateRequest(prompt="a horse", category="horse", image_url=pictures.url)
    assert read_message(message).image_url == pictures.url


def test_a_limit_of_time_that_cannot_be():
    with pytest.raises(ValueError, match="HUVIDPO_IMAGE_URL_SECONDS: got 61, allowed 0 to 60"):
        Settings(image_url_seconds=61)
