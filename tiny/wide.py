"""Continue the tiny family's video base on clips seen anyhow, so that motion is read from the picture.

    python -m tiny.wide                   # a day and a half on two cores; a stopped run goes on
    python -m tiny.wide --seconds 350     # as many steps as a card takes in that time: 9,065 on an H100

`tiny.video` has seen every subject at one place, facing one way, from one moment on. Here clips come as
`tiny.views` films them, while the training goes on: a batch is drawn from all that have been filmed so far.
On a CUDA card a step is one graph: launched kernel by kernel it takes four times as long. How well the result
reads motion from the picture, `tiny.judge.views` measures.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from threading import Semaphore
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from huvidpo import command
from huvidpo.catalog import Component
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors
from huvidpo.files import make_folder
from huvidpo.hardware import mixed_precision
from huvidpo.loading import load_part, load_tokenizer, load_video_unet
from huvidpo.unet import VideoUNet
from tiny import views, world
from tiny.common import FAMILY, RUNS, scheduler, to_unit
from training.lineage import commit, write_network
from training.loop import CHECKPOINT, STOPPED, TrainingError, learning_rate, stop_requests
from training.losses import add_noise, motion_loss, prediction_target
from training.recipes import Recipe

FOLDER = RUNS / "wide"
FRAMES = world.FRAMES
EMPTY = 0.1  # share of captions left empty
FROM_START = 0.5  # share of clips shown from their first frame on, as first frames are drawn
AT_ONCE = 16
"""Clips encoded at once."""


@dataclass(frozen=True)
class WideRecipe(Recipe):
    """How the base is continued. In bfloat16 where the device computes in it."""

    steps: int = 9_000
    batch_size: int = 16
    lr: float = 8e-4
    cooldown: float = 0.4
    warmup_steps: int = 200
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    ema: float = 0.998
    every_long: int = 6
    """One step of so many shows a quarter of the clips in all their 48 frames."""
    first: int = 320
    """Clips that must be there before the first step."""


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy there; a card is not waited for."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Archive:
    """What has been filmed so far, on the device: latents float16 [N, 12, F, 16, 16], embedded captions."""

    def __init__(self, frames: int, device: torch.device) -> None:
        self.frames, self.count, self.device = frames, 0, device
        self.latents = torch.empty(0, 12, frames, 16, 16, dtype=torch.float16, device=device)
        self.texts = torch.empty(0, views.WORDINGS, 77, 128, dtype=torch.float16, device=device)

    def add(self, latents: Tensor, texts: Tensor) -> None:
        """[n, 12, F, 16, 16] and [n, WORDINGS, 77, 128]."""
        needed = self.count + len(latents)
        if needed > len(self.latents):
            for name in ("latents", "texts"):
                old = getattr(self, name)
                new = torch.empty(max(512, 2 * needed), *old.shape[1:], dtype=old.dtype, device=self.device)
                new[: self.count] = old[: self.count]
                setattr(self, name, new)
        self.latents[self.count : needed] = latents
        self.texts[self.count : needed] = texts
        self.count = needed

    def draw(self, few: int, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Windows float32 [few, 12, frames, 16, 16] and the hidden states of a caption of each."""
        rows = on_device(rng.integers(self.count, size=few), self.device)
        starts = rng.integers(self.frames - frames + 1, size=few) * (rng.random(few) >= FROM_START)
        along = on_device(starts[:, None] + np.arange(frames), self.device)
        which = on_device(rng.integers(views.WORDINGS, size=few), self.device)
        return self.latents[rows[:, None], :, along].transpose(1, 2).float(), self.texts[rows, which].float()


