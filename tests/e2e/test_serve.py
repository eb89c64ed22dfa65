"""The service as a client sees it: a real server, random weights."""

import base64
import io
import json
import os
import pickle
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from urllib.parse import unquote

import av
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.video import decode

CATALOG = load_catalog()
NAMES = list(product(CATALOG.categories, CATALOG.styles))
GOOD = {"prompt": "a horse", "category": "horse", "style": "realistic", "steps": 1, "frames": 2}


def problem(response):
    """The inside of the one JSON shape, which is checked."""
    body = response.json()
    assert set(body) == {"error"}, body
    error = body["error"]
    assert (
        {"code", "message", "request_id"}
        <= set(error)
        <= {"code", "message", "request_id", "field", "details", "type", "param"}
    )
    assert error["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert "site-packages" not in response.text
    return error


def test_every_category_in_every_style(server):
    with ThreadPoolExecutor(8) as pool:
        responses = list(
            pool.map(lambda name: server.generate(category=name[0], style=name[1], seed=3), NAMES)
        )
    assert len(responses) == 32
    served = server.client.get("/models").json()["categories"]
    weights = {one["name"]: one["weights"] and one["weights"]["sha256"] for one in served}
    for name, response in zip(NAMES, responses, strict=True):
        assert response.status_code == 200, (name, response.text)
        assert response.headers["content-type"] == "video/mp4"
        assert response.headers["x-seed"] == "3"
        assert response.headers["x-model"] == DEFAULT_MODEL
        assert response.headers.get("x-weights") == weights[name[0]]
        assert response.headers["x-request-id"]
        timing = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
        assert set(timing) == {"queue", "first_frame", "video", "encode"}
        assert all(float(value) >= 0 for value in timing.values())
        with av.open(io.BytesIO(response.content)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
        frames, fps = decode(response.content)
        assert frames.shape == (16, 32, 32, 3)
        assert fps == 8


def test_clips_are_repeatable_and_seeds_are_reported(server):
    first = server.generate()
    again = server.generate(seed=int(first.headers["x-seed"]))
    other = server.generate()
    assert other.headers["x-seed"] != first.headers["x-seed"]
    assert again.content == first.content
    assert other.content != first.content


@pytest.mark.parametrize(
    ("format", "media_type", "magic"), [("gif", "image/gif", b"GIF8"), ("webp", "image/webp", b"RIFF")]
)
def test_other_formats(server, format, media_type, magic):
    response = server.generate(format=format, frames=4, fps=5)
    assert response.headers["content-type"] == media_type
    assert response.content.startswith(magic)
    assert Image.open(io.BytesIO(response.content)).n_frames <= 4


def test_120_requests_from_16_clients(server):
    """More than the 100 requests after which BentoML's own client would hang up on those in flight."""

    def one(i):
        category, style = NAMES[i % len(NAMES)]
        return server.generate(category=category, style=style, frames=2, seed=i)

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(one, range(120)))
    assert [response.status_code for response in responses] == [200] * 120
    assert {int(response.headers["x-seed"]) for response in responses} == set(range(120))
    assert server.metric("huvidpo_requests_in_flight") == 0
    assert server.metric("huvidpo_queue_depth") == 0
    batches = server.metric("huvidpo_batch_size_count", stage="first_frame")
    assert server.metric("huvidpo_batch_size_sum", stage="first_frame") > batches, (
        "nothing ever shared a batch"
    )


def image(size=(60, 20), format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, format=format)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_first_frame_of_ones_own(server, format):
    response = server.generate(first_frame=image(format=format), frames=2)
    assert response.status_code == 200, response.text
    assert "first_frame" not in response.headers["server-timing"]
    assert decode(response.content)[0].shape == (2, 32, 32, 3)


def test_a_client_that_leaves_stops_the_denoising_within_a_step(server):
    total = 100

    def steps():
        return server.metric("huvidpo_denoising_steps_total", stage="video")

    before, cancelled = steps(), server.metric("huvidpo_requests_total", outcome="cancelled")
    dropped = server.metric("huvidpo_cancelled_jobs_total", stage="video")
    body = json.dumps(GOOD | {"category": "rain", "steps": total, "frames": 64}).encode()
    head = f"POST /generate_video HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.client.base_url.port)) as leaver:
        leaver.sendall(head.encode() + body)
        _until(lambda: steps() >= before + 2)
    at_leaving = steps()
    _until(lambda: server.metric("huvidpo_cancelled_jobs_total", stage="video") == dropped + 1)
    after = steps()
    assert after - at_leaving <= 2  # the one that ran, and one while the news travelled through two processes
    assert after - before < total
    assert server.metric("huvidpo_requests_total", outcome="cancelled") == cancelled + 1
    assert server.metric("huvidpo_requests_in_flight") == 0


def _until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"category": "dance"}, "category", "known: waterfall, smile, fireworks, horse"),
        ({"style": "noir"}, "style", "known: realistic, pixel-art, claymation, cartoon"),
        ({"prompt": None}, "prompt", "string"),
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": "   "}, "prompt", "empty"),
        ({"prompt": "x" * 2001}, "prompt", "at most 2000"),
        ({"prompt": "horse " * 300}, "prompt", "tokens"),
        ({"steps": 0}, "steps", "greater than or equal to 1"),
        ({"steps": 101}, "steps", "at most 100"),
        ({"steps": "3"}, "steps", "integer"),
        ({"guidance": -1}, "guidance", "greater than or equal to 0"),
        ({"guidance": 1000}, "guidance", "less than or equal to 100"),
        ({"frames": 1}, "frames", "greater than or equal to 2"),
        ({"frames": 65}, "frames", "at most 64"),
        ({"fps": 0}, "fps", "greater than or equal to 1"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**32}, "seed", "less than or equal to 4294967295"),
        ({"format": "avi"}, "format", "'mp4', 'gif' or 'webp'"),
        ({"stepz": 3}, "stepz", "known: prompt, category"),
        ({"first_frame": "!"}, "first_frame", "base64"),
        ({"first_frame": base64.b64encode(b"no image").decode()}, "first_frame", "PNG, JPEG or WebP"),
        ({"first_frame": "/etc/passwd"}, "first_frame", "base64"),
        ({"first_frame": "http://localhost/x.png"}, "first_frame", "base64"),
        ({"first_frame": image((5000, 4000))}, "first_frame", "at most 16000000 pixels"),
    ],
)
def test_bad_fields_are_named(server, change, field, says):
    response = server.client.post("/generate_video", json=GOOD | change)
    assert response.status_code == 422
    error = problem(response)
    assert (error["code"], error["field"]) == ("invalid_request", field)
    assert says in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "content", "media_type", "status", "code"),
    [
        ("POST", "/generate_video", b"{", "application/json", 400, "malformed_body"),
        ("POST", "/generate_video", b"", "application/json", 400, "malformed_body"),
        ("POST", "/generate_video", b"\xff", "application/json", 400, "malformed_body"),
        ("POST", "/generate_video", b"[]", "application/json", 422, "invalid_request"),
        (
            "POST",
            "/generate_video",
            b"a=1",
            "application/x-www-form-urlencoded",
            415,
            "unsupported_media_type",
        ),
        ("POST", "/generate_video", b"x", "application/vnd.bentoml+pickle", 415, "unsupported_media_type"),
        ("POST", "/generate_video", b" " * (2**20 + 1), "application/json", 413, "body_too_large"),
        ("GET", "/generate_video", b"", "application/json", 405, "method_not_allowed"),
        ("POST", "/readyz", b"", "application/json", 405, "method_not_allowed"),
        ("GET", "/nothing-here", b"", "application/json", 404, "not_found"),
        ("GET", "/%2e%2e/etc/passwd", b"", "application/json", 404, "not_found"),
        ("PUT", "/jobs/1", b"{}", "application/json", 404, "not_found"),
    ],
)
def test_other_bad_requests(server, method, path, content, media_type, status, code):
    response = server.client.request(method, path, content=content, headers={"Content-Type": media_type})
    assert response.status_code == status
    assert problem(response)["code"] == code


