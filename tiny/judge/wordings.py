"""Do other words draw the same thing? Labels of first frames, by how the prompt is worded.

    python -m tiny.judge.wordings                  # 128 scenes of each kind; models/tiny/judge/wordings.json

The judge's reader, which has seen no text, names category, style, place and colour of each picture. Kinds:
captions of `tiny.world`; sentences with synonyms, tags, four other languages (`tiny.second.words`); typos;
the colour told at the end; sentences that no training has; and, so that the measure can fail, another scene's
words.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from huvidpo.config import ClipRequest
from huvidpo.files import write_text
from huvidpo.pipeline import FirstFramePipeline
from tiny import dataset, world
from tiny.evaluate import SEED, batches, request_for
from tiny.judge.score import FOLDER, Judge, load, unit
from tiny.judge.worlds import FIRST
from tiny.second import words
from tiny.wording import as_second
from training.lineage import commit

Rng = np.random.Generator


def own(scene: world.Scene, rng: Rng) -> str:
    return world.caption(scene, rng).rpartition(",")[0]  # the style is a field of the request


def colour_last(scene: world.Scene, rng: Rng) -> str:
    place = world.PLACES[scene.place].phrases[0]
    text = world.SENTENCES[scene.category][0].format(c="", p=place).strip()
    return text if scene.category in world.COLOURLESS else f"{text}, the colour is {scene.colour}"


KINDS: dict[str, Callable[[world.Scene, Rng], str]] = {
    "own captions": own,
    "synonyms": lambda scene, rng: words.sentence(as_second(scene), rng, True, True, False),
    "tags": lambda scene, rng: words.tags(as_second(scene), rng, True, True, False),
    "four other languages": lambda scene, rng: words.translated(as_second(scene), rng, True, True, False),
    "a typo": lambda scene, rng: words.misspelt(own(scene, rng), rng),
    "the colour at the end": colour_last,
    "sentences never trained on": lambda scene, rng: words.held_out(as_second(scene), rng).rpartition(",")[0],
    "another scene's words": lambda scene, rng: own(world.random_scene(rng, style=scene.style), rng),
}


def labels_read(judge: Judge, requests: list[ClipRequest], scenes: Sequence[world.Scene]) -> dict[str, float]:
    """Share of drawn first frames whose labels are the scene's."""
    pipeline = FirstFramePipeline.from_catalog("tiny")
    pictures: list[Any] = [picture for run in batches(requests) for picture in pipeline(run)]
    with torch.no_grad():
        read, _ = judge.nets.reader(unit(np.stack([np.asarray(picture) for picture in pictures])))
    found = {}
    for kind, values in FIRST.labels.items():
        guesses = read[kind].argmax(1).tolist()
        asked = [FIRST.asked(scene).get(kind) for scene in scenes]
        right = [values[g] == a for g, a in zip(guesses, asked, strict=True) if a is not None]
        found[kind] = round(float(np.mean(right)), 4)
    return found


def measure(count: int) -> dict[str, dict[str, float]]:
    judge, scenes = load(), dataset.scenes("held_out", count)
    result = {}
    for name, word in tqdm(KINDS.items(), "wordings"):
        rng = np.random.default_rng(9)
        requests = [
            dataclasses.replace(request_for(scene, SEED + i), prompt=word(scene, rng))
            for i, scene in enumerate(scenes)
        ]
        result[name] = labels_read(judge, requests, scenes)
        print(name, result[name], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=128)
    parser.add_argument("--out", type=Path, default=FOLDER / "wordings.json")
    args = parser.parse_args()
    found = {"command": f"python -m tiny.judge.wordings --scenes {args.scenes}", "commit": commit()}
    write_text(args.out, json.dumps(found | {"labels": measure(args.scenes)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
