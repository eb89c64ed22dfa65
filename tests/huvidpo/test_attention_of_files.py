"""Which frames a checkpoint's attention sees is what its files say, from the catalog to the pixels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from family import SIZE, image_unet
from torch import Tensor

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.checkpoint import load_tensors, save_tensors
from huvidpo.config import ClipRequest
from huvidpo.errors import CheckpointError
from huvidpo.files import hash_tensors
from huvidpo.loading import load_category
from huvidpo.pipeline import VideoPipeline
from huvidpo.unet import VideoUNet, fingerprint

MODES = ["first", "first_prev"]


def lamp_folder(family: Path, folder: Path, **config: object) -> Path:
    """The family's video UNet in LAMP's layout, whose config says nothing of attention but by `config`."""
    folder.mkdir(parents=True)
    ours = json.loads((family / "video/unet/config.json").read_text())
    del ours["attention_mode"]
    theirs = ours | {"_class_name": "UNet3DConditionModel", "use_temp": True} | config
    for name in ("down_block_types", "up_block_types"):
        theirs[name] = [kind.replace("2D", "3D") for kind in theirs[name]]
    (folder / "config.json").write_text(json.dumps(theirs))
    shutil.copy(family / "video/unet/diffusion_pytorch_model.safetensors", folder)
    return folder


def serve(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    unet: Path | None = None,
    mode: str | None = None,
    weights: Path | None = None,
) -> VideoPipeline:
    """The family's pipeline with other files of its UNet, category weights and word of the catalog."""
    toml = (family / "catalog/random.toml").read_text()
    if unet:
        toml = toml.replace(f'"{family.as_posix()}/video", subfolder = "unet"', f'"{unet.as_posix()}"')
    if mode:
        toml = toml.replace("[models.tiny]", f'[models.tiny]\nattention_mode = "{mode}"')
    if weights:
        toml += f'\n[categories.horse]\nmotion_prompt = "a horse runs"\nweights = "{weights.as_posix()}"\n'
    (tmp_path / "catalog").mkdir(exist_ok=True)
    (tmp_path / "catalog/random.toml").write_text(toml)
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path / "catalog"))
    return VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["horse" if weights else "smile"])


def clip(pipeline: VideoPipeline) -> np.ndarray:
    (category,) = pipeline.unets
    options = load_catalog().model(DEFAULT_MODEL).defaults.replace(frames=4)
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    (made,) = pipeline([ClipRequest("a white horse runs", category, 1, options=options)], [picture])
    assert made is not None
    return made


