"""Four requests of four categories: a batch of each, as the service runs them, or all in one.

    python -m benchmarks.mixed_batch                                         what a CPU's service runs on
    python -m benchmarks.mixed_batch --backend torch --dtype float32         or another; --guidance 3
    python -m benchmarks.mixed_batch --quick                                 one round, records nothing

A denoising step, with guidance eight lines, without four:

    pure        one category, one batch: what the others are compared with
    split       four categories, a batch of each: what the service does
    beside      the same, two batches at a time, a thread each. OpenVINO only: torch's threads are one pool
    gathered    four categories, one batch: every layer that categories have of their own takes the weights of
                each line (bmm, grouped convolutions), the others run as they are. torch only: a graph of
                OpenVINO's holds one category's weights
    low rank    one batch, a product of rank 16 beside each layer of the adapter, scaled per line: what lines
                of several strengths of one category's preferences would take. Categories cannot: stage 1
                trains whole tensors

and whole clips, from first frames to frames: `pure`, `split`, and `dispatched`, one batch whose every step
calls the network of each category in turn. A mixed step is held against the networks one by one first. The
ways run in turn, so what else the machine does meets all of them; ratios are of medians, and of the least
processor time. Appends one JSON line to benchmarks/results/.
"""

import copy
import dataclasses
import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import record, timed
from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.pipeline import VideoPipeline
from huvidpo.unet import GatedTemporalConv, VideoUNet
from training.recipes import tiny_dpo

CATEGORIES = ("horse", "rain", "birds", "smile")
REQUESTS = len(CATEGORIES)
STRENGTHS = torch.tensor([0.0, 0.5, 1.0, 1.5])
RANK = 16
Texts = list[tuple[Tensor, Tensor]]
Ways = dict[str, Callable[[], Any]]


class Linears(nn.Module):
    """Linear layers, one per line: [(b ...), N, in] -> [(b ...), N, out], lines first."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = torch.stack([layer.weight.detach().T for layer in layers])  # [b, in, out]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.stack(biases)[:, None] if biases else torch.zeros(1).to(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        lines = x.reshape(len(self.weight), -1, x.shape[-1])
        return torch.baddbmm(self.bias, lines, self.weight).reshape(*x.shape[:-1], -1)


class Convs(nn.Module):
    """GatedTemporalConv whose conv1d and conv_gate are those of each line; conv2d is the base's."""

    def __init__(self, layers: Sequence[Any]):
        super().__init__()
        self.conv2d = layers[0].conv2d
        taps = [layer.conv1d.weight.detach().permute(2, 1, 0).flatten(0, 1) for layer in layers]
        self.along = torch.stack(taps)  # [b, 3 c, c]
        self.bias = torch.stack([layer.conv1d.bias.detach() for layer in layers])[:, None]
        self.gate = torch.cat([layer.conv_gate.weight.detach() for layer in layers])  # [b, c, 3, 3]
        self.gate_bias = torch.cat([layer.conv_gate.bias.detach() for layer in layers])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = self.conv2d(x)
        h, w = y.shape[2:]
        rows = y.unflatten(0, (-1, frames)).transpose(0, 1).flatten(1, 2)  # [f, b c, h, w]
        gate = F.conv2d(rows, self.gate, self.gate_bias, padding=1, groups=len(self.gate))
        clip = F.pad(y.permute(0, 2, 3, 1).unflatten(0, (-1, frames)).flatten(2, 3), (0, 0, 0, 0, 2, 0))
        seen = torch.cat([clip[:, tap : tap + frames] for tap in range(3)], dim=-1).flatten(1, 2)
        z = torch.baddbmm(self.bias, seen, self.along).unflatten(1, (frames, h, w))  # [b, f, h, w, c]
        z = z.flatten(0, 1).permute(0, 3, 1, 2)
        return y + torch.sigmoid(gate.transpose(0, 1).reshape(-1, 1, h, w)) * z


class LowRank(nn.Module):
    """A linear layer, and the adapter's product beside it, scaled per line."""

    def __init__(self, layer: nn.Linear, down: Tensor, up: Tensor, scales: Tensor):
        super().__init__()
        self.layer, self.down, self.up = layer, down.to(layer.weight), up.to(layer.weight)
        self.scales = scales.to(layer.weight)[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        beside = F.linear(F.linear(x, self.down), self.up).unflatten(0, (len(self.scales), -1))
        return self.layer(x) + (beside * self.scales).flatten(0, 1)


def replaced(network: VideoUNet, layers: dict[str, nn.Module]) -> VideoUNet:
    """A copy of `network` with other modules at those names."""
    made = copy.deepcopy(network)
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(parent), leaf, layer)
    return made


def gathered(networks: Sequence[VideoUNet]) -> VideoUNet:
    """One network whose line i runs with the weights of networks[i]."""
    layers: dict[str, nn.Module] = {}
    for name, module in networks[0].named_modules():
        own: Any = [network.get_submodule(name) for network in networks]
        if isinstance(module, GatedTemporalConv):
            layers[name] = Convs(own)
        elif isinstance(module, nn.Linear) and any(not torch.equal(module.weight, one.weight) for one in own):
            layers[name] = Linears(own)
    return replaced(networks[0], layers)


def low_rank(network: VideoUNet, lines: int) -> VideoUNet:
    """`network` with requests of STRENGTHS, of so many lines each, of an adapter as `tiny_dpo` trains one:
    random, for what it is changes no time.
    """
    layers: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tiny_dpo().target_modules):
            down, up = torch.randn(RANK, module.in_features), torch.randn(module.out_features, RANK)
            layers[name] = LowRank(module, down, up, (STRENGTHS - 1).repeat(lines))
    return replaced(network, layers)


