"""Make clips for people to rate: one category over varied prompts, styles and seeds.

    python -m judging.candidates --model tiny --category horse --count 16 --out clips/horse
    python -m judging.candidates --model tiny --category horse --out clips/horse --weights horse.safetensors
    python -m judging.candidates --model sd14 --category candle --out clips/candle --prompts prompts.txt \\
        --first-frames pictures
    python -m judging.candidates --model tiny --category horse --out clips/horse --beside filmed \\
        --structural 0.7

OUT receives the videos, `captions.jsonl` (preferences.clips says what is in a line, the lineage of the
weights included) and `contact_sheet.png`. A prompt is used for `--seeds-per-prompt` clips in one style, so
that there are clips of the same prompt to choose between; prompts and styles change together. Without
`--prompts` a model is asked for the prompts of its catalog entry, one that has none of the category for the
category's motion in various places. `--first-frames` is a folder of pictures, or of videos, whose first
frames to start from in turn, for a subject that the first-frame model cannot draw.

`--beside` is a folder of filmed clips, which stand among those made from their first frames, one of each.
With `--structural ETA` (DenseDPO, arXiv 2506.03517) `--seeds-per-prompt` are made of each, and not from noise
alone: the filmed clip is noised to ETA of the schedule and denoised again, so that what is made of it shares
its motion and differs in local artefacts. The smaller ETA, the less differs; 1 is plain noise.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Le
from PIL import Image
from tqdm import tqdm

from huvidpo import command, video
from huvidpo.catalog import DEFAULT_MODEL, Category, Model, Style, load_catalog
from huvidpo.checkpoint import read_metadata
from huvidpo.checks import Number, check
from huvidpo.config import ClipRequest
from huvidpo.errors import CheckpointError, InvalidRequest
from huvidpo.files import hash_file, make_folder, whole_file, write_bytes
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from huvidpo.text import read_text
from huvidpo.video import read_image
from preferences.clips import CAPTIONS_FILE, ClipEntry, read_clips, write_clips
from preferences.records import SEGMENT_FRAMES
from preferences.thumbnails import contact_sheet, strip
from training.data import VIDEO_SUFFIXES, is_hidden, read_captions, read_clip
from training.recipes import ClipRecipe

BATCH = 4  # clips made together; a clip does not depend on it
Share = Annotated[Number, Gt(0), Le(1)]  # of the noise schedule
PICTURE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp"])
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
    picture: str | None = None  # name of the picture to start from; None: the first-frame model draws one


def plan(
    prompts: Sequence[str],
    styles: Sequence[str],
    count: int,
    per_prompt: int,
    seed: int,
    pictures: Sequence[str] = (),
) -> list[Plan]:
    """`count` clips: each prompt `per_prompt` times in a row; styles and pictures in turn; seeds `seed`,
    `seed` + 1, ... A prompt that comes round again comes in the next style.
    """
    plans = []
    for i in range(count):
        again, which = divmod(i // per_prompt, len(prompts))
        picture = pictures[i % len(pictures)] if pictures else None
        plans.append(Plan(prompts[which], styles[(which + again) % len(styles)], seed + i, picture))
    return plans


def plan_beside(filmed: Sequence[ClipEntry], styles: Sequence[str], each: int, seed: int) -> list[Plan]:
    """`each` clips for every filmed one in a row: its prompt and first frame, its style or else the first of
    `styles`; seeds as `plan`.
    """
    clips = [clip for clip in filmed for _ in range(each)]
    return [Plan(clip.prompt, clip.style or styles[0], seed + i, clip.video) for i, clip in enumerate(clips)]


def read_filmed(folder: Path) -> list[ClipEntry]:
    """The captioned videos of `folder`. Raises ClipFolderError and ClipsError for what cannot be read."""
    if (folder / CAPTIONS_FILE).exists():
        return read_clips(folder)
    return [ClipEntry(video=path.name, caption=caption) for path, caption in read_captions(folder)]


def default_prompts(model: Model, category: Category, count: int, seed: int) -> list[str]:
    """Up to `count` prompts that differ; the same for the same `seed`. Raises as `read_prompts`."""
    lines = read_prompts(model.prompts) if model.prompts else []
    pairs = [line.partition(": ") for line in lines]
    prompts = [prompt for name, _, prompt in pairs if name == category.name]
    prompts = prompts or [f"{category.motion_prompt} {place}" for place in PLACES]
    return [prompts[i] for i in np.random.default_rng(seed).permutation(len(prompts))[:count]]


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, empty lines left out. Raises InvalidRequest when there are none."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, InvalidRequest) as error:
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
    return {"weights": weights.name, "sha256": hash_file(weights), **metadata}


def read_pictures(folder: Path) -> dict[str, np.ndarray]:
    """File name -> uint8 [H, W, 3] of every picture, and of every video's first frame, sorted by name.

    Raises InvalidRequest for a folder without any and for a file that cannot be read.
    """
    files = [path for path in sorted(folder.iterdir()) if not is_hidden(path)] if folder.is_dir() else []
    pictures = {path.name: read_image(path) for path in files if path.suffix.lower() in PICTURE_SUFFIXES}
    for path in files:
        if path.name not in pictures and path.suffix.lower() in VIDEO_SUFFIXES:
            pictures[path.name] = video.decode(path, max_frames=1)[0][0]
    if not pictures:
        raise InvalidRequest(f"first_frames: {folder} holds no picture and no video", "first_frames")
    return dict(sorted(pictures.items()))


def render(
    model: Model,
    category: Category,
    weights: Path,
    plans: Sequence[Plan],
    pictures: Mapping[str, np.ndarray] | None = None,
    filmed: Mapping[str, np.ndarray] | None = None,
    share: float = 1.0,
) -> Iterator[np.ndarray]:
    """One clip, uint8 [F, H, W, 3], per plan. By the names that the plans have: `pictures` to start from, or
    clips `filmed`, noised to `share` of the schedule (1: their first frames).

    Raises InvalidRequest for a prompt that is too long, CheckpointError for weights that do not fit.
    """
    requests = [
        ClipRequest(p.prompt, category.name, p.seed, style=p.style, options=model.defaults) for p in plans
    ]
    first: Any = None if pictures or filmed else FirstFramePipeline.from_catalog(model.name)
    if first:
        first.check_inputs(requests)  # before any work
    chosen = {category.name: weights}
    second = VideoPipeline.from_catalog(model.name, categories=list(chosen), weights=chosen)
    for start in range(0, len(plans), BATCH):
        batch = requests[start : start + BATCH]
        names = [str(p.picture) for p in plans[start : start + BATCH]]
        clips: Any  # None only where a caller drops a clip, and none is dropped
        if filmed:
            clips = second.again(batch, [filmed[name] for name in names], share)
        else:
            images: Any = [pictures[name] for name in names] if pictures else first(batch)
            clips = second(batch, images)
        yield from clips


def make(
    model: Model,
    category: Category,
    weights: Path,
    plans: Sequence[Plan],
    styles: Mapping[str, Style],
    out: Path,
    pictures: Mapping[str, np.ndarray] | None = None,
    filmed: Mapping[str, np.ndarray] | None = None,
    share: float = 1.0,
) -> list[ClipEntry]:
    """Render `plans` into the folder `out`: videos, captions and contact sheet. Arguments and errors as of
    `render`; each clip of `filmed` comes after the first that is made from it.
    """
    lineage = lineage_of(weights) | ({"structural": f"{share:g}"} if share < 1 else {})
    entries: list[ClipEntry] = []
    strips: list[Image.Image] = []
    clips = render(model, category, weights, plans, pictures, filmed, share)  # as they are asked for
    beside = dict(filmed or {})
    make_folder(out)
    for i, (p, clip) in enumerate(
        zip(plans, tqdm(clips, total=len(plans), desc=category.name, unit="clip"), strict=True)
    ):
        entry = ClipEntry(
            video=f"{i:04d}.mp4",
            caption=styles[p.style].apply(p.prompt),
            prompt=p.prompt,
            style=p.style,
            category=category.name,
            seed=p.seed,
            model=model.name,
            lineage=lineage | ({"first_frame": p.picture} if p.picture else {}),
        )
        shown = [(entry, clip)]
        if p.picture in beside:
            name, origin = f"{i:04d}_filmed.mp4", {"filmed": p.picture}
            real = dataclasses.replace(entry, video=name, seed=None, model="", lineage=origin)
            shown.append((real, beside.pop(p.picture)))
        for entry, frames in shown:
            write_bytes(out / entry.video, video.encode(frames, model.defaults.fps))
            entries.append(entry)
            strips.append(strip(frames, height=96))
    labels = [
        f"{entry.video[:4]} {entry.caption} ({'filmed' if entry.seed is None else entry.seed})"
        for entry in entries
    ]
    with whole_file(out / SHEET_FILE) as part:
        contact_sheet(strips, labels).save(part, "PNG")
    write_clips(out, entries)  # last: with it the folder is complete
    return entries


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("judging.candidates", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    catalog = load_catalog()
    model, category = catalog.model(args.model), catalog.category(args.category)
    for name in ("count", "seeds_per_prompt"):
        if getattr(args, name) < 1:
            raise InvalidRequest(f"{name}: got {getattr(args, name)}, expected 1 or more", name)
    if args.structural is not None:
        check("structural", args.structural, Share, InvalidRequest)
        if not args.beside:
            raise InvalidRequest("structural: name the filmed clips to start from with --beside")
    for name in ("first_frames", "prompts"):
        if args.beside and getattr(args, name):
            raise InvalidRequest(
                f"{name}: the clips of --beside bring their own: leave one of the two out", name
            )
    if (args.out / CAPTIONS_FILE).exists():
        raise InvalidRequest(f"out: {args.out} already holds clips, which may have been rated: name another")
    weights = args.weights or model.categories / category.weights
    if not weights.exists():
        raise CheckpointError(
            f"no weights at {weights}: train them with python -m training.motion, or name them with --weights"
        )
    styles = [catalog.style(name).name for name in args.styles or catalog.styles]
    pictures = read_pictures(args.first_frames) if args.first_frames else {}
    filmed: dict[str, np.ndarray] = {}
    if args.beside:
        clips = read_filmed(args.beside)[: args.count]
        shape = {name: getattr(model.defaults, name) for name in ("frames", "height", "width", "fps")}
        filmed = {clip.video: read_clip(args.beside / clip.video, ClipRecipe(**shape)) for clip in clips}
        each = 1 if args.structural is None else args.seeds_per_prompt
        plans = plan_beside(clips, styles, each, args.seed)
    else:
        plans = plan(
            chosen_prompts(args, model, category),
            styles,
            args.count,
            args.seeds_per_prompt,
            args.seed,
            list(pictures),
        )
    share = 1.0 if args.structural is None else args.structural
    entries = make(model, category, weights, plans, catalog.styles, args.out, pictures, filmed, share)
    print(f"{args.out}: {len(entries)} clips; look at {SHEET_FILE}, then rate them:")
    by_segment = "" if args.structural is None else f" --segment-frames {SEGMENT_FRAMES}"
    print(f"  python -m service.rating --clips {args.out}{by_segment}")
    return 0


def chosen_prompts(args: argparse.Namespace, model: Model, category: Category) -> list[str]:
    """Those of `--prompts`, or default ones."""
    different = -(-args.count // args.seeds_per_prompt)
    if args.prompts:
        return read_prompts(args.prompts)
    return default_prompts(model, category, different, args.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m judging.candidates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument("--category", required=True, help="a category of the catalog")
    parser.add_argument("--count", type=int, default=16, help="clips to make (16)")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; must hold no clips yet")
    parser.add_argument("--weights", type=Path, help="the category's weights; default: the catalog's")
    parser.add_argument("--prompts", type=Path, help="text file with one prompt a line, without a style")
    parser.add_argument(
        "--first-frames", type=Path, help="folder of pictures or videos to start from; default: drawn"
    )
    parser.add_argument(
        "--beside", type=Path, metavar="CLIPS", help="folder of filmed clips to put among the made ones"
    )
    parser.add_argument(
        "--structural",
        type=float,
        metavar="ETA",
        help="start from the clips of --beside, noised to this share of the schedule (above 0, at most 1)",
    )
    parser.add_argument("--styles", nargs="+", metavar="STYLE", help="default: all of the catalog")
    parser.add_argument("--seeds-per-prompt", type=int, default=2, help="clips of each prompt (2)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first clip, and of the default prompts (0)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
