"""The gate: a category's new weights ship only when they beat the old ones and still move.

    python -m judging.promote --model tiny --category horse --candidate merged.safetensors \\
        --against stage1.safetensors --accept
    python -m judging.promote --model tiny --category horse --candidate merged.safetensors \\
        --against stage1.safetensors --like clips/horse --rated candidates/horse --run runs/horse_gate

Both make a clip from each of `--count` held-out prompts and seeds, from the same first frame and noise. The
judge is the stated rule of `judging.judge` (simulated: no person), or people: after a run, `python -m
service.rating --clips RUN` asks them which of each two is better, and the same command with `--people` goes
by their answers. Accepted, and exit 0, if the 95 % interval of the win rate, clustered by prompt, lies above
50 % and motion is at least 90 % of the old; otherwise refused, with the reasons, and exit 4. RUN keeps the
clips, `sheet.png` (old above new) and the verdict, `promotion.json`. `--accept` copies accepted weights to
the model's categories, with their card; whatever goes wrong, those that are there stay. A service takes them
while it runs; `python -m judging.rollback` puts the earlier ones back.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from huvidpo import command, video
from huvidpo.catalog import DEFAULT_MODEL, Catalog, Category, Model, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.errors import CheckpointError, InvalidRequest
from huvidpo.files import hash_file, make_folder, whole_file, write_bytes, write_text
from huvidpo.pipeline import VideoPipeline, full_prompt
from judging.candidates import read_pictures, read_prompts
from judging.judge import (
    DEFAULT_MOTION,
    Judge,
    clip_folder,
    load_judge,
    measure_motion,
    score_clip,
    warn_of_foreign,
)
from judging.methods import GATE_SEED, draw_first_frames, held_out_requests, render
from preferences.clips import ClipEntry, ClipFolderError, read_clips, write_clips
from preferences.metrics import Estimate, EvaluationError, flow, ratio_of_means, win_rate
from preferences.records import RATINGS_FILE, Comparison, Opinion, read_records
from preferences.thumbnails import contact_sheet, strip
from training.lineage import commit, keep_previous, metrics_of, place

COUNT = 40  # pairs: 27 wins of 40 put the interval above one half
LEAST_MOTION = 0.9  # of the old weights' motion
SIDES = ("candidate", "against")
REPORT = "promotion.json"
REFUSED = 4
"""Exit status of a verdict against the candidate: not that of a mistake (2) or a crash (1)."""
SIMULATED = "simulated (judging.judge)"


@dataclass(frozen=True)
class Pair:
    """One prompt and seed: what the judge and the flow say of both clips."""

    prompt: str
    """Without the style."""
    caption: str
    seed: int
    margin: float
    """Above 0 where the candidate is better: points of the judge, or people's answers as 1, -1 and 0."""
    motion_candidate: float
    motion_against: float
    beside: Mapping[str, float] = field(default_factory=dict)
    """Margins of other measures, by which the candidate must not lose."""


@dataclass(frozen=True)
class Exam:
    """Where a family has a judge of its own: what it examines, in place of drawn first frames."""

    requests: Sequence[ClipRequest]
    first_frames: Sequence[np.ndarray]
    judge: str
    """Who judges, for the report."""
    measure: Callable[[int, np.ndarray], Mapping[str, float]]
    """Number of the request, its clip -> how good it is by each measure, more is better. The first measure
    decides who wins, by the others the candidate must not lose.
    """


Examine = Callable[[Model, Category, int, int, Sequence[str]], Exam]
"""(model, category, how many requests, their seed, prompts that were seen) -> the exam."""


@dataclass(frozen=True)
class Decision:
    """Whether the candidate ships, and why not."""

    win_rate: Estimate
    motion_ratio: Estimate
    beside: dict[str, Estimate]
    """Share of pairs that it wins by each other measure."""
    reasons: list[str]

    @property
    def accepted(self) -> bool:
        return not self.reasons


