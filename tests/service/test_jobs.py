"""Jobs through restarts, kills and takeovers: real processes, real databases, toy stages."""

import base64
import hashlib
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from jobs_engine import Engine
from moto_server import S3
from ports import free_port

from benchmarks.painted_runner import notes_of
from deploy.rehearsal.cluster import Postgres
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.video import decode
from service.images import to_png
from service.store import open_store

ROOT = Path(__file__).parents[2]
FRAME = np.zeros((64, 64, 3), np.uint8)
DRAWN = load_catalog().model(DEFAULT_MODEL).defaults.first_frame_steps  # of a job, before its video's


@pytest.fixture
def start(tmp_path):
    engines: list[Engine] = []

    def start(*args: Any, **kwargs: Any) -> Engine:
        engines.append(Engine(tmp_path, *args, **kwargs))
        return engines[-1]

    yield start
    for engine in engines:
        if engine.process.poll() is None:
            engine.process.send_signal(signal.SIGCONT)
            engine.kill()


@pytest.fixture(scope="module")
def postgres():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        try:
            postgres = Postgres(Path(folder), "127.0.0.1", free_port(), "jobs")
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield postgres
        postgres.stop()


def test_a_job_from_queue_to_clip(start):
    engine = start().ready()
    job = engine.do("create", seed=7, frames=4)
    assert (job["status"], job["done"], job["total"]) == ("queued", 0, DRAWN + 4)
    job = engine.wait(job["id"])
    assert (job["status"], job["done"], job["error"]) == ("completed", DRAWN + 4, None)
    assert job["expires_at"] == pytest.approx(job["completed_at"] + 86_400)
    clip = engine.folder / "clips" / job["clip"]
    assert job["report"]["bytes"] == clip.stat().st_size
    sha256 = hashlib.sha256(clip.read_bytes()).hexdigest()
    assert (job["report"]["sha256"], clip.name) == (sha256, f"{sha256[:16]}.mp4")
    assert job["report"]["backends"] == {"first_frame": "painter", "video": "painter"}
    assert decode(clip)[0].shape == (4, 32, 32, 3)
    assert sorted(path.name for path in clip.parent.iterdir()) == [clip.name, "first_frame.png"]
    engine.stop()


def test_killed_in_the_second_stage_it_goes_on_after_a_restart(start):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    engine = start(steps={"video": 0.5}).ready()
    id = engine.do("create", seed=7, trace=trace)["id"]
    engine.wait(id, lambda job: job["done"] > DRAWN)
    engine.kill()
    again = start().ready()
    job = again.wait(id)
    assert job["status"] == "completed"
    lines = again.lines()
    assert (lines["first_frame 7"], lines["video 7"]) == (1, 2)  # the frame is not drawn again
    assert lines[f"video 7 of {id} in {trace}"] == 2  # both in the trace of the request
    again.stop()


def test_stopped_in_order_it_goes_on_at_once(start):
    engine = start(steps={"video": 0.5}, lease_seconds=3600).ready()
    id = engine.do("create", seed=7)["id"]
    engine.wait(id, lambda job: job["done"] > DRAWN)
    engine.stop()
    job = start(lease_seconds=3600).ready().wait(id)  # nobody waits for the lease of one that said goodbye
    assert job["status"] == "completed"
    assert engine.lines()["first_frame 7"] == 1


@pytest.mark.parametrize("when", ["queued", "first_frame", "video"])
def test_cancel_stops_within_a_step(start, when):
    slow = {"first_frame": 0.3} if when != "video" else {"video": 0.3}
    engine = start(steps=slow, job_concurrency=1).ready()
    if when == "queued":
        engine.do("create", seed=1)
    id = engine.do("create", seed=7)["id"]
    if when != "queued":
        engine.wait(id, lambda job: job["done"] >= (1 if when == "first_frame" else DRAWN + 1))
    job = engine.do("cancel", id=id)
    steps = _steps(engine)
    assert (job["status"], job["error"]["code"]) == ("failed", "cancelled")
    time.sleep(1)
    assert _steps(engine) <= (0 if when == "queued" else steps + 1)
    assert engine.do("get", id=id) == job
    assert not list((engine.folder / "clips" / id).glob("*.mp4"))


