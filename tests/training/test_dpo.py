import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from clips import write_clip
from diffusers import AutoencoderKL
from rated import write_rated
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from huvidpo.catalog import DEFAULT_MODEL, PROJECT_ROOT
from huvidpo.checkpoint import load_tensors, read_metadata, with_weights
from huvidpo.files import hash_file
from huvidpo.lora import merge
from huvidpo.unet import VideoUNet
from preferences.clips import ClipEntry, write_clips
from preferences.records import Comparison, PreferencesError, SegmentComparison, append
from training.adapter import adapter_norm, adapter_off, adapter_tensors, add_adapter
from training.data import embed_texts
from training.dpo import DPOTask, VideoNetwork, main, said_of, set_fields, with_steps
from training.loop import CHECKPOINT, TrainingError, train
from training.monitors import FILE, PLOT, Monitors, pair_metrics, verdict
from training.rated import PairRows, Rated, load_rated
from training.recipes import DPORecipe, RecipeError, override, paper_dpo, parts_of, tiny_dpo

CAPTIONS = ["a horse runs", "white horse runs on mars", "a red horse runs at night", "a horse", "rain", "sea"]
IDENTITY = {"base": "random"}


@pytest.fixture
def dpo_recipe() -> DPORecipe:
    return DPORecipe(
        steps=4, passes=0, batch_size=2, lr=1e-2, adam_eps=1e-8, precision="fp32", frames=4, height=32,
        width=32, save_every=2, sample_every=0, sample_steps=2, log_every=1,
    )  # fmt: skip


@pytest.fixture
def make_dpo(make_task, recipe):
    """A frozen network with a fresh LoRA, and a task on six random clips: rows 0-3 train, 4 and 5 not."""

    def make(dpo_recipe: DPORecipe):
        unet, motion = make_task(recipe)
        latents = np.random.default_rng(1).standard_normal((6, 8, 4, 8, 8)).astype(np.float16)
        held_out = PairRows(np.array([4]), np.array([5]), np.ones(1, np.float32))
        winner, loser = np.array([(a, b) for a in range(4) for b in range(a + 1, 4)]).T
        weight = (loser - winner).astype(np.float32)
        rated = Rated(
            names=[f"{row}.mp4" for row in range(6)],
            latents=latents,
            captions=CAPTIONS,
            train=PairRows(winner, loser, weight / weight.mean()),
            held_out=held_out,
            train_rows=np.arange(4),
            held_out_rows=np.arange(4, 6),
            strength=np.array([1.5, 0.5, -0.5, -1.5, 1.0, -1.0]),
            clips="made up",
            ratings="made up",
        )
        texts = embed_texts(CAPTIONS, motion.pipeline.tokenizer, motion.pipeline.text_encoder)
        first = torch.from_numpy(latents[4:5, :, 0].astype(np.float32))
        network = VideoNetwork(motion.pipeline, texts, first, CAPTIONS[4:5], motion.sampling)
        task = DPOTask(rated, CAPTIONS, network, motion.scheduler, dpo_recipe, torch.device("cpu"))
        torch.manual_seed(0)
        add_adapter(unet, dpo_recipe)
        unet.train()
        return unet, task

    return make


def go(unet, task, folder, resume=False, **options):
    precision = "no" if task.recipe.precision == "fp32" else task.recipe.precision
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    return train(
        unet,
        task,
        task.recipe,
        folder,
        accelerator=accelerator,
        identity=IDENTITY,
        resume=resume,
        accumulation=task.recipe.accumulation,
        callback=Monitors(folder, task.recipe),
        **options,
    )


def copy_of(unet):
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def fill_adapter(unet) -> None:
    """An adapter that does something: B of a fresh one is zero."""
    for name, param in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.05, generator=torch.Generator().manual_seed(0))


# The adapter and the reference


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapter_trains_and_nothing_else_moves(make_dpo, dpo_recipe, tmp_path, precision):
    unet, task = make_dpo(dataclasses.replace(dpo_recipe, precision=precision))
    before = copy_of(unet)
    trained = go(unet, task, tmp_path)
    moved = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if ".lora_" in name} == set(trained.weights)
    assert trained.complete
    attentions = sum(
        name.endswith(("to_q.base_layer.weight", "to_out.0.base_layer.weight")) for name in before
    )
    assert len(moved) == 2 * 2 * attentions  # A and B of q, k, v, out


