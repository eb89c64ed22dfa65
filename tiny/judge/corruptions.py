"""Random ways to spoil a clip, from which the critic learns. No trick of `tiny.judge.tricks` is among them:
those calibrate it, so it must know them by their kind and not by having seen them.

Clips are float [F, 3, S, S] in -1..1. Every way draws its own strength, small ones as often as large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

LEVEL = 1 / 127.5  # one grey level


def uniform(g: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=g))


def strength(g: Generator, low: float, high: float) -> float:
    """Between the two, each factor as likely as any other."""
    return math.exp(uniform(g, math.log(low), math.log(high)))


def whole(g: Generator, low: int, high: int) -> int:
    """low .. high, both among them."""
    return int(torch.randint(low, high + 1, (), generator=g))


def field(g: Generator, channels: int, clip: Tensor, least: int, most: int) -> Tensor:
    """Smooth noise [F, channels, S, S] of a random grain in time and in space: `least` to `most` cells."""
    frames, size = len(clip), clip.shape[-1]
    cells = whole(g, least, most)
    noise = torch.randn((1, channels, whole(g, 2, frames), cells, cells), generator=g)
    return F.interpolate(noise, (frames, size, size), mode="trilinear", align_corners=True)[0].movedim(1, 0)


def bend(clip: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Fetched along a wavy displacement that differs from place to place, .1 to 5 pixels."""
    size = clip.shape[-1]
    line = (torch.arange(size) * 2 + 1) / size - 1
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    offset = field(g, 2, clip, 2, 8).movedim(1, -1) * (2 * strength(g, 0.1, 5) / size)
    return F.grid_sample(clip, torch.stack([columns, rows], -1) + offset, "bilinear", "border", False)


def filtered(clip: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Convolved with a random kernel that keeps brightness: smooths, sharpens, doubles or smears."""
    kernel = torch.rand(5, 5, generator=g) ** 4
    amount = strength(g, 0.03, 1) * (1 if whole(g, 0, 1) else -1)
    padded = F.pad(clip, (2, 2, 2, 2), "replicate").flatten(0, 1)[:, None]
    soft = F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0].unflatten(0, clip.shape[:2])
    return clip + amount * (soft - clip)


def retimed(clip: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Each frame taken from another time: a random walk away from its own, blended or the nearest frame."""
    frames = len(clip)
    steps = torch.randn(1, 1, whole(g, 2, frames), generator=g)
    walk = F.interpolate(steps, frames, mode="linear", align_corners=True)[0, 0]
    at = (torch.arange(frames) + strength(g, 0.2, 8) * walk).clamp(0, frames - 1)
    if whole(g, 0, 1):
        at = at.round()
    low = at.floor().long()
    share = (at - low)[:, None, None, None]
    return clip[low] * (1 - share) + clip[(low + 1).clamp(max=frames - 1)] * share


def mixed(clip: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Blended, more here and less there, with another clip, its own mean, a flat colour or its mirror."""
    flat = torch.rand(1, 3, 1, 1, generator=g) * 2 - 1
    what = (other, clip.mean(0, keepdim=True), flat, clip.flip(-1))[whole(g, 0, 3)]
    share = torch.sigmoid(3 * field(g, 1, clip, 2, 8) + uniform(g, -3, 1)) * strength(g, 0.05, 1)
    return clip + share * (what - clip)


def noisy(clip: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Noise of a random grain, grey or coloured, 1 to 40 grey levels."""
    size = clip.shape[-1]
    noise = field(g, 1 if whole(g, 0, 1) else 3, clip, 3, size // 2 if whole(g, 0, 1) else size)
    return clip + noise * strength(g, 1, 40) * LEVEL


def tinted(clip: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Another mixture of the three colours, coming and going, different from place to place."""
    turned = torch.einsum("dc,fchw->fdhw", torch.randn(3, 3, generator=g), clip)
    shift = torch.randn(1, 3, 1, 1, generator=g)
    return clip + strength(g, 0.01, 0.3) * field(g, 1, clip, 2, 4) * (turned + shift)


WAYS: tuple[Callable[[Tensor, Tensor, Generator], Tensor], ...] = (
    bend, filtered, retimed, mixed, noisy, tinted,
)  # fmt: skip


def spoil(clip: Tensor, other: Tensor, g: Generator) -> Tensor:
    """One or two ways in a row; the first frame stays, and pixels are rounded as those of a file."""
    spoilt = clip
    for _ in range(whole(g, 1, 2)):
        spoilt = WAYS[whole(g, 0, len(WAYS) - 1)](spoilt, other, g)
    spoilt = torch.cat([clip[:1], spoilt[1:]]).clamp(-1, 1)
    return ((spoilt + 1) / 2 * 255).round() / 127.5 - 1
