"""Low-rank adapters as tensors: W + alpha / rank * B A (LoRA, arXiv 2106.09685, Eq. 3).

An adapted layer `x.to_q` has two tensors, named as peft names them: `x.to_q.lora_A.weight` [rank, in] and
`x.to_q.lora_B.weight` [out, rank]. peft may put an adapter's name before `.weight`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from huvidpo.errors import CheckpointError

LORA_NAME = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])(?:\.\w+)?\.weight")


def split_lora(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the tensors of adapters, all others)."""
    lora = {name: tensor for name, tensor in tensors.items() if LORA_NAME.fullmatch(name)}
    return lora, {name: tensor for name, tensor in tensors.items() if name not in lora}


def pair_halves(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight's name -> (A, B). Raises CheckpointError for a name that is no adapter's, or a missing half."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora.items():
        match = LORA_NAME.fullmatch(name)
        if not match:
            raise CheckpointError(f"{name} is no tensor of a LoRA, which is named <layer>.lora_A.weight")
        found.setdefault(f"{match['layer']}.weight", {})[match["half"]] = tensor
    for name, halves in found.items():
        if halves.keys() != {"A", "B"}:
            raise CheckpointError(f"the LoRA of {name} misses its A or B half")
    return {name: (halves["A"], halves["B"]) for name, halves in found.items()}


def merge(base: Mapping[str, Tensor], lora: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The tensors of `base` that the adapters change, merged, in float32 and on the device of `base`'s.

    `alpha` scales every adapter by alpha / rank. Raises CheckpointError for adapters that match no tensor of
    `base` in name or shape, that miss a half, that are none at all, or that are not finite.
    """
    pairs = pair_halves(lora)
    if not pairs:
        raise CheckpointError("there is no LoRA to merge: no tensor is named <layer>.lora_A.weight")
    unknown = sorted(pairs.keys() - base.keys())
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} adapters match no layer of the model: {', '.join(unknown[:5])}; "
            "the LoRA is of another model"
        )
    return {name: _merged(name, base[name], *halves, alpha) for name, halves in pairs.items()}


def _merged(name: str, weight: Tensor, down: Tensor, up: Tensor, alpha: float) -> Tensor:
    rank = len(down)
    if weight.ndim != 2 or (*up.shape, *down.shape) != (weight.shape[0], rank, rank, weight.shape[1]):
        raise CheckpointError(
            f"the LoRA of {name} has shapes A {list(down.shape)}, B {list(up.shape)}; "
            f"a weight {list(weight.shape)} needs A [rank, in], B [out, rank]"
        )
    down, up = (half.to(weight.device).float() for half in (down, up))
    merged = weight.float() + (alpha / rank) * (up @ down)
    if not merged.isfinite().all():
        raise CheckpointError(
            f"{name} is not finite after the merge: the LoRA has diverged, or alpha is wrong"
        )
    return merged
