"""Align the tiny family's first-frame network by Diffusion-DPO, with simulated ratings.

    python -m tiny.first_frame_preferences

Of each of 96 prompts two drawn pictures and the rendered one get the score of a stated rule - no people rated
anything: ten times the cosine, by the tiny CLIP, between picture and caption. `training.dpo` trains on
them, and what it made ships in models/tiny/first_frame/unet if, on prompts and seeds that it did not see,
the 95 % interval of its win rate by the same rule lies above one half; the plain network stays otherwise.
Everything lies in runs/tiny/first_frame_preferences, the verdict in `promotion.json`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from tqdm import tqdm

from huvidpo.catalog import Component, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.files import hash_file, make_folder, whole_folder, write_text
from huvidpo.loading import load_part
from huvidpo.pipeline import FirstFramePipeline, full_prompt
from judging.judge import Judge, embed_caption, embed_frames, load_judge
from preferences.clips import ClipEntry, write_clips
from preferences.metrics import win_rate
from preferences.records import RATINGS_FILE, Rating, append
from tiny.common import FAMILY, RUNS
from tiny.evaluate import batches, request_for
from tiny.world import random_scenes, render
from training import dpo

UNET = FAMILY / "first_frame" / "unet"
FOLDER = RUNS / "first_frame_preferences"
RATED = FOLDER / "pictures"
PROMPTS, DRAWN, SEED = 96, 2, 700_000
HELD_OUT, HELD_OUT_SEED = 192, 800_000


def draw(pipeline: FirstFramePipeline, wanted: list[ClipRequest]) -> list[np.ndarray]:
    """One uint8 [64, 64, 3] per request."""
    pictures: list[Any] = []
    for run in tqdm(list(batches(wanted)), desc="pictures", unit="batch"):
        pictures += pipeline(run)
    return pictures


def score(judge: Judge, picture: np.ndarray, caption: str) -> float:
    """The stated rule, 0..10."""
    return 10 * max(0.0, float(embed_frames(judge, picture[None])[0] @ embed_caption(judge, caption)))


def make_rated(pipeline: FirstFramePipeline, judge: Judge) -> None:
    """The folder that `training.dpo` takes: pictures, captions and simulated ratings."""
    shutil.rmtree(RATED, ignore_errors=True)
    make_folder(RATED)
    scenes = random_scenes(PROMPTS, SEED)
    wanted = [
        request_for(scene, SEED + i * DRAWN + j) for i, scene in enumerate(scenes) for j in range(DRAWN)
    ]
    made = [*zip(wanted, draw(pipeline, wanted), strict=True)]
    made += [(request_for(scene, 0), render(scene, 1)[0]) for scene in scenes]
    entries = []
    for i, (request, picture) in enumerate(made):
        name, caption = f"{i:04d}.png", full_prompt(request, load_catalog())
        Image.fromarray(picture).save(RATED / name)
        seed, model = (request.seed, "tiny") if i < len(wanted) else (None, "")
        entries.append(ClipEntry(video=name, caption=caption, seed=seed, model=model))
        rating = Rating(
            clip=name, sha256=hash_file(RATED / name), prompt=caption, seed=seed, category="",
            rater="simulated", score=score(judge, picture, caption),
        )  # fmt: skip
        append(RATED / RATINGS_FILE, rating)
    write_clips(RATED, entries)  # last: with it the folder is complete


def compare(plain: FirstFramePipeline, aligned: FirstFramePipeline, judge: Judge) -> dict[str, Any]:
    """Win rate of the aligned network over the plain one on held-out prompts and seeds, same noise."""
    scenes = random_scenes(HELD_OUT, HELD_OUT_SEED)
    wanted = [request_for(scene, HELD_OUT_SEED + i) for i, scene in enumerate(scenes)]
    captions = [full_prompt(request, load_catalog()) for request in wanted]
    before, after = (
        [score(judge, p, c) for p, c in zip(draw(pipe, wanted), captions, strict=True)]
        for pipe in (plain, aligned)
    )
    wins = win_rate([b - a for a, b in zip(before, after, strict=True)])
    return {
        "judge": "simulated (CLIP cosine)",
        "count": HELD_OUT,
        "win_rate": dataclasses.asdict(wins),
        "score_before": round(float(np.mean(before)), 3),
        "score_after": round(float(np.mean(after)), 3),
        "accepted": bool(wins.low > 0.5),
    }


def load_aligned(folder: Path) -> FirstFramePipeline:
    """The family's pipeline around the network in `folder`."""
    pipeline = FirstFramePipeline.from_catalog("tiny")
    unet = load_part(UNet2DConditionModel, Component.at(folder), torch.float32)
    pipeline.pipe.register_modules(unet=unet.eval())
    return pipeline


def main() -> int:
    if (UNET / "training.json").exists():
        print(f"{UNET} is aligned already; `python -m tiny.first_frame` writes the plain one")
        return 0
    judge, plain = load_judge(FAMILY / "clip"), FirstFramePipeline.from_catalog("tiny")
    if not (RATED / "captions.jsonl").exists():
        make_rated(plain, judge)
    lora, full = FOLDER / "lora.safetensors", FOLDER / "unet"
    if not full.exists():
        options = ["--model", "tiny", "--recipe", "tiny_dpo_image", "--clips", str(RATED), "--out", str(lora)]
        if status := dpo.main([*options, "--full", str(full), "--run", str(FOLDER / "run"), "--resume"]):
            return status
    verdict = compare(plain, load_aligned(full), judge)
    write_text(FOLDER / "promotion.json", json.dumps(verdict, indent=2) + "\n")
    print(json.dumps(verdict, indent=2))
    if verdict["accepted"]:
        with whole_folder(UNET) as part:
            shutil.copytree(full, part, dirs_exist_ok=True)
            shutil.rmtree(UNET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
