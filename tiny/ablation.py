"""Which way of learning preferences helps by every rule: six arms on the same pairs.

    nice python -m tiny.ablation                  # 6 arms x 4 categories x 3 seeds, hours, resumed
    python -m tiny.ablation --seeds 0 --count 16  # less of it

Pairs are of filmed clips over the model's own from the same first frames (RealDPO, arXiv 2510.14955). Each
arm's LoRA is merged and held against stage 1 on the true first frames of scenes that nothing was trained on,
by the learned judge, by PSNR to the rendered truth and by motion, as `tiny.promote` does; how much the error
of held-out winners drifted, the run tells. An arm helps where the judge prefers it in 60 % of the pairs,
beyond chance, PSNR in half, and it keeps 95 % of the motion without the winners' error rising. Writes
models/tiny/judge/ablation.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.files import make_folder, write_text
from judging.promote import Exam, Pair, judge_by_exam, render_both
from preferences.clips import read_clips
from preferences.metrics import Estimate, ratio_of_means, win_rate
from tiny.common import FAMILY, RUNS, STAGE1
from tiny.preferences import LOOPS, commands, drift, film
from tiny.preferences import run as run_command
from tiny.promote import examine
from training.lineage import commit

ARMS = {
    "DPO, beta 5000": ["beta=5000"],
    "DPO, beta 50": ["beta=50"],
    "winners alone (SFT)": ["loss=sft"],
    "winner's error added (Reg-DPO)": ["beta=2000", "winner_weight=50"],
    "loser held back (SDPO)": ["beta=5000", "safeguard=0.9"],
    "both": ["beta=2000", "winner_weight=50", "safeguard=0.9"],
}
COMMON = [
    "anchor=0",
    "max_winner_drift=none",
    "sample_every=80",
]  # all run to their end; what they cost is told
CATEGORIES = ("horse", "rain", "smile", "waterfall")
WINS, MOTION = 0.6, 0.95  # at least
EXAM_SEED = 950_000  # not the gate's
FOLDER = RUNS / "ablation"


def pairs_of(category: str) -> Path:
    """The folder of filmed and made clips of a category with the comparisons of the two."""
    film(category)
    folder, clips = FOLDER / category, LOOPS / category / "candidates"
    if not (clips / "captions.jsonl").exists():
        run_command(commands(category)[clips / "captions.jsonl"], category)
    ratings = folder / "filmed.jsonl"
    if not ratings.exists():
        make_folder(folder)
        run_command(["judging.ratings", "filmed", "--clips", str(clips), "--ratings", str(ratings)], category)
    return clips


def train(category: str, arm: str, seed: int, folder: Path, threads: int) -> Path:
    """The merged weights of one arm."""
    clips, merged = pairs_of(category), folder / "merged.safetensors"
    lora, stage1 = folder / "lora.safetensors", str(STAGE1 / f"{category}.safetensors")
    settings = [word for text in [*COMMON, *ARMS[arm], f"seed={seed}"] for word in ("--set", text)]
    if not lora.exists():
        run_command(
            ["training.dpo", "--model", DEFAULT_MODEL, "--category", category, "--clips", str(clips),
             "--ratings", str(FOLDER / category / "filmed.jsonl"), "--stage1", stage1, "--out", str(lora),
             "--run", str(folder / "run"), "--threads", str(threads), "--resume", *settings],
            category,
        )  # fmt: skip
    if not merged.exists():
        run_command(
            ["training.merge", "--model", DEFAULT_MODEL, "--stage1", stage1, "--lora", str(lora),
             "--out", str(merged)],
            category,
        )  # fmt: skip
    return merged


def stage1_clips(exam: Exam, category: str) -> list[np.ndarray]:
    """Those that every arm is held against: made once."""
    file = FOLDER / category / f"stage1_{len(exam.requests)}.npy"
    if not file.exists():
        np.save(file, render(exam, category, STAGE1 / f"{category}.safetensors"))
    return list(np.load(file))


def render(exam: Exam, category: str, weights: Path) -> list[np.ndarray]:
    catalog = load_catalog()
    model, chosen = catalog.model(DEFAULT_MODEL), catalog.category(category)
    return render_both(model, chosen, {"": weights}, exam.requests, exam.first_frames)[""]


def measure(category: str, arm: str, seed: int, count: int, threads: int) -> dict[str, Any]:
    """One run's pairs against stage 1, kept in its folder once measured."""
    folder = FOLDER / category / arm.replace(" ", "_") / str(seed)
    file = folder / f"pairs_{count}.json"
    if not file.exists():
        make_folder(folder)
        merged = train(category, arm, seed, folder, threads)
        catalog = load_catalog()
        seen = [clip.prompt for clip in read_clips(pairs_of(category))]
        exam = examine(catalog.model(DEFAULT_MODEL), catalog.category(category), count, EXAM_SEED, seen)
        clips = {"candidate": render(exam, category, merged), "against": stage1_clips(exam, category)}
        pairs = [dataclasses.asdict(pair) for pair in judge_by_exam(exam, catalog, clips)]
        write_text(file, json.dumps({"drift": drift(folder), "pairs": pairs}))
    return json.loads(file.read_text(encoding="utf-8"))


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one arm's runs. For the intervals pairs of one prompt are one draw, of whatever training."""
    pairs = [Pair(**pair) for run in runs for pair in run["pairs"]]
    prompts = [pair.prompt for pair in pairs]
    motions = [p.motion_candidate for p in pairs], [p.motion_against for p in pairs]
    judged = win_rate([pair.margin for pair in pairs], prompts=prompts)
    (name,) = pairs[0].beside
    truth = win_rate([pair.beside[name] for pair in pairs], prompts=prompts)
    motion = ratio_of_means(*motions, prompts=prompts)
    drifted = float(np.mean([run["drift"] for run in runs]))
    return {
        "runs": len(runs),
        "pairs": len(pairs),
        "judge": dataclasses.asdict(judged),
        "truth": dataclasses.asdict(truth),
        "psnr_gain": float(np.mean([pair.beside[name] for pair in pairs])),
        "motion": dataclasses.asdict(motion),
        "winner_drift": drifted,
        "helps": helps(judged, truth, motion, drifted),
    }


