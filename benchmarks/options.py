"""What faster sampling costs: fewer steps, DPM-Solver++, deep features reused (DeepCache), int8 and fp8.

    pip install nvidia-modelopt omegaconf pulp     # for int8 and fp8 only, which are skipped without it
    python -m benchmarks.options                   # 16 held-out scenes of the tiny family; ten minutes
    python -m benchmarks.options --quick           # one scene, two steps: does it still run? records nothing

Every row continues the same true first frames from the same noise with the shipped weights. `PSNR`: frames
1..15 against the rendered truth. `change`: mean absolute difference between adjacent frames, by the truth's.
`rating`: the simulated rater of `judging.judge`, 0..10; below them the 95 % bootstrap interval of each
clip's difference from the first row. `CPU`: processor time of a clip, by the first row's.

DeepCache (arXiv 2312.00858, every N): all levels but the uppermost are computed every Nth step only; in
between their last output stands in. int8 and fp8 (E4M3): weights and inputs of every convolution and linear
layer of the video UNet rounded by nvidia-modelopt as its engines would have them, calibrated on 2 scenes of
the category; simulated in float32, so they have no time. Prints a table and appends one JSON line to
benchmarks/results/.
"""

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks import common
from benchmarks.common import record
from huvidpo.attention import KeysValues
from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.config import ClipRequest
from huvidpo.pipeline import VideoPipeline
from huvidpo.unet import VideoUNet
from judging.judge import Judge, load_judge, score_clip
from preferences.metrics import bootstrap, frame_difference, psnr
from tiny.calibrate import TYPICAL
from tiny.common import FAMILY
from tiny.evaluate import request_for
from tiny.world import CATEGORIES, SIZE, Scene, caption, random_scenes, render

SEED = 920_000  # far from every seed used in training, and from those of the quality metrics
BATCH = 4
CALIBRATION_SEED = 930_000


@dataclass(frozen=True)
class Option:
    sampler: str = "ddim"
    steps: int = 20
    every: int = 1  # full steps: DeepCache's interval
    rounding: str = ""  # int8 or fp8


OPTIONS = [
    Option(),
    *(Option("ddim", steps) for steps in (10, 6)),
    *(Option("dpm++", steps) for steps in (10, 6)),
    *(Option(every=every) for every in (2, 3)),
    Option(rounding="int8"),
    Option(rounding="fp8"),
]


QUICK = [Option(steps=2), Option("dpm++", 2), Option(steps=2, every=2)]


class DeepCache(VideoUNet):
    """A VideoUNet that computes its lower levels at every `every`th call."""

    every = 1
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
        if self.calls % self.every == 0:
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


def prepared(pipeline: VideoPipeline, option: Option) -> dict[str, VideoUNet]:
    """The UNets of all categories, as `option` has them."""
    if option.rounding:
        return {name: rounded(pipeline, name, option.rounding) for name in CATEGORIES}
    if option.every == 1:
        return dict(pipeline.unets)
    cached = {name: copy.copy(unet) for name, unet in pipeline.unets.items()}
    for unet in cached.values():
        unet.__class__ = DeepCache
        unet.every = option.every
    return cached


def rounded(pipeline: VideoPipeline, category: str, rounding: str) -> VideoUNet:
    """The UNet of a category with weights and activations rounded. ImportError without nvidia-modelopt."""
    import modelopt.torch.quantization as mtq

    config = {"int8": mtq.INT8_DEFAULT_CFG, "fp8": mtq.FP8_DEFAULT_CFG}[rounding]
    chosen = [scene for scene in random_scenes(16, CALIBRATION_SEED) if scene.category == category]

    def calibrate(unet: VideoUNet) -> None:
        with_unet = swapped(pipeline, {category: unet})
        requests = [request(scene, CALIBRATION_SEED + i, Option()) for i, scene in enumerate(chosen)]
        with_unet(requests, [render(scene, 1)[0] for scene in chosen])

    return mtq.quantize(copy.deepcopy(pipeline.unets[category]), config, calibrate)