def decide(pairs: Sequence[Pair]) -> Decision:
    """The gate. Raises EvaluationError for no pairs."""
    prompts = [pair.prompt for pair in pairs]
    wins = win_rate([pair.margin for pair in pairs], prompts=prompts)
    motions = [p.motion_candidate for p in pairs], [p.motion_against for p in pairs]
    ratio = ratio_of_means(*motions, prompts=prompts)
    reasons = []
    if wins.low <= 0.5:
        reasons.append(
            f"it wins {wins.mean:.0%} of {len(pairs)} pairs of {len(set(prompts))} prompts (interval "
            f"{wins.low:.0%} to {wins.high:.0%}), which must lie above 50 %"
        )
    if ratio.mean < LEAST_MOTION:
        reasons.append(f"motion falls to {ratio.mean:.0%} of the old; at least {LEAST_MOTION:.0%} must stay")
    beside = {
        name: win_rate([pair.beside[name] for pair in pairs], prompts=prompts) for name in pairs[0].beside
    }
    reasons += [
        f"by {name} it wins {found.mean:.0%} of the pairs; at least half must be won"
        for name, found in beside.items()
        if found.mean < 0.5
    ]
    return Decision(wins, ratio, beside, reasons)


# Clips


def render_both(
    model: Model,
    category: Category,
    weights: Mapping[str, Path],
    requests: Sequence[ClipRequest],
    first_frames: Sequence[np.ndarray],
) -> dict[str, list[np.ndarray]]:
    """Side -> its clips, uint8 [F, H, W, 3], from the same first frames and noise."""
    clips = {}
    for side, file in weights.items():
        pipeline = VideoPipeline.from_catalog(
            model.name, categories=[category.name], weights={category.name: file}
        )
        made = render(pipeline, requests, first_frames)
        clips[side] = list(tqdm(made, side, len(requests), unit="clip"))
    return clips


def save_clips(
    folder: Path,
    model: Model,
    catalog: Catalog,
    weights: Mapping[str, Path],
    requests: Sequence[ClipRequest],
    clips: Mapping[str, Sequence[np.ndarray]],
) -> list[ClipEntry]:
    """Write videos, captions.jsonl and sheet.png. Each pair is a category of its own in captions.jsonl, so
    that the rating page asks of each candidate's clip against its counterpart and nothing else.
    """
    entries = []
    for side, made in clips.items():
        for i, (request, clip) in enumerate(zip(requests, made, strict=True)):
            entry = ClipEntry(
                video=f"{side}/{i:04d}.mp4",
                caption=full_prompt(request, catalog),
                prompt=request.prompt,
                style=request.style or "",
                category=f"{request.category}/{i:04d}",
                seed=request.seed,
                model=model.name,
                lineage={"side": side, "sha256": sha256_of(weights[side])},
            )
            write_bytes(folder / entry.video, video.encode(clip, request.options.fps))
            entries.append(entry)
    write_clips(folder, entries)
    both = zip(clips["against"], clips["candidate"], strict=True)
    rows = [[np.asarray(strip(clip, 6)) for clip in pair] for pair in both]
    pictures = [Image.fromarray(np.concatenate(row)) for row in rows]
    with whole_file(folder / "sheet.png") as part:
        contact_sheet(pictures, [full_prompt(request, catalog) for request in requests]).save(part, "PNG")
    return entries


def sha256_of(weights: Path) -> str:
    """Of a file; weights that are not there (the shared base) or a folder have none."""
    return hash_file(weights) if weights.is_file() else "none"


def read_pairs(folder: Path, weights: Mapping[str, Path]) -> list[tuple[ClipEntry, ClipEntry]]:
    """(candidate's, against's) clips that an earlier run left in `folder`.

    Raises ClipFolderError when there are none, or when they were made by other weights.
    """
    entries = {entry.video: entry for entry in read_clips(folder)}
    made = {
        side: {e.lineage.get("sha256") for e in entries.values() if e.lineage.get("side") == side}
        for side in SIDES
    }
    for side in SIDES:
        if made[side] != {sha256_of(weights[side])}:
            raise ClipFolderError(
                f"{folder}: its clips were not made by {weights[side]}; run without --people first"
            )
    ours = [entry for entry in entries.values() if entry.lineage["side"] == "candidate"]
    return [(entry, entries[entry.video.replace("candidate/", "against/", 1)]) for entry in ours]


