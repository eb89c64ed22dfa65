"""The procedural world of the second generation: 8 actions x 4 styles x 11 places x 11 colours, seen anyhow.

A clip is a pure function of its `Scene`: any length, any size. Motions start at any phase, subjects stand
anywhere, at several sizes, of several looks, facing either way; the camera may pan or zoom. Words say how the
camera moves; all else can be read from the first frame.

    python -m tiny.second.world --out runs/world     # contact sheets: scenes.png, motion.png, views.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tiny.second.actions import ACTIONS, PERIOD, PERIODS
from tiny.second.places import PLACES, scenery
from tiny.second.shapes import Array, Canvas, Grid, Point, Rgb

SIZE = 64  # pixels per side
FRAMES = 48

CATEGORIES = tuple(ACTIONS)
STYLES = ("realistic", "pixel-art", "claymation", "cartoon")
CAMERAS = ("still", "left", "right", "up", "down", "in", "out")
STILL = "still"
"""Also the category of pictures in which nothing moves: shapes, gradients, writing."""

COLOURS: dict[str, Rgb] = {
    "white": (0.95, 0.95, 0.93),
    "black": (0.12, 0.12, 0.15),
    "brown": (0.52, 0.31, 0.16),
    "red": (0.87, 0.14, 0.13),
    "blue": (0.15, 0.35, 0.90),
    "green": (0.16, 0.65, 0.25),
    "yellow": (0.97, 0.82, 0.15),
    "purple": (0.60, 0.22, 0.78),
    "orange": (0.96, 0.50, 0.08),
    "pink": (0.98, 0.55, 0.75),
    "grey": (0.55, 0.56, 0.58),
}
BRIGHT = tuple(name for name in COLOURS if name not in ("black", "brown", "grey"))  # what can glow
COLOURLESS = ("waterfall", STILL)  # categories whose captions name no colour

# Where a subject keeps its place when its size changes: feet stay on the ground, shoulders below the picture.
ANCHORS: dict[str, Point] = {
    "waterfall": (0.5, 0.9), "smile": (0.5, 1.0), "fireworks": (0.5, 0.3), "horse": (0.5, 0.82),
    "guitar": (0.5, 1.0), "birds": (0.45, 0.36), "helicopter": (0.45, 0.4), "rain": (0.4, 0.87),
}  # fmt: skip
FLYING = ("fireworks", "birds", "helicopter")
LARGE = ("waterfall", "smile", "guitar")  # they fill the picture already
PAN, ZOOM = 0.0030, 1.0045  # of the side, and the factor, per frame


@dataclass(frozen=True)
class Scene:
    """One clip by name; `seed` fixes everything else."""

    category: str
    style: str
    place: str
    colour: str
    camera: str
    seed: int


@dataclass(frozen=True)
class View:
    """How a scene is seen."""

    phase: float
    """Cycle time of frame 0, frames."""
    mirror: bool
    scale: float
    """Of the subject, 1 as drawn."""
    right: float
    """The subject's shift, of the side."""
    down: float


def view_of(scene: Scene) -> View:
    """The view that the scene's seed draws."""
    rng = np.random.default_rng((scene.seed, 0))
    large = scene.category in LARGE
    return View(
        phase=rng.uniform(0, PERIODS.get(scene.category, PERIOD)),
        mirror=bool(rng.random() < 0.5),
        scale=rng.uniform(0.85, 1.12) if large else rng.uniform(0.68, 1.15),
        right=rng.uniform(-1, 1) * (0.07 if large else 0.12),
        down=rng.uniform(-1, 1) * (0.10 if scene.category in FLYING else 0.02),
    )


def random_scene(rng: np.random.Generator, category: str | None = None, style: str | None = None) -> Scene:
    """A camera moves in one scene of four."""
    category = category or str(rng.choice(CATEGORIES))
    colours = BRIGHT if category == "fireworks" else tuple(COLOURS)
    camera = STILL if rng.random() < 0.75 else str(rng.choice(CAMERAS[1:]))
    return Scene(
        category, style or str(rng.choice(STYLES)), str(rng.choice(list(PLACES))), str(rng.choice(colours)),
        camera, int(rng.integers(2**31)),
    )  # fmt: skip


def random_scenes(count: int, seed: int, still: int = 0) -> list[Scene]:
    """Random scenes, categories and styles in turn; every `still`-th shows a picture that does not move."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, CATEGORIES[i % 8], STYLES[i // 8 % 4]) for i in range(count)]
    return [
        replace(s, category=STILL) if still and i % still == still - 1 else s for i, s in enumerate(scenes)
    ]


def camera_at(grid: Grid, camera: str, frames: float) -> Grid:
    """What the camera sees after some frames of its way, the picture's middle at half of a clip."""
    pan = PAN * frames
    right = {"right": pan, "left": -pan}.get(camera, 0.0)
    down = {"down": pan, "up": -pan}.get(camera, 0.0)
    zoom = {"in": ZOOM**frames, "out": ZOOM**-frames}.get(camera, 1.0)
    return grid.seen(zoom, right, down)


