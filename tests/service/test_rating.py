"""The rating page's server: tasks, answers, exports, and what it refuses. A browser meets it in e2e."""

import asyncio
import json
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from clips import write_clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from huvidpo.catalog import load_catalog
from preferences.clips import ClipEntry, ClipFolderError, write_clips
from preferences.pairs import by_segment, check_files, rank
from preferences.records import (
    Comparison,
    PreferencesError,
    Rating,
    Retraction,
    SegmentComparison,
    append,
    read_records,
)
from service.http import Guard
from service.judging import Judging, clips_of, tasks_for
from service.pages import PATHS, PREFIXES, with_pages
from service.rating import main, rating_app, standalone
from service.settings import Settings

SECRETS = ("secret-model", "horse_", ".mp4", "lineage", "sha256", "seed")  # what a rater must not see


@pytest.fixture(scope="module")
def folder_of_clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rate") / "clips"
    folder.mkdir()
    entries = []
    for i in range(6):
        category = "horse" if i < 4 else "rain"
        write_clip(folder / f"{category}_{i}.mp4", seed=i, size=(16, 16), frames=2 + i)
        about = {"prompt": f"{category} {i // 2}", "style": "cartoon", "category": category, "seed": i}
        lineage = {"stage": "motion", "sha256": "secret-model"}
        entry = ClipEntry(
            video=f"{category}_{i}.mp4", caption="x", model="secret-model", lineage=lineage, **about
        )
        entries.append(entry)
    write_clips(folder, entries)
    return folder


@pytest.fixture
def folder(folder_of_clips, tmp_path):
    shutil.copytree(folder_of_clips, tmp_path / "clips")
    return tmp_path / "clips"


class Client:
    """The page's requests, straight into the application."""

    def __init__(self, app):
        self.app = app

    def request(self, method, path, **options):
        async def send():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **body):
        return self.request("POST", path, json=body)

    def tasks(self, mode="score", rater="ann"):
        response = self.get(f"/api/{mode}/tasks", params={"rater": rater})
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture
def client(folder):
    return Client(standalone(Judging(folder)))


def problem(response, status, code):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert {"code", "message", "request_id"} <= set(error)
    assert error["code"] == code
    return error


def test_order_is_random_per_rater_and_stable(folder):
    clips = clips_of(folder)
    orders = {rater: [task.id for task in tasks_for("score", clips, rater)] for rater in map(str, range(8))}
    assert all(sorted(order) == sorted(clip.id for clip in clips) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) > 4
    assert orders["3"] == [task.id for task in tasks_for("score", clips_of(folder), "3")]
    assert orders["3"] == [task.id for task in tasks_for("score", clips[::-1], "3")]


def test_pairs_stay_within_a_category_and_reach_every_clip(folder):
    tasks = tasks_for("compare", clips_of(folder), "ann")
    pairs = [{clip.name for clip in task.clips} for task in tasks]
    assert all(len({clip.entry.category for clip in task.clips}) == 1 for task in tasks)
    assert all(len(pair) == 2 for pair in pairs)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 6 + 1  # all of 4 horses, the 2 rains
    assert set.union(*pairs) == {clip.name for clip in clips_of(folder)}


def test_sides_are_random(folder):
    tasks = [tasks_for("compare", clips_of(folder), f"rater {i}") for i in range(30)]
    lefts = Counter(task.clips[0].name < task.clips[1].name for one in tasks for task in one)
    assert 0.35 < lefts[True] / lefts.total() < 0.65


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(count=st.integers(0, 9), prompts=st.integers(1, 4), rater=st.text(min_size=1, max_size=5))
def test_pairs_of_any_folder(folder_of_clips, count, prompts, rater):
    """Few enough to answer, and connected, so that an order can be told from them."""
    clip = clips_of(folder_of_clips)[0]
    entries = [ClipEntry(video=f"{i}.mp4", caption=str(i % prompts), category="x") for i in range(count)]
    clips = [type(clip)(clip.path, entry.video, clip.sha256, entry) for entry in entries]
    tasks = tasks_for("compare", clips, rater)
    assert len({task.id for task in tasks}) == len(tasks) <= 3 * count
    reached = {clips[0].name} if clips else set()
    for _ in clips:
        for task in tasks:
            names = {clip.name for clip in task.clips}
            reached |= names if names & reached else set()
    assert reached == {clip.name for clip in clips}


