"""Attention of the video UNet: which frames a frame sees, and the three attentions built on it.

Shapes: B batch, F frames, N = H*W tokens per frame, L text tokens, C channels, D = C / heads.
Frames fold into the batch as (b f). Every attention is one scaled_dot_product_attention, which keeps its
scores in float32 whatever the dtype. Module names (to_q, to_k, to_v, to_out.0) are those of diffusers and
PEFT.
"""

import torch
from torch import Tensor, nn

from huvidpo import hardware
from huvidpo.config import ATTENTION_MODES

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one attention, each [batch, heads, tokens, D]."""


def check_mode(mode: str) -> str:
    """Return `mode`, or raise ValueError if it is not one of ATTENTION_MODES."""
    if mode not in ATTENTION_MODES:
        raise ValueError(f"attention mode {mode!r} is unknown; use one of {', '.join(ATTENTION_MODES)}")
    return mode


def visible_frames(frames: int, mode: str, device: torch.device | None = None) -> Tensor:
    """Which frames each frame takes its keys and values from: int64 [F, K].

    `first_prev` (HuViDPO, Eq. 10-11): [frame 0, frame f-1], and [0, 0] for frame 0. `first` (LAMP's code):
    [frame 0].
    """
    previous = (torch.arange(frames, device=device) - 1).clamp(min=0)
    first = torch.zeros_like(previous)
    seen = (first, previous) if check_mode(mode) == "first_prev" else (first,)
    return torch.stack(seen, dim=1)


class Attention(nn.Module):
    """Multi-head attention whose queries and keys/values can be made at different times.

    `context_dim` is the width of what keys and values are made from (default: `dim`). With `zero_init` the
    output projection starts at zero, weight and bias, so that a fresh attention adds nothing.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, zero_init: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels do not divide into {heads} heads")
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        if zero_init:
            for parameter in self.to_out.parameters():
                nn.init.zeros_(parameter)

    def split_heads(self, x: Tensor) -> Tensor:
        """[batch, tokens, C] -> [batch, heads, tokens, D]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Project `context` [batch, tokens, context_dim]."""
        return self.split_heads(self.to_k(context)), self.split_heads(self.to_v(context))

    def attend(self, x: Tensor, keys_values: KeysValues) -> Tensor:
        """`x` [batch, tokens, C] looks at keys and values of the same batch -> [batch, tokens, C]."""
        keys, values = keys_values
        seen = hardware.scaled_dot_product(self.split_heads(self.to_q(x)), keys, values)
        return self.to_out[0](seen.transpose(1, 2).flatten(2))


class SparseCausalAttention(Attention):
    """Self-attention of a frame over the tokens of the frames that `visible_frames` gives it (attn1)."""

    def __init__(self, dim: int, heads: int, mode: str) -> None:
        super().__init__(dim, heads)
        self.mode = check_mode(mode)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """`x` [(b f), N, C] -> same shape."""
        video = x.unflatten(0, (-1, frames))
        if self.mode == "first":
            # One set of keys serves all frames: their queries form one long row, the keys are not copied.
            return (
                self.attend(video.flatten(1, 2), self.keys_values(video[:, 0]))
                .unflatten(1, (frames, -1))
                .flatten(0, 1)
            )
        seen = visible_frames(frames, self.mode, x.device).flatten()
        keys, values = (self.select_frames(project(x), seen, frames) for project in (self.to_k, self.to_v))
        return self.attend(x, (keys, values))

    def select_frames(self, tokens: Tensor, seen: Tensor, frames: int) -> Tensor:
        """Tokens of each frame [(b f), N, C] -> those each frame sees [(b f), heads, K*N, D], in one copy."""
        picked = tokens.unflatten(0, (-1, frames)).index_select(1, seen)
        return self.split_heads(picked.unflatten(1, (frames, -1)).flatten(2, 3).flatten(0, 1))


class TextAttention(Attention):
    """Cross-attention to the prompt (attn2), whose keys and values are the same for every frame and step."""

    def forward(self, x: Tensor, text_kv: KeysValues, frames: int) -> Tensor:
        """`x` [(b f), N, C], `text_kv` [b, heads, L, D] -> [(b f), N, C]."""
        # All frames' queries in one row per clip: the text is never repeated per frame.
        clip = x.unflatten(0, (-1, frames))
        return self.attend(clip.flatten(1, 2), text_kv).unflatten(1, (frames, -1)).flatten(0, 1)


class TemporalAttention(Attention):
    """Self-attention over the frames at each pixel (attn_temp): no mask, no position, zero at the start."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, zero_init=True)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """`x` [(b f), N, C] -> same shape."""
        pixels = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)
        # One copy for all three; the view keeps the order in which gradients add up: old runs stay equal.
        out = self.attend(pixels, self.keys_values(pixels.view_as(pixels)))
        return out.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)
