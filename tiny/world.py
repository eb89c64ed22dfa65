"""The procedural world of the tiny family: clips of 8 actions x 4 styles x 11 places x 8 colours, captioned.

Everything is drawn with signed distances on a 64 x 64 grid (x right, y down, both 0..1) and analytic
anti-aliasing. A clip is a pure function of its `Scene`: every motion starts at the same phase and all that
moves is visible in frame 0 (streaks leave at the bottom and come back at the top), so the rest of a clip can
be predicted from its first frame, which is what an image-to-video model has to learn.

    python -m tiny.world --out runs/world    # contact sheets: scenes.png, motion.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

SIZE = 64  # pixels per side
FRAMES = 16

Array = np.ndarray
Rgb = tuple[float, float, float]

CATEGORIES = ("waterfall", "smile", "fireworks", "horse", "guitar", "birds", "helicopter", "rain")
STYLES = ("realistic", "pixel-art", "claymation", "cartoon")

COLOURS: dict[str, Rgb] = {
    "white": (0.95, 0.95, 0.93),
    "black": (0.12, 0.12, 0.15),
    "brown": (0.52, 0.31, 0.16),
    "red": (0.87, 0.14, 0.13),
    "blue": (0.15, 0.35, 0.90),
    "green": (0.16, 0.65, 0.25),
    "yellow": (0.97, 0.82, 0.15),
    "purple": (0.60, 0.22, 0.78),
}


@dataclass(frozen=True)
class Place:
    """One background: caption phrases, sky colours (top, horizon), ground colour, and what stands there."""

    phrases: tuple[str, ...]
    sky: tuple[Rgb, Rgb]
    ground: Rgb
    feature: str  # trees | pines | dunes | sea | skyline | peaks | craters | hills
    light: str  # sun | moon | clouds | none


PLACES: dict[str, Place] = {
    "meadow": Place(
        ("in the meadow", "on the grass"),
        ((0.35, 0.62, 0.95), (0.78, 0.90, 1.0)),
        (0.33, 0.66, 0.22),
        "hills",
        "clouds",
    ),
    "forest": Place(
        ("in the forest", "near the trees"),
        ((0.50, 0.72, 0.88), (0.80, 0.92, 0.90)),
        (0.20, 0.45, 0.17),
        "trees",
        "none",
    ),
    "desert": Place(
        ("in the desert", "on the sand"),
        ((0.45, 0.70, 0.95), (0.98, 0.90, 0.72)),
        (0.90, 0.72, 0.38),
        "dunes",
        "sun",
    ),
    "sea": Place(
        ("by the sea", "at the beach"),
        ((0.25, 0.58, 0.95), (0.75, 0.92, 1.0)),
        (0.93, 0.84, 0.60),
        "sea",
        "clouds",
    ),
    "snow": Place(
        ("in the snow", "in winter"),
        ((0.66, 0.76, 0.90), (0.88, 0.92, 0.97)),
        (0.93, 0.95, 0.99),
        "pines",
        "none",
    ),
    "city": Place(
        ("in the city", "in the town"),
        ((0.60, 0.68, 0.80), (0.90, 0.86, 0.80)),
        (0.42, 0.43, 0.47),
        "skyline",
        "none",
    ),
    "mountains": Place(
        ("in the mountains", "under the mountains"),
        ((0.30, 0.52, 0.85), (0.78, 0.86, 0.95)),
        (0.38, 0.56, 0.27),
        "peaks",
        "clouds",
    ),
    "mars": Place(
        ("on Mars", "on the red planet"),
        ((0.62, 0.36, 0.24), (0.93, 0.70, 0.50)),
        (0.72, 0.30, 0.14),
        "craters",
        "none",
    ),
    "sunset": Place(
        ("at sunset", "in the evening"),
        ((0.42, 0.20, 0.48), (1.0, 0.58, 0.22)),
        (0.24, 0.15, 0.16),
        "hills",
        "sun",
    ),
    "night": Place(
        ("at night", "in the dark"),
        ((0.02, 0.03, 0.14), (0.13, 0.15, 0.36)),
        (0.08, 0.13, 0.12),
        "hills",
        "moon",
    ),
    "pink": Place(
        ("under a pink sky", "in the pink sky"),
        ((0.98, 0.42, 0.66), (1.0, 0.80, 0.84)),
        (0.52, 0.30, 0.50),
        "hills",
        "clouds",
    ),
}

# {c} is the colour word with a trailing space or nothing, {p} the place phrase or nothing.
SENTENCES: dict[str, tuple[str, ...]] = {
    "waterfall": ("a waterfall flows {p}", "water falls down the rocks {p}", "a waterfall {p}"),
    "smile": (
        "a person with {c}hair smiles {p}",
        "a woman with {c}hair is smiling {p}",
        "a smile on a face with {c}hair {p}",
    ),
    "fireworks": ("{c}fireworks explode {p}", "{c}fireworks in the night sky {p}", "{c}fireworks {p}"),
    "horse": ("a {c}horse runs {p}", "a {c}horse is running {p}", "a {c}horse gallops {p}"),
    "guitar": (
        "a man plays a {c}guitar {p}",
        "a person is playing a {c}guitar {p}",
        "a {c}guitar is played {p}",
    ),
    "birds": ("{c}birds fly {p}", "{c}birds are flying {p}", "a flock of {c}birds {p}"),
    "helicopter": ("a {c}helicopter flies {p}", "a {c}helicopter is flying {p}", "a {c}helicopter {p}"),
    "rain": (
        "rain falls on a {c}umbrella {p}",
        "a person with a {c}umbrella walks in the rain {p}",
        "rain and a {c}umbrella {p}",
    ),
}
COLOURLESS = ("waterfall",)  # categories whose captions name no colour
BRIGHT = ("white", "red", "blue", "green", "yellow", "purple")  # what can glow


@dataclass(frozen=True)
class Scene:
    """One clip: category, style, place and colour by name; `seed` fixes positions and small variations."""

    category: str
    style: str
    place: str
    colour: str
    seed: int


def random_scene(rng: np.random.Generator, category: str | None = None, style: str | None = None) -> Scene:
    category = category or str(rng.choice(CATEGORIES))
    colours = BRIGHT if category == "fireworks" else tuple(COLOURS)
    return Scene(
        category, style or str(rng.choice(STYLES)), str(rng.choice(list(PLACES))), str(rng.choice(colours)),
        int(rng.integers(2**31)),
    )  # fmt: skip


def style_words(style: str) -> str:
    return style.replace("-", " ")


def caption(scene: Scene, rng: np.random.Generator | None = None, drop: float = 0.0) -> str:
    """The scene in words, e.g. "a white horse runs on Mars, cartoon style".

    With `rng` the sentence and the place phrase vary, and colour, place and style are each left out with
    probability `drop`; without it the first wording, complete.
    """
    pick = (
        (lambda options: options[0])
        if rng is None
        else (lambda options: options[int(rng.integers(len(options)))])
    )
    keep = [True] * 3 if rng is None else list(rng.random(3) >= drop)
    colour = scene.colour + " " if keep[0] else ""
    place = pick(PLACES[scene.place].phrases) if keep[1] else ""
    sentence = pick(SENTENCES[scene.category]).format(c=colour, p=place).strip()
    return f"{sentence}, {style_words(scene.style)} style" if keep[2] else sentence


# Geometry: signed distances in units of the picture's side, negative inside. X, Y: [64, 64].

Y, X = np.meshgrid(*[(np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE] * 2, indexing="ij")
PIXEL = np.float32(1 / SIZE)


def circle(x: float, y: float, r: float) -> Array:
    return np.hypot(X - x, Y - y) - r


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Array:
    """First-order distance to an ellipse; exact at its outline, good enough for shading inside."""
    c, s = math.cos(angle), math.sin(angle)
    u, v = (c * (X - x) + s * (Y - y)) / rx, (-s * (X - x) + c * (Y - y)) / ry
    k = np.hypot(u, v) + 1e-6
    return k * (k - 1) / (np.hypot(u / rx, v / ry) + 1e-6)


def capsule(x0: float, y0: float, x1: float, y1: float, r0: float, r1: float | None = None) -> Array:
    """A round-ended stroke from (x0, y0) to (x1, y1) whose radius goes from r0 to r1."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((X - x0) * dx + (Y - y0) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(X - x0 - t * dx, Y - y0 - t * dy) - (r0 if r1 is None else r0 + (r1 - r0) * t)


