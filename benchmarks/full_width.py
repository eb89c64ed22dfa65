"""A rehearsal at full width: a user's first commands, networks of the real names and shapes, random weights.

    python -m benchmarks.full_width                      everything; half an hour on two cores with 24 GB
    python -m benchmarks.full_width --phases clip merge  these alone; the files of earlier phases are kept
    python -m benchmarks.full_width --quick              narrow networks, the clip alone; records nothing

Fills a cache of the model hub in runs/full_width (18 GB) as it is after `sd14` was fetched: SDXL's parts, the
public DPO UNet, Stable Diffusion 1.4; names as published, old ones included. Then, offline and each in a
process of its own:

    parity   a video UNet of one frame gives what diffusers' image UNet gives; inflating twice gives one hash
    clip     `python -m huvidpo` from the prompt to the file
    motion   stage 1, two steps on tiny clips
    dpo      preferences, two steps
    merge    both into the category's weights
    serve    `bentoml serve`, one clip with them over HTTP

What it cannot show: whether a picture looks right. Prints seconds and peak memory (anonymous, of the process
and its children) of each phase and appends one JSON line to benchmarks/results/.
"""

import argparse
import base64
import io
import json
import math
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks import common
from benchmarks.common import ROOT, record
from huvidpo import video
from huvidpo.catalog import Component, load_catalog
from huvidpo.files import hash_file, write_bytes, write_text
from huvidpo.loading import load_part
from huvidpo.unet import VideoUNet, fingerprint
from preferences.clips import ClipEntry, write_clips
from preferences.records import Rating, append

FOLDER = ROOT / "runs" / "full_width"
SDXL, DPO, SD14 = (
    "stabilityai/stable-diffusion-xl-base-1.0", "mhdang/dpo-sdxl-text2image-v1",
    "CompVis/stable-diffusion-v1-4",
)  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"
WORDS = 49_408  # of CLIP's vocabulary
PROMPT = "a white horse runs on Mars"
SMALL = ["precision=bf16", "frames=3", "height=64", "width=64", "sample_every=0"]  # of the trainers


# The cache


def configs(narrow: bool) -> dict[str, dict[str, Any]]:
    """Repository/folder -> config.json, as far as it differs from diffusers' and transformers' defaults."""
    part, clip, big = (10, 32, 64) if narrow else (1, 768, 1280)
    levels = [320 // part, 640 // part, 1280 // part]
    vae = {
        "_class_name": "AutoencoderKL", "latent_channels": 4, "layers_per_block": 2,
        "block_out_channels": [8, 8, 16, 16] if narrow else [128, 256, 512, 512],
        "norm_num_groups": 4 if narrow else 32,
    }  # fmt: skip
    count = len(vae["block_out_channels"])
    vae |= {
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
    }
    unet = {"_class_name": "UNet2DConditionModel", "norm_num_groups": 32}
    sdxl = unet | {
        "block_out_channels": levels, "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"], "cross_attention_dim": clip + big,
        "attention_head_dim": [1, 2, 4] if narrow else [5, 10, 20], "use_linear_projection": True,
        "transformer_layers_per_block": [1, 1, 1] if narrow else [1, 2, 10],
        "addition_embed_type": "text_time",
        "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": big + 6 * 256, "sample_size": 128,
    }  # fmt: skip
    sd14 = unet | {
        "block_out_channels": [*levels, levels[-1]],
        "cross_attention_dim": clip,
        "attention_head_dim": 8,
    }
    sd14 |= {"down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"], "layers_per_block": 2}
    sd14 |= {
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "in_channels": 4,
        "out_channels": 4,
    }
    text = {
        "hidden_size": clip, "intermediate_size": 4 * clip, "num_attention_heads": 12 if not narrow else 2,
        "num_hidden_layers": 12 if not narrow else 2, "projection_dim": clip, "vocab_size": WORDS,
        "bos_token_id": 0, "eos_token_id": 2, "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
    }  # fmt: skip
    text_2 = text | {
        "hidden_size": big, "intermediate_size": 4 * big, "num_attention_heads": 20 if not narrow else 2,
        "num_hidden_layers": 32 if not narrow else 2, "projection_dim": big, "hidden_act": "gelu",
        "architectures": ["CLIPTextModelWithProjection"],
    }  # fmt: skip
    return {
        f"{SDXL}/text_encoder": text,
        f"{SDXL}/text_encoder_2": text_2,
        f"{SDXL}/vae": vae | {"scaling_factor": 0.13025, "force_upcast": True},
        f"{DPO}/unet": sdxl,
        f"{SD14}/text_encoder": text,
        f"{SD14}/vae": vae,  # says neither scaling factor nor force_upcast, as published
        f"{SD14}/unet": sd14,
    }


