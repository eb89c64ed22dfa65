"""Merge LoRAs into a category's stage-1 weights, of preferences or of fewer steps: one small file to serve.

    python -m training.merge --model tiny --stage1 horse.safetensors --lora horse_lora.safetensors \\
        --out models/tiny/categories/horse.safetensors --metrics promotion.json
    python -m training.merge --model sd14 --stage1 horse.safetensors --lora horse_lora.safetensors \\
        --out merged.safetensors --full merged_unet
    python -m training.merge --model tiny --stage1 horse.safetensors --fast fast.safetensors \\
        --out models/tiny/categories/horse.safetensors

OUT holds the tensors that differ from the model's shared base: stage 1's, and the attention weights the LoRA
changes. Its metadata is its lineage, stage 1's included; OUT's `.card.json` repeats it for people, with the
metrics. `adapters/` beside it keeps the LoRA, by which a request may ask for more or less of it
(`preference_strength`). `--fast`, a LoRA by `training.distill`, goes in last: after it a category is served
with the few steps it was distilled for, and guidance 1 (`steps` and `guidance` of the model's defaults in the
catalog). `--full` also writes the whole VideoUNet as a diffusers folder.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from huvidpo import command
from huvidpo.catalog import adapter_path, load_catalog
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors
from huvidpo.errors import CheckpointError
from huvidpo.files import hash_tensors, make_way
from huvidpo.loading import check_lineage, load_video_unet
from huvidpo.lora import merge
from huvidpo.strength import lora_alpha, write_adapter
from huvidpo.unet import VideoUNet, fingerprint
from training.lineage import carried_on, commit, write_card
from training.motion import read_stage1, write_base

DISTILLED = "distill"  # the stage that a LoRA of fewer steps is of
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
ADAPTER = ("base", "stage1", "model", "category", "lora_rank", "lora_alpha", "merge_commit")
"""What the adapter beside the merged weights says of itself too."""


def merge_files(unet: VideoUNet, stage1: Path, lora: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors that differ from the base `unet`, float32; their lineage).

    Raises CheckpointError for files that do not fit `unet` or each other, in tensors or in lineage.
    """
    motion, adapters = read_stage1(unet, stage1), load_tensors(lora)
    metadata = read_metadata(lora)
    if metadata.get("stage") == DISTILLED:
        raise CheckpointError(f"{lora} is a LoRA of fewer steps, not of preferences: give it as --fast")
    earlier = {"base": fingerprint(unet), "stage1": hash_tensors(motion)}
    check_stage1(lora, metadata, earlier["stage1"])
    check_lineage(unet, [stage1, lora])
    merged = merge({**unet.state_dict(), **motion}, adapters, lora_alpha(lora, metadata, adapters))
    lineage = {
        **carried_on(read_metadata(stage1), "stage1"),
        **metadata,
        **earlier,
        "stage": "dpo",
        "attention_mode": unet.config.attention_mode,
        "lora": hash_tensors(adapters),
        "merge_commit": commit(),
    }
    return {name: tensor.float() for name, tensor in motion.items()} | merged, lineage


def add_fast(
    unet: VideoUNet, tensors: Mapping[str, Tensor], fast: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(a category's `tensors` with the LoRA of fewer steps in `fast` merged, float32; its lineage).

    Raises CheckpointError for a LoRA of another kind, or one that was trained over another base.
    """
    adapters, metadata = load_tensors(fast), read_metadata(fast)
    if metadata.get("stage") != DISTILLED:
        raise CheckpointError(f"{fast} is no LoRA of fewer steps, which training.distill writes")
    check_lineage(unet, [fast])
    merged = merge({**unet.state_dict(), **tensors}, adapters, lora_alpha(fast, metadata, adapters))
    whole = {name: tensor.float() for name, tensor in tensors.items()} | merged
    return whole, carried_on(metadata, "fast") | {"fast_lora": hash_tensors(adapters)}


def check_stage1(lora: Path, metadata: dict[str, str], at_hand: str) -> None:
    """Raise CheckpointError where `lora` says that it was trained over other stage-1 weights."""
    said = metadata.get("stage1", at_hand)  # a file from elsewhere says nothing
    if said != at_hand:
        raise CheckpointError(
            f"{lora} was trained on other weights: its stage1 is {said[:12]}..., here it is "
            f"{at_hand[:12]}...; give the files it was trained from"
        )


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("training.merge", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    if not (args.lora or args.fast):
        raise CheckpointError(
            "there is nothing to merge: give --lora (training.dpo), --fast (training.distill) or both"
        )
    model = load_catalog().model(args.model)
    make_way(args.out)
    metrics = _read_metrics(args.metrics) if args.metrics else {}
    unet = load_video_unet(model.video_unet, torch.float32, model.attention_mode)
    if args.lora:
        tensors, lineage = merge_files(unet, args.stage1, args.lora)
    else:
        check_lineage(unet, [args.stage1])
        tensors, lineage = read_stage1(unet, args.stage1), read_metadata(args.stage1)
    if args.fast:
        tensors, of_fast = add_fast(unet, tensors, args.fast)
        lineage |= of_fast | {"merge_commit": commit()}
    lineage = {**lineage, "model": model.name}
    save_tensors(args.out, cast(tensors, DTYPES[args.dtype]), lineage)
    if args.lora:
        known = {name: lineage[name] for name in ADAPTER if name in lineage}
        write_adapter(args.out, cast(load_tensors(args.lora), DTYPES[args.dtype]), known)
    else:
        adapter_path(args.out).unlink(missing_ok=True)  # of the weights that were there
    card = write_card(args.out, metrics)
    print(
        f"{args.out}: {len(tensors)} tensors, {args.out.stat().st_size / 1e6:.1f} MB; {card.name} beside it"
    )
    if args.full:
        write_base(args.full, unet, tensors, lineage)
        print(f"{args.full}: the whole VideoUNet, for VideoUNet.from_pretrained")
    return 0


def _read_metrics(file: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read metrics from {file}: {error}") from error
    if not isinstance(metrics, dict):
        raise CheckpointError(f"{file} holds {type(metrics).__name__}; metrics are a JSON object")
    return metrics


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument("--stage1", required=True, type=Path, help="stage-1 weights (training.motion)")
    parser.add_argument("--lora", type=Path, help="LoRA of preferences trained on them (training.dpo)")
    parser.add_argument("--fast", type=Path, help="LoRA of fewer steps (training.distill): merged last")
    parser.add_argument("--out", required=True, type=Path, help="category weights to write (.safetensors)")
    parser.add_argument("--full", type=Path, help="also write the whole VideoUNet into this folder, fp16")
    parser.add_argument("--metrics", type=Path, help="JSON object for the card, promotion.json say")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp16", help="of OUT; default: fp16")
    return parser


if __name__ == "__main__":
    sys.exit(main())
