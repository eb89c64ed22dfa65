"""Consistency distillation: its formulas, what moves and what stays, the command, and its LoRA merged."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler

from huvidpo.catalog import DEFAULT_MODEL, adapter_path, load_catalog
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors, with_weights
from huvidpo.loading import load_video_unet
from huvidpo.lora import merge
from huvidpo.schedule import DDIM
from huvidpo.strength import at_strength
from huvidpo.unet import VideoUNet
from training import dpo
from training import merge as merging
from training.adapter import adapter_off
from training.distill import (
    DistillTask,
    Given,
    boundary,
    build_task,
    consistency,
    ddim_step,
    huber_loss,
    main,
)
from training.motion import start_accelerate
from training.recipes import DistillRecipe, RecipeError

CATEGORIES = ("horse", "rain")
SHAPE = (2, 8, 4, 8, 8)


@pytest.fixture
def given(tiny_family: Path, tmp_path: Path) -> list[list[str]]:
    """(category, store of latents, weights) of two categories."""
    found = []
    for seed, name in enumerate(CATEGORIES):
        store = tmp_path / name
        store.mkdir()
        latents = np.random.default_rng(seed).standard_normal((4, *SHAPE[1:]))
        np.save(store / "latents.npy", latents.astype(np.float16))
        (store / "captions.json").write_text(json.dumps([f"a {name} {word}" for word in "abcd"]))
        found.append([name, str(store), str(tiny_family / "categories" / f"{name}.safetensors")])
    return found


@pytest.fixture
def recipe() -> DistillRecipe:
    return DistillRecipe(
        steps=4, batch_size=2, lr=1e-2, precision="fp32", frames=4, height=32, width=32, flip=False, skip=100,
        lora_rank=2, lora_alpha=4, gradient_checkpointing=False, save_every=2, sample_every=0, log_every=1,
        sample_steps=1, teacher_steps=3,
    )  # fmt: skip


@pytest.fixture
def make_task(
    tiny_family: Path, given: list[list[str]], tmp_path: Path
) -> Callable[[DistillRecipe], tuple[VideoUNet, DistillTask]]:
    def make(recipe: DistillRecipe) -> tuple[VideoUNet, DistillTask]:
        catalog = load_catalog()
        model = catalog.model(DEFAULT_MODEL)
        unet = load_video_unet(model.video_unet, torch.float32, model.attention_mode)
        torch.manual_seed(0)
        chosen = [Given(catalog.category(name), Path(clips), Path(file)) for name, clips, file in given]
        weights = {one.category.name: load_tensors(one.weights) for one in chosen}
        accelerator = start_accelerate(recipe)
        return unet, build_task(recipe, model, unet, chosen, weights, tmp_path / "cache", accelerator)

    return make


@pytest.fixture(params=("v_prediction", "epsilon"))
def scheduler(request: pytest.FixtureRequest) -> DDIMScheduler:
    zero = request.param == "v_prediction"
    return DDIMScheduler(prediction_type=request.param, rescale_betas_zero_snr=zero, clip_sample=False)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed))


def test_at_timestep_0_the_sample_is_the_answer(scheduler: DDIMScheduler) -> None:
    skip, out = boundary(torch.tensor([0, 1, 999]), 5)
    assert (skip[0].item(), out[0].item()) == (1.0, 0.0)
    assert skip[1].item() < 0.003
    assert out[1].item() > 0.998
    sample = normal(0)
    assert torch.equal(consistency(scheduler, normal(1), sample, torch.zeros(2, dtype=torch.long)), sample)


def test_the_true_noise_gives_the_clean_clip(scheduler: DDIMScheduler) -> None:
    clean, noise, timesteps = normal(0), normal(1), torch.tensor([300, 700])
    sample = scheduler.add_noise(clean, noise, timesteps)
    epsilon = scheduler.config.prediction_type == "epsilon"
    answer = noise if epsilon else scheduler.get_velocity(clean, noise, timesteps)
    found = consistency(scheduler, answer, sample, timesteps)
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)


def test_a_step_of_the_teacher_is_the_samplers(scheduler: DDIMScheduler) -> None:
    sampler = DDIM.from_config(scheduler.config)
    sampler.set_timesteps([799, 699])
    sample, answer = normal(0), normal(1)
    timesteps = torch.tensor([799, 799])
    moved = ddim_step(scheduler, answer, sample, timesteps, timesteps - 100)
    assert torch.equal(moved[:, :, 0], sample[:, :, 0])
    expected = sampler.step(answer, 799, sample)[0]
    torch.testing.assert_close(moved[:, :, 1:], expected[:, :, 1:], atol=1e-5, rtol=1e-5)


def test_the_loss_is_a_distance_that_is_smooth_at_zero_and_leaves_frame_0_out() -> None:
    answer, target = normal(0).requires_grad_(), normal(1)
    loss = huber_loss(answer, target, 1e-3)
    apart = (answer - target)[:, :, 1:].abs()
    assert abs(loss.item() - apart.mean().item()) < 1.1e-3
    loss.backward()
    assert answer.grad is not None
    assert torch.count_nonzero(answer.grad[:, :, 0]) == 0
    assert torch.count_nonzero(answer.grad[:, :, 1:]) == answer.grad[:, :, 1:].numel()
    same = normal(0).requires_grad_()
    huber_loss(same, same.detach().clone(), 1e-3).backward()
    assert same.grad is not None
    assert torch.count_nonzero(same.grad) == 0


def test_only_the_lora_learns_and_every_category_is_itself(make_task, recipe, tiny_family) -> None:
    unet, task = make_task(recipe)
    base = VideoUNet.from_pretrained(tiny_family / "video" / "unet")
    sample, text, timesteps = normal(0), normal(1, 2, 5, 32), torch.tensor([10, 900])
    for draw, name in enumerate(CATEGORIES):
        assert task.describe(draw).startswith(f"{name}: row ")
        loss, _ = task.loss(unet, draw, torch.Generator().manual_seed(draw))
        loss.backward()
        file = load_catalog().model(DEFAULT_MODEL).categories / f"{name}.safetensors"
        expected = with_weights(copy.deepcopy(base), load_tensors(file)).eval()
        with torch.no_grad(), adapter_off(unet):
            torch.testing.assert_close(unet(sample, timesteps, text), expected(sample, timesteps, text))
    moved = {name for name, parameter in unet.named_parameters() if parameter.grad is not None}
    assert moved == set(task.params)
    assert all("lora_" in name for name in moved)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_target_is_the_moving_averages_and_the_answer_is_not(make_task, recipe, precision) -> None:
    """In mixed precision too, where autocast might remember the cast of one and use it for the other."""
    unet, task = make_task(dataclasses.replace(recipe, precision=precision))
    model = Accelerator().prepare(unet)
    with torch.no_grad():
        for parameter in task.params.values():
            parameter.copy_(0.1 * torch.ones_like(parameter))
    apart = {name: tensor.clone() for name, tensor in task.average.items()}
    same = {name: parameter.detach().clone() for name, parameter in task.params.items()}
    answers = []
    hook = unet.register_forward_hook(lambda *call: answers.append(call[2].detach().float().clone()))
    for average in (apart, same):
        task.average.update(average)
        task.loss(model, 0, torch.Generator().manual_seed(0))
    hook.remove()
    teacher, target, student, teacher_again, target_again, student_again = answers
    assert torch.equal(teacher, teacher_again)
    assert torch.equal(student, student_again)
    assert not torch.equal(target, target_again)
    kept = {name: parameter.detach() for name, parameter in task.params.items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in same.items())


def test_guidance_is_folded_into_the_teachers_step(make_task, recipe) -> None:
    unet, task = make_task(recipe)
    sample, timesteps = normal(0), torch.tensor([300, 800])
    text, empty = task._text(["a horse a", "a horse b"]), task._text(["", ""])
    with torch.no_grad():
        plain, without = unet(sample, timesteps, text), unet(sample, timesteps, empty)
        guided = task._guided(unet, sample, timesteps, text, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(guided[0], plain[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guided[1], without[1] + 3 * (plain - without)[1], atol=1e-5, rtol=1e-5)


def test_timesteps_lie_on_the_teachers_grid(make_task, recipe) -> None:
    _, task = make_task(recipe)
    timesteps, guidance, noise = task._noise(normal(0, 4000, 1), torch.Generator().manual_seed(0))
    assert set(timesteps.tolist()) == {99, 199, 299, 399, 499, 599, 699, 799, 899, 999}
    assert 4 <= guidance.min() < guidance.max() <= 16
    assert noise.shape == (4000, 1)


def test_it_learns_what_guidance_does(make_task, recipe) -> None:
    """Where the teacher's step leads from pure noise to the end, what it answers with guidance 8."""
    recipe = dataclasses.replace(
        recipe, skip=1000, lora_rank=8, lora_alpha=8, lowest_guidance=8, highest_guidance=8
    )
    unet, task = make_task(recipe)
    optimizer = torch.optim.AdamW(task.params.values(), lr=1e-2)
    losses = []
    for step in range(40):
        loss, _ = task.loss(unet, 0, torch.Generator().manual_seed(step % 4))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])  # about half