def test_adapter_targets(make_dpo, dpo_recipe):
    unet, _ = make_dpo(dataclasses.replace(dpo_recipe, target_modules=parts_of("attn1", "attn_temp")))
    adapted = {name.split(".")[-5] for name in unet.state_dict() if ".lora_A." in name}
    assert adapted == {"attn1", "attn_temp", "to_out"}  # to_out.0 is one deeper
    assert not any("attn2" in name for name in unet.state_dict() if ".lora_" in name)
    with pytest.raises(TrainingError, match="'to_nothing' matches no linear layer"):
        make_dpo(dataclasses.replace(dpo_recipe, target_modules=("to_q", "to_nothing")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_is_the_frozen_network_bit_for_bit(make_dpo, dpo_recipe, family, dtype):
    unet, task = make_dpo(dpo_recipe)
    frozen = VideoUNet.from_pretrained(family / "video" / "unet").train()
    fill_adapter(unet)
    sample = torch.from_numpy(task.rated.latents[:2].astype(np.float32))
    text = torch.stack([task.network.texts[caption] for caption in CAPTIONS[:2]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = frozen(sample, torch.tensor([7, 900]), text)
        with adapter_off(unet):
            reference = unet(sample, torch.tensor([7, 900]), text)
        policy = unet(sample, torch.tensor([7, 900]), text)
    assert torch.equal(reference, expected)
    assert not torch.equal(policy, expected)
    assert all(p.requires_grad == (".lora_" in name) for name, p in unet.named_parameters())


def test_fresh_adapter_has_loss_ln_2_and_gradients_that_part_the_pair(make_dpo, dpo_recipe):
    unet, task = make_dpo(dataclasses.replace(dpo_recipe, lora_dropout=0.0))
    loss, figures = task.loss(unet, 0, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert figures["accuracy"] == 0.5
    loss.backward()
    grads = {name: param.grad for name, param in unet.named_parameters() if param.requires_grad}
    assert all(grad.any() for name, grad in grads.items() if "lora_B" in name)
    assert not any(grad.any() for name, grad in grads.items() if "lora_A" in name)  # B is zero


def test_merged_adapter_equals_the_adapter_switched_on(make_dpo, dpo_recipe, family):
    unet, task = make_dpo(dpo_recipe)
    fill_adapter(unet)
    base = VideoUNet.from_pretrained(family / "video" / "unet")
    lora = adapter_tensors({name: p for name, p in unet.named_parameters() if p.requires_grad})
    merged = with_weights(base, merge(base.state_dict(), lora, dpo_recipe.lora_alpha))
    sample = torch.from_numpy(task.rated.latents[:1].astype(np.float32))
    text = task.network.texts[CAPTIONS[0]][None]
    with torch.no_grad():
        torch.testing.assert_close(
            unet.eval()(sample, 500, text), merged.eval()(sample, 500, text), atol=1e-5, rtol=1e-5
        )
    change = [merged.state_dict()[name] - tensor for name, tensor in base.state_dict().items()]
    norm = torch.stack([part.square().sum() for part in change]).sum().sqrt()
    assert adapter_norm(unet) == pytest.approx(norm.item(), rel=1e-4)


# Batches


def test_pair_shares_its_noise_and_timestep_and_each_clip_has_its_own_first_frame(make_dpo, dpo_recipe):
    unet, task = make_dpo(dpo_recipe)
    seen = []
    plain = VideoNetwork.answer

    class Watching(VideoNetwork):
        def answer(self, model, noisy, timesteps, captions):
            seen.append((noisy, timesteps, captions))
            return plain(self, model, noisy, timesteps, captions)

    task.network = Watching(**vars(task.network))
    task.loss(unet, 0, torch.Generator().manual_seed(3))
    assert len(seen) == 2  # reference, network
    chosen, rated = task._chosen(0), task.rated
    rows = np.concatenate([rated.train.winner[chosen], rated.train.loser[chosen]])
    latents = torch.from_numpy(rated.latents[rows].astype(np.float32))
    for noisy, timesteps, captions in seen:
        assert torch.equal(timesteps[:2], timesteps[2:])
        assert captions == [CAPTIONS[row] for row in rows]
        assert torch.equal(noisy[:, :, 0], latents[:, :, 0])
        abar = task.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        noise = ((noisy - abar.sqrt() * latents) / (1 - abar).sqrt())[:, :, 1:]
        torch.testing.assert_close(noise[:2], noise[2:], atol=1e-3, rtol=1e-3)


def test_two_forwards_equal_one(make_dpo, dpo_recipe):
    losses = []
    for one in (True, False):
        unet, task = make_dpo(dataclasses.replace(dpo_recipe, one_forward=one, lora_dropout=0.0))
        fill_adapter(unet)
        losses.append(task.loss(unet, 0, torch.Generator().manual_seed(0))[0])
    torch.testing.assert_close(losses[0], losses[1])


def test_timesteps_keep_to_their_range(make_dpo, dpo_recipe):
    _, task = make_dpo(dataclasses.replace(dpo_recipe, lowest_timestep=0.5, highest_timestep=0.6))
    _, timesteps = task._noise(200, torch.Generator().manual_seed(0))
    assert (timesteps.min() >= 500, timesteps.max() < 600) == (True, True)
    assert task._levels().min() > 0.5
    assert task._levels().max() < 0.6


def test_passes_make_the_steps(dpo_recipe):
    recipe = dataclasses.replace(dpo_recipe, passes=12, batch_size=2, accumulation=3)
    assert with_steps(recipe, 60, processes=2).steps == 60
    assert with_steps(recipe, 61, processes=2).steps == 61
    assert with_steps(dpo_recipe, 60, processes=2) is dpo_recipe
    with pytest.raises(TrainingError, match="nothing to learn"):
        with_steps(dpo_recipe, 0, processes=1)


def test_steps_that_are_said_are_those_that_are_made():
    """paper_dpo makes its steps of 12 passes; `--set steps` must not be forgotten for them."""
    for assignments, steps in ((["steps=7"], None), (["lr=1e-5"], 7), (["passes=0", "steps=7"], None)):
        recipe = override(paper_dpo(), set_fields(assignments, steps))
        assert with_steps(recipe, 60, processes=1).steps == 7
    assert with_steps(override(paper_dpo(), set_fields(["passes=2"], None)), 60, processes=1).steps == 120
    for assignments, steps in ((["steps=7", "passes=3"], None), (["passes=3"], 7)):
        with pytest.raises(TrainingError, match="got steps=7 and passes=3, which make other steps"):
            set_fields(assignments, steps)
    assert override(paper_dpo(), set_fields(["steps=9"], 7)).steps == 7  # the last word counts


# Every loss trains


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["gap_weights=true", "label_smoothing=0.1"],
        ["loss=ipo", "lowest_timestep=0.2"],
        ["loss=hinge", "anchor=1"],
        ["loss=kto"],
        ["loss=kto", "gap_weights=true"],
        ["winner_weight=50", "safeguard=0.9"],
    ],
)
def test_every_variant_learns_the_training_pairs(make_dpo, dpo_recipe, settings):
    """Over a few draws of noise: pairs, or single clips, are told apart better than by the reference."""
    beta = ["beta=1"] if "loss=ipo" in settings else ["beta=200"]
    unet, task = make_dpo(override(dataclasses.replace(dpo_recipe, lora_dropout=0.0), settings + beta))
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-2)
    margins = []
    for step in range(24):
        loss, figures = task.loss(unet, step % 3, torch.Generator().manual_seed(step % 3))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        margins.append(figures["margin"])
    assert margins[0] == pytest.approx(0, abs=1e-6)
    assert np.mean(margins[-3:]) > 0
    assert np.mean(margins[-3:]) > np.mean(margins[3:6])


def by_segments(task, labels: np.ndarray):
    """`task` with segments of two frames and of what is left: `labels` [pairs, 2] of those to train."""
    one = np.array([[1, -1]], np.int8)
    train, held = (
        dataclasses.replace(rows, labels=told)
        for rows, told in ((task.rated.train, labels), (task.rated.held_out, one))
    )
    rated = dataclasses.replace(task.rated, train=train, held_out=held, segment_frames=2)
    return dataclasses.replace(task, rated=rated)


def test_each_segment_learns_its_own_winner(make_dpo, dpo_recipe):
    """The first two frames are better in the one clip, the last in the other: both are learnt at once."""
    unet, task = make_dpo(override(dataclasses.replace(dpo_recipe, lora_dropout=0.0), ["beta=200"]))
    labels = np.tile(np.array([[1, -1]], np.int8), (len(task.rated.train), 1))
    task = by_segments(task, labels)
    with torch.no_grad():
        before = task.evaluate(unet)
    assert (before["train_accuracy"], before["held_out_accuracy"]) == (0.5, 0.5), "nothing learnt: all tied"
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-2)
    for step in range(24):
        loss, _ = task.loss(unet, step % 3, torch.Generator().manual_seed(step % 3))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    turned = by_segments(task, -labels)
    with torch.no_grad():
        found = [one.evaluate(unet)["train_accuracy"] for one in (task, turned)]
    assert found[0] > 0.5 > found[1] == pytest.approx(1 - found[0])


@torch.no_grad()
def test_one_segment_trains_as_none_do(make_dpo, dpo_recipe):
    unet, task = make_dpo(dataclasses.replace(dpo_recipe, lora_dropout=0.0))
    fill_adapter(unet)
    whole = by_segments(task, np.ones((len(task.rated.train), 1), np.int8))
    held = dataclasses.replace(task.rated.held_out, labels=np.ones((1, 1), np.int8))
    whole.rated = dataclasses.replace(whole.rated, held_out=held, segment_frames=3)
    found = [one.loss(unet, 0, torch.Generator().manual_seed(0)) for one in (task, whole)]
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert task.evaluate(unet) == whole.evaluate(unet)


def test_segments_are_pairs_of_their_own_by_hand():
    labels = np.array([[1, 0, -1], [-1, 1, 1]], np.int8)
    rows = PairRows(np.array([0, 1]), np.array([2, 0]), np.array([0.5, 1.5], np.float32), labels)
    found = rows.by_segment()
    assert found.winner.tolist() == [0, 8, 0, 4, 5]
    assert found.loser.tolist() == [6, 2, 3, 1, 2]
    assert found.weight.tolist() == [0.5, 0.5, 1.5, 1.5, 1.5]
    assert found.labels is None
    assert rows.among(np.array([0, 2])).by_segment().winner.tolist() == [0, 8]


def test_kto_takes_single_clips_and_names_them(make_dpo, dpo_recipe):
    _, task = make_dpo(dataclasses.replace(dpo_recipe, loss="kto"))
    assert sorted(task.units()) == [0, 1, 2, 3]
    task.rated.strength[1] = 0  # neither good nor bad
    assert sorted(task.units()) == [0, 2, 3]
    assert set(task.describe(0).split(", ")) < {"0.mp4", "2.mp4", "3.mp4"}


# The loop


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_dpo, dpo_recipe, tmp_path):
    recipe = dataclasses.replace(dpo_recipe, steps=3, accumulation=2, sample_every=3)
    whole = go(*make_dpo(recipe), tmp_path / "whole")
    short = dataclasses.replace(recipe, steps=2, save_every=1)
    assert go(*make_dpo(short), tmp_path / "halves").step == 2
    resumed = go(*make_dpo(recipe), tmp_path / "halves", resume=True)
    assert resumed.step == whole.step == 3
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name
    one, two = (load_file(tmp_path / run / CHECKPOINT) for run in ("whole", "halves"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_sigterm_saves_and_the_run_goes_on_from_there(make_dpo, dpo_recipe, tmp_path, monkeypatch):
    recipe = dataclasses.replace(dpo_recipe, save_every=100)
    whole = go(*make_dpo(recipe), tmp_path / "whole")
    plain = DPOTask.loss

    def loss(self, model, draw, generator):
        if draw == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, model, draw, generator)

    monkeypatch.setattr(DPOTask, "loss", loss)
    stopped = go(*make_dpo(recipe), tmp_path / "stopped")
    assert (stopped.step, stopped.complete) == (2, False)
    monkeypatch.undo()
    resumed = go(*make_dpo(recipe), tmp_path / "stopped", resume=True)
    assert resumed.complete
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in whole.weights.items())


