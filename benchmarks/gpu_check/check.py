"""HuViDPO at full size on one GPU, with random weights: seconds, memory, error. A JSON line per figure.

    benchmarks/gpu_check/fetch_wheels.sh; benchmarks/gpu_check/run.sh    a machine with a card and torch
    python -m benchmarks.gpu_check.check --tiny                          on a CPU: does it run?
    python -m benchmarks.gpu_check.check --code ../before --label before        another checkout's code

Sections run in order of value until the budget is spent; one that fails says so in a row, and the next
begins.
Every torch.compile runs in a process of its own, last, and is stopped when the budget is over.
"""

import argparse
import importlib.machinery
import os
import subprocess
import sys
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = ("video", "sdxl")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu_check", help="folder of rows.jsonl")
    parser.add_argument("--budget", type=float, default=440, help="seconds")
    parser.add_argument("--only", nargs="+", default=[], help="sections, by name; default: all")
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout that is measured")
    parser.add_argument("--label", default="", help="goes into every row")
    parser.add_argument("--tiny", action="store_true", help="tiny networks on the CPU")
    parser.add_argument(
        "--compile", choices=NETWORKS, help="only this network, compiled (used by the program)"
    )
    return parser.parse_args()


def import_code(code: Path) -> None:
    """`code` comes first among the modules; `av` is replaced where it is missing: nothing is encoded here."""
    sys.path.insert(0, str(code.resolve()))
    try:
        import av  # noqa: F401
    except ImportError:
        stub = types.ModuleType("av")
        stub.__spec__ = importlib.machinery.ModuleSpec("av", None)  # diffusers asks for it
        sys.modules["av"] = stub


def main() -> None:
    args = parse()
    import_code(args.code)
    import torch

    from benchmarks.gpu_check.networks import FULL, TINY
    from benchmarks.gpu_check.rows import Rows
    from benchmarks.gpu_check.sections import SECTIONS, compiled

    if args.tiny:
        torch.set_num_threads(1)  # threads cost more than they bring
    device = "cuda" if torch.cuda.is_available() and not args.tiny else "cpu"
    if device == "cpu" and not args.tiny:
        sys.exit("no CUDA device is here: --tiny runs on a CPU")
    rows, size = Rows(args.out / "rows.jsonl", device, args.budget, args.label), TINY if args.tiny else FULL
    if unknown := set(args.only) - {*SECTIONS, "compile"}:
        sys.exit(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(SECTIONS)}, compile")
    if args.compile:
        compiled(rows, size, args.compile)
        return
    add_machine(rows, args.tiny)
    for name, section in SECTIONS.items():
        if not args.only or name in args.only:
            attempt(rows, name, lambda section=section: section(rows, size))
    if not args.only or "compile" in args.only:
        for network in NETWORKS:
            attempt(rows, "compile", lambda network=network: compile_apart(rows, args, network))


def add_machine(rows, tiny: bool) -> None:
    import diffusers
    import torch
    import transformers

    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    card = torch.cuda.get_device_name() if rows.cuda else "none"
    rows.add("machine", card, **versions, weights="random", tiny=tiny, cpus=os.cpu_count())


def attempt(rows, name: str, section) -> None:
    """Runs a section; a row tells why there is none of it."""
    if rows.left() < (20 if rows.cuda else 0):
        rows.add(name, "skipped", reason="no time left")
        return
    try:
        section()
    except Exception as failure:
        where = traceback.format_exc().strip().splitlines()[-3:]
        rows.add(name, "failed", reason=f"{type(failure).__name__}: {failure}"[:500], where=where)
    rows.free()


def compile_apart(rows, args: argparse.Namespace, network: str) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check.check", "--out", args.out.resolve()]
    command += ["--code", args.code.resolve(), "--label", args.label]
    command += ["--compile", network, *(["--tiny"] if args.tiny else [])]
    try:
        subprocess.run(list(map(str, command)), cwd=ROOT, timeout=rows.left() - 5, check=True)
    except subprocess.TimeoutExpired:
        rows.add("compile", "failed", network=network, reason=f"not done when {rows.budget:.0f} s were over")


if __name__ == "__main__":
    main()
