"""`python -m training.check`: what will be read of a folder of clips, and all that is wrong with it."""

import shutil

import numpy as np
import pytest
from clips import write_clip
from PIL import Image

from huvidpo import video
from training.check import check, main
from training.data import read_clip
from training.recipes import MotionRecipe
from training.scenes import find_cuts, scenes

RECIPE = MotionRecipe(frames=4, height=32, width=32, fps=8, precision="fp32")
SET = ["--set", "frames=4", "--set", "height=32", "--set", "width=32"]


def noise(seed: int, frames: int, level: int) -> np.ndarray:
    """Frames uint8 [frames, 32, 48, 3] around a grey level, each a little different."""
    rng = np.random.default_rng(seed)
    return (level + rng.integers(-12, 13, (frames, 32, 48, 3))).astype(np.uint8)


def write(folder, name, frames, caption="a horse runs", fps=8):
    (folder / f"{name}.mp4").write_bytes(video.encode(frames, fps))
    if caption:
        (folder / f"{name}.txt").write_text(caption)


def test_cuts_are_jumps_that_stand_alone():
    dark, bright = noise(0, 10, 40), noise(1, 7, 200)
    assert find_cuts(np.concatenate([dark, bright, dark])) == [10, 17]
    flash = np.concatenate([dark, bright[:1], dark])
    assert find_cuts(flash) == []
    pan = np.stack([np.full((4, 4, 3), 25 * i, np.uint8) for i in range(10)])
    assert find_cuts(pan) == []
    assert find_cuts(dark[:1]) == []
    assert scenes(27, [10, 17]) == [range(10), range(10, 17), range(17, 27)]
    assert scenes(3, []) == [range(3)]


def test_what_is_shown_is_what_is_trained_on(tmp_path):
    write(tmp_path, "a", noise(0, 24, 100), fps=24)
    (seen,), problems, notes = check(tmp_path, RECIPE)
    np.testing.assert_array_equal(seen.frames, read_clip(tmp_path / "a.mp4", RECIPE))
    assert seen.numbers.tolist() == [7, 10, 13, 16]  # the middle of 24 frames, 8 of them a second
    assert seen.whole.shape == (32, 48, 3)
    assert problems == []
    assert notes == ["1 clips; a category is learnt from 8 to 16"]


def test_every_problem_at_once_with_its_remedy(tmp_path, capsys):
    write(tmp_path, "fine", noise(0, 8, 100))
    shutil.copy(tmp_path / "fine.mp4", tmp_path / "same.mp4")
    (tmp_path / "same.txt").write_text("a horse runs")
    write(tmp_path, "silent", noise(1, 8, 100), caption="")
    write(tmp_path, "short", noise(2, 3, 100))
    write(tmp_path, "long", noise(3, 8, 100), caption="a horse runs " * 40)
    write(tmp_path, "cut", np.concatenate([noise(4, 4, 40), noise(5, 4, 200)]))
    write(tmp_path, "still", np.full((8, 32, 32, 3), 90, np.uint8))
    write_clip(tmp_path / "small.mp4", frames=8, size=(16, 32))
    (tmp_path / "small.txt").write_text("a horse runs")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "broken.txt").write_text("a horse runs")
    (tmp_path / "horse.rm").touch()
    sheet = tmp_path / "sheet" / "clips.png"

    assert main([str(tmp_path), "--model", "tiny", *SET, "--sheet", str(sheet)]) == 1
    said = capsys.readouterr().out
    for line in (
        "problem: silent.mp4: silent.txt is missing",
        "problem: short.mp4: has 3 frames; at least 4 are needed; take a longer one, or train on fewer with "
        "--set frames=3",
        "problem: long.mp4: its caption has",
        "problem: broken.mp4: video: cannot be read",
        "note: left out, as no video's name ends so: horse.rm",
        "note: same.mp4: the same file as fine.mp4: leave one out",
        "note: cut.mp4: the scene changes among the frames that are read (1x): use --split",
        "note: still.mp4: nothing moves in the frames that are read",
        "note: small.mp4: 32 x 16 is enlarged to 32 x 32: take a larger one",
        "4 problems: training refuses this folder",
    ):
        assert line in said
    assert said.count("problem: ") == 4
    with Image.open(sheet) as picture:
        rows = np.asarray(picture)
    assert rows.shape[1] == 2 * 72 + 2 * 6 + 4 * 73 + 6
    assert (rows == (200, 0, 0)).all(-1).sum() > 100  # the crop, the scene change and the remarks


def test_a_listing_names_its_clips_and_what_it_leaves_out(tmp_path, capsys):
    write(tmp_path, "a", noise(0, 8, 100), caption="")
    write(tmp_path, "b", noise(1, 8, 100), caption="")
    (tmp_path / "captions.jsonl").write_text('{"video": "a.mp4", "caption": "a horse runs"}\n')
    assert main([str(tmp_path), *SET, "--sheet", str(tmp_path / "sheet.png")]) == 0
    said = capsys.readouterr().out
    assert "note: left out, as captions.jsonl does not name it: b.mp4" in said
    assert "training takes this folder" in said


@pytest.mark.parametrize(
    ("pieces", "names"), [(1, ["film_01", "film_02"]), (2, ["film_01", "film_02", "film_03"])]
)
def test_a_long_video_is_split_at_its_cuts(tmp_path, capsys, pieces, names):
    film = np.concatenate([noise(0, 9, 40), noise(1, 3, 220), noise(2, 6, 130)])
    write(tmp_path, "film", film, caption="a horse runs")
    out = tmp_path / "scenes"
    assert main([str(tmp_path), *SET, "--split", str(out), "--pieces", str(pieces)]) == 0
    assert f"film.mp4: {len(names)} clips" in capsys.readouterr().out  # the middle scene is too short
    assert sorted(path.stem for path in out.glob("*.mp4")) == names
    levels = [video.decode(out / f"{name}.mp4")[0].mean(axis=(1, 2, 3)) for name in names]
    assert all(len(level) == 4 for level in levels)
    for level, expected in zip(levels, [40] * (len(names) - 1) + [130], strict=True):
        np.testing.assert_allclose(level, expected, atol=4)
    assert (out / "film_01.txt").read_text() == "a horse runs\n"
    assert main([str(out), *SET, "--sheet", str(tmp_path / "sheet.png")]) == 0


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path), "--split", str(tmp_path)]) == 2
    store = tmp_path / "store"
    store.mkdir()
    (store / "latents.npy").touch()
    assert main([str(store)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert [error.split(": ", 1)[0] for error in errors] == ["training.check"] * 3
    assert "is not a folder of clips" in errors[0]
    assert "choose another folder than the videos' own" in errors[1]
    assert "is a latent store" in errors[2]
