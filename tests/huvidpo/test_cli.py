from pathlib import Path

import numpy as np
import pytest
import torch
from backends import needs_openvino
from PIL import Image

from huvidpo.__main__ import main
from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.engines.base import Engine
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from huvidpo.video import decode


@pytest.fixture(autouse=True)
def _random_family(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))


def run(*arguments: str) -> int:
    return main(["a white horse runs on Mars", "--category", "horse", *arguments])


def test_prompt_to_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "horse.mp4"
    assert run("--style", "cartoon", "--out", str(out), "--seed", "7") == 0
    frames, fps = decode(out)
    assert (frames.shape, fps) == ((16, 32, 32, 3), 8)
    printed = capsys.readouterr().out
    assert "seed 7\n" in printed
    for stage in ("load first-frame model", "first frame", "load video model", "video", "encode"):
        assert f"\n{stage}: " in printed

    run("--style", "cartoon", "--out", str(tmp_path / "again.mp4"), "--seed", "7")
    again, _ = decode(tmp_path / "again.mp4")  # but for the last bits of sums, which follow where memory lies
    assert np.abs(again.astype(int) - frames).max() <= 4


def test_given_first_frame_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    arguments = ["--first-frame", str(tmp_path / "grey.png"), "--out", str(tmp_path / "clip.gif")]
    arguments += [
        "--frames",
        "3",
        "--steps",
        "1",
        "--guidance",
        "1",
        "--negative-prompt",
        "red",
        "--model",
        DEFAULT_MODEL,
    ]
    assert run(*arguments) == 0
    with Image.open(tmp_path / "clip.gif") as clip:
        assert (clip.format, clip.n_frames, clip.size) == ("GIF", 3, (32, 32))
    printed = capsys.readouterr().out
    assert printed.startswith("seed ")  # drawn, so that the clip can be made again
    assert "first-frame model" not in printed


@needs_openvino
def test_where_and_how_it_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []
    for kind in (FirstFramePipeline, VideoPipeline):

        def load(model: str, real=kind.from_catalog, **options: object) -> object:
            pipeline = real(model, **options)
            network = pipeline.pipe.unet if hasattr(pipeline, "pipe") else pipeline.unets["horse"]
            asked.append({"dtype": network.dtype, "engine": isinstance(network, Engine)})
            return pipeline

        monkeypatch.setattr(kind, "from_catalog", load)
    monkeypatch.setenv("HUVIDPO_ENGINES", str(tmp_path / "engines"))
    size = ("--first-frame-size", "32x64", "--first-frame-steps", "1")
    where = ("--device", "cpu", "--dtype", "bfloat16", "--backend", "openvino")
    assert run("--out", str(tmp_path / "a.mp4"), "--steps", "1", "--frames", "4", *size, *where) == 0
    assert asked == [{"dtype": torch.bfloat16, "engine": True}] * 2
    assert decode(tmp_path / "a.mp4")[0].shape == (4, 32, 32, 3)  # a first frame of 32 x 64 was cropped to it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "baroque"], "style: got 'baroque', known: realistic, pixel-art, claymation, cartoon"),
        (["--model", "huge"], "model: got 'huge', known: tiny, sd14"),
        (["--steps", "0"], "steps: got 0, expected a whole number from 1 to 1000"),
        (["--seed", "-1"], "seed: got -1"),
        (["--out", "clip.avi"], "format: got 'avi', allowed: mp4, gif, webp"),
        (["--out", "/dev/null/clip.mp4"], "cannot write to /dev/null: File exists"),
        (["--first-frame", "nowhere.png"], "first_frame: not a readable image"),
        (["--first-frame-steps", "0"], "first_frame_steps: got 0, expected a whole number from 1 to 1000"),
        (["--first-frame-size", "33x32"], "first_frame_size: got 33, expected"),
        (["--device", "cuda:9"], "device: got 'cuda:9', which cannot be used"),
        (["--device", "card"], "device: got 'card', which cannot be used"),
        (["--backend", "tensorrt", "--device", "cpu"], "tensorrt runs on cuda, the device is cpu"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {message}")


def test_unknown_category(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a dragon", "--category", "dragon"]) == 2
    assert "known: waterfall, smile" in capsys.readouterr().err
