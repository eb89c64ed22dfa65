"""Put earlier weights of a category back; a service takes them while it runs.

    python -m judging.rollback --model tiny --category horse                # those before the latest change
    python -m judging.rollback --model tiny --category horse --to 3fa9c1    # those whose SHA-256 starts so
    python -m judging.rollback --model tiny --category horse --list

`judging.promote` keeps what it replaces in `previous/`, beside the model's categories, and so does this: the
first command twice changes nothing.
"""

import argparse
import sys
from pathlib import Path

from huvidpo import command
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.errors import CheckpointError
from huvidpo.files import hash_file
from training.lineage import keep_previous, metrics_of, place, previous


def earlier(target: Path) -> list[Path]:
    """Weights that were kept of `target`, but not those that are there; the latest kept first."""
    there = hash_file(target) if target.is_file() else ""
    kept = previous(target).glob(f"{target.stem}.*{target.suffix}")
    return sorted((file for file in kept if _hash(file) != there), key=lambda file: -file.stat().st_mtime_ns)


def roll_back(target: Path, to: str = "") -> str:
    """Returns the SHA-256 of what is at `target` now. Raises CheckpointError; `target` stays then."""
    found = [file for file in earlier(target) if _hash(file).startswith(to)]
    if not found:
        raise CheckpointError(
            f"{previous(target)} holds no earlier {target.name}" + (f" {to}..." if to else "")
        )
    if to and len(found) > 1:
        raise CheckpointError(f"{to}: {len(found)} earlier {target.name} start so; give more of the SHA-256")
    if hash_file(found[0]) != _hash(found[0]):
        raise CheckpointError(f"{found[0]} is damaged: its SHA-256 is not the one in its name")
    keep_previous(target)
    place(found[0], target, metrics_of(found[0]))
    return _hash(found[0])


def _hash(kept: Path) -> str:
    return kept.stem.rpartition(".")[2]


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("judging.rollback", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    catalog = load_catalog()
    target = catalog.model(args.model).categories / catalog.category(args.category).weights
    if args.list:
        print("\n".join(_hash(file) for file in earlier(target)))
    else:
        print(f"{target}: {roll_back(target, args.to)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m judging.rollback",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"a model of the catalog ({DEFAULT_MODEL})")
    parser.add_argument("--category", required=True, help="a category of the catalog")
    parser.add_argument("--to", default="", help="start of a SHA-256; default: the latest that was kept")
    parser.add_argument("--list", action="store_true", help="show what was kept, the latest first")
    return parser


if __name__ == "__main__":
    sys.exit(main())
