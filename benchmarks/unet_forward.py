"""Time and peak memory of the video UNet's forward against the number of frames.

    python -m benchmarks.unet_forward                     both networks, 4 to 32 frames
    python -m benchmarks.unet_forward --quick             a few seconds: does it still run?
    python -m benchmarks.unet_forward --dtype bfloat16

Beside ours stands a plain transcription of the papers' modules on the same weights: keys and values of the
first and previous frame and of the prompt are repeated for every frame, attention keeps its scores, and the
convolution along frames and the normalisation over frames each rearrange the clip. `MB/frame` is the peak
over what lay in memory before the call, divided by the frames: flat means that nothing grows faster than the
clip. Prints a table and appends one JSON line to benchmarks/results/. Random weights; results are compared.
"""

import copy
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import peak_bytes, record, timed
from huvidpo.attention import (
    Attention,
    KeysValues,
    SparseCausalAttention,
    TemporalAttention,
    TextAttention,
    visible_frames,
)
from huvidpo.unet import GatedTemporalConv, JointGroupNorm, VideoUNet

BLOCKS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
# name: (configuration, latent height and width, text tokens, frame counts)
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int], int, tuple[int, ...]]] = {
    "tiny family": (
        {
            "in_channels": 8,
            "out_channels": 8,
            "block_out_channels": (64, 96),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "layers_per_block": 1,
            "cross_attention_dim": 128,
            "attention_head_dim": 4,
        },
        (16, 16),
        48,
        (4, 8, 16, 32),
    ),
    "SD 1.4, quarter width": (
        BLOCKS | {"block_out_channels": (96, 160, 320, 320), "cross_attention_dim": 768},
        (20, 32),
        77,
        (4, 8, 16, 32),
    ),
}
QUICK = {"quick": (NETWORKS["tiny family"][0], (8, 8), 5, (2, 4))}


class PlainSparseCausalAttention(SparseCausalAttention):
    def forward(self, x: Tensor, frames: int) -> Tensor:
        clip = x.unflatten(0, (-1, frames))
        seen = visible_frames(frames, self.mode)
        context = torch.cat([clip[:, seen[:, i]] for i in range(seen.shape[1])], dim=2).flatten(0, 1)
        return plain_attend(self, x, self.keys_values(context))


class PlainTextAttention(TextAttention):
    def forward(self, x: Tensor, text_kv: KeysValues, frames: int) -> Tensor:
        keys, values = (text.repeat_interleave(frames, 0) for text in text_kv)
        return plain_attend(self, x, (keys, values))


class PlainTemporalAttention(TemporalAttention):
    def forward(self, x: Tensor, frames: int) -> Tensor:
        pixels = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1).contiguous()
        out = plain_attend(self, pixels, self.keys_values(pixels))
        return out.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)


def plain_attend(attention: Attention, x: Tensor, keys_values: KeysValues) -> Tensor:
    keys, values = keys_values
    queries = attention.split_heads(attention.to_q(x))
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    return attention.to_out[0]((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))


class PlainConv(GatedTemporalConv):
    def along_frames(self, y: Tensor, frames: int) -> Tensor:
        height, width = y.shape[-2:]
        pixels = y.unflatten(0, (-1, frames)).permute(0, 3, 4, 2, 1).flatten(0, 2)  # [(b h w), c, f]
        z = self.conv1d(F.pad(pixels, (2, 0))).unflatten(0, (-1, height, width))
        return z.permute(0, 4, 3, 1, 2).flatten(0, 1)


class PlainJointGroupNorm(JointGroupNorm):
    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2).contiguous()
        return nn.GroupNorm.forward(self, clip).transpose(1, 2).flatten(0, 1)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    SparseCausalAttention: PlainSparseCausalAttention,
    TextAttention: PlainTextAttention,
    TemporalAttention: PlainTemporalAttention,
    GatedTemporalConv: PlainConv,
    JointGroupNorm: PlainJointGroupNorm,
}


def build(config: dict[str, Any], device: str, dtype: torch.dtype) -> tuple[VideoUNet, VideoUNet]:
    """(ours, the plain transcription), equal weights, temporal parts not zero."""
    torch.manual_seed(0)
    ours = VideoUNet(**config)
    for name, parameter in ours.named_parameters():
        if "conv1d" in name or "conv_gate" in name or "attn_temp.to_out" in name:
            nn.init.normal_(parameter, std=0.02)
    nn.Module.to(ours, device, dtype).eval().requires_grad_(False)
    plain = copy.deepcopy(ours)
    for module in plain.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return ours, plain


def measure(name: str, spec: tuple, device: str, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    config, size, tokens, frame_counts = spec
    ours, plain = build(config, device, dtype)
    rows = []
    for frames in frame_counts:
        sample = torch.randn(1, config.get("in_channels", 4), frames, *size, device=device, dtype=dtype)
        text = torch.randn(1, tokens, config["cross_attention_dim"], device=device, dtype=dtype)
        row: dict[str, Any] = {"network": name, "frames": frames}
        outputs = []
        for kind, unet in (("ours", ours), ("plain", plain)):
            text_kv = unet.project_text(text) if kind == "ours" else None

            def call(unet: VideoUNet = unet, text_kv: Any = text_kv) -> Tensor:
                with torch.no_grad():
                    return unet(sample, 500, text, text_kv)  # noqa: B023

            outputs.append(call().float())
            row[f"{kind}_s"] = round(timed(call, repeats, device).median, 4)
            row[f"{kind}_mb_per_frame"] = round(peak_bytes(call, device) / 2**20 / frames, 2)
        row["largest_difference"] = (outputs[0] - outputs[1]).abs().max().item()
        print(
            f"{name:<24}{frames:>7}{row['ours_s']:>10.3f}{row['plain_s']:>10.3f}"
            f"{row['plain_s'] / row['ours_s']:>8.2f}x{row['ours_mb_per_frame']:>12.1f}"
            f"{row['plain_mb_per_frame']:>12.1f}{row['largest_difference']:>12.1e}",
            flush=True,
        )
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("tiny sizes, one repeat")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads on a CPU")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    print(f"{'network':<24}{'frames':>7}{'ours s':>10}{'plain s':>10}", end="")
    print(f"{'':>9}{'ours MB/fr':>12}{'plain':>12}{'difference':>12}")
    rows = []
    for name, spec in (QUICK if args.quick else NETWORKS).items():
        repeats = 1 if args.quick else args.repeats
        rows += measure(name, spec, args.device, getattr(torch, args.dtype), repeats)
    if not args.quick:
        record(args, args.device, rows=rows)


if __name__ == "__main__":
    main()
