"""The guard and the HTTP answers, as plain ASGI."""

import asyncio
import json
import struct

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from huvidpo.errors import CheckpointError, InvalidRequest
from service.errors import TABLE, QueueFull, TimedOut, Unavailable, from_dict, row_of, to_dict
from service.http import Guard, LastResort, ReadAgain, error_response


async def echo(request):
    return PlainTextResponse(await request.body())


async def crash(request):
    raise RuntimeError("secret")


async def refuse(request):
    raise QueueFull("full", 7)


async def half(request):
    async def parts():
        yield b"half"
        raise RuntimeError("secret")

    return StreamingResponse(parts())


async def framework_error(request):
    return PlainTextResponse("Internal: secret", status_code=503)


async def framework_json(request):
    return JSONResponse({"error": "1 validation error, secret code"}, status_code=400)


async def leave(request):
    while (await request.receive())["type"] != "http.disconnect":
        pass
    request.app.state.left = True
    return PlainTextResponse("nobody reads this")


ROUTES = {
    "/echo": echo,
    "/crash": crash,
    "/refuse": refuse,
    "/half": half,
    "/framework": framework_error,
    "/framework-json": framework_json,
    "/leave": leave,
}


@pytest.fixture
def app():
    inner = Starlette(routes=[Route(path, endpoint, methods=["POST"]) for path, endpoint in ROUTES.items()])
    return Guard(inner, max_body=100, paths=frozenset([*ROUTES, "/missing"]))


def post(app, path, content=b"{}", **kwargs):
    kwargs.setdefault("headers", {"content-type": "application/json"})

    async def main():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(kwargs.pop("method", "POST"), path, content=content, **kwargs)

    return asyncio.run(main())


def problem(response):
    body = response.json()
    assert set(body) == {"error"}
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    return body["error"]


def test_good_requests_pass_unchanged(app):
    response = post(app, "/echo", b'{"a": 1}')
    assert (response.status_code, response.content) == (200, b'{"a": 1}')
    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("path", "kwargs", "status", "code"),
    [
        ("/echo", {"content": b"x" * 101}, 413, "body_too_large"),
        (
            "/echo",
            {"headers": {"content-type": "application/vnd.bentoml+pickle"}},
            415,
            "unsupported_media_type",
        ),
        ("/echo", {"headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
        ("/echo", {"headers": {}}, 415, "unsupported_media_type"),
        ("/echo", {"method": "GET"}, 405, "method_not_allowed"),
        ("/missing", {}, 404, "not_found"),
        ("/unknown", {}, 404, "not_found"),
        ("/crash", {}, 500, "internal"),
        ("/refuse", {}, 429, "queue_full"),
        ("/framework", {}, 503, "not_ready"),
        ("/framework-json", {}, 400, "bad_request"),
    ],
)
def test_errors_have_one_shape(app, path, kwargs, status, code):
    response = post(app, path, **kwargs)
    assert response.status_code == status
    assert problem(response)["code"] == code


def answers(path, status):
    return REGISTRY.get_sample_value("huvidpo_http_answers_total", {"path": path, "status": status}) or 0.0


@pytest.mark.parametrize(
    ("path", "label", "kwargs", "status"),
    [
        ("/echo", "/echo", {}, 200),
        ("/echo", "/echo", {"content": b"x" * 101}, 413),
        ("/echo", "/echo", {"headers": {"content-type": "text/plain"}}, 415),
        ("/echo", "/echo", {"method": "GET"}, 405),
        ("/made-up-17", "other", {}, 404),
        ("/crash", "/crash", {}, 500),
    ],
)
def test_every_answer_has_one_line_and_one_count(app, caplog, path, label, kwargs, status):
    before = answers(label, str(status))
    with caplog.at_level("INFO", "service.access"):
        response = post(app, path, **kwargs)
    assert answers(label, str(status)) == before + 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert f"{path!r} {status} " in line
    assert line.endswith(response.headers["x-request-id"])


def test_headers_that_say_what_to_do_are_kept(app):
    assert post(app, "/echo", method="GET").headers["allow"] == "POST"


def test_what_is_not_http_is_closed(app):
    """And the application, whose metrics would keep its path, sees nothing of it."""
    scope = {"type": "websocket", "path": "/secret", "headers": []}
    sent, before = [], answers("other", "403")

    async def send(message):
        sent.append(message)

    async def main():
        await Guard(None, max_body=1)(scope, None, send)
        await Guard(None, max_body=1)({"type": "something new"}, None, send)

    asyncio.run(main())
    assert sent == [{"type": "websocket.close", "code": 1000}]
    assert answers("other", "403") == before + 1


def test_bodies_without_a_length_are_limited_too(app):
    async def parts():
        for _ in range(50):
            yield b"x" * 50

    assert post(app, "/echo", parts()).status_code == 413


def test_full_queues_and_missing_runners_say_when_to_come_back(app):
    assert post(app, "/refuse").headers["retry-after"] == "7"
    assert post(app, "/framework").headers["retry-after"] == "5"
    late = error_response(TimedOut("late", 7), "id")
    assert (late.status_code, late.headers["retry-after"]) == (504, "7")
    assert "retry-after" not in error_response(TimedOut("late"), "id").headers


def test_request_ids_of_callers_are_kept_when_harmless(app):
    headers = {"content-type": "application/json"}
    assert (
        post(app, "/echo", headers=headers | {"x-request-id": "abc-1.2_3"}).headers["x-request-id"]
        == "abc-1.2_3"
    )
    assert post(app, "/echo", headers=headers | {"x-request-id": "a b"}).headers["x-request-id"] != "a b"
    assert (
        post(app, "/echo", headers=headers | {"x-request-id": "a" * 65}).headers["x-request-id"] != "a" * 65
    )


def test_an_answer_that_breaks_off_is_not_continued(app):
    sent = asyncio.run(_raw(app, "/half", [{"type": "http.request", "body": b"{}"}]))
    assert [message.get("body") for message in sent[1:]] == [b"half"]


def test_leaving_reaches_the_application(app):
    asyncio.run(_raw(app, "/leave", [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]))
    assert app.app.state.left


def test_leaving_before_the_body_is_complete_answers_nobody(app):
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    assert asyncio.run(_raw(app, "/echo", messages)) == []


def test_an_answer_that_does_not_begin_is_given_up():
    async def never(scope, receive, send):
        await asyncio.Event().wait()

    late = post(Guard(LastResort(never, 0.01), max_body=100, paths=frozenset({"/never"})), "/never")
    assert (late.status_code, problem(late)["code"]) == (504, "timeout")


def test_an_answer_that_has_begun_is_not_cut():
    async def slow(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"whole"})

    async def broken(scope, receive, send):
        raise TimeoutError("of its own")

    assert post(LastResort(slow, 0), "/slow").content == b"whole"
    with pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(_raw(LastResort(broken, 60), "/broken", []))


