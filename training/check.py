"""Look at a folder of clips before training on it: what will really be read, and everything that is wrong.

    python -m training.check my_clips/
    python -m training.check my_clips/ --model sd14 --sheet my_clips.png
    python -m training.check my_clips/ --model sd14 --split my_scenes/ --pieces 3

Writes one picture: for each clip the whole frame with the part that is kept, the frames that are read - a
red bar where the scene changes among them - its caption, and what is wrong with it in red. Every problem is
printed with its remedy, all at once, and the exit status is 1 if training would refuse the folder; what it
would only learn badly from is a note.

`--split` cuts long videos at their scene changes: for every scene that is long enough the frames that
training would read, at the recipe's size, with the video's caption (`--pieces`: up to so many of each scene,
one after the other). The videos stay as they are. Look at the new folder's sheet, and write a caption for
each.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from huvidpo import command, video
from huvidpo.catalog import DEFAULT_MODEL, Model, load_catalog
from huvidpo.errors import HuViDPOError
from huvidpo.files import hash_file, make_way, whole_file, write_bytes, write_text
from preferences.clips import CAPTIONS_FILE, read_clips
from training.data import VIDEO_SUFFIXES, ClipsError, is_hidden, pick_frames, read_sidecars
from training.recipes import MOTION_RECIPES, ClipRecipe, override, recipe_of
from training.scenes import SIZE, find_cuts, scenes

FEW, MANY = 8, 16  # clips that the papers train a category on
STILL = 1.0  # grey levels of 255 between frames, below which nothing is seen to move
MUCH = 0.6  # of the picture; less kept is a note
HEIGHT, LINE, MARGIN = 72, 14, 6  # of the sheet, in pixels
RED, BLACK, GREY = (200, 0, 0), (0, 0, 0), (110, 110, 110)


@dataclass
class Look:
    """What training would read of one video. `frames` is None where it cannot read it."""

    name: str
    caption: str
    whole: np.ndarray | None = None
    """The first frame that is read, uncropped: uint8 [H, W, 3]."""
    frames: np.ndarray | None = None
    """uint8 [F, height, width, 3]"""
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    """Of the frames, among the `count` of the video."""
    count: int = 0
    fps: float = 0.0
    cuts: list[int] = field(default_factory=list)
    """Frames of the whole video that begin a new scene."""
    problems: list[str] = field(default_factory=list)
    """Training refuses it."""
    notes: list[str] = field(default_factory=list)
    """Training takes it, and learns badly from it."""

    @property
    def jumps(self) -> list[int]:
        """Which of the frames that are read are of another scene than the one before."""
        scene = np.searchsorted(self.cuts, self.numbers, side="right")
        return [i for i in range(1, len(scene)) if scene[i] != scene[i - 1]]


def look(path: Path, caption: str, recipe: ClipRecipe) -> Look:
    """Read a video as training would."""
    seen = Look(path.name, caption)
    try:
        small, seen.fps = video.decode(path, size=SIZE)
        seen.count, seen.cuts = len(small), find_cuts(small)
        seen.numbers = pick_frames(seen.count, seen.fps, recipe.frames, recipe.fps)
        seen.frames = decode_frames(path, seen.numbers, (recipe.height, recipe.width))
        seen.whole = decode_frames(path, seen.numbers[:1])[0]
    except (HuViDPOError, ValueError, OSError) as error:
        seen.problems.append(f"{error}{_remedy(seen, recipe)}")
        return seen
    seen.notes = _notes(seen, recipe)
    return seen


def decode_frames(path: Path, numbers: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Frames of a video by their numbers: uint8 [F, H, W, 3], cropped to `size` (height, width) if given."""
    return video.decode(path, pick=lambda count, fps: numbers, size=size)[0]


def _remedy(seen: Look, recipe: ClipRecipe) -> str:
    if 0 < seen.count < recipe.frames:
        return f"; take a longer one, or train on fewer with --set frames={seen.count}"
    return ""


def _notes(seen: Look, recipe: ClipRecipe) -> list[str]:
    assert seen.frames is not None
    assert seen.whole is not None
    notes = []
    if seen.jumps:
        notes.append(f"the scene changes among the frames that are read ({len(seen.jumps)}x): use --split")
    elif seen.cuts:
        notes.append(
            f"{len(seen.cuts)} scene changes outside the frames that are read: --split uses every scene"
        )
    if np.abs(np.diff(seen.frames.astype(np.int16), axis=0)).mean() < STILL:
        notes.append("nothing moves in the frames that are read: take another part of it, or leave it out")
    height, width = seen.whole.shape[:2]
    if min(height / recipe.height, width / recipe.width) < 1:
        notes.append(f"{width} x {height} is enlarged to {recipe.width} x {recipe.height}: take a larger one")
    if seen.count * recipe.fps < recipe.frames * seen.fps * 0.9:
        notes.append(
            f"{seen.count / seen.fps:.1f} s is shorter than a clip's {recipe.frames / recipe.fps:.1f} s: "
            "it is learnt in slow motion; take a longer one"
        )
    left, top, right, bottom = _crop(seen.whole.shape, recipe)
    if (share := (right + 1 - left) * (bottom + 1 - top) / (height * width)) < MUCH:
        notes.append(f"only {share:.0%} of the picture is kept: crop it yourself if what matters is lost")
    return notes


