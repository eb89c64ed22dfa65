"""What comes in and what crosses to the runners. Bounds of single fields live in the types; bounds that
depend on the model and the settings live in `generation.py`.
"""

import base64
import binascii
import re
import unicodedata
from typing import Annotated, Any, Literal, TypeVar
from uuid import uuid4

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from huvidpo.config import FPS, FRAMES, GUIDANCE, MAX_PROMPT_CHARS, MAX_SEED, STEPS, STRENGTH
from service.errors import BadFields, MalformedBody
from service.order import Priority

Format = Literal["mp4", "gif", "webp"]
MEDIA_TYPES: dict[str, str] = {"mp4": "video/mp4", "gif": "image/gif", "webp": "image/webp"}
MAX_DETAILS = 20  # errors listed in one answer
_RATER = re.compile(r"\w([\w .@-]{0,38}[\w.@-])?")  # letters of any script
MAX_QUOTED = 40  # characters of a caller's own field name repeated in an answer


OTHER_NAMES = {"num_inference_steps": "steps", "guidance_scale": "guidance", "num_frames": "frames"}
"""diffusers' names of fields, taken beside ours"""


def _from_base64(value: Any) -> Any:
    """JSON has no bytes: there, and only there, they are text."""
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        message = "it is not base64; send the bytes of a PNG, JPEG or WebP as a string of plain base64"
        raise PydanticCustomError("base64", message) from None


def rater_name(name: str) -> str:
    """The name of somebody who rates, in one spelling. The only rule for them; raises ValueError."""
    name = unicodedata.normalize("NFC", name)
    if not _RATER.fullmatch(name):
        raise PydanticCustomError(
            "rater", "expected 1 to 40 letters, digits, spaces or . _ @ -, beginning with a letter or digit"
        )
    return name


Rater = Annotated[str, AfterValidator(rater_name)]
ImageFile = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda data: base64.b64encode(data).decode("ascii"), when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


class GenerateRequest(BaseModel):
    """One clip to make. Unknown fields are refused; a number is a number, never a string."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What the clip shows.")
    category: str = Field(
        max_length=100, description="Kind of motion, a name of the catalog: horse, rain, ..."
    )
    style: str | None = Field(
        None, max_length=100, description="Look, a name of the catalog. Absent: its first, realistic."
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Same seed, same clip. Absent: picked, see X-Seed."
    )
    steps: Annotated[int, STEPS] | None = Field(
        None, description="Denoising steps of the video; also num_inference_steps. Absent: the model's."
    )
    guidance: Annotated[float, GUIDANCE] | None = Field(
        None, description="Classifier-free guidance; also guidance_scale."
    )
    frames: Annotated[int, FRAMES] | None = Field(
        None, description="Frames of the clip; also num_frames. Absent: the model's."
    )
    fps: Annotated[int, FPS] | None = Field(
        None, description="Frames per second of the file. Absent: the model's."
    )
    negative_prompt: str | None = Field(
        None, max_length=MAX_PROMPT_CHARS, description="What to keep away from."
    )
    first_frame: ImageFile | None = Field(
        None, description="Base64 of a PNG, JPEG or WebP to start from, cropped to aspect."
    )
    image_url: str | None = Field(
        None,
        max_length=4000,
        description="https address of such a picture instead, where the server follows them.",
    )
    preference_strength: Annotated[float, STRENGTH] | None = Field(
        None, description="Of people's preferences in the category: 0 is without them, 1 (absent) as shipped."
    )
    format: Format = Field("mp4", description="mp4 (H.264), gif or webp.")
    priority: Priority | None = Field(
        None, description="high, normal or low, at most the key's own, which is taken when absent."
    )

    @model_validator(mode="before")
    @classmethod
    def _by_our_names(cls, sent: Any) -> Any:
        """The fields of OTHER_NAMES under ours. What came by both names is refused."""
        if not isinstance(sent, dict):
            return sent
        for other, name in OTHER_NAMES.items():
            if other in sent and name in sent:
                raise PydanticCustomError(
                    "named_twice", f"{other} and {name} mean the same: send one of them"
                )
        if sent.get("first_frame") is not None and sent.get("image_url") is not None:
            raise PydanticCustomError(
                "named_twice", "first_frame and image_url mean the same: send one of them"
            )
        return {OTHER_NAMES.get(name, name): value for name, value in sent.items()}


class RunnerJob(BaseModel):
    """What the gateway sends to a runner: already checked, everything decided. A newer gateway may send more
    than a runner knows.
    """

    model_config = ConfigDict(extra="ignore")

    prompt: str
    category: str
    style: str | None
    seed: int
    negative_prompt: str | None
    options: dict[str, Any]  # the fields of huvidpo.config.SamplingOptions
    preference_strength: float = 1.0
    first_frame: bytes | None = None  # PNG of the model's size; the video runner needs it
    format: Format = "mp4"
    id: str = Field(default_factory=lambda: uuid4().hex)  # see desk.py
    seconds: float | None = None  # after which nobody wants it any more
    detach: bool = False  # whether it outlasts its reader for a while
    caller: str = ""  # name of the API key
    priority: Priority = "normal"
    watermark: str | None = None  # base64 of the signs that are hidden in the clip; see huvidpo.watermark
    begun_elsewhere: bool = False  # whether another gateway may have brought it to a runner


T = TypeVar("T", bound=BaseModel)


def parse(model: type[T], body: bytes) -> T:
    """Raises MalformedBody (not JSON) or BadFields (every wrong field, named)."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        # include_input=False: what a caller sent may be long or private, an answer repeats neither
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        raise MalformedBody(f"the body is not valid JSON: {errors[0]['msg'].removeprefix('Invalid JSON: ')}")
    details = [_detail(one, model) for one in errors[:MAX_DETAILS]]
    message = "; ".join(one["message"] for one in details)
    raise BadFields(message, details[0]["field"] or None, details)


def _detail(error: Any, model: type[BaseModel]) -> dict[str, str]:
    field = ".".join(str(part) for part in error["loc"])[:MAX_QUOTED]
    if error["type"] == "extra_forbidden":
        return {"field": field, "message": f"{field}: no such field, known: {', '.join(model.model_fields)}"}
    if error["type"] == "missing":
        return {"field": field, "message": f"{field}: missing"}
    if error["type"] == "named_twice":
        return {"field": error["msg"].partition(" ")[0], "message": error["msg"]}
    if error["type"] == "fields":  # a rule of several fields
        return {"field": "", "message": error["msg"]}
    if not field:
        return {"field": "", "message": "the body must be a JSON object"}
    return {"field": field, "message": f"{field}: {error['msg'][0].lower()}{error['msg'][1:]}"}
