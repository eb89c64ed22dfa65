"""Train the tiny CLIP: its text tower conditions both diffusion models, the whole of it is the judge.

    python -m tiny.clip --threads 2

The vocabulary is a CLIP BPE learned on the caption grammar, so that every word of it is one token and any
other word falls back to letters (bytes). Half of all captions lose words at random: people type bare prompts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from huvidpo.hardware import mixed_precision
from tiny.common import DATA, FAMILY, fit, parse_recipe
from tiny.dataset import load_split
from tiny.world import CATEGORIES, COLOURS, PLACES, SENTENCES, STYLES, Scene, caption, style_words
from training.recipes import Recipe

BATCH, CONTEXT, WIDTH = 128, 48, 128
RECIPE = Recipe(
    steps=1300, batch_size=BATCH, lr=1e-3, warmup_steps=200, cooldown=0.25, weight_decay=0.1,
    precision="bf16", ema=0.995, save_every=100, sample_every=200,
)  # fmt: skip
# CLIP's own pixel statistics would do as well; these keep [0, 1] -> [-1, 1].
MEAN = STD = (0.5, 0.5, 0.5)


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges come from the caption grammar plus one piece for every byte."""
    blank = CLIPTokenizer()
    letters = sorted(ByteLevel.alphabet())  # every byte has a piece, so no text is ever unknown
    trainer = BpeTrainer(
        vocab_size=1024,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        show_progress=False,
    )
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer, bpe.pre_tokenizer = (
        blank.backend_tokenizer.normalizer,
        blank.backend_tokenizer.pre_tokenizer,
    )
    sentences = [
        s.format(c=c + " ", p=p)
        for part in SENTENCES.values()
        for s in part
        for c in COLOURS
        for q in PLACES.values()
        for p in q.phrases
    ]
    bpe.train_from_iterator(
        sentences + [f"{style_words(s)} style, photo of the a an" for s in STYLES] * 50, trainer
    )
    learned = json.loads(bpe.to_str())["model"]
    letters += [letter + "</w>" for letter in letters]
    pieces = letters + [piece for piece in learned["vocab"] if piece not in set(letters)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces + special)}
    merges = [tuple(merge) for merge in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=tower
            | ids
            | {"vocab_size": len(tokenizer), "num_hidden_layers": 3, "max_position_embeddings": CONTEXT},
            vision_config=tower | {"num_hidden_layers": 4, "image_size": 64, "patch_size": 8},
            projection_dim=WIDTH,
            attn_implementation="eager",  # see mixed_precision
            seen_only="the drawn world of tiny/world.py",  # judging says so beside other clips
        )
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [N, longest]. The text tower is causal: padding to the full context would change nothing."""
    return tokenizer(
        texts, padding="longest", truncation=True, max_length=CONTEXT, return_tensors="pt"
    ).input_ids


def normalised(pixels: np.ndarray) -> Tensor:
    return (torch.from_numpy(pixels).float() / 127.5 - 1).movedim(-1, -3)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy; images, texts: [B, D] unit vectors."""
    logits = scale * images @ texts.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def features(model: CLIPModel, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    out = model(input_ids=ids, pixel_values=images)
    return out.image_embeds.float(), out.text_embeds.float()


@torch.no_grad()
def retrieval(
    model: CLIPModel, tokenizer: CLIPTokenizer, pictures: np.ndarray, scenes: list[Scene]
) -> dict[str, float]:
    """Recall of the right caption among all, and zero-shot accuracy of category and style."""
    images, texts = features(model, normalised(pictures), tokenize(tokenizer, [caption(s) for s in scenes]))
    rank = (images @ texts.T).argsort(1, descending=True)
    hit = (rank == torch.arange(len(rank))[:, None]).numpy()
    guess = zero_shot(model, tokenizer, images)
    result = {
        "recall_at_1": hit[:, 0].mean(),
        "recall_at_5": hit[:, :5].any(1).mean(),
        "category": np.mean([g[0] == s.category for g, s in zip(guess, scenes, strict=True)]),
        "style": np.mean([g[1] == s.style for g, s in zip(guess, scenes, strict=True)]),
    }
    return {key: round(float(value), 4) for key, value in result.items()}


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor) -> list[tuple[str, str]]:
    """The (category, style) whose caption without colour and place fits each image embedding [N, D] best."""
    labels = [(c, s) for c in CATEGORIES for s in STYLES]
    texts = [f"{SENTENCES[c][0].format(c='', p='').strip()}, {style_words(s)} style" for c, s in labels]
    prompts = F.normalize(model.get_text_features(tokenize(tokenizer, texts)).pooler_output.float(), dim=-1)
    return [labels[i] for i in (images @ prompts.T).argmax(1).tolist()]


def save(model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Write the judge and, from its text tower, both text encoders that an SDXL pipeline expects."""
    model = model.half()
    judge = FAMILY / "clip"
    model.save_pretrained(judge)
    tokenizer.save_pretrained(judge)
    CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size=64, image_mean=MEAN, image_std=STD
    ).save_pretrained(judge)
    for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        kind.from_pretrained(judge, dtype=torch.float16).save_pretrained(FAMILY / "first_frame" / name)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(FAMILY / "first_frame" / name)


@dataclass(frozen=True)
class Matching:
    """Training of the CLIP for the loop: `training.loop.Task`. Half first frames, half any frame."""

    tokenizer: CLIPTokenizer
    stills: tuple[np.ndarray, list[Scene]]
    clips: tuple[np.ndarray, list[Scene]]
    held_out: tuple[np.ndarray, list[Scene]]

    def loss(self, model: Any, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(draw)
        (stills, scenes), (clips, clip_scenes) = self.stills, self.clips
        first = np.sort(rng.choice(len(stills), BATCH // 2, replace=False))
        others = np.sort(rng.choice(len(clips), BATCH // 2, replace=False))
        frames = np.stack([clips[i, rng.integers(clips.shape[1])] for i in others])
        pictures = np.concatenate([stills[first], frames])
        chosen = [scenes[i] for i in first] + [clip_scenes[i] for i in others]
        drop = rng.choice([0.0, 0.4], len(chosen))
        ids = tokenize(self.tokenizer, [caption(s, rng, d) for s, d in zip(chosen, drop, strict=True)])
        with mixed_precision():
            images, texts = features(model, normalised(pictures), ids)
        return contrastive_loss(images, texts, model.logit_scale.exp().clamp(max=100)), {}

    def describe(self, draw: int) -> str:
        return f"random pictures number {draw}"

    def evaluate(self, model: Any) -> dict[str, float]:
        return retrieval(model, self.tokenizer, *self.held_out)

    def sample(self, step: int, folder: Path) -> None:
        """A judge draws nothing."""


def main() -> None:
    recipe = parse_recipe("Train the tiny CLIP.", RECIPE)
    pictures, scenes = load_split(DATA, "held_out")
    tokenizer = build_tokenizer()
    model = build(tokenizer)
    held_out = (pictures[:, 0], scenes)
    task = Matching(tokenizer, load_split(DATA, "stills"), load_split(DATA, "clips"), held_out)
    fit("clip", model, task, recipe)
    print(json.dumps(retrieval(model, tokenizer, *held_out)))
    save(model, tokenizer)


if __name__ == "__main__":
    main()
