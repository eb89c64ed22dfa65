import dataclasses
import itertools
import os
import signal

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from training.loop import CHECKPOINT, MOST_SKIPS, TrainingError, learning_rate, select_trainable, train
from training.motion import MotionTask
from training.recipes import LAMP_TRAINABLE, MotionRecipe

IDENTITY = {"base": "random", "clips": "made up"}


def go(unet, task, folder, resume=False, accelerator=None, **identity):
    precision = "no" if task.recipe.precision == "fp32" else task.recipe.precision
    accelerator = accelerator or Accelerator(mixed_precision=precision, cpu=True)
    return train(
        unet, task, task.recipe, folder, accelerator=accelerator, identity=IDENTITY | identity, resume=resume
    )


def weights_of(unet):
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_trainable_weight_moves_and_no_other(make_task, recipe, tmp_path, precision):
    unet, task = make_task(dataclasses.replace(recipe, precision=precision))
    trainable = {name for name, p in unet.named_parameters() if p.requires_grad}
    before = weights_of(unet)
    trained = go(unet, task, tmp_path)
    moved = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == trainable == set(trained.weights)
    assert trained.step == 4
    assert trained.seconds_per_step > 0


def test_trainable_parts_are_lamps(make_task, recipe):
    unet, _ = make_task(recipe)
    names = [name for name, p in unet.named_parameters() if p.requires_grad]
    assert all(any(part in name for part in LAMP_TRAINABLE) for name in names)
    assert not any("norm" in name for name in names)


@pytest.mark.parametrize("trainable", [LAMP_TRAINABLE, ("all",)])
def test_no_norm_trains_unless_its_input_needs_a_gradient(make_task, recipe, trainable):
    """Else torch 2.13 on a CPU crashes in GroupNorm's backward: see select_trainable."""
    unet, task = make_task(dataclasses.replace(recipe, trainable=trainable))
    seen = []

    def note(module, inputs):
        seen.append((module.weight.requires_grad, inputs[0].requires_grad))

    norms = [m for m in unet.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    for norm in norms:
        norm.register_forward_pre_hook(note)
    task.loss(unet, 0, torch.Generator().manual_seed(0))
    assert len(seen) == len(norms)
    assert all(needs_gradient for trains, needs_gradient in seen if trains)
    assert any(trains for trains, _ in seen) == (trainable == ("all",))


def test_select_trainable_refuses_norms_and_parts_that_match_nothing(make_task, recipe):
    unet, _ = make_task(recipe)
    with pytest.raises(TrainingError, match="normalisations stay frozen"):
        select_trainable(unet, ("conv1d", "norm1"))
    with pytest.raises(TrainingError, match="'lora' matches no parameter"):
        select_trainable(unet, ("lora",))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_task, recipe, tmp_path, ema):
    recipe = dataclasses.replace(recipe, ema=ema, steps=5, warmup_steps=2)
    whole = go(*make_task(recipe), tmp_path / "whole")

    short = dataclasses.replace(recipe, steps=2, save_every=1)
    assert go(*make_task(short), tmp_path / "halves").step == 2
    resumed = go(*make_task(recipe), tmp_path / "halves", resume=True)
    assert resumed.step == whole.step == 5
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name
    one, two = (load_file(tmp_path / run / CHECKPOINT) for run in ("whole", "halves"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_average_is_returned_and_differs_from_the_weights(make_task, recipe, tmp_path):
    unet, task = make_task(dataclasses.replace(recipe, ema=0.9))
    trained = go(unet, task, tmp_path)
    live = unet.state_dict()
    assert all(not torch.equal(tensor, live[name]) for name, tensor in trained.weights.items())


def test_sigterm_saves_and_the_run_goes_on_from_there(make_task, recipe, tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipe, save_every=100)
    whole = go(*make_task(recipe), tmp_path / "whole")
    unet, task = make_task(recipe)
    plain = MotionTask.loss

    def loss(self, model, draw, generator):
        if draw == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, model, draw, generator)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(MotionTask, "loss", loss)
    assert go(unet, task, tmp_path / "stopped").step == 2  # the step under way is finished
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = go(*make_task(recipe), tmp_path / "stopped", resume=True)
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in whole.weights.items())


def test_sigterm_before_the_first_step_saves_what_has_no_moments_yet(
    make_task, recipe, tmp_path, monkeypatch
):
    recipe = dataclasses.replace(recipe, ema=0.9, sample_every=4)
    whole = go(*make_task(recipe), tmp_path / "whole")
    plain = MotionTask.evaluate

    def evaluate(self, model):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, model)

    monkeypatch.setattr(MotionTask, "evaluate", evaluate)
    stopped = go(*make_task(recipe), tmp_path / "stopped")
    assert (stopped.step, stopped.complete) == (0, False)
    assert (tmp_path / "stopped" / CHECKPOINT).exists()
    monkeypatch.undo()
    resumed = go(*make_task(recipe), tmp_path / "stopped", resume=True)
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in whole.weights.items())


