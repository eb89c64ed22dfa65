import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from rated import write_rated

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.checkpoint import load_tensors, read_metadata
from huvidpo.lora import merge
from training.adapter import adapter_off, add_adapter
from training.dpo import load_first_frame, main, picture_network
from training.recipes import DPORecipe

SMALL = ["height=32", "width=32", "batch_size=2", "save_every=2", "sample_every=2", "sample_steps=2"]
SMALL += ["precision=fp32", "max_winner_drift=none"]


@pytest.fixture(scope="module")
def rated_pictures(tmp_path_factory) -> Path:
    return write_rated(tmp_path_factory.mktemp("rated") / "pictures", pictures=True)


def arguments(clips: Path, out: Path, *more: str) -> list[str]:
    fields = [part for setting in SMALL for part in ("--set", setting)]
    return [
        "--model", DEFAULT_MODEL, "--recipe", "tiny_dpo_image", "--clips", str(clips), "--out", str(out),
        "--run", str(out.parent / f"run_{out.stem}"), *fields, *more,
    ]  # fmt: skip


def test_reference_is_the_frozen_network_and_conditions_are_the_pipelines(tiny_family):
    recipe = DPORecipe(frames=1, height=32, width=32, precision="fp32")
    model = load_catalog().model(DEFAULT_MODEL)
    pipeline = load_first_frame(model, torch.device("cpu"))
    network = picture_network(model, pipeline, recipe, ["a horse runs", "rain"])
    seen = {}

    def note(module, args, kwargs):
        seen.update(kwargs["added_cond_kwargs"], text=kwargs["encoder_hidden_states"])

    hook = pipeline.pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
    before = network.render()
    hook.remove()
    assert len(before) == 2
    for row, caption in enumerate(["", "", "a horse runs", "rain"]):
        if caption:  # guidance: the empty text's rows come first
            hidden, pooled = network.texts[caption]
            torch.testing.assert_close(seen["text"][row], hidden)
            torch.testing.assert_close(seen["text_embeds"][row], pooled)
        torch.testing.assert_close(seen["time_ids"][row], network.time_ids)

    add_adapter(pipeline.pipe.unet, recipe)
    for name, param in pipeline.pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.1)
    pipeline.pipe.unet.eval()
    with adapter_off(pipeline.pipe.unet):
        assert network.compare(network.render(), before) == {"change": 0}
    assert network.compare(network.render(), before)["change"] > 0


def test_command_trains_on_pictures_and_writes_the_whole_unet(tiny_family, rated_pictures, tmp_path, capsys):
    out, full = tmp_path / "lora.safetensors", tmp_path / "unet"
    assert main(arguments(rated_pictures, out, "--steps", "2", "--full", str(full))) == 0
    lora, metadata = load_tensors(out), read_metadata(out)
    assert (metadata["stage"], metadata["steps"]) == ("dpo_image", "2")
    assert {"base", "clips", "ratings", "commit", "recipe"} <= metadata.keys()
    base = UNet2DConditionModel.from_pretrained(tiny_family / "first_frame" / "unet").state_dict()
    changed = merge(base, lora, float(metadata["lora_alpha"]))
    assert {name.rsplit(".", 2)[0].split(".")[-1] for name in changed} >= {"attn1", "attn2"}
    merged = UNet2DConditionModel.from_pretrained(full).state_dict()
    for name, tensor in base.items():
        torch.testing.assert_close(merged[name].half(), changed.get(name, tensor).half())
    assert json.loads((full / "training.json").read_text()) == metadata
    assert "_name_or_path" not in json.loads((full / "config.json").read_text())  # a path of this machine
    assert len({file.stat().st_mode for file in full.iterdir()}) == 1
    assert (tmp_path / "run_lora" / "samples" / "step_000002.png").exists()
    assert (tmp_path / "run_lora" / "monitors.png").exists()

    assert main(arguments(rated_pictures, out, "--steps", "3", "--resume")) == 0
    assert read_metadata(out)["steps"] == "3"
    latents = np.load(next((tmp_path / "cache" / "latents").glob("*.npy")))
    assert latents.shape == (8, 1, 8, 8)


def test_rated_clips_serve_by_their_first_frames(tiny_family, tmp_path):
    clips = write_rated(tmp_path / "clips")
    out = tmp_path / "lora.safetensors"
    assert main(arguments(clips, out, "--steps", "1")) == 0


def test_mistakes_exit_with_2_and_one_line(tiny_family, rated_pictures, tmp_path, capsys):
    out = tmp_path / "lora.safetensors"
    for wrong, message in {
        ("--set", "frames=4"): "clips need --category and --stage1",
        ("--category", "horse"): "drop --category and --stage1",
        ("--set", "prompt=category"): "its own caption",
        ("--clips", str(tmp_path)): "captions.jsonl",
    }.items():
        assert main(arguments(rated_pictures, out, *wrong)) == 2
        assert message in capsys.readouterr().err
