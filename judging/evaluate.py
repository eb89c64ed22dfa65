"""Compare methods by quality metrics, in the layout of the paper's table 1.

    python -m judging.evaluate --model tiny --method "ours=catalog"
    python -m judging.evaluate --model tiny --categories horse rain --prompts 10 --out results/table1.json \\
        --method "ours=catalog" --method "ours without DPO=weights:stage1" --method "LAMP=first:lamp" \\
        --method "AnimateDiff=animatediff:stable-diffusion-v1-5,motion-adapter" --method "LVDM=clips:lvdm"

A method is NAME=SOURCE, with SOURCE one of

    catalog               the model with its categories' weights
    weights:DIR           the model with the weights in DIR, named as the catalog's
    first:DIR             the same with attention to the first frame alone, as LAMP has it
    animatediff:SD,ADAPTER    diffusers' AnimateDiffPipeline from two local folders
    clips:DIR             clips made elsewhere; `captions.jsonl` in DIR names their category and caption

The first three start from the same first frames and noise, so that only the video model differs. The clips of
the first method, frozen, are always a row: a still picture has the best SSIM and MSE. Writes OUT as JSON and
beside it as Markdown; `--save DIR` keeps the clips of every row for the user study (`service.study
serve --methods DIR`). Formulas: docs/metrics.md.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from huvidpo import command, video
from huvidpo.catalog import DEFAULT_MODEL, Model, load_catalog
from huvidpo.errors import InvalidRequest
from huvidpo.files import make_folder, make_way, write_bytes, write_text
from huvidpo.pipeline import full_prompt
from judging.candidates import read_pictures, read_prompts
from judging.judge import Judge, clip_folder, embed_caption, embed_frames, load_judge, warn_of_foreign
from judging.methods import (
    TABLE_SEED,
    Method,
    Setting,
    draw_first_frames,
    held_out_requests,
    parse_method,
)
from preferences.clips import ClipEntry, write_clips
from preferences.metrics import (
    Estimate,
    bootstrap,
    clip_score,
    flow,
    frame_consistency,
    freeze,
    mse,
    ssim,
)
from training.lineage import commit

FROZEN = "frozen first frame"  # the row that is always there
METRICS = {  # key: (heading, decimals)
    "clip_score": ("CLIPScore ↑", 1),
    "ssim": ("SSIM ↑", 1),
    "mse": ("MSE ↓", 1),
    "consistency": ("CLIP consistency ↑", 1),
    "motion": ("motion, px/frame", 2),
}

Values = dict[str, float]  # of a clip, by the keys of METRICS
Results = dict[str, dict[str, list[Values]]]  # method -> category -> one per clip


def measure(frames: np.ndarray, caption: str, judge: Judge) -> Values:
    """The metrics of one clip, uint8 [F, H, W, 3]. Raises EvaluationError for another shape or type."""
    images = embed_frames(judge, frames)
    return {
        "clip_score": clip_score(images, embed_caption(judge, caption)),
        "ssim": ssim(frames),
        "mse": mse(frames),
        "consistency": frame_consistency(images),
        "motion": flow(frames).motion,
    }


def evaluate(setting: Setting, methods: Sequence[Method], judge: Judge, save: Path | None = None) -> Results:
    """Metrics of every clip of every method, the frozen row first. Raises what the methods' clips raise."""
    results: Results = {FROZEN: {}}
    for i, method in enumerate(methods):
        rows = results[method.name] = {}
        saver = Saver(save / slug(method.name), setting.model) if save else None
        stills = Saver(save / slug(FROZEN), setting.model) if save and i == 0 else None
        total = sum(map(len, setting.requests.values())) if method.kind != "clips" else None
        for category, (frames, caption) in tqdm(setting.clips(method), method.name, total, unit="clip"):
            rows.setdefault(category, []).append(measure(frames, caption, judge))
            if i == 0:
                still = measure(freeze(frames), caption, judge)
                results[FROZEN].setdefault(category, []).append(still)
                if stills:
                    stills.add(category, freeze(frames), caption)
            if saver:
                saver.add(category, frames, caption)
    return results


class Saver:
    """Writes a method's clips as a folder of clips that `preferences.clips` reads."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.folder, self.model = folder, model
        self.entries: list[ClipEntry] = []
        make_folder(folder)

    def add(self, category: str, frames: np.ndarray, caption: str) -> None:
        name = f"{len(self.entries):04d}.mp4"
        write_bytes(self.folder / name, video.encode(frames, self.model.defaults.fps))
        self.entries.append(ClipEntry(video=name, caption=caption, category=category, model=self.model.name))
        write_clips(self.folder, self.entries)


def slug(name: str) -> str:
    """A method's name as a folder's: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "method"


