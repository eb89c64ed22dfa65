"""The judge's four small networks. All work on a grid of 32 x 32 places, each of `fold` x `fold` pixels.

Letters: B pictures or pairs, S pixels per side, G = 32. Pictures are float [B, 3, S, S] in -1..1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8
TIMES = (1 / 48, 1 / 16, 1 / 8, 1 / 4)  # cycles per frame of the features of a time
SPAN = 3  # frames: what the clock tells apart, either way
LEAST_SPREAD = 1 / 127.5  # one grey level


class Block(nn.Module):
    """Residual: two convolutions; `about` [B, condition] scales and shifts between them."""

    def __init__(self, width: int, condition: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.about = nn.Linear(condition, 2 * width) if condition else None

    def forward(self, x: Tensor, about: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.about is not None:
            scale, shift = self.about(about)[..., None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


def enter(channels: int, width: int) -> nn.Conv2d:
    """The first convolution; it is told where in the picture it is."""
    return nn.Conv2d(channels + 2, width, 3, padding=1)


def down(width: int, wider: int) -> nn.Conv2d:
    return nn.Conv2d(width, wider, 3, stride=2, padding=1)


def placed(x: Tensor) -> Tensor:
    """`x` [B, C, G, G] with two more channels: how far right and how far down, -1..1."""
    line = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype).expand(len(x), 1, *x.shape[-2:])
    return torch.cat([x, line, line.mT], 1)


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def times(t: Tensor) -> Tensor:
    """Features [B, 9] of times [B] in frames."""
    turns = 2 * torch.pi * t.float()[:, None] * torch.tensor(TIMES, device=t.device)
    return torch.cat([turns.sin(), turns.cos(), t.float()[:, None] / 16], 1)


def follow(x: Tensor, flow: Tensor) -> Tensor:
    """`x` [B, C, H, W] fetched from where `flow` [B, 2, H, W] (right, down; shares of the side) points."""
    line = (torch.arange(x.shape[-1], device=x.device) * 2 + 1) / x.shape[-1] - 1
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([columns, rows], -1) + 2 * flow.movedim(1, -1)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


class Predictor(nn.Module):
    """From a first frame, what it shows later: pictures, and how sure of each pixel it is.

    The picture is a blend, by pixel, of the first frame, of the first frame fetched along a flow, and of
    colours of its own.
    """

    def __init__(self, fold: int, told: int, widths: tuple[int, int, int] = (32, 48, 72)) -> None:
        super().__init__()
        a, b, c = widths
        self.fold, condition = fold, 48
        self.about = nn.Sequential(
            nn.Linear(2 * len(TIMES) + 1 + told, condition),
            nn.SiLU(),
            nn.Linear(condition, condition),
            nn.SiLU(),
        )
        self.enter, self.block0 = enter(3 * fold**2, a), Block(a)
        self.down1, self.block1 = down(a, b), Block(b)
        self.down2, self.block2 = down(b, c), Block(c)
        self.middle = nn.ModuleList(Block(c, condition) for _ in range(2))
        self.up1, self.later1 = nn.Conv2d(c + b, b, 3, padding=1), Block(b, condition)
        self.flow1 = nn.Conv2d(b, 2, 3, padding=1)
        self.up0, self.later0 = nn.Conv2d(b + 2 * a, a, 3, padding=1), Block(a, condition)
        self.calm = nn.GroupNorm(GROUPS, a)
        self.leave = nn.Conv2d(a, 7 * fold**2, 3, padding=1)
        self.flow0 = nn.Conv2d(a, 2, 3, padding=1)
        for head in (self.flow0, self.flow1, self.leave):
            for parameter in head.parameters():
                nn.init.zeros_(parameter)

    def forward(self, first: Tensor, told: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """first [B, 3, S, S], told [B, told], t [B, T] frames -> pictures [B, T, 3, S, S] and the expected
        absolute error of each pixel [B, T, 1, S, S], both in units of -1..1.
        """
        count = t.shape[1]
        x0 = self.block0(self.enter(placed(F.pixel_unshuffle(first, self.fold))))
        x1 = self.block1(self.down1(x0))
        x2 = self.block2(self.down2(x1))
        first, x0, x1, x = (x.repeat_interleave(count, 0) for x in (first, x0, x1, x2))
        about = self.about(torch.cat([times(t.flatten()), told.repeat_interleave(count, 0)], 1))
        for block in self.middle:
            x = block(x, about)
        x = self.later1(self.up1(torch.cat([double(x), x1], 1)), about)
        flow = double(self.flow1(x))
        x = self.later0(self.up0(torch.cat([double(x), x0, follow(x0, flow)], 1)), about)
        x = F.silu(self.calm(x))
        flow = F.interpolate(flow + self.flow0(x), scale_factor=self.fold, mode="bilinear")
        own, share, spread = F.pixel_shuffle(self.leave(x), self.fold).split([3, 3, 1], 1)
        share = (share + share.new_tensor([2.0, 0.0, 0.0])[:, None, None]).softmax(1)
        picture = share[:, :1] * first + share[:, 1:2] * follow(first, flow) + share[:, 2:] * own
        shape = (-1, count)
        return picture.unflatten(0, shape), (F.softplus(spread - 3) + LEAST_SPREAD).unflatten(0, shape)


class Critic(nn.Module):
    """How far from the truth the pixels of a frame are, without the truth at hand.

    It sees the frame, its neighbours, the first frame and what the predictor expected.
    """

    def __init__(self, fold: int, told: int, widths: tuple[int, int, int] = (24, 40, 56)) -> None:
        super().__init__()
        a, b, c = widths
        self.fold, condition = fold, 32
        self.about = nn.Sequential(nn.Linear(2 * len(TIMES) + 1 + told, condition), nn.SiLU())
        self.enter, self.block0 = enter(16 * fold**2, a), Block(a)
        self.down1, self.block1 = down(a, b), Block(b, condition)
        self.down2, self.block2 = down(b, c), Block(c, condition)
        self.up1, self.later1 = nn.Conv2d(c + b, b, 3, padding=1), Block(b)
        self.leave = nn.Conv2d(b, 1, 3, padding=1)

    def forward(self, seen: Tensor, told: Tensor, t: Tensor) -> Tensor:
        """seen [B, 16, S, S] (`training.seen_by_critic`), told [B, told], t [B] -> log2(1 + mean absolute
        error in grey levels) of each of 16 x 16 places, [B, 16, 16].
        """
        about = self.about(torch.cat([times(t), told], 1))
        x0 = self.block0(self.enter(placed(F.pixel_unshuffle(seen, self.fold))))
        x1 = self.block1(self.down1(x0), about)
        x2 = self.block2(self.down2(x1), about)
        x = self.later1(self.up1(torch.cat([double(x2), x1], 1)))
        return F.softplus(self.leave(F.silu(x))[:, 0])


class Reader(nn.Module):
    """What a single frame shows: its labels, and where the subject is."""

    def __init__(
        self, fold: int, counts: dict[str, int], widths: tuple[int, int, int] = (24, 32, 48)
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.fold = fold
        self.enter, self.block0 = enter(3 * fold**2, a), Block(a)
        self.down1, self.block1 = down(a, b), Block(b)
        self.down2, self.block2 = down(b, c), Block(c)
        self.subject = nn.Conv2d(b + c, 1, 1)
        self.heads = nn.ModuleDict({kind: nn.Linear(2 * c, count) for kind, count in counts.items()})

    def forward(self, frame: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """frame [B, 3, S, S] -> logits of each kind of label [B, values], of the subject [B, 16, 16]."""
        x0 = self.block0(self.enter(placed(F.pixel_unshuffle(frame, self.fold))))
        x1 = self.block1(self.down1(x0))
        x2 = F.silu(self.block2(self.down2(x1)))
        pooled = torch.cat([x2.mean((2, 3)), x2.amax((2, 3))], 1)
        subject = self.subject(torch.cat([F.silu(x1), double(x2)], 1))[:, 0]
        return {kind: head(pooled) for kind, head in self.heads.items()}, subject


class Clock(nn.Module):
    """How many frames lie between two, signed, up to SPAN either way: it tells which way time runs and how
    fast.
    """

    def __init__(self, fold: int, told: int, widths: tuple[int, int, int] = (24, 32, 48)) -> None:
        super().__init__()
        a, b, c = widths
        self.fold = fold
        self.enter, self.block0 = enter(6 * fold**2, a), Block(a)
        self.down1, self.block1 = down(a, b), Block(b, told)
        self.down2, self.block2 = down(b, c), Block(c, told)
        self.leave = nn.Linear(2 * c, 2 * SPAN + 1)

    def forward(self, earlier: Tensor, later: Tensor, told: Tensor) -> Tensor:
        """Two frames [B, 3, S, S] each -> logits [B, 7] of -3 .. 3 frames from the first to the second."""
        pair = torch.cat([earlier, later - earlier], 1)
        x = self.block0(self.enter(placed(F.pixel_unshuffle(pair, self.fold))))
        x = self.block1(self.down1(x), told)
        x = F.silu(self.block2(self.down2(x), told))
        return self.leave(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
