"""POST /generate_video with `Accept: text/event-stream`, of the real service."""

import base64
import io
import json
import socket
import time

import pytest
from PIL import Image

from huvidpo.catalog import DEFAULT_MODEL

GOOD = {"prompt": "a white horse runs", "category": "horse", "style": "realistic", "seed": 5}
HEADERS = {"Accept": "text/event-stream"}


def events(answer) -> list[tuple[str, dict]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    blocks = [block for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    named = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
    return [(one["event"], json.loads(one["data"])) for one in named]


VERDICT = {"action": "ok", "lists": []}


def test_a_clip_as_events(server):
    body = GOOD | {"steps": 4, "frames": 4}
    got = events(server.client.post("/generate_video?preview=1", json=body, headers=HEADERS))
    said = [name for name, _ in got if name != "queued"]
    first, second = ["started", *["step"] * 3], ["started", *["step"] * 4]
    assert said == ["accepted", *first, "preview", *second, "done"]
    assert got[0][1] == {"model": DEFAULT_MODEL, "seed": 5, "warnings": [], "prompt_verdict": VERDICT}
    steps = [data for name, data in got if name == "step"]
    assert [(one["step"], one["total"]) for one in steps] == [(i, 7) for i in range(1, 8)]
    assert [one["stage"] for one in steps] == ["first_frame"] * 3 + ["video"] * 4
    assert {data["stage"] for name, data in got if name == "queued"} == {"first_frame", "video"}
    done = got[-1][1]
    plain = server.generate(**body)
    assert base64.b64decode(done.pop("data")) == plain.content
    assert done.pop("seconds").keys() == {"queue", "encode", "first_frame", "video"}
    assert done == {
        "media_type": "video/mp4", "seed": 5, "model": DEFAULT_MODEL,
        "backends": {"first_frame": "torch", "video": "torch"},
        "frames_verdict": {"action": "ok", "reason": ""},
    }  # fmt: skip
    preview = next(data for name, data in got if name == "preview")
    assert Image.open(io.BytesIO(base64.b64decode(preview["data"]))).size == (32, 32)
    again = events(server.client.post("/v1/videos/sync", json=video(body), headers=HEADERS))
    assert [name for name, _ in again if name != "queued"] == [one for one in said if one != "preview"]


def video(body):
    return {"prompt": body["prompt"], "num_inference_steps": body["steps"], "num_frames": body["frames"]}


def test_a_first_frame_of_ones_own_counts_only_the_second_stage(server):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 30, 30)).save(buffer, format="PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    body = GOOD | {"steps": 2, "frames": 4, "first_frame": image}
    got = events(server.client.post("/generate_video?preview=1", json=body, headers=HEADERS))
    assert [data["total"] for name, data in got if name == "step"] == [2, 2]
    assert "preview" not in dict(got)


@pytest.mark.parametrize(("change", "status", "code"), [
    ({"category": "dance"}, 422, "invalid_request"), ({"colour": 1}, 422, "invalid_request"),
])  # fmt: skip
def test_what_is_refused_before_the_work_has_its_status(server, change, status, code):
    answer = server.client.post("/generate_video", json=GOOD | change, headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_reader_that_leaves_stops_the_denoising(server):
    body = json.dumps(GOOD | {"steps": 100, "frames": 64}).encode()
    head = (
        "POST /generate_video HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    dropped = server.metric("huvidpo_cancelled_jobs_total", stage="video")
    with socket.create_connection(("127.0.0.1", server.client.base_url.port)) as leaver:
        leaver.sendall(head.encode() + body)
        heard = b""
        while b'"stage": "video", "step"' not in heard:
            heard += leaver.recv(65536)
    deadline = time.monotonic() + 60
    while (
        server.metric("huvidpo_cancelled_jobs_total", stage="video") != dropped + 1
        or server.metric("huvidpo_requests_in_flight") != 0
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
