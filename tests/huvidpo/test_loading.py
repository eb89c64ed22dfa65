"""Parts of a model are loaded whole, or refused by name: never half, never filled up with random numbers."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from huvidpo.catalog import DEFAULT_MODEL, Component
from huvidpo.errors import CheckpointError, NotFinite
from huvidpo.latents import from_latents, to_latents
from huvidpo.loading import load_part, load_scheduler_config, load_tokenizer, load_vae, load_video_unet
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from huvidpo.unet import VideoUNet

Tensors = dict[str, Tensor]

PARTS: dict[str, tuple[Any, str]] = {
    "text_encoder": (CLIPTextModel, "first_frame/text_encoder"),
    "text_encoder_2": (CLIPTextModelWithProjection, "first_frame/text_encoder_2"),
    "image_unet": (UNet2DConditionModel, "first_frame/unet"),
    "vae": (AutoencoderKL, "first_frame/vae"),
    "video_unet": (VideoUNet, "video/unet"),
}


def without_first(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[1:])


def foreign_names(tensors: Tensors) -> Tensors:
    return {f"cond_stage_model.{name}": tensor for name, tensor in tensors.items()}


def one_more(tensors: Tensors) -> Tensors:
    return tensors | {"surplus.weight": torch.ones(1)}


def one_shorter(tensors: Tensors) -> Tensors:
    name = next(name for name, tensor in tensors.items() if name.endswith("bias"))
    return tensors | {name: tensors[name][1:].clone()}


def one_nan(tensors: Tensors) -> Tensors:
    name = next(name for name, tensor in tensors.items() if name.endswith("weight"))
    return tensors | {name: torch.full_like(tensors[name], torch.nan)}


def beyond_half(tensors: Tensors) -> Tensors:
    name = next(name for name, tensor in tensors.items() if name.endswith("weight"))
    return tensors | {name: torch.full_like(tensors[name], 1e6)}


def copied(family: Path, part: str, to: Path) -> tuple[Any, Path, Path]:
    """(class, folder, file of weights) of a copy of a part."""
    kind, folder = PARTS[part]
    shutil.copytree(family / folder, to)
    return kind, to, next(to.glob("*.safetensors"))


def rewrite(file: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_first, r"1 tensors are missing in its files"),
        (foreign_names, r"are missing in its files"),
        (one_more, r"1 tensors of its files match nothing in it: surplus.weight"),
        (one_shorter, "cannot be loaded"),
        (one_nan, "1 tensors hold NaN or infinity"),
    ],
)
def test_a_part_that_is_not_whole_is_refused(
    family: Path, tmp_path: Path, part: str, change: Callable[[Tensors], Tensors], message: str
) -> None:
    kind, folder, file = copied(family, part, tmp_path / "part")
    rewrite(file, change)
    with pytest.raises(CheckpointError, match=message) as error:
        load_part(kind, Component(str(folder)))
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("part", PARTS)
def test_overflow_in_the_cast_is_refused(family: Path, tmp_path: Path, part: str) -> None:
    kind, folder, file = copied(family, part, tmp_path / "part")
    rewrite(file, beyond_half)
    load_part(kind, Component(str(folder)), torch.float32)
    with pytest.raises(CheckpointError, match="float16 ends at 65504"):
        load_part(kind, Component(str(folder)), torch.float16)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def lfs_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def no_config(file: Path) -> None:
    (file.parent / "config.json").unlink()


def broken_config(file: Path) -> None:
    (file.parent / "config.json").write_bytes(b'{"hidden_size": \xff')


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", [cut, lfs_pointer, Path.unlink, no_config, broken_config])
def test_a_damaged_part_is_an_error_of_ours(
    family: Path, tmp_path: Path, part: str, damage: Callable[[Path], None]
) -> None:
    kind, folder, file = copied(family, part, tmp_path / "part")
    damage(file)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_part(kind, Component(str(folder)))


def same(a: Any, b: Any) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("form", ["fp16", "shards", "shards of fp16", "bin", "shards of bin"])
def test_every_published_form_loads(family: Path, tmp_path: Path, part: str, form: str) -> None:
    if form == "shards of bin" and not part.startswith("text"):
        pytest.skip("diffusers writes and reads shards of safetensors only")
    kind, folder = PARTS[part]
    whole = kind.from_pretrained(family / folder)
    options: dict[str, Any] = {"variant": "fp16"} if "fp16" in form else {}
    if "shards" in form:
        options["max_shard_size"] = "20KB"
    if "bin" not in form:
        whole.save_pretrained(tmp_path, **options)
    else:
        shutil.copy(family / folder / "config.json", tmp_path)
        stem = "pytorch_model" if part.startswith("text") else "diffusion_pytorch_model"
        save_bin(whole.state_dict(), tmp_path, stem, shards="shards" in form)
    assert len([*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")]) > (1 if "shards" in form else 0)
    assert same(load_part(kind, Component(str(tmp_path))), whole)


def save_bin(tensors: Tensors, folder: Path, stem: str, shards: bool) -> None:
    """What older versions of the libraries wrote: one pickle, or two with an index."""
    if not shards:
        torch.save(tensors, folder / f"{stem}.bin")
        return
    names = sorted(tensors)
    places = {name: f"{stem}-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({name: tensors[name] for name in names if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("damage", ["a shard is gone", "the index is short"])
def test_half_of_the_shards_is_refused(family: Path, tmp_path: Path, damage: str) -> None:
    unet = VideoUNet.from_pretrained(family / "video/unet")
    unet.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*-00002-*"))[0]
    if damage == "a shard is gone":
        shard.unlink()
    else:
        index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        facts = json.loads(index.read_text())
        facts["weight_map"] = {k: v for k, v in facts["weight_map"].items() if v != shard.name}
        index.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"00002|are missing"):
        load_video_unet(Component(str(tmp_path)), torch.float32)


def test_names_that_the_libraries_know_to_leave_out(family: Path, tmp_path: Path) -> None:
    """SD 1.4's text encoder holds its positions' numbers; its VAE names attention as diffusers once did."""
    for part in ("text_encoder", "text_encoder_2"):
        kind, folder, file = copied(family, part, tmp_path / part)
        rewrite(
            file, lambda tensors: tensors | {"text_model.embeddings.position_ids": torch.arange(48)[None]}
        )
        load_part(kind, Component(str(folder)))
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    vae.save_pretrained(tmp_path / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, earlier in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{earlier}.")
        return name

    rewrite(
        next((tmp_path / "vae").glob("*.safetensors")),
        lambda tensors: {renamed(name): tensor for name, tensor in tensors.items()},
    )
    assert same(load_part(AutoencoderKL, Component(str(tmp_path / "vae"))), vae)


@pytest.fixture
def encoder(family: Path) -> Any:
    return load_part(CLIPTextModel, Component(str(family), "first_frame/text_encoder"))


def test_a_tokenizer_pads_to_its_text_encoders_context(family: Path, tmp_path: Path, encoder: Any) -> None:
    """Without `model_max_length` transformers takes a number with 30 digits."""
    shutil.copytree(family / "first_frame/tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer/tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["model_max_length"]
    file.write_text(json.dumps(config))
    tokenizer = load_tokenizer(Component(str(tmp_path), "tokenizer"), encoder)
    assert tokenizer.model_max_length == 48
    assert len(tokenizer("a horse", padding="max_length", max_length=48).input_ids) == 48


def test_a_tokenizer_without_its_files_is_refused(family: Path, tmp_path: Path, encoder: Any) -> None:
    """Transformers makes one of two tokens, to which every caption is the same."""
    shutil.copy(family / "first_frame/tokenizer/tokenizer_config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"has 2 tokens, up to the id [0-9]+, its text encoder"):
        load_tokenizer(Component(str(tmp_path)), encoder)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_tokenizer(Component(str(tmp_path)), encoder)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_small_file_is_an_error_of_ours(tmp_path: Path, content: bytes | None) -> None:
    for name in ("config.json", "scheduler_config.json"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    source = Component(str(tmp_path))
    with pytest.raises(CheckpointError):
        load_scheduler_config(source)
    with pytest.raises(CheckpointError):
        load_vae(source, torch.device("cpu"), torch.float32)
    with pytest.raises(CheckpointError):
        load_video_unet(source, torch.float32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"beta_schedule": "quadratic"}, "cannot be loaded: quadratic is not implemented"),
        ({"beta_start": "small"}, "cannot be loaded"),
        ({"prediction_type": "flow"}, "prediction_type 'flow'; known are"),
        ({"timestep_spacing": "even"}, "timestep_spacing 'even'"),
    ],
)
def test_a_schedule_that_no_sampler_follows_is_refused_at_loading(
    family: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    config = json.loads((family / "video/scheduler/scheduler_config.json").read_text()) | changes
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        load_scheduler_config(Component(str(tmp_path)))


def test_a_tokenizer_with_ids_beyond_the_vocabulary_is_refused(
    family: Path, tmp_path: Path, encoder: Any
) -> None:
    shutil.copytree(family / "first_frame/tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["night</w>"] = 5000
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="up to the id 5000"):
        load_tokenizer(Component(str(tmp_path), "tokenizer"), encoder)


@pytest.mark.parametrize(
    "part", ["first_frame/text_encoder", "first_frame/text_encoder_2", "first_frame/unet"]
)
def test_the_door_that_serves_refuses_it_too(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    broken = shutil.copytree(family, tmp_path / "broken")
    rewrite(next((broken / part).glob("*.safetensors")), foreign_names)
    toml = (family / "catalog/random.toml").read_text().replace(family.as_posix(), broken.as_posix())
    (broken / "catalog/random.toml").write_text(toml)
    monkeypatch.setenv("HUVIDPO_CATALOG", str(broken / "catalog"))
    with pytest.raises(CheckpointError, match=f"{part}: .* tensors are missing"):
        FirstFramePipeline.from_catalog(DEFAULT_MODEL)
    if part == "first_frame/text_encoder":
        with pytest.raises(CheckpointError, match=f"{part}: .* tensors are missing"):
            VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["horse"])


TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.mark.parametrize("whole", [True, False])
def test_huvidpos_checkpoint_serves_as_category(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """`model_weights_epoch_N.pth`: peft's state dict of the whole network or of the adapters, alpha 32."""
    base = VideoUNet.from_pretrained(tiny_family / "video/unet").eval()
    config = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, init_lora_weights=False)
    wrapped = get_peft_model(copy.deepcopy(base), config).eval()
    file = tmp_path / "model_weights_epoch_3.pth"
    torch.save(wrapped.state_dict() if whole else get_peft_model_state_dict(wrapped), file)
    toml = (tiny_family / "catalog/random.toml").read_text()
    entry = f'\n[categories.galop]\nmotion_prompt = "a horse gallops"\nweights = "{file}"\n'
    (tmp_path / "catalog.toml").write_text(toml + entry)
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path))
    unet = VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["galop"]).unets["galop"]
    inputs = torch.randn(1, 8, 3, 8, 8), 5, torch.randn(1, 5, 32)
    with torch.no_grad():
        expected = wrapped(*inputs)
        torch.testing.assert_close(unet(*inputs), expected, atol=1e-5, rtol=1e-4)
        assert (expected - base(*inputs)).abs().mean() > 0.01, "the adapters change nothing"


def test_a_category_that_is_not_finite_is_refused(tiny_family: Path, tmp_path: Path) -> None:
    """It made black clips."""
    good = load_file(tiny_family / "categories/horse.safetensors")
    save_file(one_nan(good), tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"hold NaN or infinity: .*conv1d\.weight"):
        VideoPipeline.from_catalog(
            DEFAULT_MODEL, weights={"horse": tmp_path / "nan.safetensors"}, categories=["horse"]
        )


def test_values_that_are_no_pixels_are_refused(tiny_family: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_family / "first_frame/vae")
    with pytest.raises(NotFinite, match="denoised latents hold NaN or infinity in float32"):
        from_latents(vae, torch.full((1, 8, 8, 8), torch.nan))
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(torch.inf)
        vae.encoder.conv_out.bias.fill_(torch.nan)
        with pytest.raises(NotFinite, match="the VAE's pixels"):
            from_latents(vae, torch.zeros(1, 8, 8, 8))
        with pytest.raises(NotFinite, match="the VAE's latents"):
            to_latents(vae, np.zeros((1, 32, 32, 3), np.uint8))
