"""torch -> ONNX: a skeleton per architecture, exported once and cached, into which weights are bound by name.

A skeleton is the graph with its weights left out. Their names are those of the network's state dict, their
values are external data: `bind` points them into a safetensors file of one category or merge.
"""

import json
import logging
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from huvidpo.catalog import PROJECT_ROOT
from huvidpo.engines.networks import Network, Row, Span
from huvidpo.errors import EngineError
from huvidpo.files import hash_facts, hash_file, write_bytes

# GroupNormalization stays whole from 21 on. 23 has an Attention operator, which TensorRT refuses for head
# widths without a fused kernel; in 22 attention is plain products that it fuses where it can.
OPSET = 22
ONNX_FILE, WEIGHTS_FILE = "model.onnx", "weights.safetensors"
PREFIX = "network."
_SOURCES = ("huvidpo/unet.py", "huvidpo/attention.py", "huvidpo/engines/networks.py", "export/to_onnx.py")
_TOOLS = ("torch", "onnxscript", "onnx_ir", "diffusers", "transformers")
_BOUNDS = {"batch": (1, 63), "frames": (2, None)}  # diffusers' upsampling takes another way from 64 images on
_EXAMPLE = {"batch": 2, "frames": 4, "height": 2, "width": 3}  # in steps; sizes 0 and 1 would be baked in


class Exportable(nn.Module):
    """A network as its row calls it; held as `network`: its tensors keep their names behind one prefix."""

    def __init__(self, row: Row, network: Any) -> None:
        super().__init__()
        self.network, self.row = network, row
        if row.name == "first_frame_unet":  # sinusoids of `time_ids` are float32: the graph would join types
            network.add_time_proj.register_forward_hook(lambda _, __, out: out.to(network.dtype))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.row.call(self.network, *inputs)


def empty(kind: Any, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """A network of `kind` whose weights are memory never written: it costs no RAM, whatever its size."""
    with torch.device("meta"):
        network = kind.from_config(config)
    network = nn.Module.to_empty(nn.Module.to(network, dtype), device="cpu")
    if constants := {name for name, _ in network.named_buffers()} - set(network.state_dict()):
        raise AssertionError(f"{sorted(constants)}: constants would go into the graph unwritten")
    return network.eval().requires_grad_(False)


def skeleton(network: Network, cache: Path) -> Path:
    """The cached graph of the network's architecture and precision, exported now if it is not there."""
    path = cache / "skeletons" / f"{network.row.kind.__name__}-{architecture(network)}.onnx"
    if not path.is_file():
        write_bytes(path, export_graph(network))
    return path


def architecture(network: Network) -> str:
    """Names everything a graph follows from: configuration, precision, this code, the exporting libraries."""
    config = {name: value for name, value in network.config.items() if not name.startswith("_")}
    for name in ("transformers_version", "dtype", "architectures"):
        config.pop(name, None)
    facts: dict[str, Any] = {
        "network": network.row.kind.__name__,
        "call": network.row.call.__name__,
        "config": config,
        "precision": network.precision,
        "fixed": {axis: size for axis, size in network.sizes.items() if isinstance(size, int)},
        "steps": {axis: size.step for axis, size in network.sizes.items() if isinstance(size, Span)},
        "tools": {name: version(name) for name in _TOOLS},
        "sources": [hash_file(PROJECT_ROOT / name) for name in _SOURCES],
    }
    return hash_facts(facts)[:24]


def export_graph(network: Network) -> bytes:
    """The skeleton, serialised. The weights' memory is never touched."""
    import onnx_ir
    from onnx_ir.passes import common as passes
    from onnxscript import optimizer

    row = network.row
    module = Exportable(row, empty(row.kind, network.config, network.dtype)).eval()
    inputs = network.sample_inputs(example_sizes(network))
    program = torch.export.export(
        module, tuple(inputs.values()), dynamic_shapes=(dynamic_shapes(network),), strict=False
    )
    with quiet("onnx_ir", "onnxscript", "torch.onnx"):
        exported = torch.onnx.export(
            program,
            input_names=[port.name for port in row.inputs],
            output_names=[port.name for port in row.outputs],
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        if exported is None:
            raise EngineError(f"{row.name} did not export to ONNX: report this with your versions of torch")
        graph = exported.model
        weights = hide_weights(graph.graph, module.network.state_dict())
        optimizer.optimize_ir(graph, num_iterations=1)  # a second round finds nothing but identities
        passes.IdentityEliminationPass()(graph)
    for value, held in weights:
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHTS_FILE, 0, held.nbytes, held.dtype, shape=held.shape, name=value.name
        )
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with this machine's paths
    return onnx_ir.serde.serialize_model(graph).SerializeToString()


def hide_weights(graph: Any, saved: Collection[str]) -> list[tuple[Any, Any]]:
    """Take values and prefix off the weights, those named in `saved`. Returns (value, its tensor) pairs.

    An optimiser that saw the values would fold those that are zero away: the gates of an untrained temporal
    convolution. One that sees none leaves names alone.
    """
    weights = []
    for name, value in list(graph.initializers.items()):
        if name.removeprefix(PREFIX) in saved:
            weights.append((value, value.const_value))
            value.const_value = None
            value.name = name.removeprefix(PREFIX)
    return weights


def bind(skeleton: Path, tensors: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Write the graph with `tensors` as its weights: model.onnx beside weights.safetensors, in `dtype`.

    Raises EngineError for a weight of the graph that `tensors` lack or hold in another shape.
    """
    import onnx

    model = onnx.load(skeleton, load_external_data=False)
    outside = [w for w in model.graph.initializer if w.data_location == onnx.TensorProto.EXTERNAL]
    for weight in outside:
        found = tuple(tensors[weight.name].shape) if weight.name in tensors else None
        if found != tuple(weight.dims):
            came = "is missing" if found is None else f"has shape {list(found)}"
            raise EngineError(
                f"{weight.name} {came} in the weights, the graph wants {list(weight.dims)}: "
                "give weights of the model that the graph was exported from"
            )
    kept = {weight.name: tensors[weight.name].to(dtype).contiguous() for weight in outside}
    save_file(kept, folder / WEIGHTS_FILE)
    offsets = tensor_offsets(folder / WEIGHTS_FILE)
    for weight in outside:
        offset, length = offsets[weight.name]
        del weight.external_data[:]
        for key, value in {"location": WEIGHTS_FILE, "offset": offset, "length": length}.items():
            weight.external_data.add(key=key, value=str(value))
    (folder / ONNX_FILE).write_bytes(model.SerializeToString())


def tensor_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset in the file, length), bytes, of the tensors of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def example_sizes(network: Network) -> dict[str, int]:
    """Sizes for the traced example: small, and nowhere 0 or 1, which tracing would bake in."""
    chosen = {}
    for axis, span in network.sizes.items():
        if isinstance(span, Span):
            chosen[axis] = _EXAMPLE[axis.removeprefix("image_")] * span.step
    return chosen


def dynamic_shapes(network: Network) -> tuple[dict[int, Any], ...]:
    """Per input: axis number -> torch.export.Dim, one per name; `step * Dim` where sizes are multiples."""
    dims: dict[str, Any] = {}
    for axis, span in network.sizes.items():
        if isinstance(span, Span):
            low, high = _BOUNDS.get(axis, (1, None))
            dim = torch.export.Dim(axis, min=low, max=high)
            dims[axis] = dim if span.step == 1 else span.step * dim
    return tuple(
        {number: dims[axis] for number, axis in enumerate(port.axes) if axis in dims}
        for port in network.row.inputs
    )


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Silence the warnings of these loggers, one line per hidden weight and pass."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
