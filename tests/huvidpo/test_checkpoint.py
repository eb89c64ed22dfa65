import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from unet_configs import TINY

from huvidpo.checkpoint import (
    adapted_tensors,
    inflated_name,
    load_huvidpo_lora,
    load_strict,
    load_tensors,
    read_metadata,
    save_tensors,
    with_weights,
)
from huvidpo.errors import CheckpointError
from huvidpo.unet import VideoUNet

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
LAMP_CONFIG = {
    "_class_name": "UNet3DConditionModel",
    "_diffusers_version": "0.11.1",
    **TINY,
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "use_temp": True,
}


@pytest.fixture(scope="module")
def unet() -> VideoUNet:
    torch.manual_seed(0)
    return VideoUNet(**TINY).eval()


@pytest.fixture
def lamp_folder(unet: VideoUNet, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LAMP_CONFIG))
    torch.save(unet.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    return tmp_path


def test_tensors_and_metadata_round_trip(tmp_path: Path):
    file = tmp_path / "new" / "weights.safetensors"
    tensors = {"a": torch.randn(2, 3).t(), "b": torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)}
    save_tensors(file, tensors, {"category": "horse"})
    assert read_metadata(file) == {"category": "horse"}
    for name, tensor in load_tensors(file).items():
        assert torch.equal(tensor, tensors[name])
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path):
    file = tmp_path / "weights.safetensors"
    save_tensors(file, {"a": torch.ones(1)}, {})
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError):
        save_tensors(file, {"a": shared, "b": shared}, {})  # safetensors refuses shared memory
    assert torch.equal(load_tensors(file)["a"], torch.ones(1))
    assert list(tmp_path.iterdir()) == [file]


def test_pickled_code_is_never_run(tmp_path: Path):
    file = tmp_path / "weights.bin"
    torch.save({"a": Path("/")}, file)
    with pytest.raises(CheckpointError, match="cannot read weights"):
        load_tensors(file)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_missing_and_damaged_files(tmp_path: Path, name: str):
    with pytest.raises(CheckpointError, match=name):
        load_tensors(tmp_path / name)
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=name):
        load_tensors(tmp_path / name)
    with pytest.raises(CheckpointError, match=name):
        read_metadata(tmp_path / name)


def test_a_file_of_something_else_than_tensors(tmp_path: Path):
    torch.save({"step": 3}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="flat table of named tensors"):
        load_tensors(tmp_path / "state.pt")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("conv_in.weight", "conv_in.conv2d.weight"),
        ("down_blocks.0.resnets.1.conv_shortcut.bias", "down_blocks.0.resnets.1.conv_shortcut.conv2d.bias"),
        ("up_blocks.0.upsamplers.0.conv.weight", "up_blocks.0.upsamplers.0.conv.conv2d.weight"),
        ("mid_block.resnets.0.conv1.conv2d.weight", "mid_block.resnets.0.conv1.conv2d.weight"),
        ("mid_block.resnets.0.conv1.conv1d.weight", "mid_block.resnets.0.conv1.conv1d.weight"),
        ("conv_norm_out.weight", "conv_norm_out.weight"),
        (f"base_model.model.{QUERY}", QUERY),
        (QUERY.replace("to_q", "to_q.base_layer"), QUERY),
    ],
)
def test_rename_table(name: str, ours: str):
    assert inflated_name(name) == ours


def test_every_name_of_the_image_unet_has_a_place(unet: VideoUNet):
    names = {inflated_name(name) for name in UNet2DConditionModel(**TINY).state_dict()}
    added = ("conv1d", "conv_gate", "attn_temp", "norm_temp")
    assert names == {name for name in unet.state_dict() if not any(part in name for part in added)}


def test_with_weights_costs_only_its_own_tensors(unet: VideoUNet):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    tuned = with_weights(unet, {QUERY: torch.ones(32, 32, dtype=torch.float16)})
    assert isinstance(tuned, VideoUNet)
    assert tuned.config == unet.config
    for name, parameter in unet.named_parameters():
        other = tuned.get_parameter(name)
        assert (other.data_ptr() == parameter.data_ptr()) == (name != QUERY), name
        assert other.dtype == parameter.dtype
    assert torch.equal(tuned.get_parameter(QUERY), torch.ones(32, 32))
    tuned.to(torch.bfloat16)  # moving the copy leaves the base alone
    tuned.requires_grad_(False)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in unet.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_with_weights_keeps_the_memory_format_of_the_base(unet: VideoUNet):
    base = VideoUNet(**TINY).to(memory_format=torch.channels_last)  # as loading lays it out on CUDA
    name = "mid_block.resnets.0.conv1.conv2d.weight"
    new = with_weights(base, {name: unet.state_dict()[name]}).state_dict()[name]
    assert new.is_contiguous(memory_format=torch.channels_last)
    assert not new.is_contiguous()
    assert torch.equal(new, unet.state_dict()[name])


