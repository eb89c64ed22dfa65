"""Measure the shipped tiny family on prompts and seeds that no training saw, and draw its contact sheets.

    python -m training.tiny.evaluate                  # everything; writes models/tiny/quality.json and sheets
    python -m training.tiny.evaluate --clips 64 --frames 64 --out /tmp/quick

First frames: share whose category and style the tiny CLIP names right. Clips: continue the true first frame
of held-out scenes; PSNR of frames 1..15 against the rendered truth beside the frozen first frame's, and the
mean absolute difference between adjacent frames beside the truth's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer

from huvidpo import video
from huvidpo.catalog import load_catalog
from huvidpo.config import ClipRequest
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from training.tiny.clip import normalised, zero_shot
from training.tiny.common import DATA, FAMILY
from training.tiny.dataset import load_split
from training.tiny.world import CATEGORIES, STYLES, Scene, caption, contact_sheet, random_scene

BATCH = 16
SEED = 900_000  # far from every seed used in training
SHEET_FRAMES = (0, 5, 10, 15)


def request_for(scene: Scene, seed: int) -> ClipRequest:
    """The request a user would make for a scene: the style is a field of its own, not part of the prompt."""
    prompt = caption(scene).rpartition(",")[0]
    options = load_catalog().model("tiny").defaults
    return ClipRequest(prompt=prompt, category=scene.category, style=scene.style, seed=seed, options=options)


def batches(items: list, key: str | None = None) -> Iterator[list]:
    """Runs of up to `BATCH` items; with `key` = "category" only items of one category share a run."""
    groups = [items] if key is None else [[i for i in items if i[0].category == c] for c in CATEGORIES]
    for group in groups:
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


def judge_first_frames(pipeline: FirstFramePipeline, count: int) -> tuple[dict, list[np.ndarray]]:
    """Zero-shot accuracy of the tiny CLIP on `count` generated first frames."""
    model = CLIPModel.from_pretrained(FAMILY / "clip", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(FAMILY / "clip")
    rng = np.random.default_rng(SEED)
    scenes = [random_scene(rng, CATEGORIES[i % 8], STYLES[i // 8 % 4]) for i in range(count)]
    pictures: list[np.ndarray] = []
    for run in batches(list(enumerate(scenes))):
        pictures += pipeline([request_for(scene, SEED + i) for i, scene in run])  # type: ignore[arg-type]
        print(f"\rfirst frames {len(pictures)}/{count}", end="", flush=True)
    print()
    with torch.no_grad():
        features = model.get_image_features(normalised(np.stack(pictures))).pooler_output
        guesses = zero_shot(model, tokenizer, F.normalize(features, dim=-1))
    right = np.array([[g == s.category, t == s.style] for (g, t), s in zip(guesses, scenes, strict=True)])
    by_category = {
        c: round(float(np.mean([r[0] for r, s in zip(right, scenes, strict=True) if s.category == c])), 3)
        for c in CATEGORIES
    }
    by_style = {
        t: round(float(np.mean([r[1] for r, s in zip(right, scenes, strict=True) if s.style == t])), 3)
        for t in STYLES
    }
    category, style = (round(float(x), 4) for x in right.mean(0))
    return {
        "count": count,
        "category_accuracy": category,
        "style_accuracy": style,
        "by_category": by_category,
        "by_style": by_style,
    }, pictures


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of a clip in dB, from its mean squared error over all frames; a, b: uint8 [F, H, W, 3].

    Not the mean of the frames' PSNRs: one frame that equals the first would decide a periodic motion's value.
    """
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def motion(clip: np.ndarray) -> float:
    """Mean absolute difference between adjacent frames, in grey levels of 255."""
    return float(np.abs(np.diff(clip.astype(np.float32), axis=0)).mean())


def judge_clips(pipeline: VideoPipeline, count: int) -> dict:
    """Continue the true first frames of `count` held-out scenes; compare with the truth, per category."""
    truths, scenes = load_split(DATA, "held_out")
    rows = [(scene, truths[i], SEED + i) for i, scene in enumerate(scenes[:count])]
    result: dict[str, dict[str, list[float]]] = {
        c: {"psnr": [], "psnr_frozen": [], "motion": [], "motion_truth": []} for c in CATEGORIES
    }
    for run in tqdm(list(batches(rows, "category")), desc="clips"):
        requests = [request_for(scene, seed) for scene, _, seed in run]
        clips = pipeline(requests, [truth[0] for _, truth, _ in run])
        for (scene, truth, _), clip in zip(run, clips, strict=True):
            assert clip is not None
            figures = result[scene.category]
            figures["psnr"].append(psnr(clip[1:], truth[1:]))
            figures["psnr_frozen"].append(psnr(np.repeat(truth[:1], len(truth) - 1, 0), truth[1:]))
            figures["motion"].append(motion(clip))
            figures["motion_truth"].append(motion(truth))
    table = {c: {k: round(float(np.mean(v)), 3) for k, v in figures.items()} for c, figures in result.items()}
    for figures in table.values():
        figures["motion_ratio"] = round(figures["motion"] / figures["motion_truth"], 3)
        figures["gain_over_frozen_db"] = round(figures["psnr"] - figures["psnr_frozen"], 3)
    return table


def draw_sheets(first: FirstFramePipeline, second: VideoPipeline, out: Path) -> None:
    """32 clips, category by style: frames 0, 5, 10, 15 as a PNG and all frames as an animated WebP."""
    rng = np.random.default_rng(SEED + 1)
    rows = []
    for i, category in enumerate(tqdm(CATEGORIES, desc="contact sheet")):
        requests = [
            request_for(random_scene(rng, category, style), SEED + 4 * i + j)
            for j, style in enumerate(STYLES)
        ]
        images = first(requests)
        rows.append(second(requests, images))  # type: ignore[arg-type]
    still = contact_sheet([[clip[t] for clip in row for t in SHEET_FRAMES] for row in rows])
    save_picture(still, out / "clips.png", scale=1)
    moving = [
        contact_sheet(
            [
                [row[s][t] for row in pair for s in range(4)]
                for pair in zip(rows[::2], rows[1::2], strict=True)
            ]
        )
        for t in range(len(rows[0][0]))
    ]
    enlarged = np.stack(moving).repeat(2, 1).repeat(2, 2)
    (out / "clips.webp").write_bytes(video.encode(enlarged, 8, "webp"))


def save_picture(pixels: np.ndarray, path: Path, scale: int) -> None:
    Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=256, help="first frames to judge")
    parser.add_argument("--clips", type=int, default=128, help="held-out clips to judge")
    parser.add_argument("--out", type=Path, default=FAMILY)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    first, second = FirstFramePipeline.from_catalog("tiny"), VideoPipeline.from_catalog("tiny")
    draw_sheets(first, second, args.out)
    frames, pictures = judge_first_frames(first, args.frames)
    save_picture(
        contact_sheet([pictures[i : i + 8] for i in range(0, min(64, args.frames), 8)]),
        args.out / "first_frames.png",
        2,
    )
    result = {"first_frames": frames, "clips": judge_clips(second, args.clips)}
    (args.out / "quality.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
