"""Find the adapter of merged weights again, from them and the stage-1 weights that they were merged from.

    python -m training.recover --model tiny --merged horse.safetensors --stage1 stage1.safetensors

For weights that were merged before `training.merge` kept their adapter, and whose LoRA is lost: it is written
beside them, and requests may have a `preference_strength`. What was merged is of a low rank, so the singular
vectors of the difference give it, but for the rounding of the two files.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from huvidpo import command
from huvidpo.catalog import load_catalog
from huvidpo.checkpoint import check_fits, load_tensors, read_metadata
from huvidpo.errors import CheckpointError
from huvidpo.files import hash_tensors
from huvidpo.loading import check_lineage, load_video_unet
from huvidpo.strength import write_adapter
from huvidpo.unet import VideoUNet
from training.lineage import commit, metrics_of, write_card
from training.merge import ADAPTER, check_stage1


def recover(unet: VideoUNet, merged: Path, stage1: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(the adapter by peft's names, what is known of it). Raises CheckpointError for files that do not belong
    together, and for a difference that is of no such rank as `merged` says.
    """
    tensors, motion, facts = load_tensors(merged), load_tensors(stage1), read_metadata(merged)
    if "lora_rank" not in facts or "stage1" not in facts:
        raise CheckpointError(f"{merged} does not say lora_rank and stage1: it was not merged here")
    check_stage1(merged, facts, hash_tensors(motion))
    check_lineage(unet, [merged, stage1])
    check_fits(unet, tensors)
    before, rank = {**unet.state_dict(), **motion}, int(facts["lora_rank"])
    adapters: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not torch.equal(tensor.float(), before[name].float()):
            layer = name.removesuffix(".weight")
            up, down = _factors(name, tensor, before[name], rank)
            adapters |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    known = {name: facts[name] for name in ADAPTER if name in facts and name != "merge_commit"}
    return adapters, known | {"lora_alpha": str(rank), "recovered_commit": commit()}


def _factors(name: str, after: Tensor, before: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(B [out, rank], A [rank, in]) whose product is `after` - `before`, in the type of `after`."""
    refused = CheckpointError(f"{name}: what was merged is not of rank {rank}, so it cannot be found again")
    kernel = (1,) * (after.ndim - 2)  # a 1x1 convolution is a matrix
    if after.ndim < 2 or after.shape[2:] != kernel:
        raise refused
    change = (after.double() - before.double()).flatten(1)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    root = s[:rank].sqrt()
    up, down = ((u[:, :rank] * root).to(after.dtype), (root[:, None] * v[:rank]).to(after.dtype))
    left = change - up.double() @ down.double()
    if left.norm() > torch.finfo(after.dtype).eps * after.double().norm():
        raise refused
    return up.reshape(*up.shape, *kernel), down.reshape(*down.shape, *kernel)


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("training.recover", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    model = load_catalog().model(args.model)
    unet = load_video_unet(model.video_unet, torch.float32, model.attention_mode)
    adapters, metadata = recover(unet, args.merged, args.stage1)
    file = write_adapter(args.merged, adapters, metadata)
    write_card(args.merged, metrics_of(args.merged))
    print(f"{file}: {len(adapters) // 2} layers, {file.stat().st_size / 1e6:.1f} MB")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.recover",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument("--merged", required=True, type=Path, help="merged weights (training.merge)")
    parser.add_argument("--stage1", required=True, type=Path, help="the stage-1 weights they came from")
    return parser


if __name__ == "__main__":
    sys.exit(main())
