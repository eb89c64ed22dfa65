"""Engines on disk: what a folder of the cache holds, and whether it may be used.

`export` writes, the runtime reads:

    <cache>/<key>/manifest.json                      a Manifest
    <cache>/<key>/engine.plan                        TensorRT's flavours
    <cache>/<key>/model.onnx, weights.safetensors    ONNX Runtime's

The key is the sha256 of everything that decides what is built: the same inputs are found again, others never
collide.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huvidpo.catalog import PROJECT_ROOT
from huvidpo.errors import EngineError
from huvidpo.files import hash_facts

ONNX = "onnxruntime"
BACKENDS = ("tensorrt", "tensorrt-rtx", ONNX)
MANIFEST = "manifest.json"
_MEASURED = ("build_seconds", "bytes", "created")  # facts about a build, not what decides it


@dataclass(frozen=True)
class Port:
    """An input or output of a network: the shapes its profile allows, and the one it is tuned for."""

    name: str
    dtype: str  # torch's name: float16, float32, bfloat16, int64
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in ("min", "opt", "max"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        lengths = {len(self.min), len(self.opt), len(self.max)}
        if len(lengths) > 1 or not all(
            0 < low <= best <= high for low, best, high in zip(self.min, self.opt, self.max, strict=True)
        ):
            raise ValueError(
                f"{self.name}: shapes {self.min}, {self.opt}, {self.max} are not min <= opt <= max"
            )

    def allows(self, shape: Iterable[int]) -> bool:
        """Whether `shape` lies within the profile."""
        shape = tuple(shape)
        bounds = zip(self.min, shape, self.max, strict=False)
        return len(shape) == len(self.min) and all(low <= size <= high for low, size, high in bounds)


@dataclass(frozen=True)
class Manifest:
    """What is known about one engine; a plan itself tells its shapes to a GPU only."""

    network: str  # a row of networks.py
    model: str  # of the catalog
    category: str  # of the catalog; empty for networks that serve all categories
    backend: str  # one of BACKENDS
    tensorrt_version: str  # of the flavour that built the plan; empty for ONNX Runtime
    compute_capabilities: tuple[str, ...]  # "8.9", ...: the GPUs the plan runs on; empty for ONNX Runtime
    precision: str  # float32, float16 or bfloat16
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    onnx_sha256: str  # of the graph without its weights
    weights_sha256: str  # see `huvidpo.files.hash_tensors`
    build_seconds: float = 0.0
    bytes: int = 0  # of the engine's files, the manifest apart
    created: str = ""  # ISO time, UTC

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r} is unknown, known: {', '.join(BACKENDS)}")
        object.__setattr__(self, "compute_capabilities", tuple(self.compute_capabilities))
        for field in ("inputs", "outputs"):
            object.__setattr__(self, field, tuple(_port(port) for port in getattr(self, field)))

    def key(self) -> str:
        """The name of the engine's folder."""
        return hash_facts(_without(self, *_MEASURED))

    def content(self) -> str:
        """Equal for engines that are the same but for the names of model and category."""
        return hash_facts(_without(self, *_MEASURED, "model", "category"))

    def files(self) -> tuple[str, ...]:
        """Names of the engine's files beside the manifest."""
        return ("model.onnx", "weights.safetensors") if self.backend == ONNX else ("engine.plan",)


def engines_folder() -> Path:
    """The cache: HUVIDPO_ENGINES, else runs/engines of the project."""
    return Path(os.environ.get("HUVIDPO_ENGINES") or PROJECT_ROOT / "runs" / "engines")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`, where its files already are."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Raises EngineError for an engine that is incomplete, changed after its build, or of another version."""
    path = folder / MANIFEST
    again = "delete the folder and run export.build again"
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EngineError(f"{path} cannot be read as a manifest ({error}): {again}") from error
    if folder.name != manifest.key():
        raise EngineError(f"{path} does not belong to its folder's name: it was changed or moved; {again}")
    try:
        found = size_of(folder, manifest)
    except OSError as error:
        raise EngineError(f"{folder} misses {error.filename}: {again}") from error
    if found != manifest.bytes:
        raise EngineError(f"{folder} holds {found} bytes, its manifest says {manifest.bytes}: {again}")
    return manifest


def size_of(folder: Path, manifest: Manifest) -> int:
    """Bytes of an engine's files. Raises OSError if one is missing."""
    return sum((folder / name).stat().st_size for name in manifest.files())


def refusal(
    manifest: Manifest,
    *,
    version: str = "",
    compute_capability: str = "",
    precision: str = "",
    weights_sha256: str = "",
) -> str:
    """Why an engine may not be used here, and what to do; empty if it may. What is left empty is not checked.

    `version`: of the TensorRT that would run it. `compute_capability`: of the GPU, "8.9". `precision`: the
    caller's. `weights_sha256`: of the weights that the caller wants run, in that precision.
    """
    again = f"run `python -m export.build --model {manifest.model} --backend {manifest.backend}`"
    if precision and precision != manifest.precision:
        return (
            f"it was built in {manifest.precision}, the model runs in {precision}: {again} "
            f"--precision {precision}, or set HUVIDPO_DTYPE={manifest.precision}"
        )
    if weights_sha256 and weights_sha256 != manifest.weights_sha256:
        return f"it was built from other weights than the model now has: {again}"
    if manifest.backend == ONNX:
        return ""
    if version and version != manifest.tensorrt_version:
        return f"it was built by TensorRT {manifest.tensorrt_version}, here is {version}: {again}"
    if compute_capability and compute_capability not in manifest.compute_capabilities:
        built = ", ".join(manifest.compute_capabilities)
        target = "sm" + compute_capability.replace(".", "")
        built_for = f"it was built for compute capability {built}, this GPU is {compute_capability}"
        return f"{built_for}: {again} with --target {target}"
    return ""


def engines(cache: Path) -> list[tuple[Path, Manifest]]:
    """All whole engines of `cache`, newest first; broken ones are left out."""
    found = []
    for path in cache.glob(f"*/{MANIFEST}"):
        try:
            found.append((path.parent, read_manifest(path.parent)))
        except EngineError:
            continue
    return sorted(found, key=lambda entry: (entry[1].created, entry[0].name), reverse=True)


def find_engine(
    cache: Path, *, network: str, model: str, category: str, backend: str, **here: str
) -> tuple[Path, Manifest]:
    """Folder and manifest of the newest engine that may be used; `here` is what `refusal` checks.

    Raises EngineError with the reasons if there is none.
    """
    what = f"{network} of {model}" + (f", category {category}," if category else "")
    reasons = []
    for folder, manifest in engines(cache):
        asked = (network, model, category, backend)
        if (manifest.network, manifest.model, manifest.category, manifest.backend) != asked:
            continue
        reason = refusal(manifest, **here)
        if not reason:
            return folder, manifest
        reasons.append(f"{folder.name[:12]}: {reason}")
    if reasons:
        raise EngineError(f"no engine in {cache} for {what} may be used: {'; '.join(reasons)}")
    raise EngineError(
        f"no {backend} engine for {what} is in {cache}: "
        f"run `python -m export.build --model {model} --backend {backend}`, or set HUVIDPO_ENGINES"
    )


def _port(port: Any) -> Port:
    return port if isinstance(port, Port) else Port(**port)


def _without(manifest: Manifest, *names: str) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(manifest).items() if key not in names}
