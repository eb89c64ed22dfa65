"""Merged weights -> engines that the service runs, checked against torch on the way.

    python -m export.build --model tiny                              TensorRT engines of all networks
    python -m export.build --model tiny --category horse --network video_unet
    python -m export.build --model sd14 --target sm89 --backend tensorrt-rtx
    python -m export.build --model tiny --backend onnxruntime --precision float32

Engines go to the cache, runs/engines or HUVIDPO_ENGINES; what is there already is not built again. The video
UNet has an engine per category, every other network one. A graph is exported once per architecture; each
category or merge only binds its weights into it.
"""

import argparse
import dataclasses
import datetime
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from export import parity
from export.to_onnx import ONNX_FILE, WEIGHTS_FILE, bind, skeleton
from export.to_tensorrt import build_plan, capabilities_of, peak_bytes
from huvidpo import command
from huvidpo.catalog import Catalog, Model, load_catalog
from huvidpo.checkpoint import check_finite
from huvidpo.config import PRECISIONS
from huvidpo.engines.flavours import import_flavour
from huvidpo.engines.manifest import (
    BACKENDS,
    ONNX,
    Manifest,
    engines,
    engines_folder,
    read_manifest,
    size_of,
    write_manifest,
)
from huvidpo.engines.networks import ROWS, Network, Row, network_of, rows_of
from huvidpo.errors import EngineError
from huvidpo.files import hash_file, hash_tensors, make_folder
from huvidpo.loading import load_category, load_part, load_video_unet
from huvidpo.unet import VideoUNet


@dataclass(frozen=True)
class Job:
    """One engine to have: a network of a model, and the category whose weights it takes."""

    network: Network
    category: str
    weights: Path | None  # the category's


@dataclass(frozen=True)
class Target:
    """What engines are built with and for."""

    backend: str
    version: str = ""  # of TensorRT
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """`how`: built, linked (to the same build of another category) or cached (it was there)."""

    folder: Path
    manifest: Manifest
    how: str
    checks: Sequence[parity.Result] = ()
    peak_bytes: int = 0  # of the building process


def build(job: Job, target: Target, cache: Path, shapes: int = 2) -> Outcome:
    """Have the engine of `job` in `cache`. `shapes`: how many the graph is compared with torch at, 0 to 2.

    Raises EngineError when the graph differs from torch or TensorRT refuses, CheckpointError for weights that
    cannot be read. Nothing half-made is left in the cache.
    """
    network, started = job.network, time.monotonic()
    graph = skeleton(network, cache)
    module = load(network, job.weights)
    manifest = draft(job, target, graph, module)
    folder = cache / manifest.key()
    if usable(folder):
        return Outcome(folder, read_manifest(folder), "cached")
    twin = next((found for found in engines(cache) if found[1].content() == manifest.content()), None)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as temporary:
        part = Path(temporary) / "engine"
        part.mkdir()
        if twin:
            for name in manifest.files():
                os.link(twin[0] / name, part / name)
            finish(part, folder, dataclasses.replace(manifest, build_seconds=0.0))
            return Outcome(folder, read_manifest(folder), "linked")
        bind(graph, module.state_dict(), part, network.dtype)
        checked = compare(job, module, part, shapes)
        del module  # the builder needs the memory
        peak = 0
        if target.backend != ONNX:
            peak = to_plan(part, manifest, cache / "logs" / f"{manifest.key()[:16]}.log")
        if checked:
            parity.write_report(part / "parity.json", checked)
        finish(
            part, folder, dataclasses.replace(manifest, build_seconds=round(time.monotonic() - started, 2))
        )
    return Outcome(folder, read_manifest(folder), "built", checked, peak)


def load(network: Network, category: Path | None) -> Any:
    """The network with its weights, of a category if given, on the CPU."""
    row, source = network.row, network.row.component(network.model)
    module: Any
    if row.kind is VideoUNet:
        attention = network.model.attention_mode
        module = load_video_unet(source, torch.float32, attention)
        if category:
            module = load_category(module, category, attention)
        nn.Module.to(module, network.dtype)
        check_finite(module.state_dict(), f"{row.name} in {network.precision}")
    else:
        module = load_part(row.kind, source, network.dtype)
    return module.eval().requires_grad_(False)


def draft(job: Job, target: Target, graph: Path, module: nn.Module) -> Manifest:
    """The manifest of an engine, but for what its build will measure."""
    network = job.network
    return Manifest(
        network=network.row.name,
        model=network.model.name,
        category=job.category,
        backend=target.backend,
        tensorrt_version=target.version,
        compute_capabilities=target.capabilities,
        precision=network.precision,
        inputs=network.profiles(network.row.inputs),
        outputs=network.profiles(network.row.outputs),
        onnx_sha256=hash_file(graph),
        weights_sha256=hash_tensors(module.state_dict(), network.precision),
    )


def usable(folder: Path) -> bool:
    """Whether a whole engine is there; a broken one is removed."""
    if not folder.is_dir():
        return False
    try:
        read_manifest(folder)
    except EngineError:
        shutil.rmtree(folder)
        return False
    return True


