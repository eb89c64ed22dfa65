"""Memory of a training step, known before a GPU is rented: the step runs on tensors without data.

    python -m training.memory --model sd14 --frames 16 --height 320 --width 512
    python -m training.memory --model sd14 --stage dpo --set one_forward=false
    python -m training.memory --model tiny --set precision=fp32 --measure     here, beside a real step

The network stands on torch's meta device: shapes and dtypes, no numbers. A step of each stage runs there with
the trainers' own parts (recipe, adapters, losses, checkpointing, AdamW), and every storage an operation makes
is counted from its birth to its end. Mixed precision and attention follow CUDA's rules. Not counted: what
kernels take for themselves, the allocator's gaps and the CUDA context, for which ALLOWANCE stands; and the
moving average of the trained weights that the tiny recipes keep.
"""

import argparse
import contextlib
import dataclasses
import gc
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from huvidpo import command
from huvidpo.catalog import Component, Model, load_catalog
from huvidpo.unet import VideoUNet, video_config
from training.adapter import adapter_off, add_adapter
from training.loop import TrainingError, select_trainable
from training.losses import dpo_loss, motion_loss
from training.recipes import (
    ClipRecipe,
    DPORecipe,
    MotionRecipe,
    Stage,
    override,
    recipe_of,
)

GIB = 2**30
CARD = 24 * GIB
ALLOWANCE = 3 * GIB // 2
"""CUDA context (about 0.5 GiB), kernels' workspaces and the allocator's gaps."""
TEXT_TOKENS = 77
SD_LATENT_FACTOR = 8
SD_COMPANIONS = 83_653_863 + 123_060_480
"""Parameters of Stable Diffusion 1.x's VAE and text encoder, where their configurations are not on disk."""
STAGES: tuple[Stage, ...] = ("motion", "dpo")
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment when a step holds most."""

    parameters: int
    optimizer: int
    activations: int
    """All that operations made: activations, gradients, casts of weights, temporaries."""
    trainable: int
    """Number of parameters that train."""

    @property
    def peak(self) -> int:
        return self.parameters + self.optimizer + self.activations


# The steps


Autocast = Callable[[], contextlib.AbstractContextManager[Any]]
"""Makes the context of a forward in mixed precision."""


def make_network(config: dict[str, Any], recipe: ClipRecipe, device: str) -> VideoUNet:
    """The network as the recipe's trainer sets it up, with random weights (none on "meta")."""
    with torch.device(device):
        unet = VideoUNet.from_config(config).train()
    if isinstance(recipe, DPORecipe):
        add_adapter(unet, recipe)
    elif isinstance(recipe, MotionRecipe):
        select_trainable(unet, recipe.trainable)
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def make_optimizer(unet: nn.Module, recipe: ClipRecipe, foreach: bool | None) -> torch.optim.Optimizer:
    """AdamW with its moments in place, as after a first step."""
    params = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        params, recipe.lr, weight_decay=recipe.weight_decay, eps=recipe.adam_eps, foreach=foreach
    )
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def loss_of(unet: VideoUNet, recipe: ClipRecipe, clips: Tensor, text: Tensor, autocast: Autocast) -> Tensor:
    """Loss of one batch, in the trainers' order of forwards. `clips` [B, C, F, h, w] (winners, then losers),
    `text` [B, L, D].
    """
    timesteps = torch.zeros(len(clips), dtype=torch.long, device=clips.device)

    def predict(*rows: Tensor) -> Tensor:
        with autocast():
            return unet(*rows).float()

    if not isinstance(recipe, DPORecipe):
        return motion_loss(predict(clips, timesteps, text), clips)
    batches = list(
        zip(*(x.chunk(1 if recipe.one_forward else 2) for x in (clips, timesteps, text)), strict=True)
    )
    with torch.no_grad(), adapter_off(unet):
        reference = torch.cat([predict(*rows) for rows in batches])
    policy = torch.cat([predict(*rows) for rows in batches])
    return dpo_loss(policy, reference, clips.chunk(2)[0], beta=recipe.beta)[0]


def step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
    loss().backward()
    torch.nn.utils.clip_grad_norm_(trained(optimizer), clip_norm)
    optimizer.step()
    optimizer.zero_grad()


