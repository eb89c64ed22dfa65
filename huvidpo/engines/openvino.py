"""Networks on a CPU by OpenVINO, converted here without an export step.

The graph of a network is traced once per architecture, weights left out as inputs, and kept on disk
(the engines' folder); every category binds its own weights into it.
"""

import dataclasses
import logging
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from huvidpo import memory
from huvidpo.checkpoint import first_line
from huvidpo.engines.base import EngineSpec, OnLoad, Run
from huvidpo.engines.manifest import engines_folder
from huvidpo.engines.networks import Row, spec_inputs
from huvidpo.errors import EngineError
from huvidpo.files import hash_facts, hash_file, whole_folder
from huvidpo.hardware import limited_isa

logger = logging.getLogger(__name__)

KEPT_SHAPES = 2  # fixed shapes and numbers of streams that stay compiled in each category
STREAMS = 2  # lines beside each other: a request with guidance has two
KEPT = KEPT_SHAPES + STREAMS  # compilations of a category: also for any size, by numbers of streams
GRAPH_BYTES = 128 * 2**20  # what each takes beside its weights, as measured (docs/performance.md)
Shapes = tuple[tuple[int, ...], ...]
Key = tuple[Shapes, int]  # and streams
ANY: Shapes = ()  # the network that takes all others
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_SOURCES = (
    "unet.py",
    "attention.py",
    "engines/base.py",
    "engines/openvino.py",
)  # what a traced graph follows from
_TOOLS = ("torch", "openvino", "diffusers")
_EXAMPLE = EngineSpec("", torch.device("cpu"), lines=2, frames=4, height=2, width=3, tokens=5)


def openvino(row: Row, category: str, module: Any, spec: EngineSpec) -> Run:
    """Raises EngineError if OpenVINO is not installed, or cannot take the module or its dtype."""
    import_openvino()  # before anything that takes it for granted
    if module.dtype not in PRECISIONS:
        raise EngineError(f"openvino computes in float32 or bfloat16, not {module.dtype}: set HUVIDPO_DTYPE")
    precision = PRECISIONS[module.dtype]
    usual = tuple(tuple(x.shape) for x in spec_inputs(row, module.config, spec))
    return OpenVINO(graph(row, module), module.state_dict(), precision, usual, spec.on_load)


def check_memory(modules: Sequence[Any], free: int | None = None) -> None:
    """Raises EngineError if the networks, in all their compilations, could take more than the bytes
    that are `free`, by default to this process. torch shares what categories have in common; OpenVINO holds
    every one whole, and beside it what it makes of it.
    """
    free = memory.available() if free is None else free
    distinct = {id(module): module for module in modules}.values()
    numbers = sum(tensor.numel() for module in distinct for tensor in module.state_dict().values())
    needed = 4 * KEPT * numbers + KEPT * GRAPH_BYTES * len(distinct)
    if needed > free:
        raise EngineError(
            f"openvino may need {needed / 1e9:.1f} GB for {len(distinct)} networks, and "
            f"{free / 1e9:.1f} GB are free: "
            "serve with HUVIDPO_BACKEND=torch, which shares what categories have in common"
        )


