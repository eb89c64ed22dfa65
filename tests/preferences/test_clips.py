import json

import pytest

from preferences.clips import ClipEntry, ClipFolderError, read_clips, write_clips


def test_what_is_written_is_read_back(tmp_path):
    entries = [
        ClipEntry(
            video="0.mp4", caption="a horse runs, cartoon style", prompt="a horse runs", style="cartoon",
            category="horse", seed=3, model="tiny", lineage={"stage": "motion"},
        ),
        ClipEntry(video="ö\u2028.mp4", caption="a horse\u2028runs"),
    ]  # fmt: skip
    for entry in entries:
        (tmp_path / entry.video).write_bytes(b"video")
    write_clips(tmp_path, entries)
    assert read_clips(tmp_path) == entries
    assert entries[1].prompt == entries[1].caption


def test_every_malformed_line_is_named(tmp_path):
    (tmp_path / "0.mp4").write_bytes(b"video")
    good = {"video": "0.mp4", "caption": "a horse runs", "mood": "keys of others are theirs"}
    wrong = {
        "{": "not JSON",
        "[]": "not an object",
        json.dumps({"video": "0.mp4"}): "caption: got None",
        json.dumps(good): "named twice",
        json.dumps(good | {"video": "1.mp4"}): "there is no file 1.mp4",
        json.dumps(good | {"video": "../1.mp4"}): "outside the folder",
        json.dumps(good | {"seed": "1"}): "seed: got '1'",
        json.dumps(good | {"lineage": {"a": 1}}): "lineage",
        json.dumps(good | {"style": None}): "style: got None",
    }
    lines = [json.dumps(good), "", *wrong]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(ClipFolderError) as caught:
        read_clips(tmp_path)
    named = str(caught.value).splitlines()
    assert len(named) == len(wrong)
    for number, (line, reason) in enumerate(zip(named, wrong.values(), strict=True), start=3):
        assert f"line {number}: " in line
        assert reason in line


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_a_folder_without_clips_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(ClipFolderError, match=r"captions\.jsonl"):
        read_clips(tmp_path)