def test_metrics_are_read_again_where_a_process_has_just_begun_its_file(tmp_path):
    """It opens the file, empty, and then gives it its size: in between nobody can read it."""
    asked = []

    async def metrics(scope, receive, send):
        if not asked:
            (tmp_path / "counter_7.db").touch()
        asked.append(scope["path"])
        try:
            MultiProcessCollector(None, str(tmp_path)).collect()
        finally:
            MmapedDict(str(tmp_path / "counter_7.db")).close()
        await PlainTextResponse("whole")(scope, receive, send)

    assert post(ReadAgain(metrics), "/metrics").content == b"whole"
    assert asked == ["/metrics", "/metrics"]


@pytest.mark.parametrize(("path", "times"), [("/metrics", 4), ("/generate_video", 1)])
def test_what_stays_broken_is_told_and_others_are_asked_once(path, times):
    asked = []

    async def broken(scope, receive, send):
        asked.append(scope["path"])
        raise struct.error("of its own")

    with pytest.raises(struct.error, match="of its own"):
        asyncio.run(_raw(ReadAgain(broken), path, []))
    assert asked == [path] * times


async def _raw(app, path, messages):
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "asgi": {"spec_version": "2.3"},
    }
    scope["headers"] = [(b"content-type", b"application/json")]
    waiting, sent = iter(messages), []

    async def receive():
        message = next(waiting, None)
        if message is None:
            await asyncio.sleep(30)
            return {"type": "http.disconnect"}
        return message

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


def test_the_table_and_its_codes_are_unambiguous():
    assert len({row.code for row in TABLE}) == len(TABLE)
    for i, row in enumerate(TABLE):
        assert not any(issubclass(row.error, earlier.error) for earlier in TABLE[:i]), row


def test_errors_survive_the_hop():
    error = from_dict(json.loads(json.dumps(to_dict(InvalidRequest("style: unknown", "style")))))
    assert isinstance(error, InvalidRequest)
    assert (str(error), error.field) == ("style: unknown", "style")
    full = from_dict(to_dict(QueueFull("full", 9)))
    assert isinstance(full, QueueFull)
    assert full.retry_after == 9
    assert row_of(from_dict(to_dict(Unavailable("gone")))).status == 503
    assert row_of(from_dict(to_dict(CheckpointError("/weights/secret")))).status == 500


def test_answers_name_the_field():
    response = error_response(InvalidRequest("style: got 'x', known: cartoon", "style"), "id1")
    assert response.status_code == 422
    error = json.loads(response.body)["error"]
    assert error == {
        "code": "invalid_request",
        "message": "style: got 'x', known: cartoon",
        "field": "style",
        "param": "style",
        "type": "invalid_request_error",
        "request_id": "id1",
    }


def upload(app, parts, pause=0.0):
    """The answer to a body that comes in parts, and then does not end."""
    sent = []

    async def receive():
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": True}
        await asyncio.sleep(pause)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/echo", "query_string": b"", "headers": headers}

    async def main():
        await app(scope, receive, send)

    asyncio.run(main())
    return (sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]) if sent else None


def test_a_body_that_does_not_come_is_given_up(app):
    app.body_seconds = 0.05
    assert upload(app, [b"{"], pause=30) == (408, "body_timeout")
    assert app._held == 0


def test_bodies_have_a_budget_and_give_it_back(app):
    app._held = 8 * app.max_body - 50  # others are being uploaded
    assert upload(app, [b"x" * 40, b"x" * 40]) == (503, "unavailable")
    assert upload(app, [b"x" * 40]) is None  # it left by itself
    assert post(app, "/echo", b"{}").status_code == 200
    assert post(app, "/echo", b"{}", headers={}).status_code == 415
    assert post(app, "/echo", b"x" * 101).status_code == 413
    assert app._held == 8 * app.max_body - 50
