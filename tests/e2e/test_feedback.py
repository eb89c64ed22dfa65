"""POST /feedback and GET /v1/videos/{id}/lineage of the real service, read back as training reads."""

import hashlib

import pytest

from huvidpo.catalog import DEFAULT_MODEL
from preferences.clips import read_clips
from preferences.pairs import scores_by_clip
from preferences.records import Comparison, Rating, read_records


@pytest.fixture(scope="module")
def clips(server) -> list[dict]:
    """Two horses and a waterfall."""
    bodies = [("a horse runs", 1), ("a horse runs", 2), ("a waterfall", 3)]
    fields = {"num_inference_steps": 1, "num_frames": 2, "style": "cartoon"}
    posted = [server.client.post("/v1/videos", json=fields | {"prompt": p, "seed": s}) for p, s in bodies]
    for one in posted:
        server.client.get(f"/v1/videos/{one.json()['id']}/events")  # until it has ended
    return [server.client.get(f"/v1/videos/{one.json()['id']}").json() for one in posted]


@pytest.fixture(scope="module")
def folder(server):
    return server.log.parent / "data" / "feedback"


def post(server, **body):
    return server.client.post("/feedback", json=body)


def test_opinions_become_a_folder_that_training_reads(server, clips, folder, random_family):
    a, b, _ = (clip["id"] for clip in clips)
    assert post(server, video=a, score=9, rater="ann").json()["rater"] == "ann"
    assert post(server, video=a, score=2.5, rater="ann").status_code == 200  # she thought again
    compared = post(server, videos=[a, b], better="b", rater="bob").json()
    assert compared["videos"] == [a, b]
    entries = {entry.video: entry for entry in read_clips(folder)}
    assert entries.keys() >= {f"{a}.mp4", f"{b}.mp4"}  # read_clips refuses one named twice
    content = server.client.get(f"/v1/videos/{a}/content").content
    assert (folder / f"{a}.mp4").read_bytes() == content
    weights = hashlib.sha256((random_family / "categories" / "horse.safetensors").read_bytes()).hexdigest()
    entry = entries[f"{a}.mp4"]
    assert (entry.prompt, entry.style, entry.category, entry.seed, entry.model) == (
        "a horse runs", "cartoon", "horse", 1, DEFAULT_MODEL,
    )  # fmt: skip
    assert entry.caption != entry.prompt
    assert "a horse runs" in entry.caption
    assert entry.lineage["sha256"] == weights
    records = read_records(folder / "ratings.jsonl")
    ratings = [one for one in records if isinstance(one, Rating) and one.clip == f"{a}.mp4"]
    assert [(one.score, one.sha256, one.prompt) for one in ratings] == [
        (score, hashlib.sha256(content).hexdigest(), "a horse runs") for score in (9, 2.5)
    ]
    (comparison,) = (record for record in records if isinstance(record, Comparison))
    assert (comparison.id, comparison.answer, comparison.clip_b) == (compared["id"], "b", f"{b}.mp4")
    assert scores_by_clip(records)[f"{a}.mp4"] == 2.5
    server.client.delete(f"/v1/videos/{b}")
    assert (folder / f"{b}.mp4").is_file()  # the job may go, what people said of it stays


@pytest.mark.parametrize(("body", "status", "says"), [
    ({"score": 5}, 422, "send video and score, or videos and better"),
    ({"video": "A", "better": "a"}, 422, "send video and score, or videos and better"),
    ({"video": "A", "score": 11}, 422, "score: input should be less than or equal to 10"),
    ({"video": "A", "score": "9"}, 422, "score: input should be a valid number"),
    ({"video": "A", "score": 5, "rater": "<b>"}, 422, "rater: expected 1 to 40 letters"),
    ({"video": "A", "score": 5, "rater": None}, 422, "rater: missing"),
    ({"videos": ["A"], "better": "a"}, 422, "videos: list should have at least 2"),
    ({"videos": ["A", "A"], "better": "a"}, 422, "twice"),
    ({"videos": ["A", "C"], "better": "tie"}, 422, "clips of one category are compared"),
    ({"videos": ["A", "C"], "better": "c"}, 422, "better: input should be 'a', 'b' or 'tie'"),
    ({"video": "video_0", "score": 5}, 404, "there is no job"),
    ({"video": "../../etc/passwd", "score": 5}, 404, "there is no job"),
])  # fmt: skip
def test_what_is_refused_leaves_nothing(server, clips, folder, body, status, says):
    file = folder / "ratings.jsonl"
    before = file.read_bytes() if file.exists() else b""
    ids = {"A": clips[0]["id"], "C": clips[2]["id"]}
    named = {name: [ids.get(one, one) for one in value] if isinstance(value, list) else ids.get(value, value)
             for name, value in body.items()}  # fmt: skip
    answer = post(server, **{"rater": "ann"} | named)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
    assert (file.read_bytes() if file.exists() else b"") == before


def test_a_clip_that_is_not_there_yet_cannot_be_judged(server):
    body = {"prompt": "rain", "num_inference_steps": 100, "num_frames": 64}
    id = server.client.post("/v1/videos", json=body).json()["id"]
    assert post(server, video=id, score=5, rater="ann").status_code == 404
    lineage = server.client.get(f"/v1/videos/{id}/lineage").json()
    assert (lineage["clip"], lineage["weights"]) == (None, None)
    server.client.delete(f"/v1/videos/{id}")


def test_lineage(server, clips, random_family):
    clip = clips[0]
    lineage = server.client.get(f"/v1/videos/{clip['id']}/lineage").json()
    answer = server.client.get(f"/v1/videos/{clip['id']}/content")
    content = answer.content
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    served = {one["name"]: one["weights"] for one in server.client.get("/models").json()["categories"]}
    assert lineage["weights"] == served["horse"]
    assert (
        lineage["weights"]["sha256"]
        == hashlib.sha256((random_family / "categories" / "horse.safetensors").read_bytes()).hexdigest()
    )
    assert lineage["clip"] == {
        "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "media_type": "video/mp4",
    }  # fmt: skip
    assert (lineage["model"], lineage["first_frame"]) == (DEFAULT_MODEL, "made")
    assert lineage["request"] == {
        "prompt": "a horse runs", "category": "horse", "style": "cartoon", "seed": 1, "steps": 1, "guidance":
        clip["guidance_scale"], "frames": 2, "fps": 8, "negative_prompt": None, "format": "mp4",
        "priority": None, "preference_strength": 1.0,
    }  # fmt: skip
    assert lineage["seconds"].keys() == {"queue", "encode", "first_frame", "video"}
    frame = server.client.get(f"/v1/videos/{clip['id']}/content?variant=first_frame")
    assert (frame.headers["content-type"], frame.content[:4]) == ("image/png", b"\x89PNG")
    assert server.client.get("/v1/videos/video_0/lineage").status_code == 404