def make_batch(unet: VideoUNet, recipe: ClipRecipe, factor: int, device: str) -> tuple[Tensor, Tensor]:
    """Latents [B, C, F, h, w] and text [B, L, D] of one batch; `factor`: pixels per latent."""
    clips = recipe.batch_size * (2 if isinstance(recipe, DPORecipe) else 1)
    size = (recipe.frames, recipe.height // factor, recipe.width // factor)
    config: Any = unet.config
    latents = torch.randn(clips, config.in_channels, *size, device=device)
    return latents, torch.randn(clips, TEXT_TOKENS, config.cross_attention_dim, device=device)


# Estimate and measurement


def estimate(config: dict[str, Any], recipe: ClipRecipe, factor: int, *, cuda: bool = True) -> Memory:
    """Bytes of one step of `recipe` on the network of `config`, without allocating them.

    `factor`: pixels per latent. `cuda` False: the attention kernel of a CPU; for fp32 only, as autocast there
    is another.
    """
    unet = make_network(config, recipe, "meta")
    optimizer = make_optimizer(unet, recipe, foreach=cuda or None)
    mode = LikeCuda(
        DTYPES[recipe.precision] if cuda else None, attention_on_cuda if cuda else attention_on_cpu
    )
    batch = make_batch(unet, recipe, factor, "meta")
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing(mode.checkpoint)
    return trace([unet], optimizer, lambda: loss_of(unet, recipe, *batch, mode.forward), batch)


def trace(
    networks: list[nn.Module],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    batch: Iterable[Tensor],
) -> Memory:
    """What a step on meta tensors holds at its peak."""
    weights = [p for network in networks for p in network.parameters()]
    with Ledger([*weights, *moments(optimizer), *batch]) as ledger:
        step(loss, optimizer, clip_norm=1.0)
    count = sum(p.numel() for p in trained(optimizer))
    return Memory(size_of(weights), size_of(moments(optimizer)), ledger.peak, count)


def measure(config: dict[str, Any], recipe: ClipRecipe, factor: int, device: str) -> int:
    """Peak bytes of a real step, as torch's allocator counts them: the kernels' workspaces are among them."""
    unet = make_network(config, recipe, device)
    optimizer = make_optimizer(unet, recipe, foreach=None)
    batch = make_batch(unet, recipe, factor, device)
    dtype = DTYPES[recipe.precision]

    def autocast() -> Any:
        return torch.autocast(device, dtype, enabled=dtype is not None)

    def whole_step() -> None:
        step(lambda: loss_of(unet, recipe, *batch, autocast), optimizer, recipe.clip_norm)

    held = size_of(unet.parameters()) + size_of(moments(optimizer))
    whole_step()  # libraries load, kernels are chosen
    return held + peak_growth(whole_step, device)


def trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return optimizer.param_groups[0]["params"]


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for state in optimizer.state.values() for tensor in state.values()]


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def peak_growth(call: Callable[[], Any], device: str) -> int:
    """Most bytes that torch's allocator held during `call`, over what it held before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = [0]
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held.append(held[-1] + event.nbytes())
    return max(held)


# Counting


class Ledger(TorchDispatchMode):
    """Counts every storage that an operation makes while the mode is on, from its birth to its end, in bytes.

    `held`: tensors from before, whose views are no new storage. torch's own MemTracker would do, but refuses
    networks with frozen weights, and a forward that is taken twice (docs/log.md).
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = {tensor.untyped_storage()._cdata for tensor in held}
        """Addresses."""
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._book(tensor.untyped_storage())
        return out

    def _book(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.live:
            return
        self.live.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._strike, storage._cdata, storage.nbytes()).atexit = False

    def _strike(self, address: int, size: int) -> None:
        self.live.discard(address)
        self.now -= size