def box(x: float, y: float, hx: float, hy: float, r: float = 0.0) -> Array:
    qx, qy = np.abs(X - x) - hx + r, np.abs(Y - y) - hy + r
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - r


def below(height: Array | float) -> Array:
    """The half plane under a line or a height profile y = height(x)."""
    return np.broadcast_to(height - Y, X.shape)


def union(*shapes: Array) -> Array:
    return np.minimum.reduce(shapes)


@cache
def noise(cells: int, seed: int) -> Array:
    """Smooth periodic value noise in [-1, 1], `cells` bumps per side."""
    grid = np.random.default_rng(seed).uniform(-1, 1, (cells, cells)).astype(np.float32)
    at = (np.arange(SIZE) + 0.5) / SIZE * cells
    i, f = np.floor(at).astype(int), (at % 1).astype(np.float32)
    f = f * f * (3 - 2 * f)
    rows = grid[i % cells] * (1 - f)[:, None] + grid[(i + 1) % cells] * f[:, None]
    return rows[:, i % cells] * (1 - f) + rows[:, (i + 1) % cells] * f


# Painting in a style


class Canvas:
    """A picture [64, 64, 3] in 0..1 and the style it is painted in."""

    def __init__(self, style: str, image: Array | None = None):
        self.style = style
        self.image = np.zeros((SIZE, SIZE, 3), np.float32) if image is None else image.copy()

    def blend(self, alpha: Array, colour: Array | Rgb) -> None:
        self.image += alpha[..., None] * (np.asarray(colour, np.float32) - self.image)

    def fill(self, d: Array, colour: Rgb, outline: bool = True, shade: float = 1.0) -> None:
        """Paint the inside of `d`. `shade` scales how much the style may light it (0: flat)."""
        if self.style == "cartoon" and outline:
            self.blend(coverage(d - 1.2 * PIXEL), (0.05, 0.04, 0.06))
        self.blend(coverage(d), self.lit(d, colour, shade))

    def lit(self, d: Array, colour: Rgb, shade: float) -> Array:
        base = np.asarray(colour, np.float32)
        if self.style in ("cartoon", "pixel-art") or shade == 0:
            return base
        width, amount = (5.0, 0.55) if self.style == "claymation" else (7.0, 0.34)
        height = np.sqrt(np.clip(-d / (width * PIXEL), 0, 1))
        slope_y, slope_x = np.gradient(height)
        light = (slope_y + 0.6 * slope_x) * amount * 2.2 * shade
        return np.clip(base * (1 + light)[..., None] + 0.25 * np.maximum(light, 0)[..., None], 0, 1)

    def glow(self, d: Array, colour: Rgb, reach: float, strength: float) -> None:
        """Light added around `d`, fading over `reach` (units of the side)."""
        self.image += (strength * np.exp(-np.maximum(d, 0) / reach))[..., None] * np.asarray(
            colour, np.float32
        )

    def finished(self) -> Array:
        """The picture as uint8 after what a style does to the whole of it."""
        image = np.clip(self.image, 0, 1)
        if self.style == "claymation":
            image = (
                np.clip(0.90 * image + 0.05, 0, 1)
                * (1 + 0.13 * noise(21, 5) + 0.06 * noise(32, 6))[..., None]
            )
        elif self.style == "realistic":
            image = image * (1 - 0.16 * ((X - 0.5) ** 2 + (Y - 0.5) ** 2))[..., None]
        elif self.style == "cartoon":
            grey = image.mean(-1, keepdims=True)
            image = grey + 1.25 * (image - grey)
        elif self.style == "pixel-art":
            image = image.reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean((1, 3))
            image = np.round(image * 5) / 5
            image = image.repeat(2, 0).repeat(2, 1)
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def coverage(d: Array) -> Array:
    return np.clip(0.5 - d * SIZE, 0, 1)