def compare(job: Job, module: Any, folder: Path, shapes: int) -> list[parity.Result]:
    """The graph against torch. Raises EngineError beyond the limits."""
    if job.network.precision not in parity.LIMITS or not shapes:
        return []
    results = parity.check(job.network, nn.Module.float(module), folder, job.category, shapes)
    parity.require(results)
    return results


def to_plan(part: Path, manifest: Manifest, log: Path) -> int:
    """Turn the graph in `part` into a plan. Returns the builder's peak bytes."""
    plan = build_plan(
        part / ONNX_FILE,
        part / "engine.plan",
        manifest.inputs,
        manifest.backend,
        manifest.compute_capabilities,
        log,
    )
    for name in (ONNX_FILE, WEIGHTS_FILE):
        (part / name).unlink()
    return plan.peak_bytes


def finish(part: Path, folder: Path, manifest: Manifest) -> None:
    """Write the manifest and move the folder to its place at once; one that came first may stay."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_manifest(part, dataclasses.replace(manifest, bytes=size_of(part, manifest), created=now))
    try:
        part.rename(folder)
    except OSError:
        read_manifest(folder)  # another process built the same meanwhile


def jobs(
    catalog: Catalog,
    model: Model,
    rows: Sequence[Row],
    categories: Sequence[str],
    precision: str,
    requests: int,
) -> Iterator[Job]:
    """One job per network, and per category for those that have weights of their own."""
    for row in rows:
        network = network_of(row, model, precision, requests)
        if not row.per_category:
            yield Job(network, "", None)
            continue
        for name in categories:
            yield Job(network, name, model.categories / catalog.category(name).weights)


def target_of(backend: str, targets: Sequence[str]) -> Target:
    """Raises EngineError for a flavour that is not installed, or targets it cannot build for."""
    if backend == ONNX:
        if targets:
            raise EngineError(f"--target is for TensorRT: leave it out with --backend {backend}")
        return Target(backend)
    version = import_flavour(backend).__version__
    return Target(backend, version, capabilities_of(backend, targets))


def line(job: Job, outcome: Outcome) -> str:
    m = outcome.manifest
    name = f"{m.network} {job.category}".strip()
    peak = f", peak {outcome.peak_bytes / 2**20:,.0f} MB" if outcome.peak_bytes else ""
    error = max((result.error for result in outcome.checks), default=None)
    checked = f", error {error:.1e}" if error is not None else ""
    return (
        f"{name:<36}{m.precision:<10}{outcome.how:<8}{m.build_seconds:>8.1f} s"
        f"{m.bytes / 2**20:>10,.1f} MB{peak}{checked}  {outcome.folder.name[:12]}"
    )


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("export.build", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    catalog = load_catalog()
    model = catalog.model(args.model)
    categories = list(catalog.categories) if "all" in args.category else args.category
    rows = [row for row in rows_of(model) if not args.network or row.name in args.network]
    target = target_of(args.backend or default_backend(), args.target)
    cache: Path = args.cache or engines_folder()
    make_folder(cache)
    todo = list(jobs(catalog, model, rows, categories, args.precision, args.max_batch))
    results: list[parity.Result] = []
    with tqdm(todo, unit="engine") as bar:
        for job in bar:
            bar.set_description(f"{job.network.row.name} {job.category}".strip())
            outcome = build(job, target, cache, 0 if args.no_parity else 2)
            tqdm.write(line(job, outcome))
            results += outcome.checks
    if results:
        print(parity.table(results))
    if args.report:
        parity.write_report(args.report, results)
    print(f"{cache}: {len(todo)} engines; peak memory of this process {peak_bytes() / 2**20:,.0f} MB")
    return 0


def default_backend() -> str:
    """`tensorrt` where a GPU could run what it builds and it is installed, else `tensorrt-rtx`."""
    if torch.cuda.is_available():
        try:
            import_flavour("tensorrt")
            return "tensorrt"
        except EngineError:
            pass
    return "tensorrt-rtx"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument(
        "--category", nargs="+", default=["all"], help="categories of the catalog; default: all"
    )
    parser.add_argument("--network", nargs="+", choices=list(ROWS), help="default: all networks")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="default: tensorrt on a GPU that has it, else tensorrt-rtx",
    )
    parser.add_argument(
        "--target", nargs="+", default=[], help="GPUs to build for with tensorrt-rtx: sm80 sm86 sm89 sm120"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float16")
    parser.add_argument(
        "--max-batch", type=int, default=4, help="most requests denoised together, as HUVIDPO_MAX_BATCH"
    )
    parser.add_argument("--cache", type=Path, help="default: HUVIDPO_ENGINES, else runs/engines")
    parser.add_argument("--report", type=Path, help="write the comparison with torch to this JSON file")
    parser.add_argument("--no-parity", action="store_true", help="do not compare the graphs with torch")
    return parser


if __name__ == "__main__":
    sys.exit(main())
