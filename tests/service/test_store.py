"""Files of jobs in a folder, in memory and behind a real S3 API: one contract."""

import asyncio
import hashlib
import os
import time
from dataclasses import replace

import pytest
from moto_server import S3
from obstore.store import MemoryStore
from ports import free_port
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from service.errors import NotFound, Unavailable
from service.job_rows import new_job
from service.jobs import ORPHANS_SECONDS, JobEngine
from service.ranges import CHUNK, asked_range, serve
from service.settings import Settings
from service.store import Bucket, Folder, open_store

JOB, OTHER = f"video_{'a' * 32}", f"video_{'b' * 32}"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    server = S3(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.stop()


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def store(request, tmp_path, monkeypatch):
    if request.param == "memory":
        return Bucket(MemoryStore())
    if request.param == "folder":
        return open_store("", tmp_path / "clips")
    if request.param == "file":
        return open_store(f"file://{tmp_path}/clips", tmp_path / "unused")
    s3 = request.getfixturevalue("s3")
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return open_store(s3.bucket(f"clips-{time.monotonic_ns()}") + "/some/prefix", tmp_path)


def test_one_contract(store):
    key, other = f"{JOB}/clip.mp4", f"{OTHER}/clip.mp4"
    assert store.jobs() == []
    assert not store.has(key)
    with pytest.raises(NotFound, match="deleted or has expired"):
        store.read(key)
    store.put(key, b"first")
    store.put(key, b"second")  # the last attempt wins
    store.put(f"{JOB}/first_frame.png", b"png")
    store.put(other, b"other")
    store.put("not_ours/file", b"somebody else's")
    assert store.has(key)
    assert store.read(key) == b"second"
    assert sorted(store.jobs()) == [JOB, OTHER]
    assert -5 < store.age(JOB) < 60  # two clocks
    store.delete(JOB)
    store.delete(JOB)
    assert not store.has(key)
    assert store.read(other) == b"other"
    assert store.jobs() == [OTHER]


def _client(store, key, sha256=None):
    async def answer(request):
        return await serve(request, store, key, "video/mp4", "a.mp4", sha256)

    return TestClient(Starlette(routes=[Route("/", answer)]))


def test_ranges_are_served_alike_by_all(store):
    data = os.urandom(2 * CHUNK + 7)
    store.put(f"{JOB}/clip.mp4", data)
    with _client(store, f"{JOB}/clip.mp4") as client:
        whole = client.get("/")
        assert (whole.status_code, whole.content) == (200, data)
        assert whole.headers["content-length"] == str(len(data))
        assert whole.headers["accept-ranges"] == "bytes"
        assert whole.headers["content-disposition"] == 'attachment; filename="a.mp4"'
        assert client.head("/").headers["content-length"] == str(len(data))
        for asked, start, end in (
            ("bytes=0-0", 0, 1),
            ("bytes=5-", 5, len(data)),
            ("bytes=-7", len(data) - 7, len(data)),
            (f"bytes=3-{CHUNK + 10}", 3, CHUNK + 11),
            (f"bytes=9-{10**12}", 9, len(data)),
        ):
            part = client.get("/", headers={"Range": asked})
            assert (part.status_code, part.content) == (206, data[start:end])
            assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(data)}"
        beyond = client.get("/", headers={"Range": f"bytes={len(data)}-"})
        assert beyond.status_code == 416
        stale = client.get("/", headers={"Range": "bytes=0-0", "If-Range": '"another"'})
        assert stale.status_code == 200


def test_the_hash_of_a_file_is_its_etag(store):
    store.put(f"{JOB}/clip.mp4", b"clip")
    with _client(store, f"{JOB}/clip.mp4", "abc") as client:
        assert client.get("/").headers["etag"] == '"abc"'
        for known, status in (('"abc"', 304), ('"x", W/"abc"', 304), ('"ab"', 200)):
            answer = client.get("/", headers={"If-None-Match": known})
            assert (answer.status_code, answer.headers["etag"]) == (status, '"abc"')
            assert answer.content == (b"clip" if status == 200 else b"")
        part = client.get("/", headers={"Range": "bytes=1-", "If-Range": '"abc"'})
        assert (part.status_code, part.content) == (206, b"lip")


def test_a_clip_of_an_earlier_release_is_hashed_when_asked_for(tmp_path):
    engine = JobEngine.__new__(JobEngine)
    engine.store = Folder(tmp_path)
    engine.store.put(f"{JOB}/clip.mp4", b"clip")
    job = replace(new_job(JOB, "", {}, 1, None), status="completed", clip=f"{JOB}/clip.mp4", report={})
    assert asyncio.run(engine.clip_sha256(job)) == hashlib.sha256(b"clip").hexdigest()
    assert asyncio.run(engine.clip_sha256(replace(job, clip="gone", report={"sha256": "abc"}))) == "abc"


def test_no_range_at_all_is_the_whole_file():
    for header in (
        "",
        "bytes=-",
        "bytes=4-2",
        "lines=1-2",
        "bytes=0-1,3-4",
        "bytes=a-b",
        "bytes=" + "9" * 400 + "-",
    ):
        assert asked_range(header, 10) is None


def test_a_store_that_is_away_says_so_in_a_sentence(monkeypatch, tmp_path):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "a secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://clips", tmp_path)
    key = f"{JOB}/clip.mp4"
    for call in (lambda: store.put(key, b"x"), lambda: store.read(key), lambda: store.has(key), store.jobs):
        with pytest.raises(Unavailable, match="away or full"):
            call()


def test_a_bucket_that_is_not_there_is_a_store_that_is_away(s3, monkeypatch, tmp_path):
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match="away or full"):
        open_store("s3://nowhere", tmp_path).put(f"{JOB}/clip.mp4", b"x")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "clips").write_text("a file")
    with pytest.raises(Unavailable, match="cannot be stored at the moment: Not a directory"):
        Folder(tmp_path / "clips").put(f"{JOB}/clip.mp4", b"x")


@pytest.mark.parametrize(
    "url", ["s3://", "s3://user:secret@bucket", "http://x/y", "/a", "file://x/y", "s3://b?k=secret"]
)
def test_bad_urls_are_refused_without_their_secrets(url):
    with pytest.raises(ValueError, match="HUVIDPO_STORE_URL: expected s3://") as refused:
        Settings(store_url=url)
    assert "secret" not in str(refused.value)


def test_orphans_go_once_any_row_would_have(tmp_path):
    class Rows:
        async def known(self, ids):
            return {JOB}

    engine = JobEngine.__new__(JobEngine)
    engine.settings, engine.rows, engine.store = Settings(job_retention=1), Rows(), Folder(tmp_path)
    young = f"video_{'c' * 32}"
    for job, age in ((JOB, 2), (OTHER, 2), (young, 0.5), ("not_ours", 2)):
        engine.store.put(f"{job}/clip.mp4", b"x")
        then = time.time() - age * ORPHANS_SECONDS
        for path in (tmp_path / job / "clip.mp4", tmp_path / job):
            os.utime(path, (then, then))
    asyncio.run(engine._drop_orphans())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([JOB, young, "not_ours"])
