"""Which backend runs a model's networks.

torch         the modules as they are
openvino      CPU; UNets and VAE decoders, but that of a large first frame; converted at start
onnxruntime   CPU; the UNets, from the graphs of `export.build --backend onnxruntime`
tensorrt      CUDA; UNets and VAE decoders, from the plans of `export.build`
auto          the fastest that works here; what it cannot run stays with torch, and the log says why
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from huvidpo.config import BACKENDS
from huvidpo.engines.base import Engine, EngineSpec, Run, check_parity
from huvidpo.engines.networks import ROWS, Row, spec_inputs
from huvidpo.errors import EngineError

logger = logging.getLogger(__name__)

Modules = dict[str, dict[str, Any]]
"""network -> category ("" for networks that serve all) -> the module, or what stands in for it"""

UNETS = ("video_unet", "first_frame_unet", "plain_first_frame_unet")
NETWORKS = {"openvino": tuple(ROWS), "onnxruntime": UNETS, "tensorrt": tuple(ROWS)}
"""what each backend runs; the rest takes milliseconds and stays with torch"""

LARGEST_FIRST_FRAME = 32 * 32
"""latent pixels up to which openvino decodes the first frame: SDXL's 128 x 128 take it 51 s on two cores,
torch 65; the proof at the start would take both, and 4 GB would stay taken (docs/log.md)
"""

BUILT = ("onnxruntime", "tensorrt")
"""backends whose weights are fixed when `export.build` makes them"""


def place_modules(backend: str, modules: Modules, spec: EngineSpec) -> tuple[str, Modules]:
    """What the first of `modules` runs on, and `modules` with engines in place of those the backend runs.

    Every engine is proved against its module: the first that a network has now, the others before their first
    answer. `auto` tries what suits the device; a network, or a category of it, that it cannot run or whose
    engine is refused stays with torch, alone. Of any other name EngineError says why it cannot be had.
    """
    if backend not in BACKENDS:
        raise EngineError(f"backend: got {backend!r}, allowed: {', '.join(BACKENDS)}")
    if backend == "torch":
        return backend, modules
    wanted = backend
    if wanted == "auto":
        wanted = "tensorrt" if spec.device.type == "cuda" else "openvino"
    placed = dict(modules)
    for network in [name for name in modules if _runs(wanted, name, spec)]:
        try:
            make = _maker(wanted, modules[network], spec)
        except EngineError as error:
            if backend != "auto":
                raise
            _say(spec, network, "", wanted, error)
            continue
        placed[network] = _engines(ROWS[network], modules[network], make, spec, wanted, backend == "auto")
    first = next(iter(modules))
    engines = [one for one in placed[first].values() if isinstance(one, Engine)]
    return wanted if engines else "torch", placed


def _runs(backend: str, network: str, spec: EngineSpec) -> bool:
    """Whether a backend runs a network at the sizes of `spec`."""
    if (backend, network) == ("openvino", "first_frame_vae_decoder"):
        return spec.height * spec.width <= LARGEST_FIRST_FRAME
    return network in NETWORKS[backend]


def _say(spec: EngineSpec, network: str, category: str, backend: str, error: EngineError) -> None:
    what = f"{spec.model}, {network} {category}".strip()
    logger.warning("%s: torch serves instead of %s: %s", what, backend, error)


def _maker(backend: str, same: dict[str, Any], spec: EngineSpec) -> Callable[..., Run]:
    """The backend's function (row, category, module, spec) -> Run; its libraries are imported here."""
    _check_device(backend, spec)
    if backend == "tensorrt":
        from huvidpo.engines.tensorrt import tensorrt

        return tensorrt
    if backend == "onnxruntime":
        from huvidpo.engines.onnxruntime import onnxruntime

        return onnxruntime
    from huvidpo.engines.openvino import check_memory, openvino

    check_memory(list(same.values()))
    return openvino


def _engines(
    row: Row, same: dict[str, Any], make: Callable[..., Run], spec: EngineSpec, backend: str, fall_back: bool
) -> dict[str, Any]:
    """Of each category the engine, which those share that share a module. With `fall_back` the module itself
    where an engine cannot be had. The first engine is proved now, the others when they are first used.
    """
    placed: dict[int, Any] = {}
    proved = False
    for category, module in same.items():
        if id(module) in placed:
            continue
        try:
            run = make(row, category, module, spec)
            prove = functools.partial(_proved, row, category, module, spec, backend, fall_back)
            if not proved:
                compare(row, run, module, spec)
            placed[id(module)] = row.engine(module, run, prove if proved else None)
            proved = True
        except EngineError as error:
            if not fall_back:
                raise
            _say(spec, row.name, category, backend, error)
            placed[id(module)] = module
    return {category: placed[id(module)] for category, module in same.items()}


def _proved(
    row: Row, category: str, module: Any, spec: EngineSpec, backend: str, fall_back: bool, run: Run
) -> Run:
    """`run`, or with `fall_back` the module in its place where it is refused. Raises EngineError without."""
    try:
        compare(row, run, module, spec)
    except EngineError as error:
        if not fall_back:
            raise
        _say(spec, row.name, category, backend, error)
        return functools.partial(row.call, module)
    return run


@torch.no_grad()
def compare(row: Row, run: Run, module: Any, spec: EngineSpec) -> None:
    """`check_parity` of an engine and its module at the sizes it is made for."""
    inputs = spec_inputs(row, module.config, spec)
    inputs = tuple(x.to(spec.device, torch.float32 if x.ndim == 1 else module.dtype) for x in inputs)
    check_parity(row.name, run, functools.partial(row.call, module), inputs, module.dtype)


def _check_device(backend: str, spec: EngineSpec) -> None:
    needed = "cuda" if backend == "tensorrt" else "cpu"
    if spec.device.type != needed:
        raise EngineError(
            f"{backend} runs on {needed}, the device is {spec.device}: set HUVIDPO_DEVICE={needed}, "
            "or HUVIDPO_BACKEND=auto"
        )