def test_loss_that_is_not_finite_stops_before_the_weights_move(make_dpo, dpo_recipe, tmp_path):
    unet, task = make_dpo(dataclasses.replace(dpo_recipe, batch_size=1, steps=9))
    task.rated.latents[3] = float("inf")
    bad = next(draw for draw in range(9) if "3.mp4" in task.describe(draw))
    before = copy_of(unet)
    with pytest.raises(TrainingError, match=rf"loss is (nan|inf) at step {bad}, batch \d.mp4 over 3.mp4"):
        go(unet, task, tmp_path)
    if bad == 0:
        assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert all(param.isfinite().all() for param in unet.parameters())


def test_gradient_that_is_not_finite_names_every_batch_of_the_step(make_dpo, dpo_recipe, tmp_path):
    unet, task = make_dpo(dataclasses.replace(dpo_recipe, batch_size=1, accumulation=2))
    before = copy_of(unet)
    param = next(p for name, p in unet.named_parameters() if "lora_B" in name)
    param.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(TrainingError, match=r"norm is nan at step 0, batch \d.mp4 over \d.mp4; \d.mp4 over"):
        go(unet, task, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


# Monitors


def test_pair_metrics_by_hand():
    """Two pairs at one timestep each of the first and the last quarter."""
    errors = torch.tensor([[1.0, 1.0], [2.0, 4.0], [1.0, 3.0]])
    reference = torch.tensor([[2.0, 2.0], [2.0, 2.0], [1.0, 1.0]])
    pairs = PairRows(np.array([0, 1]), np.array([1, 2]), np.ones(2, np.float32))
    found = pair_metrics(errors, reference, pairs, np.array([0, 3]), "train", beta=4.0)
    # margins: pair 0 -.5((-1, -1) - (0, 2)) = (.5, 1.5), pair 1 -.5((0, 2) - (0, 2)) = (0, 0)
    assert found["train_accuracy"] == 0.75
    assert found["train_margin"] == pytest.approx(0.5)
    assert found["train_margin_p5"] == pytest.approx(0.05)
    assert found["train_margin_p95"] == pytest.approx(0.95)
    assert found["train_winner_drift"] == pytest.approx((-1 - 1 + 0 + 2) / 8)
    assert found["train_winner_drift_t0"] == pytest.approx((-1 + 0) / 4)
    assert found["train_loser_drift_t3"] == pytest.approx((2 + 2) / 3)
    # mean drifts: pair 0 -1 of the winner, 1 of the loser; pair 1 1 and 1
    assert found["train_rewards/chosen"] == pytest.approx(-2 * (-1 + 1) / 2)
    assert found["train_rewards/rejected"] == pytest.approx(-2 * (1 + 1) / 2)
    assert found["train_rewards/margins"] == pytest.approx(4 * 0.5)
    assert found["train_rewards/accuracies"] == 0.5
    assert pair_metrics(errors, reference, pairs.among(np.array([2])), np.array([0, 3]), "train", 4.0) == {}


def test_monitors_are_written_and_evaluating_changes_nothing(make_dpo, dpo_recipe, tmp_path):
    silent = go(*make_dpo(dpo_recipe), tmp_path / "silent")
    evaluated = go(*make_dpo(dataclasses.replace(dpo_recipe, sample_every=2)), tmp_path / "run")
    for name, tensor in silent.weights.items():
        assert torch.equal(tensor, evaluated.weights[name])
    rows = [json.loads(line) for line in (tmp_path / "run" / FILE).read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert (rows[0]["train_accuracy"], rows[0]["train_margin"], rows[0]["lora_norm"]) == (0.5, 0, 0)
    assert rows[0]["frame_difference"] == rows[0]["frame_difference_before"] > 0
    assert rows[0]["ssim"] == rows[0]["ssim_before"]
    for name in ("chosen", "rejected", "margins", "accuracies"):
        assert rows[0][f"train_rewards/{name}"] == rows[0][f"held_out_rewards/{name}"] == 0
    assert rows[2]["train_rewards/margins"] == pytest.approx(
        dpo_recipe.beta * rows[2]["train_margin"], rel=1e-4
    )
    assert rows[2]["lora_norm"] > 0
    assert rows[2]["grad_norm"] > 0
    assert {"held_out_accuracy", "train_winner_drift_t0", "train_loser_drift_t3"} <= rows[2].keys()
    assert (tmp_path / "run" / PLOT).stat().st_size > 0
    clips = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert clips == ["step_000000.mp4", "step_000002.mp4", "step_000004.mp4"]
    best = load_file(tmp_path / "run" / "best_000004.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in evaluated.weights.items())


def evaluation(step: int, accuracy: float = 0.5, margin: float = 0.0, drift: float = 0.0) -> dict:
    found = {"held_out_accuracy": accuracy, "held_out_margin": margin, "train_winner_drift": drift}
    return {"step": step, **found, "train_rewards/margins": 0.0}


def tell(follower: Monitors, found: dict, weight: int) -> None:
    """As the loop does after an evaluation, with weights that say which one they are of."""
    metrics = {name: value for name, value in found.items() if name != "step"}
    follower.on_evaluate(found["step"], metrics, {"x": torch.tensor(weight)})


def monitors(recipe, folder, evaluations) -> Monitors:
    follower = Monitors(folder, recipe)
    for found in evaluations:
        tell(follower, found, found["step"])
    return follower


def test_early_stop_on_held_out_accuracy_gives_the_best_weights(dpo_recipe, tmp_path):
    recipe = dataclasses.replace(dpo_recipe, patience=2, sample_every=1)
    found = [(0.5, 0), (0.6, 0), (0.8, 0.1), (0.8, 0.1), (0.7, 0)]
    follower = monitors(
        recipe, tmp_path, [evaluation(step, *held_out) for step, held_out in enumerate(found)]
    )
    assert [bool(follower.stop(step)) for step in range(5)] == [False, False, False, False, True]
    assert "0.80 of step 2" in follower.stop(4)
    step, weights = follower.best_weights(4)
    assert (step, weights["x"]) == (2, 2)
    again = Monitors(tmp_path, recipe)  # a resumed run
    assert again.stop(4) == follower.stop(4)
    tell(again, evaluation(3, 0.9), 33)
    assert [found["step"] for found in again.evaluations] == [0, 1, 2, 3]
    assert again.best_weights(3)[1]["x"] == 33


def test_early_stop_on_winner_drift_gives_the_weights_before(dpo_recipe, tmp_path):
    recipe = dataclasses.replace(dpo_recipe, max_winner_drift=0.1, sample_every=1)
    drifting = [evaluation(0), evaluation(1, drift=-0.3), evaluation(2, 0.9, 1.0, drift=0.2)]
    follower = monitors(recipe, tmp_path, drifting)
    assert follower.stop(1) == ""
    assert "winners drift by +20.0%" in follower.stop(2)
    assert follower.best_weights(2)[0] == 1
    with pytest.raises(TrainingError, match=r"max_winner_drift 0\.1 before the first evaluation"):
        monitors(recipe, tmp_path, [evaluation(0), evaluation(1, drift=0.2)]).best_weights(1)


def test_evaluation_that_is_not_finite_stops_the_run_and_leaves_the_log_alone(dpo_recipe, tmp_path):
    follower = monitors(dpo_recipe, tmp_path, [evaluation(0)])
    before = (tmp_path / FILE).read_text()
    with pytest.raises(TrainingError, match="at step 1 is not finite: held_out_margin is nan"):
        tell(follower, evaluation(1, 0.6, float("nan")), 1)
    assert (tmp_path / FILE).read_text() == before


def test_monitors_of_another_version_are_refused(dpo_recipe, tmp_path):
    (tmp_path / FILE).write_text('{"step": 0, "train_margin": 0.0, "motion": 1.0}\n')
    with pytest.raises(TrainingError, match="another version of this program: start anew"):
        Monitors(tmp_path, dpo_recipe)


def test_best_is_the_best_after_any_resume(dpo_recipe, tmp_path):
    """A crash after a better evaluation, whose step no checkpoint has: step 2 is the best again."""
    recipe = dataclasses.replace(dpo_recipe, patience=9, sample_every=1)
    follower = monitors(recipe, tmp_path, [evaluation(0), evaluation(1, 0.6), evaluation(2, 0.7)])
    follower.on_save(2)
    tell(follower, evaluation(3, 0.9), 3)
    again = Monitors(tmp_path, recipe)
    assert again.best_weights(2) == (2, {"x": torch.tensor(2)})
    tell(again, evaluation(3, 0.65), 33)
    again.on_save(3)
    assert again.best_weights(3) == (2, {"x": torch.tensor(2)})
    assert [file.name for file in tmp_path.glob("best*")] == ["best_000002.safetensors"]


def test_torn_line_does_not_block_a_resume(dpo_recipe, tmp_path):
    """Not even that of the best evaluation: its weights know what it found."""
    recipe = dataclasses.replace(dpo_recipe, patience=9, sample_every=1)
    monitors(recipe, tmp_path, [evaluation(0), evaluation(1, 0.6), evaluation(2, 0.7)]).on_save(2)
    text = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(text[: text.rindex("{") + 20])
    again = Monitors(tmp_path, recipe)
    assert again.evaluations == [evaluation(0), evaluation(1, 0.6), evaluation(2, 0.7)]
    assert again.best_weights(2)[0] == 2
    (tmp_path / FILE).write_bytes(b"\xff\x00\n[]\n")
    assert Monitors(tmp_path, recipe).evaluations == [evaluation(2, 0.7)]


class Drifting(DPOTask):
    """Says that winners drift by as much as the LoRA is strong: by nothing at first, by more after a step."""

    def evaluate(self, model):
        found = super().evaluate(model)
        return found | {"train_winner_drift": found["lora_norm"]}


def test_run_that_drifts_stops_early_and_stays_stopped(make_dpo, dpo_recipe, tmp_path, capsys):
    recipe = dataclasses.replace(dpo_recipe, steps=6, sample_every=3, max_winner_drift=1e-6)
    unet, task = make_dpo(recipe)
    trained = go(unet, Drifting(**vars(task)), tmp_path)
    assert (trained.step, trained.complete) == (3, True)
    assert "stopped early, winners drift" in capsys.readouterr().err
    unet, task = make_dpo(recipe)
    assert go(unet, Drifting(**vars(task)), tmp_path, resume=True).step == 3


# Recipes


def test_paper_dpo_is_the_papers():
    recipe = paper_dpo()
    assert (recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout) == (16, 32, 0.1)
    assert recipe.target_modules == ("to_q", "to_k", "to_v", "to_out.0")
    assert (recipe.lr, recipe.weight_decay, recipe.adam_eps, recipe.clip_norm) == (1e-4, 1e-4, 1e-3, 1.0)
    assert (recipe.passes, recipe.beta, recipe.loss) == (12, 50, "sigmoid")
    assert (recipe.frames, recipe.height, recipe.width) == (16, 320, 512)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("beta=0", "above 0"),
        ("loss=simpo", "sigmoid, ipo, hinge, sft, kto"),
        ("safeguard=1.5", "0 to 1"),
        ("label_smoothing=0.5", "below 0.5"),
        ("holdout=0.6", "0 to 0.5"),
        ("highest_timestep=0", "above lowest_timestep"),
        ("target_modules=", "a list of text with 1 or more"),
        ("max_winner_drift=-1", "a number above 0, or none"),
        ("sample_every=0", "at least 1 for a run that may stop early"),
        ("accumulation=0", "at least 1"),
    ],
)
def test_recipe_refuses_what_cannot_run(assignment, message):
    with pytest.raises(RecipeError, match=message):
        override(tiny_dpo(), [assignment])


# The command


SMALL = [
    "frames=4",
    "height=32",
    "width=32",
    "batch_size=1",
    "save_every=2",
    "sample_every=0",
    "max_winner_drift=none",
    "precision=fp32",
    "sample_steps=2",
]


@pytest.fixture(scope="module")
def rated_clips(tmp_path_factory) -> Path:
    return write_rated(tmp_path_factory.mktemp("rated") / "horse")


def arguments(family: Path, clips: Path, out: Path, *more: str, settings: tuple[str, ...] = ()) -> list[str]:
    fields = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    return [
        "--model", DEFAULT_MODEL, "--category", "horse", "--clips", str(clips), "--out", str(out),
        "--stage1", str(family / "categories" / "horse.safetensors"),
        "--run", str(out.parent / f"run_{out.stem}"), *fields, *more,
    ]  # fmt: skip


def test_command_trains_a_lora_that_merges(tiny_family, rated_clips, tmp_path, capsys):
    out = tmp_path / "lora.safetensors"
    more = ("--steps", "2")
    settings = ("sample_every=2", "lr=1e-2")
    assert main(arguments(tiny_family, rated_clips, out, *more, settings=settings)) == 0
    printed = capsys.readouterr().out
    assert "layers, the weights of step 2" in printed
    assert "to train on: 3 pairs of 3 samples, 2 steps; held out: 3 pairs of 3 samples\n" in printed
    lora, metadata = load_tensors(out), read_metadata(out)
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in lora)
    assert all("attn1" in name or "attn_temp" in name for name in lora)
    assert (metadata["stage"], metadata["category"], metadata["steps"]) == ("dpo", "horse", "2")
    assert (metadata["lora_rank"], metadata["lora_alpha"]) == ("16", "32.0")
    assert (metadata["pairs"], metadata["held_out_pairs"]) == ("3", "3")
    assert {"base", "stage1", "clips", "ratings", "commit", "recipe", "model"} <= metadata.keys()
    base = VideoUNet.from_pretrained(tiny_family / "video" / "unet").state_dict()
    assert len(merge(base, lora, float(metadata["lora_alpha"]))) == len(lora) // 2
    assert (tmp_path / "run_lora" / PLOT).exists()

    assert main(arguments(tiny_family, rated_clips, out, *more, settings=settings)) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(arguments(tiny_family, rated_clips, out, "--steps", "3", "--resume", settings=settings)) == 0
    assert read_metadata(out)["steps"] == "3"