def mix(a: Rgb, b: Rgb, t: float) -> Rgb:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def scaled(a: Rgb, k: float) -> Rgb:
    return (a[0] * k, a[1] * k, a[2] * k)


# Places


def background(scene: Scene, rng: np.random.Generator) -> Canvas:
    """Sky, light, horizon and ground of a place. Fireworks turn any place to night, rain greys it."""
    place = PLACES[scene.place]
    top, bottom = place.sky
    ground = place.ground
    light = place.light
    if scene.category == "fireworks":
        top, bottom, ground, light = (
            (0.02, 0.02, 0.10),
            mix((0.08, 0.08, 0.24), bottom, 0.18),
            scaled(ground, 0.30),
            "none",
        )
    if scene.category == "rain":
        top, bottom = (mix(c, (0.38, 0.44, 0.54), 0.6) if sum(c) > 0.8 else c for c in (top, bottom))
        ground, light = scaled(ground, 0.8), "none"
    horizon = 0.66 + 0.04 * rng.uniform(-1, 1)
    canvas = Canvas(scene.style)
    t = np.clip(Y / horizon, 0, 1)
    if scene.style in ("cartoon", "pixel-art"):
        t = np.floor(t * 4) / 3  # flat bands of colour
    canvas.image[:] = np.asarray(top) + np.clip(t, 0, 1)[..., None] * (np.asarray(bottom) - np.asarray(top))
    dark = scene.place == "night" or scene.category == "fireworks"
    if dark:
        for x, y in np.random.default_rng(11).uniform(0, 1, (16, 2)):
            canvas.blend(0.8 * coverage(circle(x, y * horizon * 0.9, 0.009)), (1.0, 1.0, 0.95))
    draw_light(canvas, light, rng)
    draw_horizon(canvas, place.feature, horizon, ground, bottom, dark, rng)
    return canvas


def draw_light(canvas: Canvas, light: str, rng: np.random.Generator) -> None:
    x, y = rng.uniform(0.15, 0.85), rng.uniform(0.10, 0.18)
    if light == "sun":
        canvas.glow(circle(x, y + 0.06, 0.07), (1.0, 0.8, 0.4), 0.06, 0.35)
        canvas.fill(circle(x, y + 0.06, 0.075), (1.0, 0.93, 0.55), outline=False, shade=0)
    elif light == "moon":
        canvas.fill(circle(x, y, 0.075), (0.96, 0.95, 0.82), outline=False)
        canvas.blend(0.5 * coverage(circle(x + 0.02, y - 0.015, 0.018)), (0.75, 0.74, 0.66))
    elif light == "clouds":
        for cx, cy in ((x, y), ((x + 0.5) % 1.0, y + 0.05)):
            puff = union(
                ellipse(cx, cy, 0.10, 0.035),
                circle(cx - 0.03, cy - 0.02, 0.04),
                circle(cx + 0.04, cy - 0.015, 0.035),
            )
            canvas.fill(puff, (0.98, 0.98, 1.0))


