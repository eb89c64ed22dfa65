"""Named training runs: plain functions that return a full, frozen recipe.

`lamp_sd14()` and `paper_dpo()` are the papers'; the `tiny_*()` train the built-in family with the same code.
Change a field with `dataclasses.replace(recipe, lr=1e-4)` or, on the command line, `--set lr=1e-4`.
"""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
from pydantic.dataclasses import dataclass

from huvidpo.catalog import Model
from huvidpo.checks import STRICT, Number, raises
from huvidpo.errors import HuViDPOError, InvalidRequest
from huvidpo.text import read_text

LAMP_TRAINABLE = ("conv1d", "conv_gate", "attn1.to_q", "attn_temp")
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # of an attention


Stage = Literal["motion", "dpo", "dpo_image", "distill"]  # a model of the catalog has a recipe for each

Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[Number, Gt(0)]
NotNegative = Annotated[Number, Ge(0)]
Share = Annotated[Number, Interval(ge=0, le=1)]
ShareBelow = Annotated[Number, Interval(ge=0, lt=1)]
Names = Annotated[tuple[str, ...], MinLen(1)]


class RecipeError(HuViDPOError, ValueError):
    """A recipe field has a value that no run can use, or no recipe is named."""


@raises(RecipeError)
@dataclass(frozen=True, config=STRICT)
class Recipe:
    """What every run has, whatever it trains. Defaults are stage 1's (LAMP)."""

    steps: Count = 25_000
    """Optimiser steps in all."""
    batch_size: Count = 1
    """Samples per process and step."""
    lr: Positive = 3e-5
    """AdamW learning rate after the warm-up."""
    cooldown: Share = 0.0
    """Share of the steps, at the end, in which the learning rate falls linearly to a twentieth; 0 keeps it
    constant.
    """
    warmup_steps: Whole = 0
    """Steps in which the learning rate rises linearly from 0."""
    weight_decay: NotNegative = 1e-2
    """AdamW weight decay."""
    adam_eps: Positive = 1e-8
    """AdamW epsilon."""
    clip_norm: Positive = 1.0
    """Largest global gradient norm."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"
    """Mixed precision; weights and optimiser stay fp32. fp16 needs a GPU."""
    ema: Annotated[Number, Gt(0), Lt(1)] | None = None
    """Decay of the moving average of the trained weights; None keeps none. With it, the average is what is
    written.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_every: Count = 500
    """Steps between checkpoints."""
    sample_every: Whole = 500
    """Steps between evaluations and sample clips; 0 makes none."""
    log_every: Count = 10
    """Steps between TensorBoard points."""
    seed: Whole = 0
    """Fixes data order, noise, timesteps and dropout."""


@raises(RecipeError)
@dataclass(frozen=True, config=STRICT)
class ClipRecipe(Recipe):
    """What every run on clips has: how they are read, and how samples are made."""

    frames: Count = 16
    """Frames per clip, the first one clean."""
    height: Annotated[int, Ge(8)] = 320
    """Pixels."""
    width: Annotated[int, Ge(8)] = 512
    """Pixels."""
    fps: Positive = 8.0
    """Frames per second at which clips are read; a shorter clip is spread over its whole length."""
    sample_steps: Count | None = None
    """Denoising steps of the sample clips; None takes the model's own."""


@raises(RecipeError)
@dataclass(frozen=True, config=STRICT)
class MotionRecipe(ClipRecipe):
    """Stage 1: motion from clips (METHOD: LAMP's few-shot tuning)."""

    frames: Annotated[int, Ge(2)] = 16
    """Frames per clip, the first one clean: it is given, not learnt."""
    trainable: Names = LAMP_TRAINABLE
    """Parts of tensor names that train; ("all",) trains the whole network, for pre-training a base."""
    noising: Literal["forward", "ddim_inversion"] = "forward"
    """Random noise, or the noise DDIM inversion finds in the clip (`training.inversion`)."""
    inversion_steps: Count = 50
    """Noise levels of `ddim_inversion`: network calls per clip, made once."""
    timestep_shift: Positive = 1.0
    """s: timesteps are drawn at s u / (1 + (s - 1) u) of the schedule, u uniform (arXiv 2403.03206, Eq. 23).
    1 is uniform, as LAMP draws them; above 1 more of a run sees strong noise, which decides what moves where.
    """
    flip: bool = True
    """Also train on every clip mirrored left to right."""
    text_drop: ShareBelow = 0.0
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    holdout: Whole = 0
    """Clips kept out of training and evaluated instead; 0 evaluates on the first training clips."""

    def __post_init__(self) -> None:
        plain = self.noising == "forward" or self.timestep_shift == 1
        _require(plain, self, "timestep_shift", "1 with ddim_inversion, which has levels of its own")


