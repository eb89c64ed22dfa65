import dataclasses
import json

import pytest
import torch

from huvidpo.catalog import DEFAULT_MODEL, Recipes, load_catalog
from huvidpo.unet import VideoUNet
from training.loop import select_trainable
from training.recipes import (
    DPO_RECIPES,
    MOTION_RECIPES,
    RecipeError,
    lamp_sd14,
    override,
    read_settings,
    recipe_of,
    tiny_base,
    tiny_dpo,
    tiny_motion,
    to_toml,
)


@pytest.mark.parametrize("make", MOTION_RECIPES.values())
def test_every_named_recipe_is_valid(make):
    assert make().steps > 0


def test_lamp_sd14_is_the_papers():
    recipe = lamp_sd14()
    assert (recipe.lr, recipe.weight_decay, recipe.clip_norm, recipe.batch_size) == (3e-5, 1e-2, 1.0, 1)
    assert (recipe.steps, recipe.frames, recipe.height, recipe.width) == (25_000, 16, 320, 512)
    assert recipe.precision == "fp16"
    assert recipe.gradient_checkpointing
    assert recipe.flip


def test_trainable_parameters_at_sd14_size():
    with torch.device("meta"):
        unet = VideoUNet()
    select_trainable(unet, lamp_sd14().trainable)
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 253_935_834  # METHOD section 4


def test_override_reads_every_kind_of_field():
    recipe = override(
        tiny_motion(),
        [
            "lr=1e-4",
            "steps=7",
            "flip=false",
            "ema=none",
            "trainable=conv1d,attn_temp",
            "noising=ddim_inversion",
        ],
    )
    assert (recipe.lr, recipe.steps, recipe.flip, recipe.ema) == (1e-4, 7, False, None)
    assert recipe.trainable == ("conv1d", "attn_temp")
    assert recipe.noising == "ddim_inversion"
    assert override(recipe, ["ema=0.9", "sample_steps=5"]).sample_steps == 5


def test_a_model_gets_the_recipes_of_its_entry():
    default = load_catalog().model(DEFAULT_MODEL)
    other = dataclasses.replace(default, name="other", recipes=Recipes(motion="tiny_base", dpo="none_such"))
    assert recipe_of(default, "motion") == tiny_motion()
    assert recipe_of(other, "motion") == tiny_base()
    assert recipe_of(other, "dpo", "tiny_dpo").steps == 80
    for stage, named in {"dpo": "'none_such'", "dpo_image": "None"}.items():
        with pytest.raises(RecipeError, match=f"'other' names {named} for {stage}, known: paper_dpo"):
            recipe_of(other, stage)


def test_a_recipe_is_written_as_it_was_given():
    """A run is resumed only with the recipe in its file: 5000 must not become 5000.0."""
    assert '"beta": 5000,' in json.dumps(dataclasses.asdict(tiny_dpo()))


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), "1e-4", None])
def test_only_finite_numbers_are_numbers(value):
    with pytest.raises(RecipeError, match=r"^lr: got .*, expected a number above 0$"):
        dataclasses.replace(tiny_motion(), lr=value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("lr", "NAME=VALUE"),
        ("speed=1", "one of"),
        ("steps=many", "'many'"),
        ("steps=0", "at least 1"),
        ("flip=maybe", "'maybe'"),
        ("precision=int8", "fp32, bf16, fp16"),
        ("noising=pink", "forward, ddim_inversion"),
        ("frames=1", "at least 2"),
        ("text_drop=1", "below 1"),
        ("ema=2", "above 0 and below 1, or none"),
        ("cooldown=3", "0 to 1"),
        ("trainable=", "a list of text with 1 or more"),
        ("timestep_shift=0", "above 0"),
    ],
)
def test_override_refuses_what_cannot_run(assignment, message):
    with pytest.raises(RecipeError, match=message):
        override(tiny_base(), [assignment])


def test_inverted_noise_has_levels_of_its_own():
    with pytest.raises(RecipeError, match=r"timestep_shift is 4\.0; allowed: 1 with ddim_inversion"):
        override(tiny_motion(), ["noising=ddim_inversion", "timestep_shift=4"])


@pytest.mark.parametrize("recipe", [*MOTION_RECIPES.values(), *DPO_RECIPES.values()])
def test_a_recipes_file_makes_it_again(tmp_path, recipe):
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml(recipe()))
    changed = dataclasses.replace(recipe(), seed=7, lr=1.0)
    assert override(changed, read_settings(file)) == recipe()


@pytest.mark.parametrize("text", ["steps = ", "steps 3", "\x00"])
def test_a_settings_file_that_is_none_is_named(tmp_path, text):
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"--settings .*recipe.toml: cannot be read as TOML"):
        read_settings(file)
