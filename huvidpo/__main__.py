"""Make one clip.

python -m huvidpo "a white horse runs on Mars" --category horse --style cartoon --out horse.mp4
python -m huvidpo "winter waterfall" --category waterfall --first-frame mine.png --seed 7 --format gif
python -m huvidpo "a white horse runs on Mars" --category horse --model sd14 --device cuda --dtype float16
python -m huvidpo "a white horse runs on Mars" --server http://localhost:3000 --out horse.mp4
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

from huvidpo import command
from huvidpo.catalog import DEFAULT_MODEL, Catalog, load_catalog
from huvidpo.config import BACKENDS, PRECISIONS, ClipRequest
from huvidpo.errors import InvalidRequest
from huvidpo.files import make_way, write_bytes
from huvidpo.video import FORMATS, encode, read_image
from huvidpo.words import known_words, warnings_of

console = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a request that cannot be met."""
    return command.run("error", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    catalog = load_catalog()
    args = _parse(arguments, catalog)
    if args.server:
        _fetch_clip(args)
    else:
        _make_clip(args, _request(args, catalog))
    return 0


def _parse(arguments: Sequence[str] | None, catalog: Catalog) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m huvidpo",
        description="Make one clip from a prompt.",
        epilog=f"Examples:{__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", help="what the clip shows")
    parser.add_argument("--category", help="the motion: " + ", ".join(catalog.categories))
    parser.add_argument("--style", help="the look (default: the first): " + ", ".join(catalog.styles))
    parser.add_argument("--model", help=f"one of: {', '.join(catalog.models)} (default: {DEFAULT_MODEL})")
    parser.add_argument(
        "--server", help="URL of a service that makes the clip; its API key, if any, in HUVIDPO_API_KEY"
    )
    parser.add_argument("--out", type=Path, help="file to write (default: clip.<format>)")
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of --out, else mp4")
    parser.add_argument("--first-frame", type=Path, help="image to start from, cropped to the clip's aspect")
    parser.add_argument("--seed", type=int, help="0 to 4294967295 (default: drawn and printed)")
    parser.add_argument("--steps", "--num-inference-steps", type=int, help="denoising steps of the video")
    parser.add_argument(
        "--guidance",
        "--guidance-scale",
        type=float,
        help="strength of the prompt in the video; 1 turns guidance off",
    )
    parser.add_argument("--frames", "--num-frames", type=int, help="frames of the clip")
    parser.add_argument(
        "--preference-strength",
        type=float,
        help="of people's preferences in the category, 0 (without them) to 1.5 (default: 1, as shipped)",
    )
    parser.add_argument("--negative-prompt", help="what to avoid (default: the style's)")
    here = parser.add_argument_group("without --server")
    here.add_argument("--first-frame-steps", type=int, help="denoising steps of the first frame")
    here.add_argument("--first-frame-size", type=_size, metavar="HEIGHTxWIDTH", help="pixels, multiples of 8")
    here.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    here.add_argument("--dtype", choices=PRECISIONS, help="default: float16 on a GPU, else float32")
    here.add_argument("--backend", choices=BACKENDS, help="what runs the networks (default: torch)")
    return parser.parse_args(arguments)


def _size(text: str) -> tuple[int, int]:
    height, width = text.lower().split("x")
    return int(height), int(width)


def _placement(args: argparse.Namespace) -> dict[str, Any]:
    """Where and how the pipelines compute. Raises InvalidRequest for a device that is not here."""
    import torch

    try:
        device = torch.device(args.device) if args.device else None
        if device is not None:
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidRequest(
            f"device: got {args.device!r}, which cannot be used: {reason}", "device"
        ) from error
    dtype = getattr(torch, args.dtype) if args.dtype else None
    return {"device": device, "dtype": dtype, "backend": args.backend or "torch"}