def test_loss_that_is_not_finite_stops_before_the_weights_move(make_task, recipe, tmp_path):
    unet, task = make_task(recipe)
    task.clips.latents[1] = float("inf")
    bad = next(draw for draw in range(9) if 1 in task._rows(draw))
    good = go(*make_task(dataclasses.replace(recipe, steps=bad)), tmp_path / "good").weights if bad else None
    with pytest.raises(
        TrainingError, match=rf"loss is (nan|inf) at step {bad}, batch .*row 1 \('white horse"
    ):
        go(unet, task, tmp_path / "bad")
    if good:
        assert all(
            torch.equal(tensor, good[name]) for name, tensor in unet.named_parameters() if name in good
        )


def test_gradient_that_is_not_finite_stops_before_the_weights_move(make_task, recipe, tmp_path):
    unet, task = make_task(recipe)
    before = weights_of(unet)
    unet.conv_in.conv1d.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(TrainingError, match="gradient norm is nan at step 0"):
        go(unet, task, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def scaling() -> Accelerator:
    """As for fp16, which accelerate allows on a GPU only: with a loss scaler, here in float32."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    accelerator.autocast_handler = AutocastKwargs(enabled=False)
    return accelerator


def overflow(unet, times: int) -> None:
    """The gradients of the first `times` backward passes overflow."""
    factors = itertools.chain([float("inf")] * times, itertools.repeat(1.0))
    unet.conv_in.conv1d.weight.register_hook(lambda grad: grad * next(factors))


def test_overflow_of_fp16_is_tried_again_and_advances_nothing(make_task, recipe, tmp_path):
    """A power of two as the loss scale changes no digit: the runs differ in nothing else."""
    recipe = dataclasses.replace(recipe, ema=0.9, warmup_steps=2)
    plain = go(*make_task(recipe), tmp_path / "plain")
    unet, task = make_task(recipe)
    overflow(unet, 3)
    accelerator = scaling()
    trained = go(unet, task, tmp_path / "overflows", accelerator=accelerator)
    assert trained.step == 4
    assert accelerator.scaler.get_scale() == 2.0**13
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(trained.weights[name], tensor, atol=1e-6, rtol=1e-5)
    events = EventAccumulator(str(tmp_path / "overflows" / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/skipped")] == [3, 0, 0, 0]


def test_overflow_without_end_stops_the_run_and_names_the_batch(make_task, recipe, tmp_path):
    unet, task = make_task(recipe)
    before = weights_of(unet)
    overflow(unet, 100)
    with pytest.raises(TrainingError, match=rf"tried {MOST_SKIPS} times .* at step 0, batch row \d \('"):
        go(unet, task, tmp_path, accelerator=scaling())
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_a_weight_that_never_had_a_gradient_is_saved_and_resumed(make_task, recipe, tmp_path):
    """AdamW has no moments of it."""

    def task_with_an_idle_weight():
        unet, task = make_task(dataclasses.replace(recipe, steps=2))
        unet.idle = nn.Parameter(torch.ones(2))
        return unet, task

    go(*task_with_an_idle_weight(), tmp_path)
    assert "exp_avg/idle" not in load_file(tmp_path / CHECKPOINT)
    resumed = go(*task_with_an_idle_weight(), tmp_path, resume=True)
    assert torch.equal(resumed.weights["idle"], torch.ones(2))


def test_a_run_is_not_overwritten_or_mixed_with_another(make_task, recipe, tmp_path):
    recipe = dataclasses.replace(recipe, steps=1)
    go(*make_task(recipe), tmp_path)
    with pytest.raises(TrainingError, match="holds a run already: add --resume"):
        go(*make_task(recipe), tmp_path)
    with pytest.raises(TrainingError, match=r"lr: 0\.01 -> 0\.1"):
        go(*make_task(dataclasses.replace(recipe, lr=0.1)), tmp_path, resume=True)
    with pytest.raises(TrainingError, match="clips: made up -> others"):
        go(*make_task(recipe), tmp_path, resume=True, clips="others")
    assert go(*make_task(recipe), tmp_path, resume=True).step == 1  # finished: nothing to do


def test_samples_evaluations_and_tensorboard(make_task, recipe, tmp_path):
    recipe = dataclasses.replace(recipe, sample_every=2, ema=0.9)
    silent = go(*make_task(dataclasses.replace(recipe, sample_every=0)), tmp_path / "silent")
    looked_at = go(*make_task(recipe), tmp_path / "run")
    clips = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert clips == [f"step_00000{step}.{kind}" for step in (0, 2, 4) for kind in ("mp4", "png")]
    assert any("tfevents" in path.name for path in (tmp_path / "run" / "tensorboard").iterdir())
    for name, tensor in silent.weights.items():  # looking changes nothing
        assert torch.equal(tensor, looked_at.weights[name])


def test_gradient_checkpointing_changes_no_gradient(make_task, recipe):
    gradients = []
    for checkpointing in (False, True):
        unet, task = make_task(recipe)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        task.loss(unet, 0, torch.Generator().manual_seed(0))[0].backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


def test_learning_rate_warms_up_and_cools_down():
    recipe = MotionRecipe(steps=100, lr=1.0, warmup_steps=3, cooldown=0.2)
    rates = [learning_rate(recipe, step) for step in (0, 1, 2, 3, 79, 90, 100)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.05 + 0.95 / 2, 0.05])
    assert learning_rate(MotionRecipe(), 24_999) == 3e-5
    by_the_clock = [learning_rate(recipe, 7, done) for done in (0.5, 0.9, 1.0)]
    assert by_the_clock == pytest.approx([1.0, 0.05 + 0.95 / 2, 0.05])
