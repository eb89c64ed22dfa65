"""Text-to-video by HuViDPO: a DPO-aligned first frame, moved by an inflated Stable Diffusion UNet."""

import os

for _name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read when they are loaded
    os.environ.setdefault(_name, "error")

__version__ = "0.1.0"
