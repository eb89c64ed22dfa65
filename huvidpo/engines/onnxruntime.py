"""Networks on a CPU by ONNX Runtime, from graphs that `python -m export.build --backend onnxruntime` made."""

from typing import Any

import torch
from torch import Tensor

from huvidpo.engines.base import EngineSpec, Run, check_inputs
from huvidpo.engines.manifest import engines_folder, find_engine
from huvidpo.engines.networks import Row
from huvidpo.errors import EngineError
from huvidpo.files import hash_tensors


def onnxruntime(row: Row, category: str, module: Any, spec: EngineSpec) -> Run:
    """Runs the graph that `export.build --backend onnxruntime` made of these weights.

    Raises EngineError if there is none, or ONNX Runtime is not installed.
    """
    try:
        from onnxruntime import InferenceSession, SessionOptions
    except (ImportError, OSError) as error:
        raise EngineError(
            f"onnxruntime cannot be loaded ({error}): pip install onnxruntime, or set HUVIDPO_BACKEND=torch"
        ) from error
    precision = str(module.dtype).removeprefix("torch.")
    folder, manifest = find_engine(
        engines_folder(),
        network=row.name,
        model=spec.model,
        category=category,
        backend="onnxruntime",
        precision=precision,
        weights_sha256=hash_tensors(module.state_dict(), precision),
    )
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        check_inputs(manifest.inputs, inputs)
        arrays = {port.name: x.contiguous().numpy() for port, x in zip(manifest.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    run.manifest = manifest  # type: ignore[attr-defined]
    return run
