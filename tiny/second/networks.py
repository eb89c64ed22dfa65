"""The networks of the second generation, with fresh weights, and the tokenizer of its words."""

from __future__ import annotations

import json

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from huvidpo.unet import VideoUNet
from tiny.second import words
from tiny.second.common import CHANNELS, CONTEXT, SIDE, SIZE, WIDTH
from tiny.second.world import random_scenes

VOCABULARY = 3072
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges come from drawn captions plus one piece for every byte."""
    blank = CLIPTokenizer().backend_tokenizer
    letters = sorted(ByteLevel.alphabet())  # every byte has a piece, so no text is ever unknown
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer, bpe.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    # as special tokens: else their numbers, which decide between merges of equal count, are those of a run
    endings = [letter + "</w>" for letter in letters]
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL), end_of_word_suffix="</w>", special_tokens=endings,
        initial_alphabet=letters, show_progress=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    bpe.train_from_iterator([words.caption(s, rng, 0.1) for s in random_scenes(40_000, 20, 40)], trainer)
    learned = json.loads(bpe.to_str())["model"]
    letters += endings
    pieces = letters + [piece for piece in learned["vocab"] if piece not in set(letters)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *SPECIAL])}
    merges = [tuple(merge) for merge in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tower = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }  # fmt: skip
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 4, "max_position_embeddings": CONTEXT}
    return CLIPModel(
        CLIPConfig(
            text_config=tower | ids | text,
            vision_config=tower | {"num_hidden_layers": 4, "image_size": SIZE, "patch_size": 16},
            projection_dim=WIDTH,
            attn_implementation="eager",  # see huvidpo.hardware.mixed_precision
        )
    )


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
    )


def build_first_frame() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=(2, 4),  # diffusers' name for the number of heads
        cross_attention_dim=2 * WIDTH,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=WIDTH + 6 * 32,
    )


def build_video() -> VideoUNet:
    """SD 1.x's shape at two levels, inflated."""
    torch.manual_seed(0)
    image_unet = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=2,  # SD 1.x's name for the number of heads
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
    )
    return VideoUNet.from_2d(image_unet)
