"""Is motion read from the picture, or replayed? Clips that continue first frames seen anyhow.

    python -m tiny.judge.views                     # 32 scenes in each view; models/tiny/judge/views.json

By view of held-out scenes (`tiny.views.VIEWS`): gain in PSNR over a frozen first frame, PSNR in all and where
the truth moves, and motion by the truth's. Beside it, so that the measure can fail, a stencil: the changes of
the scene as it is, pasted on the first frame as it is seen. Then how much of the motion of the first frames
the frames from 24 on keep, and pictures in which nothing moves: PSNR of frame 8 to the picture, beside what
the VAE gives back of it. And what nobody can read: clips that start later in a picture from which the world
goes on in two ways.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from huvidpo.catalog import Component
from huvidpo.files import write_text
from huvidpo.latents import from_latents, to_latents
from huvidpo.loading import load_part
from huvidpo.pipeline import VideoPipeline
from preferences.metrics import frame_difference, psnr
from tiny import dataset, views, world
from tiny.common import FAMILY
from tiny.evaluate import SEED, batches, request_for
from tiny.judge.fidelity import fidelity
from tiny.judge.score import FOLDER
from tiny.judge.tricks import TRICKS, fake
from tiny.second import world as second
from training.lineage import commit

LATE = 24  # frames from which on a clip is late
STILLS_SEED = 33
SHOWN = ("gain", "psnr", "psnr_moving", "motion")

Clips = Sequence[np.ndarray]


def made(pipeline: VideoPipeline, scenes: Sequence[world.Scene], first: Clips, frames: int) -> Clips:
    """Clips that go on from `first`, batched by category."""
    clips: dict[int, np.ndarray] = {}
    for category in world.CATEGORIES:
        for part in batches([i for i, scene in enumerate(scenes) if scene.category == category]):
            requests = [request_for(scenes[i], SEED + i) for i in part]
            requests = [replace(r, options=r.options.replace(frames=frames)) for r in requests]
            found: Any = pipeline(requests, [first[i] for i in part])
            clips |= dict(zip(part, found, strict=True))
    return [clips[i] for i in range(len(scenes))]


def measures(clip: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    frozen = truth[:1].repeat(len(truth) - 1, 0)
    return fidelity(clip, truth) | {"gain": psnr(clip[1:], truth[1:]) - psnr(frozen, truth[1:])}


def means(clips: Clips, truths: Clips) -> dict[str, float]:
    rows = [measures(clip, truth) for clip, truth in zip(clips, truths, strict=True)]
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in SHOWN}


def gains(clips: Clips, truths: Clips, scenes: Sequence[world.Scene]) -> dict[str, float]:
    """Mean gain by category."""
    found: dict[str, float] = {}
    for category in dict.fromkeys(scene.category for scene in scenes):
        part = [i for i, scene in enumerate(scenes) if scene.category == category]
        found[category] = means([clips[i] for i in part], [truths[i] for i in part])["gain"]
    return found


def stencil(truth: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """The changes of `plain` since its first frame, on the first frame of `truth`."""
    return fake(TRICKS["another's motion"], truth, plain, 100, 0)


def by_view(pipeline: VideoPipeline, scenes: Sequence[world.Scene]) -> dict[str, Any]:
    plain = views.held_out(scenes, "as it is")
    found: dict[str, Any] = {}
    for name in tqdm(views.VIEWS, "views"):
        truths = list(views.held_out(scenes, name))
        clips = made(pipeline, scenes, [truth[0] for truth in truths], world.FRAMES)
        found[name] = means(clips, truths) | {"gain_by_category": gains(clips, truths, scenes)}
        if name != "as it is":
            found[name]["share_of_gain"] = round(found[name]["gain"] / found["as it is"]["gain"], 3)
            stencils = [stencil(truth, clip) for truth, clip in zip(truths, plain, strict=True)]
            found[name]["gain_of_a_stencil"] = means(stencils, truths)["gain"]
        print(name, found[name], flush=True)
    return found


def undecided(scenes: Sequence[world.Scene]) -> dict[str, Any]:
    """Later first frames that other moments show too, so that the world may go on in two ways: what the mean
    of the ways gains, which is the surest guess, and what one gains that is not the truth.
    """
    rows = []
    for scene in scenes:
        clip = world.render(scene, views.SHORT)
        starts = range(views.SHORT - world.FRAMES + 1)
        others = [t for t in starts if t != views.LATER and np.array_equal(clip[t], clip[views.LATER])]
        if others:
            truth, *ways = (clip[t:][: world.FRAMES] for t in (views.LATER, *others))
            mean = np.mean([truth, *ways], axis=0).round().astype(np.uint8)
            rows.append((scene.category, measures(mean, truth)["gain"], measures(ways[0], truth)["gain"]))
    if not rows:
        return {"categories": []}
    return {
        "categories": sorted({name for name, _, _ in rows}),
        "gain_of_the_mean": round(float(np.mean([mean for _, mean, _ in rows])), 3),
        "gain_of_another": round(float(np.mean([other for _, _, other in rows])), 3),
    }


def late(pipeline: VideoPipeline, scenes: Sequence[world.Scene]) -> dict[str, float]:
    """Motion of the frames from LATE on by that of the first 16, ours and the truth's."""
    truths = [world.render(scene, views.LONG) for scene in scenes]
    ours = made(pipeline, scenes, [truth[0] for truth in truths], views.LONG)

    def kept(clips: Clips) -> float:
        early, after = (
            np.mean([frame_difference(c[part]) for c in clips])
            for part in (slice(0, world.FRAMES), slice(LATE, None))
        )
        return round(float(after / early), 3)

    return {"ours": kept(ours), "truth": kept(truths)}


@torch.no_grad()
def still(pipeline: VideoPipeline, scenes: Sequence[world.Scene]) -> dict[str, float]:
    """Pictures in which nothing moves, whatever the prompt says."""
    chosen = [
        replace(s, category=second.STILL, camera=second.STILL)
        for s in second.random_scenes(len(scenes), STILLS_SEED)
    ]
    pictures = [second.render(scene, 1, world.SIZE)[0] for scene in chosen]
    clips = made(pipeline, scenes, pictures, world.FRAMES)
    vae = load_part(AutoencoderKL, Component.at(FAMILY / "first_frame", "vae"), torch.float32).eval()
    decoded = from_latents(vae, to_latents(vae, np.stack(pictures)))
    near = [psnr(clip[8], picture) for clip, picture in zip(clips, pictures, strict=True)]
    return {
        "psnr_of_frame_8": round(float(np.mean(near)), 3),
        "share_above_20_db": round(float(np.mean(np.array(near) >= 20)), 3),
        "psnr_vae": round(float(np.mean([psnr(a, b) for a, b in zip(decoded, pictures, strict=True)])), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--out", type=Path, default=FOLDER / "views.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scenes = dataset.scenes("held_out", args.scenes)
    pipeline = VideoPipeline.from_catalog("tiny", categories=list(world.CATEGORIES), backend="auto")
    found = {
        "command": f"python -m tiny.judge.views --scenes {args.scenes}",
        "commit": commit(),
        "views": by_view(pipeline, scenes),
        "undecided": undecided(scenes),
        "late_motion": late(pipeline, scenes),
        "still": still(pipeline, scenes),
    }
    print(found["late_motion"], found["still"])
    write_text(args.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