@raises(RecipeError)
@dataclass(frozen=True, config=STRICT)
class AdapterRecipe(Recipe):
    """What every run has that trains a LoRA."""

    lora_rank: Count = 16
    """Rank of every adapter."""
    lora_alpha: Positive = 32.0
    """An adapter adds alpha / rank * B A to its weight."""
    lora_dropout: ShareBelow = 0.0
    """Share of an adapter's inputs that a training step leaves out."""
    target_modules: Names = PROJECTIONS
    """Ends of the names of the linear layers that get an adapter: all attentions."""


@raises(RecipeError)
@dataclass(frozen=True, config=STRICT)
class DPORecipe(ClipRecipe, AdapterRecipe):
    """Stage 2: preferences as a LoRA (METHOD section 5; the defaults are the paper's unless noted).

    `frames` 1 means pictures: the first-frame network trains.
    """

    passes: Whole = 12
    """Passes over all training pairs (clips, for kto); they make the number of steps. 0: `steps` says it."""
    accumulation: Count = 1
    """Batches whose gradients make one step: less memory than as large a batch. Not the paper's."""
    lr: Positive = 1e-4
    """AdamW learning rate after the warm-up."""
    weight_decay: NotNegative = 1e-4
    """AdamW weight decay."""
    adam_eps: Positive = 1e-3
    """AdamW epsilon."""
    save_every: Count = 100
    """Steps between checkpoints."""
    sample_every: Whole = 50
    """Steps between evaluations (`training.monitors`), sample clips included; 0 makes none."""
    lora_dropout: ShareBelow = 0.1
    """Share of an adapter's inputs that a training step leaves out."""
    loss: Literal["sigmoid", "ipo", "hinge", "sft", "kto"] = "sigmoid"
    """`training.losses.preference_loss`; sft learns the winners alone; kto learns from single clips, better
    or worse than the mean.
    """
    beta: Positive = 50.0
    """How strongly the reference holds, the loss being -log sigmoid(beta m). 50: the paper's reference code;
    Diffusion-DPO has 5000 for pictures (arXiv 2311.12908).
    """
    label_smoothing: Annotated[Number, Ge(0), Lt(0.5)] = 0.0
    """Chance that a preference is the wrong way round; sigmoid loss only. Not the paper's, like all below."""
    anchor: NotNegative = 0.0
    """How much a rise of the winner's error counts against its pair: see `training.losses.dpo_loss`."""
    winner_weight: NotNegative = 0.0
    """What of the winner's error is added to the loss: Reg-DPO's r (arXiv 2511.01450: 50 at beta 2000)."""
    safeguard: Annotated[Number, Ge(0), Le(1)] | None = None
    """The loser's gradient is held back until, to first order, the winner's error cannot rise: mu of
    Diffusion-SDPO (arXiv 2511.03317: 0.9 for Stable Diffusion 1.5, 0.6 for SDXL); None holds nothing back.
    """
    gap_weights: bool = False
    """Pairs (clips, for kto) count by the gap between their ratings."""
    lowest_timestep: ShareBelow = 0.0
    """Share of the noise schedule, 0 clean to 1 pure noise: timesteps are drawn from here ..."""
    highest_timestep: Share = 1.0
    """... to here."""
    prompt: Literal["own", "category"] = "own"
    """What each clip of a pair is shown with: its caption, or for both the category's motion prompt."""
    one_forward: bool = True
    """Winner and loser go through the network together; False takes a little less memory, and longer."""
    tie: NotNegative = 0.2
    """Clips whose strengths (log-odds) differ by less make no pair."""
    holdout: Annotated[Number, Ge(0), Le(0.5)] = 0.25
    """Share of the clips kept out of training, for the monitors and early stopping; 0 keeps none."""
    same_prompt: bool = False
    """Pair only clips of one prompt."""
    patience: Whole = 0
    """Evaluations without a better held-out accuracy after which a run stops, and its best weights
    are written; 0 never stops and writes the last.
    """
    max_winner_drift: Positive | None = None
    """Rise of the winners' error, as a share of the reference's, at which a run stops; None never stops."""

    def __post_init__(self) -> None:
        smooth = self.loss == "sigmoid" or self.label_smoothing == 0
        _require(smooth, self, "label_smoothing", f"0 with the {self.loss} loss")
        if self.loss in ("sft", "kto"):
            for name, unused in (("anchor", 0.0), ("winner_weight", 0.0), ("safeguard", None)):
                _require(getattr(self, name) == unused, self, name, f"{unused} with the {self.loss} loss")
        above = self.lowest_timestep < self.highest_timestep
        _require(above, self, "highest_timestep", "above lowest_timestep, at most 1")
        _require(self.patience == 0 or self.holdout > 0, self, "patience", "0 when no clips are held out")
        blind = self.sample_every == 0 and (self.patience > 0 or self.max_winner_drift is not None)
        _require(not blind, self, "sample_every", "at least 1 for a run that may stop early")


