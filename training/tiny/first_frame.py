"""Train the SDXL-shaped first-frame UNet of the tiny family and write its StableDiffusionXLPipeline folder.

    python -m training.tiny.first_frame --steps 6000 --threads 2

v-prediction with zero terminal SNR and trailing timesteps (Lin et al. 2023, arXiv:2305.08891); 10 % of the
captions are empty, for classifier-free guidance.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from training.tiny.common import (
    DATA,
    FAMILY,
    RUNS,
    FitConfig,
    common_arguments,
    fit,
    mixed_precision,
    prepare,
    scheduler,
)
from training.tiny.dataset import load_split
from training.tiny.world import CATEGORIES, STYLES, caption, contact_sheet, random_scene

BATCH, CONTEXT = 64, 48
FOLDER = FAMILY / "first_frame"
TIME_IDS = (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)  # original size, crop corner, target size, as SDXL has them


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=(2, 4),  # diffusers' name for the number of heads
        cross_attention_dim=256,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=128 + 6 * 32,
    )


class TextTowers:
    """Both text encoders as SDXL uses them: penultimate states side by side, and the pooled projection."""

    def __init__(self) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
        self.one = CLIPTextModel.from_pretrained(FOLDER / "text_encoder", dtype=torch.float32).eval()
        self.two = CLIPTextModelWithProjection.from_pretrained(
            FOLDER / "text_encoder_2", dtype=torch.float32
        ).eval()

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Hidden states [N, 48, 256] and pooled embeddings [N, 128]."""
        options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        ids = self.tokenizer(texts, **options).input_ids
        first = self.one(ids, output_hidden_states=True)
        second = self.two(ids, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def assemble(unet: UNet2DConditionModel) -> None:
    """Write the UNet and the pipeline's index beside the VAE and text encoders that are there already."""
    unet.half().save_pretrained(FOLDER / "unet")
    scheduler().save_pretrained(FOLDER / "scheduler")
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(FOLDER / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(FOLDER / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(FOLDER / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(FOLDER / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(FOLDER / "tokenizer_2"),
        unet=unet,
        scheduler=scheduler(),
        # Trained with the empty caption as "unconditional": an empty negative prompt is encoded, not zeroed.
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.save_config(FOLDER)


@torch.no_grad()
def sample_sheet(
    unet: UNet2DConditionModel, towers: TextTowers, vae: AutoencoderKL, guidance: float = 3.0
) -> np.ndarray:
    """One picture per category and style from fixed seeds: uint8 [8 * 64, 4 * 64, 3]."""
    rng = np.random.default_rng(0)
    captions = [caption(random_scene(rng, c, s)) for c in CATEGORIES for s in STYLES]
    text, pooled = towers(captions + [""] * len(captions))
    latents = torch.randn(len(captions), 12, 16, 16, generator=torch.Generator().manual_seed(0))
    steps = scheduler()
    steps.set_timesteps(20)
    condition = {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS]).repeat(len(pooled), 1)}
    for t in steps.timesteps:
        with mixed_precision():
            cond, uncond = (
                unet(torch.cat([latents] * 2), t, text, added_cond_kwargs=condition).sample.float().chunk(2)
            )
        latents = steps.step(uncond + guidance * (cond - uncond), t, latents).prev_sample
    pictures = (
        (vae.decode(latents).sample.clamp(-1, 1).movedim(1, -1) * 127.5 + 127.5)
        .round()
        .to(torch.uint8)
        .numpy()
    )
    return contact_sheet([list(pictures[i : i + 8]) for i in range(0, 32, 8)])


def main() -> None:
    args = common_arguments("Train the tiny first-frame UNet.", steps=6000).parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    scenes = load_split(DATA, "stills")[1]
    latents = np.load(DATA / "stills_latents.npy", mmap_mode="r")
    towers, schedule = TextTowers(), scheduler()
    unet = prepare(build())
    vae = AutoencoderKL.from_pretrained(FOLDER / "vae", torch_dtype=torch.float32).eval()

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(step)
        chosen = np.sort(rng.choice(len(latents), BATCH, replace=False))
        drop = rng.choice([0.0, 0.3], BATCH)
        empty = rng.random(BATCH) < 0.1
        texts = ["" if e else caption(scenes[i], rng, d) for i, d, e in zip(chosen, drop, empty, strict=True)]
        clean = torch.from_numpy(latents[chosen].astype(np.float32))
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(schedule.config.num_train_timesteps, (BATCH,), generator=generator)
        noisy = schedule.add_noise(clean, noise, t).contiguous(memory_format=torch.channels_last)
        target = schedule.get_velocity(clean, noise, t)
        with mixed_precision():
            text, pooled = towers(texts)
            condition = {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS]).repeat(BATCH, 1)}
            out = unet(noisy, t, text, added_cond_kwargs=condition).sample
        return F.mse_loss(out.float(), target)

    def log(step: int, model: torch.nn.Module) -> None:
        if step // 500 != log.seen:  # type: ignore[attr-defined]
            log.seen = step // 500  # type: ignore[attr-defined]
            save_picture(sample_sheet(model.eval(), towers, vae), step)

    log.seen = 0  # type: ignore[attr-defined]
    fit("first_frame", unet, loss_of, FitConfig(args.steps, lr=1e-3), log)
    save_picture(sample_sheet(unet, towers, vae), args.steps)
    assemble(unet)


def save_picture(sheet: np.ndarray, step: int) -> None:
    from PIL import Image

    picture = Image.fromarray(sheet)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(
        RUNS / f"first_frame_{step:06d}.png"
    )


if __name__ == "__main__":
    main()
