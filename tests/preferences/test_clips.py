import codecs
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preferences.clips import ClipEntry, ClipFolderError, read_clips, write_clips


def test_what_is_written_is_read_back(tmp_path):
    entries = [
        ClipEntry(
            video="0.mp4", caption="a horse runs, cartoon style", prompt="a horse runs", style="cartoon",
            category="horse", seed=3, model="sd14", lineage={"stage": "motion"},
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
        json.dumps({"video": "0.mp4"}): "missing key 'caption'",
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


@pytest.mark.parametrize(("start", "end"), [(b"", b"\n"), (codecs.BOM_UTF8, b"\r\n"), (b"", b"\r\n\r\n")])
def test_files_of_windows_editors_are_read(tmp_path, start, end):
    for name in ("0.mp4", "1.mp4"):
        (tmp_path / name).write_bytes(b"video")
    lines = [json.dumps({"video": f"{i}.mp4", "caption": f"horse {i}"}).encode() + end for i in range(2)]
    (tmp_path / "captions.jsonl").write_bytes(start + b"".join(lines))
    assert [(clip.video, clip.caption) for clip in read_clips(tmp_path)] == [
        ("0.mp4", "horse 0"),
        ("1.mp4", "horse 1"),
    ]


@given(line=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_line_of_anything_is_refused_by_number(line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    (folder / "captions.jsonl").write_bytes(("{}\n" + line.replace("\n", "")).encode())
    with pytest.raises(ClipFolderError, match="line 1: missing key 'video'"):
        read_clips(folder)


@given(line=st.binary(min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_bytes_of_anything_are_refused_by_number(line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    (folder / "captions.jsonl").write_bytes(b"{}\n" + line.replace(b"\n", b""))
    with pytest.raises(ClipFolderError, match=r"line 1: missing key 'video'|line 2: not UTF-8"):
        read_clips(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_marked_encodings(encoding, tmp_path):
    (tmp_path / "1.mp4").touch()
    line = json.dumps({"video": "1.mp4", "caption": "ein Pferd läuft\u2028weiter"}, ensure_ascii=False)
    (tmp_path / "captions.jsonl").write_text(line + "\n", encoding=encoding)
    assert [clip.caption for clip in read_clips(tmp_path)] == ["ein Pferd läuft\u2028weiter"]
