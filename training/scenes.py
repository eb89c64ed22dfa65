"""Scene cuts of a video: where one picture has nothing to do with the picture before.

A cut is a jump in the pictures that stands alone: large, and at least twice as large as any change of the two
frames before and after, so that neither a fast pan nor a flash (two jumps) is one. Dissolves are not found.
"""

import itertools

import numpy as np

SIZE = (36, 64)
"""(height, width) at which pictures are compared."""
JUMP = 20.0
"""Grey levels of 255 by which pictures differ at a cut, at least, on average."""
ALONE = 2.0
"""How many times the changes around it a cut must be."""


def find_cuts(frames: np.ndarray) -> list[int]:
    """Numbers of the frames of uint8 [F, h, w, 3] that begin a new scene, rising; never 0."""
    if len(frames) < 2:
        return []
    changes = np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in itertools.pairwise(frames)])
    around = np.pad(changes, 2)
    beside = np.max([around[:-4], around[1:-3], around[3:-1], around[4:]], axis=0)
    return [int(i) + 1 for i in np.flatnonzero((changes >= JUMP) & (changes >= ALONE * beside))]


def scenes(count: int, cuts: list[int]) -> list[range]:
    """Numbers of the frames of each scene of a video of `count` frames."""
    edges = [0, *cuts, count]
    return [range(start, end) for start, end in itertools.pairwise(edges) if end > start]
