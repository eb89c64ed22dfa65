"""Teach the tiny family's text encoder other words for what it knows; no other network changes.

    python -m tiny.wording --threads 1      # from the text encoder that is there; a stopped run goes on

Both UNets have learned to read the text encoder of `tiny.clip`, which knows the captions of `tiny.world` and
no more. Its successor has a vocabulary of thousands, 77 tokens and one layer more, and learns that a wording
of `tiny.second.words` - synonyms, word orders, tags, typos, four other languages - means what the plain
caption of the same facts means: for queries that the UNets really ask, each of their attentions to the text
(attn2) must answer the same, and the pooled embedding must be the same. The first text encoder is the
teacher; captions in its own words stay what they were. No picture is needed, and what the UNets know is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from huvidpo.catalog import Component
from huvidpo.hardware import mixed_precision
from huvidpo.loading import load_part, load_tokenizer, load_video_unet
from tiny import world
from tiny.clip import save
from tiny.common import FAMILY, fit, parse_recipe, scheduler, to_unit
from tiny.first_frame import condition
from tiny.second import words
from tiny.second.networks import build_tokenizer
from tiny.second.world import STILL
from tiny.second.world import Scene as SecondScene
from training.recipes import Recipe

BATCH, CONTEXT = 64, 77
RECIPE = Recipe(
    steps=1_100, batch_size=BATCH, lr=2e-3, warmup_steps=200, cooldown=0.4, weight_decay=0.01,
    precision="bf16", ema=0.998, save_every=100, sample_every=1_000,
)  # fmt: skip
TEACHER = Path("runs/tiny/teacher")  # the family's CLIP as `tiny.clip` left it
QUERIES, ASKED = 2_048, 32  # kept of each attention, and of them in a step
DROPS = (0.0, 0.3)
OWN = 0.25  # share of captions in the teacher's own words, whose meaning must stay
EMPTY = 0.2  # share of those that are empty, as a negative prompt is


class Said(NamedTuple):
    """A text, and the teacher's words for the same."""

    text: str
    plain: str


def plain(scene: world.Scene, colour: bool = True, place: bool = True, style: bool = True) -> str:
    """Some facts of a scene in the first wording of `tiny.world.caption`."""
    said = scene.colour + " " if colour else ""
    where = world.PLACES[scene.place].phrases[0] if place else ""
    text = world.SENTENCES[scene.category][0].format(c=said, p=where).strip()
    return f"{text}, {world.style_words(scene.style)} style" if style else text


def draw(scene: world.Scene, rng: np.random.Generator) -> Said:
    """A wording of a scene: in half of them the style stands behind, as the service puts it there."""
    drop = float(rng.choice(DROPS))
    if rng.random() < OWN:
        text = "" if rng.random() < EMPTY else world.caption(scene, rng, drop)
        return Said(text, text)
    colour, place, style = (rng.random(3) >= drop).tolist()
    behind = style and rng.random() < 0.5
    text = words.wording(as_second(scene), rng, colour, place, style and not behind)
    if behind:
        text = f"{text}, {world.style_words(scene.style)} style"
    return Said(text, plain(scene, colour, place, style))


def as_second(scene: world.Scene) -> SecondScene:
    """The scene for `tiny.second.words`; the camera stands still."""
    return SecondScene(scene.category, scene.style, scene.place, scene.colour, STILL, scene.seed)


