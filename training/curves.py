"""What TensorBoard shows, as one picture: `curves.png` of a run."""

import math
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from huvidpo.files import whole_file

PLOT = "curves.png"
FIRST = ("train/loss", "eval/loss", "train/grad_norm", "train/lr")  # then the others, by name
MOST = 12  # panels; of preferences there are more, which monitors.png has


def read(events: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> (step, value) points of the TensorBoard events in a folder, of every sitting of the run."""
    found = EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload()
    return {name: [(p.step, p.value) for p in found.Scalars(name)] for name in found.Tags()["scalars"]}


def panels(rows: int, columns: int) -> tuple[Any, list[Any]]:
    """A figure and its axes, row by row, 4 x 3 inches each. The margins are fixed: a layout that fits them to
    the texts draws every picture twice.
    """
    from matplotlib.figure import Figure

    left, right, bottom, top = 0.7, 0.15, 0.5, 0.35  # inches, around each panel
    width, height = 4 * columns, 3 * rows
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, wspace=(left + right) / (4 - left - right),
        bottom=bottom / height, top=1 - top / height, hspace=(bottom + top) / (3 - bottom - top),
    )  # fmt: skip
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def draw(folder: Path) -> None:
    """Draw the curves of the run in `folder`; nothing when it has none yet."""
    points = read(folder / "tensorboard")
    names = [name for name in FIRST if name in points]
    names = (names + sorted(points.keys() - set(names)))[:MOST]
    if not names:
        return
    columns = min(4, len(names))
    figure, every = panels(math.ceil(len(names) / columns), columns)
    for axes, name in zip(every, names, strict=False):
        axes.plot(*zip(*points[name], strict=True), marker=".")
        axes.set_title(name)
        axes.set_xlabel("step")
    for axes in every[len(names) :]:
        axes.set_axis_off()
    with whole_file(folder / PLOT) as part:
        figure.savefig(part, format="png", dpi=80)