def shapes_of(config: Mapping[str, Any], old_names: bool) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape under the names of the published files. `old_names`: those of SD 1.4's VAE."""
    with torch.device("meta"):
        if "architectures" not in config:
            kinds = {"AutoencoderKL": AutoencoderKL, "UNet2DConditionModel": UNet2DConditionModel}
            made: Any = kinds[config["_class_name"]].from_config(dict(config))
        else:
            kind = (
                CLIPTextModel if config["architectures"] == ["CLIPTextModel"] else CLIPTextModelWithProjection
            )
            made = kind(CLIPTextConfig(**config))
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    if "architectures" in config:  # transformers 4 called them so, and kept the positions' numbers
        shapes = {
            name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": shape
            for name, shape in shapes.items()
        }
        return shapes | {"text_model.embeddings.position_ids": (1, 77)}
    if not old_names:
        return shapes
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, before in old.items():
        shapes = {
            name.replace(f".{new}.", f".{before}.") if "attentions" in name else name: shape
            for name, shape in shapes.items()
        }
    return shapes


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> int:
    """A float32 safetensors file, one tensor in memory at a time: N(0, 1 / inputs), so that activations stay
    finite; norms one, biases zero. Returns its bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        ids = name.endswith("position_ids")
        start, end = end, end + math.prod(shape) * (8 if ids else 4)
        header[name] = {"dtype": "I64" if ids else "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            if name.endswith("position_ids"):
                tensor = torch.arange(shape[-1])
            elif len(shape) > 1:
                scale = 0.02 if "embedding" in name else math.prod(shape[1:]) ** -0.5
                tensor = torch.randn(shape, generator=generator).mul_(scale)
            else:
                tensor = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    part.rename(path)
    return path.stat().st_size


def tokenizer() -> dict[str, str]:
    """Files of a CLIP tokenizer with as many words as the real one; the words themselves are made up."""
    bytes_ = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in bytes_] + [chr(256 + i) for i in range(256 - len(bytes_))]
    ends = [letter + "</w>" for letter in letters]
    merges = [f"{a} {b}" for a in letters for b in ends][: WORDS - 2 * len(letters) - 2]
    words = [
        *letters,
        *ends,
        *(merge.replace(" ", "") for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    config = special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    return {
        "vocab.json": json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
        "special_tokens_map.json": json.dumps(special),
        "tokenizer_config.json": json.dumps(config),
    }


def fill_cache(hub: Path, narrow: bool) -> dict[str, int]:
    """The hub's cache, where it is not there yet; returns the bytes of each part's weights."""
    parts = [value for value in vars(load_catalog().model("sd14")).values() if isinstance(value, Component)]
    commits = {part.location: part.revision or "0" * 39 + "1" for part in parts}
    repos = {repo: hub / "hub" / f"models--{repo.replace('/', '--')}" for repo in (SDXL, DPO, SD14)}
    folders = {repo: path / "snapshots" / commits[repo] for repo, path in repos.items()}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    small = {
        f"{SDXL}/scheduler/scheduler_config.json": betas | {
            "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading",
            "prediction_type": "epsilon"},
        f"{SD14}/scheduler/scheduler_config.json": betas | {
            "_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False},
        f"{SD14}/model_index.json": {"_class_name": "StableDiffusionPipeline"},
        f"{SDXL}/model_index.json": {
            "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]},
    }  # fmt: skip
    files = {where: json.dumps(content) for where, content in small.items()}
    for where in (f"{SDXL}/tokenizer", f"{SDXL}/tokenizer_2", f"{SD14}/tokenizer"):
        files |= {f"{where}/{name}": text for name, text in tokenizer().items()}
    files |= {f"{where}/config.json": json.dumps(config) for where, config in configs(narrow).items()}
    for where, text in files.items():
        repo = next(repo for repo in repos if where.startswith(repo))
        write_text(folders[repo] / where.removeprefix(f"{repo}/"), text)
        write_text(repos[repo] / "refs" / "main", commits[repo])
    sizes = {}
    for seed, (where, config) in enumerate(configs(narrow).items()):
        repo = next(repo for repo in repos if where.startswith(repo))
        name = "model.safetensors" if "architectures" in config else WEIGHTS
        path = folders[repo] / where.removeprefix(f"{repo}/") / name
        shapes = shapes_of(config, old_names=where == f"{SD14}/vae")
        sizes[where] = path.stat().st_size if path.is_file() else write_random(path, shapes, seed)
        print(f"{where}: {sizes[where] / 1e9:.2f} GB, {len(shapes)} tensors", flush=True)
    return sizes


# Phases


@torch.no_grad()
def parity() -> dict[str, Any]:
    """Largest differences of one frame, and of four equal ones, from the image UNet's answer."""
    source = load_catalog().model("sd14").video_unet
    image = load_part(UNet2DConditionModel, source, torch.float32).eval()
    unet = VideoUNet.from_2d(image).eval()
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 77, image.config.cross_attention_dim, generator=generator)
    found: dict[str, Any] = {}
    for frames in (1, 4):
        x = torch.randn(1, 4, 16, 24, generator=generator)
        expected = image(x, 501, text).sample
        got = unet(x[:, :, None].expand(-1, -1, frames, -1, -1), torch.tensor(501), text)
        found[f"difference_{frames}_frames"] = float((got - expected[:, :, None]).abs().max())
    once = fingerprint(unet)
    del unet
    again = fingerprint(VideoUNet.from_2d(image))
    assert once == again, "inflating twice gave two networks"
    assert max(found.values()) < 1e-4, found
    return found