# The folder


Found = tuple[list[tuple[Path, str]], list[str], list[str]]
"""(video, caption) pairs, problems and notes"""


def find(folder: Path) -> Found:
    """The videos of a folder, also those without a caption. Raises ClipsError where it is no folder of them,
    and ClipFolderError as `read_clips`.
    """
    if not folder.is_dir():
        raise ClipsError(f"{folder} is not a folder of clips")
    if (folder / "latents.npy").exists():
        raise ClipsError(f"{folder} is a latent store: there are no pictures to look at")
    videos = [path for path in sorted(folder.iterdir()) if _is_video(path)]
    if (folder / CAPTIONS_FILE).exists():
        pairs = [(folder / clip.video, clip.caption.strip()) for clip in read_clips(folder)]
        others = [path.name for path in videos if path not in dict(pairs)]
        return pairs, [], [f"left out, as {CAPTIONS_FILE} does not name it: {name}" for name in others]
    pairs, problems, skipped = read_sidecars(folder)
    captions = dict(pairs)
    notes = [f"left out, as no video's name ends so: {name}" for name in skipped]
    return [(path, captions.get(path, "")) for path in videos], problems, notes


def _is_video(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES and not is_hidden(path)


def check(folder: Path, recipe: ClipRecipe, tokenizer: Any = None) -> tuple[list[Look], list[str], list[str]]:
    """Every video of a folder, the problems for which training refuses it, and notes.

    `tokenizer`: of the text encoder, to find captions that are too long. Raises as
    `find`.
    """
    pairs, problems, notes = find(folder)
    looks = [look(path, caption, recipe) for path, caption in tqdm(pairs, "look", disable=None)]
    first: dict[str, str] = {}
    for seen, (path, caption) in zip(looks, pairs, strict=True):
        twin = first.setdefault(hash_file(path), seen.name)
        if twin != seen.name:
            seen.notes.append(f"the same file as {twin}: leave one out")
        if tokenizer and (count := len(tokenizer(caption).input_ids)) > tokenizer.model_max_length:
            room = tokenizer.model_max_length
            seen.problems.append(f"its caption has {count} tokens, {room} are read: shorten it")
    problems += [f"{seen.name}: {text}" for seen in looks for text in seen.problems]
    notes += [f"{seen.name}: {text}" for seen in looks for text in seen.notes]
    if not FEW <= len(looks) <= MANY:
        notes.append(f"{len(looks)} clips; a category is learnt from {FEW} to {MANY}")
    return looks, problems, notes


# The picture


def draw_sheet(looks: Sequence[Look], recipe: ClipRecipe) -> Image.Image:
    """One row per video: the whole frame with the kept part, what is read of it, caption and remarks."""
    wide = round(HEIGHT * recipe.width / recipe.height)
    left = 2 * HEIGHT + 2 * MARGIN
    rows = [2 + len(seen.problems) + len(seen.notes) for seen in looks]
    heights = [HEIGHT + LINE * count + 2 * MARGIN for count in rows]
    sheet = Image.new("RGB", (left + recipe.frames * (wide + 1) + MARGIN, sum(heights) + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 2)
    top = MARGIN
    for seen, height in zip(looks, heights, strict=True):
        _draw_row(sheet, draw, seen, recipe, (left, top), wide)
        facts = f"{seen.name}: {_facts(seen)}"
        remarks = [(text, RED) for text in seen.problems] + [(text, RED) for text in seen.notes]
        for line, (text, colour) in enumerate(
            [(facts, GREY), (seen.caption or "no caption", BLACK), *remarks]
        ):
            draw.text((MARGIN, top + HEIGHT + 2 + line * LINE), text, colour, font)
        top += height
    return sheet


def _draw_row(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    seen: Look,
    recipe: ClipRecipe,
    at: tuple[int, int],
    wide: int,
) -> None:
    left, top = at
    if seen.whole is None or seen.frames is None:
        draw.rectangle((MARGIN, top, MARGIN + 2 * HEIGHT, top + HEIGHT), outline=RED)
        return
    whole = Image.fromarray(seen.whole)
    ImageDraw.Draw(whole).rectangle(
        _crop(seen.whole.shape, recipe), outline=RED, width=max(whole.size) // 64 + 1
    )
    whole.thumbnail((2 * HEIGHT, HEIGHT))
    sheet.paste(whole, (MARGIN, top))
    for i, frame in enumerate(seen.frames):
        x = left + i * (wide + 1)
        sheet.paste(Image.fromarray(frame).resize((wide, HEIGHT), Image.Resampling.LANCZOS), (x, top))
        if i in seen.jumps:
            draw.rectangle((x - 3, top, x + 1, top + HEIGHT), fill=RED)


def _crop(shape: Sequence[int], recipe: ClipRecipe) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of a frame [H, W, 3] that `crop_to_aspect` keeps."""
    height, width = shape[:2]
    kept_width = min(width, round(height * recipe.width / recipe.height))
    kept_height = min(height, round(width * recipe.height / recipe.width))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return left, top, left + kept_width - 1, top + kept_height - 1


def _facts(seen: Look) -> str:
    if seen.whole is None:
        return "cannot be used"
    height, width = seen.whole.shape[:2]
    start, end = seen.numbers[0] / seen.fps, seen.numbers[-1] / seen.fps
    length = seen.count / seen.fps
    return f"{width} x {height}, {seen.fps:.4g} fps, {length:.1f} s; read from {start:.1f} to {end:.1f} s"


# Splitting


def split(path: Path, caption: str, out: Path, recipe: ClipRecipe, pieces: int) -> list[Path]:
    """Write the clips of a video's scenes into `out`, each with its caption; those too short are left out."""
    small, fps = video.decode(path, size=SIZE)
    written: list[Path] = []
    for scene in scenes(len(small), find_cuts(small)):
        for part in _parts(scene, fps, recipe, pieces):
            numbers = part.start + pick_frames(len(part), fps, recipe.frames, recipe.fps)
            file = out / f"{path.stem}_{len(written) + 1:02d}.mp4"
            frames = decode_frames(path, numbers, (recipe.height, recipe.width))
            write_bytes(file, video.encode(frames, recipe.fps))
            if caption:
                write_text(file.with_suffix(".txt"), caption + "\n")
            written.append(file)
    return written


def _parts(scene: range, fps: float, recipe: ClipRecipe, pieces: int) -> list[range]:
    """Up to `pieces` parts of a scene, each at least as long as a clip; none where frames are too few."""
    if len(scene) < recipe.frames:
        return []
    count = max(1, min(pieces, int(len(scene) / fps * recipe.fps / recipe.frames)))
    edges = np.linspace(scene.start, scene.stop, count + 1).astype(int)
    return [range(a, b) for a, b in itertools.pairwise(edges.tolist())]


# The command line


def load_words(model: Model) -> Any:
    """The tokenizer that captions meet, without the text encoder's weights."""
    from transformers import CLIPTextConfig

    from huvidpo.loading import load_tokenizer, readable

    source = model.video_text_encoder
    with readable("CLIPTextModel", source):
        config = CLIPTextConfig.from_pretrained(source.location, subfolder=source.subfolder)
    return load_tokenizer(model.video_tokenizer, SimpleNamespace(config=config))


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("training.check", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    model = load_catalog().model(args.model)
    recipe = override(recipe_of(model, "motion", args.recipe), args.set)
    if args.split:
        return _split_folder(args, recipe)
    make_way(args.sheet)
    words, unread = _words_or_why_not(model)
    looks, problems, notes = check(args.clips, recipe, words)
    notes += unread
    if looks:
        with whole_file(args.sheet) as part:
            draw_sheet(looks, recipe).save(part, "PNG")
    for kind, texts in {"note": notes, "problem": problems}.items():
        for text in texts:
            print(f"{kind}: {text}")
    seconds = recipe.frames / recipe.fps
    print(
        f"{len(looks)} videos as {model.name} reads them: {recipe.frames} frames of {seconds:.3g} s, "
        f"{recipe.width} x {recipe.height}" + (f"; look at {args.sheet}" if looks else "")
    )
    print(
        f"{len(problems)} problems: training refuses this folder"
        if problems
        else "training takes this folder"
    )
    return 1 if problems else 0


def _words_or_why_not(model: Model) -> tuple[Any, list[str]]:
    """The tokenizer, or a note: clips can be looked at before the weights are there."""
    try:
        return load_words(model), []
    except HuViDPOError as error:
        return None, [f"the captions' lengths are not checked: {error}"]


def _split_folder(args: argparse.Namespace, recipe: ClipRecipe) -> int:
    if args.split.resolve() == args.clips.resolve():
        raise ClipsError(f"--split {args.split}: choose another folder than the videos' own")
    total = 0
    for path, caption in find(args.clips)[0]:
        try:
            files = split(path, caption, args.split, recipe, args.pieces)
        except HuViDPOError as error:
            print(f"problem: {path.name}: {error}")
            continue
        total += len(files)
        print(
            f"{path.name}: {len(files)} clips" + ("" if files else f", no scene has {recipe.frames} frames")
        )
    print(f"{total} clips in {args.split}; now: python -m training.check {args.split} --model {args.model}")
    return 0 if total else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("clips", type=Path, help="folder of videos, with captions or without")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"whose recipe reads them ({DEFAULT_MODEL})")
    parser.add_argument("--recipe", choices=sorted(MOTION_RECIPES), help="default: the model's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a field of the recipe"
    )
    parser.add_argument("--sheet", type=Path, default=Path("sheet.png"), help="picture to write (sheet.png)")
    parser.add_argument("--split", type=Path, help="folder to write the clips of the videos' scenes into")
    parser.add_argument("--pieces", type=int, default=1, help="with --split: clips of a scene, at most (1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