@dataclass
class Studio:
    """The frozen parts: what pictures and words become."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    device: torch.device

    @cached_property
    def nothing(self) -> Tensor:
        """The empty caption, [1, 77, 128]."""
        return self.embed([""])

    @classmethod
    def open(cls, device: torch.device) -> Studio:
        source = FAMILY / "first_frame"
        vae = load_part(AutoencoderKL, Component.at(source, "vae"), torch.float32).eval().to(device)
        text = load_part(CLIPTextModel, Component.at(source, "text_encoder"), torch.float32).eval()
        tokenizer = load_tokenizer(Component.at(source, "tokenizer"), text)
        return cls(vae.to(memory_format=torch.channels_last), text.to(device), tokenizer, device)

    @torch.no_grad()
    def encode(self, clips: np.ndarray) -> Tensor:
        """uint8 [N, F, 64, 64, 3] -> [N, 12, F, 16, 16]."""
        pixels = to_unit(on_device(clips, self.device)).flatten(0, 1)
        parts = pixels.contiguous(memory_format=torch.channels_last).split(256)
        latents = torch.cat([self.vae.encode(part).latent_dist.mean for part in parts])
        return latents.unflatten(0, clips.shape[:2]).transpose(1, 2)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """[N, 77, 128], as the video UNet takes them."""
        options = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
        ids = self.tokenizer(texts, **options).input_ids
        return self.text_encoder(on_device(ids.numpy(), self.device)).last_hidden_state


class Film:
    """Takes what the cameras have filmed into the archives."""

    studio: Studio
    archives: dict[int, Archive]

    def __init__(self, clips: int, cameras: int, at_once: int = AT_ONCE) -> None:
        """`clips` in all by `cameras` processes; `at_once` of a length are encoded together."""
        self.at_once, self.ahead, self.closed = at_once, Semaphore(8 * at_once), False
        self.pool = get_context("fork").Pool(cameras)
        self.filmed = self.pool.imap(views.film, self._numbers(clips))
        self.waiting: dict[int, list[views.Filmed]] = {views.SHORT: [], views.LONG: []}

    def open(self, studio: Studio) -> None:
        """Where clips go from now on."""
        self.studio = studio
        self.archives = {frames: Archive(frames, studio.device) for frames in self.waiting}

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        self.ahead.release()
        self.pool.terminate()

    def _numbers(self, clips: int) -> Iterator[int]:
        """No more than a few at a time: what is filmed and not taken lies in memory as pixels."""
        for number in range(clips):
            self.ahead.acquire()
            if self.closed:
                return
            yield number

    def __len__(self) -> int:
        return sum(archive.count for archive in self.archives.values())

    def take(self, most: int) -> None:
        """Take what is ready, `most` clips at most; waits for none."""
        for _ in range(most):
            try:
                clip = self.filmed.next(timeout=0)
            except (multiprocessing.TimeoutError, StopIteration):
                return
            self.ahead.release()
            waiting = self.waiting[len(clip.pixels)]
            waiting.append(clip)
            if len(waiting) == self.at_once:
                self._keep(waiting)
                waiting.clear()

    def _keep(self, clips: list[views.Filmed]) -> None:
        texts = self.studio.embed([text for clip in clips for text in clip.captions])
        latents = self.studio.encode(np.stack([clip.pixels for clip in clips]))
        self.archives[latents.shape[2]].add(latents.half(), texts.unflatten(0, (len(clips), -1)).half())

    def draw(self, few: int, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A batch from one archive that has clips so long."""
        fitting = [a for a in self.archives.values() if a.frames >= frames]
        shares = np.array([a.count for a in fitting], float)
        return fitting[int(rng.choice(len(fitting), p=shares / shares.sum()))].draw(few, frames, rng)


@dataclass
class Batch:
    """What a step reads: float32 [B, 12, F, 16, 16] twice, int64 [B] and [B, 77, 128]."""

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    text: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.noisy, self.target, self.timesteps, self.text


class Trainer:
    """The network, its moving average and the optimiser; a step of either kind of batch."""

    def __init__(self, unet: VideoUNet, recipe: WideRecipe, device: torch.device) -> None:
        self.recipe, self.device, self.on_gpu = recipe, device, device.type == "cuda"
        self.unet = unet.to(device, memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self.params, self.averages = list(self.unet.parameters()), list(self.average.parameters())
        self.lr = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            self.params, self.lr, weight_decay=recipe.weight_decay, fused=True, capturable=self.on_gpu
        )
        self.schedule = scheduler()
        self.step = 0
        self.graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Batch, Tensor]] = {}

    def batch(self, film: Film, step: int) -> Batch:
        """The batch of a step: noise, moments and clips follow from its number and what has been filmed."""
        rng = np.random.default_rng((6, step))
        generator = torch.Generator(self.device).manual_seed(step)
        long = step % self.recipe.every_long == self.recipe.every_long - 1
        few, frames = (self.recipe.batch_size // 4, views.LONG) if long else (self.recipe.batch_size, FRAMES)
        clean, text = film.draw(few, frames, rng)
        empty = on_device(rng.random(few) < EMPTY, self.device)
        text = torch.where(empty[:, None, None], film.studio.nothing, text)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        total = self.schedule.config.num_train_timesteps
        timesteps = torch.randint(total, (few,), generator=generator, device=self.device)
        noisy = add_noise(self.schedule, clean, noise, timesteps)
        return Batch(noisy, prediction_target(self.schedule, clean, noise, timesteps), timesteps, text)

    def take_step(self, batch: Batch, rate: float) -> Tensor:
        """One step of the optimiser; returns the loss, on the device."""
        self.lr.fill_(rate)
        self.step += 1
        if not self.on_gpu:
            return self._compute(batch)
        key = tuple(batch.noisy.shape)
        if key not in self.graphs:
            self.graphs[key] = self._capture(batch)
        graph, inputs, loss = self.graphs[key]
        for held, new in zip(inputs.tensors(), batch.tensors(), strict=True):
            held.copy_(new)
        graph.replay()
        return loss

    def _capture(self, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Batch, Tensor]:
        """The step as one CUDA graph; its warm-up takes three steps of rate 0."""
        inputs, rate = Batch(*(tensor.clone() for tensor in batch.tensors())), float(self.lr)
        self.lr.zero_()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self._compute(inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._compute(inputs)
        self.lr.fill_(rate)
        return graph, inputs, loss

    def _compute(self, batch: Batch) -> Tensor:
        with self._precision():
            answer = self.unet(batch.noisy, batch.timesteps, batch.text)
        loss = motion_loss(answer.float(), batch.target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.on_gpu)
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.params], 1 - self.recipe.ema)
        return loss.detach()

    def _precision(self) -> AbstractContextManager:
        # a graph must not keep casts of weights that an earlier step made
        if self.on_gpu:
            return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
        return mixed_precision()

    def save(self, file: Path) -> None:
        state: dict[str, Tensor] = {}
        for (name, param), average in zip(self.unet.named_parameters(), self.averages, strict=True):
            moments = self.optimizer.state[param]
            state |= {f"model/{name}": param, f"average/{name}": average}
            state |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq", "step")}
        facts = {"step": str(self.step), "recipe": json.dumps(asdict(self.recipe))}
        save_tensors(
            file, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, facts
        )

    def load(self, file: Path) -> None:
        """Go on where a run stopped; TrainingError where its recipe was another in more than its steps."""
        facts = read_metadata(file)
        then = json.loads(facts["recipe"])
        if then | {"steps": self.recipe.steps} != asdict(self.recipe):
            raise TrainingError(f"{file} is a run of another recipe: {then}; move it away to start anew")
        tensors = load_tensors(file)
        with torch.no_grad():
            for (name, param), average in zip(self.unet.named_parameters(), self.averages, strict=True):
                param.copy_(tensors[f"model/{name}"])
                average.copy_(tensors[f"average/{name}"])
                # in the parameter's own memory format: the fused optimiser goes by memory, not by index
                moments = {
                    key: torch.empty_like(param).copy_(tensors[f"{key}/{name}"])
                    for key in ("exp_avg", "exp_avg_sq")
                }
                self.optimizer.state[param] = moments | {"step": tensors[f"step/{name}"].to(self.device)}
        self.step = int(facts["step"])