def test_ratings_without_a_category_are_of_the_one_that_is_trained(tiny_family, tmp_path, capsys):
    clips, out = write_rated(tmp_path / "rated", category=""), tmp_path / "lora.safetensors"
    assert main(arguments(tiny_family, clips, out, "--steps", "1")) == 0
    assert read_metadata(out)["pairs"] == "3"


def test_pairs_judged_by_segments_are_read(family, dpo_recipe, tmp_path):
    clips, names = tmp_path / "rated", [f"{i}.mp4" for i in range(8)]
    clips.mkdir()
    for i, name in enumerate(names):
        write_clip(clips / name, seed=i, frames=4)
    write_clips(clips, [ClipEntry(video=name, caption="a horse runs", category="horse") for name in names])
    for i in range(0, 8, 2):
        sides = {"clip_a": f"{i}.mp4", "clip_b": f"{i + 1}.mp4"}
        hashes = {f"sha256_{side}": hash_file(clips / sides[f"clip_{side}"]) for side in "ab"}
        by = {"frames": 4, "segment_frames": 2, "segments": ["a", "b"], "answer": "tie"}
        append(
            clips / "ratings.jsonl", SegmentComparison(rater="ann", category="horse", **sides, **hashes, **by)
        )
    vae = AutoencoderKL.from_pretrained(family / "first_frame" / "vae")
    rated = load_rated(clips, "horse", vae, dpo_recipe, tmp_path)
    said = (
        "to train on: 3 pairs of 6 samples, 1 steps; held out: 1 pair of 2 samples, by segments of 2 frames"
    )
    assert said_of(rated, 1) == said
    assert rated.segment_frames == 2
    for rows in (rated.train, rated.held_out):
        assert {tuple(label) for label in rows.labels} == {(1, -1)}
    longer = dataclasses.replace(dpo_recipe, frames=3)
    wrong = "judges segments of clips of 4 frames, and the recipe's frames is 3: set it to theirs"
    with pytest.raises(PreferencesError, match=wrong):
        load_rated(clips, "horse", vae, longer, tmp_path)
    append(clips / "ratings.jsonl", Comparison(rater="bob", category="horse", **sides, **hashes, answer="a"))
    with pytest.raises(PreferencesError, match="by segments and, 1 times, whole clips"):
        load_rated(clips, "horse", vae, dpo_recipe, tmp_path)