class LikeCuda(TorchFunctionMode):
    """autocast and fused attention as on a GPU, for meta tensors, which have neither.

    `dtype` None leaves all in the tensors' own. `kernel`: the fused attention to account for. The lists are
    those of autocast that our networks meet:
    https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior
    """

    LOW = frozenset({"linear", "conv1d", "conv2d", "scaled_dot_product_attention"})
    FULL = frozenset({"layer_norm", "group_norm"})

    def __init__(self, dtype: torch.dtype | None, kernel: Callable[..., Any]) -> None:
        super().__init__()
        self.dtype, self.kernel = dtype, kernel
        self.kept: dict[Tensor, Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if self.dtype is not None and name in self.LOW | self.FULL:
            cast = self._low if name in self.LOW else _full
            args = [cast(x) for x in args]
            kwargs = {key: cast(x) for key, x in (kwargs or {}).items()}
        if name == "scaled_dot_product_attention":
            return self.kernel(*args)[0]
        return func(*args, **(kwargs or {}))

    def _low(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if self.kept is None or not (x.is_leaf and x.requires_grad):
            return x.to(self.dtype)
        return self.kept.setdefault(x, x.to(self.dtype))

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward: autocast keeps its casts of trainable weights until it is left."""
        self.kept = {}
        with self:
            yield
        self.kept = None

    def checkpoint(self, layer: nn.Module, *args: Any) -> Any:
        """torch's checkpoint, whose recomputation follows the same rules."""
        contexts = (contextlib.nullcontext(), self)
        return checkpoint(layer, *args, use_reentrant=False, context_fn=lambda: contexts)


def _full(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) else x


def attention_on_cuda(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(queries, keys, values, None, queries.requires_grad)


def attention_on_cpu(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values)


# Command line


def network_config(model: Model) -> dict[str, Any]:
    """The video UNet's configuration, from disk or the hub's cache; Stable Diffusion 1.x's if it is in
    neither: those are VideoUNet's defaults.
    """
    config = _config(VideoUNet, model.video_unet)
    return {} if config is None else video_config(config)


def latent_factor(model: Model) -> int:
    """Pixels per latent, each way."""
    config = _config(AutoencoderKL, model.video_vae)
    return 2 ** (len(config["block_out_channels"]) - 1) if config else SD_LATENT_FACTOR


def companions(model: Model) -> int:
    """Bytes of VAE and text encoder, float32, which the trainers keep for sample clips."""
    config, source = _config(AutoencoderKL, model.video_vae), model.video_text_encoder
    if config is None or not Path(source.location).is_dir():
        return 4 * SD_COMPANIONS
    text = CLIPTextConfig.from_pretrained(source.location, subfolder=source.subfolder)
    with torch.device("meta"):
        return size_of([*AutoencoderKL.from_config(config).parameters(), *CLIPTextModel(text).parameters()])


def _config(kind: Any, source: Component) -> dict[str, Any] | None:
    """A part's configuration, without asking the hub; None if it is not on this machine."""
    with warnings.catch_warnings(action="ignore"):  # diffusers uses an argument the hub's client deprecated
        try:
            return kind.load_config(source.location, subfolder=source.subfolder, local_files_only=True)
        except OSError:
            return None


def table(columns: dict[str, Memory], others: int) -> list[str]:
    """Lines of a table in GiB: a column per stage. `others`: bytes held beside the network."""
    rows: dict[str, Callable[[Memory], float]] = {
        "parameters": lambda memory: memory.parameters,
        "optimiser": lambda memory: memory.optimizer,
        "activations and gradients": lambda memory: memory.activations,
        "peak of the step": lambda memory: memory.peak,
        "VAE and text encoder": lambda memory: others,
        "allowance": lambda memory: ALLOWANCE,
        "in all": lambda memory: memory.peak + others + ALLOWANCE,
    }
    lines = ["GiB".ljust(28) + "".join(name.rjust(12) for name in columns)]
    for name, value in rows.items():
        lines.append(name.ljust(28) + "".join(f"{value(memory) / GIB:12.2f}" for memory in columns.values()))
    return lines


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return command.run("training.memory", lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    model = load_catalog().model(args.model)
    config, factor, others = network_config(model), latent_factor(model), companions(model)
    recipes = {stage: _recipe(args, stage) for stage in STAGES if args.stage in (stage, "all")}
    for text in args.set:  # of a field that none of them has: override says so
        if not any(hasattr(recipe, text.partition("=")[0]) for recipe in recipes.values()):
            override(recipes[next(iter(recipes))], [text])
    memory = {
        stage: estimate(config, recipe, factor, cuda=not (args.measure and args.device == "cpu"))
        for stage, recipe in tqdm(recipes.items(), "estimating", leave=False)
    }
    print(f"{model.name}, {model.video_unet.location}{'' if config else ', by the configuration of SD 1.x'}")
    for stage, r in recipes.items():
        how = f"{r.precision}, {'' if r.gradient_checkpointing else 'not '}checkpointed"
        size = f"batch {r.batch_size}, {r.frames} frames of {r.height} x {r.width}"
        print(f"{stage}: {size}, {how}, {memory[stage].trainable:,} parameters train")
    print("\n".join(table(memory, others)))
    for stage, recipe in recipes.items():
        total = memory[stage].peak + others + ALLOWANCE
        print(f"{stage}: {'fits' if total < CARD else 'does NOT fit'} a card of {CARD / GIB:.0f} GiB")
        if args.measure:
            real, guess = measure(config, recipe, factor, args.device), memory[stage].peak
            print(f"{stage}: measured here {real / GIB:.2f} GiB, estimated {guess / real - 1:+.0%}")
    return 0


def _recipe(args: argparse.Namespace, stage: Stage) -> ClipRecipe:
    """The stage's recipe for the model, with the command line's changes to the fields it has."""
    recipe: ClipRecipe = recipe_of(load_catalog().model(args.model), stage)
    sizes = {"frames": args.frames, "height": args.height, "width": args.width}
    recipe = dataclasses.replace(recipe, **{name: size for name, size in sizes.items() if size is not None})
    recipe = override(recipe, [text for text in args.set if hasattr(recipe, text.partition("=")[0])])
    if args.measure and args.device == "cpu" and recipe.precision != "fp32":
        raise TrainingError("on a CPU mixed precision takes other kernels: measure with --set precision=fp32")
    return recipe


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model of the catalog: tiny, sd14, ...")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--frames", type=int, help="frames per clip; default: the recipe's")
    parser.add_argument("--height", type=int, help="pixels; default: the recipe's")
    parser.add_argument("--width", type=int, help="pixels; default: the recipe's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a field of the recipes"
    )
    parser.add_argument("--measure", action="store_true", help="also take a real step, and compare")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of --measure"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