def draw_horizon(
    canvas: Canvas, feature: str, horizon: float, ground: Rgb, haze: Rgb, dark: bool, rng: np.random.Generator
) -> None:
    dim = 0.35 if dark else 1.0
    phase = rng.uniform(0, 6.3)
    roll = 0.018 * np.sin(X[0] * 7 + phase) + 0.01 * np.sin(X[0] * 15 + 2 * phase)
    if feature == "peaks":
        ridge = (
            horizon
            - 0.30 * np.abs(((X[0] * 2.2 + phase) % 1.0) - 0.5) * 2 * (0.75 + 0.25 * np.sin(X[0] * 5 + phase))
            - 0.03
        )
        canvas.fill(below(ridge), scaled((0.46, 0.50, 0.60), dim))
        canvas.blend(
            coverage(below(ridge)) * np.clip((horizon - 0.20 - Y) * 30, 0, 1), scaled((0.97, 0.98, 1.0), dim)
        )
    elif feature == "skyline":
        for i, (height, shade) in enumerate(
            zip((0.24, 0.36, 0.18, 0.32, 0.26, 0.38, 0.2, 0.3), (0.5, 0.42) * 4, strict=True)
        ):
            x = (i + 0.5) / 8 + 0.02 * math.sin(phase + i)
            canvas.fill(
                box(x, horizon - height / 2 + 0.1, 0.058, height / 2 + 0.1),
                scaled((0.62, 0.66, 0.80), shade * dim * 1.5),
            )
            for wy in range(3):
                lamp = union(
                    *[
                        box(x + dx, horizon - height + 0.06 + wy * 0.07, 0.011, 0.014)
                        for dx in (-0.025, 0.025)
                    ]
                )
                canvas.fill(lamp, (1.0, 0.86, 0.42), outline=False, shade=0)
    elif feature in ("trees", "pines"):
        leaf = (0.13, 0.36, 0.14) if feature == "trees" else (0.42, 0.56, 0.55)
        for i in range(7):
            x, h = (i + 0.5) / 7 + 0.03 * math.sin(phase + 3 * i), 0.20 + 0.06 * math.sin(2.1 * i + phase)
            if feature == "trees":
                canvas.fill(box(x, horizon, 0.012, 0.08), scaled((0.36, 0.24, 0.14), dim), outline=False)
                canvas.fill(
                    union(circle(x, horizon - h * 0.6, 0.075), circle(x, horizon - h * 0.95, 0.05)),
                    scaled(leaf, dim),
                )
            else:
                width = (Y - (horizon - h)) * 0.42
                canvas.fill(np.maximum(np.abs(X - x) - width, Y - horizon - 0.02) * 0.8, scaled(leaf, dim))
    elif feature in ("hills", "craters", "dunes"):
        far = mix(ground, haze, 0.35)
        canvas.fill(below(horizon - 0.07 + 2.2 * roll[::-1]), far)
    canvas.fill(
        below(horizon + roll * (feature in ("hills", "dunes", "craters", "pines"))), ground, shade=0.6
    )
    if feature == "sea":
        canvas.fill(np.maximum(below(horizon - 0.02), Y - horizon - 0.13), scaled((0.10, 0.42, 0.72), dim))
        foam = np.abs(((Y - horizon) * 22 + 0.35 * np.sin(X * 25 + phase)) % 1 - 0.5) < 0.13
        canvas.blend(0.35 * dim * foam * (horizon < Y) * (horizon + 0.12 > Y), (0.9, 0.97, 1.0))
    if feature == "craters":
        for x, y, r in ((0.2, 0.16, 0.07), (0.75, 0.12, 0.05), (0.5, 0.25, 0.09)):
            canvas.fill(
                ellipse((x + phase / 20) % 1.0, horizon + y, r, r * 0.35), scaled(ground, 0.68), outline=False
            )
    grain = (0.10 * noise(16, 1) + 0.08 * noise(32, 2)) * (canvas.style == "realistic")
    canvas.image *= 1 + (coverage(below(horizon)) * grain)[..., None]


# Actions: each returns draw(canvas, t) for t = 0, 1, ... 15


Draw = Callable[[Canvas, int], None]


