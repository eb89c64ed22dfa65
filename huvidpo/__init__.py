"""Text-to-video by HuViDPO: a DPO-aligned first frame, moved by an inflated Stable Diffusion UNet."""

__version__ = "0.1.0"
