"""The built-in family beside what bounds it: fidelity to the truth, the judge, labels and motion.

    python -m tiny.judge.table                               # 128 scenes; writes models/tiny/judge/table.json
    python -m tiny.judge.table --stage1 runs/tiny/stage1     # and the categories before their preferences
    python -m tiny.judge.table --steps 4 6 8 12 20 --sheets runs/sheets    # and fewer denoising steps
    python -m tiny.judge.table --steps 1 2 4 --fast runs/tiny/fast         # and those distilled for them

Clips continue the true first frames of the held-out scenes of `tiny.dataset`. Rows that are always there: the
truth, the truth through the VAE (no latent model does better), retrieval (the motion of the nearest of 64
renders, pasted), the family's own as decoded, without the first frame's detail, the clip of most steps
blurred (what a gain by fewer steps must not be), the first frame frozen, rocking, and the truth backwards.
All are compared with the truth; the judge does not see it.
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
from diffusers import AutoencoderKL
from PIL import Image
from tqdm import tqdm

from huvidpo.catalog import Component, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.files import make_folder, write_text
from huvidpo.latents import from_latents, to_latents
from huvidpo.loading import load_part
from huvidpo.pipeline import VideoPipeline
from huvidpo.schedule import keep_detail
from preferences.metrics import bootstrap, win_rate
from preferences.thumbnails import tile
from tiny import dataset
from tiny.common import FAMILY, RUNS
from tiny.evaluate import SEED, batches, request_for
from tiny.judge.fidelity import fidelity
from tiny.judge.score import FOLDER, TERMS, Judge, load, unit
from tiny.judge.tricks import TRICKS, fake, still
from tiny.judge.wordings import labels_read
from tiny.judge.worlds import FIRST
from tiny.world import CATEGORIES, STYLES, Scene, render
from training.lineage import commit

NEIGHBOURS = 64
SHEET_FRAMES = (0, 3, 6, 9, 12, 15)
SCALE = 4
Clips = list[np.ndarray]
Measures = dict[str, float]  # of a clip
STAGE1 = "stage 1, before preferences"
FEW = (1, 2, 4)  # steps of what was distilled


def with_steps(scene: Scene, seed: int, steps: int, **others: Any) -> ClipRequest:
    """The scene's request, with `steps` of both stages and `others` of its options."""
    request = request_for(scene, seed)
    options = request.options.replace(steps=steps, first_frame_steps=steps, **others)
    return dataclasses.replace(request, options=options)


def made(
    scenes: Sequence[Scene],
    truths: Clips,
    steps: int,
    keep: Path,
    name: str = "shipped",
    folder: Path | None = None,
    **others: Any,
) -> Clips:
    """The family's clips from the true first frames, batched by category as the service does; by the weights
    in `folder`, if not those that ship, and with `others` in place of the model's own options. They are slow
    to make, so they stay in `keep`, by their `name`.
    """
    file = keep / f"{name}_{steps}.npy"
    if file.exists() and len(clips := np.load(file)) == len(scenes):
        return list(clips)
    weights = {c: folder / f"{c}.safetensors" for c in CATEGORIES} if folder else None
    pipeline = VideoPipeline.from_catalog(
        "tiny", categories=list(CATEGORIES), weights=weights, backend="auto"
    )
    clips = np.stack(truths)
    for category in tqdm(CATEGORIES, file.stem):
        for part in batches([i for i, scene in enumerate(scenes) if scene.category == category]):
            requests = [with_steps(scenes[i], SEED + i, steps, **others) for i in part]
            found: Any = pipeline(requests, [truths[i][0] for i in part])
            clips[part] = found
    np.save(file, clips)
    return list(clips)


@torch.no_grad()
def through_vae(truths: Clips) -> Clips:
    """What the VAE gives back of the truth, with the first frame's detail kept: the ceiling of any model of
    its latents.
    """
    vae = load_part(AutoencoderKL, Component.at(FAMILY / "first_frame", "vae"), torch.float32).eval()
    return [keep_detail(from_latents(vae, to_latents(vae, truth)), truth[0]) for truth in truths]


