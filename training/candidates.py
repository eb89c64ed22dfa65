"""Make clips for people to rate: one category over varied prompts, styles and seeds.

    python -m training.candidates --model tiny --category horse --count 16 --out clips/horse
    python -m training.candidates --model tiny --category horse --out clips/horse --weights horse.safetensors
    python -m training.candidates --model sd14 --category candle --out clips/candle --prompts prompts.txt

OUT receives the videos, `captions.jsonl` (huvidpo.clips says what is in a line, the lineage of the weights
included) and `contact_sheet.png`. A prompt is used for `--seeds-per-prompt` clips in one style, so that there
are clips of the same prompt to choose between; prompts and styles change together. Without `--prompts` the
tiny family is asked for scenes of the world it was trained on, any other for its category's motion in various
places.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from huvidpo import video
from huvidpo.catalog import DEFAULT_MODEL, Catalog, Category, Model, load_catalog
from huvidpo.checkpoint import read_metadata
from huvidpo.clips import CAPTIONS_FILE, ClipEntry, file_sha256, write_clips
from huvidpo.config import ClipRequest
from huvidpo.errors import CheckpointError, HuViDPOError, InvalidRequest
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from training.thumbnails import contact_sheet, strip
from training.tiny import world

BATCH = 4  # clips made together; a clip does not depend on it
SHEET_FILE = "contact_sheet.png"
PLACES = (
    "in the city", "by the sea", "in the snow", "at night", "in the mountains", "in the desert", "at sunset",
    "in the forest", "in the meadow", "under a pink sky", "on Mars", "in the rain",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to ask for in one clip."""

    prompt: str
    style: str
    seed: int


def plan(prompts: Sequence[str], styles: Sequence[str], count: int, per_prompt: int, seed: int) -> list[Plan]:
    """`count` clips: each prompt `per_prompt` times in a row, styles in turn, seeds `seed`, `seed` + 1, ...

    A prompt that comes round again comes in the next style.
    """
    plans = []
    for i in range(count):
        again, which = divmod(i // per_prompt, len(prompts))
        plans.append(Plan(prompts[which], styles[(which + again) % len(styles)], seed + i))
    return plans


def default_prompts(model: str, category: Category, count: int, seed: int) -> list[str]:
    """Up to `count` prompts that differ; the same for the same `seed`."""
    rng = np.random.default_rng(seed)
    if model != DEFAULT_MODEL or category.name not in world.CATEGORIES:
        return [f"{category.motion_prompt} {place}" for place in rng.permutation(PLACES)[:count]]
    prompts: dict[str, None] = {}
    for _ in range(50 * count):  # the world has few scenes of some categories
        scene = world.random_scene(rng, category.name, "realistic")
        prompts[world.caption(scene, rng).rpartition(",")[0]] = None  # the style is a field of its own
        if len(prompts) == count:
            break
    return list(prompts)


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, empty lines left out. Raises InvalidRequest when there are none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"prompts: {path} cannot be read: {error}", "prompts") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InvalidRequest(f"prompts: {path} holds none, write one a line", "prompts")
    return prompts


def lineage_of(weights: Path) -> dict[str, str]:
    """Where a category's weights come from: their hash and metadata, without the recipes' long texts."""
    if weights.is_dir():  # LAMP's layout carries no lineage
        return {"weights": weights.name}
    metadata = {key: value for key, value in read_metadata(weights).items() if not key.endswith("recipe")}
    return {"weights": weights.name, "sha256": file_sha256(weights), **metadata}


def make(
    model: Model, category: Category, weights: Path, plans: Sequence[Plan], catalog: Catalog, out: Path
) -> list[ClipEntry]:
    """Render `plans` into `out`: videos, captions and contact sheet.

    Raises InvalidRequest for a prompt that is too long, CheckpointError for weights that do not fit.
    """
    lineage = lineage_of(weights)
    first = FirstFramePipeline.from_catalog(model.name)
    second = VideoPipeline.from_catalog(
        model.name, categories=[category.name], weights={category.name: weights}
    )
    requests = [
        ClipRequest(p.prompt, category.name, p.seed, style=p.style, options=model.defaults) for p in plans
    ]
    first.check_inputs(requests)
    out.mkdir(parents=True, exist_ok=True)
    entries: list[ClipEntry] = []
    strips: list[Image.Image] = []
    with tqdm(total=len(requests), desc=category.name, unit="clip") as bar:
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            images: Any = first(batch)  # None only where a caller drops a clip, and there is none
            clips: Any = second(batch, images)
            for request, clip in zip(batch, clips, strict=True):
                name = f"{len(entries):04d}.mp4"
                (out / name).write_bytes(video.encode(clip, request.options.fps))
                entries.append(_entry(name, request, model, catalog, lineage))
                strips.append(strip(clip))
                bar.update()
    labels = [f"{entry.video[:4]} {entry.caption} ({entry.seed})" for entry in entries]
    contact_sheet(strips, labels).save(out / SHEET_FILE)
    write_clips(out, entries)  # last: with it the folder is complete
    return entries


def _entry(
    name: str, request: ClipRequest, model: Model, catalog: Catalog, lineage: dict[str, str]
) -> ClipEntry:
    return ClipEntry(
        video=name,
        caption=catalog.style(request.style).apply(request.prompt),
        prompt=request.prompt,
        style=request.style,
        category=request.category,
        seed=request.seed,
        model=model.name,
        lineage=lineage,
    )


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        return _main(args)
    except HuViDPOError as error:
        print(f"training.candidates: {error}", file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    catalog = load_catalog()
    model, category = catalog.model(args.model), catalog.category(args.category)
    for name in ("count", "seeds_per_prompt"):
        if getattr(args, name) < 1:
            raise InvalidRequest(f"{name}: got {getattr(args, name)}, expected 1 or more", name)
    if (args.out / CAPTIONS_FILE).exists():
        raise InvalidRequest(f"out: {args.out} already holds clips, which may have been rated: name another")
    weights = args.weights or model.categories / category.weights
    if not weights.exists():
        raise CheckpointError(
            f"no weights at {weights}: train them with python -m training.motion, or name them with --weights"
        )
    different = -(-args.count // args.seeds_per_prompt)
    prompts = (
        read_prompts(args.prompts)
        if args.prompts
        else default_prompts(model.name, category, different, args.seed)
    )
    styles = [catalog.style(name).name for name in args.styles or catalog.styles]
    plans = plan(prompts, styles, args.count, args.seeds_per_prompt, args.seed)
    entries = make(model, category, weights, plans, catalog, args.out)
    print(f"{args.out}: {len(entries)} clips; look at {SHEET_FILE}, then rate them:")
    print(f"  python -m service.rating --clips {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.candidates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument("--category", required=True, help="a category of the catalog")
    parser.add_argument("--count", type=int, default=16, help="clips to make (16)")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; must hold no clips yet")
    parser.add_argument("--weights", type=Path, help="the category's weights; default: the catalog's")
    parser.add_argument("--prompts", type=Path, help="text file with one prompt a line, without a style")
    parser.add_argument("--styles", nargs="+", metavar="STYLE", help="default: all of the catalog")
    parser.add_argument("--seeds-per-prompt", type=int, default=2, help="clips of each prompt (2)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first clip, and of the default prompts (0)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