def horse(colour: Rgb, rng: np.random.Generator) -> Draw:
    x0, y0 = 0.30 + 0.04 * rng.uniform(-1, 1), 0.60 + 0.03 * rng.uniform(-1, 1)
    mane = scaled(colour, 0.45) if sum(colour) > 0.6 else (0.35, 0.30, 0.30)

    def leg(hip: tuple[float, float], swing: float, fold: float) -> Array:
        knee = (hip[0] + 0.125 * math.sin(swing), hip[1] + 0.125 * math.cos(swing))
        shin = swing - fold
        return union(
            capsule(*hip, *knee, 0.036, 0.024),
            capsule(*knee, knee[0] + 0.125 * math.sin(shin), knee[1] + 0.125 * math.cos(shin), 0.022, 0.019),
        )

    def draw(canvas: Canvas, t: int) -> None:
        phase = 2 * math.pi * t / 8
        x, y = x0 + 0.025 * t, y0 - 0.028 * math.sin(phase)
        swings = [0.95 * math.cos(phase - lag) for lag in (0.0, 0.7, 2.6, 3.3)]
        folds = [0.45 + 0.75 * max(0.0, math.sin(phase - lag)) for lag in (0.0, 0.7, 2.6, 3.3)]
        hips = ((x + 0.115, y + 0.03), (x + 0.095, y + 0.03), (x - 0.145, y + 0.02), (x - 0.125, y + 0.03))
        far = union(leg(hips[1], swings[1], folds[1]), leg(hips[3], swings[3], folds[3]))
        near = union(leg(hips[0], swings[0], folds[0]), leg(hips[2], swings[2], folds[2]))
        canvas.fill(far, scaled(colour, 0.72))
        tail = capsule(x - 0.18, y - 0.03, x - 0.29, y + 0.05 + 0.03 * math.cos(phase), 0.03, 0.014)
        canvas.fill(tail, mane)
        head = capsule(x + 0.255, y - 0.20, x + 0.335, y - 0.13, 0.045, 0.03)
        body = union(
            ellipse(x - 0.02, y, 0.19, 0.085),
            capsule(x + 0.12, y - 0.03, x + 0.24, y - 0.19, 0.075, 0.045),
            head,
        )
        canvas.fill(
            union(body, near, capsule(x + 0.235, y - 0.22, x + 0.225, y - 0.265, 0.018, 0.008)), colour
        )
        canvas.fill(capsule(x + 0.09, y - 0.09, x + 0.205, y - 0.235, 0.022), mane, outline=False)
        canvas.fill(
            circle(x + 0.275, y - 0.19, 0.012),
            (0.95, 0.95, 0.95) if sum(colour) < 0.6 else (0.05, 0.05, 0.05),
            False,
            0,
        )

    return draw


def birds(colour: Rgb, rng: np.random.Generator) -> Draw:
    x0, y0 = 0.24 + 0.04 * rng.uniform(-1, 1), 0.34 + 0.04 * rng.uniform(-1, 1)
    flock = ((0.02, -0.14, 1.05), (-0.07, 0.13, 1.0), (0.29, 0.01, 1.25))

    def draw(canvas: Canvas, t: int) -> None:
        lift = math.cos(2 * math.pi * t / 8)
        for dx, dy, size in flock:
            x, y, s = x0 + dx + 0.024 * t, y0 + dy - 0.012 * lift, 0.11 * size
            near = union(
                capsule(x, y, x - 0.35 * s, y - 0.95 * s * lift, 0.32 * s, 0.20 * s),
                capsule(
                    x - 0.35 * s, y - 0.95 * s * lift, x - 0.75 * s, y - 1.25 * s * lift, 0.20 * s, 0.08 * s
                ),
            )
            body = union(
                ellipse(x, y, 0.75 * s, 0.27 * s),
                circle(x + 0.70 * s, y - 0.10 * s, 0.24 * s),
                capsule(x - 0.6 * s, y, x - 1.05 * s, y + 0.08 * s, 0.16 * s),
            )
            canvas.fill(body, colour)
            canvas.fill(near, scaled(colour, 0.80) if sum(colour) > 0.6 else (0.28, 0.28, 0.33))
            canvas.fill(
                capsule(x + 0.92 * s, y - 0.08 * s, x + 1.18 * s, y - 0.02 * s, 0.10 * s, 0.03 * s),
                (1.0, 0.62, 0.10),
                False,
                0,
            )

    return draw


def helicopter(colour: Rgb, rng: np.random.Generator) -> Draw:
    x0, y0 = 0.34 + 0.04 * rng.uniform(-1, 1), 0.38 + 0.04 * rng.uniform(-1, 1)

    def draw(canvas: Canvas, t: int) -> None:
        x, y = x0 + 0.024 * t, y0 - 0.010 * t + 0.015 * math.sin(2 * math.pi * t / 8)
        span = 0.27 * (0.35 + 0.65 * abs(math.cos(math.pi * t / 4)))
        steel = (0.25, 0.26, 0.30)
        canvas.fill(
            union(
                capsule(x - 0.12, y + 0.155, x + 0.13, y + 0.155, 0.012),
                capsule(x - 0.06, y + 0.08, x - 0.07, y + 0.155, 0.010),
                capsule(x + 0.05, y + 0.08, x + 0.07, y + 0.155, 0.010),
            ),
            steel,
            outline=False,
        )
        canvas.fill(
            union(
                capsule(x - 0.10, y - 0.01, x - 0.29, y - 0.045, 0.042, 0.020),
                capsule(x - 0.285, y - 0.04, x - 0.325, y - 0.125, 0.022, 0.016),
            ),
            colour,
        )
        canvas.fill(ellipse(x, y, 0.165, 0.105), colour)
        canvas.fill(np.maximum(ellipse(x + 0.065, y - 0.015, 0.095, 0.075), x + 0.045 - X), (0.70, 0.90, 1.0))
        canvas.fill(box(x, y - 0.125, 0.013, 0.03), steel, outline=False)
        canvas.fill(
            capsule(x - span, y - 0.155, x + span, y - 0.155, 0.014),
            (0.20, 0.20, 0.24),
            outline=False,
            shade=0,
        )
        turn = 2 * math.pi * t / 8
        dx, dy = 0.055 * math.cos(turn), 0.055 * math.sin(turn)
        canvas.fill(
            capsule(x - 0.325 - dx, y - 0.11 - dy, x - 0.325 + dx, y - 0.11 + dy, 0.011),
            (0.20, 0.20, 0.24),
            outline=False,
            shade=0,
        )

    return draw


