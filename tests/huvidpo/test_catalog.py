import dataclasses
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huvidpo.catalog import DEFAULT_MODEL, PROJECT_ROOT, Component, Recipes, Style, load_catalog
from huvidpo.config import MAX_SEED, ClipRequest, SamplingOptions
from huvidpo.errors import CatalogError, InvalidRequest

CATEGORIES = ["waterfall", "smile", "fireworks", "horse", "guitar", "birds", "helicopter", "rain"]
STYLES = ["realistic", "pixel-art", "claymation", "cartoon"]
PINNED = {
    "stabilityai/stable-diffusion-xl-base-1.0": "462165984030d82259a11f4367a4eed129e94a7b",
    "CompVis/stable-diffusion-v1-4": "133a221b8aa7292a167afc5127cb63fb5005638b",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
}


OF_FIRST_FRAMES = ("name", "description", "recipes", "defaults", "gpu_gib")  # fields that also speak of them


@pytest.fixture(autouse=True)
def _no_user_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUVIDPO_CATALOG", raising=False)
    monkeypatch.delenv("HUVIDPO_WEIGHTS", raising=False)


def test_built_in_names() -> None:
    catalog = load_catalog()
    assert list(catalog.models) == [DEFAULT_MODEL, "sd14", "sd14-sdxl", "sd14-sd14", "sd14-sd15", "sd15"]
    assert list(catalog.categories) == CATEGORIES
    assert list(catalog.styles) == STYLES


def test_tiny_paths_lie_in_the_project_and_share_vae_and_text_encoder() -> None:
    tiny = load_catalog().model(DEFAULT_MODEL)
    assert tiny.first_frame.location == str(PROJECT_ROOT / "models/tiny/first_frame")
    assert tiny.video_vae.location == tiny.video_text_encoder.location == tiny.first_frame.location
    assert (tiny.defaults.height, tiny.defaults.width, tiny.defaults.frames) == (64, 64, 16)


def test_sd14_is_the_papers_pair_with_the_papers_numbers() -> None:
    sd14 = load_catalog().model("sd14")
    assert sd14.first_frame.location == "stabilityai/stable-diffusion-xl-base-1.0"
    assert sd14.first_frame_unet is not None
    assert sd14.first_frame_unet.location == "mhdang/dpo-sdxl-text2image-v1"
    assert sd14.defaults == SamplingOptions()
    assert (sd14.defaults.steps, sd14.defaults.guidance, sd14.defaults.noise_mix) == (50, 12.5, 0.2)


def test_the_papers_ablation_differs_in_its_first_frames_alone() -> None:
    models = load_catalog().models
    drawn_by = {
        "sd14": ("stabilityai/stable-diffusion-xl-base-1.0", "mhdang/dpo-sdxl-text2image-v1"),
        "sd14-sdxl": ("stabilityai/stable-diffusion-xl-base-1.0",) * 2,
        "sd14-sd14": ("CompVis/stable-diffusion-v1-4",) * 2,
        "sd14-sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5",) * 2,
    }
    for name, (first, unet) in drawn_by.items():
        model, sd14 = models[name], models["sd14"]
        assert model.first_frame_unet == Component(unet, "unet", PINNED.get(unet, ""))
        assert model.first_frame == Component(first, "", PINNED[first])
        for field in dataclasses.fields(model):
            if not field.name.startswith("first_frame") and field.name not in OF_FIRST_FRAMES:
                same = getattr(model, field.name), getattr(sd14, field.name)
                assert same[0] == same[1], (name, field.name)
        changed = {"first_frame_size", "first_frame_guidance"}
        ours, theirs = (dataclasses.asdict(entry.defaults) for entry in (model, sd14))
        assert {option for option in ours if ours[option] != theirs[option]} <= changed
    sd15 = models["sd15"]
    assert sd15.first_frame_unet == models["sd14"].first_frame_unet
    assert sd15.categories != models["sd14"].categories
    for part in ("unet", "scheduler", "text_encoder", "tokenizer", "vae"):
        repo = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        assert getattr(sd15, f"video_{part}") == Component(repo, part, PINNED[repo])


