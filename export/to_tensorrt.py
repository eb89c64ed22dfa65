"""ONNX -> a TensorRT plan, in a process of its own: a failed build poisons nothing, its memory goes with it.

Two flavours, one API. `tensorrt` builds on and for the GPU of this machine. `tensorrt-rtx` (pip install
tensorrt-rtx-cu13) builds ahead of time for any of RTX_TARGETS, on a machine without a GPU.

    python -m export.to_tensorrt SPEC.json        what `build_plan` starts; imports no torch
"""

import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huvidpo.catalog import PROJECT_ROOT
from huvidpo.engines.flavours import import_flavour, make_logger
from huvidpo.engines.manifest import Port
from huvidpo.errors import EngineError
from huvidpo.files import make_folder

logger = logging.getLogger(__name__)

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
DEFAULT_TARGETS = ("sm80", "sm86", "sm89", "sm120")

# What TensorRT or the system says -> what the user can do. The first message that matches one counts.
ADVICE = (
    (
        r"out of memory|outofmemory|insufficient memory|bad_alloc|cannot allocate|signal 9",
        "Free memory, or build for fewer requests at once with --max-batch.",
    ),
    (
        r"cuda.*(driver|error|initiali[sz]|device)|no cuda|nvidia driver|no gpu|libcuda",
        "Build on a machine with an NVIDIA GPU and driver, or ahead of time with --backend tensorrt-rtx.",
    ),
    (
        r"profile|kmin|kmax|kopt|static dimension|out of range.*dim",
        "Choose sizes that the model takes: engines/networks.py has the spans, --max-batch sets the batch.",
    ),
    (
        r"compute capabilit|sm[_ ]?\d+.*not supported",
        f"Choose --target from {', '.join(RTX_TARGETS)}.",
    ),
    (
        r"no importer|unsupported|not supported|no implementation|could not find any implementation|plugin",
        "Try another --precision or a newer TensorRT, or keep this network on HUVIDPO_BACKEND=torch.",
    ),
    (
        r"deseriali|parse|protobuf|external data|weights",
        "Delete the skeletons folder of the cache and build again.",
    ),
)
NO_DRIVER = "cudaError 35"  # follows every failure of a build ahead of time, whatever the cause
OTHERWISE = (
    "Read the log named above; if it does not help, report it with the versions of TensorRT and torch."
)


@dataclass(frozen=True)
class Plan:
    """What a build cost."""

    seconds: float
    peak_bytes: int  # of the building process


def build_plan(
    onnx: Path, plan: Path, inputs: Sequence[Port], backend: str, capabilities: Sequence[str], log: Path
) -> Plan:
    """Build `onnx` into the file `plan`, for profiles of `inputs`; TensorRT's messages go to `log`.

    `capabilities`: compute capabilities, "8.9", for tensorrt-rtx. Raises EngineError with the builder's first
    complaint and what to do about it.
    """
    spec = {
        "onnx": str(onnx),
        "plan": str(plan),
        "inputs": [asdict(port) for port in inputs],
        "backend": backend,
        "capabilities": list(capabilities),
        "log": str(log),
    }
    make_folder(log.parent)
    with tempfile.TemporaryDirectory() as folder:
        path, answer = Path(folder) / "spec.json", Path(folder) / "answer.json"
        path.write_text(json.dumps(spec | {"answer": str(answer)}), encoding="utf-8")
        command = [sys.executable, "-m", "export.to_tensorrt", str(path)]
        done = subprocess.run(command, cwd=PROJECT_ROOT, check=False)
        said = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else None
    if said is None:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise EngineError(failure(backend, [f"the builder died with {how}"], log))
    if "messages" in said:
        raise EngineError(failure(backend, said["messages"], log))
    logger.info("%s: %.1f s, peak %d MB, log %s", plan, said["seconds"], said["peak_bytes"] >> 20, log)
    return Plan(**said)


def failure(backend: str, messages: Sequence[str], log: Path) -> str:
    """One line: what failed, the first message, the log, and what to do."""
    first = re.sub(r"\s+", " ", messages[0]).strip(" .") if messages else "it gave no reason"
    return f"{backend} could not build the engine: {first[:300]} (log: {log}). {advice(messages)}"