def _steps(engine: Engine) -> int:
    lines = engine.lines()
    return lines["first_frame 7 step"] + lines["video 7 step"]


def test_delete_leaves_neither_row_nor_files(start):
    engine = start().ready()
    done = engine.wait(engine.do("create", seed=7)["id"])["id"]
    engine.do("delete", id=done)
    assert engine.do("get", id=done)["error_"]["code"] == "not_found"
    assert not (engine.folder / "clips" / done).exists()


def test_row_and_files_expire_together(start):
    engine = start(job_retention=1).ready()
    id = engine.wait(engine.do("create", seed=7)["id"])["id"]
    deadline = time.monotonic() + 20
    while "error_" not in engine.do("get", id=id):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (engine.folder / "clips" / id).exists()


def test_the_same_key_makes_one_job(start):
    one, two = start().ready(), start().ready()
    ids = {engine.do("create", key="k", seed=7)["id"] for engine in (one, two) * 5}
    assert len(ids) == 1
    refused = two.do("create", key="k", seed=8)
    assert refused["error_"]["code"] == "conflict"
    assert one.wait(ids.pop())["status"] == "completed"
    assert one.lines()["first_frame 7"] == 1


def test_bad_requests_and_full_queues_make_no_job(start):
    engine = start(steps={"first_frame": 1}, max_queued_jobs=1, job_concurrency=1).ready()
    assert engine.do("create", category="dance")["error_"]["field"] == "category"
    first = engine.do("create")
    engine.wait(first["id"], lambda job: job["status"] == "in_progress")
    engine.do("create")
    assert engine.do("create")["error_"]["code"] == "queue_full"


def test_gateways_that_start_at_once_make_the_tables_of_a_new_database_together(start, postgres):
    url = postgres.create("fresh")
    engines = [start(url) for _ in range(3)]
    for engine in engines:
        engine.ready()
    for engine in engines:
        engine.stop()


@pytest.fixture
def painted(tmp_path):
    """Runners in processes of their own: where they are, by stage, and what they note."""
    log, addresses, processes = tmp_path / "painted", {}, []
    for stage in ("first_frame", "video"):
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.painted_runner", stage, str(port), "0.005", str(log)]
        processes.append(subprocess.Popen(command, cwd=ROOT))
        addresses[stage] = f"http://127.0.0.1:{port}"
    for address in addresses.values():
        until(lambda url=f"{address}/describe": httpx.get(url).json()["ready"], httpx.HTTPError)
    yield addresses, log
    for process in processes:
        process.kill()
        process.wait()


def until(condition, *but: type[Exception]) -> None:
    deadline = time.monotonic() + 60
    while True:
        with suppress(*but):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_two_gateways_and_kills_lose_and_double_nothing(start, painted, database, request):
    """Also a gateway that dies when its clip is made and not stored: the runner has it still."""
    url = request.getfixturevalue("postgres").url if database == "postgres" else ""
    runners, log = painted

    def noted(what: str, stage: str, seed: int) -> int:
        notes, _ = notes_of(log.read_text() if log.exists() else "")
        return sum((note["what"], note["stage"], note["seed"]) == (what, stage, seed) for note in notes)

    engines = [start(url, runners=runners).ready(), start(url, runners=runners).ready()]
    ids = {}
    for seed in range(20):
        ids[engines[seed % 2].do("create", seed=seed)["id"]] = seed
        if seed in (7, 14):
            until(lambda seed=seed: noted("done", "video", seed - 1))
            engines[0].kill()
            engines[0] = start(url, runners=runners).ready()
    for id in ids:
        assert engines[1].wait(id)["status"] == "completed"
    for seed in ids.values():
        for stage in ("first_frame", "video"):
            assert noted("begun", stage, seed) == noted("done", stage, seed) == 1, (stage, seed)
    used = {engine.do("get", id=id)["id"] for engine in engines for id in ids}
    assert used == set(ids)  # both know all