def test_a_file_of_weights_is_as_readable_as_any_other(tmp_path: Path):
    (tmp_path / "other").touch()
    save_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_tensors_that_do_not_fit_are_named(unet: VideoUNet):
    with pytest.raises(CheckpointError, match=r"1 tensors match nothing in the model: conv_in\.weight"):
        with_weights(unet, {"conv_in.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"conv_in.conv1d.bias has shape \[3\]; the model has \[16\]"):
        with_weights(unet, {"conv_in.conv1d.bias": torch.zeros(3)})


def assert_same_weights(one: VideoUNet, other: VideoUNet) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), atol=0, rtol=0)


def test_lamp_checkpoint_in_bin(unet: VideoUNet, lamp_folder: Path):
    loaded = VideoUNet.from_lamp(lamp_folder, attention="first")
    assert loaded.config.attention_mode == "first"
    assert_same_weights(unet, loaded)


def test_lamp_pipeline_folder(unet: VideoUNet, tmp_path: Path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(LAMP_CONFIG))
    save_tensors(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", unet.state_dict(), {})
    assert_same_weights(unet, VideoUNet.from_lamp(tmp_path, "first_prev"))


def test_lamp_loading_is_strict(unet: VideoUNet, lamp_folder: Path):
    file = lamp_folder / "diffusion_pytorch_model.bin"
    tensors = unet.state_dict()
    removed = tensors.pop(QUERY)
    torch.save(tensors, file)
    with pytest.raises(CheckpointError, match=f"1 tensors of the model are not in the checkpoint: {QUERY}"):
        VideoUNet.from_lamp(lamp_folder, "first_prev")
    torch.save(tensors | {QUERY: removed, "extra": removed}, file)
    with pytest.raises(CheckpointError, match="match nothing in the model: extra"):
        VideoUNet.from_lamp(lamp_folder, "first_prev")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"holds no diffusion_pytorch_model"):
        VideoUNet.from_lamp(lamp_folder, "first_prev")
    (lamp_folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json"):
        VideoUNet.from_lamp(lamp_folder, "first_prev")


@pytest.mark.parametrize("whole", [False, True])
def test_huvidpo_lora_equals_peft(unet: VideoUNet, tmp_path: Path, whole: bool):
    """`whole`: the file holds the wrapped model's entire state dict, not only the adapter."""
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
    )
    wrapped = get_peft_model(with_weights(unet, {}), config).eval()
    file = tmp_path / "model_weights_epoch_3.pth"
    torch.save(wrapped.state_dict() if whole else get_peft_model_state_dict(wrapped), file)
    merged = load_huvidpo_lora(unet, file, alpha=4)
    inputs = torch.randn(1, 4, 3, 4, 4), 5, torch.randn(1, 5, TINY["cross_attention_dim"])
    with torch.no_grad():
        torch.testing.assert_close(merged(*inputs), wrapped(*inputs), atol=1e-5, rtol=1e-4)
        assert not torch.equal(merged(*inputs), unet(*inputs))
    moved = [
        name for name, own in unet.state_dict().items() if not torch.equal(own, merged.state_dict()[name])
    ]
    assert moved
    assert all("attn" in name for name in moved)


def test_lora_of_another_model_is_refused(unet: VideoUNet, tmp_path: Path):
    file = tmp_path / "model_weights_epoch_1.pth"
    half = {f"base_model.model.{QUERY.replace('.weight', '.lora_A.weight')}": torch.zeros(2, 32)}
    torch.save(half, file)
    with pytest.raises(CheckpointError, match="misses its A or B half"):
        load_huvidpo_lora(unet, file)
    pair = {f"base_model.model.other.to_q.lora_{half}.weight": torch.zeros(2, 2) for half in "AB"}
    torch.save(pair, file)
    with pytest.raises(CheckpointError, match=r"match no layer of the model: other.to_q.weight"):
        load_huvidpo_lora(unet, file)


FORMS = {
    "fp16": ("diffusion_pytorch_model.fp16.safetensors",),
    "bin": ("diffusion_pytorch_model.bin",),
    "fp16 bin": ("diffusion_pytorch_model.fp16.bin",),
    "shards": (
        "diffusion_pytorch_model-0000{}-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
    ),
    "shards of fp16": (
        "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ),
    "shards of fp16 by its older name": (
        "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
    ),
    "shards of bin": (
        "diffusion_pytorch_model-0000{}-of-00002.bin",
        "diffusion_pytorch_model.bin.index.json",
    ),
}


def write_form(folder: Path, tensors: dict[str, Tensor], file: str, index: str | None = None) -> None:
    """`tensors` in one file, or in two and an index."""
    places = {name: file.format(1 + i % 2) for i, name in enumerate(tensors)}
    for one in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == one}
        save_file(part, folder / one) if one.endswith("safetensors") else torch.save(part, folder / one)
    if index:
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("form", FORMS)
def test_lamp_folders_load_in_every_form(unet: VideoUNet, tmp_path: Path, form: str):
    (tmp_path / "config.json").write_text(json.dumps(LAMP_CONFIG))
    write_form(tmp_path, unet.state_dict(), *FORMS[form])
    assert_same_weights(unet, VideoUNet.from_lamp(tmp_path, "first_prev"))


