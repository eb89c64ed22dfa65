"""What moves in the second world: eight kinds of subject, each of several looks.

An action draws a subject at cycle time t (frames) with `way` frames travelled since the clip began. Every
motion can be read from one frame: where a pose comes twice in a cycle, something else - a trailing wing tip,
a shifted hand - says whether it rises or falls. All that will come is there: streaks leave below and come
back above, fireworks burst anew where they burst before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tiny.second.shapes import Array, Canvas, Grid, Point, Rgb, both, dark, mix, scaled, shadow, union, wave

Draw = Callable[[Canvas, Grid, float, float], None]
Rng = np.random.Generator

STRIDE = 0.0075  # of the subject's unit, per frame: 48 frames are a third of the picture
SKINS: tuple[Rgb, ...] = ((0.96, 0.80, 0.68), (0.87, 0.67, 0.52), (0.72, 0.50, 0.35), (0.50, 0.33, 0.23))
HAIRS: tuple[Rgb, ...] = ((0.24, 0.15, 0.10), (0.10, 0.09, 0.10), (0.75, 0.55, 0.25), (0.55, 0.27, 0.12))
CLOTHES: tuple[Rgb, ...] = (
    (0.93, 0.92, 0.90), (0.22, 0.30, 0.52), (0.55, 0.58, 0.62), (0.72, 0.25, 0.25), (0.25, 0.48, 0.36),
)  # fmt: skip
STEEL: Rgb = (0.25, 0.26, 0.30)
WHITE: Rgb = (0.97, 0.98, 1.0)


def one_of(rng: Rng, options: tuple) -> Rgb:
    return options[int(rng.integers(len(options)))]


def horse(colour: Rgb, rng: Rng) -> Draw:
    mane = shadow(colour, 0.45)
    pony, patches, socks, saddle = rng.random(4) < (0.3, 0.3, 0.4, 0.3)
    reach, tail = (0.095 if pony else 0.125), rng.uniform(0.8, 1.4)
    cloth = one_of(rng, CLOTHES)

    def leg(g: Grid, hip: Point, swing: float, fold: float) -> tuple[Array, Array]:
        """The leg, and its foot."""
        knee = (hip[0] + reach * math.sin(swing), hip[1] + reach * math.cos(swing))
        shin = swing - fold
        foot = (knee[0] + reach * math.sin(shin), knee[1] + reach * math.cos(shin))
        whole = union(g.capsule(hip, knee, 0.036, 0.024), g.capsule(knee, foot, 0.022, 0.019))
        return whole, g.circle(*foot, 0.024)

    def draw(canvas: Canvas, g: Grid, t: float, way: float) -> None:
        phase = 2 * math.pi * t / 8
        x, y = 0.36 + STRIDE * way, 0.60 - 0.028 * math.sin(phase) + (0.06 if pony else 0)
        lags = (0.0, 0.7, 2.6, 3.3)
        hips = ((x + 0.115, y + 0.03), (x + 0.095, y + 0.03), (x - 0.145, y + 0.02), (x - 0.125, y + 0.03))
        legs = [
            leg(g, hip, 0.95 * math.cos(phase - lag), 0.45 + 0.75 * max(0.0, math.sin(phase - lag)))
            for hip, lag in zip(hips, lags, strict=True)
        ]
        canvas.fill(union(legs[1][0], legs[3][0]), shadow(colour, 0.66))
        swish = 0.05 + 0.035 * math.cos(phase - 0.8)
        canvas.fill(
            g.capsule((x - 0.18, y - 0.03), (x - 0.18 - 0.11 * tail, y + swish * tail), 0.03, 0.014), mane
        )
        body = union(
            g.ellipse(x - 0.02, y, 0.19, 0.10 if pony else 0.085),
            g.capsule((x + 0.12, y - 0.03), (x + 0.24, y - 0.19), 0.075, 0.045),
            g.capsule((x + 0.255, y - 0.20), (x + 0.335, y - 0.13), 0.045, 0.03),
            g.capsule((x + 0.235, y - 0.22), (x + 0.225, y - 0.265), 0.018, 0.008),
        )
        canvas.fill(union(body, legs[0][0], legs[2][0]), colour)
        if patches:
            spots = union(
                g.ellipse(x - 0.10, y - 0.02, 0.06, 0.045), g.ellipse(x + 0.06, y + 0.01, 0.045, 0.05)
            )
            canvas.fill(both(spots, body), shadow(colour, 0.6), outline=False)
        if socks:
            canvas.dot(union(legs[0][1], legs[2][1]), WHITE if not sum(colour) > 2.4 else (0.3, 0.3, 0.33))
        if saddle:
            canvas.fill(both(g.box(x - 0.02, y - 0.06, 0.055, 0.06, 0.02), body), cloth, outline=False)
        canvas.fill(g.capsule((x + 0.09, y - 0.09), (x + 0.205, y - 0.235), 0.022), mane, outline=False)
        canvas.dot(g.circle(x + 0.275, y - 0.19, 0.012), WHITE if dark(colour) else (0.05, 0.05, 0.05))

    return draw


def birds(colour: Rgb, rng: Rng) -> Draw:
    flock = (
        (0.02, -0.14, 1.05),
        (-0.07, 0.13, 1.0),
        (0.29, 0.01, 1.25),
        (0.22, 0.20, 0.9),
        (0.27, -0.2, 0.85),
    )
    shown = [flock[i] for i in rng.permutation(5)[: int(rng.integers(2, 6))]]
    middle = (min(s[0] for s in shown) + max(s[0] for s in shown)) / 2
    span, beak = rng.uniform(0.85, 1.25), rng.uniform(0.7, 1.4)
    beak_colour = one_of(rng, ((1.0, 0.62, 0.10), (0.95, 0.85, 0.2), (0.2, 0.2, 0.22)))
    wing, band = shadow(colour, 0.78), bool(rng.random() < 0.35)

    def draw(canvas: Canvas, g: Grid, t: float, way: float) -> None:
        lift, tip = math.cos(2 * math.pi * t / 8), math.cos(2 * math.pi * (t - 1.1) / 8)
        for dx, dy, size in shown:
            x, y, s = 0.37 + dx - middle + STRIDE * way, 0.36 + dy - 0.012 * lift, 0.11 * size
            elbow = (x - 0.35 * s, y - 0.95 * s * lift * span)
            hand = (x - 0.75 * s, y - (0.75 * lift + 0.5 * tip) * s * span)
            body = union(
                g.ellipse(x, y, 0.75 * s, 0.27 * s),
                g.circle(x + 0.70 * s, y - 0.10 * s, 0.24 * s),
                g.capsule((x - 0.6 * s, y), (x - 1.05 * s, y + 0.08 * s), 0.16 * s),
            )
            canvas.fill(body, colour)
            if band:
                canvas.fill(both(g.circle(x + 0.7 * s, y - 0.1 * s, 0.3 * s), body), wing, outline=False)
            arms = union(
                g.capsule((x, y), elbow, 0.32 * s, 0.20 * s), g.capsule(elbow, hand, 0.20 * s, 0.08 * s)
            )
            canvas.fill(arms, wing)
            point = (x + (0.92 + 0.26 * beak) * s, y - 0.02 * s)
            canvas.dot(g.capsule((x + 0.92 * s, y - 0.08 * s), point, 0.10 * s, 0.03 * s), beak_colour)

    return draw


def helicopter(colour: Rgb, rng: Rng) -> Draw:
    wheels, stripe = rng.random(2) < (0.35, 0.45)
    long, tall = rng.uniform(0.85, 1.2), rng.uniform(0.9, 1.15)
    band, blade = one_of(rng, (WHITE, (0.95, 0.8, 0.2), (0.2, 0.2, 0.25))), (0.20, 0.20, 0.24)

    def draw(canvas: Canvas, g: Grid, t: float, way: float) -> None:
        x = 0.38 + STRIDE * way
        y = 0.40 - 0.003 * way + 0.015 * wave(t)
        span = 0.27 * (0.35 + 0.65 * abs(math.cos(math.pi * t / 4)))
        if wheels:
            canvas.fill(
                union(g.circle(x - 0.06, y + 0.12, 0.032), g.circle(x + 0.07, y + 0.12, 0.032)), STEEL
            )
        else:
            skids = union(
                g.capsule((x - 0.12, y + 0.155), (x + 0.13, y + 0.155), 0.012),
                g.capsule((x - 0.06, y + 0.08), (x - 0.07, y + 0.155), 0.010),
                g.capsule((x + 0.05, y + 0.08), (x + 0.07, y + 0.155), 0.010),
            )
            canvas.fill(skids, STEEL, outline=False)
        end = x - 0.29 * long
        beam = g.capsule((x - 0.10, y - 0.01), (end, y - 0.045), 0.042, 0.020)
        canvas.fill(union(beam, g.capsule((end, y - 0.04), (end - 0.035, y - 0.125), 0.022, 0.016)), colour)
        cabin = g.ellipse(x, y, 0.165, 0.105 * tall)
        canvas.fill(cabin, colour)
        if stripe:
            canvas.fill(both(g.box(x - 0.03, y + 0.035, 0.2, 0.016), cabin), band, outline=False)
        glass = both(g.ellipse(x + 0.065, y - 0.015, 0.095, 0.075 * tall), g.right_of(x + 0.045))
        canvas.fill(glass, (0.70, 0.90, 1.0))
        top = y - 0.105 * tall - 0.05
        canvas.fill(g.box(x, top + 0.03, 0.013, 0.03), STEEL, outline=False)
        canvas.dot(g.capsule((x - span, top), (x + span, top), 0.014), blade)
        turn = 2 * math.pi * t / 8
        dx, dy = 0.055 * math.cos(turn), 0.055 * math.sin(turn)
        hub = (end - 0.035, y - 0.11)
        canvas.dot(g.capsule((hub[0] - dx, hub[1] - dy), (hub[0] + dx, hub[1] + dy), 0.011), blade)

    return draw


def fireworks(colour: Rgb, rng: Rng) -> Draw:
    period = 24.0
    core = one_of(rng, ((1.0, 0.95, 0.8), colour, colour))
    willow = 0.16 if rng.random() < 0.35 else 0.10
    places = ((0.32, 0.28, 0.30), (0.70, 0.38, 0.24), (0.52, 0.20, 0.20))
    count = int(rng.integers(2, 4))
    bursts = [(*places[i], i * period / count, int(rng.integers(10, 18))) for i in range(count)]
    shares = ((1.0, 0.021), (0.62, 0.016), (0.30, 0.013))[: int(rng.integers(2, 4))]

    def draw(canvas: Canvas, g: Grid, t: float, way: float) -> None:
        for x, y, reach, start, rays in bursts:
            age = ((t + start) % period) / period * 1.4
            radius = reach * (1 - math.exp(-3.2 * age)) + 0.01
            bright = min(1.0, 1.2 * (1 - age / 1.4) ** 0.7)
            canvas.glow(g.circle(x, y, 0.02), colour, 0.05, 0.9 * math.exp(-6 * age))
            for share, size in shares:
                angles = 2 * math.pi * (np.arange(rays) + 0.5 * (share == 0.62)) / rays
                px = x + share * radius * np.cos(angles)
                py = y + share * radius * np.sin(angles) + willow * age * age
                d = (np.hypot(g.x[..., None] - px, g.y[..., None] - py).min(-1) - size) * g.scale
                canvas.glow(d, colour, 0.012, 0.45 * bright)
                alpha = bright * canvas.cover(d) * 0.95
                canvas.blend(alpha, mix(core, WHITE, 0.35))
                np.maximum(canvas.subject, alpha, out=canvas.subject)

    return draw


def waterfall(colour: Rgb, rng: Rng) -> Draw:
    rock = one_of(rng, ((0.44, 0.40, 0.38), (0.52, 0.42, 0.34), (0.36, 0.40, 0.42)))
    half, lip, twin = rng.uniform(0.10, 0.17), rng.uniform(0.12, 0.30), bool(rng.random() < 0.3)
    falls = (0.33, 0.67) if twin else (0.5 + 0.08 * rng.uniform(-1, 1),)
    half = 0.7 * half if twin else half
    stones = rng.uniform(0, 1, (8, 3))
    moss, pool = bool(rng.random() < 0.4), 0.80

    def draw(canvas: Canvas, g: Grid, t: float, way: float) -> None:
        edge = 0.02 * np.sin(g.y * 21) + 0.015 * np.sin(g.y * 43 + 1)
        sides = (np.abs(g.x - 0.5) - 0.46 - edge) * g.scale
        cliffs = both(sides, g.above(pool + 0.03), g.below(lip - 0.03 + 0.25 * edge))
        canvas.fill(cliffs, rock)
        for i, (sx, sy, sr) in enumerate(stones):
            x, r = (0.08 + 0.2 * sx if i % 2 else 0.72 + 0.2 * sx), 0.05 + 0.05 * sr
            spot = g.ellipse(x, lip + 0.1 + (0.62 - lip) * sy, r, 0.72 * r)
            canvas.fill(both(spot, cliffs), scaled(rock, 0.82 if i % 2 else 1.14))
        if moss:
            canvas.fill(both(cliffs, g.above(lip + 0.02 + 0.6 * edge)), (0.25, 0.50, 0.20), outline=False)
        canvas.fill(g.below(pool), (0.16, 0.42, 0.62), shade=0.3)
        for centre in falls:
            spread = np.hypot(g.x - centre, 3 * (g.y - pool)) * 9 - t / 8
            ripple = np.clip(np.sin(spread * 2 * math.pi) - 0.35, 0, 1)
            canvas.blend(ripple * canvas.cover(g.below(pool + 0.03)) * 0.6, (0.75, 0.90, 0.97))
        for centre in falls:
            fall(canvas, g, centre, edge, t)

    def fall(canvas: Canvas, g: Grid, centre: float, edge: Array, t: float) -> None:
        sides = (np.abs(g.x - centre) - half - 0.25 * edge * (lip + 0.06 < g.y)) * g.scale
        water = both(sides, g.below(lip - 0.05), g.above(pool))
        canvas.fill(water, (0.42, 0.72, 0.93), shade=0.3)
        # Streaks fall one period (a quarter of the picture) in 8 frames: each frame shows all there is.
        along, across = g.y * 4 - t / 8, (g.x - centre) / half
        streak = np.sin(2 * math.pi * along + 2.6 * np.sin(across * 4.5))
        streak = streak + 0.7 * np.sin(across * 17 + 1.5 * np.sin(2 * math.pi * along))
        canvas.blend(np.clip(0.9 * streak, 0, 1) * canvas.cover(water), (0.96, 0.99, 1.0))
        for i in range(6):
            at = (centre + (i - 2.5) * half * 0.45, pool + 0.006 * math.sin(i * 2.0))
            foam = g.circle(*at, 0.05 + 0.014 * wave(t, 8, -2 * math.pi * i / 3))
            canvas.fill(foam, WHITE, outline=False, shade=0.4)

    return draw


def rain(colour: Rgb, rng: Rng) -> Draw:
    coat, trousers = one_of(rng, ((0.80, 0.74, 0.62), *CLOTHES)), (0.20, 0.22, 0.32)
    skin, hair = one_of(rng, SKINS), one_of(rng, HAIRS)
    skirt, stripes, flat = rng.random(3) < (0.4, 0.35, 0.3)
    drops = np.stack([(np.arange(26) * 0.381966 + rng.uniform()) % 1.0, rng.uniform(0, 1, 26)], 1)
    drops = drops[: int(rng.integers(18, 27))]
    high = 0.12 if flat else 0.165

    def draw(canvas: Canvas, g: Grid, t: float, way: float) -> None:
        x, step, bob = 0.34 + 0.8 * STRIDE * way, wave(t), 0.008 * math.cos(2 * math.pi * t / 8)
        for side, shade in ((-1, 0.6), (1, 1.0)):  # the far leg is darker: which one swings can be seen
            canvas.fill(g.capsule((x, 0.72), (x + 0.065 * step * side, 0.87), 0.028), scaled(trousers, shade))
        body = g.capsule((x, 0.60 + bob), (x, 0.73), 0.055)
        canvas.fill(union(body, g.capsule((x, 0.66), (x, 0.76), 0.05, 0.085)) if skirt else body, coat)
        canvas.fill(g.circle(x, 0.505 + bob, 0.048), skin)
        canvas.fill(both(g.circle(x - 0.006, 0.498 + bob, 0.054), g.above(0.50 + bob)), hair, outline=False)
        hand = (x + 0.075, 0.60 + bob)
        canvas.fill(g.capsule((x + 0.02, 0.62 + bob), hand, 0.018), scaled(coat, 0.9), outline=False)
        top = 0.43 + bob
        canvas.fill(g.capsule((x + 0.075, top - 0.03), hand, 0.009), (0.25, 0.22, 0.22), outline=False)
        roof = both(g.ellipse(x + 0.06, top, 0.21, high), g.above(top))
        canvas.fill(roof, colour)
        if stripes:
            ribs = union(g.ellipse(x + 0.06, top, 0.05, high), g.box(x + 0.19, top - 0.06, 0.02, 0.06))
            canvas.fill(both(ribs, roof), shadow(colour, 0.7), outline=False)
        for dx, y0 in drops:
            y = (y0 + t / 16) % 1.0 * 1.2 - 0.1
            if not (abs(dx - x - 0.06) < 0.20 and y > top - 0.10):
                streak = g.capsule((dx, y - 0.045), (dx, y + 0.045), 0.011)
                canvas.blend(0.85 * canvas.cover(streak), (0.80, 0.90, 1.0))
        for i in range(5):
            age = (t / 8 + i * 0.4) % 1.0
            splash = g.ellipse(0.1 + 0.2 * i, 0.90 + 0.04 * (i % 2), 0.02 + 0.05 * age, 0.008 + 0.018 * age)
            canvas.blend((0.8 - 0.8 * age) * canvas.cover(np.abs(splash) - 0.006), (0.85, 0.93, 1.0))

    return draw


def smile(colour: Rgb, rng: Rng) -> Draw:
    skin, shirt = one_of(rng, SKINS), one_of(rng, CLOTHES)
    cut = int(rng.integers(3))  # long, short, a bun on top
    glasses, beard, earrings = rng.random(3) < (0.25, 0.2 * (cut == 1), 0.3)
    iris = one_of(rng, ((0.08, 0.10, 0.16), (0.20, 0.38, 0.60), (0.24, 0.42, 0.22)))
    ink = scaled(skin, 0.35)

    def draw(canvas: Canvas, g: Grid, t: float, way: float) -> None:
        turn = 2 * math.pi * t / 24
        joy = 0.5 - 0.5 * math.cos(turn)
        x, y = 0.5 + 0.045 * math.sin(turn), 0.52 - 0.04 * joy  # to the right of the shoulders: joy grows
        canvas.fill(g.box(0.5, 1.0, 0.30, 0.16, 0.12), shirt)
        mop = g.ellipse(x, y - 0.03, 0.27 if cut == 1 else 0.30, 0.31 if cut == 1 else 0.34)
        if cut == 0:
            mop = union(mop, g.box(x, y + 0.13, 0.28, 0.20, 0.10))
        if cut == 2:
            mop = union(mop, g.circle(x, y - 0.38, 0.09))
        canvas.fill(mop, colour)
        canvas.fill(g.box(x * 0.5 + 0.25, y + 0.28, 0.075, 0.14, 0.04), scaled(skin, 0.86), outline=False)
        face = g.ellipse(x, y + 0.02, 0.215, 0.27)
        canvas.fill(face, skin)
        if beard:
            canvas.fill(both(face, g.below(y + 0.10)), colour, outline=False)
        if earrings:
            canvas.dot(union(*(g.circle(x + 0.215 * k, y + 0.10, 0.02) for k in (-1, 1))), (0.98, 0.82, 0.25))
        canvas.fill(
            both(g.ellipse(x, y - 0.10, 0.24, 0.18), g.above(y - 0.125 + 0.12 * (g.x - x))), colour, False
        )
        open_eye = 0.036 - 0.016 * joy
        for side in (-1, 1):
            ex = x + 0.088 * side
            canvas.fill(g.ellipse(ex, y - 0.02, 0.045, open_eye), WHITE, shade=0)
            canvas.dot(g.circle(ex, y - 0.02, min(0.024, open_eye)), iris)
            brow = y - 0.085 - 0.02 * joy
            canvas.dot(g.capsule((ex - 0.04, brow), (ex + 0.04, brow), 0.010), ink)
            if glasses:
                canvas.dot(np.abs(g.circle(ex, y - 0.02, 0.062)) - 0.008, (0.12, 0.12, 0.15))
            canvas.blend(
                0.55 * joy * canvas.cover(g.circle(x + 0.13 * side, y + 0.08, 0.045)), (0.97, 0.45, 0.42)
            )
        canvas.dot(g.capsule((x + 0.005, y + 0.01), (x + 0.018, y + 0.065), 0.012), scaled(skin, 0.80))
        wide, sag, line = 0.065 + 0.065 * joy, 0.105 * joy, y + 0.145 - 0.02 * joy
        canvas.dot(both(g.ellipse(x, line, wide, 0.014 + sag), g.below(line - 0.012)), (0.74, 0.13, 0.16))
        if joy > 0.15:
            canvas.dot(both(g.ellipse(x, line, wide * 0.86, sag * 0.55), g.below(line)), WHITE)

    return draw


def guitar(colour: Rgb, rng: Rng) -> Draw:
    shirt, skin, hair = one_of(rng, CLOTHES), one_of(rng, SKINS), one_of(rng, HAIRS)
    electric, long_hair, hat, stand = rng.random(4) < (0.4, 0.35, 0.25, 0.25)
    wood = one_of(rng, ((0.42, 0.26, 0.14), (0.25, 0.17, 0.12)))
    felt = one_of(rng, CLOTHES)

    def draw(canvas: Canvas, g: Grid, t: float, way: float) -> None:
        beat, stroke = wave(t), math.cos(2 * math.pi * t / 8)  # the hand runs ahead of the body
        x, y = 0.48 + 0.03 * beat, 0.62
        hx, hy = x + 0.01 * beat, y - 0.26 + 0.012 * stroke
        if stand:
            canvas.fill(g.capsule((0.86, 0.98), (0.70, 0.42), 0.010), STEEL, outline=False)
            canvas.fill(g.circle(0.69, 0.40, 0.035), (0.12, 0.12, 0.14))
        if long_hair:
            canvas.fill(g.box(hx, hy + 0.07, 0.125, 0.14, 0.06), hair)
        canvas.fill(g.box(0.48 + 0.01 * beat, 0.96, 0.15, 0.16, 0.06), (0.18, 0.22, 0.36))
        canvas.fill(g.box(x, y + 0.07, 0.155, 0.19, 0.09), shirt)
        canvas.fill(g.box(x, y - 0.14, 0.04, 0.05), scaled(skin, 0.85), outline=False)
        canvas.fill(g.circle(hx, hy, 0.105), skin)
        canvas.fill(both(g.circle(hx, hy - 0.012, 0.115), g.above(hy - 0.025)), hair)
        if hat:
            canvas.fill(
                union(g.box(hx, hy - 0.06, 0.15, 0.016), g.box(hx, hy - 0.11, 0.085, 0.05, 0.02)), felt
            )
        eyes = union(g.circle(hx - 0.038, hy + 0.015, 0.013), g.circle(hx + 0.038, hy + 0.015, 0.013))
        canvas.dot(eyes, (0.08, 0.08, 0.10))
        canvas.dot(g.capsule((hx - 0.03, hy + 0.06), (hx + 0.03, hy + 0.06), 0.009), (0.70, 0.22, 0.20))
        gx, gy = x - 0.03, y + 0.12
        neck = (gx + 0.40, gy - 0.20 - 0.03 * beat)
        canvas.fill(g.capsule((gx, gy), neck, 0.020), wood)
        canvas.fill(g.capsule(neck, (neck[0] + 0.05, neck[1] - 0.025), 0.032), scaled(wood, 0.6))
        if electric:
            body = union(
                g.box(gx - 0.03, gy + 0.01, 0.10, 0.07, 0.05),
                g.capsule((gx, gy - 0.04), (gx + 0.12, gy - 0.115), 0.035, 0.02),
                g.capsule((gx, gy + 0.05), (gx + 0.12, gy + 0.03), 0.04, 0.025),
            )
            canvas.fill(body, colour)
            plate = (0.93, 0.93, 0.9) if dark(colour) or sum(colour) < 2.4 else (0.2, 0.2, 0.22)
            canvas.fill(g.box(gx + 0.01, gy, 0.035, 0.025, 0.01), plate, outline=False)
        else:
            canvas.fill(
                union(g.circle(gx - 0.06, gy + 0.03, 0.115), g.circle(gx + 0.075, gy - 0.035, 0.085)), colour
            )
            hole = (0.75, 0.70, 0.60) if dark(colour) else (0.10, 0.07, 0.06)
            canvas.dot(g.circle(gx + 0.015, gy - 0.005, 0.036), hole)
        sleeve, (nx, ny) = shadow(shirt, 0.88), neck
        left = (nx - 0.11, ny + 0.05)
        elbow = (nx - 0.10, ny + 0.13)
        canvas.fill(
            union(g.capsule((x + 0.14, y - 0.03), elbow, 0.038), g.capsule(elbow, left, 0.032)), sleeve
        )
        canvas.fill(g.circle(*left, 0.036), skin)
        hand, bend = (gx + 0.015 + 0.02 * stroke, gy + 0.085 * stroke), (x - 0.20, y + 0.13)
        arm = union(
            g.capsule((x - 0.14, y - 0.02), bend, 0.042), g.capsule(bend, (hand[0] - 0.04, hand[1]), 0.036)
        )
        canvas.fill(arm, sleeve)
        canvas.fill(g.circle(*hand, 0.040), skin)

    return draw


ACTIONS: dict[str, Callable[[Rgb, Rng], Draw]] = {
    "waterfall": waterfall, "smile": smile, "fireworks": fireworks, "horse": horse,
    "guitar": guitar, "birds": birds, "helicopter": helicopter, "rain": rain,
}  # fmt: skip

PERIODS = {"smile": 24.0, "fireworks": 24.0, "rain": 16.0}
PERIOD = 8.0  # frames until a motion comes again, of the others
