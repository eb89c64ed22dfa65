import json

import numpy as np
import pytest
from clips import write_clip
from PIL import Image

from huvidpo import video
from huvidpo.catalog import DEFAULT_MODEL, Category, load_catalog
from huvidpo.files import hash_file
from judging.candidates import default_prompts, main, plan, read_pictures
from preferences.clips import read_clips
from preferences.thumbnails import contact_sheet, strip
from training.data import read_captions


def test_prompts_styles_and_seeds_vary_together():
    plans = plan(["a", "b"], ["realistic", "cartoon", "claymation"], 8, 2, 100)
    looks = [(p.prompt, p.style) for p in plans]
    assert looks[::2] == looks[1::2], "two seeds of each"
    assert looks[::2] == [("a", "realistic"), ("b", "cartoon"), ("a", "cartoon"), ("b", "claymation")]
    assert [p.seed for p in plans] == list(range(100, 108))


def test_default_prompts_differ_and_depend_on_the_seed_alone():
    horse, candle = Category("horse", "a horse runs", ""), Category("candle", "a candle flickers", "")
    catalog = load_catalog()
    default, other = catalog.model(DEFAULT_MODEL), catalog.model("sd14")
    for model, category, word in (
        (default, horse, "horse"),
        (default, candle, "candle"),
        (other, horse, "horse"),
    ):
        prompts = default_prompts(model, category, 6, seed=1)
        assert len(set(prompts)) == 6
        assert all(word in prompt and "style" not in prompt for prompt in prompts)
        assert prompts == default_prompts(model, category, 6, seed=1)
        assert prompts != default_prompts(model, category, 6, seed=2)
    assert len(default_prompts(default, horse, 1, 0)) == 1


def test_command_makes_a_folder_to_rate(tiny_family, tmp_path, capsys):
    out = tmp_path / "horse"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a horse runs\n\nwhite horse on mars\n")
    command = [
        "--category",
        "horse",
        "--count",
        "5",
        "--out",
        str(out),
        "--prompts",
        str(prompts),
        "--seed",
        "7",
    ]
    assert main(command) == 0
    assert f"python -m service.rating --clips {out}" in capsys.readouterr().out
    entries = read_clips(out)
    assert [entry.prompt for entry in entries] == ["a horse runs"] * 2 + ["white horse on mars"] * 2 + [
        "a horse runs"
    ]
    assert [entry.seed for entry in entries] == [7, 8, 9, 10, 11]
    weights = tiny_family / "categories" / "horse.safetensors"
    assert entries[0].lineage == {"weights": "horse.safetensors", "sha256": hash_file(weights)}
    assert entries[4].caption == "a horse runs, pixel art style"
    assert (entries[4].category, entries[4].model) == ("horse", DEFAULT_MODEL)
    assert read_captions(out)[4] == (out / "0004.mp4", entries[4].caption)  # stage 1 reads the folder too
    frames, fps = video.decode(out / "0000.mp4")
    assert frames.shape == (16, 32, 32, 3)
    assert fps == 8
    assert Image.open(out / "contact_sheet.png").width > 4 * 64

    assert main(command) == 2
    assert "already holds clips" in capsys.readouterr().err


def test_weights_may_come_from_any_file(tiny_family, tmp_path):
    """Those of rain, for clips of horses."""
    weights = tiny_family / "categories" / "rain.safetensors"
    clips = {}
    for name, more in {"own": (), "other": ("--weights", str(weights))}.items():
        command = ["--category", "horse", "--count", "1", "--out", str(tmp_path / name), "--seed", "3", *more]
        assert main(command) == 0
        clips[name] = video.decode(tmp_path / name / "0000.mp4")[0]
    (entry,) = read_clips(tmp_path / "other")
    assert entry.lineage["sha256"] == hash_file(weights)
    assert not np.array_equal(clips["own"], clips["other"])
    assert json.loads((tmp_path / "own" / "captions.jsonl").read_text())["seed"] == 3