def advice(messages: Sequence[str]) -> str:
    """The sentence that says what to do about TensorRT's messages."""
    for message in messages:
        for pattern, sentence in ADVICE:
            if NO_DRIVER not in message and re.search(pattern, message, re.IGNORECASE):
                return sentence
    return OTHERWISE


def capabilities_of(backend: str, targets: Sequence[str]) -> tuple[str, ...]:
    """Compute capabilities to build for. Raises EngineError for targets the flavour cannot build for.

    `targets`: sm89, ...; none: DEFAULT_TARGETS for tensorrt-rtx, the GPU of this machine for tensorrt.
    """
    if backend == "tensorrt":
        if targets:
            raise EngineError(
                f"--target {' '.join(targets)}: tensorrt builds for the GPU of this machine alone; "
                "leave --target out, or use --backend tensorrt-rtx"
            )
        return (_local_capability(),)
    for target in targets:
        if target not in RTX_TARGETS:
            raise EngineError(
                f"--target {target}: tensorrt-rtx builds for {', '.join(RTX_TARGETS)}; choose one of them, "
                "or --backend tensorrt on a machine with that GPU"
            )
    return tuple(f"{name[2:-1]}.{name[-1]}" for name in sorted(set(targets or DEFAULT_TARGETS), key=_number))


def _number(target: str) -> int:
    return int(target.removeprefix("sm"))


def _local_capability() -> str:
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            "tensorrt builds on the GPU that will run the engine, and no CUDA device is here: build there, "
            "or ahead of time with --backend tensorrt-rtx"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


# Below: the builder's process.


def main(path: str) -> int:
    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    logging.basicConfig(
        filename=spec["log"], level=logging.DEBUG, format="%(asctime)s %(levelname)s %(message)s"
    )
    started = time.monotonic()
    try:
        messages = _build(spec)
    except EngineError as error:
        messages = [str(error)]
    except MemoryError:
        messages = ["out of memory"]
    answer: dict[str, Any] = {"seconds": time.monotonic() - started, "peak_bytes": peak_bytes()}
    if messages:
        answer = {"messages": messages}
    Path(spec["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 1 if messages else 0


def _build(spec: dict[str, Any]) -> list[str]:
    """Write the plan. Returns what went wrong, nothing if all is well."""
    trt = import_flavour(spec["backend"])
    log = make_logger(trt)
    builder = trt.Builder(log)
    if not builder:
        return log.errors
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, log)
    if not parser.parse_from_file(spec["onnx"]):
        return [str(parser.get_error(i).desc()) for i in range(parser.num_errors)] + log.errors
    config = builder.create_builder_config()
    _set_targets(trt, config, spec)
    profile = builder.create_optimization_profile()
    for port in spec["inputs"]:
        profile.set_shape(port["name"], port["min"], port["opt"], port["max"])
    if config.add_optimization_profile(profile) < 0:
        return [*log.errors, "the optimization profile is not valid"]
    config.progress_monitor = _progress(trt)
    with open(spec["plan"], "wb") as file:
        built = builder.build_serialized_network_to_stream(definition, config, _writer(trt, file))
    return [] if built else [*log.errors, "the build failed"]


def _set_targets(trt: Any, config: Any, spec: dict[str, Any]) -> None:
    if spec["backend"] != "tensorrt-rtx":
        return
    config.num_compute_capabilities = len(spec["capabilities"])
    for i, capability in enumerate(spec["capabilities"]):
        member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
        config.set_compute_capability(member, i)


def _writer(trt: Any, file: Any) -> Any:
    """Streams the plan into `file`, without a second copy of it in memory."""

    class Writer(trt.IStreamWriter):
        def write(self, data: Any) -> int:
            return file.write(data)

    return Writer()


def _progress(trt: Any) -> Any:
    """The builder's outermost phases on a progress bar."""
    from tqdm import tqdm

    class Progress(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.bars: dict[str, Any] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if not parent:
                self.bars[phase] = tqdm(total=steps, desc=phase, leave=False)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.bars:
                self.bars[phase].update(step + 1 - self.bars[phase].n)
            return True  # False would cancel the build

        def phase_finish(self, phase: str) -> None:
            if phase in self.bars:
                self.bars.pop(phase).close()

    return Progress()


def peak_bytes() -> int:
    """Most memory this process has held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