def test_scores_are_saved_before_the_answer_and_found_again(client, folder):
    session = client.tasks()
    assert len(session["tasks"]) == 6
    assert session["answers"] == {}
    first = session["tasks"][0]
    assert client.post("/api/score/answer", rater="ann", task=first["id"], answer=7.5).status_code == 200
    (record,) = read_records(folder / "ratings.jsonl")
    assert isinstance(record, Rating)
    assert (record.rater, record.score, record.criteria) == ("ann", 7.5, None)
    assert record.lineage == {"stage": "motion", "sha256": "secret-model"}
    assert f"{record.category}_{record.seed}.mp4" == record.clip

    again = Client(standalone(Judging(folder))).tasks()  # another process
    assert again == session | {"answers": {first["id"]: 7.5}}
    assert client.tasks(rater="ben")["answers"] == {}


def test_an_answer_may_be_sent_again_or_changed(client, folder):
    task = client.tasks()["tasks"][2]["id"]
    for _ in range(3):
        client.post("/api/score/answer", rater="ann", task=task, answer=3)
    assert len((folder / "ratings.jsonl").read_text().splitlines()) == 1
    client.post("/api/score/answer", rater="ann", task=task, answer=9)
    assert [record.score for record in read_records(folder / "ratings.jsonl")] == [9]
    assert client.tasks()["answers"] == {task: 9}


def test_comparisons_know_their_sides(client, folder):
    tasks = client.tasks("compare")["tasks"]
    given = dict(zip([task["id"] for task in tasks], ["left", "right", "tie"] * 3, strict=False))
    for task, choice in given.items():
        assert client.post("/api/compare/answer", rater="ann", task=task, answer=choice).status_code == 200
    assert client.tasks("compare")["answers"] == given
    shown = {task.id: task for task in tasks_for("compare", clips_of(folder), "ann")}
    for record, (task, choice) in zip(read_records(folder / "ratings.jsonl"), given.items(), strict=True):
        left, right = shown[task].clips
        assert isinstance(record, Comparison)
        winner = {"a": record.clip_a, "b": record.clip_b, "tie": None}[record.answer]
        assert winner == {"left": left.name, "right": right.name, "tie": None}[choice]
        same = left.entry.prompt == right.entry.prompt
        assert record.prompt == (left.entry.prompt if same else "")
    assert client.tasks("score")["answers"] == {}


SEGMENTS = {"segment_frames": 3}


def made_folder(folder, frames=8, fps=8.0, made=3, format="mp4"):
    """Two filmed clips, and `made` from the first frame of each; of the last, `frames`."""
    folder.mkdir()
    entries = []
    for real in ("x", "y"):
        about = {"caption": f"horse {real}", "category": "horse"}
        write_clip(folder / f"{real}.mp4", size=(16, 16), frames=8)
        entries.append(ClipEntry(video=f"{real}.mp4", lineage={"filmed": real}, **about))
        for i in range(made):
            last = (real, i) == ("y", made - 1)
            file = folder / f"{real}_{i}.{format}"
            shape = {"frames": frames, "fps": fps} if last else {"frames": 8}
            write_clip(file, seed=i, size=(16, 16), format=format, **shape)
            entries.append(ClipEntry(video=file.name, lineage={"first_frame": real}, seed=i, **about))
    write_clips(folder, entries)
    return folder


