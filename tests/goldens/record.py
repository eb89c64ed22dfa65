"""Numbers of our own video UNet, recorded once it equalled the original's: any clone keeps watch over them.

    python tests/goldens/record.py      # writes unet.json anew; the commit that does so says why

Weights and inputs come from a formula, not from a random generator, so only results are stored.
"""

import json
import math
import platform
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from unet_configs import TINY  # noqa: E402

from huvidpo.unet import VideoUNet  # noqa: E402

FILE = Path(__file__).with_name("unet.json")
CASES = {"clip": (2, 4, 3, 6, 5), "one_frame": (1, 4, 1, 4, 4), "long": (1, 4, 7, 4, 4)}
GROUPS = ("conv1d", "conv_gate", "attn1.to_q", "attn_temp")


def waves(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values between -1 and 1 that look random, the same on every machine."""
    start = zlib.crc32(name.encode()) % 10_007
    steps = torch.arange(math.prod(shape), dtype=torch.float64) + start
    return torch.sin(steps * steps * 0.7071).float().reshape(shape)


def unet(mode: str) -> VideoUNet:
    model = VideoUNet(**TINY, attention_mode=mode)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = waves(name, tuple(parameter.shape))
            if "norm" in name:
                parameter.copy_(0.1 * values + name.endswith("weight"))
            else:
                parameter.copy_(values / math.sqrt(math.prod(parameter.shape[1:]) or 1))
    return model


def inputs(case: str) -> tuple[Tensor, Tensor, Tensor]:
    shape = CASES[case]
    text = waves("text", (shape[0], 5, TINY["cross_attention_dim"]))
    return 1.5 * waves(case, shape), torch.tensor([321, 7][: shape[0]]), text


def outputs() -> dict[str, Any]:
    """Every case in both attention modes, as nested lists."""
    with torch.no_grad():
        return {
            f"{mode}.{case}": unet(mode)(*inputs(case)).tolist()
            for mode in ("first_prev", "first")
            for case in CASES
        }


def training() -> dict[str, float]:
    """Loss of a stage-1 step, and the gradient's norm per group of trained tensors."""
    model = unet("first_prev")
    sample, timestep, text = inputs("clip")
    loss = F.mse_loss(model(sample, timestep, text)[:, :, 1:], waves("noise", CASES["clip"])[:, :, 1:])
    loss.backward()
    norms = {
        group: math.hypot(*(p.grad.norm().item() for n, p in model.named_parameters() if group in n))
        for group in GROUPS
    }
    return {"loss": loss.item()} | norms


if __name__ == "__main__":
    environment = {"python": platform.python_version(), "torch": torch.__version__}
    record = {"environment": environment, "outputs": outputs(), "training": training()}
    FILE.write_text(json.dumps(record) + "\n")
    print(f"recorded {len(record['outputs'])} outputs and {record['training']} to {FILE}")
