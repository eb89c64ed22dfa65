"""Export and engine build at full size, with no GPU and without the published weights (random ones instead).

    python -m benchmarks.export_full_size                        both networks; about 10 minutes, 16 GB
    python -m benchmarks.export_full_size --network video_unet
    python -m benchmarks.export_full_size --quick                small networks: does it run? records nothing

The video UNet of SD 1.4 at 16 x 320 x 512 and the UNet of SDXL at 1024 x 1024, float16, for SM 8.0, 8.6, 8.9
and 12.0, by TensorRT for RTX. For each: seconds of export, of writing weights and of the build, bytes, and
the most memory that the exporting and the building process held. Each network has its own process, and up
to 15 GB of temporary files. Appends one JSON line to benchmarks/results/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.common import ROOT, record
from benchmarks.unet_forward import BLOCKS
from export.to_onnx import bind, export_graph
from export.to_tensorrt import build_plan, capabilities_of, peak_bytes
from huvidpo.catalog import load_catalog
from huvidpo.engines.networks import ROWS, Network, Span

SDXL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
# name: (configuration, the one of --quick, sizes)
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, int | Span]]] = {
    "video_unet": (
        BLOCKS | {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768},
        {"block_out_channels": (32, 32, 32, 32)},
        {
            "batch": Span(1, 2, 2),
            "channels": 4,
            "predicted": 4,
            "frames": Span(8, 16, 16),
            "height": Span(24, 40, 64, 8),
            "width": Span(24, 64, 64, 8),
            "tokens": 77,
            "text_width": 768,
        },
    ),
    "first_frame_unet": (
        SDXL,
        {"block_out_channels": (32, 64, 64), "transformer_layers_per_block": 1},
        {
            "batch": Span(1, 2, 2),
            "channels": 4,
            "predicted": 4,
            "height": Span(64, 128, 160, 4),
            "width": Span(64, 128, 160, 4),
            "tokens": 77,
            "text_width": 2048,
            "projected": 1280,
            "time_ids": 6,
        },
    ),
}


def network_of(name: str, quick: bool) -> Network:
    config, small, sizes = NETWORKS[name]
    return Network(
        ROWS[name], load_catalog().model("sd14"), config | (small if quick else {}), sizes, "float16"
    )


def random_weights(network: Network) -> dict[str, Tensor]:
    """float16, as large as those of a fresh network; never a float32 copy of all of them."""
    with torch.device("meta"):
        shapes = network.row.kind.from_config(network.config).state_dict()  # type: ignore[attr-defined]
    return {name: torch.randn(x.shape, dtype=torch.float16).mul_(0.02) for name, x in shapes.items()}


def measure(name: str, quick: bool, folder: Path) -> dict[str, Any]:
    """Metrics of one network: export, weights, build."""
    network = network_of(name, quick)
    started = time.monotonic()
    skeleton = folder / "skeleton.onnx"
    skeleton.write_bytes(export_graph(network))
    metrics: dict[str, Any] = {"network": name, "export_s": round(time.monotonic() - started, 1)}
    metrics |= {"export_peak_mb": peak_bytes() >> 20, "skeleton_bytes": skeleton.stat().st_size}
    started = time.monotonic()
    tensors = random_weights(network)
    metrics["parameters"] = sum(x.numel() for x in tensors.values())
    bind(skeleton, tensors, folder, torch.float16)
    metrics["bind_s"] = round(time.monotonic() - started, 1)
    del tensors
    plan = build_plan(
        folder / "model.onnx",
        folder / "engine.plan",
        network.profiles(network.row.inputs),
        "tensorrt-rtx",
        capabilities_of("tensorrt-rtx", []),
        folder / "build.log",
    )
    metrics |= {"build_s": round(plan.seconds, 1), "build_peak_mb": plan.peak_bytes >> 20}
    return metrics | {"plan_bytes": (folder / "engine.plan").stat().st_size}


def in_own_process(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a new process, so that peaks are its own."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.export_full_size",
            "--network",
            name,
            "--measure",
            folder,
        ]
        command += ["--quick"] if args.quick else []
        subprocess.run(command, check=True, cwd=ROOT)
        return json.loads((Path(folder) / "metrics.json").read_text())


def main(arguments: list[str] | None = None) -> None:
    parser = common.parser("small networks")
    parser.add_argument("--network", choices=NETWORKS, help="default: both, one after the other")
    parser.add_argument("--folder", help="for temporary files; default: the system's")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # of one network, in this process
    args = parser.parse_args(arguments)
    if args.measure:
        metrics = measure(args.network, args.quick, Path(args.measure))
        (Path(args.measure) / "metrics.json").write_text(json.dumps(metrics))
        return
    rows = [in_own_process(name, args) for name in ([args.network] if args.network else NETWORKS)]
    for row in rows:
        print(
            f"{row['network']}: {row['parameters'] / 1e9:.2f} B parameters; export {row['export_s']} s, "
            f"{row['export_peak_mb']:,} MB; build {row['build_s']} s, {row['build_peak_mb']:,} MB; "
            f"plan {row['plan_bytes'] / 1e9:.2f} GB"
        )
    if not args.quick:
        tools = {name: version(name) for name in ("onnx", "onnxscript", "tensorrt-rtx-cu13")}
        record(args, rows=rows, tools=tools)


if __name__ == "__main__":
    main()