def _request(args: argparse.Namespace, catalog: Catalog) -> ClipRequest:
    args.model = args.model or DEFAULT_MODEL
    if args.category is None:
        raise InvalidRequest(f"category: missing, choose one of: {', '.join(catalog.categories)}", "category")
    options = catalog.model(args.model).defaults
    return ClipRequest(
        prompt=args.prompt,
        category=catalog.category(args.category).name,
        style=catalog.style(args.style).name,
        seed=secrets.randbelow(2**32) if args.seed is None else args.seed,
        negative_prompt=args.negative_prompt,
        preference_strength=1.0 if args.preference_strength is None else args.preference_strength,
        options=options.replace(
            steps=args.steps,
            guidance=args.guidance,
            frames=args.frames,
            first_frame_steps=args.first_frame_steps,
            first_frame_size=args.first_frame_size,
        ),
    )


def _target(args: argparse.Namespace) -> tuple[Path, str]:
    """The file to write, and its format."""
    format = args.format or (args.out.suffix.lstrip(".").lower() if args.out else "mp4")
    if format not in FORMATS:
        raise InvalidRequest(f"format: got {format!r}, allowed: {', '.join(FORMATS)}", "format")
    out = args.out or Path(f"clip.{format}")
    make_way(out)
    return out, format


def _fetch_clip(args: argparse.Namespace) -> None:
    """Has a service make the clip. Leaving (Ctrl-C) cancels the job there."""
    from huvidpo.client import Client

    out, format = _target(args)
    try:
        frame = args.first_frame.read_bytes() if args.first_frame else None
    except OSError as error:
        raise InvalidRequest(f"first_frame: {args.first_frame}: {error.strerror}", "first_frame") from error
    with Client(args.server, os.environ.get("HUVIDPO_API_KEY", "")) as client:
        job = client.submit(
            args.prompt,
            first_frame=frame,
            category=args.category,
            style=args.style,
            model=args.model,
            format=format,
            seed=args.seed,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            num_frames=args.frames,
            negative_prompt=args.negative_prompt,
            preference_strength=args.preference_strength,
        )
        print(f"seed {job['seed']}", flush=True)
        _warn(job.get("warnings", ()))  # a service of an older release has none
        try:
            _timed("clip", lambda on_step: client.wait(job["id"], _shown(on_step)), 100)
        except KeyboardInterrupt:
            client.cancel(job["id"])
            raise
        client.download(job["id"], out)
    print(f"{out}: {out.stat().st_size} bytes, {job['num_frames']} frames at {job['fps']} per second")


def _warn(sentences: Sequence[str]) -> None:
    for warning in sentences:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def _shown(on_step: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda job: on_step(job["progress"], 100, None)


def _make_clip(args: argparse.Namespace, request: ClipRequest) -> None:
    out, format = _target(args)
    catalog = load_catalog()
    entry = catalog.model(args.model)
    print(f"seed {request.seed}", flush=True)
    _warn(warnings_of(request.prompt, catalog.category(request.category), known_words(entry)))
    command.quiet_libraries()
    given = read_image(args.first_frame) if args.first_frame else None

    # imported here and in _first_frame: torch loads only once the request is known to be good
    from huvidpo.gpu_memory import take_part
    from huvidpo.loading import device_and_dtype, fetch
    from huvidpo.pipeline import VideoPipeline

    place = _placement(args)
    stages = ["video"] if given is not None else ["first_frame", "video"]
    device, dtype = device_and_dtype(place["device"], place["dtype"])
    for stage in stages:
        take_part(entry, stage, dtype, device)
    fetch(entry, dtype, stages)
    first_frame = _first_frame(args.model, request, place) if given is None else given
    video = _timed(
        "load video model",
        lambda: VideoPipeline.from_catalog(args.model, categories=[request.category], **place),
    )
    clip = _timed("video", lambda on_step: video([request], [first_frame], on_step)[0], request.options.steps)
    data = _timed("encode", lambda: encode(clip, request.options.fps, format))
    write_bytes(out, data)
    print(f"{out}: {len(data)} bytes, {request.options.frames} frames at {request.options.fps} per second")


def _first_frame(model: str, request: ClipRequest, place: dict[str, Any]) -> np.ndarray:
    from huvidpo.pipeline import FirstFramePipeline

    pipeline = _timed("load first-frame model", lambda: FirstFramePipeline.from_catalog(model, **place))
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
