"""Methods to compare: where the clips of each come from, for the same requests and first frames.

`judging.evaluate` says how a method is written down; `judging.promote` compares two files of weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from huvidpo.catalog import Catalog, Category, Component, Model
from huvidpo.config import ClipRequest, SamplingOptions
from huvidpo.errors import CheckpointError, InvalidRequest
from huvidpo.loading import device_and_dtype, load_part
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline, full_prompt
from huvidpo.unet import VideoUNet
from judging.candidates import BATCH, default_prompts, plan
from preferences.clips import read_clips
from preferences.metrics import EvaluationError
from training.data import read_clip
from training.recipes import ClipRecipe

# Seeds of the first held-out clip, far from those of training and of candidates, and from each other: what
# the gate chose by must not be what the table is made of.
GATE_SEED = 910_000
TABLE_SEED = 930_000
SOURCES = ("catalog", "weights", "first", "animatediff", "clips")

Captioned = tuple[np.ndarray, str]  # uint8 [F, H, W, 3] and the full caption


@dataclass(frozen=True)
class Method:
    """Where a row's clips come from."""

    name: str
    kind: str  # of SOURCES
    source: str = ""


def parse_method(text: str) -> Method:
    """NAME=SOURCE as `judging.evaluate`'s docstring has it. Raises InvalidRequest."""
    name, _, rest = text.partition("=")
    kind, _, source = rest.partition(":")
    pairs_of_folders = kind == "animatediff" and source.count(",") != 1
    if not name.strip() or kind not in SOURCES or bool(source) != (kind != "catalog") or pairs_of_folders:
        want = "NAME=catalog, NAME=weights:DIR, NAME=first:DIR, NAME=clips:DIR or NAME=animatediff:SD,ADAPTER"
        raise InvalidRequest(f"method: got {text!r}, expected {want}", "method")
    return Method(name.strip(), kind, source)


def held_out_requests(
    model: Model,
    category: Category,
    styles: Sequence[str],
    count: int,
    prompts: Sequence[str] = (),
    seed: int = GATE_SEED,
    seen: Sequence[str] = (),
) -> list[ClipRequest]:
    """`count` requests with seeds from `seed` on; styles change with the prompts.

    Prompts are the default ones of candidates, drawn with `seed` and without those in `seen`, unless given.
    Raises InvalidRequest when none is left.
    """
    known = set(seen)
    drawn = prompts or default_prompts(model, category, count + len(known), seed)
    fresh = [prompt for prompt in drawn if prompt not in known][:count]
    if not fresh:
        raise InvalidRequest("prompts: all of them were seen in training, name others", "prompts")
    return [
        ClipRequest(p.prompt, category.name, p.seed, style=p.style, options=model.defaults)
        for p in plan(fresh, styles, count, 1, seed)
    ]


def draw_first_frames(
    model: Model, requests: Sequence[ClipRequest], pictures: Sequence[np.ndarray] = ()
) -> list[np.ndarray]:
    """The image each request starts from, uint8 [H, W, 3]: `pictures` in turn, or drawn from the prompts."""
    if pictures:
        return [pictures[i % len(pictures)] for i in range(len(requests))]
    pipeline = FirstFramePipeline.from_catalog(model.name)
    images: list[Any] = []
    for start in tqdm(range(0, len(requests), BATCH), desc="first frames", unit="batch"):
        images += pipeline(requests[start : start + BATCH])
    return images


def render(
    pipeline: VideoPipeline, requests: Sequence[ClipRequest], first_frames: Sequence[np.ndarray]
) -> Iterator[np.ndarray]:
    """One clip, uint8 [F, H, W, 3], per request of one category. Raises as the pipeline does."""
    for start in range(0, len(requests), BATCH):
        part = slice(start, start + BATCH)
        clips: Any = pipeline(requests[part], first_frames[part])  # None only for cancelled requests
        yield from clips


