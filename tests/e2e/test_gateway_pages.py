"""GET /models, its metric, and /rate of the real service."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from safetensors.torch import load, save

from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.files import write_bytes
from huvidpo.video import decode
from preferences.records import read_records


def test_models_reports_the_weights(server, random_family):
    answer = server.client.get("/models").json()
    assert answer["model"] == DEFAULT_MODEL
    weights = {one["name"]: one["weights"] for one in answer["categories"]}
    file = random_family / "categories" / "horse.safetensors"
    assert weights["horse"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert weights["smile"] is None
    deadline = time.monotonic() + 60
    labels = {"category": "horse", "sha256": weights["horse"]["sha256"]}
    while server.metric("huvidpo_category_weights_info", **labels) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert server.client.post("/models", json={}).status_code == 405


def test_new_weights_are_taken_while_it_serves(server, random_family):
    """And the old ones again. Clips in the making meanwhile are of the weights that they name."""
    file = random_family / "categories" / "rain.safetensors"
    old = file.read_bytes()
    tensors = {name: tensor * 1.5 for name, tensor in load(old).items()}

    def clip(_: int = 0) -> tuple[str, np.ndarray]:
        response = server.generate(category="rain", seed=5, frames=4)
        assert response.status_code == 200, response.text
        return response.headers["x-weights"], decode(response.content)[0].astype(int)

    def running() -> list[str]:
        served = server.client.get("/models").json()["categories"]
        return next(one["running"] for one in served if one["name"] == "rain")

    made, answers = dict([clip()]), []
    with ThreadPoolExecutor(3) as pool:
        for content in (save(tensors), old):
            write_bytes(file, content)
            new, deadline = hashlib.sha256(content).hexdigest(), time.monotonic() + 120
            while running() != [new]:
                assert time.monotonic() < deadline, server.tail()
                answers += pool.map(clip, range(3))
            sha256, frames = clip()
            assert sha256 == new
            made.setdefault(new, frames)
            assert server.metric("huvidpo_category_weights_info", category="rain", sha256=new) == 1
            assert server.metric("huvidpo_category_weights_info", category="rain") == 1
    assert len(made) == 2
    for sha256, frames in answers:
        nearest = min(made, key=lambda other: np.abs(frames - made[other]).mean())
        assert nearest == sha256


def test_rating_at_the_service(server, rated_clips):
    page = server.client.get("/rate", follow_redirects=True)
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    (task,) = server.client.get("/rate/api/score/tasks?rater=ann").json()["tasks"]
    clip = server.client.get(f"/rate/clips/{task['id']}", headers={"Range": "bytes=0-3"})
    assert clip.status_code == 206
    body = {"rater": "ann", "task": task["id"], "answer": 8}
    assert server.client.post("/rate/api/score/answer", json=body).status_code == 200
    assert [record.score for record in read_records(rated_clips / "ratings.jsonl")] == [8]
    missing = server.client.get("/rate/nothing")
    assert missing.json()["error"]["code"] == "not_found"
    assert task["id"] not in server.client.get("/metrics").text  # a series for every clip would be too many


def test_foreign_names_and_foreign_pages_get_nothing(server):
    """A page at evil.example whose name now points here, and one that sends a form here."""
    for path in (
        "/",
        "/page/app.js",
        "/rate/",
        "/rate/export/ratings.jsonl",
        "/models",
        "/v1/videos",
        "/metrics",
    ):
        answer = server.client.get(path, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), path
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": "http://evil.example"}
    form = {"files": {"prompt": (None, "rain")}, "headers": foreign}
    assert server.client.post("/v1/videos", **form).status_code == 403
    assert server.client.get("/", headers=foreign).status_code == 200  # a link to the page
