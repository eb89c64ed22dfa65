"""What can be asked for: sampling options and requests, frozen and validated. Imports no model code."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from huvidpo.errors import InvalidRequest

SAMPLERS = ("ddim", "dpm++")
CORRECTIONS = ("lamp", "none")
ATTENTION_MODES = ("first_prev", "first")  # which frames self-attention sees, see attention.py
BACKENDS = ("auto", "torch", "onnxruntime", "openvino", "tensorrt")  # see engines/select.py
MAX_SEED = 2**32 - 1  # torch's CPU generator (mt19937) reads 32 bits of a seed
MAX_PROMPT_CHARS = 2000  # a guard before the tokenizer; the real limit is the text encoder's context

# name -> (lowest, highest); integers unless a bound is a float
_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 1000),
    "guidance": (0.0, 100.0),
    "frames": (2, 256),
    "height": (8, 4096),
    "width": (8, 4096),
    "fps": (1, 120),
    "noise_mix": (0.0, 1.0),
    "first_frame_steps": (1, 1000),
    "first_frame_guidance": (0.0, 100.0),
}
_CHOICES = {"sampler": SAMPLERS, "corrections": CORRECTIONS}


@dataclass(frozen=True)
class SamplingOptions:
    """How a clip is sampled. The defaults are the paper's for SD 1.4; a model of the catalog carries its own.

    Raises InvalidRequest, naming the field, its value and what is allowed.
    """

    steps: int = 50  # denoising steps of the video, 1..1000 (LAMP: 50 DDIM steps)
    guidance: float = 12.5  # classifier-free guidance of the video, 0..100; <= 1 runs without it (LAMP: 12.5)
    frames: int = 16  # frames of the clip, the given first one included, 2..256
    height: int = 320  # pixels, a multiple of 8, 8..4096
    width: int = 512  # pixels, a multiple of 8, 8..4096
    fps: int = 8  # frames per second written into the file, 1..120
    sampler: str = "ddim"  # "ddim", or "dpm++" (DPM-Solver++ 2M, arXiv 2211.01095) for fewer steps
    corrections: str = "lamp"  # "lamp": AdaIN and colour matching towards frame 0, as LAMP samples; or "none"
    noise_mix: float = 0.2  # share of frame 0's noise in every other frame's, 0..1 (LAMP: 0.2)
    first_frame_steps: int = 50  # denoising steps of the first frame, 1..1000
    first_frame_guidance: float = 5.0  # guidance of the first frame, 0..100 (SDXL: 5)
    first_frame_size: tuple[int, int] = (832, 1216)  # (height, width) in pixels; one of SDXL's training sizes

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _check_number(name, getattr(self, name), low, high)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InvalidRequest(
                    f"{name}: got {getattr(self, name)!r}, allowed: {', '.join(allowed)}", name
                )
        size = self.first_frame_size
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise InvalidRequest(
                f"first_frame_size: got {size!r}, expected (height, width)", "first_frame_size"
            )
        object.__setattr__(self, "first_frame_size", tuple(size))
        for side in size:
            _check_number("first_frame_size", side, *_RANGES["height"])
        for name, sides in {
            "height": (self.height,),
            "width": (self.width,),
            "first_frame_size": size,
        }.items():
            if any(side % 8 for side in sides):
                raise InvalidRequest(f"{name}: got {getattr(self, name)!r}, expected multiples of 8", name)

    def replace(self, **changes: Any) -> "SamplingOptions":
        """These options with `changes`, of which None means "as it is". Raises InvalidRequest."""
        known = [known_field.name for known_field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise InvalidRequest(f"{name}: no such option, known: {', '.join(known)}", name)
        return dataclasses.replace(
            self, **{name: value for name, value in changes.items() if value is not None}
        )


@dataclass(frozen=True)
class ClipRequest:
    """One clip to make. `category` and `style` are names of the catalog, checked by the pipelines.

    Raises InvalidRequest for an empty or over-long prompt and a seed outside 0..2**32-1.
    """

    prompt: str
    category: str
    seed: int
    style: str = "realistic"
    negative_prompt: str | None = None  # None: the style's own
    options: SamplingOptions = field(default_factory=SamplingOptions)

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        if not self.prompt.strip():
            raise InvalidRequest("prompt: it is empty, describe the clip in a few words", "prompt")
        if self.negative_prompt is not None:
            _check_text("negative_prompt", self.negative_prompt)
        _check_number("seed", self.seed, 0, MAX_SEED)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    whole = isinstance(low, int)
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right_type or not math.isfinite(value) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise InvalidRequest(f"{name}: got {value!r}, expected {kind} from {low} to {high}", name)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise InvalidRequest(f"{name}: got {type(text).__name__}, expected text", name)
    if len(text) > MAX_PROMPT_CHARS:
        raise InvalidRequest(f"{name}: {len(text)} characters, at most {MAX_PROMPT_CHARS} are allowed", name)