def fireworks(colour: Rgb, rng: np.random.Generator) -> Draw:
    x0, y0 = 0.36 + 0.04 * rng.uniform(-1, 1), 0.28 + 0.03 * rng.uniform(-1, 1)
    bursts = ((x0, y0, 3, 16, 0.30), (x0 + 0.36, y0 + 0.10, -1, 12, 0.24))

    def draw(canvas: Canvas, t: int) -> None:
        for x, y, age0, rays, reach in bursts:
            age = (t + age0) / 16
            radius = reach * (1 - math.exp(-3.2 * max(age, 0.04)))
            bright = max(0.25, 1.15 - 0.75 * age)
            canvas.glow(circle(x, y, 0.02), colour, 0.05, 0.9 * math.exp(-6 * max(age, 0)))
            for share, size in ((1.0, 0.021), (0.62, 0.016), (0.30, 0.013)):
                angles = 2 * math.pi * (np.arange(rays) + 0.5 * (share == 0.62)) / rays
                px = x + share * radius * np.cos(angles)
                py = y + share * radius * np.sin(angles) + 0.10 * age * age
                d = np.hypot(X[..., None] - px, Y[..., None] - py).min(-1) - size
                canvas.glow(d, colour, 0.012, 0.45 * bright)
                canvas.blend(bright * coverage(d) * 0.95, mix(colour, (1.0, 1.0, 1.0), 0.35))

    return draw


def waterfall(colour: Rgb, rng: np.random.Generator) -> Draw:
    centre, half = 0.5 + 0.06 * rng.uniform(-1, 1), 0.15 + 0.02 * rng.uniform(-1, 1)
    rock = (0.44, 0.40, 0.38)

    def draw(canvas: Canvas, t: int) -> None:
        lip, pool = 0.20, 0.80
        edge = 0.02 * np.sin(Y * 21) + 0.015 * np.sin(Y * 43 + 1)
        cliffs = np.maximum(
            np.abs(X - 0.5) - 0.46 - edge, np.maximum(lip - 0.03 + 0.25 * edge - Y, Y - pool - 0.03)
        )
        canvas.fill(cliffs, rock)
        for x, y, r in (
            (0.13, 0.36, 0.09),
            (0.22, 0.58, 0.08),
            (0.10, 0.72, 0.07),
            (0.86, 0.33, 0.08),
            (0.80, 0.52, 0.09),
            (0.91, 0.68, 0.08),
            (0.28, 0.30, 0.05),
            (0.74, 0.72, 0.06),
        ):
            canvas.fill(ellipse(x, y, r, 0.72 * r), scaled(rock, 0.82 if x < 0.5 else 1.14))
        canvas.fill(below(pool), (0.16, 0.42, 0.62), shade=0.3)
        ripple = np.sin((np.hypot((X - centre), 3 * (Y - pool)) * 9 - t / 8) * 2 * math.pi)
        canvas.blend(np.clip(ripple - 0.35, 0, 1) * coverage(below(pool + 0.03)) * 0.6, (0.75, 0.90, 0.97))
        water = np.maximum(
            np.abs(X - centre) - half - 0.25 * edge * (lip + 0.06 < Y), np.maximum(lip - 0.05 - Y, Y - pool)
        )
        canvas.fill(water, (0.42, 0.72, 0.93), shade=0.3)
        # Streaks fall one period (a quarter of the picture) in 8 frames: each frame shows all there is.
        along, across = Y * 4 - t / 8, (X - centre) / half
        streak = np.sin(2 * math.pi * along + 2.6 * np.sin(across * 4.5)) + 0.7 * np.sin(
            across * 17 + 1.5 * np.sin(2 * math.pi * along)
        )
        canvas.blend(np.clip(0.9 * streak, 0, 1) * coverage(water), (0.96, 0.99, 1.0))
        for i in range(6):
            x = centre + (i - 2.5) * half * 0.45
            canvas.fill(
                circle(
                    x,
                    pool + 0.006 * math.sin(i * 2.0),
                    0.05 + 0.014 * math.sin(2 * math.pi * (t / 8 + i / 3)),
                ),
                (0.97, 0.99, 1.0),
                outline=False,
                shade=0.4,
            )

    return draw