class Lines:
    """A network compiled for one line, which runs any number of them: each as a request of its own, as many
    beside each other as it has streams.
    """

    def __init__(self, compiled: Any):
        self._compiled = compiled
        self._requests: list[Any] = []

    def __call__(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """`arrays` and the result: lines first."""
        count = len(arrays[0])
        while len(self._requests) < count:
            self._requests.append(self._compiled.create_infer_request())
        running = self._requests[:count]
        try:
            for i, request in enumerate(running):
                request.start_async([array[i : i + 1] for array in arrays], share_inputs=True)
            for request in running:
                request.wait()
        except BaseException:
            self._stop(running)
            raise
        return np.concatenate([request.output_tensors[0].data for request in running])

    def _stop(self, running: Sequence[Any]) -> None:
        """One line has failed: the others read `arrays`, and would be busy at the next call."""
        self._requests.clear()  # nobody knows what a failed request is good for
        for request in running:
            request.cancel()
        for request in running:
            with suppress(RuntimeError):  # it failed, or says that it was cancelled
                request.wait()


class OpenVINO:
    """A graph and its weights, compiled for one line. A lone line has all threads; of several, two run beside
    each other, which is faster than each by all threads in turn, most of all where a thread is held up by
    other work on its core, and one that is left over has all threads again. A line's numbers do not depend on
    how many there are.

    For the usual sizes it is compiled with fixed shapes, which run up to 1.5 times as fast. All other sizes
    share one compilation: it takes seconds, and who asks for a new size each time would make the rest wait.

    `usual`: shapes of the inputs, lines first. Without, every size is usual. The latest KEPT_SHAPES stay.
    """

    def __init__(
        self,
        graph: Any,
        weights: Mapping[str, Tensor],
        precision: str,
        usual: Shapes = (),
        on_load: OnLoad = lambda seconds: None,
    ):
        self.graph, self.weights, self.precision, self.on_load = graph, weights, precision, on_load
        self.usual, self.threads = tuple((1, *shape[1:]) for shape in usual), torch.get_num_threads()
        self.networks: OrderedDict[Key, Lines] = OrderedDict()
        self._table, self._compiling = Lock(), Lock()  # one thread may warm up while another runs
        self._beside: set[Key] = set()  # compiled, or not to be, while the other number of streams serves

    def __call__(self, *inputs: Tensor) -> Tensor:
        arrays = [x.float().contiguous().numpy() for x in inputs]
        shapes = tuple((1, *array.shape[1:]) for array in arrays)
        count = len(arrays[0])
        abreast = count - count % STREAMS
        parts = [slice(0, abreast), slice(abreast, count)]
        out = [
            self.network(shapes, part.stop - part.start)([array[part] for array in arrays])
            for part in parts
            if part.stop > part.start
        ]
        return torch.from_numpy(np.concatenate(out)).to(inputs[0].dtype)

    def cold(self, sizes: tuple[int, ...]) -> bool:
        """Whether lines of `sizes`, those of the first input, would have to wait for a compilation."""
        keys = (self._key(self._shapes(sizes), lines) for lines in range(1, STREAMS + 1))
        return not any(key in self.networks for key in keys)

    def warm(self, sizes: tuple[int, ...], lines: int) -> None:
        """Compiles what `cold` misses, for so many lines at once."""
        self._compiled(self._key(self._shapes(sizes), lines))

    def network(self, shapes: Shapes, lines: int) -> Lines:
        """What runs `lines` of these shapes: if only the one with the other number of streams is compiled,
        that one, and the right one is compiled beside it.
        """
        key = self._key(shapes, lines)
        other = key[0], STREAMS + 1 - key[1]
        with self._table:
            waits = key not in self.networks and other in self.networks
            if waits and key not in self._beside:
                self._beside.add(key)
                Thread(target=self._compile_beside, args=(key,), daemon=True).start()
        return self._compiled(other if waits else key)

    def _shapes(self, sizes: tuple[int, ...]) -> Shapes:
        if self.usual and self.usual[0][1:] == sizes:
            return self.usual
        return ((1, *sizes),)

    def _key(self, shapes: Shapes, lines: int) -> Key:
        streams = min(STREAMS, lines, self.threads)
        return (shapes if not self.usual or shapes == self.usual else ANY), streams

    def _compile_beside(self, key: Key) -> None:
        try:
            self._compiled(key)
        except EngineError as error:  # the other number of streams goes on; it is not tried again
            logger.warning("lines go on one after the other: %s", error)
        else:
            self._beside.discard(key)

    def _compiled(self, key: Key) -> Lines:
        """Compiled now if it was not."""
        with self._table:
            if key in self.networks:
                self.networks.move_to_end(key)
                return self.networks[key]
        with self._compiling:
            if key not in self.networks:
                network = Lines(self.compile(*key))
                with self._table:
                    self.networks[key] = network
                    fixed = [kept for kept in self.networks if kept[0] != ANY]
                    for oldest in fixed[:-KEPT_SHAPES]:
                        del self.networks[oldest]
            return self.networks[key]

    def compile(self, shapes: Shapes, streams: int) -> Any:
        """For inputs of fixed `shapes`, or of any."""
        started = time.monotonic()
        model = bind(self.graph, self.weights)
        if shapes != ANY:
            model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # the two runners would be pinned to the same cores
        }
        try:
            compiled = core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise EngineError(
                f"openvino cannot compile this network ({first_line(error)[:200]}): "
                "serve with HUVIDPO_BACKEND=torch"
            ) from error
        seconds = time.monotonic() - started
        logger.info("compiled for %s in %.1f s", shapes[0] if shapes else "any shape", seconds)
        self.on_load(seconds)
        return compiled


@cache
def core() -> Any:
    return import_openvino().Core()


