"""What is measured: a step of each UNet, the pipelines' loops, training steps, VAE, attention kernels."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import matmul_flops
from benchmarks.gpu_check import networks
from benchmarks.gpu_check.networks import Call, Size
from benchmarks.gpu_check.rows import DTYPES, Rows, error
from huvidpo.catalog import load_catalog
from huvidpo.config import ClipRequest, SamplingOptions
from huvidpo.latents import from_latents
from huvidpo.loading import to_device
from huvidpo.pipeline import FirstFramePipeline, VideoPipeline
from training import memory
from training.recipes import lamp_sd14, override, paper_dpo

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def ceiling(rows: Rows, size: Size) -> None:
    """TFLOP/s of an 8192^3 matrix product, which `of_ceiling` in other rows refers to."""
    side = 8192 if rows.cuda else 256
    for name, dtype in DTYPES.items():
        rows.ceilings[name] = matmul_flops(dtype, rows.device, side)
    tflops = {name: round(value / 1e12, 3) for name, value in rows.ceilings.items()}
    rows.add("ceiling", f"product of side {side}", tflops=tflops)


@torch.no_grad()
def step(rows: Rows, name: str, what: str, dtype: str, call: Call, x: Any, flops: int, expected: Any) -> None:
    """Adds the row of one denoising step of the UNet `name`; `expected`: its output in fp32, or None."""
    figures: dict[str, Any] = {"dtype": dtype}
    with rows.peak(figures):
        s = rows.seconds(lambda: call(*x))
        out = call(*x)
    figures |= {"ms": round(1e3 * s, 2), "tflop": round(flops / 1e12, 4)}
    if ceiling := rows.ceilings.get(dtype):
        figures["of_ceiling"] = round(flops / s / ceiling, 3)
    if expected is not None:
        figures |= {"error": error(out, expected), "finite": bool(out.isfinite().all())}
    rows.add(name, what, **figures)


@torch.no_grad()
def reference(name: str, rows: Rows, size: Size) -> tuple[Tensor, int]:
    """The fp32 output of a step, and its FLOPs."""
    network, x = (
        networks.unet(name, size, rows.device, torch.float32),
        networks.inputs(name, size, rows.device, torch.float32),
    )
    call = networks.forward(name, network)
    with FlopCounterMode(display=False) as counter:
        expected = call(*x)
    flops = counter.get_total_flops()
    step(rows, name, "eager", "fp32", call, x, flops, None)
    return expected, flops


def unet(name: str, rows: Rows, size: Size) -> None:
    """fp16 and bf16, eager; fp16 as loading lays the weights out, with more lines, and as a CUDA graph."""
    expected, flops = reference(name, rows, size)
    for dtype, channels_last in (("fp16", False), ("fp16", True), ("bf16", True)):
        rows.free()
        call = networks.forward(name, networks.unet(name, size, rows.device, DTYPES[dtype], channels_last))
        x = networks.inputs(name, size, rows.device, DTYPES[dtype])
        weights = "channels-last weights" if channels_last else "channels-first weights"
        step(rows, name, f"eager, {weights}", dtype, call, x, flops, expected)
        if rows.cuda and channels_last and dtype == "fp16":
            many = networks.inputs(name, size, rows.device, DTYPES[dtype], lines=8)
            step(rows, name, "eager, 4 requests", dtype, call, many, 4 * flops, None)
            step(rows, name, "CUDA graph", dtype, graphed(call, x), x, flops, expected)


@torch.no_grad()
def graphed(call: Call, x: Any) -> Call:
    """`call` on these very tensors, captured."""
    for _ in range(3):
        call(*x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*x)

    def replay(*_: Any) -> Tensor:
        graph.replay()
        return out

    return replay


@torch.no_grad()
def compiled(rows: Rows, size: Size, name: str) -> None:
    """torch.compile of the fp16 step; `first_s` is what the first call takes."""
    dtype = "fp16" if rows.cuda else "fp32"
    network = networks.unet(name, size, rows.device, DTYPES[dtype], channels_last=True)
    x, call = networks.inputs(name, size, rows.device, DTYPES[dtype]), networks.forward(name, network)
    expected, fast = call(*x), torch.compile(call, fullgraph=True, dynamic=False)
    first = rows.seconds(lambda: fast(*x), repeats=1, warm=0)
    eager, s = rows.seconds(lambda: call(*x)), rows.seconds(lambda: fast(*x))
    figures = {"first_s": round(first, 1), "ms": round(1e3 * s, 2), "eager_ms": round(1e3 * eager, 2)}
    rows.add("compile", name, dtype=dtype, **figures, difference_to_eager=error(fast(*x), expected))


# The pipelines' own loops


def timed(rows: Rows, what: str, call: Callable[[], Any], warm: int = 1, **figures: Any) -> Any:
    """Adds a row of the section "loop"; returns what `call` does."""
    with rows.peak(figures):
        s = rows.seconds(call, repeats=2, warm=warm)
        out = call()
    rows.add("loop", what, seconds=round(s, 3), **figures)
    return out


def loop_dtype(rows: Rows) -> torch.dtype:
    """That of huvidpo.loading."""
    return torch.float16 if rows.cuda else torch.float32


def request(size: Size) -> ClipRequest:
    options = SamplingOptions(
        frames=size.frames,
        height=8 * size.height,
        width=8 * size.width,
        steps=size.steps["video"],
        first_frame_steps=size.steps["sdxl"],
        first_frame_size=(8 * size.side, 8 * size.side),
    )
    return ClipRequest(prompt="x", category="horse", seed=0, options=options)


@torch.no_grad()
def video_loop(rows: Rows, size: Size) -> None:
    """The denoising of a clip with what schedulers, guidance and corrections add; decoding, colours apart."""
    dtype, asked = loop_dtype(rows), request(size)
    unet = to_device(networks.unet("video", size, rows.device, dtype), torch.device(rows.device))
    vae = networks.vae(size, rows.device, torch.float32)
    scheduler = BETAS | {"set_alpha_to_one": False, "clip_sample": False}
    pipeline = VideoPipeline({"horse": unet}, vae, None, None, scheduler, load_catalog())
    text = unet.project_text(networks.inputs("video", size, rows.device, dtype)[2])
    first = torch.randn(1, 4, size.height, size.width, device=rows.device)
    latents = pipeline.prepare_latents([asked], first)
    steps = size.steps["video"]
    out = timed(rows, f"video, {steps} steps", lambda: pipeline.denoise([asked], latents, text), steps=steps)
    frames = out[0].transpose(0, 1)
    timed(rows, "video, decode", lambda: from_latents(vae, frames))
    timed(rows, "video, decode and colours", lambda: pipeline.decode([asked], out))


@torch.no_grad()
def image_loop(rows: Rows, size: Size) -> None:
    """The first frame: diffusers' pipeline as ours calls it."""
    dtype = loop_dtype(rows)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = StableDiffusionXLPipeline(
        vae=networks.vae(size, rows.device, torch.float32),
        unet=to_device(networks.unet("sdxl", size, rows.device, dtype), torch.device(rows.device)),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        add_watermarker=False,
        **parts,
    )
    pipeline, asked = FirstFramePipeline(pipe, load_catalog()), request(size)
    _, _, text, pooled, _ = networks.inputs("sdxl", size, rows.device, dtype)
    embeddings = {"prompt_embeds": text[:1], "negative_prompt_embeds": text[1:]}
    embeddings |= {"pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:]}
    latents, steps = pipeline.prepare_latents([asked]), size.steps["sdxl"]
    out = timed(
        rows, f"sdxl, {steps} steps", lambda: pipeline.denoise([asked], latents, embeddings), steps=steps
    )
    timed(rows, "sdxl, decode", lambda: pipeline.decode(out))


def loops(rows: Rows, size: Size) -> None:
    video_loop(rows, size)
    rows.free()
    image_loop(rows, size)


# Training, VAE, attention


def train(rows: Rows, size: Size) -> None:
    """Whole steps of both stages, by the parts of training.memory, beside its estimate of the peak."""
    changes = [f"frames={size.frames}", f"height={8 * size.height}", f"width={8 * size.width}"]
    changes += [] if rows.cuda else ["precision=fp32"]
    for stage, make in (("motion", lamp_sd14), ("dpo", paper_dpo)):
        recipe = override(make(), changes)
        figures = {"precision": recipe.precision}
        with rows.peak(figures):
            figures |= train_steps(rows, size, recipe)
        estimate = memory.estimate(size.video, recipe, 8, cuda=rows.cuda).peak
        rows.add("training", stage, **figures, estimate_gib=round(estimate / 2**30, 3))


def train_steps(rows: Rows, size: Size, recipe: Any) -> dict[str, Any]:
    """Seconds of a step, its loss, and how many the scaler of fp16 gradients left out."""
    torch.manual_seed(0)
    network = memory.make_network(size.video, recipe, rows.device).to(memory_format=torch.channels_last)
    optimizer = memory.make_optimizer(network, recipe, None)
    batch, dtype = memory.make_batch(network, recipe, 8, rows.device), memory.DTYPES[recipe.precision]
    scaler = torch.amp.GradScaler(rows.device, enabled=recipe.precision == "fp16")
    losses, left_out = [], 0

    def one() -> None:
        nonlocal left_out
        loss = memory.loss_of(
            network, recipe, *batch, lambda: torch.autocast(rows.device, dtype, enabled=dtype is not None)
        )
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(memory.trained(optimizer), recipe.clip_norm)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        left_out += scaler.get_scale() < before
        optimizer.zero_grad()
        losses.append(loss.item())

    s = rows.seconds(one, repeats=5, warm=3)
    return {"s_per_step": round(s, 3), "first_loss": losses[0], "last_loss": losses[-1], "left_out": left_out}


@torch.no_grad()
def vae(rows: Rows, size: Size) -> None:
    """Decoding in fp32 and fp16, all images at once and two at a time."""
    shapes = {"8 frames": (8, 4, size.height, size.width), "first frame": (1, 4, size.side, size.side)}
    for what, shape in shapes.items():
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(rows.device)
        expected = networks.vae(size, rows.device, torch.float32).decode(latents).sample
        for dtype in ("fp32", "fp16") if rows.cuda else ("fp32",):
            network = networks.vae(size, rows.device, DTYPES[dtype])
            for at_once in {len(latents): None, min(2, len(latents)): None}:
                parts = latents.to(DTYPES[dtype]).split(at_once)
                figures: dict[str, Any] = {"dtype": dtype, "at_once": at_once}
                with rows.peak(figures):
                    s = rows.seconds(lambda n=network, p=parts: [n.decode(x).sample for x in p], repeats=3)
                out = torch.cat([network.decode(x).sample for x in parts])
                finite = bool(out.isfinite().all())
                rows.add(
                    "vae", what, **figures, ms=round(1e3 * s, 1), error=error(out, expected), finite=finite
                )


KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "plain": SDPBackend.MATH,
    "chosen": None,
}