def swapped(pipeline: VideoPipeline, unets: dict[str, VideoUNet]) -> VideoPipeline:
    other = copy.copy(pipeline)
    other.unets = unets
    return other


def measure(
    pipeline: VideoPipeline, scenes: list[Scene], truths: list[np.ndarray], judge: Judge, option: Option
) -> tuple[np.ndarray, float]:
    """PSNR, ratio of frame differences and rating of every scene, [scenes, 3]; CPU seconds of a clip."""
    unets = prepared(pipeline, option)
    metrics, took = np.zeros((len(scenes), 3)), 0.0
    for category in tqdm(CATEGORIES, desc=str(option), leave=False):
        mine = [i for i, scene in enumerate(scenes) if scene.category == category]
        for at in range(0, len(mine), BATCH):
            chosen = mine[at : at + BATCH]
            requests = [request(scenes[i], SEED + i, option) for i in chosen]
            if option.every > 1:
                unets[category].calls = 0
            started = time.process_time()
            clips = swapped(pipeline, unets)(requests, [truths[i][0] for i in chosen])
            took += time.process_time() - started
            told = replace(judge, typical_motion=TYPICAL[category] / SIZE)
            for i, clip in zip(chosen, clips, strict=True):
                assert clip is not None
                moved = frame_difference(clip) / frame_difference(truths[i])
                rating = score_clip(clip, caption(scenes[i]), told)
                metrics[i] = psnr(clip[1:], truths[i][1:]), moved, rating
    return metrics, took / len(scenes)


def summary(metrics: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """Means, and how each clip differs from its like of the first row."""
    names = ("psnr", "frame_difference", "rating")
    means = {name: float(column.mean()) for name, column in zip(names, metrics.T, strict=True)}
    differences = zip(names, (metrics - first).T, strict=True)
    return means | {f"{name}_difference": asdict(bootstrap(column)) for name, column in differences}


def request(scene: Scene, seed: int, option: Option) -> ClipRequest:
    made = request_for(scene, seed)
    return replace(made, options=made.options.replace(sampler=option.sampler, steps=option.steps))


def show(row: dict[str, Any], first: dict[str, Any]) -> None:
    name = " ".join(str(row[key]) for key in ("sampler", "steps"))
    name += f", every {row['every']}" if row["every"] > 1 else ""
    name += f", {row['rounding']}" if row["rounding"] else ""
    took = "-" if row["rounding"] else f"{row['cpu_s'] / first['cpu_s']:.2f}x"
    print(f"{name:<20}{row['psnr']:>14.2f}{row['frame_difference']:>14.2f}{row['rating']:>14.2f}{took:>8}")
    intervals = [row[f"{metric}_difference"] for metric in ("psnr", "frame_difference", "rating")]
    texts = [f"{interval['low']:+.2f} {interval['high']:+.2f}" for interval in intervals]
    print(" " * 20 + "".join(f"{text:>14}" for text in texts), flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("one scene, two steps")
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    scenes = random_scenes(1 if args.quick else args.scenes, SEED)
    truths = [render(scene) for scene in scenes]
    pipeline, judge = VideoPipeline.from_catalog(DEFAULT_MODEL, device="cpu"), load_judge(FAMILY / "clip")
    print(f"{'':<20}{'PSNR':>14}{'change':>14}{'rating':>14}{'CPU':>8}")
    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for option in QUICK if args.quick else OPTIONS:
        try:
            metrics, took = measure(pipeline, scenes, truths, judge, option)
        except ImportError as error:
            print(f"{option.rounding} skipped: {error}")
            continue
        first = metrics if first is None else first
        rows.append({**asdict(option), "cpu_s": took, **summary(metrics, first)})
        show(rows[-1], rows[0])
    if not args.quick:
        record(args, rows=rows)


if __name__ == "__main__":
    main()