def import_openvino() -> Any:
    """Without its telemetry, which would report every import and conversion to its makers.

    Raises EngineError if it is not installed, or would crash.
    """
    if limit := limited_isa():  # followed by some of its kernels and not by others
        raise EngineError(f"openvino crashes under {limit}: unset it, or set HUVIDPO_BACKEND=torch")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise EngineError(
            f"openvino cannot be loaded ({error}): pip install openvino, or set HUVIDPO_BACKEND=torch"
        ) from error
    return openvino


def graph(row: Row, module: Any) -> Any:
    """The network without its weights, from disk or traced now.

    Each input is named by its tensor in the state dict, but the network's own, which come first.
    """
    folder = engines_folder() / "openvino" / f"{row.name}-{architecture(module.config)}"
    if (folder / "graph.xml").is_file():
        return core().read_model(folder / "graph.xml")
    started = time.monotonic()
    model = trace(row, module)
    logger.info("%s: converted for openvino in %.1f s", row.name, time.monotonic() - started)
    keep(model, folder)
    return model


def architecture(config: Mapping[str, Any]) -> str:
    """Names everything a graph follows from: configuration, code, the converting libraries."""
    here = Path(__file__).parents[1]
    facts = {
        "config": {name: value for name, value in config.items() if not name.startswith("_")},
        "tools": {name: version(name) for name in _TOOLS},
        "sources": [hash_file(here / name) for name in _SOURCES],
    }
    return hash_facts(facts)[:24]


@torch.no_grad()
def trace(row: Row, module: Any) -> Any:
    """Torch's tracer follows sizes as it follows tensors, so the graph takes any shape."""
    ov = import_openvino()
    inputs = spec_inputs(row, module.config, scaled_example(module.config))
    tensors = module.state_dict()

    def call(*arguments: Tensor) -> Tensor:
        with replaced(module, dict(zip(tensors, arguments[len(inputs) :], strict=True))):
            return row.call(module, *arguments[: len(inputs)])

    example = (*inputs, *(tensor.float() for tensor in tensors.values()))
    try:
        with warnings.catch_warnings():
            # of sizes read as numbers: those in torch's and diffusers' checks, which choose nothing here
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(call, example, check_trace=False)
        model = ov.convert_model(traced, example_input=example)
    except Exception as error:  # of many kinds: whatever a converter stumbles over
        raise EngineError(
            f"openvino cannot convert {row.name} ({first_line(error)[:200]}): "
            "serve with HUVIDPO_BACKEND=torch"
        ) from error
    for port, name in zip(model.inputs[len(inputs) :], tensors, strict=True):
        port.get_tensor().set_names({name})
    return model


def scaled_example(config: Mapping[str, Any]) -> EngineSpec:
    """Sizes that halve as often as the network halves them; nowhere 1, which tracing would bake in."""
    step = 2 ** (len(config["block_out_channels"]) - 1)
    return dataclasses.replace(_EXAMPLE, height=_EXAMPLE.height * step, width=_EXAMPLE.width * step)


@contextmanager
def replaced(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """`module` with plain tensors in place of its parameters and buffers, which the tracer then sees."""
    owners = [(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in tensors]
    saved: list[tuple[Any, Any]] = [(owner._parameters, owner._parameters.copy()) for owner, _ in owners]
    saved += [(owner._buffers, owner._buffers.copy()) for owner, _ in owners]
    try:
        for (owner, leaf), tensor in zip(owners, tensors.values(), strict=True):
            delattr(owner, leaf)
            owner.__dict__[leaf] = tensor
        yield
    finally:
        for owner, leaf in owners:
            owner.__dict__.pop(leaf, None)
        for table, entries in saved:
            table.update(entries)


def keep(model: Any, folder: Path) -> None:
    """Save a graph, all at once. Where nothing can be written it is traced anew at every start."""
    try:
        with whole_folder(folder) as part:
            import_openvino().save_model(model, part / "graph.xml", compress_to_fp16=False)
    except (OSError, RuntimeError) as error:
        logger.info("the graph is not kept in %s: %s", folder, error)


def bind(graph: Any, weights: Mapping[str, Tensor]) -> Any:
    """A copy of `graph` whose weights are constants; the network's own inputs remain."""
    from openvino import opset13

    model = graph.clone()
    bound = [port for port in model.inputs if port.names and port.any_name in weights]
    for port in bound:
        constant = opset13.constant(weights[port.any_name].float().contiguous().numpy())
        node = port.get_node()
        node.output(0).replace(constant.output(0))
        model.remove_parameter(node)
    model.validate_nodes_and_infer_types()
    return model