def rain(colour: Rgb, rng: np.random.Generator) -> Draw:
    x0 = 0.32 + 0.05 * rng.uniform(-1, 1)
    drops = np.random.default_rng(3).uniform(0, 1, (26, 2))
    drops[:, 0] = (np.arange(26) * 0.381966 + rng.uniform()) % 1.0

    def draw(canvas: Canvas, t: int) -> None:
        for x, h in ((0.08, 0.10), (0.30, 0.07), (0.52, 0.11), (0.75, 0.07), (0.94, 0.10)):
            canvas.fill(ellipse(x, 0.0, 0.17, h), (0.34, 0.37, 0.43))
        x, step = x0 + 0.022 * t, math.sin(2 * math.pi * t / 8 + 0.8)
        dark = (0.20, 0.22, 0.32)
        canvas.fill(
            union(
                capsule(x, 0.72, x + 0.065 * step, 0.87, 0.028),
                capsule(x, 0.72, x - 0.065 * step, 0.87, 0.028),
            ),
            dark,
        )
        canvas.fill(capsule(x, 0.60, x, 0.73, 0.055), (0.80, 0.74, 0.62))
        canvas.fill(circle(x, 0.505, 0.048), (0.86, 0.66, 0.52))
        canvas.fill(capsule(x + 0.02, 0.62, x + 0.075, 0.60, 0.018), (0.80, 0.74, 0.62), outline=False)
        canvas.fill(capsule(x + 0.075, 0.40, x + 0.075, 0.62, 0.009), (0.25, 0.22, 0.22), outline=False)
        top = 0.43 - 0.01 * abs(step)
        canvas.fill(np.maximum(ellipse(x + 0.06, top, 0.21, 0.165), Y - top), colour)
        for dx, y0 in drops:
            y = (y0 + t / 16) % 1.0 * 1.1 - 0.05
            if not (abs(dx - x - 0.06) < 0.20 and y > top - 0.10):
                canvas.blend(0.85 * coverage(capsule(dx, y - 0.045, dx, y + 0.045, 0.011)), (0.80, 0.90, 1.0))
        for i in range(5):
            age = (t / 8 + i * 0.4) % 1.0
            ring = (
                np.abs(ellipse(0.1 + 0.2 * i, 0.90 + 0.04 * (i % 2), 0.02 + 0.05 * age, 0.008 + 0.018 * age))
                - 0.006
            )
            canvas.blend((0.8 - 0.6 * age) * coverage(ring), (0.85, 0.93, 1.0))

    return draw


def smile(colour: Rgb, rng: np.random.Generator) -> Draw:
    skin = ((0.96, 0.80, 0.68), (0.80, 0.58, 0.42), (0.50, 0.33, 0.23))[int(rng.integers(3))]
    x0, y0 = 0.5 + 0.03 * rng.uniform(-1, 1), 0.50

    def draw(canvas: Canvas, t: int) -> None:
        joy = 0.5 - 0.5 * math.cos(math.pi * min(t / 11, 1.0))
        x, y = x0 - 0.06 + 0.10 * joy, y0 + 0.02 - 0.05 * joy
        canvas.fill(
            box(x0, 1.0, 0.30, 0.16, 0.12), scaled(colour, 0.75) if sum(colour) > 0.6 else (0.55, 0.57, 0.65)
        )
        canvas.fill(union(ellipse(x, y - 0.03, 0.30, 0.34), box(x, y + 0.13, 0.28, 0.20, 0.10)), colour)
        canvas.fill(box(x * 0.5 + x0 * 0.5, y + 0.28, 0.075, 0.14, 0.04), scaled(skin, 0.86), outline=False)
        canvas.fill(ellipse(x, y + 0.02, 0.215, 0.27), skin)
        canvas.fill(
            np.maximum(ellipse(x, y - 0.10, 0.24, 0.18), Y - (y - 0.125) - 0.12 * (X - x)),
            colour,
            outline=False,
        )
        open_eye = 0.036 - 0.016 * joy
        for side in (-1, 1):
            ex = x + 0.088 * side
            canvas.fill(ellipse(ex, y - 0.02, 0.045, open_eye), (0.99, 0.99, 0.99), shade=0)
            canvas.fill(
                circle(ex, y - 0.02, min(0.024, open_eye)), (0.08, 0.10, 0.16), outline=False, shade=0
            )
            canvas.fill(
                capsule(ex - 0.04, y - 0.085 - 0.02 * joy, ex + 0.04, y - 0.085 - 0.02 * joy, 0.010),
                scaled(skin, 0.35),
                False,
                0,
            )
            canvas.blend(0.55 * joy * coverage(circle(x + 0.13 * side, y + 0.08, 0.045)), (0.97, 0.45, 0.42))
        canvas.fill(capsule(x + 0.005, y + 0.01, x + 0.018, y + 0.065, 0.012), scaled(skin, 0.80), False, 0)
        wide, sag = 0.065 + 0.065 * joy, 0.105 * joy
        line = y + 0.145 - 0.02 * joy
        lips = np.maximum(ellipse(x, line, wide, 0.014 + sag), (line - 0.012) - Y - 0.0 * X)
        canvas.fill(lips, (0.74, 0.13, 0.16), outline=False, shade=0)
        if joy > 0.15:
            canvas.fill(
                np.maximum(ellipse(x, line, wide * 0.86, sag * 0.55), line - Y),
                (0.99, 0.99, 0.98),
                outline=False,
                shade=0,
            )

    return draw


