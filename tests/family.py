"""A random-weight model family in the layout of models/tiny, built by the real classes in about a second.

`build_random_family(folder)` writes the family into `folder` and a catalog into `folder/catalog` whose
`tiny` model points at it: set HUVIDPO_CATALOG to that folder and everything that asks for `tiny` gets the
random one. Its clips are 16 frames of 32 x 32 pixels; the text context is 48 tokens.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

CONTEXT = 48  # tokens
TEXT_WIDTH = 32
POOLED_WIDTH = 24
LATENT_CHANNELS = 8
SIZE = 32  # pixels
WORDS = [
    "a",
    "an",
    "and",
    "at",
    "in",
    "on",
    "of",
    "the",
    "over",
    "with",
    "white",
    "red",
    "night",
    "sky",
    "sea",
    "mars",
    "horse",
    "runs",
    "waterfall",
    "winter",
    "man",
    "woman",
    "smiles",
    "fireworks",
    "guitar",
    "plays",
    "birds",
    "fly",
    "pink",
    "helicopter",
    "flies",
    "rain",
    "falls",
    "pixel",
    "art",
    "claymation",
    "cartoon",
    "realistic",
    "style",
]  # whole words of the vocabulary


def build_random_family(folder: Path, *, zero_snr: bool = True) -> Path:
    """Writes the family into `folder` and returns `folder`. `zero_snr`: v-prediction with zero terminal SNR,
    else epsilon.
    """
    folder = Path(folder)
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        tokenizer = _tokenizer()
        _first_frame(tokenizer, zero_snr).save_pretrained(folder / "first_frame")
        _video(folder, zero_snr)
        _judge(tokenizer, folder / "clip")
    finally:
        torch.random.set_rng_state(generator_state)
    _catalog(folder)
    return folder


def build_plain_family(folder: Path) -> Path:
    """The random family with SD 1.x's first-frame pipeline: one text encoder, PNDM."""
    first = build_random_family(folder) / "first_frame"
    torch.manual_seed(0)
    image_unet().save_pretrained(first / "unet")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    PNDMScheduler(**betas, skip_prk_steps=True, set_alpha_to_one=False).save_pretrained(first / "scheduler")
    (first / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def add_preferences(folder: Path, category: str = "horse") -> Path:
    """Merges a random adapter into a category of the family and keeps it beside it, as `training.merge` does;
    what it was before is `stage1.safetensors` of the family. Returns the file of its weights.
    """
    from huvidpo.checkpoint import load_tensors, save_tensors
    from huvidpo.lora import merge
    from huvidpo.strength import write_adapter
    from huvidpo.unet import VideoUNet

    generator = torch.Generator().manual_seed(1)
    unet = VideoUNet.from_pretrained(folder / "video" / "unet")
    file, stage1 = folder / "categories" / f"{category}.safetensors", folder / "stage1.safetensors"
    motion, lora = load_tensors(file), {}
    for name, weight in unet.state_dict().items():
        if name.endswith("attn1.to_q.weight"):
            layer = name.removesuffix(".weight")
            lora[f"{layer}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=generator)
            lora[f"{layer}.lora_B.weight"] = 0.2 * torch.randn(weight.shape[0], 2, generator=generator)
    save_tensors(stage1, motion, {})
    save_tensors(file, motion | merge({**unet.state_dict(), **motion}, lora, 4.0), {})
    write_adapter(file, lora, {"lora_rank": "2", "lora_alpha": "4"})
    return file


def _tokenizer() -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())  # all 256 bytes: no text is unknown
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for i in range(1, len(pieces)):
            pair = ("".join(pieces[:i]), pieces[i])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        projection_dim=POOLED_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _scheduler_config(zero_snr: bool) -> dict:
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if zero_snr:
        return schedule | {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "clip_sample": False,
        }
    return schedule | {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}


def _vae() -> AutoencoderKL:
    """Factor 4, 8 channels."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        layers_per_block=1,
        mid_block_add_attention=False,
        sample_size=SIZE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def _first_frame(tokenizer: CLIPTokenizer, zero_snr: bool) -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * 8,
    )
    scheduler_class = DDIMScheduler if zero_snr else EulerDiscreteScheduler
    config = _text_config(tokenizer)
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler_class.from_config(_scheduler_config(zero_snr)),
        add_watermarker=False,
    )


def image_unet() -> UNet2DConditionModel:
    """What the video UNet is inflated from, with fresh weights."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
    )


def _video(folder: Path, zero_snr: bool) -> None:
    from huvidpo.unet import VideoUNet

    unet2d = image_unet()
    unet = VideoUNet.from_2d(unet2d)
    for name, parameter in unet.named_parameters():
        if ".conv1d." in name or ".conv_gate." in name or ".attn_temp." in name:
            torch.nn.init.normal_(parameter, std=0.05)  # these start at zero: nothing would depend on them
    unet.save_pretrained(folder / "video" / "unet")
    DDIMScheduler.from_config(_scheduler_config(zero_snr)).save_pretrained(folder / "video" / "scheduler")

    (folder / "categories").mkdir(parents=True, exist_ok=True)
    motion = {name: value for name, value in unet.state_dict().items() if ".conv1d." in name}
    for category in ("horse", "rain"):  # the others fall back to the base, as the layout allows
        weights = {name: value + 0.05 * torch.randn_like(value) for name, value in motion.items()}
        save_file(weights, folder / "categories" / f"{category}.safetensors")


def _judge(tokenizer: CLIPTokenizer, folder: Path) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": SIZE, "patch_size": 8, "projection_dim": POOLED_WIDTH}
    config = CLIPConfig(
        text_config=_text_config(tokenizer).to_dict(), vision_config=vision, projection_dim=POOLED_WIDTH
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)


def _catalog(folder: Path) -> None:
    root = folder.resolve().as_posix()
    (folder / "catalog").mkdir(exist_ok=True)
    (folder / "words.txt").write_text("\n".join(WORDS))
    (folder / "catalog" / "random.toml").write_text(
        f"""[models.tiny]
description = "random weights, for tests"
first_frame = {{ path = "{root}/first_frame" }}
categories = "{root}/categories"
recipes = {{ motion = "tiny_motion", dpo = "tiny_dpo", dpo_image = "tiny_dpo_image", distill = "tiny_lcm" }}
words = "{root}/words.txt"

[models.tiny.video]
unet = {{ path = "{root}/video", subfolder = "unet" }}
scheduler = {{ path = "{root}/video", subfolder = "scheduler" }}
text_encoder = {{ path = "{root}/first_frame", subfolder = "text_encoder" }}
tokenizer = {{ path = "{root}/first_frame", subfolder = "tokenizer" }}
vae = {{ path = "{root}/first_frame", subfolder = "vae" }}

[models.tiny.defaults]
steps = 3
guidance = 2.0
height = {SIZE}
width = {SIZE}
corrections = "none"
noise_mix = 0.0
first_frame_steps = 3
first_frame_guidance = 2.0
first_frame_size = [{SIZE}, {SIZE}]
""",
        encoding="utf-8",
    )
