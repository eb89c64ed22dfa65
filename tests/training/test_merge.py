"""Stage-1 weights and a LoRA on disk -> category weights, their lineage and card."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from huvidpo.catalog import DEFAULT_MODEL, adapter_path
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors, with_weights
from huvidpo.files import hash_file, hash_tensors
from huvidpo.strength import at_strength
from huvidpo.unet import VideoUNet, fingerprint
from training import recover
from training.lineage import card_path
from training.merge import main

TARGETS = ["attn1.to_q", "attn_temp.to_v"]


@pytest.fixture
def parts(tiny_family: Path, tmp_path: Path) -> tuple[nn.Module, Path, Path]:
    """(network with stage 1 and the adapter on, stage-1 file, LoRA file): as the two trainers write them."""
    base = VideoUNet.from_pretrained(tiny_family / "video" / "unet")
    names = [name for name in base.state_dict() if "conv1d" in name or "attn1.to_q" in name]
    tuned = {name: base.state_dict()[name] + 0.1 for name in names}
    stage1, lora = tmp_path / "stage1.safetensors", tmp_path / "lora.safetensors"
    hashes = {"base": fingerprint(base)}
    motion = {"stage": "motion", "clips": "c1", "recipe": '{"seed": 3}', "commit": "m", **hashes}
    save_tensors(stage1, {name: tensor.half() for name, tensor in tuned.items()}, motion)

    config = LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False)
    torch.manual_seed(0)
    network = inject_adapter_in_model(config, copy.deepcopy(with_weights(base, load_tensors(stage1))))
    hashes["stage1"] = hash_tensors(load_tensors(stage1))
    preferences = {
        "stage": "dpo",
        "category": "horse",
        "clips": "c2",
        "ratings": "r2",
        "recipe": '{"beta": 50}',
    }
    metadata = {**preferences, **hashes, "commit": "d", "lora_rank": "2", "lora_alpha": "6"}
    save_tensors(lora, get_peft_model_state_dict(network), metadata)
    return network.eval(), stage1, lora


def arguments(stage1: Path, lora: Path, *more: str) -> list[str]:
    out = str(lora.parent / "horse.safetensors")
    return ["--model", DEFAULT_MODEL, "--stage1", str(stage1), "--lora", str(lora), "--out", out, *more]


def answer(network: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample, text = torch.randn(1, 8, 4, 8, 8, generator=generator), torch.randn(1, 5, 32, generator=generator)
    with torch.no_grad():
        return network(sample, 500, text)


def test_merged_file_is_the_adapted_network(parts, tiny_family: Path) -> None:
    network, stage1, lora = parts
    assert main(arguments(stage1, lora, "--dtype", "fp32")) == 0
    tensors = load_tensors(lora.parent / "horse.safetensors")
    base = VideoUNet.from_pretrained(tiny_family / "video" / "unet").eval()
    torch.testing.assert_close(answer(with_weights(base, tensors)), answer(network), atol=1e-5, rtol=1e-5)
    own = base.state_dict()
    for strength in (0.0, 0.5, 1.5):
        for layer in network.modules():
            if isinstance(layer, LoraLayer):
                layer.set_scale("default", strength)
        scaled = with_weights(base, at_strength(tensors, lora.parent / "horse.safetensors", strength))
        torch.testing.assert_close(answer(scaled), answer(network), atol=1e-5, rtol=1e-5)
    without = with_weights(base, at_strength(tensors, lora.parent / "horse.safetensors", 0.0))
    expected = answer(with_weights(base, load_tensors(stage1)))
    torch.testing.assert_close(answer(without), expected, atol=1e-5, rtol=1e-5)
    assert set(tensors) == {n for n in own if "conv1d" in n or "attn1.to_q" in n or "attn_temp.to_v" in n}


def test_files_lineage_and_full_folder(parts, tmp_path: Path, capsys) -> None:
    network, stage1, lora = parts
    metrics = tmp_path / "promotion.json"
    metrics.write_text('{"win_rate": 0.75}')
    full = tmp_path / "full"
    assert main(arguments(stage1, lora, "--metrics", str(metrics), "--full", str(full))) == 0
    assert "horse.card.json" in capsys.readouterr().out
    out = tmp_path / "horse.safetensors"
    lineage, metadata = read_metadata(out), read_metadata(lora)
    assert {tensor.dtype for tensor in load_tensors(out).values()} == {torch.float16}
    assert lineage.items() >= metadata.items()
    assert lineage.items() >= {f"stage1_{k}": v for k, v in read_metadata(stage1).items()}.items()
    assert lineage["attention_mode"] == "first_prev"
    assert lineage["lora"] == hash_tensors(load_tensors(lora))
    card = json.loads(card_path(out).read_text())
    assert card["metrics"] == {"win_rate": 0.75}
    assert card["lineage"]["stage1_recipe"] == {"seed": 3}
    adapter = adapter_path(out)
    assert card["adapter"] == {"sha256": hash_file(adapter), "bytes": adapter.stat().st_size}
    said = {"merged": hash_file(out), "stage1": lineage["stage1"], "base": lineage["base"]}
    assert read_metadata(adapter).items() >= said.items()

    whole = VideoUNet.from_pretrained(full, torch_dtype=torch.float32).eval()
    expected = answer(network)
    assert (answer(whole) - expected).norm() < 2e-3 * expected.norm()  # fp16 on disk
    assert json.loads((full / "training.json").read_text()) == lineage


def test_an_adapter_that_is_lost_is_found_again(parts, capsys) -> None:
    _, stage1, lora = parts
    assert main(arguments(stage1, lora)) == 0
    out = lora.with_name("horse.safetensors")
    tensors, kept = load_tensors(out), at_strength(load_tensors(out), out, 0.0)
    adapter_path(out).unlink()
    command = ["--model", DEFAULT_MODEL, "--merged", str(out), "--stage1"]
    assert recover.main([*command, str(lora)]) == 2
    assert "was trained on other weights" in capsys.readouterr().err
    assert recover.main([*command, str(stage1)]) == 0
    assert json.loads(card_path(out).read_text())["adapter"]["sha256"] == hash_file(adapter_path(out))
    found = at_strength(tensors, out, 0.0)
    for name, tensor in kept.items():
        torch.testing.assert_close(found[name].float(), tensor.float(), atol=1e-3, rtol=2**-10)
    save_tensors(out, {name: tensor + 0.1 for name, tensor in tensors.items()}, read_metadata(out))
    assert recover.main([*command, str(stage1)]) == 2
    assert "was merged is not of rank 2" in capsys.readouterr().err


def change(file: Path, metadata: dict[str, str] | None = None, rename: tuple[str, str] = ("", "")) -> None:
    tensors = {name.replace(*rename): tensor for name, tensor in load_tensors(file).items()}
    save_tensors(file, tensors, {**read_metadata(file), **(metadata or {})})


def test_files_that_do_not_belong_together_are_refused(parts, capsys) -> None:
    _, stage1, lora = parts
    originals = {file: file.read_bytes() for file in (stage1, lora)}
    for file, kwargs, message in [
        (lora, {"rename": ("attn1", "attn9")}, "match no layer of the model"),
        (lora, {"metadata": {"stage1": "0" * 64}}, "its stage1 is 000000000000..."),
        (lora, {"metadata": {"lora_rank": "4"}}, "its tensors have rank [2]"),
        (lora, {"metadata": {"lora_alpha": "much"}}, "does not say its lora_rank and lora_alpha"),
        (stage1, {"metadata": {"base": "1" * 64}}, "its base is 111111111111..."),
        (stage1, {"rename": ("conv1d", "conv9d")}, "match nothing in the model"),
    ]:
        change(file, **kwargs)
        assert main(arguments(stage1, lora)) == 2
        assert message in capsys.readouterr().err
        file.write_bytes(originals[file])
    missing = lora.with_name("none.safetensors")
    assert main(arguments(stage1, missing)) == 2
    assert main(arguments(stage1, lora, "--metrics", str(missing))) == 2
    assert "cannot read metrics" in capsys.readouterr().err
    assert not (lora.parent / "horse.safetensors").exists()
