"""The page at / in a real browser, against the real service: clips asked for, watched, judged, made again."""

import base64
import io
import re

import pytest
from PIL import Image
from playing import wait_until_past

from preferences.records import Comparison, read_records

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=60_000)  # a busy machine
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), (220, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


def shown(page) -> str:
    """Id of the job on show."""
    return re.sub(".*#", "", page.url)


def opened(browse, server, fragment="", **context):
    page = browse(f"{server.url}/#{fragment}", **context)
    expect(page.locator("#style option")).to_have_count(4)
    return page


def test_with_the_keyboard_alone(server, browse):
    page = opened(browse, server)
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a white horse runs")
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.type("cartoon")
    page.keyboard.press("Tab")
    page.keyboard.type("7")
    page.keyboard.press("Tab")
    page.keyboard.type("0.5")
    page.keyboard.press("Enter")
    clip = page.locator("#clip")
    expect(clip).to_be_visible()
    wait_until_past(clip, 0)  # it plays
    assert page.evaluate("document.getElementById('clip').videoWidth") == 32
    id = shown(page)
    job = server.client.get(f"/v1/videos/{id}").json()
    assert (job["prompt"], job["category"], job["style"], job["seed"]) == (
        "a white horse runs", "horse", "cartoon", 7,
    )  # fmt: skip
    assert page.locator("#tags .tag").all_text_contents() == ["horse", "cartoon", "seed 7", "preferences 0.5"]
    expect(page.locator("#progress")).to_be_hidden()
    page.locator("#lineage summary").focus()  # no field: letters are commands
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text(
        server.client.get(f"/v1/videos/{id}/lineage").json()["weights"]["sha256"]
    )
    page.keyboard.press("-")
    expect(page.locator("#down")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("+")
    expect(page.locator("#up")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#down")).to_have_attribute("aria-pressed", "false")
    records = read_records(server.log.parent / "data" / "feedback" / "ratings.jsonl")
    mine = [one for one in records if getattr(one, "clip", "") == f"{id}.mp4"]
    assert [one.score for one in mine] == [0, 10]
    assert len({one.rater for one in mine}) == 1
    assert mine[0].rater.startswith("visitor-")
    page.fill("#prompt", "")
    page.select_option("#style", "realistic")
    page.fill("#preference", "")
    page.locator("#lineage summary").focus()
    page.keyboard.press("a")
    expect(page.locator("#prompt")).to_be_focused()
    values = [page.input_value(f"#{name}") for name in ("prompt", "category", "style", "seed", "preference")]
    assert values == ["a white horse runs", "horse", "cartoon", "7", "0.5"]


def test_progress_preview_and_cancel(server, browse):
    page = opened(browse, server)
    page.route("**/v1/videos", lambda route: route.continue_(post_data=longer(route.request)))
    page.fill("#prompt", "rain")
    page.click("#generate")
    expect(page.locator("#doing")).to_have_text(re.compile(r"Step \d+ of 103"))
    expect(page.locator("#frame")).to_be_visible()
    expect(page.locator("#left")).to_have_text(re.compile(r"about \d+ (s|min)"))
    assert 0 < page.evaluate("document.getElementById('bar').value") < 100
    page.keyboard.press("Escape")
    expect(page.locator("#empty")).to_have_text("Cancelled")
    job = server.client.get(f"/v1/videos/{shown(page)}").json()
    assert job["error"]["code"] == "cancelled"
    expect(page.locator("#jobs li").first).to_contain_text("cancelled")


def longer(request) -> bytes:
    """The form with so many steps and frames that there is time to look."""
    body = request.post_data_buffer
    line = body.split(b"\r\n", 1)[0]
    more = b"".join(
        line + b'\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%d\r\n' % field
        for field in ((b"num_inference_steps", 100), (b"num_frames", 64))
    )
    return more + body


def test_a_dropped_picture_is_the_first_frame(server, browse):
    page = opened(browse, server)
    page.evaluate(
        """async (data) => {
            const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], "red.png", { type: "image/png" }));
            for (const name of ["dragover", "drop"])
                document.getElementById("drop").dispatchEvent(
                    new DragEvent(name, { dataTransfer: files, bubbles: true, cancelable: true }));
        }""",
        base64.b64encode(png()).decode(),
    )
    expect(page.locator("#drop-text")).to_have_text("red.png")
    page.fill("#prompt", "a waterfall and a zebra")
    page.click("#generate")
    expect(page.locator("#clip")).to_be_visible()
    expect(page.locator("#warnings")).to_contain_text("was never trained on these words")
    (warning,) = server.client.get(f"/v1/videos/{shown(page)}").json()["warnings"]
    assert warning.endswith(": zebra")
    frame = server.client.get(f"/v1/videos/{shown(page)}/content?variant=first_frame").content
    assert Image.open(io.BytesIO(frame)).convert("RGB").getpixel((16, 16)) == (220, 30, 30)
    page.click("#unfile")
    expect(page.locator("#drop-text")).to_contain_text("drop or choose")
    page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator("#problem")).to_have_text("no.png is no picture that this browser reads.")


def test_what_the_server_refuses_is_said(server, browse):
    page = opened(browse, server)
    page.fill("#prompt", "a dog")
    page.click("#generate")
    expect(page.locator("#problem")).to_contain_text("the prompt names none, choose one of")
    expect(page.locator("#generate")).to_be_enabled()
    page.select_option("#category", "rain")
    page.fill("#seed", "99999999999")  # the browser's own check
    assert not page.evaluate("document.getElementById('ask').checkValidity()")


def test_markup_in_a_prompt_stays_text(server, browse):
    page = opened(browse, server)
    prompt = "<img src=x onerror=alert(1)> rain </script>"
    page.fill("#prompt", prompt)
    page.click("#generate")
    expect(page.locator("#clip")).to_be_visible()
    expect(page.locator("#said")).to_have_text(prompt)
    expect(page.locator("#jobs li").first).to_contain_text(prompt)


def compared(server, ids) -> list[tuple[str, str, str]]:
    """The two clips and the answer of each comparison of these."""
    records = read_records(server.log.parent / "data" / "feedback" / "ratings.jsonl")
    told = [one for one in records if isinstance(one, Comparison) and one.clip_a.removesuffix(".mp4") in ids]
    return [(one.clip_a.removesuffix(".mp4"), one.clip_b.removesuffix(".mp4"), one.answer) for one in told]


def test_two_clips_of_one_text_side_by_side(server, browse):
    fields = {"prompt": "a smile to compare", "num_inference_steps": 1, "num_frames": 4}
    ids = []
    for seed in (1, 2, 1):  # the last is the first once more, and not asked about
        ids.append(server.client.post("/v1/videos", json=fields | {"seed": seed}).json()["id"])
        # until it has ended: in one batch with others torch may round otherwise, and the file be another
        server.client.get(f"/v1/videos/{ids[-1]}/events")
    first, second, same = ids
    page = opened(browse, server, fragment=first)
    expect(page.locator("#compare")).to_be_visible()
    page.locator("#lineage summary").focus()
    page.evaluate("Math.random = () => 0.9")  # the side is left to chance
    page.keyboard.press("c")
    expect(page.locator("#pair")).to_be_visible()
    for name in ("one", "two"):  # they play
        wait_until_past(page.locator(f"#{name}"), 0)
    assert [page.get_attribute(f"#{name}", "data-id") for name in ("one", "two")] == [second, first]
    expect(page.locator("#both")).to_have_text(fields["prompt"])
    left, right = (page.locator(f"#{name}").bounding_box() for name in ("one", "two"))
    assert (left["y"], left["x"] + left["width"] < right["x"]) == (right["y"], True)
    page.keyboard.press("Enter")  # is no answer
    page.keyboard.press("2")
    expect(page.locator("#pair")).to_be_hidden()
    expect(page.locator("#saved")).to_have_text("Saved")
    assert compared(server, ids) == [(second, first, "b")]
    page.keyboard.press("c")
    expect(page.locator("#problem")).to_have_text("The other clips of this text are the same, byte for byte.")

    phone = opened(browse, server, fragment=second, **PHONE)
    phone.evaluate("Math.random = () => 0.1")
    phone.tap("#compare")
    expect(phone.locator("#pair")).to_be_visible()
    assert [phone.get_attribute(f"#{name}", "data-id") for name in ("one", "two")] == [second, same]
    box = phone.locator("#pair").bounding_box()
    assert (box["x"] >= 0, box["x"] + box["width"] <= 390, box["y"] + box["height"] <= 844) == (True,) * 3
    above, below = (phone.locator(f"#{name}").bounding_box() for name in ("one", "two"))
    assert above["y"] + above["height"] < below["y"]
    phone.tap("#pair .quiet")  # not now
    expect(phone.locator("#pair")).to_be_hidden()
    phone.tap("#compare")
    phone.tap('#choices [value="tie"]')
    expect(phone.locator("#saved")).to_have_text("Saved")
    assert compared(server, ids)[1:] == [(second, same, "tie")]


def test_recent_jobs_and_links_on_a_phone(server, browse):
    ids = [
        server.client.post("/v1/videos", json={"prompt": "birds", "num_inference_steps": 1}).json()["id"]
        for _ in range(2)
    ]
    for id in ids:
        server.client.get(f"/v1/videos/{id}/events")  # until it has ended
    page = opened(browse, server, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.tap(f'#jobs [data-id="{ids[0]}"]')
    expect(page.locator("#clip")).to_be_visible()
    assert shown(page) == ids[0]
    expect(page.locator(f'#jobs [data-id="{ids[0]}"]')).to_have_attribute("aria-current", "true")
    page.tap(f'#jobs [data-id="{ids[1]}"]')
    page.go_back()
    expect(page.locator(f'#jobs [data-id="{ids[0]}"]')).to_have_attribute("aria-current", "true")
    small = page.evaluate(
        "[...document.querySelectorAll('button, a, summary, select')].filter((one) => one.offsetHeight"
        " && one.offsetHeight < 24).map((one) => one.id)"
    )
    assert small == []  # fingers find them


def test_headers(server):
    page = server.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in page.text.replace("http-equiv", "")  # nothing from elsewhere
    assert server.client.get("/page/app.js").headers["content-type"].startswith("text/javascript")
    assert server.client.get("/page/../app.py").status_code == 404
    assert server.client.get("/page/index.html").json()["error"]["code"] == "not_found"