def write_clips_to_train(folder: Path) -> None:
    """Four clips of a moving gradient, each scored by one rater."""
    entries = []
    for i in range(4):
        x = np.arange(64)
        rows = [(x[None] * (i + 1) + x[:, None] + 8 * f) % 256 for f in range(8)]
        frames = np.repeat(np.stack(rows)[..., None], 3, -1).astype(np.uint8)
        name = f"{i}.mp4"
        write_bytes(folder / name, video.encode(frames, 8))
        entries.append(ClipEntry(video=name, caption="a horse runs", category="horse"))
        if not (folder / "ratings.jsonl").exists() or i >= (folder / "ratings.jsonl").read_bytes().count(
            b"\n"
        ):
            rating = Rating(
                rater="made up", category="horse", clip=name, sha256=hash_file(folder / name),
                prompt="a horse runs", score=2.0 * i,
            )  # fmt: skip
            append(folder / "ratings.jsonl", rating)
    write_clips(folder, entries)


def commands(folder: Path, narrow: bool) -> dict[str, list[str]]:
    """Phase -> the command of a user, after `python -m`; without those that are no single command."""
    clips, categories = folder / "clips", folder / "weights" / "sd14" / "categories"
    stage1, lora, merged = (
        folder / "stage1.safetensors",
        folder / "lora.safetensors",
        categories / "horse.safetensors",
    )
    of = ["--model", "sd14", "--category", "horse"]
    small = [word for setting in SMALL for word in ("--set", setting)]
    first = ["--first-frame-size", "64x64" if narrow else "256x256", "--first-frame-steps", "2"]
    how = ["--dtype", "float32" if narrow else "bfloat16", "--frames", "2" if narrow else "4"]
    return {
        "clip": ["huvidpo", PROMPT, *of, *how, *first, "--steps", "1", "--seed", "7",
                 "--out", str(folder / "clip.mp4")],
        "motion": ["training.motion", *of, "--clips", str(clips), "--out", str(stage1), "--steps", "2",
                   "--run", str(folder / "motion"), "--resume", *small, "--set", "flip=false"],
        "dpo": ["training.dpo", *of, "--clips", str(clips), "--stage1", str(stage1), "--out", str(lora),
                "--run", str(folder / "dpo"), "--resume", "--steps", "2", *small, "--set", "holdout=0"],
        "merge": ["training.merge", "--model", "sd14", "--stage1", str(stage1), "--lora", str(lora),
                  "--out", str(merged)],
    }  # fmt: skip


