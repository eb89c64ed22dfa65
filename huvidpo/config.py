"""What can be asked for: sampling options and requests, frozen and validated. Imports no model code."""

import dataclasses
from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Interval, MaxLen, MultipleOf
from pydantic import Field
from pydantic.dataclasses import dataclass

from huvidpo.checks import STRICT, NotBlank, Number, Text, raises
from huvidpo.errors import InvalidRequest

ATTENTION_MODES = ("first_prev", "first")  # which frames self-attention sees, see attention.py
PRECISIONS = ("float32", "float16", "bfloat16")  # torch's names
BACKENDS = ("auto", "torch", "onnxruntime", "openvino", "tensorrt")  # see engines/select.py
MAX_SEED = 2**32 - 1  # torch's CPU generator (mt19937) reads 32 bits of a seed
MAX_PROMPT_CHARS = 2000  # a guard before the tokenizer; the real limit is the text encoder's context

STEPS = Interval(ge=1, le=1000)
GUIDANCE = Interval(ge=0, le=100)
FRAMES = Interval(ge=2, le=256)
FPS = Interval(ge=1, le=120)
STRENGTH = Interval(ge=0, le=1.5)
Side = Annotated[int, Interval(ge=8, le=4096), MultipleOf(8)]  # pixels


@raises(InvalidRequest)
@dataclass(frozen=True, config=STRICT)
class SamplingOptions:
    """How a clip is sampled. The defaults are the paper's for SD 1.4; a model of the catalog carries its own.

    Raises InvalidRequest, naming the field, its value and what is allowed.
    """

    steps: Annotated[int, STEPS] = 50  # denoising steps of the video, 1..1000 (LAMP: 50 DDIM steps)
    guidance: Annotated[Number, GUIDANCE] = 12.5  # classifier-free, of the video; <= 1 runs without it (LAMP)
    frames: Annotated[int, FRAMES] = 16  # frames of the clip, the given first one included, 2..256
    height: Side = 320
    width: Side = 512
    fps: Annotated[int, FPS] = 8  # frames per second written into the file, 1..120
    sampler: Literal["ddim", "dpm++"] = "ddim"  # DPM-Solver++ 2M, arXiv 2211.01095, for fewer steps
    # "lamp": AdaIN and colours towards frame 0, as LAMP samples; "detail": see `schedule.keep_detail`
    corrections: Literal["lamp", "detail", "none"] = "lamp"
    noise_mix: Annotated[Number, Interval(ge=0, le=1)] = 0.2  # share of frame 0's noise in every other
    first_frame_steps: Annotated[int, STEPS] = 50  # denoising steps of the first frame, 1..1000
    first_frame_guidance: Annotated[Number, GUIDANCE] = 5.0  # guidance of the first frame, 0..100 (SDXL: 5)
    first_frame_size: Annotated[tuple[Side, Side], Field(strict=False)] = (832, 1216)  # (height, width)

    def replace(self, **changes: Any) -> "SamplingOptions":
        """These options with `changes`, of which None means "as it is". Raises InvalidRequest."""
        known = [known_field.name for known_field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise InvalidRequest(f"{name}: no such option, known: {', '.join(known)}", name)
        return dataclasses.replace(
            self, **{name: value for name, value in changes.items() if value is not None}
        )


@raises(InvalidRequest)
@dataclass(frozen=True, config=STRICT)
class ClipRequest:
    """One clip to make. `category` and `style` are names of the catalog, checked by the pipelines.

    Raises InvalidRequest for an empty or over-long prompt, a seed outside 0..2**32-1 and a
    preference_strength outside 0..1.5.
    """

    prompt: Annotated[NotBlank, MaxLen(MAX_PROMPT_CHARS)]
    category: str
    seed: Annotated[int, Interval(ge=0, le=MAX_SEED)]
    style: str | None = None  # None: the first of the catalog
    negative_prompt: Annotated[Text, MaxLen(MAX_PROMPT_CHARS)] | None = None  # None: the style's own
    options: SamplingOptions = field(default_factory=SamplingOptions)
    preference_strength: Annotated[Number, STRENGTH] = 1.0  # people's, see strength.py: 0 is without them