def test_clips_may_start_from_given_pictures(tiny_family, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_clip(folder / "a.mp4", frames=3, size=(32, 32))
    Image.new("RGB", (64, 64), (250, 0, 0)).save(folder / "b.png")
    (folder / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    command = ["--category", "horse", "--count", "3", "--out", str(out), "--first-frames", str(folder)]
    assert main(command) == 0
    assert [entry.lineage["first_frame"] for entry in read_clips(out)] == ["a.mp4", "b.png", "a.mp4"]
    pictures = read_pictures(folder)
    assert list(pictures) == ["a.mp4", "b.png"]
    assert pictures["b.png"][0, 0].tolist() == [250, 0, 0]


def test_filmed_clips_stand_beside_those_made_from_their_first_frames(tiny_family, tmp_path):
    filmed, out = tmp_path / "filmed", tmp_path / "horse"
    filmed.mkdir()
    for i, caption in enumerate(["a horse runs", "a white horse", "not asked for"]):
        write_clip(filmed / f"{i}.mp4", seed=i, frames=20)
        (filmed / f"{i}.txt").write_text(caption)
    command = ["--category", "horse", "--beside", str(filmed), "--count", "2", "--out", str(out)]
    assert main(command) == 0
    entries = read_clips(out)
    assert [e.prompt for e in entries] == ["a horse runs"] * 2 + ["a white horse"] * 2
    made, real = entries[::2], entries[1::2]
    assert [e.seed for e in made] == [0, 1]
    assert [e.seed for e in real] == [None, None]
    assert [e.lineage for e in real] == [{"filmed": "0.mp4"}, {"filmed": "1.mp4"}]
    assert [e.caption for e in made] == [e.caption for e in real]
    for one, other in zip(made, real, strict=True):
        clips = [video.decode(out / e.video)[0].astype(float) for e in (one, other)]
        assert clips[0].shape == clips[1].shape, (
            "nothing but what it shows tells a made clip from a filmed one"
        )


def test_structural_clips_are_made_of_the_filmed_ones(tiny_family, tmp_path):
    filmed = tmp_path / "filmed"
    filmed.mkdir()
    for i in range(2):
        write_clip(filmed / f"{i}.mp4", seed=i, frames=20)
        (filmed / f"{i}.txt").write_text("a horse runs")
    clips = {}
    for name, share, count in (("near", "0.05", "2"), ("plain", "1", "1")):
        command = ["--category", "horse", "--beside", str(filmed), "--out", str(tmp_path / name)]
        assert main([*command, "--structural", share, "--count", count]) == 0
        clips[name] = [video.decode(tmp_path / name / e.video)[0] for e in read_clips(tmp_path / name)]
    entries = read_clips(tmp_path / "near")
    names = ["0000", "0000_filmed", "0001", "0002", "0002_filmed", "0003"]
    assert [e.video for e in entries] == [f"{name}.mp4" for name in names]
    assert [e.seed for e in entries] == [0, None, 1, 2, None, 3]
    assert [e.lineage.get("first_frame") for e in entries] == ["0.mp4", None, "0.mp4", "1.mp4", None, "1.mp4"]
    assert [e.lineage.get("structural") for e in entries] == ["0.05", None, "0.05", "0.05", None, "0.05"]
    assert "structural" not in read_clips(tmp_path / "plain")[0].lineage, "of 1 it is the plain candidate"
    assert not np.array_equal(clips["near"][0], clips["near"][2]), "two seeds"
    distances = [np.abs(clips[name][0].astype(float) - clips[name][2]).mean() for name in ("near", "plain")]
    assert distances[0] < distances[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--category", "dragon"), "known: waterfall"),
        (("--category", "guitar"), "no weights at"),
        (("--weights", "none.safetensors"), "no weights at none.safetensors"),
        (("--styles", "baroque"), "known: realistic"),
        (("--count", "0"), "expected 1 or more"),
        (("--first-frames", "/none"), "holds no picture"),
        (("--prompts", "/none.txt"), "cannot be read"),
        (("--prompts", "/dev/null"), "holds none"),
        (("--structural", "0"), "structural: got 0.0, expected a number above 0 and of at most 1"),
        (("--structural", "1.5"), "structural: got 1.5"),
        (("--structural", "nan"), "structural: got nan"),
        (("--beside", ".", "--prompts", "p.txt"), "prompts: the clips of --beside bring their own"),
        (("--beside", ".", "--first-frames", "."), "first_frames: the clips of --beside bring their own"),
        (("--structural", "0.5"), "name the filmed clips to start from with --beside"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(tiny_family, tmp_path, capsys, wrong, message):
    assert main(["--category", "horse", "--out", str(tmp_path / "out"), *wrong]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_strips_and_sheets():
    clip = np.zeros((7, 32, 48, 3), np.uint8)
    clip[0], clip[-1] = 100, 200
    picture = strip(clip, count=3, height=64)
    assert picture.size == (3 * 96, 64)
    assert picture.getpixel((48, 32)) == (100, 100, 100)
    assert picture.getpixel((2 * 96 + 48, 32)) == (200, 200, 200)
    sheet = contact_sheet([picture] * 3, ["short", "much longer than the strip " * 20, "ö"])
    assert sheet.width >= 2 * 288
    assert sheet.getpixel((48, 32)) == (100, 100, 100)
