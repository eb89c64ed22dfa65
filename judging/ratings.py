"""Look at what people said about a folder of clips, and carry scores in and out.

    python -m judging.ratings report --clips clips/horse                     # clips/horse/report.html
    python -m judging.ratings import scores.json --clips clips/horse --rater ann
    python -m judging.ratings export scores.json --clips clips/horse
    python -m judging.ratings simulate --clips clips/horse --model tiny
    python -m judging.ratings filmed --clips clips/horse
    python -m judging.ratings nearest --clips clips/horse
    python -m judging.ratings repair --clips clips/horse --category horse

`report` shows counts, agreement, the order with thumbnails, and the pairs that training would use. `import`
and `export` speak HuViDPO's `[{"video": ..., "score": ...}]`. `simulate` adds the scores of a stated rule
(`judging.judge`) under the rater's name `simulated`: for trying things out where nobody can rate. `filmed`
says, as rater `filmed`, that each filmed clip is better than what the model made of its first frame (RealDPO,
arXiv 2510.14955): for folders of `judging.candidates --beside`. `nearest` says, as rater `nearest` and for
each segment of frames, which of two clips made from one filmed clip is nearer to it: for folders of
`judging.candidates --structural`. `repair` keeps the lines of a damaged ratings file that are whole, and the
file as it was beside it.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from huvidpo import command, video
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.files import hash_file, write_text
from judging.report import report
from preferences.clips import ClipEntry, read_clips
from preferences.metrics import psnr
from preferences.pairs import HOLDOUT, TIE, scores_by_clip
from preferences.records import (
    RATINGS_FILE,
    SCORES,
    SEGMENT_FRAMES,
    Choice,
    Comparison,
    PreferencesError,
    Rating,
    SegmentComparison,
    append,
    read_huvidpo_json,
    read_records,
    repair,
    segments_of,
    write_huvidpo_json,
)

if TYPE_CHECKING:
    from judging.judge import Judge

SIMULATED, FILMED, NEAREST = "simulated", "filmed", "nearest"  # raters' names: no persons
NEARER = 0.25  # dB of PSNR: a smaller lead is a tie, as half a pixel of blur may gain as much


def rating_of(folder: Path, clip: ClipEntry, rater: str, score: float) -> Rating:
    """`rater`'s score 0..10 of a clip in `folder`."""
    return Rating(
        rater=rater,
        category=clip.category,
        clip=clip.video,
        sha256=hash_file(folder / clip.video),
        prompt=clip.prompt,
        seed=clip.seed,
        lineage=clip.lineage,
        score=score,
    )


