import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip
from diffusers import DDIMScheduler, MotionAdapter, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as ImageUNet
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.errors import CheckpointError, InvalidRequest
from judging.evaluate import FROZEN, METRICS, main, measure, slug, summarise
from judging.judge import load_judge
from judging.methods import (
    Method,
    animate,
    attend_to_first,
    draw_first_frames,
    held_out_requests,
    load_pipeline,
    parse_method,
    read_method,
    render,
)
from preferences.clips import read_clips
from service.study import read_study


@pytest.fixture
def quick_family(tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The random family with clips of 4 frames."""
    folder = tmp_path / "catalog"
    folder.mkdir()
    text = (tiny_family / "catalog" / "random.toml").read_text()
    (folder / "quick.toml").write_text(text.replace("steps = 3\n", "steps = 2\nframes = 4\n", 1))
    monkeypatch.setenv("HUVIDPO_CATALOG", str(folder))
    return tiny_family


def test_methods_are_written_as_name_and_source():
    assert parse_method("ours=catalog") == Method("ours", "catalog")
    assert parse_method("ours without DPO=weights:a:b/c") == Method("ours without DPO", "weights", "a:b/c")
    assert parse_method("AnimateDiff=animatediff:sd,adapter").source == "sd,adapter"
    wrong = ("catalog", "=catalog", "ours=", "ours=catalog:x", "a=weights", "a=weights:", "a=lvdm:x")
    for text in (*wrong, "a=animatediff:sd"):
        with pytest.raises(InvalidRequest, match="expected NAME=catalog"):
            parse_method(text)
    assert slug("Ours, without DPO!") == "ours-without-dpo"


def test_held_out_requests_leave_out_what_was_seen(tiny_family):
    catalog = load_catalog()
    model, horse = catalog.model(DEFAULT_MODEL), catalog.category("horse")
    requests = held_out_requests(model, horse, ["cartoon", "realistic"], 6, seed=5)
    assert [r.seed for r in requests] == [5, 6, 7, 8, 9, 10]
    assert {r.style for r in requests} == {"cartoon", "realistic"}
    assert len({r.prompt for r in requests}) == 6
    seen = [r.prompt for r in requests[:3]]
    again = held_out_requests(model, horse, ["cartoon"], 6, seed=5, seen=seen)
    assert len(again) == 6
    assert not set(seen) & {r.prompt for r in again}
    with pytest.raises(InvalidRequest, match="seen in training"):
        held_out_requests(model, horse, ["cartoon"], 2, prompts=["a horse"], seen=["a horse"])


def test_first_frame_attention_shares_the_weights_and_changes_the_clip(quick_family):
    catalog = load_catalog()
    model, horse = catalog.model(DEFAULT_MODEL), catalog.category("horse")
    plain = load_pipeline(Method("", "catalog"), model, [horse])
    unet = plain.unets["horse"]
    lamp = attend_to_first(unet)
    assert lamp.config.attention_mode == "first"
    for name, tensor in unet.state_dict().items():
        assert lamp.state_dict()[name].data_ptr() == tensor.data_ptr()
    requests = held_out_requests(model, horse, ["realistic"], 1)
    images = draw_first_frames(model, requests)
    first = load_pipeline(Method("", "first", str(model.categories)), model, [horse])
    a, b = (next(iter(render(pipeline, requests, images))) for pipeline in (plain, first))
    assert a.shape == b.shape == (4, 32, 32, 3)
    assert np.array_equal(a[0], b[0])
    assert not np.array_equal(a, b)
    with pytest.raises(CheckpointError, match=r"there is no .*horse\.safetensors"):
        load_pipeline(Method("LAMP", "first", str(model.categories / "none")), model, [horse])


def test_animatediff_from_local_folders(family, tmp_path):
    parts = family / "first_frame"
    unet = ImageUNet(
        sample_size=8, in_channels=8, out_channels=8, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2, cross_attention_dim=32,
    )  # fmt: skip
    pipe = StableDiffusionPipeline.from_pretrained(
        parts, unet=unet, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None,
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "sd")
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=4, motion_max_seq_length=8,
    )  # fmt: skip
    adapter.save_pretrained(tmp_path / "adapter")
    make = animate(f"{tmp_path / 'sd'},{tmp_path / 'adapter'}")
    options = dataclasses.replace(
        load_catalog().model(DEFAULT_MODEL).defaults, frames=4, height=32, width=32, steps=2
    )
    clip = make(ClipRequest("a horse", "horse", 1, options=options), "a horse, cartoon style")
    assert (clip.shape, clip.dtype) == ((4, 32, 32, 3), np.uint8)
    assert np.array_equal(
        clip, make(ClipRequest("a horse", "horse", 1, options=options), "a horse, cartoon style")
    )
    with pytest.raises(CheckpointError, match="AnimateDiff cannot be loaded"):
        animate(f"{tmp_path},{tmp_path / 'adapter'}")


def test_command_writes_the_table_with_the_frozen_row(quick_family, tmp_path, capsys):
    elsewhere = tmp_path / "lvdm"
    elsewhere.mkdir()
    lines = []
    for seed, category in enumerate(("horse", "rain", "horse")):
        write_clip(elsewhere / f"{seed}.mp4", seed)
        lines.append(json.dumps({"video": f"{seed}.mp4", "caption": "it brightens", "category": category}))
    (elsewhere / "captions.jsonl").write_text("\n".join(lines))
    out, saved = tmp_path / "results" / "table.json", tmp_path / "saved"
    weights = quick_family / "categories"
    arguments = [
        "--categories", "horse", "rain", "--prompts", "2", "--method", "ours=catalog", "--method",
        f"LAMP=first:{weights}", "--method", f"LVDM=clips:{elsewhere}", "--out", str(out),
        "--save", str(saved),
    ]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads(out.read_text())
    assert list(found["summary"]) == [FROZEN, "ours", "LAMP", "LVDM"]
    assert list(found["summary"]["ours"]) == ["horse", "rain", "all"]
    still = found["summary"][FROZEN]["all"]
    assert still["ssim"]["mean"] == pytest.approx(100)
    assert (still["mse"]["mean"], still["motion"]["mean"]) == (0, 0)
    assert found["summary"]["ours"]["all"]["motion"]["mean"] > 0
    assert [len(found["clips"]["LVDM"][name]) for name in ("horse", "rain")] == [2, 1]
    assert all(set(row) == set(METRICS) for row in found["clips"]["ours"]["horse"])
    assert len({row["mse"] for row in found["clips"]["ours"]["horse"]}) == 2  # a row per clip
    text = out.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert f"| {FROZEN} | 4 |" in text
    assert "| LVDM | 3 |" in text
    entries = read_clips(saved / "lamp")
    assert [entry.category for entry in entries] == ["horse", "horse", "rain", "rain"]
    options = load_catalog().model(DEFAULT_MODEL).defaults
    assert [c for _, c in read_method(saved / "lamp", options, "rain")] == [e.caption for e in entries[2:]]


def test_first_frames_are_shared(quick_family, tmp_path):
    """Other weights, the same frame 0."""
    weights = tmp_path / "weights"
    weights.mkdir()
    tensors = load_file(quick_family / "categories" / "horse.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, weights / "horse.safetensors")
    arguments = ["--categories", "horse", "--prompts", "1", "--out", str(tmp_path / "t.json")]
    arguments += ["--method", "a=catalog", "--method", f"b=weights:{weights}", "--save", str(tmp_path / "s")]
    assert main(arguments) == 0
    shown = read_study(tmp_path / "s")  # what is kept is a user study as it is, the frozen row included
    assert {Path(clip.name).parent.name for clip in shown} == {"a", "b", "frozen-first-frame"}
    options = load_catalog().model(DEFAULT_MODEL).defaults
    (a, _), (b, _) = (next(iter(read_method(tmp_path / "s" / name, options, "horse"))) for name in "ab")
    assert np.abs(a[0].astype(int) - b[0]).mean() < 1  # apart from the video file's losses
    assert np.abs(a[3].astype(int) - b[3]).mean() > 1


def test_summary_of_figures_by_hand(family):
    judge = load_judge(family / "clip")
    clip = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    row = measure(clip, "a horse", judge)
    better = row | {"ssim": row["ssim"] + 10}
    summary = summarise({FROZEN: {"horse": [row]}, "ours": {"horse": [row], "rain": [better, better]}})
    assert summary["ours"]["all"]["ssim"].mean == pytest.approx(row["ssim"] + 20 / 3)
    assert summary["ours"]["rain"]["ssim"].low == pytest.approx(row["ssim"] + 10)


def test_mistakes_exit_with_2_and_one_line(quick_family, tmp_path, capsys):
    for wrong, message in {
        ("--method", "ours"): "expected NAME=catalog",
        ("--method", "a=catalog", "--method", "A=catalog"): "names must differ",
        ("--categories", "dragon"): "known: waterfall",
        ("--prompts", "0"): "expected 1 or more",
        ("--clip", str(tmp_path)): "there is no CLIP",
        ("--method", f"x=clips:{tmp_path / 'none'}"): "captions.jsonl",
    }.items():
        assert main([*wrong, "--out", str(tmp_path / "t.json")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