def arguments(given: list[list[str]], out: Path, *more: str) -> list[str]:
    fields = (
        "frames=4", "height=32", "width=32", "flip=false", "precision=fp32", "batch_size=2", "holdout=1",
        "skip=100", "lora_rank=2", "lora_alpha=4", "lr=0.01", "cooldown=0", "sample_every=2",
        "sample_steps=1", "teacher_steps=3",
    )  # fmt: skip
    of = [word for one in given for word in ("--of", *one)]
    return [
        "--model", DEFAULT_MODEL, *of, "--out", str(out), "--run", str(out.parent / "run"),
        *(word for text in fields for word in ("--set", text)), *more,
    ]  # fmt: skip


def test_command_stops_and_goes_on_bit_for_bit(given, tmp_path: Path, capsys) -> None:
    whole, parts = tmp_path / "whole" / "fast.safetensors", tmp_path / "parts" / "fast.safetensors"
    assert main(arguments(given, whole, "--steps", "4")) == 0
    assert "psnr" in capsys.readouterr().err
    assert (whole.parent / "run" / "samples" / "step_000004.mp4").stat().st_size > 0
    assert main(arguments(given, parts, "--steps", "2")) == 0
    assert main(arguments(given, parts, "--steps", "4")) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(arguments(given, parts, "--steps", "4", "--resume")) == 0
    one, other = load_tensors(whole), load_tensors(parts)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(tensor.any() for name, tensor in one.items() if "lora_B" in name)
    facts = read_metadata(whole)
    assert (facts["stage"], facts["model"], facts["steps"], facts["lora_rank"]) == (
        "distill",
        "tiny",
        "4",
        "2",
    )
    assert {f"{kind}_{name}" for kind in ("weights", "clips") for name in CATEGORIES} < facts.keys()


