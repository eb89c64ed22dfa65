"""Webhooks to a real receiver on loopback, by job engines in processes of their own."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from jobs_engine import Engine
from standardwebhooks import Webhook

from huvidpo.errors import InvalidRequest
from service import webhooks
from service.settings import Settings

SECRET = "whsec_" + "c2VjcmV0" * 6


class Receiver(ThreadingHTTPServer):
    """Answers with `statuses` in turn, then 204. `got` has (headers, body)."""

    def __init__(self, *statuses):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses, self.got = list(statuses), []
        self.heard = threading.Semaphore(0)
        self.origin = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def wait(self):
        assert self.heard.acquire(timeout=60), "nothing came"
        return self.got[-1]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((dict(self.headers), body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")  # not followed
        self.end_headers()
        self.server.heard.release()

    def log_message(self, *line):
        pass


@pytest.fixture
def receive():
    receivers = []

    def start(*statuses):
        receivers.append(Receiver(*statuses))
        return receivers[-1]

    yield start
    for one in receivers:
        one.shutdown()
        one.server_close()


def test_the_end_of_a_job_is_told_through_failures_and_a_kill(tmp_path, receive):
    receiver = receive(500, 302)
    settings = {"webhook_secret": SECRET, "webhook_allow": receiver.origin}
    first = Engine(tmp_path, **settings).ready()
    job = first.do("create", webhook=f"{receiver.origin}/hook?a=1")
    headers, body = receiver.wait()
    event = Webhook(SECRET).verify(body, headers)
    assert event == {
        "id": f"evt_{job['id']}", "object": "event", "type": "video.completed",
        "created_at": event["created_at"], "data": {"id": job["id"]},
    }  # fmt: skip
    assert (headers["webhook-id"], headers["Content-Type"]) == (event["id"], "application/json")
    assert headers["Host"] == receiver.origin.removeprefix("http://")
    receiver.wait()  # the second try, after a second
    first.kill()
    second = Engine(tmp_path, **settings).ready()
    headers, again = receiver.wait()
    assert again == body
    assert Webhook(SECRET).verify(again, headers) == event
    second.stop()
    assert len(receiver.got) == 3  # told, and not told again


def test_a_cancelled_job_is_told_and_410_ends_it(tmp_path, receive):
    receiver = receive(410)
    engine = Engine(
        tmp_path, steps={"video": 30.0}, webhook_secret=SECRET, webhook_allow=receiver.origin
    ).ready()
    job = engine.do("create", webhook=receiver.origin)
    engine.do("cancel", id=job["id"])
    assert json.loads(receiver.wait()[1])["type"] == "video.failed"
    engine.stop()


@pytest.mark.parametrize(("url", "says"), [
    ("http://example.com/hook", "begins with https"), ("ftp://example.com", "expected an address like"),
    ("https://ann:secret@example.com/", "without a name"), ("https:///hook", "expected an address like"),
    ("nonsense", "expected an address like"), ("https://127.0.0.1/", "no public address"),
    ("https://[::1]/", "no public address"), ("https://10.1.2.3/", "no public address"),
    ("https://169.254.169.254/latest/meta-data", "no public address"), ("https://0/", "no public address"),
    ("https://[::ffff:127.0.0.1]/", "no public address"), ("https://[64:ff9b::7f00:1]/", "no public address"),
    ("https://[fd00::1]/", "no public address"), ("https://localhost/", "no public address"),
    ("https://2130706433/", "no public address"), ("https://no-such-host.invalid/", "no public address"),
])  # fmt: skip
def test_what_is_not_called(url, says):
    settings = Settings(webhook_secret=SECRET)
    with pytest.raises(InvalidRequest, match=says) as refused:
        asyncio.run(webhooks.check(url, settings))
    assert refused.value.field == "webhook_url"
    with pytest.raises(InvalidRequest, match=says):
        asyncio.run(webhooks.deliver(url, '{"id": "evt_1"}', settings))


def test_an_allowed_origin_is_exactly_that(receive):
    receiver = receive()
    settings = Settings(webhook_secret=SECRET, webhook_allow=f"http://10.0.0.1,{receiver.origin}")
    assert asyncio.run(webhooks.deliver(receiver.origin, '{"id": "evt_1"}', settings)) == 204
    for other in ("http://127.0.0.1:1", f"{receiver.origin}0", "http://127.0.0.1"):
        with pytest.raises(InvalidRequest, match="https"):
            asyncio.run(webhooks.check(other, settings))


def test_without_a_secret_there_are_none():
    with pytest.raises(InvalidRequest, match="HUVIDPO_WEBHOOK_SECRET"):
        asyncio.run(webhooks.check("https://example.com", Settings()))
    with pytest.raises(ValueError, match="HUVIDPO_WEBHOOK_SECRET: expected whsec_"):
        Settings(webhook_secret="whsec_short")