def test_a_stopped_gateway_that_wakes_up_changes_nothing(start):
    """Its lease has run out and another has its job: it stops at its next step, and one clip is kept."""
    zombie = start(steps={"video": 0.4}).ready()
    id = zombie.do("create", seed=7)["id"]
    zombie.wait(id, lambda job: job["done"] > DRAWN)
    zombie.process.send_signal(signal.SIGSTOP)
    heir = start(steps={"video": 0.4}).ready()
    heir.wait(id, lambda job: heir.lines()["video 7"] == 2)
    zombie.process.send_signal(signal.SIGCONT)
    job = heir.wait(id)
    assert job["status"] == "completed"
    time.sleep(1)
    assert heir.lines()["video 7 done"] == 1
    assert zombie.do("get", id=id) == job


def test_a_database_that_goes_away_for_a_while(start, postgres):
    """New jobs are refused meanwhile; the running one goes on, and ends once the database is back."""
    engine = start(postgres.url, steps={"video": 1.0}).ready()
    id = engine.do("create", seed=7)["id"]
    engine.wait(id, lambda job: job["done"] > DRAWN)
    postgres.stop()
    assert engine.do("create", seed=8)["error_"]["code"] == "unavailable"
    time.sleep(4)
    postgres.start()
    assert engine.wait(id, seconds=60, condition=lambda job: job.get("status") == "completed")
    assert engine.lines()["video 7 done"] == 1
    later = engine.do("create", seed=9)["id"]
    assert engine.wait(later, seconds=120)["status"] == "completed"


def test_a_store_that_cannot_be_written_to_for_a_while(start):
    """What is made meanwhile is kept until it can be; an upload is refused."""
    engine = start(steps={"video": 0.2}).ready()
    id = engine.do("create", seed=7)["id"]
    engine.wait(id, lambda job: job["done"] > DRAWN)
    clips = engine.folder / "clips"
    clips.rename(engine.folder / "away")
    clips.touch()  # no folder any more: nobody can write to it, not even root
    deadline = time.monotonic() + 30
    while engine.lines()["video 7 done"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.5)
    assert engine.do("get", id=id)["status"] == "in_progress"
    refused = engine.do("create", seed=8, first_frame=base64.b64encode(to_png(FRAME)).decode())["error_"]
    assert refused["code"] == "unavailable"
    assert refused["message"] == "clips cannot be stored at the moment: Not a directory"
    clips.unlink()
    (engine.folder / "away").rename(clips)
    job = engine.wait(id)
    assert job["status"] == "completed"
    assert engine.lines()["video 7 done"] == 1


def test_a_workflow_that_is_given_up_fails_its_job(start):
    engine = start(steps={"video": 0.5}).ready()
    id = engine.do("create", seed=7)["id"]
    engine.wait(id, lambda job: job["done"] > DRAWN)
    engine.kill()
    with closing(sqlite3.connect(engine.folder / "workflows.sqlite")) as database:
        given_up = "update workflow_status set status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED'"
        database.execute(given_up)
        database.commit()
    job = start().ready().wait(id)
    assert (job["status"], job["error"]["code"]) == ("failed", "internal")


def test_the_private_call_of_dbos_is_where_we_use_it():
    """`_recover_pending_workflows`: what a dead executor was running goes back to its queue, and nothing
    else. A new version of DBOS has to be looked at before the pin moves."""
    import inspect
    from importlib.metadata import version

    from dbos import DBOS

    assert version("dbos") == "3.4.0"
    assert list(inspect.signature(DBOS._recover_pending_workflows).parameters) == ["executor_ids"]


def test_a_bucket_that_comes_late_loses_nothing(start, tmp_path, monkeypatch):
    """The frame that was drawn waits for its store and is not drawn again; then no local file is left."""
    s3 = S3(tmp_path / "s3.log")
    try:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        engine = start(store_url="s3://clips/here").ready()
        id = engine.do("create", seed=7)["id"]
        engine.wait(id, lambda job: job["done"] >= DRAWN)
        time.sleep(1)
        assert engine.do("get", id=id)["status"] == "in_progress"
        s3.bucket("clips")
        job = engine.wait(id)
        assert (job["status"], job["clip"][:39]) == ("completed", f"{id}/")
        assert engine.lines()["first_frame 7"] == 1
        assert not (engine.folder / "clips").exists()
        store = open_store("s3://clips/here", tmp_path)
        assert len(store.read(job["clip"])) == job["report"]["bytes"]
        engine.do("delete", id=id)
        assert store.jobs() == []
        engine.stop()
    finally:
        s3.stop()