def render(scene: Scene, frames: int = FRAMES, size: int = SIZE, view: View | None = None) -> Array:
    """The clip of a scene, uint8 [frames, size, size, 3]: the same scene always gives the same pixels.

    `size`: a multiple of 32. `view`: another one than the scene's own.
    """
    return render_with_subject(scene, frames, size, view)[0]


def render_with_subject(
    scene: Scene, frames: int = FRAMES, size: int = SIZE, view: View | None = None
) -> tuple[Array, Array]:
    """`render`, and where the subject is in each frame: uint8 [frames, size, size], 255 inside."""
    if scene.category == STILL:
        return picture_clip(scene, frames, size), np.zeros((frames, size, size), np.uint8)
    view = view or view_of(scene)
    grid = Grid.of(size)
    back = scenery(scene.category, scene.style, scene.place, np.random.default_rng((scene.seed, 1)))
    draw = ACTIONS[scene.category](COLOURS[scene.colour], np.random.default_rng((scene.seed, 2)))
    clip = np.empty((frames, size, size, 3), np.uint8)
    subject = np.empty((frames, size, size), np.uint8)
    # a mirrored clip is rendered the other way round, so its camera must move the other way, too
    turned = {"left": "right", "right": "left"} if view.mirror else {}
    camera, behind = turned.get(scene.camera, scene.camera), None
    for t in range(frames):
        seen = camera_at(grid, camera, t)
        if behind is None or camera != STILL:
            behind = back.draw(size, seen).image
        canvas = Canvas(scene.style, size, behind)
        there = seen.placed(view.scale, ANCHORS[scene.category], view.right, view.down)
        draw(canvas, there, view.phase + t, t)
        clip[t], subject[t] = canvas.finished(seen), (canvas.subject * 255).astype(np.uint8)
    if view.mirror:
        clip, subject = clip[:, :, ::-1].copy(), subject[:, :, ::-1].copy()
    return clip, subject


def picture_clip(scene: Scene, frames: int, size: int) -> Array:
    """A picture from outside the world: gradient, shapes and perhaps writing. Only the camera moves."""
    rng = np.random.default_rng((scene.seed, 3))
    colours = rng.uniform(0, 1, (12, 3)).astype(np.float32)
    turn, shapes, cells = rng.uniform(0, 6.28), rng.uniform(0, 1, (8, 4)), int(rng.integers(2, 17))
    count, rough, word = int(rng.integers(1, 9)), rng.uniform(0, 0.5), writing(rng, size)
    clip = np.empty((frames, size, size, 3), np.uint8)
    for t in range(frames):
        if t and scene.camera == STILL:
            clip[t] = clip[0]
            continue
        g = camera_at(Grid.of(size), scene.camera, t)
        canvas = Canvas("realistic", size)
        ramp = np.clip(0.5 + (g.x - 0.5) * np.cos(turn) + (g.y - 0.5) * np.sin(turn), 0, 1)[..., None]
        canvas.image[:] = colours[0] + ramp * (colours[1] - colours[0])
        canvas.image += (rough * g.noise(cells, scene.seed % 997))[..., None] * (colours[2] - 0.5)
        for i, (x, y, a, b) in enumerate(shapes[:count]):
            round_, wide, high = i % 2, 0.04 + 0.25 * a, 0.04 + 0.25 * b
            d = g.ellipse(x, y, wide, high) if round_ else g.box(x, y, wide, high, 0.02)
            canvas.blend(canvas.cover(d), colours[3 + i])
        if word is not None:
            column = np.clip((g.x * size).astype(int), 0, size - 1)
            row = np.clip((g.y * size).astype(int), 0, size - 1)
            canvas.blend(word[row, column], colours[11])
        clip[t] = (np.clip(canvas.image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return clip


def writing(rng: np.random.Generator, size: int) -> Array | None:
    """Coverage [size, size] of a few letters, in a third of the pictures."""
    from PIL import Image, ImageDraw, ImageFont

    text = "".join(rng.choice(list("ABCDEFGHKLMNOPRSTUVWXYZ0123456789"), int(rng.integers(1, 6))))
    at, tall = rng.uniform(0, 0.5, 2) * size, rng.uniform(0.2, 0.5) * size
    if rng.random() > 0.35:
        return None
    page = Image.new("L", (size, size))
    ImageDraw.Draw(page).text(tuple(at), text, 255, ImageFont.load_default(tall))
    return np.asarray(page, np.float32) / 255


def main() -> None:
    from PIL import Image

    from preferences.thumbnails import tile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=SIZE)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    size, shown = args.size, (*CATEGORIES, STILL)
    sheets = {
        "scenes": [
            [render(random_scene(rng, c, s), 1, size)[0] for s in STYLES for _ in range(2)] for c in shown
        ],
        "motion": [
            list(render(random_scene(rng, c, STYLES[i % 4]), 16, size)[::2]) for i, c in enumerate(shown)
        ],
        "views": [
            list(render(replace(random_scene(rng, c, "cartoon"), camera=CAMERAS[i % 7]), 48, size)[::6])
            for i, c in enumerate(shown)
        ],
    }
    for name, sheet in sheets.items():
        Image.fromarray(tile(sheet)).resize((8 * 256, 9 * 256), Image.Resampling.NEAREST).save(
            args.out / f"{name}.png"
        )


if __name__ == "__main__":
    main()