def test_shards_that_are_not_whole_are_refused(unet: VideoUNet, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(LAMP_CONFIG))
    write_form(tmp_path, unet.state_dict(), *FORMS["shards"])
    index = tmp_path / FORMS["shards"][1]
    content = index.read_text()
    facts = json.loads(content)
    facts["weight_map"].popitem()
    index.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="differ in 1 tensors"):
        VideoUNet.from_lamp(tmp_path, "first_prev")
    index.write_text('{"weight_map": [1]}')
    with pytest.raises(CheckpointError, match="no weight_map"):
        VideoUNet.from_lamp(tmp_path, "first_prev")
    index.write_text(content)
    (tmp_path / FORMS["shards"][0].format(1)).unlink()
    with pytest.raises(CheckpointError, match="00001-of-00002"):
        VideoUNet.from_lamp(tmp_path, "first_prev")


@pytest.mark.parametrize(
    "config", ["{}", "[]", "{", '{"block_out_channels": "x"}', '{"block_out_channels": [7, 7]}']
)
def test_a_config_that_makes_no_network_is_refused(lamp_folder: Path, config: str):
    (lamp_folder / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        VideoUNet.from_lamp(lamp_folder, "first_prev")


def test_names_that_collide_are_refused(unet: VideoUNet, tmp_path: Path):
    """peft's wrapped name and the plain one become one: whichever came last would win."""
    wrapped = QUERY.replace(".weight", ".base_layer.weight")
    torch.save({QUERY: torch.zeros(32, 32), wrapped: torch.ones(32, 32)}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=f"also called {QUERY}"):
        adapted_tensors(unet, tmp_path / "two.pth")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused_at_every_edge(unet: VideoUNet, tmp_path: Path, value: float):
    bad = {QUERY: torch.zeros(32, 32)}
    bad[QUERY][3, 5] = value
    with pytest.raises(CheckpointError, match=f"NaN or infinity: {QUERY}"):
        save_tensors(tmp_path / "bad.safetensors", bad, {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=f"NaN or infinity: {QUERY}"):
        with_weights(unet, bad)
    with pytest.raises(CheckpointError, match=f"NaN or infinity: {QUERY}"):
        load_strict(copy.deepcopy(unet), unet.state_dict() | bad)


def test_overflow_in_half_is_refused(unet: VideoUNet, tmp_path: Path):
    large = {QUERY: torch.full((32, 32), 1e5)}
    with_weights(unet, large)
    with pytest.raises(CheckpointError, match="float16 ends at 65504"):
        with_weights(nn.Module.to(copy.deepcopy(unet), torch.float16), large)
    with pytest.raises(CheckpointError, match="float16 ends at 65504"):
        save_tensors(tmp_path / "half.safetensors", {QUERY: large[QUERY].half()}, {})


def mutated(content: bytes, place: int, value: int, length: int) -> bytes:
    """`content` with one byte set, and cut where `length` says."""
    changed = bytearray(content)
    changed[place % len(changed)] = value
    return bytes(changed[: len(changed) - length % len(changed)])


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0, 2**16),
    value=st.integers(0, 255),
    length=st.one_of(st.just(0), st.integers(0, 2**16)),
    suffix=st.sampled_from([".safetensors", ".pth", ".bin"]),
)
def test_damaged_files_raise_errors_of_ours_alone(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, length: int, suffix: str
):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    good, file = folder / f"good{suffix}", folder / f"bad{suffix}"
    if not good.exists():
        tensors = {"a.weight": torch.ones(3, 3), "b.bias": torch.ones(2).half()}
        if suffix == ".safetensors":
            save_file(tensors, good)
        else:
            torch.save(tensors, good, _use_new_zipfile_serialization=suffix == ".pth")
    file.write_bytes(mutated(good.read_bytes(), place, value, length))
    for read in (load_tensors, read_metadata):
        try:
            read(file)
        except CheckpointError:
            continue


def test_equal_runs_write_equal_files(tmp_path):
    """safetensors leaves the order of its metadata to chance; the trainers write a dozen facts."""
    facts = {f"fact {i} \u00e4\n": f'{i}"' for i in range(12)}
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2, dtype=torch.float16)}
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for file in files:
        save_tensors(file, tensors, facts)
    assert len({file.read_bytes() for file in files}) == 1
    assert read_metadata(files[0]) == facts
    for name, tensor in load_tensors(files[0]).items():
        assert torch.equal(tensor, tensors[name])


def test_a_full_disk_is_an_error_of_the_disk_with_the_files_name(tmp_path, small_files):
    file = tmp_path / "a.safetensors"
    with small_files(1000), pytest.raises(OSError, match="File too large") as full:
        save_tensors(file, {"a": torch.ones(1000)}, {})
    assert full.value.filename == str(file)
    assert list(tmp_path.iterdir()) == []
