"""Named training runs: plain functions that return a full, frozen recipe.

`lamp_sd14()` is the paper's; `tiny_base()` and `tiny_motion()` train the built-in family with the same code.
Change a field with `dataclasses.replace(recipe, lr=1e-4)` or, on the command line, `--set lr=1e-4`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from huvidpo.errors import HuViDPOError

LAMP_TRAINABLE = ("conv1d", "conv_gate", "attn1.to_q", "attn_temp")


class RecipeError(HuViDPOError, ValueError):
    """A recipe field has a value that no run can use."""


@dataclass(frozen=True)
class Recipe:
    """What every run has, whatever it trains. Defaults are stage 1's (LAMP)."""

    steps: int = 25_000
    """Optimiser steps in all."""
    batch_size: int = 1
    """Samples per process and step."""
    lr: float = 3e-5
    """AdamW learning rate after the warm-up."""
    cooldown: float = 0.0
    """Share of the steps, at the end, in which the learning rate falls linearly to a twentieth; 0 keeps it
    constant.
    """
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from 0."""
    weight_decay: float = 1e-2
    """AdamW weight decay."""
    adam_eps: float = 1e-8
    """AdamW epsilon."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"
    """Mixed precision; weights and optimiser stay fp32. fp16 needs a GPU."""
    ema: float | None = None
    """Decay of the moving average of the trained weights; None keeps none. With it, the average is what is
    written.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_every: int = 500
    """Steps between checkpoints."""
    sample_every: int = 500
    """Steps between evaluations and sample clips; 0 makes none."""
    log_every: int = 10
    """Steps between TensorBoard points."""
    seed: int = 0
    """Fixes data order, noise, timesteps and dropout."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "log_every"):
            _require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("warmup_steps", "sample_every", "seed", "weight_decay"):
            _require(getattr(self, name) >= 0, self, name, "0 or more")
        for name in ("lr", "adam_eps", "clip_norm"):
            _require(getattr(self, name) > 0, self, name, "above 0")
        _require(0 <= self.cooldown <= 1, self, "cooldown", "0 to 1")
        _require(self.ema is None or 0 < self.ema < 1, self, "ema", "None or between 0 and 1")
        for name, kind in get_type_hints(type(self)).items():
            if choices := _literals(kind):
                _require(getattr(self, name) in choices, self, name, f"one of {', '.join(choices)}")


@dataclass(frozen=True)
class MotionRecipe(Recipe):
    """Stage 1: motion from clips (METHOD: LAMP's few-shot tuning)."""

    trainable: tuple[str, ...] = LAMP_TRAINABLE
    """Parts of tensor names that train; ("all",) trains the whole network, for pre-training a base."""
    noising: Literal["forward", "ddim_inversion"] = "forward"
    """Random noise, or the noise DDIM inversion finds in the clip (`training.inversion`)."""
    inversion_steps: int = 50
    """Noise levels of `ddim_inversion`: network calls per clip, made once."""
    frames: int = 16
    """Frames per clip, the first one clean."""
    height: int = 320
    """Pixels."""
    width: int = 512
    """Pixels."""
    fps: float = 8.0
    """Frames per second at which clips are read; a shorter clip is spread over its whole length."""
    flip: bool = True
    """Also train on every clip mirrored left to right."""
    text_drop: float = 0.0
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    holdout: int = 0
    """Clips kept out of training and evaluated instead; 0 evaluates on the first training clips."""
    sample_steps: int | None = None
    """Denoising steps of the sample clips; None takes the model's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.trainable), self, "trainable", "name parts, or ('all',)")
        _require(self.frames >= 2, self, "frames", "at least 2: the first frame is given, not learnt")
        _require(self.inversion_steps >= 1, self, "inversion_steps", "at least 1")
        _require(self.height >= 8 and self.width >= 8, self, "height", "at least 8, like width")
        _require(self.fps > 0, self, "fps", "above 0")
        _require(0 <= self.text_drop < 1, self, "text_drop", "at least 0 and below 1")
        _require(self.holdout >= 0, self, "holdout", "0 or more")


def lamp_sd14() -> MotionRecipe:
    """LAMP's own settings at Stable Diffusion 1.4 size: 8-16 clips, 320x512, one 24 GB GPU."""
    return MotionRecipe(gradient_checkpointing=True)


def tiny_base() -> MotionRecipe:
    """Pre-training of the tiny family's video base: all weights, thousands of clips given as latents."""
    return MotionRecipe(
        trainable=("all",), steps=3_050, batch_size=4, lr=6e-4, cooldown=0.25, warmup_steps=100,
        precision="bf16", ema=0.998, height=64, width=64, flip=False, text_drop=0.1, holdout=32,
        save_every=100, sample_every=1_300,
    )  # fmt: skip


def tiny_motion() -> MotionRecipe:
    """Few-shot motion of one category of the tiny family, on a CPU. Its world moves to the right: no flip."""
    return MotionRecipe(
        steps=300, batch_size=4, lr=3e-4, warmup_steps=20, cooldown=0.25, precision="bf16", ema=0.99,
        height=64, width=64, flip=False, text_drop=0.1, inversion_steps=20, save_every=100, sample_every=150,
    )  # fmt: skip


MOTION_RECIPES = {recipe.__name__: recipe for recipe in (lamp_sd14, tiny_base, tiny_motion)}


def override(recipe: MotionRecipe, assignments: list[str]) -> MotionRecipe:
    """A copy of `recipe` with fields set from `NAME=VALUE` texts; tuples are comma-separated, `none` is None.

    Raises RecipeError on an unknown name or a value that does not fit its field.
    """
    kinds = get_type_hints(type(recipe))
    changes: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or name not in kinds:
            raise RecipeError(f"--set {text!r}: want NAME=VALUE with NAME one of {', '.join(sorted(kinds))}")
        try:
            changes[name] = _parse(value, kinds[name])
        except ValueError as error:
            raise RecipeError(f"--set {text!r}: {value!r} does not fit {kinds[name]}") from error
    return dataclasses.replace(recipe, **changes)


def _parse(text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if kind in (int, float, str):
        return kind(text)
    if kind == tuple[str, ...]:
        return tuple(part for part in text.split(",") if part)
    if _literals(kind):
        return text
    if type(None) in get_args(kind):
        return None if text.lower() == "none" else _parse(text, get_args(kind)[0])
    raise ValueError(text)


def _literals(kind: Any) -> tuple[str, ...]:
    return tuple(choice for choice in get_args(kind) if isinstance(choice, str))


def _require(fine: bool, recipe: Recipe, name: str, allowed: str) -> None:
    if not fine:
        raise RecipeError(f"{name} is {getattr(recipe, name)!r}; allowed: {allowed}")