@raises(RecipeError)
@dataclass(frozen=True, config=STRICT)
class DistillRecipe(ClipRecipe, AdapterRecipe):
    """Fewer steps: consistency distillation as a LoRA (LCM, arXiv 2310.04378; LCM-LoRA, 2311.05556)."""

    steps: Count = 1_000
    """Optimiser steps in all."""
    frames: Annotated[int, Ge(2)] = 16
    """Frames per clip, the first one clean: it is given, not learnt."""
    lr: Positive = 1e-4
    """AdamW learning rate after the warm-up."""
    ema: Annotated[Number, Gt(0), Lt(1)] = 0.95
    """Decay of the moving average: the network that gives the targets, and what is written."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""
    flip: bool = True
    """Also train on every clip mirrored left to right."""
    holdout: Whole = 0
    """Clips of each category kept out of training and evaluated instead; 0 evaluates on the first ones."""
    skip: Count = 20
    """Timesteps of one step of the teacher, which is DDIM's: k of the paper."""
    lowest_guidance: Annotated[Number, Ge(1)] = 4.0
    """Guidance that the teacher's steps fold in is drawn from here, 1 being none (1 + w of the paper) ..."""
    highest_guidance: Annotated[Number, Ge(1)] = 16.0
    """... to here. Clips are then made with guidance 1."""
    huber: Positive = 1e-3
    """c of the loss sqrt(d^2 + c^2) - c: where it turns from a square into a distance."""
    sample_steps: Count = 4
    """Denoising steps of the sample clips: those the network shall do with."""
    teacher_steps: Count = 50
    """Denoising steps of the clips they are compared with."""

    def __post_init__(self) -> None:
        above = self.lowest_guidance <= self.highest_guidance
        _require(above, self, "highest_guidance", "lowest_guidance or above")


def lamp_sd14() -> MotionRecipe:
    """LAMP's own settings at Stable Diffusion 1.4 size: 8-16 clips, 320x512, one 24 GB GPU."""
    return MotionRecipe(gradient_checkpointing=True)


def tiny_base() -> MotionRecipe:
    """Pre-training of the tiny family's video base: all weights, thousands of clips given as latents."""
    return MotionRecipe(
        trainable=("all",), steps=6_000, batch_size=4, lr=6e-4, cooldown=0.25, warmup_steps=100,
        precision="bf16", ema=0.998, height=64, width=64, flip=False, text_drop=0.1, holdout=32,
        save_every=100, sample_every=1_300,
    )  # fmt: skip


def tiny_motion() -> MotionRecipe:
    """Few-shot motion of one category of the tiny family, on a CPU. Its world moves to the right: no flip."""
    return MotionRecipe(
        steps=200, batch_size=4, lr=3e-4, warmup_steps=20, cooldown=0.25, precision="bf16", ema=0.99,
        height=64, width=64, flip=False, text_drop=0.1, inversion_steps=20, save_every=100, sample_every=150,
    )  # fmt: skip


MOTION_RECIPES = {recipe.__name__: recipe for recipe in (lamp_sd14, tiny_base, tiny_motion)}


def paper_dpo() -> DPORecipe:
    """HuViDPO's settings: 8-16 rated clips of a category, 320x512, both clips of a pair shown one prompt."""
    return DPORecipe(gradient_checkpointing=True, prompt="category")


def tiny_dpo() -> DPORecipe:
    """Preferences of one category of the tiny family, on a CPU: an adapter of 1 MB for each.

    By measurement (docs/log.md). beta 50 at lr 1e-3: after 20 steps the errors of winners AND losers were 17
    and 20 % up. beta 5000 with an anchor of 1 at lr 3e-4: held-out winners 2 to 5 % up, most where the noise
    is strong. Hence the stronger anchor, the lower rate, and the less noisy half of the schedule alone.
    """
    return DPORecipe(
        steps=80, passes=0, batch_size=2, lr=2e-4, adam_eps=1e-8, warmup_steps=10, precision="bf16",
        target_modules=parts_of("attn1", "attn_temp"), height=64, width=64, beta=5000, anchor=10,
        highest_timestep=0.5, same_prompt=True, max_winner_drift=0.1, save_every=40, sample_every=40,
    )  # fmt: skip