def guitar(colour: Rgb, rng: np.random.Generator) -> Draw:
    x0 = 0.48 + 0.03 * rng.uniform(-1, 1)
    shirt = ((0.93, 0.92, 0.90), (0.22, 0.30, 0.52), (0.55, 0.58, 0.62))[int(rng.integers(3))]
    skin, hair = (0.93, 0.74, 0.60), (0.24, 0.15, 0.10)

    def draw(canvas: Canvas, t: int) -> None:
        beat = math.sin(2 * math.pi * t / 8)
        x, y = x0 + 0.035 * beat, 0.62
        canvas.fill(box(x0 + 0.01 * beat, 0.96, 0.15, 0.16, 0.06), (0.18, 0.22, 0.36))
        canvas.fill(box(x, y + 0.07, 0.155, 0.19, 0.09), shirt)
        hx, hy = x + 0.01 * beat, y - 0.26 + 0.022 * abs(beat)
        canvas.fill(box(x, y - 0.14, 0.04, 0.05), scaled(skin, 0.85), outline=False)
        canvas.fill(circle(hx, hy, 0.105), skin)
        canvas.fill(np.maximum(circle(hx, hy - 0.012, 0.115), Y - hy + 0.025), hair)
        canvas.fill(
            union(circle(hx - 0.038, hy + 0.015, 0.013), circle(hx + 0.038, hy + 0.015, 0.013)),
            (0.08, 0.08, 0.10),
            False,
            0,
        )
        canvas.fill(capsule(hx - 0.03, hy + 0.06, hx + 0.03, hy + 0.06, 0.009), (0.70, 0.22, 0.20), False, 0)
        gx, gy = x - 0.03, y + 0.12
        nx, ny = gx + 0.40, gy - 0.20 - 0.03 * beat
        canvas.fill(capsule(gx, gy, nx, ny, 0.020), (0.42, 0.26, 0.14))
        canvas.fill(capsule(nx, ny, nx + 0.05, ny - 0.025, 0.032), (0.20, 0.14, 0.10))
        canvas.fill(union(circle(gx - 0.06, gy + 0.03, 0.115), circle(gx + 0.075, gy - 0.035, 0.085)), colour)
        canvas.fill(
            circle(gx + 0.015, gy - 0.005, 0.036),
            (0.10, 0.07, 0.06) if sum(colour) > 0.6 else (0.75, 0.70, 0.60),
            outline=False,
            shade=0,
        )
        canvas.fill(
            union(
                capsule(x + 0.14, y - 0.03, nx - 0.10, ny + 0.13, 0.038),
                capsule(nx - 0.10, ny + 0.13, nx - 0.11, ny + 0.055, 0.032),
            ),
            scaled(shirt, 0.88),
        )
        canvas.fill(circle(nx - 0.11, ny + 0.05, 0.036), skin)
        px, py = gx + 0.015 + 0.02 * beat, gy + 0.085 * beat
        canvas.fill(
            union(
                capsule(x - 0.14, y - 0.02, x - 0.20, y + 0.13, 0.042),
                capsule(x - 0.20, y + 0.13, px - 0.04, py, 0.036),
            ),
            scaled(shirt, 0.88),
        )
        canvas.fill(circle(px, py, 0.040), skin)

    return draw


ACTIONS: dict[str, Callable[[Rgb, np.random.Generator], Draw]] = {
    "waterfall": waterfall, "smile": smile, "fireworks": fireworks, "horse": horse,
    "guitar": guitar, "birds": birds, "helicopter": helicopter, "rain": rain,
}  # fmt: skip


def render(scene: Scene, frames: int = FRAMES) -> Array:
    """The clip of a scene: uint8 [frames, 64, 64, 3]. The same scene always gives the same pixels."""
    rng = np.random.default_rng(scene.seed)
    place = background(scene, rng)
    draw = ACTIONS[scene.category](COLOURS[scene.colour], rng)
    clip = np.empty((frames, SIZE, SIZE, 3), np.uint8)
    for t in range(frames):
        canvas = Canvas(scene.style, place.image)
        draw(canvas, t)
        clip[t] = canvas.finished()
    return clip


def random_scenes(count: int, seed: int) -> list[Scene]:
    """Random scenes, categories and styles in turn."""
    rng = np.random.default_rng(seed)
    return [random_scene(rng, CATEGORIES[i % 8], STYLES[i // 8 % 4]) for i in range(count)]


def main() -> None:
    from PIL import Image

    from huvidpo.files import make_folder
    from preferences.thumbnails import tile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    make_folder(args.out)
    rng = np.random.default_rng(0)
    scenes = [[render(random_scene(rng, c, s), 1)[0] for s in STYLES for _ in range(2)] for c in CATEGORIES]
    motion = [list(render(random_scene(rng, c, STYLES[i % 4]))[::2]) for i, c in enumerate(CATEGORIES)]
    for name, sheet in (("scenes", scenes), ("motion", motion)):
        picture = Image.fromarray(tile(sheet))
        picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(
            args.out / f"{name}.png"
        )


if __name__ == "__main__":
    main()
