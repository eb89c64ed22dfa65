"""What the stages of the second generation share: sizes, places on the disk, device, the loop's call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from huvidpo.catalog import Component
from huvidpo.hardware import mixed_precision
from huvidpo.loading import load_part, load_tokenizer
from training.loop import STOPPED, Task, train
from training.recipes import Recipe

# By looking at renders of 64, 96 and 128 pixels: outlines and faces need 128. At factor 8 the networks see
# as many places as at 64 and 4; 24 channels keep what 12 did there (best linear code: 28.7 dB, 27.9 at 64).
SIZE, FACTOR, CHANNELS = 128, 8, 24
SIDE = SIZE // FACTOR
"""Of a latent."""
CONTEXT = 77  # tokens
WIDTH = 128
"""Of the text encoder."""


@dataclass(frozen=True)
class Workshop:
    """Where a training of the family lies: checkpoints, data and, in `family`, what would ship."""

    root: Path
    workers: int = 1
    """Processes that render."""

    @property
    def family(self) -> Path:
        return self.root / "family"

    @property
    def first_frame(self) -> Path:
        return self.family / "first_frame"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """bf16, for networks that the loop does not cast by itself."""
        if not self.on_gpu:
            with mixed_precision():
                yield
        else:
            with torch.autocast("cuda", torch.bfloat16):
                yield

    def fit(self, name: str, model: nn.Module, task: Task, recipe: Recipe) -> None:
        """Train all of `model` in root/<name>, or go on, and leave it with its averaged weights.

        Leaves the program with STOPPED when the run is asked to stop; it has saved then.
        """
        accelerator = Accelerator(cpu=not self.on_gpu, mixed_precision=recipe.precision)
        identity = {"model": name}
        folder = self.root / name
        trained = train(
            model.train(), task, recipe, folder, accelerator=accelerator, identity=identity, resume=True
        )
        model.load_state_dict(trained.weights, strict=False)
        model.eval()
        if not trained.complete:
            print(
                f"{name}: stopped, saved at step {trained.step} of {recipe.steps}; the same command goes on"
            )
            sys.exit(STOPPED)


def part(folder: Path, name: str) -> Component:
    return Component.at(folder, name)


def to_unit(pixels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [N, H, W, 3] -> float [N, 3, H, W] in [-1, 1], channels_last, on `device`."""
    return (torch.from_numpy(np.array(pixels)).to(device).float() / 127.5 - 1).movedim(-1, 1)


def to_pixels(values: Tensor) -> np.ndarray:
    """[N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3]."""
    return (values.float().clamp(-1, 1).movedim(1, -1) * 127.5 + 127.5).round().byte().cpu().numpy()


class TextTower:
    """The family's text encoder. SDXL's two are the same network here, so it runs once."""

    def __init__(self, shop: Workshop) -> None:
        source = part(shop.first_frame, "text_encoder_2")
        self.model = load_part(CLIPTextModelWithProjection, source, torch.float32).eval().to(shop.device)
        self.tokenizer = load_tokenizer(part(shop.first_frame, "tokenizer_2"), self.model)
        self.shop = shop

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states [N, 77, 256] and pooled [N, 128], as SDXL has them; SD 1.x's [N, 77, 128]."""
        options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        ids = self.tokenizer(texts, **options).input_ids.to(self.shop.device)
        with self.shop.autocast():
            out = self.model(ids, output_hidden_states=True)
        before = out.hidden_states[-2].float()
        return torch.cat([before, before], -1), out.text_embeds.float(), out.last_hidden_state.float()
