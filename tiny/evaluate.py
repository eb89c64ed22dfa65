"""Measure the shipped tiny family on prompts and seeds that no training saw, and draw its contact sheets.

    python -m tiny.evaluate                  # everything; writes models/tiny/quality.json and sheets
    python -m tiny.evaluate --clips 64 --frames 64 --out /tmp/quick

First frames: share whose category and style the tiny CLIP names right. Clips: continue the true first frame
of held-out scenes; PSNR of frames 1..15 against the rendered truth beside the frozen first frame's, and the
mean absolute difference between adjacent frames beside the truth's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm
from transformers import CLIPModel

from huvidpo import video
from huvidpo.catalog import Component, load_catalog
from huvidpo.checkpoint import read_metadata
from huvidpo.config import ClipRequest
from huvidpo.files import make_folder, write_text
from huvidpo.loading import load_part, load_tokenizer
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from preferences.metrics import frame_difference, psnr
from preferences.thumbnails import tile
from tiny.clip import normalised, zero_shot
from tiny.common import DATA, FAMILY, STAGE1
from tiny.dataset import load_split
from tiny.world import CATEGORIES, STYLES, Scene, caption, random_scene, random_scenes

BATCH = 16
SEED = 900_000  # far from every seed used in training
SHEET_FRAMES = (0, 5, 10, 15)


def request_for(scene: Scene, seed: int) -> ClipRequest:
    """The request a user would make for a scene: the style is a field of its own, not part of the prompt."""
    prompt = caption(scene).rpartition(",")[0]
    options = load_catalog().model("tiny").defaults
    return ClipRequest(prompt=prompt, category=scene.category, style=scene.style, seed=seed, options=options)


def batches(items: list) -> Iterator[list]:
    """Runs of up to `BATCH` items."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def judge_first_frames(pipeline: FirstFramePipeline, count: int) -> tuple[dict, list[np.ndarray]]:
    """Zero-shot accuracy of the tiny CLIP on `count` generated first frames."""
    source = Component.at(FAMILY, "clip")
    model = load_part(CLIPModel, source, torch.float32).eval()
    tokenizer = load_tokenizer(source, model)
    scenes = random_scenes(count, SEED)
    requests = [request_for(scene, SEED + i) for i, scene in enumerate(scenes)]
    pictures: list[Any] = []
    for run in tqdm(list(batches(requests)), desc="first frames"):
        pictures += pipeline(run)
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


def judge_clips(pipeline: VideoPipeline, count: int) -> dict[str, dict[str, float]]:
    """Continue the true first frames of `count` held-out scenes; compare with the truth by category."""
    truths, scenes = load_split(DATA, "held_out")
    rows = [(scene, truths[i], SEED + i) for i, scene in enumerate(scenes[:count])]
    result: dict[str, dict[str, float]] = {}
    for category in tqdm(CATEGORIES, desc="clips"):
        metrics = []
        for run in batches([row for row in rows if row[0].category == category]):
            clips = pipeline([request_for(s, seed) for s, _, seed in run], [truth[0] for _, truth, _ in run])
            metrics += [compare(clip, truth) for clip, (_, truth, _) in zip(clips, run, strict=True)]
        means = {key: round(float(np.mean([row[key] for row in metrics])), 3) for key in metrics[0]}
        means["gain_over_frozen_db"] = round(means["psnr"] - means["psnr_frozen"], 3)
        ratio = means["frame_difference"] / means["frame_difference_truth"]
        means["frame_difference_ratio"] = round(ratio, 3)
        result[category] = means
    return result


def compare(clip: Any, truth: np.ndarray) -> dict[str, float]:
    """Metrics of one clip against its truth, both uint8 [F, H, W, 3], beside the frozen first frame's."""
    frozen = np.repeat(truth[:1], len(truth) - 1, 0)
    return {
        "psnr": psnr(clip[1:], truth[1:]),
        "psnr_frozen": psnr(frozen, truth[1:]),
        "frame_difference": frame_difference(clip),
        "frame_difference_truth": frame_difference(truth),
    }


def draw_sheets(first: FirstFramePipeline, second: VideoPipeline, out: Path) -> None:
    """32 clips, category by style: frames 0, 5, 10, 15 as PNG; two categories a row as animated WebP."""
    rng = np.random.default_rng(SEED + 1)
    rows: list[Any] = []
    for i, category in enumerate(tqdm(CATEGORIES, desc="contact sheet")):
        scenes = [random_scene(rng, category, style) for style in STYLES]
        requests = [request_for(scene, SEED + 4 * i + j) for j, scene in enumerate(scenes)]
        rows.append(second(requests, cast(Any, first(requests))))
    still = tile([[clip[t] for clip in row for t in SHEET_FRAMES] for row in rows])
    save_picture(still, out / "clips.png", scale=1)
    pairs = [left + right for left, right in zip(rows[::2], rows[1::2], strict=True)]
    moving = [tile([[clip[t] for clip in pair] for pair in pairs]) for t in range(len(rows[0][0]))]
    (out / "clips.webp").write_bytes(video.encode(np.stack(moving).repeat(2, 1).repeat(2, 2), 8, "webp"))


def draw_before_after(first: FirstFramePipeline, second: VideoPipeline, out: Path) -> None:
    """Categories that ship preferences: stage 1 above, what ships below, one style a column; animated WebP.

    Same first frames and noise. Nothing is drawn without such a category or without the stage-1 weights.
    """
    shipped = {c: FAMILY / "categories" / f"{c}.safetensors" for c in CATEGORIES}
    stage1 = {c: STAGE1 / f"{c}.safetensors" for c in CATEGORIES if "lora" in read_metadata(shipped[c])}
    if not stage1 or not all(file.exists() for file in stage1.values()):
        return
    plain = VideoPipeline.from_catalog("tiny", categories=list(stage1), weights=stage1)
    rng = np.random.default_rng(SEED + 2)
    rows: list[Any] = []
    for i, category in enumerate(tqdm(stage1, desc="before and after")):
        scenes = [random_scene(rng, category, style) for style in STYLES]
        requests = [request_for(scene, SEED + 40 + 4 * i + j) for j, scene in enumerate(scenes)]
        frames = cast(Any, first(requests))
        rows += [plain(requests, frames), second(requests, frames)]
    moving = [tile([[clip[t] for clip in row] for row in rows]) for t in range(len(rows[0][0]))]
    animation = video.encode(np.stack(moving).repeat(2, 1).repeat(2, 2), 8, "webp")
    (out / "before_after.webp").write_bytes(animation)


def save_picture(pixels: np.ndarray, path: Path, scale: int) -> None:
    Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=256, help="first frames to judge")
    parser.add_argument("--clips", type=int, default=128, help="held-out clips to judge")
    parser.add_argument("--out", type=Path, default=FAMILY)
    args = parser.parse_args()
    make_folder(args.out)
    first, second = FirstFramePipeline.from_catalog("tiny"), VideoPipeline.from_catalog("tiny")
    draw_sheets(first, second, args.out)
    draw_before_after(first, second, args.out)
    frames, pictures = judge_first_frames(first, args.frames)
    save_picture(
        tile([pictures[i : i + 8] for i in range(0, min(64, args.frames), 8)]),
        args.out / "first_frames.png",
        2,
    )
    result = {"first_frames": frames, "clips": judge_clips(second, args.clips)}
    write_text(args.out / "quality.json", json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