def pasted(truth: np.ndarray, neighbour: np.ndarray) -> np.ndarray:
    """The neighbour's change since its first frame, on the truth's first frame."""
    return fake(TRICKS["another's motion"], truth, neighbour, 100, 0)


def nearest(truth: np.ndarray, candidates: Sequence[Scene]) -> np.ndarray:
    """The clip of the candidate whose first frame is nearest to the truth's."""
    first = truth[0].astype(np.float32)
    apart = [float(np.square(render(scene, 1)[0] - first).mean()) for scene in candidates]
    return render(candidates[int(np.argmin(apart))])


def retrieved(scenes: Sequence[Scene], truths: Clips) -> dict[str, Clips]:
    """Rows of retrieval: from renders of the same words, and from training clips of the category."""
    training = dataset.scenes("clips", NEIGHBOURS * len(CATEGORIES) * len(STYLES))
    rows: dict[str, Clips] = {
        "nearest of 64 renders of the same words": [],
        "nearest of 64 training clips": [],
    }
    for i, (scene, truth) in enumerate(zip(tqdm(scenes, "retrieval"), truths, strict=True)):
        seeds = np.random.default_rng((SEED, i)).integers(2**31, size=NEIGHBOURS)
        same = [dataclasses.replace(scene, seed=int(seed)) for seed in seeds]
        seen = [s for s in training if (s.category, s.style) == (scene.category, scene.style)]
        for name, candidates in zip(rows, (same, seen), strict=True):
            rows[name].append(pasted(truth, nearest(truth, candidates)))
    return rows


@torch.no_grad()
def measure(judge: Judge, scene: Scene, clip: np.ndarray, truth: np.ndarray) -> Measures:
    """All of one clip: fidelity, the judge's score and terms, and the share of later frames whose labels are
    right (colour where there is one to see).
    """
    expected = judge.expect(truth[0], FIRST.asked(scene))
    terms = judge.terms(unit(clip), expected)
    read, _ = judge.nets.reader(unit(clip[1:]))
    right = {
        kind: float((read[kind].argmax(1) == value).float().mean()) for kind, value in expected.shown.items()
    }
    score = float(judge.log_score(terms, scene.category).exp())
    said = dict(zip(TERMS, terms.tolist(), strict=True))
    return fidelity(clip, truth) | {"judge": score} | right | {f"term_{name}": x for name, x in said.items()}


