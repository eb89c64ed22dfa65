"""Networks on a GPU: TensorRT plans that `python -m export.build` made.

Two flavours share one API: `tensorrt`, and `tensorrt_rtx`, whose plans are compiled for the GPU when they
load. All engines of a device run in turn on one stream and share one scratch memory.
"""

import logging
import mmap
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from huvidpo.engines.base import EngineSpec, OnLoad, Run, check_inputs
from huvidpo.engines.flavours import FLAVOURS, import_flavour, make_logger
from huvidpo.engines.manifest import Manifest, engines_folder, find_engine
from huvidpo.engines.networks import Row
from huvidpo.errors import EngineError
from huvidpo.files import hash_tensors, write_bytes

logger = logging.getLogger(__name__)

Shapes = tuple[tuple[int, ...], ...]


def tensorrt(row: Row, category: str, module: Any, spec: EngineSpec) -> Run:
    """The plan for these weights, checked now and loaded at its first call.

    Raises EngineError if no flavour is installed, or none has a plan that may be used here.
    """
    refusals, devices = [], {}
    for flavour in FLAVOURS:
        try:
            devices[flavour] = open_device(flavour, spec.device)
        except EngineError as error:
            refusals.append(str(error))
    if not devices:
        raise EngineError("; ".join(refusals))
    capability = "{}.{}".format(*torch.cuda.get_device_capability(spec.device))
    precision = str(module.dtype).removeprefix("torch.")
    weights = hash_tensors(module.state_dict(), precision)  # of gigabytes: not before there is a use for it
    for flavour, device in devices.items():
        try:
            folder, manifest = find_engine(
                engines_folder(),
                network=row.name,
                model=spec.model,
                category=category,
                backend=flavour,
                version=device.trt.__version__,
                compute_capability=capability,
                precision=precision,
                weights_sha256=weights,
            )
            return Plan(device, folder, manifest, on_load=spec.on_load)
        except EngineError as error:
            refusals.append(str(error))
    raise EngineError("; ".join(refusals))


class Device:
    """What all engines of one flavour on one GPU share."""

    def __init__(self, flavour: str, device: torch.device):
        self.trt = import_flavour(flavour)
        self.flavour, self.device = flavour, device
        self.logger = make_logger(self.trt)
        self.runtime = self.trt.Runtime(self.logger)
        if not self.runtime:
            raise EngineError(f"{flavour} finds no GPU it can use: {self.logger.last_error()}")
        self.stream = torch.cuda.Stream(device)  # TensorRT synchronises the whole device on the default one
        self.scratch = torch.empty(0, dtype=torch.uint8, device=device)
        self.loaded: OrderedDict[int, Plan] = OrderedDict()  # by id, the latest used last

    def reserve(self, size: int) -> Tensor:
        """At least `size` bytes of memory, the same for all engines until one needs more."""
        if self.scratch.numel() < size:
            self.scratch = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self.scratch

    def use(self, plan: "Plan") -> None:
        """Load `plan` if it is not; drop those unused for longest when memory does not suffice."""
        if id(plan) in self.loaded:
            self.loaded.move_to_end(id(plan))
            return
        while True:
            try:
                plan.load()
                break
            except (EngineError, torch.OutOfMemoryError):
                if not self.loaded:
                    raise
                _, oldest = self.loaded.popitem(last=False)
                oldest.unload()
        self.loaded[id(plan)] = plan


@cache
def open_device(flavour: str, device: torch.device) -> Device:
    return Device(flavour, device)