def expected(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> np.ndarray:
    """The clip of a network built with `mode` and filled by hand."""
    pipeline = serve(family, tmp_path / mode, monkeypatch)
    unet = VideoUNet.from_config(pipeline.unets["smile"].config, attention_mode=mode)
    unet.load_state_dict(load_tensors(family / "video/unet/diffusion_pytorch_model.safetensors"))
    pipeline.unets = {"smile": unet.eval()}
    return clip(pipeline)


@pytest.fixture
def clips(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    for mode in MODES:
        (tmp_path / mode).mkdir()
    made = {mode: expected(family, tmp_path, monkeypatch, mode) for mode in MODES}
    assert not np.array_equal(made["first"], made["first_prev"])
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("said_by", ["config", "catalog", "both"])
@pytest.mark.parametrize("layout", ["lamp", "ours"])
def test_a_models_mode_is_served(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clips: dict,
    mode: str,
    said_by: str,
    layout: str,
) -> None:
    """By the config of its files, else by the catalog; where both speak, the files know better."""
    other = next(one for one in MODES if one != mode)
    config = {"attention_mode": mode} if said_by in ("config", "both") else {}
    if layout == "ours":
        config |= {"_class_name": "VideoUNet"}
    folder = lamp_folder(family, tmp_path / "unet", **config)
    asked = {"config": None, "catalog": mode, "both": other}[said_by]
    made = clip(serve(family, tmp_path, monkeypatch, unet=folder, mode=asked))
    assert np.array_equal(made, clips[mode])


@pytest.mark.parametrize("said_by", ["config", "catalog"])
@pytest.mark.parametrize("mode", MODES)
def test_a_categorys_mode_is_served(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: dict, mode: str, said_by: str
) -> None:
    unet = lamp_folder(family, tmp_path / "unet", attention_mode=mode)
    category = lamp_folder(
        family, tmp_path / "horse", **({"attention_mode": mode} if said_by == "config" else {})
    )
    asked = mode if said_by == "catalog" else None
    pipeline = serve(family, tmp_path, monkeypatch, unet=unet, mode=asked, weights=category)
    assert np.array_equal(clip(pipeline), clips[mode])


NEITHER = (
    r'(horse|unet): its attention mode is not said; write "attention_mode": "first" .* or "first_prev" '
    r".* config\.json"
)


def test_a_folder_of_which_nobody_says_the_mode_is_refused(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = lamp_folder(family, tmp_path / "unet")
    with pytest.raises(CheckpointError, match=NEITHER) as error:
        serve(family, tmp_path, monkeypatch, unet=unet)
    assert "catalog" in str(error.value)
    with pytest.raises(CheckpointError, match=NEITHER):
        serve(family, tmp_path, monkeypatch, weights=lamp_folder(family, tmp_path / "horse"))
    with pytest.raises(CheckpointError, match="'last'; write"):
        serve(
            family, tmp_path, monkeypatch, unet=lamp_folder(family, tmp_path / "odd", attention_mode="last")
        )


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"attention_mode": "first"}, "attention_mode first (the model's first_prev)"),
        ({"attention_head_dim": 4}, "attention_head_dim [4, 4] (the model's [2, 2])"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06 (the model's 1e-05)"),
        (
            {"flip_sin_to_cos": False, "freq_shift": 1},
            "flip_sin_to_cos False (the model's True), freq_shift 1 (the",
        ),
    ],
)
def test_a_category_of_another_network_is_refused(
    family: Path, tmp_path: Path, config: dict, names: str
) -> None:
    base = VideoUNet.from_pretrained(family / "video/unet")
    folder = lamp_folder(family, tmp_path / "horse", **({"attention_mode": "first_prev"} | config))
    with pytest.raises(CheckpointError) as error:
        load_category(base, folder)
    assert f"in {names}" in str(error.value)


def test_configs_that_say_the_same_in_other_words_fit(family: Path, tmp_path: Path) -> None:
    base = VideoUNet.from_pretrained(family / "video/unet")
    words = {
        "attention_head_dim": [2, 2],
        "layers_per_block": [1, 1],
        "sample_size": 64,
        "upcast_attention": True,
    }
    folder = lamp_folder(family, tmp_path / "horse", attention_mode="first_prev", **words)
    assert same(load_category(base, folder).state_dict(), base.state_dict())


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_whole_checkpoint_shares_what_is_the_bases(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LAMP's holds the whole network, of which most is Stable Diffusion's."""
    folder = lamp_folder(family, tmp_path / "horse", attention_mode="first_prev")
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_tensors(file)
    name = next(name for name in tensors if ".conv1d." in name)
    save_tensors(file, tensors | {name: tensors[name] + 1}, {})
    serve(family, tmp_path, monkeypatch, weights=folder)
    both = VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["horse", "smile"]).unets
    own = {
        key
        for key, value in both["horse"].named_parameters()
        if value.data_ptr() != dict(both["smile"].named_parameters())[key].data_ptr()
    }
    assert own == {name}


def seeded_image_unet() -> UNet2DConditionModel:
    torch.manual_seed(5)
    return image_unet()


def test_one_image_unet_gives_one_video_unet() -> None:
    image, hashes = seeded_image_unet(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        hashes.append(fingerprint(VideoUNet.from_2d(image)))
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(1)), "inflating moved the caller's random numbers"
    assert hashes[0] == hashes[1]
    half = VideoUNet.from_2d(seeded_image_unet().half())
    assert same(half.state_dict(), {k: v.half() for k, v in VideoUNet.from_2d(image).state_dict().items()})


def test_a_networks_hash_is_of_tensors_and_settings() -> None:
    image = seeded_image_unet()
    first_prev, first = (VideoUNet.from_2d(image, mode) for mode in ("first_prev", "first"))
    assert hash_tensors(first.state_dict()) == hash_tensors(first_prev.state_dict())
    with torch.no_grad():
        other = VideoUNet.from_2d(image)
        other.conv_in.conv2d.bias += 1
    heads = VideoUNet.from_config(first_prev.config, attention_head_dim=4)
    heads.load_state_dict(first_prev.state_dict())
    assert len({fingerprint(unet) for unet in (first_prev, first, other, heads)}) == 4
    again = VideoUNet.from_config(first_prev.config, attention_head_dim=[2, 2], sample_size=7)
    again.load_state_dict(first_prev.state_dict())
    assert fingerprint(again) == fingerprint(first_prev)


@pytest.mark.parametrize("mode", [None, *MODES])
def test_an_inflated_unet_has_the_catalogs_mode(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    seeded_image_unet().save_pretrained(tmp_path / "sd")
    pipeline = serve(family, tmp_path, monkeypatch, unet=tmp_path / "sd", mode=mode)
    assert pipeline.unets["smile"].config.attention_mode == (mode or "first_prev")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"base": "0" * 64}, "its base is 000000000000..., here it is"),
        ({"attention_mode": "first"}, "was trained with attention first, the model has first_prev"),
        ({"stage": "dpo", "stage1": "1" * 64}, r"merge both with `python -m training\.merge`"),
    ],
)
def test_a_category_of_another_base_is_refused_when_serving(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict, message: str
) -> None:
    base = VideoUNet.from_pretrained(family / "video/unet")
    tensors = load_tensors(family / "categories/horse.safetensors")
    file = tmp_path / "weights.safetensors"
    right = {"attention_mode": "first_prev"}
    for base_hash in (fingerprint(base), hash_tensors(base.state_dict())):  # ours, and of older files
        save_tensors(file, tensors, right | {"base": base_hash})
        pipeline = serve(family, tmp_path, monkeypatch, weights=file)
        assert all(torch.equal(pipeline.unets["horse"].state_dict()[name], x) for name, x in tensors.items())
    save_tensors(file, tensors, right | said)
    with pytest.raises(CheckpointError, match=message):
        serve(family, tmp_path, monkeypatch, weights=file)


def test_a_base_in_half_precision_is_known_too(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = VideoUNet.from_pretrained(family / "video/unet")
    file = tmp_path / "weights.safetensors"
    save_tensors(file, load_tensors(family / "categories/horse.safetensors"), {"base": fingerprint(base)})
    serve(family, tmp_path, monkeypatch, weights=file)
    pipeline = VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["horse", "smile"], dtype=torch.bfloat16)
    assert {p.dtype for unet in pipeline.unets.values() for p in unet.parameters()} == {torch.bfloat16}


def test_weights_by_another_name_are_not_passed_over(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`horse.safetensors` is asked for, and a folder `horse` lies there: it was ignored."""
    lamp_folder(family, tmp_path / "horse")
    with pytest.raises(CheckpointError, match="but there is horse: name it by `weights`"):
        serve(family, tmp_path, monkeypatch, weights=tmp_path / "horse.safetensors")


def test_what_we_write_says_its_mode(family: Path, tmp_path: Path) -> None:
    for mode in MODES:
        unet = VideoUNet.from_2d(seeded_image_unet(), mode)
        unet.save_pretrained(tmp_path / mode)
        assert json.loads((tmp_path / mode / "config.json").read_text())["attention_mode"] == mode