def load_pipeline(method: Method, model: Model, categories: Sequence[Category]) -> VideoPipeline:
    """The video pipeline of a method of kind catalog, weights or first. Raises CheckpointError."""
    files = {}
    if method.kind != "catalog":
        files = {category.name: Path(method.source) / category.weights for category in categories}
    if missing := [str(file) for file in files.values() if not file.exists()]:
        raise CheckpointError(f"method {method.name!r}: there is no {', no '.join(missing)}")
    names = [category.name for category in categories]
    pipeline = VideoPipeline.from_catalog(model.name, categories=names, weights=files)
    if method.kind == "first":
        pipeline.unets = {name: attend_to_first(unet) for name, unet in pipeline.unets.items()}
    return pipeline


def attend_to_first(unet: VideoUNet) -> VideoUNet:
    """`unet` with attention to the first frame alone, as LAMP's code has it; shares the weights' storage."""
    with torch.device("meta"):
        other = VideoUNet.from_config(unet.config, attention_mode="first")
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.eval()


def animate(source: str) -> Callable[[ClipRequest, str], np.ndarray]:
    """AnimateDiff from "SD,ADAPTER", two folders of diffusers: (request, caption) -> uint8 [F, H, W, 3].

    It draws its own first frame. Raises CheckpointError when a folder cannot be loaded.
    """
    # slow to import, rarely wanted
    from diffusers import AnimateDiffPipeline, AutoencoderKL, MotionAdapter, UNet2DConditionModel
    from transformers import CLIPTextModel

    base, adapter = source.split(",")
    device, dtype = device_and_dtype(None, None)
    try:
        pipe = AnimateDiffPipeline.from_pretrained(
            base,
            motion_adapter=load_part(MotionAdapter, Component.at(adapter), dtype),
            unet=load_part(UNet2DConditionModel, Component.at(base, "unet"), dtype),
            vae=load_part(AutoencoderKL, Component.at(base, "vae"), dtype),
            text_encoder=load_part(CLIPTextModel, Component.at(base, "text_encoder"), dtype),
            local_files_only=True,
        ).to(device)
    except (CheckpointError, OSError, ValueError) as error:
        raise CheckpointError(f"AnimateDiff cannot be loaded from {base} and {adapter}: {error}") from error
    pipe.set_progress_bar_config(disable=True)

    def make(request: ClipRequest, caption: str) -> np.ndarray:
        o = request.options
        frames = pipe(
            caption,
            negative_prompt=request.negative_prompt,
            num_frames=o.frames,
            height=o.height,
            width=o.width,
            num_inference_steps=o.steps,
            guidance_scale=o.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
        ).frames[0]
        return (frames * 255).round().clip(0, 255).astype(np.uint8)

    return make


def read_method(folder: Path, options: SamplingOptions, category: str) -> Iterator[Captioned]:
    """The clips of `category` in a folder, cut to the model's size, length and rate; their captions.

    Raises ClipFolderError and ClipsError for what cannot be read, EvaluationError when there is none.
    """
    recipe = ClipRecipe(
        frames=options.frames, height=options.height, width=options.width, fps=float(options.fps)
    )
    entries = [entry for entry in read_clips(folder) if entry.category == category]
    if not entries:
        raise EvaluationError(f"{folder}: its captions.jsonl names no clip of category {category!r}")
    for entry in entries:
        yield read_clip(folder / entry.video, recipe), entry.caption


@dataclass(frozen=True)
class Setting:
    """What all methods share: requests and first frames by category."""

    catalog: Catalog
    model: Model
    requests: dict[str, list[ClipRequest]]
    first_frames: dict[str, list[np.ndarray]]  # empty when no method needs them

    def clips(self, method: Method) -> Iterator[tuple[str, Captioned]]:
        """(category, clip and caption), one category after the other."""
        categories = [self.catalog.category(name) for name in self.requests]
        pipeline = make = None
        if method.kind == "animatediff":
            make = animate(method.source)
        elif method.kind != "clips":
            pipeline = load_pipeline(method, self.model, categories)
        for name, requests in self.requests.items():
            captions = [full_prompt(request, self.catalog) for request in requests]
            found: Any
            if pipeline:
                found = zip(render(pipeline, requests, self.first_frames[name]), captions, strict=True)
            elif make:
                found = ((make(r, caption), caption) for r, caption in zip(requests, captions, strict=True))
            else:
                found = read_method(Path(method.source), self.model.defaults, name)
            yield from ((name, clip) for clip in found)
