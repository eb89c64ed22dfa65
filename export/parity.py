"""Exported graph against torch, on the CPU at two shapes: a constant baked in shows at the second.

ONNX Runtime runs the graph. The reference is the network in float32, its weights rounded to the graph's
precision. Errors are relative: `error` is |graph - torch| / |torch| over all numbers (Euclidean norms),
`largest` the largest difference over the largest number.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.to_onnx import ONNX_FILE
from huvidpo.engines.networks import Network, Span
from huvidpo.errors import EngineError
from huvidpo.files import write_text

LIMITS = {"float32": 1e-4, "float16": 5e-3}
"""largest `error` per precision; ONNX Runtime has no bfloat16 kernels on a CPU"""
_SHAPES = (
    {"batch": 1, "frames": 3, "height": 2, "width": 4},
    {"batch": 3, "frames": 5, "height": 4, "width": 3},
)  # in steps of each axis


@dataclass(frozen=True)
class Result:
    """One output at one shape."""

    network: str
    category: str
    precision: str
    output: str
    shape: tuple[int, ...]
    error: float
    largest: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for nan


def check(network: Network, module: Any, folder: Path, category: str = "", shapes: int = 2) -> list[Result]:
    """Compare model.onnx in `folder` with `module`, the network in float32, at `shapes` shapes."""
    session = open_session(folder / ONNX_FILE)
    results = []
    for seed, steps in enumerate(_SHAPES[:shapes]):
        inputs = network.sample_inputs(chosen_sizes(network, steps), seed)
        expected = reference(network, module, inputs)
        got = run(session, inputs)
        for port, theirs, ours in zip(network.row.outputs, expected, got, strict=True):
            error, largest = difference(ours, theirs)
            results.append(
                Result(
                    network.row.name,
                    category,
                    network.precision,
                    port.name,
                    tuple(ours.shape),
                    error,
                    largest,
                    LIMITS[network.precision],
                )
            )
    return results


def require(results: Sequence[Result]) -> None:
    """Raises EngineError for results beyond their limits."""
    failed = [result for result in results if not result.passed]
    if failed:
        worst = max(failed, key=lambda result: result.error)
        raise EngineError(
            f"{worst.network} differs from torch by {worst.error:.1e} at {list(worst.shape)}, allowed "
            f"{worst.limit:.0e}: build it with --precision float32, or see whether its weights are finite"
        )


def chosen_sizes(network: Network, steps: Mapping[str, int]) -> dict[str, int]:
    return {
        axis: steps[axis.removeprefix("image_")] * span.step
        for axis, span in network.sizes.items()
        if isinstance(span, Span)
    }


@torch.no_grad()
def reference(network: Network, module: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The module's outputs for these inputs, in float32."""
    return [network.row.call(module, *(x.float() for x in inputs.values()))]


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU, with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    out = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    return [torch.from_numpy(x) for x in out]


def difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """(error, largest), see above. Infinite for other shapes."""
    if ours.shape != theirs.shape:
        return float("inf"), float("inf")
    off = ours.float() - theirs
    return (off.norm() / theirs.norm()).item(), (off.abs().max() / theirs.abs().max()).item()


def table(results: Sequence[Result]) -> str:
    """One line per result."""
    lines = [
        f"{'network':<26}{'category':<12}{'precision':<11}{'output':<28}{'error':>9}{'largest':>9}  shape"
    ]
    for r in results:
        failed = "" if r.passed else f"  FAILED, allowed {r.limit:.0e}"
        shape = "x".join(map(str, r.shape))
        lines.append(
            f"{r.network:<26}{r.category:<12}{r.precision:<11}{r.output:<28}{r.error:>9.1e}{r.largest:>9.1e}"
            f"  {shape}{failed}"
        )
    return "\n".join(lines)


def write_report(path: Path, results: Sequence[Result]) -> None:
    """The results as JSON."""
    rows = [dataclasses.asdict(result) | {"passed": result.passed} for result in results]
    write_text(path, json.dumps(rows, indent=1) + "\n")
