import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from PIL import Image

from huvidpo.catalog import DEFAULT_MODEL, PROJECT_ROOT
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors, with_weights
from huvidpo.files import hash_tensors
from huvidpo.hardware import mixed_precision
from huvidpo.unet import VideoUNet
from training import curves
from training.inversion import invert_clips
from training.loop import STOPPED
from training.motion import in_native_precision, main
from training.recipes import LAMP_TRAINABLE, MotionRecipe

SMALL = [
    "frames=4",
    "height=32",
    "width=32",
    "batch_size=2",
    "save_every=2",
    "sample_every=0",
    "precision=fp32",
]


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for seed, caption in enumerate(("a horse runs", "a white horse runs on mars")):
        write_clip(folder / f"{seed}.mp4", seed)
        (folder / f"{seed}.txt").write_text(caption)
    return folder


def arguments(clips: Path, out: Path, *more: str, settings: tuple[str, ...] = ()) -> list[str]:
    fields = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    return [
        "--model", DEFAULT_MODEL, "--category", "horse", "--clips", str(clips), "--out", str(out),
        "--run", str(out.parent / "run"), *fields, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("noising", ["forward", "ddim_inversion"])
def test_both_noising_modes_lower_the_loss(make_task, recipe, tmp_path, noising):
    """On one clip, over the same few draws of timesteps and noise."""
    recipe = dataclasses.replace(recipe, noising=noising, batch_size=4, text_drop=0.0)
    unet, task = make_task(recipe)
    task = dataclasses.replace(task, clips=dataclasses.replace(task.clips, train_rows=np.arange(1)))
    if noising == "ddim_inversion":
        args = (unet, task.scheduler, task.clips, task.texts, 4, tmp_path, task.device)
        task = dataclasses.replace(task, inverted=invert_clips(*args))
        assert task.inverted.noise.shape == (3, 4, 8, 4, 8, 8)
        assert np.array_equal(invert_clips(*args).noise, task.inverted.noise)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(25):
        loss, _ = task.loss(unet, 0, torch.Generator().manual_seed(step % 5))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.93 * sum(losses[:5])


def test_command_trains_a_category(tiny_family, clips, tmp_path, capsys):
    out = tmp_path / "horse.safetensors"
    assert main(arguments(clips, out, "--steps", "2", settings=("sample_every=2",))) == 0
    tensors, metadata = load_tensors(out), read_metadata(out)
    base = VideoUNet.from_pretrained(tiny_family / "video" / "unet")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert set(tensors) == {n for n in base.state_dict() if any(part in n for part in LAMP_TRAINABLE)}
    assert (metadata["category"], metadata["model"], metadata["steps"]) == ("horse", DEFAULT_MODEL, "2")
    assert json.loads(metadata["recipe"])["frames"] == 4
    assert {"base", "clips", "commit"} <= metadata.keys()
    assert metadata["attention_mode"] == "first_prev"
    with_weights(base, tensors)
    assert (tmp_path / "run" / "samples" / "step_000002.mp4").stat().st_size > 0
    assert "s/step" in capsys.readouterr().out

    assert main(arguments(clips, out, "--steps", "2")) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(arguments(clips, out, "--steps", "3", "--resume")) == 0
    assert read_metadata(out)["steps"] == "3"


def test_a_category_goes_on_from_what_it_has(tiny_family, clips, tmp_path, capsys):
    first, again = tmp_path / "horse.safetensors", tmp_path / "again.safetensors"
    assert main(arguments(clips, first, "--steps", "2")) == 0
    run = ("--run", str(tmp_path / "second"))
    still = ("lr=1e-12",)
    more = (*run, "--stage1", str(first))
    assert main(arguments(clips, again, "--steps", "2", *more, settings=still)) == 0
    start, found, facts = load_tensors(first), load_tensors(again), read_metadata(again)
    assert set(found) == set(start)
    for name, tensor in start.items():
        torch.testing.assert_close(found[name], tensor, msg=name)
    assert facts["earlier"] == hash_tensors(start)
    assert (facts["earlier_steps"], facts["earlier_commit"]) == ("2", read_metadata(first)["commit"])
    assert facts["base"] == facts["earlier_base"] == read_metadata(first)["base"]

    capsys.readouterr()
    assert main(arguments(clips, again, "--steps", "3", "--resume", *run, settings=still)) == 2
    assert "earlier" in capsys.readouterr().err, "a run that went on from weights is resumed with them"
    assert main(arguments(clips, again, "--steps", "3", "--resume", *more, settings=still)) == 0


def test_weights_that_cannot_be_gone_on_from(tiny_family, clips, tmp_path, capsys):
    stage1, out = tmp_path / "horse.safetensors", tmp_path / "out.safetensors"
    assert main(arguments(clips, stage1, "--steps", "1")) == 0
    tensors, facts = load_tensors(stage1), read_metadata(stage1)
    other = next(iter(tensors))
    for said, written, message in (
        ({"stage": "dpo"}, tensors, "is of stage dpo; give the weights that training.motion wrote"),
        ({"fast_lora": "0" * 64}, tensors, "has a LoRA of fewer steps in it already"),
        ({"base": "0" * 64}, tensors, "was trained on other weights"),
        ({}, {other: torch.zeros(1)}, other),
        ({}, tensors | {"conv_in.bias": torch.zeros(16)}, "conv_in.bias"),
    ):
        save_tensors(stage1, written, facts | said)
        assert main(arguments(clips, out, "--steps", "1", "--stage1", str(stage1))) == 2
        assert message in capsys.readouterr().err
    assert main(arguments(clips, out, "--steps", "1", "--stage1", str(tmp_path / "none.safetensors"))) == 2
    assert "none.safetensors" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("shift", "above"), [(1.0, 0.25), (4.0, 4 / 7), (0.25, 1 / 13)])
