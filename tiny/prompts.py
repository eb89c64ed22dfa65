"""Every prompt that the world's captions make, without its style, for the catalog: `python -m tiny.prompts`.

A general tool draws from the file by a seeded permutation. Its lines are ordered so that the held-out seed
draws what the world itself draws with that seed, rare wordings of a caption last.
"""

import numpy as np

from huvidpo.catalog import PROJECT_ROOT
from huvidpo.files import write_text
from judging.methods import GATE_SEED
from tiny import world

FILE = PROJECT_ROOT / "models" / "tiny" / "prompts.txt"
DRAWS = 20_000  # of each category: every prompt comes within 4,000


def prompts_of(category: str) -> list[str]:
    """The category's prompts in the order of the file."""
    rng = np.random.default_rng(GATE_SEED)
    drawn: dict[str, None] = {}
    for _ in range(DRAWS):
        scene = world.random_scene(rng, category, "realistic")
        drawn[world.caption(scene, rng).rpartition(",")[0]] = None  # the style is a field of its own
    places = np.random.default_rng(GATE_SEED).permutation(len(drawn))
    return [prompt for _, prompt in sorted(zip(places, drawn, strict=True))]


def text() -> str:
    """The whole file: a line "category: prompt" for each."""
    lines = [f"{category}: {prompt}\n" for category in world.CATEGORIES for prompt in prompts_of(category)]
    return "".join(lines)


if __name__ == "__main__":
    write_text(FILE, text())