def helps(judged: Estimate, truth: Estimate, motion: Estimate, drifted: float) -> bool:
    by_the_judge = judged.mean >= WINS and judged.low > 0.5
    return by_the_judge and truth.mean >= 0.5 and motion.mean >= MOTION and drifted <= 0


def table(found: dict[str, Any]) -> str:
    """The rows as docs/log.md has them."""
    lines = [f"{'':<32}{'judge, %':>18}{'PSNR, %':>16}{'dB':>7}{'motion':>8}{'winners':>9}  helps"]
    for arm, row in found.items():
        wins, truth = (
            f"{100 * row[name]['mean']:.0f} ({100 * row[name]['low']:.0f}-{100 * row[name]['high']:.0f})"
            for name in ("judge", "truth")
        )
        lines.append(
            f"{arm:<32}{wins:>18}{truth:>16}{row['psnr_gain']:>+7.2f}{row['motion']['mean']:>8.2f}"
            f"{100 * row['winner_drift']:>+8.1f}%  {'yes' if row['helps'] else 'no'}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--category", nargs="+", default=CATEGORIES, help=" ".join(CATEGORIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings (0 1 2)")
    parser.add_argument("--count", type=int, default=24, help="scenes of each category (24)")
    parser.add_argument("--threads", type=int, default=1, help="torch's (1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in args.seeds:  # a whole table after each
        for category in args.category:
            for arm in ARMS:
                runs[arm].append(measure(category, arm, seed, args.count, args.threads))
                print(f"{category}, {arm}, seed {seed}", flush=True)
        found = {arm: summary(rows) for arm, rows in runs.items()}
        by_category = {
            category: {arm: summary(rows[number :: len(args.category)]) for arm, rows in runs.items()}
            for number, category in enumerate(args.category)
        }
        facts = {"seeds": args.seeds[: args.seeds.index(seed) + 1], "scenes": args.count, "commit": commit()}
        whole = {**facts, "arms": found, "by_category": by_category}
        write_text(FAMILY / "judge" / "ablation.json", json.dumps(whole, indent=1) + "\n")
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
