"""Drawing with signed distances: a grid of pixel centres, shapes on it, and a canvas painted in a style.

Units: the picture's side is 1, x to the right, y down, inside is negative. U is a 64th of the side, whatever
the number of pixels: outlines and textures look the same at every size. Letters: S pixels per side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

Array = np.ndarray
Rgb = tuple[float, float, float]
Point = tuple[float, float]

U = 1 / 64
INK: Rgb = (0.05, 0.04, 0.06)


@cache
def centres(size: int) -> tuple[Array, Array]:
    """x and y [S, S] of the pixels' centres."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = np.meshgrid(at, at, indexing="ij")
    return x, y


@dataclass(frozen=True)
class Grid:
    """Pixel centres in the coordinates of what is drawn, which may stand elsewhere and have another size.

    All distances are in units of the picture's side, so that outlines keep their width at any `scale`.
    """

    x: Array
    y: Array
    scale: float = 1.0
    """Side of one unit of the drawn thing in the picture."""

    @staticmethod
    def of(size: int) -> Grid:
        return Grid(*centres(size))

    def seen(self, zoom: float, right: float, down: float) -> Grid:
        """Through a camera that is nearer by `zoom` and has moved by `right` and `down`."""
        return Grid(
            (self.x - 0.5) / zoom + 0.5 + right, (self.y - 0.5) / zoom + 0.5 + down, self.scale * zoom
        )

    def placed(self, scale: float, anchor: Point, right: float, down: float) -> Grid:
        """Of a thing `scale` times as large about its `anchor`, moved by `right` and `down`."""
        x = (self.x - anchor[0] - right) / scale + anchor[0]
        y = (self.y - anchor[1] - down) / scale + anchor[1]
        return Grid(x, y, self.scale * scale)

    def circle(self, x: float, y: float, r: float) -> Array:
        return (np.hypot(self.x - x, self.y - y) - r) * self.scale

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Array:
        """First-order distance, exact at the outline, good enough for shading inside."""
        u, v = (self.x - x) / rx, (self.y - y) / ry
        k = np.hypot(u, v) + 1e-6
        return k * (k - 1) / (np.hypot(u / rx, v / ry) + 1e-6) * self.scale

    def capsule(self, a: Point, b: Point, r0: float, r1: float | None = None) -> Array:
        """A round-ended stroke from `a` to `b` whose radius goes from r0 to r1."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        x, y = self.x - a[0], self.y - a[1]
        t = np.clip((x * dx + y * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
        return (np.hypot(x - t * dx, y - t * dy) - (r0 if r1 is None else r0 + (r1 - r0) * t)) * self.scale

    def box(self, x: float, y: float, hx: float, hy: float, r: float = 0.0) -> Array:
        qx, qy = np.abs(self.x - x) - hx + r, np.abs(self.y - y) - hy + r
        outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
        return (outside + np.minimum(np.maximum(qx, qy), 0) - r) * self.scale

    def below(self, height: Array | float) -> Array:
        """Under a line or a height profile y = height(x)."""
        return np.broadcast_to((height - self.y) * self.scale, self.x.shape)

    def above(self, height: Array | float) -> Array:
        return -self.below(height)

    def right_of(self, x: Array | float) -> Array:
        return (x - self.x) * self.scale

    def noise(self, cells: int, seed: int) -> Array:
        """Smooth noise in [-1, 1], `cells` bumps per unit, repeated beyond it."""
        table = np.random.default_rng(seed).uniform(-1, 1, (cells, cells)).astype(np.float32)
        (ix, fx), (iy, fy) = _cell(self.x * cells), _cell(self.y * cells)
        at = lambda dy, dx: table[(iy + dy) % cells, (ix + dx) % cells]  # noqa: E731
        upper = at(0, 0) * (1 - fx) + at(0, 1) * fx
        return upper * (1 - fy) + (at(1, 0) * (1 - fx) + at(1, 1) * fx) * fy


def _cell(at: Array) -> tuple[Array, Array]:
    """Number of the noise cell, and the smooth way through it, 0..1."""
    whole = np.floor(at)
    part = at - whole
    return whole.astype(int), part * part * (3 - 2 * part)


def union(*shapes: Array) -> Array:
    return np.minimum.reduce(shapes)


def both(*shapes: Array) -> Array:
    """Where all of them are."""
    return np.maximum.reduce(shapes)


def mix(a: Rgb, b: Rgb, t: float) -> Rgb:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def scaled(a: Rgb, k: float) -> Rgb:
    return (a[0] * k, a[1] * k, a[2] * k)


def dark(a: Rgb) -> bool:
    return sum(a) < 0.7


def shadow(a: Rgb, k: float) -> Rgb:
    """A darker shade of `a`; of a dark colour a lighter one, so that the two can be told apart."""
    return mix(a, (0.45, 0.45, 0.5), 0.4 * (1 - k) / 0.3) if dark(a) else scaled(a, k)


class Canvas:
    """A picture [S, S, 3] in 0..1, the style it is painted in, and where the subject is."""

    def __init__(self, style: str, size: int, image: Array | None = None):
        self.style, self.size = style, size
        self.image = np.zeros((size, size, 3), np.float32) if image is None else image.copy()
        self.subject = np.zeros((size, size), np.float32)
        """Coverage 0..1 by all that `fill` has painted."""

    def cover(self, d: Array) -> Array:
        return np.clip(0.5 - d * self.size, 0, 1)

    def blend(self, alpha: Array, colour: Array | Rgb) -> None:
        self.image += alpha[..., None] * (np.asarray(colour, np.float32) - self.image)

    def fill(self, d: Array, colour: Rgb, outline: bool = True, shade: float = 1.0) -> None:
        """Paint the inside of `d`. `shade` scales how much the style may light it (0: flat)."""
        if self.style == "cartoon" and outline:
            self.blend(self.cover(d - 1.2 * U), INK)
        alpha = self.cover(d)
        self.blend(alpha, self._lit(d, colour, shade))
        np.maximum(self.subject, alpha, out=self.subject)

    def dot(self, d: Array, colour: Rgb) -> None:
        """Something small and flat: no outline, no light."""
        self.fill(d, colour, outline=False, shade=0)

    def glow(self, d: Array, colour: Rgb, reach: float, strength: float) -> None:
        """Light added around `d`, fading over `reach`."""
        light = strength * np.exp(-np.maximum(d, 0) / reach)
        self.image += light[..., None] * np.asarray(colour, np.float32)

    def _lit(self, d: Array, colour: Rgb, shade: float) -> Array:
        base = np.asarray(colour, np.float32)
        if self.style in ("cartoon", "pixel-art") or shade == 0:
            return base
        width, amount = (5.0, 0.55) if self.style == "claymation" else (7.0, 0.34)
        height = np.sqrt(np.clip(-d / (width * U), 0, 1))
        down, right = np.gradient(height, 1 / (U * self.size))
        light = (down + 0.6 * right) * amount * 2.2 * shade
        return np.clip(base * (1 + light)[..., None] + 0.25 * np.maximum(light, 0)[..., None], 0, 1)

    def finished(self, grid: Grid) -> Array:
        """The picture as uint8 after what a style does to the whole of it; textures lie on `grid`."""
        image = np.clip(self.image, 0, 1)
        if self.style == "claymation":
            thumbs = 1 + 0.11 * grid.noise(21, 5) + 0.05 * grid.noise(32, 6)
            image = np.clip(0.90 * image + 0.05, 0, 1) * thumbs[..., None]
        elif self.style == "realistic":
            x, y = centres(self.size)
            image = image * (1 - 0.20 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None]
        elif self.style == "cartoon":
            grey = image.mean(-1, keepdims=True)
            image = grey + 1.25 * (image - grey)
        elif self.style == "pixel-art":
            block = self.size // 32
            image = image.reshape(32, block, 32, block, 3).mean((1, 3))
            image = (np.round(image * 6) / 6).repeat(block, 0).repeat(block, 1)
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def wave(t: float, period: float = 8.0, lag: float = 0.0) -> float:
    """sin of a motion that repeats every `period` frames."""
    return math.sin(2 * math.pi * t / period - lag)