def test_a_body_without_a_length_is_limited_too(server):
    response = server.client.post(
        "/generate_video",
        content=(b" " * 65536 for _ in range(40)),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 413
    assert problem(response)["code"] == "body_too_large"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = [
    "prompt",
    "category",
    "style",
    "seed",
    "steps",
    "guidance",
    "fps",
    "negative_prompt",
    "preference_strength",
    "first_frame",
    "format",
    "x",
]
VALUES = JSON | st.sampled_from(["horse", "cartoon", "mp4", "gif", image((8, 8)), 1, 2, 0.5])
BODIES = st.one_of(
    st.binary(max_size=50),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5).map(
        lambda change: json.dumps(GOOD | {"steps": 1} | change).encode()
    ),
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES)
def test_no_body_is_answered_with_a_server_error(server, body):
    response = server.client.post(
        "/generate_video", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code in (200, 400, 422), response.text
    if response.status_code != 200:
        problem(response)


def test_health_and_metrics(server):
    assert server.client.get("/livez").status_code == 200
    assert server.client.get("/readyz").status_code == 200
    server.client.get("/made-up-path-17")
    server.generate(frames=2)
    text = server.client.get("/metrics").text
    for name in (
        "requests_total",
        "stage_seconds_bucket",
        "batch_size_bucket",
        "queue_depth",
        "queued_work_seconds",
        "denoising_steps_total",
    ):
        assert f"huvidpo_{name}" in text
    assert "made-up-path-17" not in text  # paths of strangers must not become series
    assert server.metric("huvidpo_stage_seconds_count", stage="encode") >= 1


def test_a_websocket_is_refused(server):
    head = "GET /made-up-path-18 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.client.base_url.port), timeout=60) as upgrade:
        upgrade.sendall(head.encode())
        status = upgrade.recv(100).split()[1]
    assert int(status) in (403, 404)  # 404: uvicorn without a websocket library takes it as a plain request
    assert "made-up-path-18" not in server.client.get("/metrics").text


def test_schema_lists_the_endpoint(server):
    """For BentoML's own client and for whoever reads OpenAPI."""
    routes = {route["name"]: route for route in server.client.get("/schema.json").json()["routes"]}
    assert {"prompt", "category", "style", "seed", "first_frame"} <= set(
        routes["generate_video"]["input"]["properties"]
    )
    spec = server.client.get("/docs.json").json()
    assert "video/mp4" in spec["paths"]["/generate_video"]["post"]["responses"]["200"]["content"]


def test_bentoml_client_works(server):
    import bentoml

    with bentoml.SyncHTTPClient(server.url, timeout=300) as client:
        data = client.generate_video(prompt="a horse", category="horse", style="cartoon", steps=1, frames=2)
    assert decode(data)[0].shape == (2, 32, 32, 3)


class _Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_runners_do_not_unpickle(server, tmp_path):
    urls = json.loads(server.runner("VideoRunner").environ()["BENTOML_RUNNER_MAP"])
    for name in ("FirstFrameRunner", "VideoRunner"):
        transport = httpx.HTTPTransport(uds=unquote(urls[name].removeprefix("file://")))
        with httpx.Client(transport=transport, base_url="http://runner", timeout=60) as client:
            attack = pickle.dumps(_Touch(str(tmp_path / "taken")))
            for media_type in ("application/vnd.bentoml+pickle", "APPLICATION/vnd.bentoml+pickle; q=1", ""):
                response = client.put("/jobs/1", content=attack, headers={"Content-Type": media_type})
                assert response.status_code == 415
                assert problem(response)["code"] == "unsupported_media_type"
    assert not (tmp_path / "taken").exists()


def test_a_dead_runner_is_told_and_does_not_block_the_exit(start_server, random_family):
    server = start_server(HUVIDPO_CATALOG=str(random_family / "catalog"), HUVIDPO_BACKEND="torch")
    server.wait_ready()
    with ThreadPoolExecutor(1) as pool:
        steps = server.metric("huvidpo_denoising_steps_total", stage="video")
        waiting = pool.submit(server.generate, steps=100, frames=64)
        _until(lambda: server.metric("huvidpo_denoising_steps_total", stage="video") > steps)
        server.runner("VideoRunner").kill()
        response = waiting.result()
    assert response.status_code == 503
    assert problem(response)["code"] == "unavailable"
    assert int(response.headers["retry-after"]) > 0

    assert server.client.get("/readyz").status_code == 200  # it accepts jobs, and refuses with a reason
    assert server.client.get("/livez").status_code == 200
    assert (
        server.stop(timeout=60) < 45
    )  # under a second when quiet; what matters is that it does not wait for the runner


def test_a_runner_that_cannot_load_ends_and_says_why(start_server, random_family):
    server = start_server(
        HUVIDPO_CATALOG=str(random_family / "catalog"), HUVIDPO_BACKEND="tensorrt", HUVIDPO_DEVICE="cpu"
    )
    _until(lambda: server.log.read_text().count("this process ends: ") >= 2)  # the runners, or one twice
    assert "tensorrt runs on cuda, the device is cpu: set HUVIDPO_DEVICE=cuda" in server.log.read_text()
    assert server.client.get("/livez").status_code == 200
    assert server.client.get("/readyz").status_code == 503
    refused = server.generate()
    assert (refused.status_code, problem(refused)["code"]) == (503, "unavailable")
    assert server.stop(timeout=60) < 45