def import_scores(folder: Path, scores: Sequence[tuple[str, float]], ratings: Path, rater: str) -> int:
    """Add (video, score) pairs to `ratings`: videos of `folder` by path, or by file name if one alone has it.

    Returns how many. Raises PreferencesError, before any is added, naming every video that is not in the
    folder and every one that is scored twice.
    """
    clips = read_clips(folder)
    found = [(_find(clips, name), name, score) for name, score in scores]
    problems = [f"{name} is no clip of {folder}" for clip, name, _ in found if clip is None]
    names = [clip.video for clip, _, _ in found if clip]
    problems += [f"{name} is scored twice" for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise PreferencesError(f"{len(problems)} scores cannot be imported:\n  " + "\n  ".join(problems))
    for clip, _, score in found:
        if clip:
            append(ratings, rating_of(folder, clip, rater, score))
    return len(found)


def _find(clips: Sequence[ClipEntry], name: str) -> ClipEntry | None:
    exact = [clip for clip in clips if clip.video == name]
    named = [clip for clip in clips if Path(clip.video).name == Path(name).name]
    return exact[0] if exact else named[0] if len(named) == 1 else None


def simulate(folder: Path, ratings: Path, judge: "Judge", noise: float, seed: int) -> int:
    """Score every clip of `folder` by the rule of `judging.judge`; returns how many.

    `noise`: standard deviation, in points of the scale 0..10, of what is added to each score.
    """
    from judging.judge import score_clip, warn_of_foreign

    clips = read_clips(folder)
    rng = np.random.default_rng(seed)
    if foreign := [clip.video for clip in clips if not clip.model]:
        warn_of_foreign(judge, f"{len(foreign)} clips that no model of ours made ({foreign[0]}, ...)")
    for clip in tqdm(clips, desc="simulated ratings", unit="clip"):
        frames, _ = video.decode(folder / clip.video)
        score = score_clip(frames, clip.caption, judge) + noise * rng.standard_normal()
        append(ratings, rating_of(folder, clip, SIMULATED, round(float(np.clip(score, *SCORES)), 2)))
    return len(clips)


def made_of_filmed(folder: Path) -> list[tuple[ClipEntry, list[ClipEntry]]]:
    """The filmed clips of a folder of `judging.candidates --beside`, each with those made from it."""
    clips = read_clips(folder)
    filmed = {clip.lineage["filmed"]: clip for clip in clips if "filmed" in clip.lineage}
    return [
        (real, [clip for clip in clips if clip.lineage.get("first_frame") == name])
        for name, real in filmed.items()
    ]


def sides(folder: Path, a: ClipEntry, b: ClipEntry) -> dict[str, Any]:
    """What a comparison says of the files of its two clips."""
    named = {"a": folder / a.video, "b": folder / b.video}
    hashes = {f"sha256_{side}": hash_file(file) for side, file in named.items()}
    return {"clip_a": a.video, "clip_b": b.video, **hashes}


def prefer_filmed(folder: Path, ratings: Path) -> int:
    """Add to `ratings` that every filmed clip of `folder` is better than those made from its first frame.

    Returns how many comparisons. Raises PreferencesError where there is none to add.
    """
    pairs = [(real, clip) for real, made in made_of_filmed(folder) for clip in made]
    if not pairs:
        raise PreferencesError(
            f"{folder}: no clip was made from the first frame of a filmed one that is there too; make such a "
            "folder with judging.candidates --beside"
        )
    for real, made in pairs:
        chosen = Comparison(
            rater=FILMED,
            category=real.category,
            **sides(folder, real, made),
            answer="a",
            prompt=real.prompt,
        )
        append(ratings, chosen)
    return len(pairs)


def prefer_nearest(folder: Path, ratings: Path, segment_frames: int, tie: float) -> int:
    """Add to `ratings` which of every two clips of `folder` made from one filmed clip is nearer to that, as a
    whole and in each segment of `segment_frames` frames from frame 1 on: by over `tie` dB of PSNR.

    Returns how many comparisons. Raises PreferencesError where there is none to add, for clips of other sizes
    than what they were made from, and for a segment or tie that is out of range.
    """
    if segment_frames < 1 or not 0 <= tie < np.inf:
        raise PreferencesError(
            f"got segments of {segment_frames} frames and a tie of {tie:g} dB, expected 1 or more and 0 "
            "or more"
        )
    pairs = [(real, *two) for real, made in made_of_filmed(folder) for two in combinations(made, 2)]
    if not pairs:
        raise PreferencesError(
            f"{folder}: no two clips were made from a filmed one that is there too; make such a folder with "
            "judging.candidates --beside CLIPS --structural ETA"
        )
    shown = tqdm(pairs, desc="nearest", unit="pair")
    records = [nearest(folder, real, a, b, segment_frames, tie) for real, a, b in shown]
    for record in records:
        append(ratings, record)
    return len(records)


def nearest(
    folder: Path, real: ClipEntry, a: ClipEntry, b: ClipEntry, segment_frames: int, tie: float
) -> SegmentComparison:
    """Which of `a` and `b` is nearer to `real`. Raises PreferencesError for clips of other sizes."""
    truth, *both = (video.decode(folder / clip.video)[0] for clip in (real, a, b))
    if any(clip.shape != truth.shape for clip in both) or len(truth) < 2:
        shapes = ", ".join("x".join(map(str, clip.shape[:3])) for clip in (truth, *both))
        raise PreferencesError(
            f"{real.video}, {a.video}, {b.video} are {shapes}, expected two or more frames, as many and as "
            "large in each"
        )

    def nearer_in(part: range) -> Choice:
        return nearer(truth[part], both[0][part], both[1][part], tie)

    return SegmentComparison(
        rater=NEAREST,
        category=real.category,
        **sides(folder, a, b),
        answer=nearer_in(range(1, len(truth))),
        prompt=real.prompt,
        frames=len(truth),
        segment_frames=segment_frames,
        segments=[nearer_in(part) for part in segments_of(len(truth), segment_frames)],
    )


def nearer(truth: np.ndarray, a: np.ndarray, b: np.ndarray, tie: float) -> Choice:
    """Which of `a` and `b` is nearer to `truth`, by over `tie` dB of PSNR; all uint8 [F, H, W, 3]."""
    lead = psnr(a, truth) - psnr(b, truth)
    return "tie" if abs(lead) <= tie else "a" if lead > 0 else "b"


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    args.ratings = args.ratings or args.clips / RATINGS_FILE
    return command.run("judging.ratings", lambda: print(args.run(args)) or 0)


def _report(args: argparse.Namespace) -> str:
    out = args.out or args.clips / "report.html"
    page, summary = report(args.clips, args.ratings, tie=args.tie, holdout=args.holdout, seed=args.seed)
    write_text(out, page)
    return f"{summary}\n{out}"


def _import(args: argparse.Namespace) -> str:
    count = import_scores(args.clips, read_huvidpo_json(args.file), args.ratings, args.rater)
    return f"{args.ratings}: {count} ratings of {args.rater} added"


def _export(args: argparse.Namespace) -> str:
    scores: Mapping[str, float] = scores_by_clip(read_records(args.ratings), args.rater)
    if not scores:
        raise PreferencesError(f"{args.ratings} holds no score" + (f" of {args.rater}" if args.rater else ""))
    write_huvidpo_json(args.file, scores)
    return f"{args.file}: {len(scores)} scores"


def _simulate(args: argparse.Namespace) -> str:
    # transformers takes seconds to import, and no other command needs it
    from judging.judge import DEFAULT_MOTION, clip_folder, load_judge, measure_motion

    model = load_catalog().model(args.model)
    motion = measure_motion(args.like, model.defaults) if args.like else DEFAULT_MOTION
    judge = load_judge(clip_folder(model, args.clip), motion)
    count = simulate(args.clips, args.ratings, judge, args.noise, args.seed)
    return f"{args.ratings}: {count} simulated ratings added; no person rated these clips"


def _filmed(args: argparse.Namespace) -> str:
    count = prefer_filmed(args.clips, args.ratings)
    return f"{args.ratings}: {count} comparisons added, filmed over made; no person made them"


def _nearest(args: argparse.Namespace) -> str:
    count = prefer_nearest(args.clips, args.ratings, args.segment_frames, args.tie)
    return f"{args.ratings}: {count} comparisons added, by nearness to what was filmed; no person made them"


def _repair(args: argparse.Namespace) -> str:
    if args.category is not None:
        load_catalog().category(args.category)
    made = repair(args.ratings, args.category)
    lines = [f"{args.ratings}: {made.kept} lines as they were, {made.filled} with a category added"]
    lines += [f"  dropped {problem}" for problem in made.dropped]
    return "\n".join([*lines, f"{made.before}: as it was"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m judging.ratings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], str], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help)
        added.set_defaults(run=run)
        added.add_argument("--clips", required=True, type=Path, help="folder with captions.jsonl")
        added.add_argument("--ratings", type=Path, help="default: ratings.jsonl in the folder of the clips")
        return added

    added = command("report", _report, "counts, agreement, order and pairs as one HTML page")
    added.add_argument("--out", type=Path, help="default: report.html in the folder of the clips")
    added.add_argument("--tie", type=float, default=TIE, help=f"log-odds that count as a tie ({TIE})")
    added.add_argument("--holdout", type=float, default=HOLDOUT, help=f"share of clips held out ({HOLDOUT})")
    added.add_argument("--seed", type=int, default=0, help="of the hold-out (0)")
    added = command("import", _import, "add scores from a HuViDPO JSON file")
    added.add_argument("file", type=Path)
    added.add_argument("--rater", default="imported", help="who gave them (imported)")
    added = command("export", _export, "write mean scores as a HuViDPO JSON file")
    added.add_argument("file", type=Path)
    added.add_argument("--rater", help="one rater's scores alone")
    command("filmed", _filmed, "add that filmed clips are better than those made from their first frames")
    added = command(
        "nearest", _nearest, "add which of two clips made from a filmed one is nearer to it, where"
    )
    added.add_argument(
        "--segment-frames",
        type=int,
        default=SEGMENT_FRAMES,
        help=f"frames judged together, from the second frame on ({SEGMENT_FRAMES})",
    )
    added.add_argument("--tie", type=float, default=NEARER, help=f"dB that count as a tie ({NEARER})")
    added = command("repair", _repair, "keep the whole lines of a damaged file, and the file as it was")
    added.add_argument("--category", help="write this one where a line has none")
    added = command("simulate", _simulate, "add scores by a stated rule, as rater 'simulated'")
    added.add_argument("--model", default=DEFAULT_MODEL, help=f"whose judge ({DEFAULT_MODEL})")
    added.add_argument("--clip", type=Path, help="folder of a transformers CLIPModel; default: the model's")
    added.add_argument("--like", type=Path, help="folder of real clips of the category: how much it moves")
    added.add_argument("--noise", type=float, default=0.0, help="standard deviation added to a score (0)")
    added.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
