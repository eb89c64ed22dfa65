"""Have a model's weights on this machine, before anybody waits for them or where there is no network later.

python -m huvidpo.fetch --model sd14
python -m huvidpo.fetch --model sd14 --dtype float32 --stage video

What is there whole is not fetched again, and a file that was cut off goes on. The files come into the hub's
cache (HF_HUB_CACHE); serve with HF_HUB_OFFLINE=1 from then on. --check reads all of it, years later too, and
holds it against the hashes it came with. --clip fetches the gate's too, and prints the folder that
judging.promote takes as --clip.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from huvidpo import command, hub
from huvidpo.catalog import Component, load_catalog
from huvidpo.config import PRECISIONS
from huvidpo.loading import fetch, parts_of

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
    parser.add_argument("--clip", metavar="REPO[@COMMIT]", help="a CLIP that judges, too")
    parser.add_argument("--check", action="store_true", help="read everything that is here, too")
    args = parser.parse_args(arguments)
    model, dtype, wanted = catalog.model(args.model), getattr(torch, args.dtype), args.stage or STAGES
    fetch(model, dtype, wanted)
    parts = parts_of(model, dtype, wanted)
    if args.clip:
        clip = parts_of_clip(args.clip)
        hub.fetch(clip)
        print(f"{args.clip}: in {hub.cached(clip[0])}")
        parts += clip
    for repo, commit in sorted(unpinned(parts).items()):
        keep = f'to keep it, write revision = "{commit}" beside its repo in the catalog'
        print(f"{repo}: newest commit taken; {keep}")
    if args.check:
        print(f"{args.model}: {hub.check(parts)} files of weights are as the hub has them")
    print(f"{args.model}: everything is here")
    return 0


def parts_of_clip(name: str) -> list[hub.Part]:
    """What judging.judge.load_judge reads of `name`, a repository of the hub, maybe with @ and a commit."""
    repo, _, commit = name.partition("@")
    source = Component(repo, revision=commit)
    return [hub.Part(source, holds) for holds in (hub.NETWORK, hub.TOKENIZER, "preprocessor_config.json")]


def unpinned(parts: Sequence[hub.Part]) -> dict[str, str]:
    """Repository -> the commit that is here, of those whose parts name none."""
    free = {part.source.location: part for part in parts if part.remote and not part.source.revision}
    return {repo: commit for repo, part in free.items() if (commit := hub.commit_of(part))}


if __name__ == "__main__":
    sys.exit(main())