def test_what_it_is_told_wrong_it_says(given, tmp_path: Path, capsys) -> None:
    out = tmp_path / "fast.safetensors"
    horse = given[0]
    save_tensors(tmp_path / "foreign.safetensors", {"nothing.weight": torch.zeros(1)}, {})
    wrong = {
        "once": arguments([horse, horse], out),
        "known:": arguments([["dragon", *horse[1:]]], out),
        "is not a folder": arguments([["horse", str(tmp_path / "none"), horse[2]]], out),
        "nothing.weight": arguments([[*horse[:2], str(tmp_path / "foreign.safetensors")]], out),
        "frames: got 1, expected a whole number of at least 2": arguments(given, out, "--set", "frames=1"),
        "1 to 1000, the model's timesteps": arguments(given, out, "--set", "skip=1001"),
        "lowest_guidance or above": arguments(given, out, "--set", "lowest_guidance=2"),
    }
    for message, command in wrong.items():
        assert main(command) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(RecipeError):
        DistillRecipe(lowest_guidance=0.5)


@pytest.fixture
def fast(given, tmp_path: Path) -> Path:
    file = tmp_path / "fast.safetensors"
    assert main(arguments(given, file, "--steps", "2")) == 0
    return file


def merged(tmp_path: Path, *more: object) -> int:
    out = tmp_path / "out" / "horse.safetensors"
    return merging.main(["--model", DEFAULT_MODEL, "--out", str(out), "--dtype", "fp32", *map(str, more)])


