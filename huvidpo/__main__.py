"""Make one clip.

python -m huvidpo "a white horse runs on Mars" --category horse --style cartoon --out horse.mp4
python -m huvidpo "winter waterfall" --category waterfall --first-frame mine.png --seed 7 --format gif
"""

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from huvidpo.catalog import DEFAULT_MODEL, Catalog, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.errors import HuViDPOError, InvalidRequest
from huvidpo.video import FORMATS, encode, read_image

console = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a request that cannot be met."""
    try:
        catalog = load_catalog()
        args = _parse(arguments, catalog)
        _make_clip(args, _request(args, catalog))
    except HuViDPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _quiet_libraries() -> None:
    """Their loading bars and notes would bury ours."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read when they are imported
        os.environ.setdefault(name, "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _parse(arguments: Sequence[str] | None, catalog: Catalog) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m huvidpo",
        description="Make one clip from a prompt.",
        epilog=f"Examples:{__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", help="what the clip shows")
    parser.add_argument("--category", required=True, help="the motion: " + ", ".join(catalog.categories))
    parser.add_argument("--style", default="realistic", help="the look: " + ", ".join(catalog.styles))
    parser.add_argument("--model", default=DEFAULT_MODEL, help="one of: " + ", ".join(catalog.models))
    parser.add_argument("--out", type=Path, help="file to write (default: clip.<format>)")
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of --out, else mp4")
    parser.add_argument("--first-frame", type=Path, help="image to start from, cropped to the clip's aspect")
    parser.add_argument("--seed", type=int, help="0 to 4294967295 (default: drawn and printed)")
    parser.add_argument("--steps", type=int, help="denoising steps of the video")
    parser.add_argument(
        "--guidance", type=float, help="strength of the prompt in the video; 1 turns guidance off"
    )
    parser.add_argument("--frames", type=int, help="frames of the clip")
    parser.add_argument("--negative-prompt", help="what to avoid (default: the style's)")
    return parser.parse_args(arguments)


def _request(args: argparse.Namespace, catalog: Catalog) -> ClipRequest:
    options = catalog.model(args.model).defaults
    return ClipRequest(
        prompt=args.prompt,
        category=catalog.category(args.category).name,
        style=catalog.style(args.style).name,
        seed=secrets.randbelow(2**32) if args.seed is None else args.seed,
        negative_prompt=args.negative_prompt,
        options=options.replace(steps=args.steps, guidance=args.guidance, frames=args.frames),
    )


def _make_clip(args: argparse.Namespace, request: ClipRequest) -> None:
    format = args.format or (args.out.suffix.lstrip(".").lower() if args.out else "mp4")
    if format not in FORMATS:
        raise InvalidRequest(f"format: got {format!r}, allowed: {', '.join(FORMATS)}", "format")
    out = args.out or Path(f"clip.{format}")
    if not out.parent.is_dir():
        raise InvalidRequest(f"out: there is no folder {out.parent}, make it first", "out")
    print(f"seed {request.seed}", flush=True)
    _quiet_libraries()
    first_frame = read_image(args.first_frame) if args.first_frame else _first_frame(args.model, request)

    # imported here and in _first_frame: torch loads only once the request is known to be good
    from huvidpo.pipeline import VideoPipeline

    video = _timed(
        "load video model", lambda: VideoPipeline.from_catalog(args.model, categories=[request.category])
    )
    clip = _timed("video", lambda on_step: video([request], [first_frame], on_step)[0], request.options.steps)
    data = _timed("encode", lambda: encode(clip, request.options.fps, format))
    out.write_bytes(data)
    print(f"{out}: {len(data)} bytes, {request.options.frames} frames at {request.options.fps} per second")


def _first_frame(model: str, request: ClipRequest) -> np.ndarray:
    from huvidpo.pipeline import FirstFramePipeline

    pipeline = _timed("load first-frame model", lambda: FirstFramePipeline.from_catalog(model))
    steps = request.options.first_frame_steps
    return _timed("first frame", lambda on_step: pipeline([request], on_step)[0], steps)


def _timed(stage: str, work: Callable[..., Any], steps: int | None = None) -> Any:
    """Run one stage and print its seconds; with `steps`, `work` gets a step callback that moves a bar."""
    start = time.perf_counter()
    if steps is None:
        result = work()
    else:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(stage, total=steps)
            result = work(lambda step, total, latents: progress.update(task, completed=step, total=total))
    print(f"{stage}: {time.perf_counter() - start:.2f} s", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