# Judges


def judge_simulated(
    requests: Sequence[ClipRequest],
    catalog: Catalog,
    clips: Mapping[str, Sequence[np.ndarray]],
    judge: Judge,
) -> list[Pair]:
    """Pairs whose margin is the difference of the simulated ratings, in points."""
    pairs = []
    rows = zip(requests, clips["candidate"], clips["against"], strict=True)
    for request, ours, theirs in tqdm(rows, "judge", len(requests), unit="pair"):
        caption = full_prompt(request, catalog)
        new, old = flow(ours), flow(theirs)
        margin = score_clip(ours, caption, judge, new) - score_clip(theirs, caption, judge, old)
        pairs.append(Pair(request.prompt, caption, request.seed, margin, new.motion, old.motion))
    return pairs


def judge_by_exam(exam: Exam, catalog: Catalog, clips: Mapping[str, Sequence[np.ndarray]]) -> list[Pair]:
    """Pairs whose margins are the differences of what the exam measures."""
    pairs = []
    rows = zip(exam.requests, clips["candidate"], clips["against"], strict=True)
    for i, (request, ours, theirs) in enumerate(tqdm(rows, "judge", len(exam.requests), unit="pair")):
        new, old = exam.measure(i, ours), exam.measure(i, theirs)
        margins = {name: new[name] - old[name] for name in new}
        deciding = next(iter(margins))
        pairs.append(
            Pair(
                request.prompt,
                full_prompt(request, catalog),
                request.seed,
                margins.pop(deciding),
                flow(ours).motion,
                flow(theirs).motion,
                margins,
            )
        )
    return pairs


def judge_by_people(
    folder: Path, entries: Sequence[tuple[ClipEntry, ClipEntry]], records: Sequence[Opinion]
) -> list[Pair]:
    """One pair per clip pair that people compared; its margin is the mean of their answers, -1 to 1.

    Raises EvaluationError when nobody compared any, or a clip has changed since.
    """
    pairs = []
    for ours, theirs in entries:
        hashes = {entry.video: hash_file(folder / entry.video) for entry in (ours, theirs)}
        answers = [_margin(record, ours.video, hashes) for record in records if _is_about(record, hashes)]
        if answers:
            new, old = (flow(video.decode(folder / entry.video)[0]).motion for entry in (ours, theirs))
            margin = float(np.mean(answers))
            pairs.append(Pair(ours.prompt, ours.caption, ours.seed or 0, margin, new, old))
    if not pairs:
        raise EvaluationError(
            f"{folder / RATINGS_FILE} compares none of these clips: python -m service.rating --clips {folder}"
        )
    return pairs


def _is_about(record: Opinion, hashes: Mapping[str, str]) -> bool:
    """Whether a record compares two clips (video -> sha256) as they are now."""
    if not isinstance(record, Comparison):
        return False
    return {record.clip_a: record.sha256_a, record.clip_b: record.sha256_b} == dict(hashes)


def _margin(record: Any, ours: str, hashes: Mapping[str, str]) -> float:
    if record.answer == "tie":
        return 0.0
    return 1.0 if (record.answer == "a") == (record.clip_a == ours) else -1.0


# Report


