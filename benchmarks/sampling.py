"""What faster sampling costs: fewer steps, DPM-Solver++, and deep features reused between steps (DeepCache).

    python benchmarks/sampling.py                  64 held-out scenes of the tiny family, ten minutes
    python benchmarks/sampling.py --quick          two scenes: does it still run? records nothing

Every row continues the same true first frames from the same noise with the shipped weights. `PSNR`: frames
1..15 against the rendered truth. `motion`: mean absolute difference between adjacent frames, by the truth's.
`rating`: the simulated rater of `training.judge`, 0..10. `CPU`: processor time of a clip, by the first row's.
DeepCache (arXiv 2312.00858, interval N): all levels but the uppermost are computed every Nth step only; in
between their last output stands in. Prints a table and appends one JSON line to benchmarks/results/.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
from unet_forward import record

from huvidpo.attention import KeysValues
from huvidpo.config import ClipRequest
from huvidpo.evaluation import bootstrap
from huvidpo.pipeline import VideoPipeline
from huvidpo.unet import VideoUNet
from training.judge import Judge, load_judge, score_clip
from training.tiny.calibrate import TYPICAL
from training.tiny.common import FAMILY
from training.tiny.evaluate import motion, psnr, request_for
from training.tiny.world import CATEGORIES, SIZE, STYLES, Scene, caption, random_scene, render

SEED = 920_000  # far from every seed used in training, and from those of the quality figures
BATCH = 4
# (sampler, steps, interval of full steps)
ROWS = [
    ("ddim", 20, 1), ("ddim", 50, 1), ("ddim", 10, 1), ("ddim", 6, 1),
    ("dpm++", 20, 1), ("dpm++", 10, 1), ("dpm++", 6, 1),
    ("ddim", 20, 2), ("ddim", 20, 3), ("dpm++", 10, 2),
]  # fmt: skip


class DeepCache(VideoUNet):
    """A VideoUNet that computes its lower levels at every `interval`th call."""

    interval = 1
    calls = 0
    deep: Tensor

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        text_kv: Sequence[KeysValues] | None = None,
    ) -> Tensor:
        assert text_kv is not None
        batch, _, frames, _, _ = sample.shape
        time = self.embed_time(timestep, batch, sample)
        x = sample.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x, frames)
        text, above = iter(text_kv), self.up_blocks[-1]
        own = sum(len(t.transformer_blocks) for t in above.attentions)
        skips = [x, *self.down_blocks[0](x, time, text, frames)]
        if self.calls % self.interval == 0:
            lower = list(skips)
            for down in self.down_blocks[1:]:
                lower += down(lower[-1], time, text, frames)
            x = self.mid_block(lower[-1], time, text, frames)
            for up in self.up_blocks[:-1]:
                x = up(x, lower, time, text, frames)
            self.deep = x
        self.calls += 1
        uppermost = skips[: len(above.resnets)]
        x = above(self.deep, uppermost, time, iter(text_kv[len(text_kv) - own :]), frames)
        x = self.conv_out(F.silu(self.conv_norm_out(x, frames)), frames)
        return x.unflatten(0, (batch, frames)).transpose(1, 2)


def held_out(count: int) -> list[Scene]:
    """Scenes, categories and styles in turn."""
    rng = np.random.default_rng(SEED)
    return [random_scene(rng, CATEGORIES[i % 8], STYLES[i // 8 % 4]) for i in range(count)]


def set_interval(pipeline: VideoPipeline, interval: int) -> None:
    for unet in pipeline.unets.values():
        unet.__class__ = DeepCache if interval > 1 else VideoUNet
        if interval > 1:
            unet.interval, unet.calls = interval, 0


def measure(
    pipeline: VideoPipeline, scenes: list[Scene], truths: list[np.ndarray], judge: Judge, row: tuple
) -> dict[str, Any]:
    """Figures of one row of ROWS."""
    sampler, steps, interval_ = row
    figures, took = [], 0.0
    for category in tqdm(CATEGORIES, desc=f"{sampler} {steps}, every {interval_}", leave=False):
        mine = [i for i, scene in enumerate(scenes) if scene.category == category]
        for at in range(0, len(mine), BATCH):
            chosen = mine[at : at + BATCH]
            requests = [request(scenes[i], SEED + i, sampler, steps) for i in chosen]
            set_interval(pipeline, interval_)
            started = time.process_time()
            clips = pipeline(requests, [truths[i][0] for i in chosen])
            took += time.process_time() - started
            told = replace(judge, typical_motion=TYPICAL[category] / SIZE)
            for i, clip in zip(chosen, clips, strict=True):
                assert clip is not None
                moved = motion(clip) / motion(truths[i])
                rating = score_clip(clip, caption(scenes[i]), told)
                figures.append((psnr(clip[1:], truths[i][1:]), moved, rating))
    columns = zip(("psnr", "motion", "rating"), np.array(figures).T, strict=True)
    means = {name: vars(bootstrap(values)) for name, values in columns}
    return {"sampler": sampler, "steps": steps, "interval": interval_, "cpu_s": took / len(scenes)} | means


def request(scene: Scene, seed: int, sampler: str, steps: int) -> ClipRequest:
    made = request_for(scene, seed)
    return replace(made, options=made.options.replace(sampler=sampler, steps=steps))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.device = "cpu"
    torch.set_num_threads(args.threads)
    scenes = held_out(2 if args.quick else args.scenes)
    truths = [render(scene) for scene in scenes]
    pipeline, judge = VideoPipeline.from_catalog("tiny", device="cpu"), load_judge(FAMILY / "clip")
    print(f"{'sampler':<10}{'steps':>6}{'full every':>11}{'PSNR':>8}{'motion':>8}{'rating':>8}{'CPU':>8}")
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        rows.append(measure(pipeline, scenes, truths, judge, row))
        r = rows[-1]
        print(
            f"{r['sampler']:<10}{r['steps']:>6}{r['interval']:>11}{r['psnr']['mean']:>8.2f}"
            f"{r['motion']['mean']:>8.2f}{r['rating']['mean']:>8.2f}{r['cpu_s'] / rows[0]['cpu_s']:>7.2f}x",
            flush=True,
        )
    if not args.quick:
        record(args, rows=rows)


if __name__ == "__main__":
    main()