@dataclass
class Recorded:
    """One shape's buffers, whose addresses a CUDA graph holds."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    scratch: Tensor
    graph: torch.cuda.CUDAGraph | None  # None: TensorRT-RTX keeps its own


class Plan:
    """An engine on disk, and on the GPU from its first call on.

    With `graphs` a shape's kernels are launched as one CUDA graph over buffers of its own, into which the
    inputs are copied on the GPU; without, tensors pass by address.
    """

    def __init__(
        self,
        device: Device,
        folder: Path,
        manifest: Manifest,
        graphs: bool = True,
        on_load: OnLoad = lambda seconds: None,
    ):
        self.device, self.folder, self.manifest, self.graphs = device, folder, manifest, graphs
        self.on_load = on_load
        self.engine: Any = None
        self.context: Any = None
        self.recorded: dict[Shapes, Recorded] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Ordered after the work on the caller's stream, and before what it does next."""
        check_inputs(self.manifest.inputs, inputs)
        self.device.use(self)
        caller, own = torch.cuda.current_stream(self.device.device), self.device.stream
        inputs = tuple(x.contiguous() for x in inputs)
        own.wait_stream(caller)
        with torch.cuda.stream(own):
            output = self.replay(inputs) if self.graphs else self.enqueue(inputs)
        caller.wait_stream(own)
        output.record_stream(caller)  # its memory is the own stream's: not to be used again too early
        return output

    def load(self) -> None:
        """Raises EngineError if TensorRT cannot read the plan."""
        started = time.monotonic()
        path = self.folder / "engine.plan"
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self.engine = self.device.runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise EngineError(
                f"{path} cannot be loaded ({self.device.logger.last_error()}): free GPU memory, "
                "or delete its folder and run export.build again"
            )
        self.context = self.make_context()
        seconds = time.monotonic() - started
        what = f"{self.manifest.network} {self.manifest.category}".strip()
        logger.info("%s: %s loaded in %.2f s", what, self.device.flavour, seconds)
        self.on_load(seconds)

    def unload(self) -> None:
        """Free its memory on the GPU."""
        self.recorded.clear()
        self.context = None
        self.engine = None
        torch.cuda.empty_cache()

    def make_context(self) -> Any:
        trt = self.device.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.device.flavour != "tensorrt-rtx":
            return self.engine.create_execution_context(strategy)
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if self.graphs:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        kernels = config.create_runtime_cache()
        if self.kernel_cache.is_file():
            kernels.deserialize(self.kernel_cache.read_bytes())
        config.set_runtime_cache(kernels)
        return self.engine.create_execution_context(config)

    @property
    def kernel_cache(self) -> Path:
        """TensorRT-RTX's kernels, compiled for this GPU when a shape is first met; kept across starts."""
        capability = "{}{}".format(*torch.cuda.get_device_capability(self.device.device))
        version = self.device.trt.__version__
        return engines_folder() / "kernels" / f"{self.folder.name[:24]}-sm{capability}-{version}.bin"

    def keep_kernels(self) -> None:
        """A cache that cannot be written costs the next start some seconds, nothing else."""
        data = bytes(self.context.get_runtime_config().get_runtime_cache().serialize())
        try:
            write_bytes(self.kernel_cache, data)
        except OSError as error:
            logger.info("the compiled kernels are not kept: %s", error)

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        shapes = tuple(tuple(x.shape) for x in inputs)
        recorded = self.recorded.get(shapes)
        if recorded is None or recorded.scratch is not self.device.scratch:
            self.recorded[shapes] = recorded = self.record(inputs)
        for buffer, x in zip(recorded.inputs, inputs, strict=True):
            buffer.copy_(x)
        if recorded.graph is None:
            self.enqueue(recorded.inputs, recorded.output)
        else:
            recorded.graph.replay()
        return recorded.output.clone()

    def record(self, inputs: Sequence[Tensor]) -> Recorded:
        """Run once plainly, which settles all memory, then once more under capture."""
        buffers = tuple(x.clone() for x in inputs)
        result = self.enqueue(buffers)
        if self.device.flavour == "tensorrt-rtx":
            self.keep_kernels()
            return Recorded(buffers, result, self.device.scratch, None)
        self.device.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.device.stream):
            self.launch()
        return Recorded(buffers, result, self.device.scratch, graph)

    def enqueue(self, inputs: Sequence[Tensor], output: Tensor | None = None) -> Tensor:
        """On the device's stream. Raises EngineError if TensorRT refuses."""
        for port, x in zip(self.manifest.inputs, inputs, strict=True):
            self.context.set_input_shape(port.name, tuple(x.shape))
            self.context.set_tensor_address(port.name, x.data_ptr())
        port = self.manifest.outputs[0]
        if output is None:
            shape = tuple(self.context.get_tensor_shape(port.name))
            output = torch.empty(shape, dtype=getattr(torch, port.dtype), device=self.device.device)
        self.context.set_tensor_address(port.name, output.data_ptr())
        memory = self.device.reserve(self.context.update_device_memory_size_for_shapes())
        self.context.set_device_memory(memory.data_ptr(), memory.numel())
        self.launch()
        return output

    def launch(self) -> None:
        if not self.context.execute_async_v3(self.device.stream.cuda_stream):
            raise EngineError(
                f"{self.manifest.network} failed on the GPU ({self.device.logger.last_error()}): "
                "see the log, or serve with HUVIDPO_BACKEND=torch"
            )
