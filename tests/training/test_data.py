import json

import numpy as np
import pytest
import torch
from clips import write_clip
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from huvidpo import video
from preferences.clips import ClipFolderError
from training.data import (
    ClipsError,
    embed_texts,
    load_clips,
    pick_frames,
    read_captions,
    read_clip,
    rows_for,
    split_rows,
)
from training.recipes import MotionRecipe

RECIPE = MotionRecipe(frames=4, height=32, width=32, precision="fp32")


@pytest.fixture(scope="module")
def vae(family):
    return AutoencoderKL.from_pretrained(family / "first_frame" / "vae").eval()


# Captions


def test_captions_of_a_listing(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "captions.jsonl").write_text('{"video": "a.mp4", "caption": " a horse "}\n\n')
    assert read_captions(tmp_path) == [(tmp_path / "a.mp4", "a horse")]


def test_captions_beside_the_videos(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.GIF").touch()
        (tmp_path / f"{name}.txt").write_text(f"horse {name}\n")
    (tmp_path / "notes.md").touch()
    assert read_captions(tmp_path) == [(tmp_path / "a.GIF", "horse a"), (tmp_path / "b.GIF", "horse b")]


def test_every_malformed_line_is_named(tmp_path):
    (tmp_path / "a.mp4").touch()
    lines = [
        '{"video": "a.mp4", "caption": "fine"}',
        "{video: a.mp4}",
        '["a.mp4", "a horse"]',
        '{"video": "a.mp4"}',
        '{"video": "a.mp4", "caption": "  "}',
        '{"video": 3, "caption": "a horse"}',
        '{"video": "gone.mp4", "caption": "a horse"}',
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(ClipFolderError) as caught:
        read_captions(tmp_path)
    reasons = {2: "not JSON", 3: "not an object", 4: "missing key 'caption'", 7: "gone.mp4"}
    for number, reason in reasons.items():
        assert f"captions.jsonl line {number}: " in str(caught.value)
        assert reason in str(caught.value)
    assert "line 5" in str(caught.value)
    assert "line 6" in str(caught.value)
    assert "line 1:" not in str(caught.value)


def test_videos_without_captions_are_named(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4", "b.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c.txt").write_text("a horse")
    with pytest.raises(ClipsError, match=r"a\.mp4: a\.txt is missing\n.*b\.mp4: b\.txt is empty"):
        read_captions(tmp_path)


def test_an_empty_folder_says_what_is_wanted(tmp_path, vae):
    with pytest.raises(ClipsError, match=r"want captions\.jsonl, or videos"):
        load_clips(tmp_path, vae, RECIPE, tmp_path)
    with pytest.raises(ClipsError, match="is not a folder"):
        load_clips(tmp_path / "none", vae, RECIPE, tmp_path)


# Frames


@pytest.mark.parametrize(
    ("count", "clip_fps", "expected"),
    [
        (4, 8, [0, 1, 2, 3]),  # exact
        (8, 8, [2, 3, 4, 5]),  # longer: its middle
        (13, 24, [2, 5, 8, 11]),  # three times as fast: every third
        (6, 24, [0, 2, 3, 5]),  # fast but short: spread over the whole
        (8, 4, [2, 3, 4, 5]),  # slow: no frame twice
    ],
)
def test_pick_frames(count, clip_fps, expected):
    assert pick_frames(count, clip_fps, 4, 8).tolist() == expected


def test_too_few_frames_are_refused(tmp_path, vae):
    write_clip(tmp_path / "short.mp4", frames=3)
    (tmp_path / "short.txt").write_text("a horse")
    with pytest.raises(ClipsError, match=r"short\.mp4: has 3 frames; at least 4 are needed"):
        load_clips(tmp_path, vae, RECIPE, tmp_path / "cache")


def test_a_file_that_is_no_video_is_named(tmp_path, vae):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "broken.txt").write_text("a horse")
    with pytest.raises(ClipsError, match=r"broken\.mp4"):
        load_clips(tmp_path, vae, RECIPE, tmp_path / "cache")


CAPTION = "ein Pferd l\u00e4uft"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_captions_are_read_as_their_mark_says(tmp_path, encoding):
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text(f"{CAPTION}\n", encoding=encoding)
    assert read_captions(tmp_path) == [(tmp_path / "a.mp4", CAPTION)]


def test_a_caption_in_another_encoding_is_named_with_its_remedy(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4")
        (tmp_path / f"{name}.txt").write_text(CAPTION, encoding="cp1252")
    with pytest.raises(
        ClipsError, match=r"a\.txt line 1: not UTF-8, by its byte 11: .*iconv (.|\n)*b\.txt line 1: not UTF-8"
    ):
        read_captions(tmp_path)


def test_the_files_that_macos_leaves_are_no_clips(tmp_path):
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a horse")
    for name in ("._a.mp4", "._a.txt", ".hidden.mp4", ".DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\16\7")
    assert read_captions(tmp_path) == [(tmp_path / "a.mp4", "a horse")]


def test_what_is_no_video_by_its_name_is_said_to_be_left_out(tmp_path, caplog):
    for name in ("a.mts", "b.mp4"):
        write_clip(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a horse")
    (tmp_path / "c.braw").write_bytes(b"")
    with caplog.at_level("WARNING", "training"):
        assert [path.name for path, _ in read_captions(tmp_path)] == ["a.mts", "b.mp4"]
    assert "left out, as no video's name ends so: c.braw" in caplog.text


def test_our_own_webp_is_a_clip(tmp_path):
    write_clip(tmp_path / "a.webp", frames=8, format="webp")
    assert read_clip(tmp_path / "a.webp", RECIPE).shape == (4, 32, 32, 3)


# Latents


def test_clips_are_encoded_once_and_mirrored(tmp_path, vae, monkeypatch):
    for seed, format in enumerate(("mp4", "gif")):
        write_clip(tmp_path / f"{seed}.{format}", seed, format=format)
        (tmp_path / f"{seed}.txt").write_text(f"horse {seed}")
    clips = load_clips(tmp_path, vae, RECIPE, tmp_path / "cache")
    assert clips.latents.shape == (4, 8, 4, 8, 8)
    assert clips.latents.dtype == np.float16
    assert clips.captions == ["horse 0", "horse 1"] * 2
    assert clips.train_rows.tolist() == [0, 1, 2, 3]
    assert clips.eval_rows.tolist() == [0, 1]
    assert not np.array_equal(clips.latents[0], clips.latents[2])

    monkeypatch.setattr(video, "decode", lambda _: pytest.fail("decoded again"))
    again = load_clips(tmp_path, vae, RECIPE, tmp_path / "cache")
    assert np.array_equal(again.latents, clips.latents)
    assert again.fingerprint == clips.fingerprint


def test_the_mirrored_row_is_the_mirrored_picture(tmp_path, vae):
    """A symmetric clip has two equal rows."""
    picture = np.zeros((4, 32, 32, 3), np.uint8)
    picture[:, 8:24, 8:24] = np.array([100, 150, 200, 250])[:, None, None, None]
    (tmp_path / "a.gif").write_bytes(video.encode(picture, 8, "gif"))
    (tmp_path / "a.txt").write_text("a square")
    plain, mirrored = load_clips(tmp_path, vae, RECIPE, tmp_path / "cache").latents
    np.testing.assert_allclose(plain, mirrored, atol=1e-3)


def test_a_changed_clip_vae_or_caption_changes_the_fingerprint(tmp_path, vae):
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a horse")
    before = load_clips(tmp_path, vae, RECIPE, tmp_path / "cache").fingerprint
    (tmp_path / "a.txt").write_text("a white horse")
    renamed = load_clips(tmp_path, vae, RECIPE, tmp_path / "cache").fingerprint
    write_clip(tmp_path / "a.mp4", seed=1)
    assert len({before, renamed, load_clips(tmp_path, vae, RECIPE, tmp_path / "cache").fingerprint}) == 3


# The latent store


def write_store(folder, shape=(5, 8, 4, 8, 8), dtype=np.float16, captions=None):
    folder.mkdir(exist_ok=True)
    np.save(folder / "latents.npy", np.ones(shape, dtype))
    (folder / "captions.json").write_text(json.dumps(captions or [f"clip {i}" for i in range(5)]))
    return folder


STORE = MotionRecipe(frames=4, height=32, width=32, flip=False, holdout=2)


def test_store_is_a_memory_map_with_clips_held_out(tmp_path, vae):
    clips = load_clips(write_store(tmp_path / "store"), vae, STORE, tmp_path)
    assert isinstance(clips.latents, np.memmap)
    assert clips.train_rows.tolist() == [0, 1, 2]
    assert clips.eval_rows.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (5, 8, 3, 8, 8)}, r"want float16 \[N, C, 4, h, w\]"),
        ({"dtype": np.float32}, "float32"),
        ({"captions": ["one"]}, "1 captions for 5 clips"),
        ({"captions": ["a", "b", "c", "d", ""]}, "not empty"),
    ],
)
def test_malformed_stores_are_refused(tmp_path, vae, changes, message):
    with pytest.raises(ClipsError, match=message):
        load_clips(write_store(tmp_path / "store", **changes), vae, STORE, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latents.npy", b"nothing"),
        ("latents.npy", b""),
        ("captions.json", b"["),
        ("captions.json", b"[\xe4]"),
    ],
)
def test_damaged_stores_are_refused(tmp_path, vae, name, content):
    (write_store(tmp_path / "store") / name).write_bytes(content)
    with pytest.raises(ClipsError, match="no latent store"):
        load_clips(tmp_path / "store", vae, STORE, tmp_path)


