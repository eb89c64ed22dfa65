"""The rows of jobs that an older version made."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace

from service.job_rows import FIRST_TURN, Rows, new_job


def test_a_table_of_an_older_version_gets_its_columns(tmp_path):
    url = f"sqlite:///{tmp_path}/jobs.sqlite"

    async def prepared():
        rows = Rows(url)
        await rows.prepare()
        return rows

    async def make():
        rows = await prepared()
        await rows.add(new_job("video_1", "", {"prompt": "x"}, 5, None, warnings=["x"]), None, "0" * 64)
        assert (await rows.get("video_1")).warnings == ["x"]
        rows.close()

    async def look():
        rows = await prepared()
        await rows.claim("video_1", "me")
        assert await rows.waits("video_1", "me", 2, 10.0)
        job = await rows.get("video_1")
        assert (job.position, job.total, job.warnings) == (2, 5, None)
        assert job.expected_at - job.started_at < 60
        assert await rows.step("video_1", "me", "first_frame", 1)
        assert (await rows.get("video_1")).position is None
        await rows.step("video_1", "me", "first_frame", 3)
        await rows.step("video_1", "me", "first_frame", 2)  # done again after a takeover
        job = await rows.get("video_1")
        assert (job.stage, job.done) == ("first_frame", 3)
        await rows.waits("video_1", "me", 0, None)
        assert (await rows.get("video_1")).stage is None
        rows.close()

    asyncio.run(make())
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as db:
        for column in ("position", "expected_at", "warnings"):
            db.execute(f"ALTER TABLE huvidpo_jobs DROP COLUMN {column}")
        db.commit()
    asyncio.run(look())


def test_each_owner_is_next_before_anybodys_second(tmp_path):
    async def main():
        rows = Rows(f"sqlite:///{tmp_path}/jobs.sqlite")
        await rows.prepare()
        order = []

        async def add(name, owner, priority="normal"):
            turn = await rows.next_turn(owner, priority)
            job = replace(new_job(name, owner, {"prompt": "x"}, 5, None), turn=turn)
            await rows.add(job, None, "0" * 64)
            order.append((turn, name))

        for number in range(4):
            await add(f"a{number}", "a")
        await rows.claim("a0", "me")
        await add("b0", "b")
        await add("b1", "b")
        await add("c0", "c", "low")
        await add("d0", "d", "high")
        assert [name for _, name in sorted(order)] == ["d0", "a0", "a1", "b0", "a2", "b1", "a3", "c0"]
        for _, name in order:  # idle again: nothing of it stays
            await rows.fail(name, {}, 10)
        assert await rows.next_turn("a", "normal") == FIRST_TURN
        rows.close()

    asyncio.run(main())


def test_the_census_counts_what_has_not_ended_and_how_long_the_oldest_waits(tmp_path):
    async def main():
        rows = Rows(f"sqlite:///{tmp_path}/jobs.sqlite")
        await rows.prepare()
        empty = await rows.census()
        for id in ("video_a", "video_b", "video_c"):
            job = new_job(id, "ann", {}, 1, None)
            await rows.add(replace(job, created_at=job.created_at - 60), None, "x")
        await rows.claim("video_a", "me")
        await rows.claim("video_b", "me")
        await rows.fail("video_b", {"code": "internal"}, 1)
        found = await rows.census()
        rows.close()
        return empty, found

    empty, (states, age) = asyncio.run(main())
    assert empty == ({"queued": 0, "in_progress": 0}, 0.0)
    assert states == {"queued": 1, "in_progress": 1}
    assert 60 <= age < 3600
