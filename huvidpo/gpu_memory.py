"""How the two stages share one GPU, by what the catalog says that each needs (`gpu_gib` of a model).

The first frame has its stated part and takes no more. The video has the rest: its network, every category,
and as many requests at once as fit beside them. A stage that does not fit is refused before it is loaded.
"""

from dataclasses import dataclass

import torch

from huvidpo.catalog import Model
from huvidpo.errors import CheckpointError

GIB = 2**30
CONTEXT = 0.5  # GiB that CUDA itself takes, per process


@dataclass(frozen=True)
class Part:
    """What a stage may take of a card."""

    gib: float
    requests: int
    """That it has room for at once."""
    spare: bool = False
    """Whether one more category has room beside them, while it takes the place of another."""


def part_of(
    model: Model,
    stage: str,
    dtype: torch.dtype,
    *,
    total: float,
    free: float,
    categories: int = 1,
    shared: bool = False,
) -> Part | None:
    """The part of a card of `total` GiB, `free` of them free, for a stage, "first_frame" or "video"; None
    where the catalog states no needs.

    `shared`: the other stage runs on the same card, in a process of its own. Raises CheckpointError where the
    stage does not fit.
    """
    if model.gpu_gib is None:
        return None
    scale, stated = 2 if dtype == torch.float32 else 1, model.gpu_gib
    first = scale * stated.first_frame
    if stage == "first_frame":
        need, room = first, first if shared else total - CONTEXT
    else:
        need = scale * (stated.video + categories * stated.category)
        room = total - CONTEXT - (first + CONTEXT if shared else 0)
    room = min(room, total - CONTEXT)
    if need > min(room, free):
        beside = f", {first:.1f} of them for its first frame" if shared and stage == "video" else ""
        raise CheckpointError(
            f"model {model.name!r} needs {need:.1f} GiB of GPU memory for its {stage.replace('_', ' ')} in "
            f"{str(dtype).removeprefix('torch.')}; there are {total:.1f} GiB{beside}, {free:.1f} are free: "
            "end what else runs there, use float16, a larger card, or HUVIDPO_DEVICE=cpu"
        )
    if stage == "first_frame":
        return Part(room, 1)
    left, spare = room - need, scale * stated.category
    return Part(room, 1 + max(0, int((left - spare) / (scale * stated.request))), left >= spare)


def take_part(
    model: Model,
    stage: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    categories: int = 1,
    shared: bool = False,
) -> Part | None:
    """`part_of` the GPU `device`, to which this process keeps from now on; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = (size / GIB for size in torch.cuda.mem_get_info(device))
    part = part_of(model, stage, dtype, total=total, free=free, categories=categories, shared=shared)
    if part:
        torch.cuda.set_per_process_memory_fraction(part.gib / total, device)
    return part