def attention(rows: Rows, size: Size) -> None:
    """fp16 ms by kernel, at the shapes of the video UNet's first level and the VAE's middle."""
    heads, tokens = 8, size.height * size.width
    dim = size.video["block_out_channels"][0] // heads
    lines = 2
    shapes = {  # batch, heads, queries, keys, dim
        "spatial": (lines * size.frames, heads, tokens, 2 * tokens, dim),
        "text": (lines, heads, size.frames * tokens, networks.TOKENS, dim),
        "temporal": (lines * tokens, heads, size.frames, size.frames, dim),
        "vae": (8, 1, tokens, tokens, size.vae["block_out_channels"][-1]),
    }
    dtype = torch.float16 if rows.cuda else torch.float32
    for what, (batch, number, queries, keys, width) in shapes.items():
        q, k, v = (
            torch.randn(batch, number, n, width, device=rows.device, dtype=dtype)
            for n in (queries, keys, keys)
        )
        rows.add("attention", what, shape=[batch, number, queries, keys, width], ms=by_kernel(rows, q, k, v))


def by_kernel(rows: Rows, q: Tensor, k: Tensor, v: Tensor) -> dict[str, float | None]:
    """Milliseconds; None for a kernel that does not take these shapes here. "chosen": torch's choice."""
    ms: dict[str, float | None] = {}
    for name, kernel in KERNELS.items():
        try:
            with sdpa_kernel(kernel) if kernel else contextlib.nullcontext():
                s = rows.seconds(lambda: F.scaled_dot_product_attention(q, k, v), repeats=5)
            ms[name] = round(1e3 * s, 3)
        except RuntimeError:
            ms[name] = None
    return ms


SECTIONS: dict[str, Callable[[Rows, Size], None]] = {
    "ceiling": ceiling,
    "video": lambda rows, size: unet("video", rows, size),
    "sdxl": lambda rows, size: unet("sdxl", rows, size),
    "loops": loops,
    "training": train,
    "vae": vae,
    "attention": attention,
}
"""in order of value: what the time does not allow is left out"""