def test_it_is_merged_last(given, fast: Path, tiny_family: Path, tmp_path: Path) -> None:
    stage1, out = Path(given[0][2]), tmp_path / "out" / "horse.safetensors"
    assert merged(tmp_path, "--stage1", stage1, "--fast", fast) == 0
    base = VideoUNet.from_pretrained(tiny_family / "video" / "unet").state_dict()
    motion, lora = load_tensors(stage1), load_tensors(fast)
    alone = {**motion, **merge({**base, **motion}, lora, 4.0)}
    found = load_tensors(out)
    assert found.keys() == alone.keys()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in alone.items())
    facts = read_metadata(out)
    assert (facts["fast_steps"], facts["fast_stage"]) == ("2", "distill")
    assert not adapter_path(out).exists()

    preferences = tmp_path / "preferences.safetensors"
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    halves = {f"{layer}.lora_A.weight": normal(1, 2, 16), f"{layer}.lora_B.weight": normal(2, 16, 2)}
    save_tensors(preferences, halves, {"stage": "dpo", "lora_rank": "2", "lora_alpha": "2"})
    assert merged(tmp_path, "--stage1", stage1, "--lora", preferences, "--fast", fast) == 0
    both = load_tensors(out)
    preferred = merge({**base, **motion}, halves, 2.0)
    expected = {**motion, **preferred, **merge({**base, **motion, **preferred}, lora, 4.0)}
    assert all(torch.equal(both[name], tensor.float()) for name, tensor in expected.items())
    assert read_metadata(out)["stage"] == "dpo"
    without = at_strength(both, out, 0.0)  # fewer steps and no preferences
    for name, tensor in alone.items():
        torch.testing.assert_close(without[name], tensor.float(), atol=1e-5, rtol=1e-5)


def test_loras_are_not_taken_for_each_other(given, fast: Path, tmp_path: Path, capsys) -> None:
    stage1 = Path(given[0][2])
    preferences = tmp_path / "preferences.safetensors"
    save_tensors(preferences, load_tensors(fast), {"stage": "dpo", "lora_rank": "2", "lora_alpha": "2"})
    assert merged(tmp_path, "--stage1", stage1, "--fast", fast) == 0
    done = tmp_path / "out" / "horse.safetensors"
    wrong = {
        "give it as --fast": ("--stage1", stage1, "--lora", fast),
        "is no LoRA of fewer steps": ("--stage1", stage1, "--fast", preferences),
        "nothing to merge": ("--stage1", stage1),
        "in it already": ("--stage1", done, "--fast", fast),
    }
    for message, options in wrong.items():
        assert merged(tmp_path, *options) == 2
        assert message in capsys.readouterr().err
    command = ["--model", "tiny", "--category", "horse", "--clips", str(tmp_path), "--stage1", str(done)]
    command += ["--set", "precision=fp32"]
    assert dpo.main([*command, "--out", str(tmp_path / "lora.safetensors")]) == 2
    assert "in it already" in capsys.readouterr().err
