"""The simulated rater: a stated rule that scores a clip 0..10 from its pixels and a CLIP. Nobody rated it.

    score = 10 * alignment^4 * consistency^4 * detail * motion * coherence * smoothness

Each factor is 0..1 and compares the later frames with frame 0, which all methods share: a clip that keeps
its first frame's promise, moves as its category does, and changes by motion and not by flicker. A frozen clip
scores 0. Formulas and the shares of cases the rule gets right: docs/metrics.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessorPil, CLIPModel

from huvidpo.catalog import Component, Model
from huvidpo.config import SamplingOptions
from huvidpo.errors import CheckpointError
from huvidpo.loading import load_part, load_tokenizer, readable
from preferences.metrics import Flow, check_clip, detail, flow, smoothness
from training.data import ClipsError, read_captions, read_clip
from training.recipes import ClipRecipe

DEFAULT_MOTION = 0.4 / 64  # of the width, per frame: the mean of the tiny world's eight categories
MOTION_SHARE = 0.75  # of the typical motion: from here on a clip moves enough
EXPLAINED = 0.5  # share of the change that is motion, as the tiny world's true clips have it
SMOOTHNESS = 0.2  # of true clips; one whose frames are shuffled has .05
SHARPENING = 4  # power of the CLIP factors: cosines fill only the top of their range


@dataclass(frozen=True)
class Judge:
    """A CLIP, and how much clips of the judged category move."""

    model: Any
    tokenizer: Any
    processor: Any
    typical_motion: float = DEFAULT_MOTION
    """Mean optical flow per frame, as a share of the width."""

    @property
    def seen_only(self) -> str:
        """All that its CLIP was trained on, where its config.json says so; "" for one that saw the world."""
        return getattr(self.model.config, "seen_only", "")


def warn_of_foreign(judge: Judge, clips: str) -> None:
    """Say so where a CLIP that saw only one kind of pictures judges other ones."""
    if judge.seen_only:
        print(
            f"note: the CLIP that judges has seen only {judge.seen_only}; of {clips} its figures mean "
            "little: name another with --clip",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class Verdict:
    """The factors of a score, each 0..1."""

    alignment: float
    """How well later frames still show the caption, relative to frame 0."""
    consistency: float
    """How alike CLIP finds later frames to frame 0 and to the frame before."""
    detail: float
    """How near the detail of later frames is to frame 0's: less is blur, more is noise."""
    motion: float
    """Motion by what is typical; 0 for a frozen clip."""
    coherence: float
    """How much of the change is motion; flicker is not."""
    smoothness: float
    """Whether the motion goes on from frame to frame; shuffled frames do not."""

    @property
    def score(self) -> float:
        """0..10."""
        quality = (self.alignment * self.consistency) ** SHARPENING * self.detail
        return 10 * quality * self.motion * self.coherence * self.smoothness


def load_judge(clip: Path, typical_motion: float = DEFAULT_MOTION, device: str | None = None) -> Judge:
    """The judge with the CLIP in folder `clip`: any checkpoint of transformers' CLIPModel.

    Raises CheckpointError when it is not there, or not whole.
    """
    if not (clip / "config.json").is_file():
        raise CheckpointError(f"there is no CLIP in {clip}: name the folder of one")
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    source = Component.at(clip)
    model = load_part(CLIPModel, source, torch.float32).eval().to(target)
    with readable("CLIPImageProcessor", source):
        processor = CLIPImageProcessorPil.from_pretrained(clip)
    return Judge(model, load_tokenizer(source, model), processor, typical_motion)


def clip_folder(model: Model, given: Path | None) -> Path:
    """`given`, or the folder `clip` beside the model's first-frame pipeline, where the tiny family has it."""
    return given or Path(model.first_frame.location).parent / "clip"


def measure_motion(folder: Path, options: SamplingOptions) -> float:
    """`Judge.typical_motion` of the captioned videos in `folder`, at the size and rate of `options`.

    Raises ClipsError for a latent store or a folder that cannot be read.
    """
    if (folder / "latents.npy").exists():
        raise ClipsError(f"{folder} is a latent store; motion is measured on videos")
    shape = {name: getattr(options, name) for name in ("frames", "height", "width", "fps")}
    recipe = ClipRecipe(**shape)
    motions = [flow(read_clip(path, recipe)).motion for path, _ in read_captions(folder)]
    return float(np.mean(motions)) / options.width


@torch.no_grad()
def embed_frames(judge: Judge, frames: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] -> CLIP's unit vectors [F, D]."""
    pixels = judge.processor(images=list(frames), return_tensors="pt").pixel_values.to(judge.model.device)
    features = judge.model.get_image_features(pixels).pooler_output
    return F.normalize(features.float(), dim=-1).cpu().numpy()


@torch.no_grad()
def embed_caption(judge: Judge, caption: str) -> np.ndarray:
    """CLIP's unit vector [D] of a caption; what is beyond its context is cut off."""
    tokens = judge.tokenizer(caption, truncation=True, return_tensors="pt").to(judge.model.device)
    features = judge.model.get_text_features(**tokens).pooler_output
    return F.normalize(features.float(), dim=-1)[0].cpu().numpy()


def score_clip(frames: np.ndarray, caption: str, judge: Judge, moved: Flow | None = None) -> float:
    """The simulated rating, 0..10, of uint8 [F, H, W, 3] for the full caption (style applied).

    `moved`: its optical flow, where that is known already. Raises EvaluationError for another shape or type.
    """
    return judge_clip(frames, caption, judge, moved).score


def judge_clip(frames: np.ndarray, caption: str, judge: Judge, moved: Flow | None = None) -> Verdict:
    """The factors of `score_clip`."""
    check_clip(frames)
    images, text = embed_frames(judge, frames), embed_caption(judge, caption)
    moved = moved or flow(frames)
    enough = MOTION_SHARE * judge.typical_motion * frames.shape[2]
    return Verdict(
        alignment=alignment(images, text),
        consistency=consistency(images),
        detail=kept_detail(detail(frames)),
        motion=min(1.0, moved.motion / enough),
        coherence=min(1.0, moved.explained / EXPLAINED),
        smoothness=min(1.0, smoothness(frames) / SMOOTHNESS),
    )


def alignment(images: np.ndarray, text: np.ndarray) -> float:
    """Mean over later frames of cos(frame, caption) / cos(frame 0, caption), each within 0..1.

    `images` [F, D] and `text` [D] are unit vectors.
    """
    cosines = images @ text
    return float((cosines[1:] / max(cosines[0], 0.01)).clip(0, 1).mean())


def consistency(images: np.ndarray) -> float:
    """Mean over later frames of the mean cosine with frame 0 and with the frame before, within 0..1."""
    first, before = images[1:] @ images[0], (images[1:] * images[:-1]).sum(1)
    return float(((first + before) / 2).clip(0, 1).mean())


def kept_detail(details: np.ndarray) -> float:
    """Mean over later frames of min(r, 1/r), r = detail / frame 0's detail; `details` [F]."""
    ratios = (details[1:] + 1e-6) / (details[0] + 1e-6)
    return float(np.minimum(ratios, 1 / ratios).mean())
