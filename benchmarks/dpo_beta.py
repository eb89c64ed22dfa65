"""What beta does to a preference run of the tiny family: `tiny_dpo` with betas far apart.

    python benchmarks/dpo_beta.py --category helicopter          four runs, about ten minutes on two cores

Needs the rated clips and stage-1 weights of `python -m tiny.preferences`. Metrics of the last evaluation
(training/monitors.py): accuracy and margin of held-out pairs, drift of winners and losers in per cent of the
reference's error (winners should not rise), norm of the LoRA, frame difference of the sample clips by stage
1's. Prints a table and appends one JSON line to benchmarks/results/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from unet_forward import ROOT, record

from huvidpo.catalog import DEFAULT_MODEL
from tiny.common import STAGE1
from tiny.preferences import LOOPS


def run(category: str, beta: float, steps: int) -> dict[str, Any]:
    """The last evaluation of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "training.dpo", "--model", DEFAULT_MODEL, "--category", category]
        command += ["--clips", str(LOOPS / category / "candidates"), "--run", f"{folder}/run"]
        command += [
            "--stage1",
            str(STAGE1 / f"{category}.safetensors"),
            "--out",
            f"{folder}/lora.safetensors",
        ]
        command += ["--steps", str(steps), "--set", f"beta={beta}"]
        subprocess.run(command, check=True, cwd=ROOT)
        evaluations = Path(folder, "run", "monitors.jsonl").read_text(encoding="utf-8").splitlines()
    return {"beta": beta, **json.loads(evaluations[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--category", default="helicopter")
    parser.add_argument("--betas", nargs="+", type=float, default=[50, 500, 5000, 50_000])
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args()
    args.device = "cpu"
    rows = [run(args.category, beta, args.steps) for beta in args.betas]
    print(f"{'beta':>8}{'accuracy':>10}{'beta x margin':>15}{'winners':>10}", end="")
    print(f"{'losers':>9}{'LoRA':>7}{'change':>8}")
    for row in rows:
        print(
            f"{row['beta']:>8.0f}{row['held_out_accuracy']:>10.2f}"
            f"{row['beta'] * row['held_out_margin']:>15.2f}{100 * row['held_out_winner_drift']:>+9.1f}%"
            f"{100 * row['held_out_loser_drift']:>+8.1f}%{row['lora_norm']:>7.2f}"
            f"{row['frame_difference'] / row['frame_difference_before']:>8.2f}"
        )
    record(args, rows=rows)


if __name__ == "__main__":
    main()