def run(recipe: WideRecipe, film: Film, trainer: Trainer, checkpoint: Path, seconds: float | None) -> bool:
    """Train until the recipe's steps, or `seconds`, are over; False when it was asked to stop, and saved."""
    while len(film) < recipe.first:
        film.take(AT_ONCE)
        time.sleep(0.01)
    began, start, shown = time.monotonic(), trainer.step, 0.0
    with stop_requests() as stop:
        while True:
            elapsed = time.monotonic() - began
            done = elapsed / seconds if seconds else trainer.step / recipe.steps
            if done >= 1 or stop:
                trainer.save(checkpoint)
                return done >= 1
            film.take(4)
            loss = trainer.take_step(
                trainer.batch(film, trainer.step), learning_rate(recipe, trainer.step, done)
            )
            if elapsed - shown > 10:
                shown = elapsed
                rate = (trainer.step - start) / elapsed
                print(
                    f"step {trainer.step} of {recipe.steps}, {len(film)} clips, loss {float(loss):.4f}, "
                    f"{rate:.2f} steps/s",
                    flush=True,
                )
            if trainer.step % recipe.save_every == 0:
                trainer.save(checkpoint)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=WideRecipe.steps, help=f"optimiser steps ({WideRecipe.steps})"
    )
    parser.add_argument("--seconds", type=float, help="train for so long from now on instead")
    parser.add_argument("--clips", type=int, default=20_000, help="clips to film in all (20,000)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--out", type=Path, default=FAMILY / "video" / "unet", help="folder of the network")
    parser.add_argument("--run", type=Path, default=FOLDER, help="folder of the checkpoint")
    args = parser.parse_args()
    return command.run("tiny.wide", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    recipe = WideRecipe(steps=args.steps)
    if args.clips < 2 * recipe.first:
        raise TrainingError(f"clips: got {args.clips}, expected {2 * recipe.first} or more")
    cameras = max(1, (os.cpu_count() or 1) - 2)
    with Film(args.clips, cameras) as film:  # its processes start before a GPU is touched
        return train(recipe, film, args)


def train(recipe: WideRecipe, film: Film, args: argparse.Namespace) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    make_folder(args.run)
    studio = Studio.open(device)
    film.open(studio)
    start = Component.at(FAMILY / "video", "unet")
    trainer = Trainer(load_video_unet(start, torch.float32, None), recipe, device)
    checkpoint = args.run / CHECKPOINT
    if checkpoint.exists():
        trainer.load(checkpoint)
    if not run(recipe, film, trainer, checkpoint, args.seconds):
        print(f"stopped and saved at step {trainer.step}; the same command goes on")
        return STOPPED
    facts = {
        "stage": "base", "model": "tiny", "steps": str(trainer.step), "commit": commit(),
        "clips": str(len(film)), "recipe": json.dumps(asdict(recipe)),
    }  # fmt: skip
    if args.seconds:  # the clock ended it, not the recipe's steps
        facts["seconds"] = str(args.seconds)
    write_network(args.out, trainer.average.cpu(), facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
