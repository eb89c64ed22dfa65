"""Proof that a change which should not alter numbers alters none: loss curves and clips, before and after.

    python -m benchmarks.equal_numbers before.json             before the change
    python -m benchmarks.equal_numbers after.json              after it
    python -m benchmarks.equal_numbers before.json after.json  compare; exit status 1 where they differ

Records, in float32 on the CPU with two threads: the loss and gradient norm of each of 20 steps of three
recipes of the built-in family (motion, preferences of clips, preferences of pictures), and the SHA-256 of the
pixels of a first frame and a clip per category at a fixed seed. Both files must come from one machine:
another CPU rounds otherwise.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
STAGE1 = ROOT / "models/tiny/categories/waterfall.safetensors"
STEPS = 20
SCORES = (9.0, 7.5, 6.0, 4.0, 2.5, 1.0)
RUNS = {
    "motion": ("training.motion", "gif", ["--category", "waterfall"]),
    "dpo": ("training.dpo", "gif", ["--category", "waterfall", "--stage1", str(STAGE1)]),
    "dpo of pictures": ("training.dpo", "png", ["--recipe", "tiny_dpo_image"]),
}
SETTINGS = ("precision=fp32", "log_every=1", "sample_every=20", "save_every=20")


def write_rated(folder: Path, suffix: str) -> Path:
    """Six rated clips (gif) or pictures (png) of a square that crosses a coloured ground."""
    folder.mkdir()
    captions, ratings = [], []
    for i, score in enumerate(SCORES):
        frames = np.full((16, 64, 64, 3), (30 * i, 90, 200 - 30 * i), np.uint8)
        for t, frame in enumerate(frames):
            frame[20 + i : 36 + i, 2 * t : 2 * t + 16] = (240, 40 * i, 20)
        first, *others = [Image.fromarray(frame) for frame in frames]
        path = folder / f"{i:04d}.{suffix}"
        first.save(path, **({"save_all": True, "append_images": others, "duration": 120} if others else {}))
        caption = ("waterfall", "waterfall at night")[i % 2]
        captions.append({"video": path.name, "caption": caption, "category": "waterfall", "seed": i})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        ratings.append(
            {"rater": "made up", "category": "waterfall", "clip": path.name, "sha256": digest}
            | {"prompt": caption, "score": score, "kind": "rating", "id": f"{i:032x}"}
            | {"time": "2026-01-01T00:00:00+00:00", "seed": i, "criteria": None, "lineage": {}}
        )
    for name, rows in {"captions.jsonl": captions, "ratings.jsonl": ratings}.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def losses(name: str, folder: Path) -> dict[str, list[float]]:
    """The figures of every step of a run, from its TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from huvidpo.catalog import DEFAULT_MODEL

    module, suffix, arguments = RUNS[name]
    clips, run = write_rated(folder / suffix / "clips", suffix), folder / suffix / "run"
    command = [sys.executable, "-m", module, "--model", DEFAULT_MODEL, *arguments, "--clips", str(clips)]
    command += ["--out", str(folder / suffix / "out.safetensors"), "--run", str(run), "--steps", str(STEPS)]
    for setting in SETTINGS:
        command += ["--set", setting]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = [tag for tag in ("train/loss", "train/grad_norm") if tag in events.Tags()["scalars"]]
    return {tag: [event.value for event in events.Scalars(tag)] for tag in tags}


def clips() -> dict[str, dict[str, str]]:
    """category -> SHA-256 of the pixels of its first frame and its clip."""
    from huvidpo.catalog import DEFAULT_MODEL, load_catalog
    from huvidpo.config import ClipRequest
    from huvidpo.pipeline import FirstFramePipeline, VideoPipeline

    torch.set_num_threads(2)
    catalog = load_catalog()
    options = catalog.model(DEFAULT_MODEL).defaults.replace(steps=8, first_frame_steps=8)
    first, video = (
        kind.from_catalog(DEFAULT_MODEL, device="cpu", dtype=torch.float32)
        for kind in (FirstFramePipeline, VideoPipeline)
    )
    found = {}
    for category, row in catalog.categories.items():
        request = ClipRequest(prompt=row.motion_prompt, category=category, seed=7, options=options)
        picture = first([request])
        clip = video([request], picture)
        found[category] = {"first frame": sha256(picture[0]), "clip": sha256(clip[0])}
    return found


def sha256(pixels: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def record(path: Path) -> None:
    found: dict[str, Any] = {"clips": clips(), "losses": {}}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / RUNS[name][1]).mkdir()
            found["losses"][name] = losses(name, Path(folder))
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def differences(before: dict[str, Any], after: dict[str, Any], where: str = "") -> list[str]:
    """Where two recordings differ; a part that only one of them has differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(before.keys() | after.keys())
        parts = [differences(before.get(n, {}), after.get(n, {}), f"{where}/{n}") for n in names]
        return [line for part in parts for line in part]
    return [] if before == after else [f"{where}: {before} before, {after} after"]


def main() -> int:
    files = [Path(argument) for argument in sys.argv[1:]]
    if len(files) not in (1, 2):
        print(__doc__)
        return 2
    if len(files) == 1:
        record(files[0])
        return 0
    before, after = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    found = differences(before, after)
    steps = sum(len(values) for run in before["losses"].values() for values in run.values())
    print("\n".join(found) or f"equal: {len(before['clips'])} categories, {steps} figures of training steps")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