def test_a_store_cannot_be_mirrored(tmp_path, vae):
    with pytest.raises(ClipsError, match="flip=false"):
        load_clips(write_store(tmp_path / "store"), vae, RECIPE, tmp_path)


# Order


def test_held_out_clips_leave_both_copies():
    train, held = split_rows(clips=4, holdout=1, copies=2)
    assert train.tolist() == [0, 1, 2, 4, 5, 6]
    assert held.tolist() == [3]
    with pytest.raises(ClipsError, match="too few"):
        split_rows(clips=2, holdout=2, copies=1)


def test_every_row_comes_once_per_pass_in_a_new_order():
    rows = np.array([10, 11, 12, 13, 14])
    drawn = np.concatenate([rows_for(rows, draw, 2, seed=0) for draw in range(5)])
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == rows.tolist()
    assert drawn[:5].tolist() != drawn[5:].tolist()
    assert rows_for(rows, 3, 2, seed=0).tolist() == drawn[6:8].tolist()
    assert rows_for(rows[:1], 0, 3, seed=0).tolist() == [10, 10, 10]


# Text and fingerprints


@torch.no_grad()
def test_texts_are_embedded_as_the_encoder_does(family):
    parts = family / "first_frame"
    tokenizer = CLIPTokenizer.from_pretrained(parts / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(parts / "text_encoder")
    table = embed_texts(["a horse", "rain", "a horse"], tokenizer, encoder)
    assert set(table) == {"", "a horse", "rain"}
    tokens = tokenizer("rain", padding="max_length", max_length=48, return_tensors="pt")
    expected = encoder(tokens.input_ids).last_hidden_state[0]
    torch.testing.assert_close(table["rain"], expected, atol=1e-5, rtol=1e-5)


def test_a_caption_beyond_the_context_is_refused(family):
    """Two that differ after it had one embedding."""
    parts = family / "first_frame"
    tokenizer = CLIPTokenizer.from_pretrained(parts / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(parts / "text_encoder")
    fits = " ".join(["horse"] * 46)  # 48 with the marks of start and end
    assert fits in embed_texts([fits], tokenizer, encoder)
    with pytest.raises(ClipsError, match=r"longer than the 48 tokens that are read; shorten:\n.*49 tokens"):
        embed_texts(["a horse", f"{fits} runs"], tokenizer, encoder)
