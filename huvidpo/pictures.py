"""Pictures of every mode that files hold -> uint8 [H, W, 3], in the one way used everywhere."""

import numpy as np
from PIL import Image, ImageOps


def to_rgb(image: Image.Image) -> np.ndarray:
    """An opened picture as uint8 [H, W, 3]: upright by its EXIF orientation, transparent parts on white, 16
    bits a channel by their upper 8. Raises what Pillow raises at damaged files.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return np.repeat(_to_8_bits(image)[..., None], 3, axis=2)
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """Grey of 16 bits; of 32 bits or floating point, where files do not say what is white: 65535 if a value
    is above 255, else 255, or 1 where no value of floating point is above that.
    """
    grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = grey.max(initial=0)
    if image.mode.startswith("I;16") or top > 255:
        grey = grey / 256
    elif image.mode == "F" and top <= 1:
        grey = grey * 255
    return np.clip(grey, 0, 255).astype(np.uint8)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] -> what a viewer shows of it on a white page, uint8 [H, W, 3]."""
    page = Image.new("RGBA", (rgba.shape[1], rgba.shape[0]), "white")
    return np.asarray(Image.alpha_composite(page, Image.fromarray(rgba)).convert("RGB"))
