"""An uploaded first frame: bytes nobody has vouched for -> pixels of the model's size."""

import io
import warnings

import numpy as np
from PIL import Image

from huvidpo.errors import InvalidRequest
from huvidpo.pictures import to_rgb
from huvidpo.video import crop_to_aspect

FORMATS = ("PNG", "JPEG", "WEBP")


def read_first_frame(
    data: bytes, height: int, width: int, max_pixels: int, field: str = "first_frame"
) -> bytes:
    """A PNG, JPEG or WebP file -> a PNG file of height x width, cropped to aspect. Raises InvalidRequest,
    which names `field`.

    The pixel count is read from the header and checked before anything is decompressed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: the limit is checked right below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise _refuse(
                    field, f"{image.width} x {image.height} pixels, at most {max_pixels} pixels are allowed"
                )
            pixels = to_rgb(image)
    except InvalidRequest:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, far above ours
        raise _refuse(field, f"at most {max_pixels} pixels are allowed") from None
    except Exception:  # Pillow's decoders raise whatever they like on broken files
        raise _refuse(field, "it cannot be read; send a whole PNG, JPEG or WebP file") from None
    return to_png(crop_to_aspect(pixels, height, width))


def to_png(frame: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """What `to_png` wrote, and nothing else, back as uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def _refuse(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {reason}", field)
