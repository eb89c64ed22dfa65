"""Skeletons and binding: state-dict names survive, weights stay outside, graphs equal torch at two shapes."""

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from export import parity
from export.build import load
from export.to_onnx import architecture, bind, skeleton, tensor_offsets
from huvidpo.catalog import Model
from huvidpo.engines.networks import ROWS, Network, network_of
from huvidpo.errors import EngineError
from huvidpo.unet import VideoUNet


def weights_of(path: Path) -> dict[str, onnx.TensorProto]:
    """The weights that a graph takes from outside."""
    graph = onnx.load(path, load_external_data=False).graph
    return {w.name: w for w in graph.initializer if w.data_location == onnx.TensorProto.EXTERNAL}


def exported(network: Network, folder: Path, cache: Path) -> Any:
    """Write the network's graph into `folder`; returns the network, in float32."""
    module = load(network, None)
    bind(skeleton(network, cache), module.state_dict(), folder, network.dtype)
    return nn.Module.float(module)


@pytest.mark.parametrize("name", ROWS)
def test_graph_equals_torch_at_two_shapes(
    name: str, model: Model, plain_model: Model, tmp_path: Path, cache: Path
):
    network = network_of(ROWS[name], plain_model if name.startswith("plain_") else model, "float32")
    module = exported(network, tmp_path, cache)
    results = parity.check(network, module, tmp_path)
    parity.require(results)
    assert len({result.shape for result in results if result.output == results[0].output}) == 2
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert [value.name for value in graph.input] == [port.name for port in network.row.inputs]
    assert [value.name for value in graph.output] == [port.name for port in network.row.outputs]


def test_names_survive_and_weights_stay_outside(model: Model, cache: Path):
    """The gates of a fresh inflation are zero: an export that saw their values would fold them away."""
    network = network_of(ROWS["video_unet"], model, "float32")
    path = skeleton(network, cache)
    module = load(network, None)
    state = module.state_dict()
    outside = weights_of(path)
    assert outside.keys() == state.keys()
    assert all(tuple(w.dims) == tuple(state[name].shape) for name, w in outside.items())
    assert path.stat().st_size < 1_500_000
    assert b"/work" not in path.read_bytes()


def test_a_skeleton_is_exported_once(model: Model, cache: Path):
    network = network_of(ROWS["first_frame_vae_decoder"], model, "float32")
    first = skeleton(network, cache)
    written = first.stat().st_mtime_ns
    twin = network_of(ROWS["video_vae_decoder"], model, "float32")
    assert skeleton(twin, cache) == first  # one architecture, one graph
    assert first.stat().st_mtime_ns == written


def test_another_architecture_has_another_name(model: Model):
    network = network_of(ROWS["video_unet"], model, "float32")
    more_requests = network_of(ROWS["video_unet"], model, "float32", requests=9)
    assert architecture(more_requests) == architecture(network)
    config = network.config | {"attention_mode": "first"}
    others = [
        dataclasses.replace(network, precision="float16"),
        dataclasses.replace(network, config=config),
        dataclasses.replace(network, sizes=network.sizes | {"tokens": 7}),
    ]
    assert len({architecture(other) for other in [network, *others]}) == 4


@pytest.mark.long
def test_lamps_attention_exports_too(model: Model, tmp_path: Path, cache: Path):
    """In float16, as engines are built, and on one level: the other mode and precision were tested above."""
    network = network_of(ROWS["video_unet"], model, "float16")
    config = network.config | {
        "attention_mode": "first",
        "block_out_channels": [8],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
    }
    torch.manual_seed(0)
    module = VideoUNet.from_config(config).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if ".conv1d." in name or ".conv_gate." in name or ".attn_temp." in name:
            nn.init.normal_(parameter, std=0.05)  # these start at zero: nothing would depend on them
    network = dataclasses.replace(network, config=config)
    bind(skeleton(network, cache), nn.Module.half(module).state_dict(), tmp_path, network.dtype)
    parity.require(parity.check(network, nn.Module.float(module), tmp_path))


def test_binding_refuses_weights_of_another_model(model: Model, tmp_path: Path, cache: Path):
    network = network_of(ROWS["first_frame_vae_decoder"], model, "float32")
    path = skeleton(network, cache)
    state = load(network, None).state_dict()
    name = "decoder.conv_in.weight"
    with pytest.raises(EngineError, match=f"{name} is missing in the weights.*: give weights"):
        bind(path, {n: t for n, t in state.items() if n != name}, tmp_path, network.dtype)
    with pytest.raises(EngineError, match=f"{name} has shape .*, the graph wants .*: give weights"):
        bind(path, state | {name: torch.zeros(2)}, tmp_path, network.dtype)


def test_parity_sees_other_weights(model: Model, tmp_path: Path, cache: Path):
    network = network_of(ROWS["first_frame_vae_decoder"], model, "float32")
    module = exported(network, tmp_path, cache)
    with torch.no_grad():
        module.decoder.conv_in.weight.mul_(1.01)
    results = parity.check(network, module, tmp_path)
    assert not any(result.passed for result in results)
    assert "FAILED" in parity.table(results)
    with pytest.raises(EngineError, match=r"differs from torch by .*, allowed 1e-04: build it with"):
        parity.require(results)


def test_offsets_point_at_the_tensors(tmp_path: Path):
    from safetensors.torch import save_file

    tensors = {"b": torch.arange(3.0), "a": torch.arange(4, dtype=torch.int64)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"k": "v"})
    raw = (tmp_path / "x.safetensors").read_bytes()
    for name, (offset, length) in tensor_offsets(tmp_path / "x.safetensors").items():
        assert raw[offset : offset + length] == tensors[name].numpy().tobytes()


def test_differences():
    x = torch.tensor([3.0, 4.0])
    assert parity.difference(x, x) == (0, 0)
    error, largest = parity.difference(torch.tensor([3.0, 4.5]), x)
    assert (error, largest) == pytest.approx((0.1, 0.125))
    assert parity.difference(x[:1], x)[0] == float("inf")
    nan = parity.Result("n", "", "float32", "o", (1,), float("nan"), 0, 1e-4)
    assert not nan.passed
