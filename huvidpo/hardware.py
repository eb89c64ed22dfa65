"""Cures for hardware that is slow at what the model asks: one function per cure, each told in one place.

Today there are two: a CPU without AMX, some of whose bfloat16 kernels run several times slower than the same
in float32, and one without any bfloat16, where all do. Everything here answers as the plain operation does,
within bfloat16's rounding, and is that operation on a GPU, in float32 and while a network is exported. Shapes
as `huvidpo.attention`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Scores above which, on a CPU, the fused kernel trains faster than plain products that store them.
MOST_PLAIN_SCORES = 2**22


def slow(x: Tensor) -> bool:
    """Whether `x` is bfloat16 on a CPU, where the cures apply."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.compiler.is_exporting()


def scaled_dot_product(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over [batch, heads, tokens, D], by the fastest kernel for training or
    inference.
    """
    if not (queries.requires_grad and slow(queries)):
        return F.scaled_dot_product_attention(queries, keys, values)
    # Tiny family, forward + backward on one core without AMX, ms: fused bfloat16, fused float32, plain:
    # spatial 117 113 251, spatial at 8x8 23 13 6, temporal 115 17 7, text 18 14 7.
    if queries.shape[:-1].numel() * keys.shape[-2] > MOST_PLAIN_SCORES:
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(queries.float(), keys.float(), values.float())
        return out.to(queries.dtype)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values


def group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`norm` of `x` [B, C, ...]: in float32 where bfloat16 kernels are 2 to 5 times slower."""
    if not slow(x):
        return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    weight, bias = norm.weight.float(), norm.bias.float()
    return F.group_norm(x.float(), norm.num_groups, weight, bias, norm.eps).to(x.dtype)


def prepare_to_train(model: Any) -> Any:
    """diffusers' own networks, trained on a CPU under `mixed_precision`: channels_last, GroupNorm in float32,
    attention as plain products. Changes `model` and returns it.
    """
    if isinstance(model, UNet2DConditionModel):
        model.set_attn_processor(AttnProcessor())
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model.to(memory_format=torch.channels_last)


@contextmanager
def mixed_precision() -> Iterator[None]:
    """bf16 autocast on a CPU, without the fused attention, whose backward takes half of a CLIP step; float32
    where the CPU has no bfloat16.
    """
    if not cpu_has_bfloat16():
        yield
        return
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def cpu_has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16, and may: without such instructions (an AVX2 machine, say) a
    convolution in bfloat16 takes ten times as long as in float32.
    """
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16")) and not limited_isa()


def limited_isa() -> str:
    """How the environment keeps oneDNN from instructions that the CPU has, as NAME=value, or ""."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if os.environ.get(name, "ALL").upper() not in ("ALL", "DEFAULT"):
            return f"{name}={os.environ[name]}"
    return ""