def report(decision: Decision, pairs: Sequence[Pair], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What promotion.json holds, which `training.merge --metrics` takes too."""
    return {
        "accepted": decision.accepted,
        "reasons": decision.reasons,
        "win_rate": dataclasses.asdict(decision.win_rate),
        "motion_ratio": dataclasses.asdict(decision.motion_ratio),
        "beside": {name: dataclasses.asdict(found) for name, found in decision.beside.items()},
        "motion_px_per_frame": {
            "candidate": float(np.mean([p.motion_candidate for p in pairs])),
            "against": float(np.mean([p.motion_against for p in pairs])),
        },
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs}),
        **facts,
    }


def to_text(found: Mapping[str, Any]) -> str:
    """The table and the verdict, for people."""
    wins, ratio, moved = found["win_rate"], found["motion_ratio"], found["motion_px_per_frame"]
    lines = [
        "| metric | value | 95 % interval | wanted |",
        "| --- | ---: | ---: | ---: |",
        f"| wins of {found['pairs']} pairs, {found['prompts']} prompts | {wins['mean']:.1%} "
        f"| {wins['low']:.1%} to {wins['high']:.1%} | interval above 50 % |",
        *(
            f"| wins by {name} | {by['mean']:.1%} | {by['low']:.1%} to {by['high']:.1%} | 50 % or more |"
            for name, by in found["beside"].items()
        ),
        f"| motion, new by old | {ratio['mean']:.2f} | {ratio['low']:.2f} to {ratio['high']:.2f} "
        f"| {LEAST_MOTION} or more |",
        f"| motion, px/frame | {moved['candidate']:.2f} (old {moved['against']:.2f}) | | |",
        "",
        f"judge: {found['judge']}",
        "accepted" if found["accepted"] else "refused: " + "; ".join(found["reasons"]),
    ]
    return "\n".join(lines)


def ship(candidate: Path, target: Path, found: Mapping[str, Any]) -> None:
    """Copy weights to `target`, with the metrics of their card and the verdict in their new card. Those that
    were there are kept, for `judging.rollback`.
    """
    keep_previous(target)
    place(candidate, target, {**metrics_of(candidate), "promotion": dict(found)})


def main(
    arguments: list[str] | None = None, examine: Examine | None = None, name: str = "judging.promote"
) -> int:
    """The command; with `examine` it is that of a family that has a judge of its own."""
    args = _parser(name).parse_args(arguments)
    return command.run(name, lambda: _main(args, examine))


def _main(args: argparse.Namespace, examine: Examine | None) -> int:
    catalog = load_catalog()
    model, category = catalog.model(args.model), catalog.category(args.category)
    sampling = model.defaults.replace(steps=args.steps, first_frame_steps=args.steps)
    model = dataclasses.replace(model, defaults=sampling)
    shipped = model.categories / category.weights
    weights = {"candidate": args.candidate, "against": args.against or shipped}
    if not args.candidate.is_file():
        raise CheckpointError(f"candidate: there is no file {args.candidate}")
    if args.against and not args.against.exists():
        raise CheckpointError(f"against: there are no weights at {args.against}")
    if args.count < 1:
        raise InvalidRequest(f"count: got {args.count}, expected 1 or more", "count")
    folder = args.run or Path("runs") / "promote" / f"{model.name}-{category.name}"
    (folder / REPORT).unlink(missing_ok=True)  # an earlier verdict must not be taken for this one's

    target = args.out / category.weights if args.out else shipped
    for place_for in (folder, *([target.parent] if args.accept or args.force else [])):
        make_folder(place_for)
    if args.people:
        records = read_records(folder / RATINGS_FILE)
        pairs = judge_by_people(folder, read_pairs(folder, weights), records)
        judge_name = f"people ({len({r.rater for r in records if isinstance(r, Comparison)})})"
    elif examine is not None:
        pairs, judge_name = _examined(args, catalog, model, category, weights, folder, examine)
    else:
        pairs, judge_name = _simulated(args, catalog, model, category, weights, folder), SIMULATED
    decision = decide(pairs)
    found = report(
        decision,
        pairs,
        {
            "judge": judge_name,
            "model": model.name,
            "category": category.name,
            "commit": commit(),
            **{f"{side}_sha256": sha256_of(file) for side, file in weights.items()},
        },
    )
    rows = [dataclasses.asdict(pair) for pair in pairs]
    text = json.dumps({**found, "clips": rows}, indent=1) + "\n"
    write_text(folder / REPORT, text)
    print(to_text(found))
    if (decision.accepted and args.accept) or args.force:
        ship(args.candidate, target, found if decision.accepted else {**found, "forced": True})
        print(f"shipped: {target}")
    elif not decision.accepted:
        print(f"{target} stays as it {'is' if target.exists() else 'was: not there'}")
        if args.against and args.accept:
            print(f"to serve the old weights instead: cp {args.against} {target}")
    return 0 if decision.accepted else REFUSED


def _simulated(
    args: argparse.Namespace,
    catalog: Catalog,
    model: Model,
    category: Category,
    weights: Mapping[str, Path],
    folder: Path,
) -> list[Pair]:
    """Renders both sides, keeps the clips in `folder` and has the stated rule judge them."""
    seen = [entry.prompt for entry in read_clips(args.rated)] if args.rated else []
    prompts = read_prompts(args.prompts) if args.prompts else []
    requests = held_out_requests(model, category, list(catalog.styles), args.count, prompts, args.seed, seen)
    typical = measure_motion(args.like, model.defaults) if args.like else DEFAULT_MOTION
    judge = load_judge(clip_folder(model, args.clip), typical)
    pictures = list(read_pictures(args.first_frames).values()) if args.first_frames else []
    first_frames = draw_first_frames(model, requests, pictures)
    if pictures:
        warn_of_foreign(judge, "clips that start from given pictures")
    clips = render_both(model, category, weights, requests, first_frames)
    save_clips(folder, model, catalog, weights, requests, clips)
    return judge_simulated(requests, catalog, clips, judge)


def _examined(
    args: argparse.Namespace,
    catalog: Catalog,
    model: Model,
    category: Category,
    weights: Mapping[str, Path],
    folder: Path,
    examine: Examine,
) -> tuple[list[Pair], str]:
    """Renders both sides as the exam asks, keeps the clips in `folder`; (pairs, who judged)."""
    for given in ("prompts", "first_frames", "clip", "like"):
        if getattr(args, given) is not None:
            raise InvalidRequest(
                f"{given}: the family's own judge examines scenes of its world; leave it out", given
            )
    seen = [entry.prompt for entry in read_clips(args.rated)] if args.rated else []
    exam = examine(model, category, args.count, args.seed, seen)
    clips = render_both(model, category, weights, exam.requests, exam.first_frames)
    save_clips(folder, model, catalog, weights, exam.requests, clips)
    return judge_by_exam(exam, catalog, clips), exam.judge


def _parser(name: str = "judging.promote") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument("--category", required=True, help="a category of the catalog")
    parser.add_argument("--candidate", required=True, type=Path, help="the new weights (training.merge)")
    parser.add_argument("--against", type=Path, help="the old ones; default: the catalog's, or the base")
    parser.add_argument("--count", type=int, default=COUNT, help=f"pairs of clips ({COUNT})")
    parser.add_argument(
        "--steps", type=int, help="denoising steps of first frame and clip; default: the model's"
    )
    parser.add_argument("--prompts", type=Path, help="text file with one prompt a line, without a style")
    parser.add_argument("--rated", type=Path, help="folder of the rated clips: their prompts are left out")
    parser.add_argument("--first-frames", type=Path, help="folder of pictures or videos to start from")
    parser.add_argument("--seed", type=int, default=GATE_SEED, help=f"of the first pair ({GATE_SEED})")
    parser.add_argument("--clip", type=Path, help="folder of the CLIP that judges; default: the model's own")
    parser.add_argument("--like", type=Path, help="folder of real clips of the category: how much it moves")
    parser.add_argument(
        "--people", action="store_true", help="decide by RUN's ratings.jsonl; renders nothing"
    )
    parser.add_argument("--run", type=Path, help="default: runs/promote/<model>-<category>")
    parser.add_argument("--accept", action="store_true", help="copy accepted weights to the categories")
    parser.add_argument("--force", action="store_true", help="copy refused ones too; their card says so")
    parser.add_argument("--out", type=Path, help="folder to copy them to; default: the model's categories")
    return parser


if __name__ == "__main__":
    sys.exit(main())
