"""The backgrounds of the second world: sky, light, horizon and ground of a place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tiny.second.shapes import Array, Canvas, Grid, Rgb, both, mix, scaled, union


@dataclass(frozen=True)
class Place:
    """Sky colours (top, horizon), ground colour, and what stands there."""

    sky: tuple[Rgb, Rgb]
    ground: Rgb
    feature: str  # trees | pines | dunes | sea | skyline | peaks | craters | hills
    light: str  # sun | moon | clouds | none


PLACES: dict[str, Place] = {
    "meadow": Place(((0.35, 0.62, 0.95), (0.78, 0.90, 1.0)), (0.33, 0.66, 0.22), "hills", "clouds"),
    "forest": Place(((0.50, 0.72, 0.88), (0.80, 0.92, 0.90)), (0.20, 0.45, 0.17), "trees", "none"),
    "desert": Place(((0.45, 0.70, 0.95), (0.98, 0.90, 0.72)), (0.90, 0.72, 0.38), "dunes", "sun"),
    "sea": Place(((0.25, 0.58, 0.95), (0.75, 0.92, 1.0)), (0.93, 0.84, 0.60), "sea", "clouds"),
    "snow": Place(((0.66, 0.76, 0.90), (0.88, 0.92, 0.97)), (0.93, 0.95, 0.99), "pines", "none"),
    "city": Place(((0.60, 0.68, 0.80), (0.90, 0.86, 0.80)), (0.42, 0.43, 0.47), "skyline", "none"),
    "mountains": Place(((0.30, 0.52, 0.85), (0.78, 0.86, 0.95)), (0.38, 0.56, 0.27), "peaks", "clouds"),
    "mars": Place(((0.62, 0.36, 0.24), (0.93, 0.70, 0.50)), (0.72, 0.30, 0.14), "craters", "none"),
    "sunset": Place(((0.42, 0.20, 0.48), (1.0, 0.58, 0.22)), (0.24, 0.15, 0.16), "hills", "sun"),
    "night": Place(((0.02, 0.03, 0.14), (0.13, 0.15, 0.36)), (0.08, 0.13, 0.12), "hills", "moon"),
    "pink": Place(((0.98, 0.42, 0.66), (1.0, 0.80, 0.84)), (0.52, 0.30, 0.50), "hills", "clouds"),
}


@dataclass(frozen=True)
class Scenery:
    """One background, drawn the same through any camera."""

    style: str
    top: Rgb
    bottom: Rgb
    ground: Rgb
    feature: str
    light: str
    dark: bool
    horizon: float
    phase: float
    """0..2 pi: the shape of the horizon."""
    spots: Array
    """[24, 2], 0..1: where stars, clouds, trees and craters are."""

    def draw(self, size: int, camera: Grid) -> Canvas:
        canvas = Canvas(self.style, size)
        t = np.clip(camera.y / self.horizon, 0, 1)
        if self.style in ("cartoon", "pixel-art"):
            t = np.floor(t * 4) / 3  # flat bands of colour
        top, bottom = np.asarray(self.top), np.asarray(self.bottom)
        canvas.image[:] = top + np.clip(t, 0, 1)[..., None] * (bottom - top)
        if self.dark:
            for x, y in self.spots * (1.3, self.horizon * 0.9) - (0.15, 0.0):
                canvas.blend(0.8 * canvas.cover(camera.circle(x, y, 0.009)), (1.0, 1.0, 0.95))
        self._light(canvas, camera)
        self._horizon(canvas, camera)
        canvas.subject[:] = 0
        return canvas

    def _light(self, canvas: Canvas, g: Grid) -> None:
        x, y = 0.15 + 0.7 * self.spots[0, 0], 0.10 + 0.08 * self.spots[0, 1]
        if self.light == "sun":
            canvas.glow(g.circle(x, y + 0.06, 0.07), (1.0, 0.8, 0.4), 0.06, 0.35)
            canvas.dot(g.circle(x, y + 0.06, 0.075), (1.0, 0.93, 0.55))
        elif self.light == "moon":
            canvas.fill(g.circle(x, y, 0.075), (0.96, 0.95, 0.82), outline=False)
            canvas.blend(0.5 * canvas.cover(g.circle(x + 0.02, y - 0.015, 0.018)), (0.75, 0.74, 0.66))
        elif self.light == "clouds":
            for i in range(1 + int(self.spots[1, 0] * 3)):
                cx, cy = (x + 0.42 * i) % 1.0, y + 0.05 * (i % 2)
                k = 0.8 + 0.5 * self.spots[2 + i, 0]
                puff = union(
                    g.ellipse(cx, cy, 0.10 * k, 0.035 * k),
                    g.circle(cx - 0.03 * k, cy - 0.02 * k, 0.04 * k),
                    g.circle(cx + 0.04 * k, cy - 0.015 * k, 0.035 * k),
                )
                canvas.fill(puff, (0.98, 0.98, 1.0))

    def _horizon(self, canvas: Canvas, g: Grid) -> None:
        horizon, phase, feature = self.horizon, self.phase, self.feature
        dim = 0.35 if self.dark else 1.0
        roll = 0.018 * np.sin(g.x * 7 + phase) + 0.01 * np.sin(g.x * 15 + 2 * phase)
        far_roll = 0.03 * np.sin(g.x * 5 - phase) + 0.012 * np.sin(g.x * 13 + phase)
        if feature == "peaks":
            saw = np.abs(((g.x * 2.2 + phase) % 1.0) - 0.5) * 2
            ridge = horizon - 0.30 * saw * (0.75 + 0.25 * np.sin(g.x * 5 + phase)) - 0.03
            canvas.fill(g.below(ridge), scaled((0.46, 0.50, 0.60), dim))
            snow = canvas.cover(g.below(ridge)) * np.clip((horizon - 0.20 - g.y) * 30, 0, 1)
            canvas.blend(snow, scaled((0.97, 0.98, 1.0), dim))
        elif feature == "skyline":
            for i in range(-1, 10):
                x, height = (i + 0.5) / 8 + 0.02 * np.sin(phase + i), 0.18 + 0.2 * self.spots[i + 2, 1]
                shade = 0.65 + 0.15 * (i % 2)
                wall = g.box(x, horizon - height / 2 + 0.1, 0.058, height / 2 + 0.1)
                canvas.fill(wall, scaled((0.62, 0.66, 0.80), shade * dim))
                for wy in range(3):
                    y = horizon - height + 0.06 + wy * 0.07
                    lamps = union(*(g.box(x + dx, y, 0.011, 0.014) for dx in (-0.025, 0.025)))
                    canvas.dot(lamps, (1.0, 0.86, 0.42))
        elif feature in ("trees", "pines"):
            leaf = (0.13, 0.36, 0.14) if feature == "trees" else (0.42, 0.56, 0.55)
            for i in range(-1, 8):
                x = (i + 0.5) / 7 + 0.05 * (self.spots[i + 1, 0] - 0.5)
                h = 0.15 + 0.12 * self.spots[i + 1, 1]
                if feature == "trees":
                    canvas.fill(
                        g.box(x, horizon, 0.012, 0.08), scaled((0.36, 0.24, 0.14), dim), outline=False
                    )
                    crown = union(
                        g.circle(x, horizon - h * 0.6, 0.075), g.circle(x, horizon - h * 0.95, 0.05)
                    )
                    canvas.fill(crown, scaled(leaf, dim))
                else:
                    cone = (np.abs(g.x - x) - (g.y - horizon + h) * 0.42) * g.scale
                    canvas.fill(both(cone, g.above(horizon + 0.02)) * 0.8, scaled(leaf, dim))
        elif feature in ("hills", "craters", "dunes"):
            canvas.fill(g.below(horizon - 0.07 + far_roll), mix(self.ground, self.bottom, 0.35))
        uneven = feature in ("hills", "dunes", "craters", "pines")
        canvas.fill(g.below(horizon + roll * uneven), self.ground, shade=0.6)
        if feature == "sea":
            water = both(g.below(horizon - 0.02), g.above(horizon + 0.13))
            canvas.fill(water, scaled((0.10, 0.42, 0.72), dim))
            crest = np.abs(((g.y - horizon) * 22 + 0.35 * np.sin(g.x * 25 + phase)) % 1 - 0.5) < 0.13
            foam = crest * (horizon < g.y) * (horizon + 0.12 > g.y)
            canvas.blend(0.35 * dim * foam, (0.9, 0.97, 1.0))
        if feature == "craters":
            for (sx, sy), r in zip(self.spots[5:9], (0.07, 0.05, 0.09, 0.06), strict=True):
                hole = g.ellipse(1.2 * sx - 0.1, horizon + 0.08 + 0.2 * sy, r, r * 0.35)
                canvas.fill(hole, scaled(self.ground, 0.68), outline=False)
        if self.style == "realistic":
            grain = 0.10 * g.noise(16, 1) + 0.08 * g.noise(32, 2)
            canvas.image *= 1 + (canvas.cover(g.below(horizon)) * grain)[..., None]


def scenery(category: str, style: str, place: str, rng: np.random.Generator) -> Scenery:
    """The background of a clip. Fireworks turn any place to night, rain greys it."""
    where = PLACES[place]
    tint = rng.uniform(0.93, 1.07, 3)
    top, bottom = (_clipped(np.asarray(c) * tint) for c in where.sky)
    ground = _clipped(np.asarray(where.ground) * rng.uniform(0.93, 1.07, 3))
    light = where.light
    if category == "fireworks":
        top, bottom = (0.02, 0.02, 0.10), mix((0.08, 0.08, 0.24), bottom, 0.18)
        ground, light = scaled(ground, 0.30), "none"
    if category == "rain":
        top, bottom = (mix(c, (0.38, 0.44, 0.54), 0.6) if sum(c) > 0.8 else c for c in (top, bottom))
        ground, light = scaled(ground, 0.8), "none"
    return Scenery(
        style, top, bottom, ground, where.feature, light,
        dark=place == "night" or category == "fireworks",
        horizon=0.66 + 0.05 * rng.uniform(-1, 1), phase=rng.uniform(0, 6.28),
        spots=rng.uniform(0, 1, (24, 2)),
    )  # fmt: skip


def _clipped(colour: Array) -> Rgb:
    r, g, b = np.clip(colour, 0, 1).tolist()
    return r, g, b
