"""Memory of 1 to 8 categories loaded at once, and the time it takes to go from one to another.

    python -m benchmarks.categories_resident              the tiny family as shipped; SD 1.4 by its shapes
    python -m benchmarks.categories_resident --quick      few repeats, records nothing

Categories share the base's storage wherever they do not change it (`huvidpo.checkpoint.with_weights`). Beside
the bytes held stands what as many whole UNets would hold. A switch is the forward of another category than
the one before, against the forward of the same: nothing moves, so only the CPU's caches can tell. Loading is
a category read from disk and put beside the others. Prints tables and appends one JSON line to
benchmarks/results/.
"""

import itertools
import os
import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from benchmarks import common
from benchmarks.common import record, timed
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.checkpoint import with_weights
from huvidpo.loading import load_category, load_video_unet
from huvidpo.unet import VideoUNet
from training.recipes import LAMP_TRAINABLE, PROJECTIONS

MOST = 8


def held(networks: Iterable[nn.Module]) -> int:
    """Bytes of the storages of all parameters and buffers, each counted once."""
    storages = {}
    for network in networks:
        for tensor in itertools.chain(network.parameters(), network.buffers()):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def table(name: str, base: VideoUNet, categories: list[VideoUNet]) -> list[dict[str, Any]]:
    whole, rows = held([base]), []
    print(f"\n{name}\n{'categories':>10}{'held MB':>12}{'whole UNets':>13}{'share':>8}")
    for count in range(1, len(categories) + 1):
        bytes_held = held([base, *categories[:count]])
        row = {"network": name, "categories": count, "held": bytes_held, "whole": count * whole}
        share = bytes_held / (count * whole)
        print(f"{count:>10}{bytes_held / 1e6:>12.1f}{count * whole / 1e6:>13.1f}{share:>8.2f}")
        rows.append(row)
    return rows


def sd14() -> tuple[VideoUNet, list[VideoUNet]]:
    """SD 1.4 in float16 without data, and categories that change what both stages change."""
    with torch.device("meta"):
        base = nn.Module.to(VideoUNet(), torch.float16)
    targets = tuple(f"{projection}.weight" for projection in PROJECTIONS)
    tensors = {
        name: tensor
        for name, tensor in base.state_dict().items()
        if name.endswith(targets) or any(part in name for part in LAMP_TRAINABLE)
    }
    return base, [with_weights(base, tensors) for _ in range(MOST)]


def tiny() -> tuple[VideoUNet, list[VideoUNet], float]:
    """The tiny family's base, its categories, and the median seconds of loading one."""
    catalog = load_catalog()
    model = catalog.model(DEFAULT_MODEL)
    base = load_video_unet(model.video_unet, torch.float32).eval()
    categories: list[VideoUNet] = []
    times = []
    for category in list(catalog.categories.values())[:MOST]:
        file = model.categories / category.weights
        loading = timed(lambda file=file: categories.append(load_category(base, file)), 1, warmup=0)
        times.append(loading.median)
    return base, categories, statistics.median(times)


@torch.no_grad()
def switching(categories: list[VideoUNet], repeats: int) -> tuple[float, float]:
    """Median seconds of a forward after one of the same category, and after one of another."""
    config: Any = categories[0].config
    sample, text = (
        torch.randn(1, config.in_channels, 16, 16, 16),
        torch.randn(1, 48, config.cross_attention_dim),
    )

    def forward(network: VideoUNet) -> float:
        return timed(lambda: network(sample, 500, text), 1, warmup=0).median

    same, other = [], []
    for before, after in itertools.islice(itertools.cycle(itertools.pairwise(categories)), repeats):
        forward(before)
        same.append(forward(before))
        other.append(forward(after))
    return statistics.median(same), statistics.median(other)


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("three switches")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads on a CPU")
    parser.add_argument("--repeats", type=int, default=70, help="switches")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    base, categories, loading = tiny()
    rows = table("tiny family, float32", base, categories)
    rows += table("SD 1.4, float16", *sd14())
    same, other = switching(categories, 3 if args.quick else args.repeats)
    print(f"\nforward: {1e3 * same:.1f} ms after the same category, {1e3 * other:.1f} ms after another")
    print(f"loading a category: {1e3 * loading:.1f} ms")
    if not args.quick:
        times = {"same_s": same, "other_s": other, "loading_s": loading}
        record(args, rows=rows, **{name: round(value, 5) for name, value in times.items()})


if __name__ == "__main__":
    main()