def start(old: CLIPModel, old_tokenizer: CLIPTokenizer, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP that answers as `old` does wherever both tokenizers cut alike: pieces that both know keep their
    embeddings, places beyond the old context repeat the last, and the added first layer adds nothing yet.
    """
    config = type(old.config).from_dict(old.config.to_dict())
    text = config.text_config
    text.vocab_size, text.max_position_embeddings = len(tokenizer), CONTEXT
    text.num_hidden_layers += 1
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, name, getattr(tokenizer, name))
    config.seen_only = "the drawn world of tiny/world.py"
    config._attn_implementation = "eager"  # see mixed_precision
    new = CLIPModel(config)
    kept = {
        name: value
        for name, value in old.state_dict().items()
        if not name.startswith(("text_model.embeddings", "text_model.encoder.layers"))
    }
    new.load_state_dict(kept, strict=False)
    known, pieces = old_tokenizer.get_vocab(), tokenizer.get_vocab()
    there, here = old.text_model.embeddings, new.text_model.embeddings
    with torch.no_grad():
        here.token_embedding.weight.normal_(0, float(there.token_embedding.weight.std()))
        for piece, i in pieces.items():
            if piece in known:
                here.token_embedding.weight[i] = there.token_embedding.weight[known[piece]]
        positions = there.position_embedding.weight
        here.position_embedding.weight[:] = positions[-1]
        here.position_embedding.weight[: len(positions)] = positions
        layers = new.text_model.encoder.layers
        for mine, its in zip(layers[1:], old.text_model.encoder.layers, strict=True):
            mine.load_state_dict(its.state_dict())
        for last in (layers[0].self_attn.out_proj, layers[0].mlp.fc2):
            last.weight.zero_()
            last.bias.zero_()
    return new


class Reader(NamedTuple):
    """One of a UNet's attentions to the text."""

    attention: Any
    queries: Tensor
    """[QUERIES, C], of real forwards."""
    penultimate: bool
    """Whether it reads what SDXL's UNet does - the last states but one, twice - or the last."""

    def answers(self, asked: Tensor, states: Tensor) -> Tensor:
        """[B, ASKED, C] of texts [B, L, ...]: what the attention adds to the picture."""
        heads = self.attention.heads

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (heads, -1)).transpose(1, 2)

        q = split(self.queries[asked].expand(len(states), -1, -1))
        k, v = split(self.attention.to_k(states)), split(self.attention.to_v(states))
        seen = F.scaled_dot_product_attention(q, k, v)
        return F.linear(seen.transpose(1, 2).flatten(2), self.attention.to_out[0].weight)


