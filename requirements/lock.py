"""Write serve.txt, train.txt and dev.txt: everything that installing what pyproject.toml names would bring.

python requirements/lock.py
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEADER = "# Written by requirements/lock.py from pyproject.toml. Do not edit.\n"
# CUDA libraries come with torch's own pins; naming them would break machines without a GPU build.
LEFT_OUT = ("nvidia-", "cuda-", "triton", "setuptools")


def wanted(project: dict[str, Any]) -> dict[str, list[str]]:
    """What each file is made of, by its name; `project` is that table of pyproject.toml."""
    serve, extras = project["dependencies"], project["optional-dependencies"]
    train = serve + extras["train"] + extras["export"]
    own = [line for line in extras["dev"] if not line.startswith("huvidpo")]
    return {"serve": serve, "train": train, "dev": train + extras["marks"] + own}


def pins(report: dict[str, Any]) -> list[str]:
    """The lines of a file from pip's report, without build tags such as +cpu."""
    found = {
        one["metadata"]["name"]: one["metadata"]["version"].partition("+")[0] for one in report["install"]
    }
    names = sorted((name for name in found if not name.startswith(LEFT_OUT)), key=str.lower)
    return [f"{name}=={found[name]}" for name in names]


def main() -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
    ]
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    for name, lines in wanted(project).items():
        told = subprocess.run([*pip, *lines], check=True, stdout=subprocess.PIPE).stdout
        pinned = pins(json.loads(told))
        (HERE / f"{name}.txt").write_text(HEADER + "\n".join(pinned) + "\n")
        print(f"{name}.txt: {len(pinned)} packages")


if __name__ == "__main__":
    main()