def summary(rows: Sequence[Measures], scenes: Sequence[Scene]) -> dict[str, Any]:
    """Means with their intervals, and means by category."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def mean(name: str, category: str | None = None) -> float:
        some = [
            r[name] for r, s in zip(rows, scenes, strict=True) if name in r and category in (None, s.category)
        ]
        return round(float(np.mean(some)), 4) if some else float("nan")

    spread = {name: bootstrap([row[name] for row in rows]) for name in ("psnr", "psnr_moving", "judge")}
    return {
        **{name: mean(name) for name in names},
        "interval": {name: [round(e.low, 3), round(e.high, 3)] for name, e in spread.items()},
        "by_category": {
            c: {k: mean(k, c) for k in ("psnr", "psnr_moving", "judge", "motion")} for c in CATEGORIES
        },
    }


def against(ours: Sequence[Measures], theirs: Sequence[Measures]) -> dict[str, Any]:
    """How often one row's clips beat another's by each measure, with its interval."""
    result = {}
    for name in ("psnr", "psnr_moving", "judge"):
        share = win_rate([a[name] - b[name] for a, b in zip(ours, theirs, strict=True)])
        result[name] = {key: round(x, 4) for key, x in dataclasses.asdict(share).items()}
    return result


def drawn(judge: Judge, scenes: Sequence[Scene], steps: int) -> dict[str, float]:
    """Share of first frames drawn from the prompts whose labels the judge reads right."""
    return labels_read(judge, [with_steps(scene, SEED + i, steps) for i, scene in enumerate(scenes)], scenes)


def draw_sheet(clips: Clips, truths: Clips, scenes: Sequence[Scene], path: Path) -> None:
    """A category a row, four times as large: the clip, and the truth below it."""
    rows = []
    for category in CATEGORIES:
        i = next(i for i, scene in enumerate(scenes) if scene.category == category)
        rows += [[clip[i][t] for t in SHEET_FRAMES] for clip in (clips, truths)]
    Image.fromarray(tile(rows).repeat(SCALE, 0).repeat(SCALE, 1)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=128)
    parser.add_argument(
        "--steps", type=int, nargs="*", default=[], help="denoising steps besides the model's own"
    )
    parser.add_argument(
        "--stage1", type=Path, help="folder of the categories' stage-1 weights: a row of their own"
    )
    parser.add_argument(
        "--fast",
        type=Path,
        help="folder of the categories' weights distilled for fewer steps: rows of their own",
    )
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument(
        "--keep", type=Path, default=RUNS / "judge-table", help="folder of the family's clips"
    )
    parser.add_argument("--out", type=Path, default=FOLDER / "table.json")
    args = parser.parse_args()
    judge, scenes = load(), dataset.scenes("held_out", args.scenes)
    make_folder(args.keep)
    truths = [render(scene) for scene in tqdm(scenes, "render")]
    own = load_catalog().model("tiny").defaults.steps
    numbers = sorted({own, *args.steps})
    rows: dict[str, Clips] = {"the truth": truths, "the truth through the VAE": through_vae(truths)}
    rows |= retrieved(scenes, truths)
    rows |= {shipped(steps): made(scenes, truths, steps, args.keep) for steps in numbers}
    rows[f"{shipped(own)}, as decoded"] = made(scenes, truths, own, args.keep, "decoded", corrections="none")
    if args.stage1:
        rows[STAGE1] = made(scenes, truths, own, args.keep, "stage1", args.stage1)
    for steps in FEW if args.fast else ():
        rows[f"distilled, {steps} steps"] = made(scenes, truths, steps, args.keep, "distilled", args.fast)
    most = shipped(numbers[-1])
    rows[f"{most}, blurred by 0.4 px"] = [fake(TRICKS["blur"], clip, clip, 0.4, 0) for clip in rows[most]]
    rows["frozen first frame"] = [still(truth) for truth in truths]
    rows["first frame rocking by 1.2 px"] = [fake(TRICKS["a still rocking"], t, t, 1.2, 0) for t in truths]
    rows["the truth backwards"] = [fake(TRICKS["reversing"], t, t, len(t) - 1, 0) for t in truths]
    measured = {
        name: [measure(judge, *row) for row in zip(scenes, tqdm(clips, name), truths, strict=True)]
        for name, clips in rows.items()
    }
    ours = measured[shipped(own)]
    found = {
        "scenes": args.scenes,
        "commit": commit(),
        "steps": own,
        "rows": {name: summary(clips, scenes) for name, clips in measured.items()},
        "shipped_against": {
            name: against(ours, clips) for name, clips in measured.items() if name != shipped(own)
        },
        "first_frames": {str(steps): drawn(judge, scenes, steps) for steps in numbers},
    }
    if args.stage1:
        found["preferences_by_category"] = {
            category: against(*(of(category, scenes, row) for row in (ours, measured[STAGE1])))
            for category in CATEGORIES
        }
    make_folder(args.out.parent)
    write_text(args.out, json.dumps(found, indent=1) + "\n")
    if args.sheets:
        make_folder(args.sheets)
        for steps in numbers:
            draw_sheet(rows[shipped(steps)], truths, scenes, args.sheets / f"{steps}_steps.png")
    shown = ("psnr", "psnr_moving", "ssim_moving", "judge", "category", "place", "colour", "motion")
    for name, row in found["rows"].items():
        print(f"{name:42}", *(f"{key} {row[key]:.2f}" for key in shown))


def shipped(steps: int) -> str:
    return f"shipped, {steps} steps"


def of(category: str, scenes: Sequence[Scene], rows: Sequence[Measures]) -> list[Measures]:
    """The rows of a category's scenes."""
    return [row for row, scene in zip(rows, scenes, strict=True) if scene.category == category]


if __name__ == "__main__":
    main()