def with_a_thread_each(networks: Sequence[Any]) -> list[Any]:
    """Engines of OpenVINO, each with a stream of one thread."""
    made = [copy.copy(network) for network in networks]
    for network in made:
        run = network.run = copy.copy(network.run)
        run.threads, run.networks = 1, OrderedDict()
    return made


def steps(pipeline: VideoPipeline, requests: Sequence[ClipRequest]) -> Ways:
    """The ways of one step. Raises AssertionError, see `check`."""
    dtype = pipeline.text_encoder.dtype
    networks: list[Any] = [pipeline.unets[request.category] for request in requests]
    options, lines = requests[0].options, 2 if requests[0].options.guidance > 1 else 1
    size = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    shape = (networks[0].config.in_channels, options.frames, options.height // size, options.width // size)
    sample = torch.randn(lines * REQUESTS, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    texts = [pipeline.encode_prompt([request]) for request in requests]
    # with guidance, lines are [negative, positive] of all requests
    together = [
        tuple(torch.stack(own).transpose(0, 1).flatten(0, 1) for own in zip(*layer, strict=True))
        for layer in zip(*texts, strict=True)
    ]
    time = torch.tensor(500)

    def alone(i: int, networks: Sequence[Any] = networks) -> Tensor:
        return networks[i](sample[i::REQUESTS], time, None, text_kv=texts[i])

    ways: Ways = {
        "pure": lambda: networks[0](sample, time, None, text_kv=together),
        "split": lambda: [alone(i) for i in range(REQUESTS)],
    }
    if pipeline.backend == "torch":
        mixed, scaled = gathered(networks * lines), low_rank(networks[0], lines)
        out = mixed(sample, time, None, text_kv=together)
        check([out[i::REQUESTS] for i in range(REQUESTS)], ways["split"]())
        ways["gathered"] = lambda: mixed(sample, time, None, text_kv=together)
        ways["low rank"] = lambda: scaled(sample, time, None, text_kv=together)
    else:
        ways["split"]()  # they are proved before they are copied
        threads, pool = with_a_thread_each(networks), ThreadPoolExecutor(2)
        one = torch.no_grad()(partial(alone, networks=threads))
        ways["beside"] = lambda: list(pool.map(one, range(REQUESTS)))
        check(ways["beside"](), ways["split"]())
    return ways


def check(mixed: Sequence[Tensor], split: Sequence[Tensor]) -> None:
    """Raises AssertionError where they are not the same clips, but for rounding."""
    for got, expected in zip(mixed, split, strict=True):
        error = (got.float() - expected.float()).norm() / expected.float().norm()
        assert error < (1e-4 if expected.dtype == torch.float32 else 1e-1), f"they differ by {error:.1e}"


class Dispatch:
    """A network of a batch whose requests are each of another category: every step, each in turn."""

    def __init__(self, networks: Sequence[Any]):
        self.networks = networks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.networks[0], name)

    def __call__(self, sample: Tensor, time: Tensor, text: None, text_kv: Texts) -> Tensor:
        out = torch.empty_like(sample)
        for i, network in enumerate(self.networks):
            own = [(keys[i::REQUESTS], values[i::REQUESTS]) for keys, values in text_kv]
            out[i::REQUESTS] = network(sample[i::REQUESTS], time, text, text_kv=own)
        return out


def clips(pipeline: VideoPipeline, requests: Sequence[ClipRequest]) -> Ways:
    frame = np.full((64, 64, 3), 127, np.uint8)
    pure = [dataclasses.replace(request, category=CATEGORIES[0]) for request in requests]
    mixed = copy.copy(pipeline)
    mixed.unets = {**pipeline.unets, CATEGORIES[0]: Dispatch([pipeline.unets[one] for one in CATEGORIES])}
    return {
        "pure": lambda: pipeline(pure, [frame] * REQUESTS),
        "split": lambda: [pipeline([request], [frame]) for request in requests],
        "dispatched": lambda: mixed(pure, [frame] * REQUESTS),
    }


def measured(ways: Ways, rounds: int) -> Iterator[dict[str, Any]]:
    """Milliseconds of each way, and its ratios to `pure`: of medians, and of the least processor time."""
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            timing = timed(way, 1, warmup=0)
            if number:  # the first is not counted
                walls[name].append(timing.median)
                cpus[name].append(timing.least_cpu)
    for name in ways:
        wall, cpu = statistics.median(walls[name]), min(cpus[name])
        yield {
            "way": name,
            "ms": round(1e3 * wall, 1),
            "ratio": round(wall / statistics.median(walls["pure"]), 3),
            "cpu_ratio": round(cpu / min(cpus["pure"]), 3),
        }


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("one round of short clips")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--backend", choices=("openvino", "torch"), default="openvino")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--guidance", type=float, help="of the clips (default: the model's)")
    args = parser.parse_args(arguments)
    rounds, rows = 1 if args.quick else args.rounds, list[dict[str, Any]]()
    options = load_catalog().model(DEFAULT_MODEL).defaults.replace(guidance=args.guidance)
    if args.quick:
        options = options.replace(steps=1, frames=2)
    requests = [ClipRequest("it moves", name, seed, options=options) for seed, name in enumerate(CATEGORIES)]
    pipeline = VideoPipeline.from_catalog(
        DEFAULT_MODEL,
        device="cpu",
        dtype=getattr(torch, args.dtype),
        categories=CATEGORIES,
        backend=args.backend,
    )
    for what, ways in (("step", steps(pipeline, requests)), ("clip", clips(pipeline, requests))):
        for row in measured(ways, rounds):
            rows.append({"what": what} | row)
            print("  ".join(f"{value:>9}" for value in rows[-1].values()), flush=True)
    if not args.quick:
        record(args, rows=rows)


if __name__ == "__main__":
    main()