def test_segments_are_asked_of_what_was_made_from_one_clip(tmp_path):
    folder = made_folder(tmp_path / "made")
    client = Client(standalone(Judging(folder, **SEGMENTS)))
    assert client.get("/api/page").json() == {"modes": ["segments"], "exports": ["ratings.jsonl"]}
    session = client.tasks("segments")
    assert session["answers"] == {}
    assert [task["parts"] for task in session["tasks"]] == [[[0.125, 0.5], [0.5, 0.875], [0.875, 1.0]]] * 6
    assert not [secret for secret in SECRETS if secret in json.dumps(session)]
    asked = {task.id: task.clips for task in tasks_for("segments", clips_of(folder), "ann", 3)}
    pairs = {frozenset(clip.name for clip in clips) for clips in asked.values()}
    rings = [(f"{real}_{i}.mp4", f"{real}_{(i + 1) % 3}.mp4") for real in "xy" for i in range(3)]
    assert pairs == {frozenset(two) for two in rings}

    given = {
        task: {"whole": "left", "parts": ["tie", "right", "left"]}
        if i % 2
        else {"whole": "tie", "parts": ["left"] * 3}
        for i, task in enumerate(asked)
    }
    for task, answer in given.items():
        assert client.post("/api/segments/answer", rater="ann", task=task, answer=answer).status_code == 200
    assert client.tasks("segments")["answers"] == given
    records = read_records(folder / "ratings.jsonl")
    for record, (task, answer) in zip(records, given.items(), strict=True):
        assert isinstance(record, SegmentComparison)
        assert (record.frames, record.segment_frames) == (8, 3)
        left, right = asked[task]
        better = {"a": record.clip_a, "b": record.clip_b, "tie": None}
        shown = {"left": left.name, "right": right.name, "tie": None}
        assert [better[choice] for choice in [record.answer, *record.segments]] == [
            shown[choice] for choice in [answer["whole"], *answer["parts"]]
        ]
    labels = by_segment(records).labels  # what training reads
    check_files(rank(records), folder)
    assert len(labels) == 12
    assert {tuple(map(abs, label)) for label in labels.values()} == {(1, 1, 1), (0, 1, 1)}

    last = list(given)[-1]
    assert client.post("/api/segments/undo", rater="ann").json()["undone"] == last
    assert last not in client.tasks("segments")["answers"]


def test_sides_of_segments_are_turned_for_whoever_sees_them_turned(tmp_path):
    folder = made_folder(tmp_path / "made", made=2)
    left, right = tasks_for("segments", clips_of(folder), "ann", 3)[0].clips
    record = SegmentComparison(
        rater="ann", category="horse", clip_a=right.name, sha256_a=right.sha256, clip_b=left.name,
        sha256_b=left.sha256, answer="b", frames=8, segment_frames=3, segments=["a", "tie", "b"],
    )  # fmt: skip
    append(folder / "ratings.jsonl", record)
    (answer,) = Judging(folder, **SEGMENTS).session("segments", "ann")[1].values()
    assert answer == {"whole": "left", "parts": ["right", "tie", "left"]}


@pytest.mark.parametrize("parts", [[], ["left"], ["left"] * 4])
def test_another_number_of_segments_is_refused(tmp_path, parts):
    folder = made_folder(tmp_path / "made")
    client = Client(standalone(Judging(folder, **SEGMENTS)))
    task = client.tasks("segments")["tasks"][0]["id"]
    answer = {"whole": "left", "parts": parts}
    response = client.post("/api/segments/answer", rater="ann", task=task, answer=answer)
    error = problem(response, 422, "invalid_request")
    assert error["field"] == "answer"
    assert f"got {len(parts)} parts, expected 3" in error["message"]
    assert not (folder / "ratings.jsonl").exists()


def test_clips_that_cannot_be_compared_by_segments_are_refused(folder, tmp_path):
    refused = {
        "no two clips were made": folder,
        "y_2.mp4 6 at 8 fps": made_folder(tmp_path / "shorter", frames=6),
        "y_2.mp4 8 at 12 fps": made_folder(tmp_path / "faster", fps=12.0),
        "no two clips": made_folder(tmp_path / "one", made=1),
        "x_0.webp is a picture": made_folder(tmp_path / "pictures", format="webp"),
    }
    broken = made_folder(tmp_path / "broken")
    (broken / "x_1.mp4").write_bytes(b"no video")
    for message, clips in (refused | {f"{broken / 'x_1.mp4'}: video": broken}).items():
        with pytest.raises(ClipFolderError, match=message):
            standalone(Judging(clips, **SEGMENTS))