def readers_of(unet: nn.Module, forward: Any, penultimate: bool) -> list[Reader]:
    """The attentions to text of a UNet, with queries of `forward`, which runs it."""
    found: dict[str, list[Tensor]] = {}
    modules = {name: m for name, m in unet.named_modules() if name.endswith("attn2")}
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, name=name: found.setdefault(name, []).append(m.to_q(args[0]).flatten(0, -2))
        )
        for name, module in modules.items()
    ]
    with torch.no_grad():
        forward()
    for hook in hooks:
        hook.remove()
    result = []
    for name, module in modules.items():
        asked = torch.cat(found[name])
        some = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0))[:QUERIES]
        result.append(Reader(module.requires_grad_(False), asked[some].clone(), penultimate))
    return result


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """uint8 [F, 64, 64, 3] -> float16 [12, F, 16, 16]."""
    pixels = to_unit(torch.from_numpy(np.ascontiguousarray(pictures)))
    parts = [
        vae.encode(part.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        for part in pixels.split(16)
    ]
    return torch.cat(parts).transpose(0, 1).numpy().astype(np.float16)


def all_readers(teacher: Tower) -> list[Reader]:
    """Of both UNets, asked while they denoise 32 true pictures and 8 true clips."""
    folder = FAMILY / "first_frame"
    vae = load_part(AutoencoderKL, Component.at(folder, "vae"), torch.float32).eval()
    first = load_part(UNet2DConditionModel, Component.at(folder, "unet"), torch.float32).eval()
    video = load_video_unet(Component.at(FAMILY / "video", "unet"), torch.float32, None).eval()
    scenes = world.random_scenes(32, 41)
    pictures = np.stack([world.render(s, 1)[0] for s in scenes])
    clips = np.stack([encode(vae, world.render(s)) for s in scenes[:8]])
    schedule, generator = scheduler(), torch.Generator().manual_seed(0)
    (last, before), pooled = teacher.states([plain(s) for s in scenes])

    def noised(clean: np.ndarray) -> tuple[Tensor, Tensor]:
        t = torch.randint(1000, (len(clean),), generator=generator)
        x = torch.from_numpy(clean.astype(np.float32))
        return schedule.add_noise(x, torch.randn(x.shape, generator=generator), t), t

    x, t = noised(encode(vae, pictures).swapaxes(0, 1))
    y, u = noised(clips)
    return [
        *readers_of(
            first, lambda: first(x, t, torch.cat([before] * 2, -1), added_cond_kwargs=condition(pooled)), True
        ),
        *readers_of(video, lambda: video(y, u, last[:8]), False),
    ]


@dataclass(frozen=True)
class Tower:
    model: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer

    def states(self, texts: Sequence[str]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The last hidden states and the last but one [N, L, 128], and pooled embeddings [N, 128]."""
        return self.outputs(self.model, texts)

    def outputs(self, model: Any, texts: Sequence[str]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        longest = model.config.max_position_embeddings
        options = {"padding": "max_length", "truncation": True, "max_length": longest, "return_tensors": "pt"}
        ids = self.tokenizer(list(texts), **options).input_ids
        out = model(ids, output_hidden_states=True)
        return (out.last_hidden_state.float(), out.hidden_states[-2].float()), out.text_embeds.float()


@dataclass(frozen=True)
class Rewording:
    """`training.loop.Task`: the new text encoder answers both UNets as the old one answers plain words."""

    student: Tower
    teacher: Tower
    readers: list[Reader]

    def loss(
        self, model: Any, draw_number: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((6, draw_number))
        scenes = [world.random_scene(rng, world.CATEGORIES[i % 8]) for i in range(BATCH)]
        return self.distance(model, [draw(s, rng) for s in scenes], generator)

    def distance(
        self, model: Any, said: Sequence[Said], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean squared difference of answers, of each attention in units of how much texts differ there."""
        with torch.no_grad():
            (last, before), pooled = self.teacher.states([s.plain for s in said])
        with mixed_precision():
            (my_last, my_before), mine = self.student.outputs(model, [s.text for s in said])
        parts = []
        for reader in self.readers:
            asked = torch.randint(len(reader.queries), (ASKED,), generator=generator)
            old, new = (
                torch.cat([b, b], -1) if reader.penultimate else a
                for a, b in ((last, before), (my_last, my_before))
            )
            right = reader.answers(asked, old)
            spread = right.var(0).mean().clamp(min=1e-6)
            parts.append((reader.answers(asked, new) - right).square().mean() / spread)
        embedding = (mine - pooled).square().mean() / pooled.var(0).mean()
        attention = torch.stack(parts).mean()
        return attention + embedding, {"attention": attention.item(), "pooled": embedding.item()}

    def describe(self, draw: int) -> str:
        return f"random captions number {draw}"

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        """The distance for plain captions, other words, and sentences that no training has."""
        rng = np.random.default_rng(7)
        scenes = world.random_scenes(256, 42)
        result = {}
        for name, said in {
            "plain": [Said(plain(s), plain(s)) for s in scenes],
            "other_words": [
                Said(words.wording(as_second(s), rng, True, True, True), plain(s)) for s in scenes
            ],
            "held_out": [Said(words.held_out(as_second(s), rng), plain(s)) for s in scenes],
        }.items():
            result[name] = float(self.distance(model, said, torch.Generator().manual_seed(0))[0])
        return result

    def sample(self, step: int, folder: Path) -> None:
        """There is nothing to look at."""


def text_tower(clip: CLIPModel) -> CLIPTextModelWithProjection:
    tower = CLIPTextModelWithProjection(clip.config.text_config)
    tower.load_state_dict({name: clip.state_dict()[name] for name in tower.state_dict()})
    return tower


def main() -> None:
    recipe = parse_recipe("Teach the tiny text encoder other words.", RECIPE)
    now = load_part(CLIPModel, Component.at(FAMILY, "clip"), torch.float32)
    if now.config.text_config.max_position_embeddings != CONTEXT:  # that of `tiny.clip`
        now.save_pretrained(TEACHER)
        load_tokenizer(Component.at(FAMILY, "clip"), now).save_pretrained(TEACHER)
    elif not TEACHER.exists():
        sys.exit("models/tiny/clip knows other words already; python -m tiny.clip trains a teacher for it")
    old = load_part(CLIPModel, Component.at(TEACHER), torch.float32).eval()
    old_tokenizer, tokenizer = load_tokenizer(Component.at(TEACHER), old), build_tokenizer()
    clip = start(old, old_tokenizer, tokenizer)
    text, teacher = text_tower(clip), Tower(text_tower(old).eval(), old_tokenizer)
    task = Rewording(Tower(text, tokenizer), teacher, all_readers(teacher))
    fit("wording", text, task, recipe)
    print(json.dumps(task.evaluate(text)))
    clip.load_state_dict(text.state_dict(), strict=False)
    save(clip, tokenizer)


if __name__ == "__main__":
    main()
