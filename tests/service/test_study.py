"""The user study: reading methods, marks, and the table."""

import asyncio
import re
import shutil

import httpx
import numpy as np
import pytest
from clips import write_clip

from preferences.clips import ClipEntry, ClipFolderError, write_clips
from preferences.records import CRITERIA, Rating, append, read_records
from service.judging import tasks_for
from service.study import main, read_study, study, summarise, table

METHODS = ("LAMP", "frozen", "ours")


@pytest.fixture
def methods(tmp_path):
    """Three methods; only one of them knows its captions."""
    for i, method in enumerate(METHODS):
        folder = tmp_path / method
        folder.mkdir()
        for clip in range(4):
            write_clip(folder / f"{clip}.mp4", seed=i, size=(16, 16), frames=2 + clip)
    entries = [
        ClipEntry(video=f"{i}.mp4", caption=f"horse {i}, cartoon", prompt=f"horse {i}") for i in range(4)
    ]
    write_clips(tmp_path / "ours", entries)
    return tmp_path


def rating(method, rater="ann", marks=(3, 3, 3), clip="0.mp4"):
    criteria = dict(zip(CRITERIA, marks, strict=True))
    return Rating(
        rater=rater, category="", clip=f"{method}/{clip}", sha256="0" * 64, prompt="x", criteria=criteria
    )


def test_every_clip_of_every_method_is_asked_for_once(methods):
    clips = read_study(methods)
    assert {clip.name for clip in clips} == {f"{method}/{i}.mp4" for method in METHODS for i in range(4)}
    assert {clip.entry.prompt for clip in clips} == {f"horse {i}" for i in range(4)}
    tasks = tasks_for("study", clips, "ann")
    assert len({task.id for task in tasks}) == 12
    order = [task.clips[0].name.split("/")[0] for task in tasks]
    assert order != sorted(order)


def test_methods_with_other_file_names_are_matched_by_caption(methods):
    entries = []
    for i in range(4):
        (methods / "LAMP" / f"{i}.mp4").rename(methods / "LAMP" / f"x{i}.mp4")
        entries.append(ClipEntry(video=f"x{i}.mp4", caption=f"horse {i}, cartoon"))
    write_clips(methods / "LAMP", entries[::-1])
    assert len(read_study(methods)) == 12


def test_methods_that_cannot_be_compared_are_refused(methods, tmp_path):
    (methods / "LAMP" / "0.mp4").unlink()
    with pytest.raises(ClipFolderError, match="horse 0"):
        read_study(methods)
    write_clip(methods / "LAMP" / "strange.mp4", size=(16, 16))
    with pytest.raises(ClipFolderError, match=r"strange\.mp4 has no caption"):
        read_study(methods)
    (methods / "empty").mkdir()
    with pytest.raises(ClipFolderError, match="no clips"):
        read_study(methods)
    shutil.rmtree(methods / "empty")
    (methods / "LAMP" / "strange.mp4").unlink()
    write_clip(methods / "LAMP" / "0.mp4", size=(16, 16))
    assert len(read_study(methods)) == 12
    shutil.rmtree(methods / "LAMP")
    shutil.rmtree(methods / "frozen")
    with pytest.raises(ClipFolderError, match="at least two"):
        read_study(methods)


def test_marks_by_hand():
    records = [
        rating("a", marks=(5, 1, 3)),
        rating("a", "ben", marks=(4, 1, 3)),
        rating("b", marks=(5, 5, 5)),
    ]
    result = summarise(records)
    assert list(result) == ["a", "b"]
    assert [result["a"][name].percent for name in CRITERIA] == pytest.approx([90, 20, 60])
    assert (result["a"]["aesthetics"].marks, result["a"]["aesthetics"].raters) == (2, 2)
    assert (result["a"]["aesthetics"].low, result["a"]["aesthetics"].high) == pytest.approx((80, 100))
    assert (result["b"]["alignment"].low, result["b"]["alignment"].high) == pytest.approx((100, 100))


def test_scores_without_marks_do_not_count():
    plain = Rating(rater="ann", category="", clip="a/0.mp4", sha256="0" * 64, prompt="x", score=9)
    assert summarise([plain]) == {}


def test_the_interval_covers_the_truth():
    """40 studies of 12 raters x 8 clips, each with a habit: about 95 % of the intervals hold the mean."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(40):
        records = []
        for rater in range(12):
            habit = rng.normal(0, 0.4)
            for clip in range(8):
                mark = int(np.clip(np.floor(3.5 + habit + rng.normal(0, 0.7)), 1, 5))
                records.append(rating("a", str(rater), (mark, mark, mark), f"{clip}.mp4"))
        mean = summarise(records)["a"]["alignment"]
        hits += mean.low <= 60 <= mean.high  # floor(3.5 + symmetric noise) is 3 on average
    assert 34 <= hits <= 40


def test_the_page_saves_marks_and_offers_the_table(methods):
    async def run():
        transport = httpx.ASGITransport(study(methods), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            assert (await client.get("/api/page")).json()["modes"] == ["study"]
            answer = await client.get("/api/study/tasks?rater=ann")
            assert not [secret for secret in (*METHODS, ".mp4") if secret in answer.text]
            marks = {"aesthetics": 5, "consistency": 4, "alignment": 3}
            for task in answer.json()["tasks"]:
                body = {"rater": "ann", "task": task["id"], "answer": marks}
                assert (await client.post("/api/study/answer", json=body)).status_code == 200
            assert (await client.get("/api/study/tasks?rater=ann")).json()["answers"] == {
                task["id"]: marks for task in answer.json()["tasks"]
            }
            for wrong in ({**marks, "alignment": 6}, {**marks, "alignment": 2.5}, {"aesthetics": 1}, 3):
                body["answer"] = wrong
                assert (await client.post("/api/study/answer", json=body)).status_code == 422
            return (await client.get("/export/table.md")).text

    text = asyncio.run(run())
    assert text == table(read_records(methods / "ratings.jsonl"))
    assert "| ours | 100.0 (100.0 to 100.0) | 80.0 (80.0 to 80.0) | 60.0 (60.0 to 60.0) | 4 | 1 |" in text


def test_the_command_writes_the_table(methods, tmp_path, capsys):
    out = tmp_path / "table.md"
    assert main(["table", "--methods", str(methods), "--out", str(out)]) == 2
    assert "no marks" in capsys.readouterr().err
    for method in METHODS:
        append(methods / "ratings.jsonl", rating(method))
    assert main(["table", "--methods", str(methods), "--out", str(out)]) == 0
    assert len(re.findall("60.0", out.read_text())) == 3 * 3 * 3
    assert main(["serve", "--methods", str(tmp_path / "nothing")]) == 2
    assert "sub-folder" in capsys.readouterr().err
