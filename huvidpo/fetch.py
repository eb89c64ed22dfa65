"""Have a model's weights on this machine, before anybody waits for them or where there is no network later.

python -m huvidpo.fetch --model sd14
python -m huvidpo.fetch --model sd14 --dtype float32 --stage video

What is there whole is not fetched again, and a file that was cut off goes on. The files come into the hub's
cache (HF_HUB_CACHE); serve with HF_HUB_OFFLINE=1 from then on.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from huvidpo import command
from huvidpo.catalog import load_catalog
from huvidpo.config import PRECISIONS
from huvidpo.loading import fetch

STAGES = ("first_frame", "video")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 where something is missing and cannot be had."""
    return command.run("error", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    catalog = load_catalog()
    parser = argparse.ArgumentParser(
        prog="python -m huvidpo.fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="one of: " + ", ".join(catalog.models))
    parser.add_argument("--dtype", choices=PRECISIONS, default="float16", help="that it will be served in")
    parser.add_argument("--stage", choices=STAGES, action="append", help="default: both")
    args = parser.parse_args(arguments)
    fetch(catalog.model(args.model), getattr(torch, args.dtype), args.stage or STAGES)
    print(f"{args.model}: everything is here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
