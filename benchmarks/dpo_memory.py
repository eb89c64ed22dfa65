"""Memory and time of a DPO step: ours beside a trainer with a second copy of the UNet and separate forwards.

    python -m benchmarks.dpo_memory              half of SD 1.4's width, 16 frames of 160 x 256; 8 GB, minutes
    python -m benchmarks.dpo_memory --quick      a small network: does it still run? records nothing

The plain trainer keeps the frozen reference as another UNet and all frozen weights in float32, and takes
winner and loser through each of the two networks one after the other. Ours switches the LoRA off for the
reference, keeps frozen weights in autocast's dtype, and takes both clips of the pair through together
(`ours`) or one by one (`ours, one by one`). Precision, checkpointing, LoRA and loss are the same for all;
before anything is measured, their losses are compared. Peaks are those of torch's allocator; below them stand
those of SD 1.4 at full size, estimated as `python -m training.memory` does. Prints tables and appends one
JSON line to benchmarks/results/.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import record, timed
from huvidpo.unet import VideoUNet
from training.losses import dpo_loss
from training.memory import (
    DTYPES,
    GIB,
    Autocast,
    LikeCuda,
    attention_on_cuda,
    loss_of,
    make_batch,
    make_network,
    make_optimizer,
    moments,
    peak_growth,
    size_of,
    step,
    trace,
)
from training.recipes import DPORecipe, paper_dpo

HALF_WIDTH: dict[str, Any] = {"block_out_channels": (160, 320, 640, 640)}
QUICK: dict[str, Any] = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
TRAINERS = ("plain", "ours", "ours, one by one")
FACTOR = 8  # pixels per latent

Loss = Callable[[tuple[Tensor, Tensor], Autocast], Tensor]


def make_trainer(
    name: str, config: dict[str, Any], recipe: DPORecipe, device: str
) -> tuple[list[VideoUNet], Loss]:
    """(networks, the one that trains first; loss of a batch). Equal weights whatever the trainer."""
    torch.manual_seed(0)
    if name == "plain":
        unet = make_network(config, dataclasses.replace(recipe, precision="fp32"), device)
        torch.manual_seed(0)
        with torch.device(device):
            reference = VideoUNet.from_config(config).requires_grad_(False)
        networks, loss = [unet, reference], plain_loss(unet, reference, recipe.beta)
    else:
        recipe = dataclasses.replace(recipe, one_forward=name == "ours")
        unet = make_network(config, recipe, device)
        networks, loss = [unet], lambda batch, autocast: loss_of(unet, recipe, *batch, autocast)
    torch.manual_seed(1)
    for parameter_name, parameter in unet.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.02)  # else the LoRA adds nothing
    return networks, loss


def plain_loss(unet: VideoUNet, reference: VideoUNet, beta: float) -> Loss:
    def loss(batch: tuple[Tensor, Tensor], autocast: Autocast) -> Tensor:
        clips, text = (rows.chunk(2) for rows in batch)

        def predict(network: VideoUNet, i: int) -> Tensor:
            timesteps = torch.zeros(len(clips[i]), dtype=torch.long, device=clips[i].device)
            with autocast():
                return network(clips[i], timesteps, text[i]).float()

        policy = torch.cat([predict(unet, i) for i in (0, 1)])
        with torch.no_grad():
            frozen = torch.cat([predict(reference, i) for i in (0, 1)])
        return dpo_loss(policy, frozen, clips[0], beta=beta)[0]

    return loss


def check_equal(config: dict[str, Any], recipe: DPORecipe, device: str) -> None:
    """All trainers compute the same loss."""
    recipe = dataclasses.replace(recipe, precision="fp32", lora_dropout=0.0, frames=4, height=64, width=64)
    losses = []
    for name in TRAINERS:
        networks, loss = make_trainer(name, config, recipe, device)
        torch.manual_seed(2)
        batch = make_batch(networks[0], recipe, FACTOR, device)
        losses.append(loss(batch, torch.no_grad).item())
    assert max(losses) - min(losses) < 1e-4, f"the trainers disagree: {losses}"


def measure(
    name: str, config: dict[str, Any], recipe: DPORecipe, device: str, repeats: int
) -> dict[str, Any]:
    networks, loss = make_trainer(name, config, recipe, device)
    optimizer = make_optimizer(networks[0], recipe, foreach=None)
    batch = make_batch(networks[0], recipe, FACTOR, device)

    def autocast() -> Any:
        return torch.autocast(device, DTYPES[recipe.precision])

    def whole_step() -> None:
        step(lambda: loss(batch, autocast), optimizer, recipe.clip_norm)

    took = timed(whole_step, repeats, device).median
    weights = size_of(p for network in networks for p in network.parameters())
    held = weights + size_of(moments(optimizer))
    peak = held + peak_growth(whole_step, device)
    return {"trainer": name, "weights_mb": weights >> 20, "peak_mb": peak >> 20, "seconds": round(took, 3)}


def estimate(name: str, config: dict[str, Any], recipe: DPORecipe) -> dict[str, Any]:
    """On a GPU, without one."""
    networks, loss = make_trainer(name, config, recipe, "meta")
    optimizer = make_optimizer(networks[0], recipe, foreach=True)
    batch = make_batch(networks[0], recipe, FACTOR, "meta")
    mode = LikeCuda(DTYPES[recipe.precision], attention_on_cuda)
    if recipe.gradient_checkpointing:
        networks[0].enable_gradient_checkpointing(mode.checkpoint)
    memory = trace(list(networks), optimizer, lambda: loss(batch, mode.forward), batch)
    return {"trainer": name, "weights_mb": memory.parameters >> 20, "peak_mb": memory.peak >> 20}


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n{'trainer':<20}{'weights GiB':>12}{'peak GiB':>10}{'':>7}{'s/step':>9}")
    for row in rows:
        share = row["peak_mb"] / rows[0]["peak_mb"]
        timing = (
            f"{row['seconds']:>9.2f}{row['seconds'] / rows[0]['seconds']:>6.2f}x" if "seconds" in row else ""
        )
        weights, peak = (row[key] * 2**20 / GIB for key in ("weights_mb", "peak_mb"))
        print(f"{row['trainer']:<20}{weights:>12.2f}{peak:>10.2f}{share:>6.2f}x{timing}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("a small network")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    precision = "bf16" if args.device == "cpu" else "fp16"
    recipe = dataclasses.replace(paper_dpo(), precision=precision, height=160, width=256)
    config = HALF_WIDTH
    if args.quick:
        config, recipe = QUICK, dataclasses.replace(recipe, frames=4, height=64, width=64)
    check_equal(QUICK, recipe, args.device)
    repeats = 1 if args.quick else args.repeats
    rows = [measure(name, config, recipe, args.device, repeats) for name in TRAINERS]
    show(f"measured on {args.device}, {precision}, {recipe.frames} x {recipe.height} x {recipe.width}", rows)
    full, size = (QUICK, "small network") if args.quick else ({}, "SD 1.4")
    estimates = [estimate(name, full, paper_dpo()) for name in TRAINERS]
    show(f"estimated for a GPU, {size}, fp16, 16 x 320 x 512", estimates)
    if not args.quick:
        record(args, args.device, rows=rows, estimates=estimates)


if __name__ == "__main__":
    main()