def paper_dpo_image() -> DPORecipe:
    """Diffusion-DPO's beta for SDXL (arXiv 2311.12908) on a LoRA; 1024 x 1024 pictures."""
    return DPORecipe(beta=5000, frames=1, height=1024, width=1024, gradient_checkpointing=True)


def tiny_dpo_image() -> DPORecipe:
    """Preferences of the tiny family's first-frame network, on a CPU."""
    return DPORecipe(
        steps=200, passes=0, batch_size=8, lr=3e-4, adam_eps=1e-8, warmup_steps=10, precision="bf16",
        frames=1, height=64, width=64, same_prompt=True, beta=5000, anchor=1, max_winner_drift=0.1,
        save_every=100, sample_every=50,
    )  # fmt: skip


def parts_of(*attentions: str) -> tuple[str, ...]:
    """The projections of some attentions only, for `target_modules`."""
    return tuple(f"{attention}.{part}" for attention in attentions for part in PROJECTIONS)


DPO_RECIPES = {recipe.__name__: recipe for recipe in (paper_dpo, paper_dpo_image, tiny_dpo, tiny_dpo_image)}


def lcm_sd14() -> DistillRecipe:
    """LCM-LoRA's settings at Stable Diffusion 1.4 size, over the motion of every category."""
    return DistillRecipe(lora_rank=64, lora_alpha=64)


def tiny_lcm() -> DistillRecipe:
    """Fewer steps of the tiny family, on a CPU. It samples without guidance, so none is folded in."""
    return DistillRecipe(
        batch_size=2, lr=2e-4, warmup_steps=20, cooldown=0.25, precision="bf16", height=64, width=64,
        lora_rank=64, lora_alpha=64, flip=False, holdout=4, lowest_guidance=1, highest_guidance=1,
        gradient_checkpointing=False, save_every=100, sample_every=250, sample_steps=2, teacher_steps=20,
    )  # fmt: skip


DISTILL_RECIPES = {recipe.__name__: recipe for recipe in (lcm_sd14, tiny_lcm)}
RECIPES: dict[Stage, dict[str, Any]] = {
    "motion": MOTION_RECIPES, "dpo": DPO_RECIPES, "dpo_image": DPO_RECIPES, "distill": DISTILL_RECIPES,
}  # fmt: skip


def recipe_of(model: Model, stage: Stage, name: str | None = None) -> Any:
    """The recipe `name`, else the one that the model's catalog entry gives the stage.

    Raises RecipeError when the entry gives none, or names one that is not there.
    """
    known = RECIPES[stage]
    name = name or getattr(model.recipes, stage)
    if name not in known:
        raise RecipeError(
            f"recipe: model {model.name!r} names {name!r} for {stage}, known: {', '.join(sorted(known))}; "
            f"choose one with --recipe, or write recipes = {{ {stage} = ... }} into its catalog entry"
        )
    return known[name]()


_Named = TypeVar("_Named", bound=Recipe)


def override(recipe: _Named, assignments: list[str]) -> _Named:
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


def read_settings(file: Path) -> list[str]:
    """`NAME=VALUE` texts, as `override` takes them, of a TOML file: fields of a recipe, `"none"` for None.

    Raises RecipeError for a file that cannot be read as that.
    """
    try:
        fields = tomllib.loads(read_text(file))
    except (OSError, InvalidRequest, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"--settings {file}: cannot be read as TOML: {error}") from error
    return [f"{name}={_to_text(value)}" for name, value in fields.items()]


def _to_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_toml(recipe: Recipe) -> str:
    """Every field of a recipe, as `read_settings` reads it: a run can be made again from its file."""
    values = {name: "none" if v is None else v for name, v in dataclasses.asdict(recipe).items()}
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def _parse(text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if kind in (int, str):
        return kind(text)
    if kind == Number:
        return float(text)
    if kind == tuple[str, ...]:
        return tuple(part for part in text.split(",") if part)
    if _literals(kind):
        return text
    if type(None) in get_args(kind):
        kinds = [one for one in get_args(kind) if one is not type(None)]
        return None if text.lower() == "none" else _parse(text, int if kinds == [int] else Number)
    raise ValueError(text)


def _literals(kind: Any) -> tuple[str, ...]:
    return tuple(choice for choice in get_args(kind) if isinstance(choice, str))


def _require(fine: bool, recipe: Recipe, name: str, allowed: str) -> None:
    if not fine:
        raise RecipeError(f"{name} is {getattr(recipe, name)!r}; allowed: {allowed}")