def test_a_file_judges_clips_in_one_way(tmp_path, capsys):
    folder = made_folder(tmp_path / "made")
    whole = Client(standalone(Judging(folder)))
    task = whole.tasks("compare")["tasks"][0]["id"]
    whole.post("/api/compare/answer", rater="ann", task=task, answer="tie")
    with pytest.raises(
        PreferencesError, match=r"judges horse clips as a whole, and here .* segments of 3 frames"
    ):
        standalone(Judging(folder, **SEGMENTS))
    other = Client(standalone(Judging(folder, ratings=tmp_path / "segments.jsonl", **SEGMENTS)))
    task = other.tasks("segments")["tasks"][0]["id"]
    answer = {"whole": "tie", "parts": ["tie"] * 3}
    assert other.post("/api/segments/answer", rater="ann", task=task, answer=answer).status_code == 200
    (record,) = read_records(tmp_path / "segments.jsonl")
    assert record.answer == "tie"
    common = ["--clips", str(folder), "--ratings", str(tmp_path / "segments.jsonl")]
    for arguments, message in (
        ([], "by segments of 3 frames, and here people are asked about them as a whole"),
        (
            ["--segment-frames", "4"],
            "by segments of 3 frames, and here people are asked about them by segments of 4",
        ),
        (["--segment-frames", "0"], "--segment-frames: got 0, expected 1 or more"),
    ):
        assert main([*common, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_undo_takes_back_one_after_the_other(client, folder):
    ids = [task["id"] for task in client.tasks()["tasks"]]
    for score, task in enumerate(ids[:3]):
        client.post("/api/score/answer", rater="ann", task=task, answer=score)
    client.post("/api/score/answer", rater="ben", task=ids[0], answer=10)
    pair = client.tasks("compare")["tasks"][0]["id"]
    client.post("/api/compare/answer", rater="ann", task=pair, answer="tie")
    undone = [client.post("/api/score/undo", rater="ann").json()["undone"] for _ in range(4)]
    assert undone == [ids[2], ids[1], ids[0], None]
    left = read_records(folder / "ratings.jsonl")
    assert [(record.rater, record.kind) for record in left] == [("ben", "rating"), ("ann", "comparison")]
    assert "retraction" in (folder / "ratings.jsonl").read_text()
    assert Retraction.kind == "retraction"


def test_many_raters_at_once_lose_nothing(client, folder):
    def rate(rater):
        for task in client.tasks(rater=rater)["tasks"]:
            client.post("/api/score/answer", rater=rater, task=task["id"], answer=5)
        return client.tasks(rater=rater)["answers"]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(rate, [f"rater {i}" for i in range(6)]))
    assert all(len(given) == 6 for given in answers)
    counts = Counter((record.rater, record.clip) for record in read_records(folder / "ratings.jsonl"))
    assert len(counts) == 36
    assert set(counts.values()) == {1}


def test_a_double_press_is_one_answer(client, folder):
    task = client.tasks()["tasks"][0]["id"]
    barrier = threading.Barrier(4)

    def press(_):
        barrier.wait()
        return client.post("/api/score/answer", rater="ann", task=task, answer=6).status_code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(press, range(4))) == [200] * 4
    assert len(read_records(folder / "ratings.jsonl")) == 1


def test_the_page_tells_nothing_of_files_and_models(client):
    for text in (client.get(f"/api/{mode}/tasks?rater=ann").text for mode in ("score", "compare")):
        assert not [secret for secret in SECRETS if secret in text]
    clip = client.tasks()["tasks"][0]["clips"][0]
    assert set(clip) == {"id", "picture", "prompt", "style"}
    headers = client.get(f"/clips/{clip['id']}").headers
    assert "content-disposition" not in headers


