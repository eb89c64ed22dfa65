"""Low-rank adapters as tensors: W + alpha / rank * B A (LoRA, arXiv 2106.09685, Eq. 3).

An adapted layer `x.to_q` has two tensors, named as peft names them: `x.to_q.lora_A.weight` [rank, in] and
`x.to_q.lora_B.weight` [out, rank]. peft may put an adapter's name before `.weight`. An adapted 1x1
convolution has two more axes of length 1.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from huvidpo.errors import CheckpointError

LORA_NAME = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
PAPERS_ALPHA = 32.0  # HuViDPO's, at rank 16
KOHYA = "lora_unet_"  # before the name of a layer, whose dots become underscores
OF_TEXT_ENCODER = ("lora_te", "text_encoder")

# kohya's and diffusers' names -> peft's: (pattern, replacement), applied in order.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^unet\.", ""),
    (r"\.processor\.to_out_lora\.", ".to_out.0.lora."),
    (r"\.processor\.(to_[qkv])_lora\.", r".\1.lora."),
    (r"\.lora(?:_linear_layer)?(?:\.|_)down\.weight$", ".lora_A.weight"),
    (r"\.lora(?:_linear_layer)?(?:\.|_)up\.weight$", ".lora_B.weight"),
)


def peft_names(
    tensors: Mapping[str, Tensor], weights: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, float], float | None]:
    """(tensors by peft's names, alpha by weight where the file says it, alpha of the others).

    `weights`: the names of the model's. The alpha of the others is the paper's; None, which stands for the
    rank, in a file by kohya's or diffusers' names. Raises CheckpointError for adapters of a text encoder.
    """
    flat = {KOHYA + layer.replace(".", "_"): layer for layer in (w.removesuffix(".weight") for w in weights)}
    named: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    foreign = False
    for given, tensor in tensors.items():
        if given.startswith(OF_TEXT_ENCODER):
            raise CheckpointError(
                f"{given} is of a text encoder, which all categories share; give the UNet's adapters alone"
            )
        layer, dot, rest = given.partition(".")
        name = flat.get(layer, layer) + dot + rest
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        foreign |= name != given
        if name.endswith(".alpha") and tensor.numel() == 1:
            alphas[name.removesuffix("alpha") + "weight"] = float(tensor)
        elif name in named:
            raise CheckpointError(f"{given}: another tensor of the file is also called {name}; keep one")
        else:
            named[name] = tensor
    return named, alphas, None if foreign else PAPERS_ALPHA


def split_lora(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the tensors of adapters, all others)."""
    lora = {name: tensor for name, tensor in tensors.items() if LORA_NAME.fullmatch(name)}
    return lora, {name: tensor for name, tensor in tensors.items() if name not in lora}


def pair_halves(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight's name -> (A, B). Raises CheckpointError for a name that is no adapter's, a missing half, and
    tensors of more than one adapter.
    """
    found: dict[str, dict[str, Tensor]] = {}
    adapters = set()
    for name, tensor in lora.items():
        match = LORA_NAME.fullmatch(name)
        if not match:
            raise CheckpointError(f"{name} is no tensor of a LoRA, which is named <layer>.lora_A.weight")
        found.setdefault(f"{match['layer']}.weight", {})[match["half"]] = tensor
        adapters.add(match["adapter"] or "one without a name")
    if len(adapters) > 1:
        raise CheckpointError(
            f"there are {len(adapters)} adapters in one file: {', '.join(sorted(adapters))}; keep one of them"
        )
    for name, halves in found.items():
        if halves.keys() != {"A", "B"}:
            raise CheckpointError(f"the LoRA of {name} misses its A or B half")
    return {name: (halves["A"], halves["B"]) for name, halves in found.items()}


def merge(
    base: Mapping[str, Tensor],
    lora: Mapping[str, Tensor],
    alpha: float | None,
    alphas: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """The tensors of `base` that the adapters change, merged, in float32 and on the device of `base`'s.

    `alpha` scales an adapter by alpha / rank, None by 1; `alphas`, of single weights, go before it. Raises
    CheckpointError for adapters that match no tensor of `base` in name or shape, that miss a half, that are
    none at all or several, or that are not finite.
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
    chosen = dict.fromkeys(pairs, alpha) | dict(alphas or {})
    return {name: _merged(name, base[name], *halves, chosen[name]) for name, halves in pairs.items()}


def _merged(name: str, weight: Tensor, down: Tensor, up: Tensor, alpha: float | None) -> Tensor:
    rank = len(down)
    kernel = (1,) * (weight.ndim - 2)  # a 1x1 convolution is a matrix
    wanted = (*weight.shape[:1], rank, *kernel), (rank, *weight.shape[1:2], *kernel)
    if not rank or weight.ndim < 2 or weight.shape[2:] != kernel or (up.shape, down.shape) != wanted:
        raise CheckpointError(
            f"the LoRA of {name} has shapes A {list(down.shape)}, B {list(up.shape)}; "
            f"a weight {list(weight.shape)} needs A [rank, in], B [out, rank]"
        )
    down, up = (half.to(weight.device).float() for half in (down, up))
    scale = 1.0 if alpha is None else alpha / rank
    change = up.flatten(1) @ down.flatten(1)
    merged = weight.float() + scale * change.view(weight.shape)
    if not merged.isfinite().all():
        raise CheckpointError(
            f"{name} is not finite after the merge: the LoRA has diverged, or alpha is wrong"
        )
    return merged