def test_shifted_timesteps_see_more_noise_or_less(make_task, recipe, shift, above):
    """Of u, the share that lands in the noisiest quarter: u > .75 / (s - .75 (s - 1))."""
    _, task = make_task(dataclasses.replace(recipe, timestep_shift=shift))
    drawn = task._timesteps(20_000, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0
    assert drawn.max() < 1000
    assert float((drawn >= 750).float().mean()) == pytest.approx(above, abs=0.015)  # four deviations
    assert drawn.unique().numel() > 700


def test_command_pre_trains_a_base_from_a_store(tiny_family, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    np.save(
        store / "latents.npy", np.random.default_rng(0).standard_normal((4, 8, 4, 8, 8)).astype(np.float16)
    )
    (store / "captions.json").write_text(json.dumps(["a horse runs", "rain", "rain falls", "birds fly"]))
    out = tmp_path / "base"
    start = tiny_family / "first_frame_2d"
    VideoUNet.from_pretrained(tiny_family / "video" / "unet").save_pretrained(start)
    more = ("--recipe", "tiny_base", "--steps", "2", "--base", str(start))
    assert (
        main(arguments(store, out, *more, settings=("holdout=1", "warmup_steps=0", "lr=0.05", "ema=none")))
        == 0
    )
    trained = VideoUNet.from_pretrained(out)
    before = VideoUNet.from_pretrained(start).state_dict()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert json.loads((out / "training.json").read_text())["steps"] == "2"


def test_mistakes_exit_with_2_and_one_line(tiny_family, clips, tmp_path, capsys):
    out = tmp_path / "horse.safetensors"
    for wrong, message in {
        ("--set", "lr=fast"): "'fast'",
        ("--set", "precision=fp16"): "needs a GPU",
        ("--category", "dragon"): "known: waterfall",
        ("--clips", str(tmp_path / "none")): "is not a folder",
    }.items():
        assert main(arguments(clips, out, *wrong)) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_sigterm_saves_and_is_no_success(tiny_family, clips, tmp_path, capsys):
    """A run far too long to finish, stopped by the signal once it has saved."""
    out, checkpoint = tmp_path / "horse.safetensors", tmp_path / "run" / "checkpoint.safetensors"

    def stop() -> None:
        while not checkpoint.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert main(arguments(clips, out, "--steps", "100000")) == STOPPED == 3
    assert "stopped and saved at step" in capsys.readouterr().out
    assert int(read_metadata(checkpoint)["step"]) >= 2
    assert not out.exists()


def test_what_cannot_be_written_is_said_before_anything_is_read(tiny_family, tmp_path, capsys):
    """`tmp_path / "clips"` is not there: a run would fail at it, too, but later."""
    (tmp_path / "file").touch()
    for out, message in {"file/horse.safetensors": "it is a file", "": "it is a folder; name a file"}.items():
        given = arguments(tmp_path / "clips", tmp_path / "x", "--run", str(tmp_path / "run"))
        given[given.index("--out") + 1] = str(tmp_path / out)
        assert main(given) == 2
        error = capsys.readouterr().err
        assert error.startswith("training.motion: ")
        assert message in error
    given = arguments(tmp_path / "clips", tmp_path / "x.safetensors", "--run", str(tmp_path / "file"))
    assert main(given) == 2
    assert f"cannot write to {tmp_path}/file: File exists" in capsys.readouterr().err


def test_a_disk_that_fills_at_the_end_loses_nothing(tiny_family, clips, tmp_path, capsys, small_files):
    out = tmp_path / "horse.safetensors"
    given = arguments(clips, out, "--steps", "2")
    assert main(given) == 0
    wanted = out.read_bytes()
    out.unlink()
    with small_files(5000):  # the checkpoint is there; the weights are larger
        assert main([*given, "--resume"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"training.motion: {out}: File too large; nothing is lost, {tmp_path}/run holds the run: the same "
        "command with --resume writes it at once"
    )
    assert not out.exists()
    assert main([*given, "--resume"]) == 0
    assert out.read_bytes() == wanted


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="with GPUs accelerate starts as many as it is asked for"
)
def test_several_processes_are_several_or_none(tiny_family, clips, tmp_path):
    """accelerate launch starts one process on a CPU, whatever it is asked for (torchrun's: test_dpo)."""
    out = tmp_path / "horse.safetensors"
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "training.motion"]
    done = subprocess.run(
        [sys.executable, *launch, *arguments(clips, out, "--steps", "1")],
        cwd=PROJECT_ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "training.motion: accelerate launch was asked for several processes and started one" in done.stderr
    assert not out.exists()


def test_a_run_shows_its_curves_its_recipe_and_real_beside_sample(tiny_family, clips, tmp_path):
    out, run = tmp_path / "horse.safetensors", tmp_path / "run"
    seen = ("sample_every=2", "log_every=1", "text_drop=0.25")
    assert main(arguments(clips, out, "--steps", "2", "--threads", "1", settings=seen)) == 0
    assert torch.get_num_threads() == 1
    points = curves.read(run / "tensorboard")
    assert [step for step, _ in points["train/loss"]] == [1, 2]
    assert [step for step, _ in points["eval/loss"]] == [0, 2]
    with Image.open(run / curves.PLOT) as picture:
        assert picture.format == "PNG"
        assert picture.width == 4 * 4 * 80  # four panels of four inches in a row
    with Image.open(run / "samples" / "step_000002.png") as picture:
        both = np.asarray(picture)
    assert both.shape == (2 * 96, 8 * 96, 3)
    first, frame = both[:96, :96].astype(int), both[96:, :96].astype(int)
    assert np.abs(first - frame).mean() < 2  # a sample starts from the real first frame
    assert np.abs(both[:96].astype(int) - both[96:]).mean() > 2  # and goes on by itself

    settings = run / "recipe.toml"
    again = [
        "--settings",
        str(settings),
        "--run",
        str(tmp_path / "again"),
        "--out",
        str(tmp_path / "again.safetensors"),
    ]
    assert main(["--model", DEFAULT_MODEL, "--category", "horse", "--clips", str(clips), *again]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()
    settings.write_text("steps = 1\nfrogs = 3\n")
    assert main(["--model", DEFAULT_MODEL, "--category", "horse", "--clips", str(clips), *again]) == 2


@pytest.mark.parametrize(("has", "precision"), [({"avx512_bf16": True}, "bf16"), ({}, "fp32")])
def test_a_cpu_without_bfloat16_trains_in_float32(has, precision, monkeypatch, capsys):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = MotionRecipe(precision="bf16")
    assert in_native_precision(recipe) == dataclasses.replace(recipe, precision=precision)
    assert ("no bfloat16" in capsys.readouterr().out) == (precision == "fp32")
    with mixed_precision():
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