def serve(folder: Path, environment: Mapping[str, str]) -> None:
    """Start the service, ask for one clip of four frames and a step, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    own = {"HUVIDPO_MODEL": "sd14", "HUVIDPO_BACKEND": "torch", "HUVIDPO_GRPC_PORT": "0"}
    own |= {
        "HUVIDPO_DTYPE": "bfloat16",
        "HUVIDPO_REQUEST_TIMEOUT": "3600",
        "HUVIDPO_DATA": str(folder / "data"),
    }
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=ROOT, env=environment | own) as service:
        try:
            while not _answers(f"{url}/readyz"):
                if service.poll() is not None:
                    raise SystemExit("the service ended before it was ready")
                time.sleep(1)
            picture = json.dumps(
                {"prompt": PROMPT, "category": "horse", "style": "cartoon", "steps": 1, "frames": 4}
                | {"first_frame": _picture()}
            ).encode()
            headers = {"Content-Type": "application/json"}
            asked = urllib.request.Request(f"{url}/generate_video", picture, headers)
            with urllib.request.urlopen(asked, timeout=3600) as answer:
                write_bytes(folder / "served.mp4", answer.read())
        finally:
            service.terminate()
            service.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


def _picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (512, 320), (200, 90, 40)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Fills in `seconds` and `peak_gb`, the most anonymous memory of this process's children at once."""
    found, done = {"peak_gb": 0.0}, threading.Event()

    def look() -> None:
        while not done.wait(0.3):
            held = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    memory = child.memory_info()
                except psutil.Error:
                    continue
                held += memory.rss - memory.shared
            found["peak_gb"] = max(found["peak_gb"], round(held / 1e9, 2))

    thread, started = threading.Thread(target=look), time.monotonic()
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found["seconds"] = round(time.monotonic() - started, 1)


def run(phases: list[str], folder: Path, narrow: bool) -> dict[str, dict[str, Any]]:
    """What each phase took. Raises SystemExit when one fails."""
    found: dict[str, dict[str, Any]] = {}
    started = time.monotonic()
    sizes = {where: round(size / 1e9, 2) for where, size in fill_cache(folder / "hub", narrow).items()}
    found["cache"] = {"gb": sizes, "seconds": round(time.monotonic() - started, 1)}
    write_clips_to_train(folder / "clips")
    environment = os.environ | {
        "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HUVIDPO_WEIGHTS": str(folder / "weights"),
        "HUVIDPO_ENGINES": str(folder / "engines"), "BENTOML_DO_NOT_TRACK": "True",
    }  # fmt: skip
    steps: dict[str, Callable[[], Any]] = {}
    for name, command in (
        commands(folder, narrow) | {"parity": ["benchmarks.full_width", "--inside", "parity"]}
    ).items():
        steps[name] = lambda command=command: (
            subprocess.run(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
        )
    steps["serve"] = lambda: serve(folder, environment)
    for name in phases:
        with watched() as took:
            printed = steps[name]()
        found[name] = dict(took)
        if name == "parity":
            found[name] |= json.loads(printed.splitlines()[-1])
        print(f"{name}: {found[name]}", flush=True)
    return found


PHASES = ["parity", "clip", "motion", "dpo", "merge", "serve"]


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("narrow networks, the clip alone")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: runs/full_width")
    parser.add_argument("--inside", choices=["parity"], help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.inside:
        print(json.dumps(parity()))
        return
    if args.quick:
        args.folder, args.phases = args.folder.with_name("full_width_quick"), ["clip"]
    found = run(args.phases, args.folder.absolute(), args.quick)
    if not args.quick:
        del args.folder, args.inside  # of this machine
        record(args, **found)


if __name__ == "__main__":
    main()