def summarise(results: Results) -> dict[str, dict[str, dict[str, Estimate]]]:
    """method -> category, and "all" -> metric -> mean over clips with its bootstrap interval."""
    summary = {}
    for method, by_category in results.items():
        groups = by_category | {"all": [row for rows in by_category.values() for row in rows]}
        summary[method] = {
            group: {metric: bootstrap([row[metric] for row in rows]) for metric in METRICS}
            for group, rows in groups.items()
        }
    return summary


def to_markdown(results: Results) -> str:
    """The table over all categories, and one table per metric with the categories as columns."""
    summary = summarise(results)
    groups = list(summary[FROZEN])
    counts = {method: len([r for rows in by.values() for r in rows]) for method, by in results.items()}
    parts = [
        _table(
            ["method", "clips", *(heading for heading, _ in METRICS.values())],
            [
                [m, str(counts[m]), *(_cell(s["all"][metric], metric) for metric in METRICS)]
                for m, s in summary.items()
            ],
        )
    ]
    for metric, (heading, _) in METRICS.items():
        rows = [[m, *(_cell(s[g][metric], metric) for g in groups)] for m, s in summary.items()]
        parts.append(f"### {heading}\n\n" + _table(["method", *groups], rows))
    note = (
        "Mean over clips (95 % bootstrap interval). A frozen clip has the best SSIM and MSE: read them with"
    )
    return "\n".join([*parts, f"{note} the motion.\n"])


def _cell(estimate: Estimate, metric: str) -> str:
    digits = METRICS[metric][1]
    return f"{estimate.mean:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_json(results: Results, facts: dict[str, Any]) -> dict[str, Any]:
    """What OUT holds: `facts` about the run, the summary, and the metrics of every clip."""
    summary = {
        method: {
            group: {metric: dataclasses.asdict(estimate) for metric, estimate in metrics.items()}
            for group, metrics in groups.items()
        }
        for method, groups in summarise(results).items()
    }
    return {**facts, "summary": summary, "clips": results}


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("judging.evaluate", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    catalog = load_catalog()
    model = catalog.model(args.model)
    methods = [parse_method(text) for text in args.method or ["ours=catalog"]]
    names = [method.name for method in methods]
    if len({FROZEN, *map(slug, names)}) != len(names) + 1:
        raise InvalidRequest(f"method: names must differ, and not be {FROZEN!r}; got {', '.join(names)}")
    if args.prompts < 1:
        raise InvalidRequest(f"prompts: got {args.prompts}, expected 1 or more", "prompts")
    chosen = [catalog.category(name) for name in args.categories or catalog.categories]
    given = read_prompts(args.prompts_file) if args.prompts_file else []
    requests = {
        category.name: held_out_requests(
            model, category, list(catalog.styles), args.prompts, given, args.seed
        )
        for category in chosen
    }
    make_way(args.out)
    if args.save:
        make_folder(args.save)
    judge = load_judge(clip_folder(model, args.clip))
    if foreign := [method.name for method in methods if method.kind in ("clips", "animatediff")]:
        warn_of_foreign(judge, f"clips made elsewhere ({', '.join(foreign)})")
    images: dict[str, list[np.ndarray]] = {}
    if any(method.kind in ("catalog", "weights", "first") for method in methods):
        pictures = list(read_pictures(args.first_frames).values()) if args.first_frames else []
        drawn = iter(draw_first_frames(model, [r for rs in requests.values() for r in rs], pictures))
        images = {name: [next(drawn) for _ in rs] for name, rs in requests.items()}
    results = evaluate(Setting(catalog, model, requests, images), methods, judge, args.save)
    facts = {
        "model": model.name,
        "commit": commit(),
        "seed": args.seed,
        "methods": [dataclasses.asdict(method) for method in methods],
        "captions": {n: [full_prompt(r, catalog) for r in rs] for n, rs in requests.items()},
    }
    write_text(args.out, json.dumps(to_json(results, facts), indent=1) + "\n")
    write_text(args.out.with_suffix(".md"), to_markdown(results))
    print(to_markdown(results))
    print(f"{args.out} and {args.out.with_suffix('.md').name}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m judging.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument(
        "--method", action="append", metavar="NAME=SOURCE", help="a row; may be repeated (ours=catalog)"
    )
    parser.add_argument("--categories", nargs="+", metavar="NAME", help="default: all of the catalog")
    parser.add_argument("--prompts", type=int, default=10, help="clips per category, each a prompt (10)")
    parser.add_argument("--prompts-file", type=Path, help="text file with one prompt a line, without a style")
    parser.add_argument("--first-frames", type=Path, help="folder of pictures or videos to start from")
    parser.add_argument("--seed", type=int, default=TABLE_SEED, help=f"of the first clip ({TABLE_SEED})")
    parser.add_argument("--clip", type=Path, help="folder of the CLIP; default: the model's own")
    parser.add_argument("--save", type=Path, help="keep the clips, one folder per method")
    parser.add_argument("--out", type=Path, default=Path("evaluation.json"), help="file (evaluation.json)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
