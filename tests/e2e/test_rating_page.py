"""The rating page in a real browser: keys pressed, clips played, the server killed in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from clips import write_clip
from playing import wait_until_past
from ports import free_port

from preferences.clips import ClipEntry, read_clips, write_clips
from preferences.records import Comparison, Rating, read_records

ROOT = Path(__file__).resolve().parents[2]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
WAIT = 60_000  # milliseconds, for a busy machine


class Pages:
    """`python -m service.rating` (or study) on one port, started as often as it takes."""

    def __init__(self, *command):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", *command, "--port", str(self.port)]

    def start(self):
        self.process = subprocess.Popen(self.command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        for _ in range(600):
            assert self.process.poll() is None
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/api/page").status_code == 200:
                    return self
            time.sleep(0.1)
        raise AssertionError("the page does not come up")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(4):
        format = "webp" if i == 3 else "mp4"
        write_clip(folder / f"secret_{i}.{format}", seed=i, size=(32, 32), frames=8 + i, format=format)
    names = [f"secret_{i}.{'webp' if i == 3 else 'mp4'}" for i in range(4)]
    about = {"category": "horse", "style": "pixel-art", "model": "secret-model"}
    write_clips(
        folder, [ClipEntry(video=name, caption=f"horse {i}", seed=i, **about) for i, name in enumerate(names)]
    )
    return folder


@pytest.fixture(scope="module")
def running(clips):
    server = Pages("service.rating", "--clips", str(clips)).start()
    yield server
    server.kill()


@pytest.fixture
def pages(running, clips):
    """The one server, which keeps nothing in memory, and no answers yet."""
    (clips / "ratings.jsonl").unlink(missing_ok=True)
    return running


def scores(folder):
    return [record.score for record in read_records(folder / "ratings.jsonl") if isinstance(record, Rating)]


def count(page, text):
    expect(page.locator("#count")).to_have_text(text, timeout=WAIT)


def shown(page):
    return page.locator(".clip > :first-child").first.get_attribute("src")


def test_a_session_by_keyboard(browse, pages, clips):
    page = browse(pages.url, "ann")
    count(page, "0 of 4")
    assert "secret" not in page.content()
    for i, (keys, score) in enumerate([(["7"], 7), (["Shift+Digit4"], 4.5), (["h", "8"], 8.5)], start=1):
        for key in keys:
            page.keyboard.press(key)
        count(page, f"{i} of 4")
        assert scores(clips)[-1] == score  # on the disk before the page has moved on

    last = shown(page)
    page.keyboard.press("u")
    count(page, "2 of 4")
    assert scores(clips) == [7, 4.5]
    taken_back = shown(page)
    assert taken_back != last
    page.keyboard.press("s")
    expect(page.locator(".clip > :first-child")).to_have_attribute("src", last, timeout=WAIT)
    page.reload()
    page.wait_for_selector(".clip")
    assert shown(page) == last  # the skipped one is still behind
    page.keyboard.press("t")
    count(page, "3 of 4")
    assert shown(page) == taken_back
    page.keyboard.press("0")
    count(page, "4 of 4")
    assert scores(clips) == [7, 4.5, 10, 0]
    expect(page.locator(".finished h1")).to_contain_text("Thank you, ann")
    with page.expect_download() as download:
        page.click("text=huvidpo.json")
    assert len(json.loads(Path(download.value.path()).read_text())) == 4


def test_clips_play_in_a_loop_and_again_on_demand(browse, pages):
    page = browse(pages.url, "ann")
    for _ in range(4):
        if page.query_selector(".clip video"):
            break
        page.keyboard.press("s")
    wait_until_past(page.locator(".clip video"), 0.2)
    state = page.evaluate(
        "(v => [v.loop, v.muted, v.paused, v.videoWidth])(document.querySelector('.clip video'))"
    )
    assert state == [True, True, False, 32]
    before = page.evaluate("document.querySelector('.clip video').currentTime = 0.7")
    page.keyboard.press("r")
    after = page.evaluate("document.querySelector('.clip video').currentTime")
    assert after < before


def test_buttons_do_what_keys_do(browse, pages, clips):
    page = browse(pages.url, "ann")
    page.click("#half")
    page.click("[data-score='6']")
    count(page, "1 of 4")
    page.click("text=undo")
    count(page, "0 of 4")
    assert scores(clips) == []


def test_side_by_side(browse, pages, clips):
    page = browse(f"{pages.url}/#compare", "ann")
    total = page.locator("#count").text_content().split()[-1]
    for i, (key, side) in enumerate([("ArrowLeft", 0), ("ArrowRight", 1), ("ArrowDown", None)], start=1):
        wanted = page.locator(".clip > :first-child").evaluate_all("all => all.map(one => one.src)")
        assert len(wanted) == 2
        page.keyboard.press(key)
        count(page, f"{i} of {total}")
        record = read_records(clips / "ratings.jsonl")[-1]
        assert isinstance(record, Comparison)
        assert record.answer == {0: "a", 1: "b", None: "tie"}[side]
        served = httpx.get(wanted[0]).content  # what was on the left is clip a
        assert served == (clips / record.clip_a).read_bytes()
    page.keyboard.press("u")
    count(page, f"2 of {total}")


def test_parts_side_by_side(browse, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    entries = []
    for i in range(3):
        write_clip(folder / f"{i}.mp4", seed=i, size=(32, 32), frames=16)
        lineage = {"filmed": "real"} if i == 2 else {"first_frame": "real"}
        entries.append(ClipEntry(video=f"{i}.mp4", caption="horse", category="horse", lineage=lineage))
    write_clips(folder, entries)
    server = Pages("service.rating", "--clips", str(folder), "--segment-frames", "5").start()
    try:
        page = browse(server.url, "ann")
        count(page, "0 of 1")
        names = page.locator(".clip > :first-child").evaluate_all("all => all.map(one => one.src)")
        ask = page.locator(".parts .ask")
        expect(ask).to_have_text("Which one is better as a whole?", timeout=WAIT)
        wait_until_past(page.locator(".clip video").first, 0.2)
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowDown")
        expect(ask).to_have_text("Which one is better in part 2 of 3?", timeout=WAIT)
        assert page.locator(".parts li.chosen").evaluate_all("all => all.map(one => one.dataset.arrow)") == [
            "←",
            "↓",
        ]
        inside = "[...document.querySelectorAll('.clip video')].map(v => v.currentTime)"
        wait_until_past(page.locator(".clip video").first, 1.0)
        for _ in range(40):  # more than two rounds of 0.6 seconds, all within frames 6 to 10
            assert all(6 / 8 <= second < 11 / 8 + 0.1 for second in page.evaluate(inside))
            page.wait_for_timeout(40)
        page.keyboard.press("Backspace")
        expect(ask).to_have_text("Which one is better in part 1 of 3?", timeout=WAIT)
        page.keyboard.press("u")  # while something is chosen: that, and no earlier answer
        expect(ask).to_have_text("Which one is better as a whole?", timeout=WAIT)
        assert not (folder / "ratings.jsonl").exists()
        for key in ("ArrowRight", "ArrowLeft", "ArrowDown"):
            page.keyboard.press(key)
        page.click("[data-choice='right']")
        count(page, "1 of 1")
        (record,) = read_records(folder / "ratings.jsonl")
        assert (record.answer, record.segments) == ("b", ["a", "tie", "b"])
        assert httpx.get(names[0]).content == (folder / record.clip_a).read_bytes()
        page.keyboard.press("u")
        count(page, "0 of 1")
    finally:
        server.kill()


def test_nothing_is_lost_when_the_server_dies(browse, pages, clips):
    page = browse(pages.url, "ann")
    page.keyboard.press("6")
    count(page, "1 of 4")
    pages.kill()
    page.keyboard.press("9")
    expect(page.locator("#offline")).to_be_visible(timeout=WAIT)
    count(page, "1 of 4")  # the page does not move on
    page.keyboard.press("3")  # and takes nothing in for the next clip
    assert scores(clips) == [6]
    pages.start()
    count(page, "2 of 4")
    expect(page.locator("#offline")).to_be_hidden(timeout=WAIT)
    assert scores(clips) == [6, 9]

    pages.kill()
    pages.start()
    page.reload()
    count(page, "2 of 4")
    page.keyboard.press("1")
    count(page, "3 of 4")
    assert scores(clips) == [6, 9, 1]


def test_several_raters_at_once(browse, pages, clips):
    ann, ben = browse(pages.url, "ann"), browse(pages.url, "ben")
    for i in range(1, 5):
        for page, key in ((ann, "2"), (ben, "8")):
            page.keyboard.press(key)
            count(page, f"{i} of 4")
    records = read_records(clips / "ratings.jsonl")
    assert len({(record.rater, record.clip) for record in records}) == 8
    assert {record.score for record in records if record.rater == "ann"} == {2}


def test_the_name_is_asked_for_once_and_checked(browse, pages):
    page = browse(pages.url)
    page.fill("#rater", "a/b")
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_contain_text("expected 1 to 40 letters", timeout=WAIT)
    page.fill("#rater", "ann")
    page.keyboard.press("Enter")
    page.wait_for_selector(".clip")
    page.reload()
    page.wait_for_selector(".clip")
    expect(page.locator("#who")).to_have_text("ann")
    expect(page.locator("dialog")).to_be_hidden()


def test_the_user_study(browse, tmp_path, clips):
    for method in ("LAMP", "ours"):
        folder = tmp_path / "study" / method
        folder.mkdir(parents=True)
        entries = [entry for entry in read_clips(clips) if entry.seed in (0, 1)]
        for entry in entries:
            shutil.copy(clips / entry.video, folder)
        write_clips(folder, entries)
    server = Pages("service.study", "serve", "--methods", str(tmp_path / "study")).start()
    try:
        page = browse(server.url, "ann")
        count(page, "0 of 4")
        assert "LAMP" not in page.content()
        page.keyboard.press("1")
        page.keyboard.press("Backspace")
        for key in "435":
            page.keyboard.press(key)
        count(page, "1 of 4")
        (record,) = read_records(tmp_path / "study" / "ratings.jsonl")
        assert record.criteria == {"aesthetics": 4, "consistency": 3, "alignment": 5}
        page.keyboard.press("u")
        count(page, "0 of 4")
        for i in range(1, 5):
            for row, mark in enumerate((5, 1, 3)):
                page.click(f".criterion:nth-child({row + 1}) [data-mark='{mark}']")
            count(page, f"{i} of 4")
        with page.expect_download() as download:
            page.click("text=table.md")
        text = Path(download.value.path()).read_text()
        for method in ("LAMP", "ours"):
            row = next(line for line in text.splitlines() if method in line)
            assert [cell.split()[0] for cell in row.split("|")[2:5]] == ["100.0", "20.0", "60.0"]
    finally:
        server.kill()