def test_clips_play_from_any_place(client, folder):
    clip = tasks_for("score", clips_of(folder), "ann")[0].clips[0]
    whole = client.get(f"/clips/{clip.id}")
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.content == clip.path.read_bytes()
    part = client.get(f"/clips/{clip.id}", headers={"Range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.content == whole.content[10:20]


def test_a_clip_that_changed_is_another_clip(client, folder):
    task = client.tasks()["tasks"][0]["id"]
    clip = tasks_for("score", clips_of(folder), "ann")[0].clips[0]
    client.post("/api/score/answer", rater="ann", task=task, answer=5)
    write_clip(clip.path, seed=9, size=(16, 16), frames=9)
    session = client.tasks()
    assert session["answers"] == {}
    assert task not in [task["id"] for task in session["tasks"]]
    assert (
        "reload"
        in problem(client.post("/api/score/answer", rater="ann", task=task, answer=5), 404, "not_found")[
            "message"
        ]
    )
    problem(client.get(f"/clips/{task}"), 404, "not_found")


def test_exports(client, folder):
    assert client.get("/export/ratings.jsonl").text == ""
    assert client.get("/export/huvidpo.json").json() == []
    tasks = client.tasks()["tasks"]
    for rater, score in (("ann", 4), ("ben", 9)):
        client.post("/api/score/answer", rater=rater, task=tasks[0]["id"], answer=score)
    client.post("/api/score/answer", rater="ben", task=tasks[1]["id"], answer=8)
    name = {clip.id: clip.name for clip in clips_of(folder)}
    assert client.get("/export/huvidpo.json").json() == [
        {"video": name[tasks[1]["id"]], "score": 8},
        {"video": name[tasks[0]["id"]], "score": 6.5},
    ]
    jsonl = client.get("/export/ratings.jsonl")
    assert "attachment" in jsonl.headers["content-disposition"]
    assert jsonl.text == (folder / "ratings.jsonl").read_text()
    assert "huvidpo.json" in problem(client.get("/export/passwd"), 404, "not_found")["message"]


def test_every_answer_forbids_the_browser_other_sources(client):
    for path in ("/", "/app.js", "/view.js", "/server.js", "/style.css", "/icon.svg", "/api/page"):
        response = client.get(path)
        assert response.status_code == 200, path
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        outside = [
            word for word in ("https://", "http://") if word in response.text.replace("www.w3.org", "")
        ]
        assert path == "/icon.svg" or not outside


@pytest.mark.parametrize(
    "path",
    [
        "/clips/horse_0.mp4",
        "/clips/..%2fratings.jsonl",
        "/clips/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/../rating.py",
        "/%2e%2e/rating.py",
        "/static/app.js",
        "/ratings.jsonl",
        "/captions.jsonl",
        "/export/..%2f..%2fratings.jsonl",
        "/api/study/tasks?rater=ann",
        "/api/nothing/tasks?rater=ann",
    ],
)
def test_no_path_of_the_client_is_opened(client, path):
    problem(client.get(path), 404, "not_found")


TASK = "0" * 24


@pytest.mark.parametrize(
    ("mode", "body", "status", "code", "field"),
    [
        ("score", {"rater": "ann", "task": TASK, "answer": 11}, 422, "invalid_request", "answer"),
        ("score", {"rater": "ann", "task": TASK, "answer": -0.5}, 422, "invalid_request", "answer"),
        ("score", {"rater": "ann", "task": TASK, "answer": "7"}, 422, "invalid_request", "answer"),
        ("score", {"rater": "ann", "task": TASK}, 422, "invalid_request", "answer"),
        ("score", {"rater": "", "task": TASK, "answer": 7}, 422, "invalid_request", "rater"),
        ("score", {"rater": " ann", "task": TASK, "answer": 7}, 422, "invalid_request", "rater"),
        ("score", {"rater": "a\nb", "task": TASK, "answer": 7}, 422, "invalid_request", "rater"),
        ("score", {"rater": "a" * 41, "task": TASK, "answer": 7}, 422, "invalid_request", "rater"),
        ("score", {"rater": "../x", "task": TASK, "answer": 7}, 422, "invalid_request", "rater"),
        (
            "score",
            {"rater": "ann", "task": TASK, "answer": 7, "clip": "/etc"},
            422,
            "invalid_request",
            "clip",
        ),
        ("compare", {"rater": "ann", "task": TASK, "answer": "a"}, 422, "invalid_request", "answer"),
        ("score", {"rater": "ann", "task": TASK, "answer": 7}, 404, "not_found", None),
        ("study", {"rater": "ann", "task": TASK, "answer": 7}, 404, "not_found", None),
    ],
)
def test_bad_answers_are_refused_by_name(client, folder, mode, body, status, code, field):
    error = problem(client.post(f"/api/{mode}/answer", **body), status, code)
    assert error.get("field") == field
    assert not (folder / "ratings.jsonl").exists()


@pytest.mark.parametrize("rater", ["José", "安娜", "ann.b_2", "ann b", "a", "x@y.org", "a" * 40])
def test_names_people_have(client, rater):
    task = client.tasks(rater=rater)["tasks"][0]["id"]
    assert client.post("/api/score/answer", rater=rater, task=task, answer=1).status_code == 200
    assert client.tasks(rater=rater)["answers"] == {task: 1}


@pytest.mark.parametrize("rater", ["", "..", "a/b", "a ", "<b>", "a" * 41, "a\0"])
def test_names_nobody_has(client, rater):
    error = problem(client.get("/api/score/tasks", params={"rater": rater}), 422, "invalid_request")
    assert error["field"] == "rater"


def test_pages_of_other_sites_are_refused(client, folder):
    task = client.tasks()["tasks"][0]["id"]
    body = {"rater": "ann", "task": task, "answer": 7}
    for origin in ("http://evil.example", "null", "http://page.evil.example", "http://page:81"):
        for path in ("answer", "undo"):
            response = client.request("POST", f"/api/score/{path}", json=body, headers={"Origin": origin})
            problem(response, 403, "forbidden")
    form = client.request(
        "POST", "/api/score/answer", data={"rater": "ann"}, headers={"Origin": "http://page"}
    )
    problem(form, 415, "unsupported_media_type")
    assert not (folder / "ratings.jsonl").exists()
    own = client.request("POST", "/api/score/answer", json=body, headers={"Origin": "http://page"})
    assert own.status_code == 200


def test_large_bodies_are_refused(client, folder):
    body = json.dumps({"rater": "ann", "task": "x" * 5000}).encode()
    headers = {"Content-Type": "application/json"}
    problem(client.request("POST", "/api/score/answer", content=body, headers=headers), 413, "body_too_large")
    wide = Client(
        Guard(rating_app(Judging(folder)), max_body=2**20, prefixes=("/",))
    )  # as behind the gateway
    problem(wide.request("POST", "/api/score/answer", content=body, headers=headers), 413, "body_too_large")
    problem(client.request("POST", "/", json={}), 405, "method_not_allowed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
BODIES = st.binary(max_size=40) | st.dictionaries(
    st.sampled_from(["rater", "task", "answer", "x"]),
    JSON | st.sampled_from(["ann", "tie", TASK]),
    max_size=4,
).map(lambda body: json.dumps(body).encode())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES, path=st.sampled_from(["score/answer", "compare/answer", "score/undo"]))
def test_no_body_is_a_server_error(folder_of_clips, body, path):
    client = Client(standalone(Judging(folder_of_clips)))
    response = client.request(
        "POST", f"/api/{path}", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code in (200, 400, 404, 415, 422), response.text


def test_a_full_disk_is_told_and_nothing_counts_as_saved(client, folder):
    task = client.tasks()["tasks"][0]["id"]
    (folder / "ratings.jsonl").mkdir()  # cannot be written; chmod would not stop root
    response = client.post("/api/score/answer", rater="ann", task=task, answer=7)
    problem(response, 500, "internal")
    assert str(folder) not in response.text


def test_the_command_names_what_is_wrong(folder, capsys):
    assert main(["--clips", str(folder / "nothing")]) == 2
    assert "captions.jsonl" in capsys.readouterr().err
    (folder / "ratings.jsonl").write_text('{"kind": "rating"}\n')
    assert main(["--clips", str(folder)]) == 2
    assert "line 1" in capsys.readouterr().err


# The service


def gateway(folder=""):
    async def bento(scope, receive, send):
        raise AssertionError("not a page of ours")

    app = with_pages(bento, Settings(rating_clips=str(folder)), load_catalog())
    return Client(Guard(app, max_body=2**20, paths=PATHS, prefixes=PREFIXES))


def test_the_service_shows_the_page_at_rate(folder):
    client = gateway(folder)
    assert client.get("/rate").headers["location"] == "rate/"
    assert "<title>" in client.get("/rate/").text
    tasks = client.get("/rate/api/score/tasks?rater=ann").json()["tasks"]
    assert client.get(f"/rate/clips/{tasks[0]['id']}").headers["content-type"] == "video/mp4"
    saved = client.post("/rate/api/score/answer", rater="ann", task=tasks[0]["id"], answer=2.5)
    assert saved.status_code == 200
    assert read_records(folder / "ratings.jsonl")[0].score == 2.5
    problem(client.get("/rate/nothing"), 404, "not_found")


def test_without_the_setting_there_is_no_page():
    for path in ("/rate", "/rate/", "/rate/api/page"):
        problem(gateway().get(path), 404, "not_found")


def test_a_wrong_folder_stops_the_service_at_the_start(tmp_path):
    with pytest.raises(ClipFolderError, match=r"captions\.jsonl"):
        gateway(tmp_path)


def test_malformed_ratings_stop_the_page_at_the_start(folder):
    Path(folder / "ratings.jsonl").write_text("{\n")
    with pytest.raises(PreferencesError, match="line 1"):
        standalone(Judging(folder))