def test_a_repository_is_pinned_to_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Component("we/first", "unet", "a" * 40)
    assert part.within("vae") == Component("we/first", "vae", "a" * 40)
    with pytest.raises(CatalogError, match="names of branches and tags move"):
        Component("we/first", "unet", "main")


def test_local_mirror_of_hub_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "CompVis/stable-diffusion-v1-4"
    mirror.mkdir(parents=True)
    (tmp_path / "sd14/categories").mkdir(parents=True)
    monkeypatch.setenv("HUVIDPO_WEIGHTS", str(tmp_path))
    sd14 = load_catalog().model("sd14")
    assert sd14.video_unet.location == str(mirror)
    assert sd14.first_frame.location == "stabilityai/stable-diffusion-xl-base-1.0"
    assert sd14.categories == tmp_path / "sd14/categories"


@pytest.mark.parametrize(
    ("style", "prompt"),
    [("pixel-art", "a horse, pixel art style"), ("realistic", None), (None, None)],
)
def test_style_template(style: str | None, prompt: str | None) -> None:
    assert load_catalog().style(style).apply(" a horse ") == (prompt or "a horse, realistic style")


def test_prompt_with_braces_stays_as_it_is() -> None:
    assert Style("x", "{prompt}, x").apply("{0} {prompt}") == "{0} {prompt}, x"


@pytest.mark.parametrize(
    ("kind", "known"), [("model", [DEFAULT_MODEL, "sd14"]), ("category", CATEGORIES), ("style", STYLES)]
)
def test_unknown_name_lists_the_known_ones(kind: str, known: list[str]) -> None:
    with pytest.raises(InvalidRequest) as error:
        getattr(load_catalog(), kind)("dragon")
    assert error.value.field == kind
    assert "'dragon'" in error.value.message
    assert all(name in error.value.message for name in known)


def test_user_catalog_adds_and_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text(
        '[styles.noir]\ntemplate = "{prompt}, film noir"\nnegative = "colour"\n'
        '[categories.horse]\nmotion_prompt = "a horse jumps"\nweights = "jump.safetensors"\n'
    )
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path))
    catalog = load_catalog()
    assert catalog.style("noir") == Style("noir", "{prompt}, film noir", "colour")
    assert catalog.category("horse").weights == "jump.safetensors"
    assert catalog.category("rain").weights == "rain.safetensors"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[styles.x]\ntemplate = "no place for it"', "does not contain {prompt}"),
        ('[styles.x]\ntemplate = "{prompt}"\ncolour = 1', "unknown key colour"),
        ("[categories.x]\nweights = 'a'", "missing key 'motion_prompt'"),
        ("[moods.x]", "unknown section"),
        ("[styles.x", "Expected"),
        ("[models.x]\nfirst_frame = 3\n[models.x.video]", "first_frame: got 3"),
        ("styles = 3", "expected tables"),
    ],
)
def test_broken_catalog_names_file_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    (tmp_path / "broken.toml").write_text(text)
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path))
    with pytest.raises(CatalogError) as error:
        load_catalog()
    assert "broken.toml" in str(error.value)
    assert reason in str(error.value)


def test_full_size_prompts_are_enough_for_the_gate_and_more() -> None:
    model, categories = load_catalog().model("sd14"), load_catalog().categories
    assert model.prompts is not None
    lines = [line.partition(": ") for line in model.prompts.read_text(encoding="utf-8").splitlines()]
    assert {name for name, _, _ in lines} == set(categories)
    for category in categories:
        prompts = {prompt for name, _, prompt in lines if name == category}
        assert len(prompts) >= 50  # 40 for the gate, ten it did not see
        assert all(len(prompt.split()) < 16 for prompt in prompts)


def test_the_entry_of_a_model_says_its_recipes_prompts_and_attention() -> None:
    tiny, sd14 = (load_catalog().model(name) for name in (DEFAULT_MODEL, "sd14"))
    assert tiny.recipes == Recipes("tiny_motion", "tiny_dpo", "tiny_dpo_image", "tiny_lcm")
    assert sd14.recipes == Recipes("lamp_sd14", "paper_dpo", "paper_dpo_image", "lcm_sd14")
    prompts = PROJECT_ROOT / "models/tiny/prompts.txt", PROJECT_ROOT / "huvidpo/data/prompts.txt"
    assert (tiny.prompts, sd14.prompts) == prompts
    assert tiny.attention_mode is sd14.attention_mode is None