def test_mistakes_exit_with_2_and_one_line(tiny_family, rated_clips, tmp_path, capsys):
    out = tmp_path / "lora.safetensors"
    rain = str(tiny_family / "categories" / "none.safetensors")
    for wrong, message in {
        ("--set", "beta=much"): "'much'",
        ("--set", "frames=1"): "drop --category and --stage1",
        ("--full", str(tmp_path / "unet")): "training.merge --full",
        ("--category", "rain"): "judges no clip of category 'rain', but of horse",
        ("--stage1", rain): "cannot read",
        ("--clips", str(tmp_path)): "captions.jsonl",
        ("--set", "tie=99"): "make no pair",
    }.items():
        assert main(arguments(tiny_family, rated_clips, out, *wrong)) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_two_processes_equal_one_with_the_same_global_batch(tiny_family, rated_clips, tmp_path):
    """torchrun's two processes with one pair each, and one process that accumulates two pairs."""

    def command(name: str, accumulation: int) -> list[str]:
        settings = ("adam_eps=1e-4", "log_every=1", f"accumulation={accumulation}")
        more, out = ("--steps", "3", "--threads", "1"), tmp_path / f"{name}.safetensors"
        return arguments(tiny_family, rated_clips, out, *more, settings=settings)

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    process = subprocess.Popen(
        [sys.executable, *torchrun, "training.dpo", *command("two", 1)],
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    threads = torch.get_num_threads()
    assert main(command("one", 2)) == 0
    torch.set_num_threads(threads)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    alone, together = (load_tensors(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-7, rtol=1e-5)
    assert all(tensor.any() for tensor in alone.values())
    one, two = (logged(tmp_path / f"run_{name}") for name in ("one", "two"))
    assert one.keys() == two.keys() >= {"train/accuracy", "train/rewards/margins", "train/grad_norm"}
    for name in one.keys() - {"train/seconds"}:  # figures of both processes' pairs, not of the first one's
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name


def logged(run: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [point.value for point in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_waiting_processes_outlast_any_work_of_the_main_one():
    """Inversion of clips takes hours; torch would end those that wait for it after 10 or 30 minutes."""
    program = (
        "from training.motion import start_accelerate, PATIENCE; from training.recipes import MotionRecipe\n"
        "import torch; start_accelerate(MotionRecipe(precision='fp32'))\n"
        "group = torch.distributed.group.WORLD\n"
        "assert group._get_backend(torch.device('cpu')).options._timeout == PATIENCE"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    one |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, env=os.environ | one, check=True)


@pytest.mark.parametrize(
    ("found", "held_out", "says"),
    [
        ({"held_out_accuracy": 0.5}, 40, "0.50 of 40 pairs (0.90 on the pairs it was trained on): nothing"),
        ({"held_out_accuracy": 0.3}, 1, "held-out accuracy 0.30 of 1 pair (0.90 on the pairs it"),
        ({"held_out_accuracy": 0.75}, 4, "so few pairs may do that by chance; rate more clips to know"),
        ({"held_out_accuracy": 0.75}, 40, ": it learnt a preference that holds"),
        ({}, 0, "no pairs were held out, so whether that holds is not known"),
        ({"train_winner_drift": 0.034}, 0, "; winners became worse, too (error +3.4%): lower lr"),
        ({"frame_difference": 2.0, "frame_difference_before": 4.0}, 0, "; samples move 50% as much"),
    ],
)  # fmt: skip
def test_the_verdict_in_words(found, held_out, says):
    plain = {"train_accuracy": 0.9, "train_winner_drift": -0.1}
    assert says in verdict(plain | found, held_out)
    assert ("winners became worse" in verdict(plain | found, held_out)) == ("train_winner_drift" in found)
