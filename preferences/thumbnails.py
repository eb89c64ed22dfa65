"""Clips as still pictures: strips of a few frames, and sheets of labelled strips."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 12  # pixels
MARGIN = 4  # pixels around a strip


def tile(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of equally sized pictures, each [H, W, 3], as one picture without gaps."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def strip(frames: np.ndarray, count: int = 4, height: int = 64) -> Image.Image:
    """`count` frames of uint8 [F, H, W, 3], the first and the last among them, side by side."""
    places = np.linspace(0, len(frames) - 1, count).round().astype(int)
    width = round(height * frames.shape[2] / frames.shape[1])
    picture = Image.fromarray(tile([frames[places]]))
    return picture.resize((count * width, height), Image.Resampling.LANCZOS)


def contact_sheet(strips: Sequence[Image.Image], labels: Sequence[str], columns: int = 2) -> Image.Image:
    """Strips of one size, each with its label below, cut off where it is wider than the strip."""
    width, height = strips[0].size
    cell = (width + 2 * MARGIN, height + FONT_SIZE + 3 * MARGIN)
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for i, (picture, label) in enumerate(zip(strips, labels, strict=True)):
        left, top = i % columns * cell[0] + MARGIN, i // columns * cell[1] + MARGIN
        sheet.paste(picture, (left, top))
        while font.getlength(label) > width:
            label = label[:-1]
        draw.text((left, top + height + 1), label, "black", font)
    return sheet