MINE = """[models.mine]
first_frame = {{ path = "a" }}
categories = "c"
{more}
[models.mine.video]
unet = {{ path = "a" }}
scheduler = {{ path = "a" }}
text_encoder = {{ path = "a" }}
tokenizer = {{ path = "a" }}
vae = {{ path = "a"{part} }}
"""


@pytest.mark.parametrize(
    ("more", "part", "reason"),
    [
        ('attention_mode = "first"\nrecipes = { motion = "tiny_motion" }', "", None),
        (
            'attention_mode = "last"',
            "",
            "attention_mode: got 'last', expected one of first_prev, first",
        ),
        ('recipes = { stage3 = "x" }', "", "unknown key stage3, known: motion, dpo, dpo_image"),
        ("recipes = { dpo = 1 }", "", "dpo: got 1, expected text, or none"),
        ("defaults = { steps = 0 }", "", "steps: got 0, expected a whole number from 1 to 1000"),
        ("prompts = 3", "", "prompts: got 3, expected a path, or none"),
        ("video_extra = 3", "", "unknown key video_extra"),
        ("", ", subfolder = 3", "subfolder: got 3, expected text"),
        ("", ", color = 3", "unknown key color"),
    ],
)
def test_a_second_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, part: str, reason: str | None
) -> None:
    (tmp_path / "mine.toml").write_text(MINE.format(more=more, part=part))
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path))
    if reason:
        with pytest.raises(CatalogError) as error:
            load_catalog()
        assert "mine.toml: [models.mine]" in str(error.value)
        assert reason in str(error.value)
    else:
        mine = load_catalog().model("mine")
        assert (mine.attention_mode, mine.recipes.motion, mine.recipes.dpo) == ("first", "tiny_motion", None)


def test_missing_user_catalog_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path / "nowhere"))
    with pytest.raises(CatalogError, match="nowhere"):
        load_catalog()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("guidance", -1.0),
        ("guidance", float("nan")),
        ("guidance", "high"),
        ("frames", 1),
        ("height", 30),
        ("width", 5000),
        ("fps", 0),
        ("sampler", "euler"),
        ("corrections", "all"),
        ("noise_mix", 1.5),
        ("first_frame_steps", -3),
        ("first_frame_guidance", float("inf")),
        ("first_frame_size", (64, 61)),
        ("first_frame_size", 64),
    ],
)
def test_bad_option_names_field_and_value(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as error:
        SamplingOptions().replace(**{field: value})
    assert error.value.field == field
    assert repr(value if field != "first_frame_size" or value == 64 else 61) in error.value.message.replace(
        "(64, 61)", "61"
    )


def test_replace_ignores_none_and_refuses_unknown_names() -> None:
    options = SamplingOptions().replace(steps=None, guidance=3)
    assert (options.steps, options.guidance) == (50, 3)
    with pytest.raises(InvalidRequest, match="known: steps"):
        options.replace(strength=1)


@given(steps=st.integers(1, 1000), guidance=st.floats(0, 100), eighths=st.integers(1, 512))
def test_allowed_options_are_kept(steps: int, guidance: float, eighths: int) -> None:
    options = SamplingOptions(steps=steps, guidance=guidance, height=8 * eighths)
    assert (options.steps, options.guidance, options.height) == (steps, guidance, 8 * eighths)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"negative_prompt": 3}, "negative_prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
    ],
)
def test_bad_request(changes: dict, field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        dataclasses.replace(ClipRequest("a horse", "horse", seed=1), **changes)
    assert error.value.field == field


def test_errors_and_requests_survive_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(InvalidRequest("steps: got 0", "steps")))
    assert (error.message, error.field, str(error)) == ("steps: got 0", "steps", "steps: got 0")
    request = ClipRequest("a horse", "horse", seed=1)
    assert pickle.loads(pickle.dumps(request)) == request


def test_a_folder_is_seen_from_where_its_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base" / "unet").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert Component.at("base", "unet") == Component(str(tmp_path / "base"), "unet")
    assert Component.at(Path("not_there")) == Component(str(tmp_path / "not_there"))
    assert Component.at("owner/name") == Component("owner/name")
