"""Write serve.txt, train.txt and dev.txt: install what pyproject.toml names in fresh environments, freeze them.

python requirements/lock.py
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent


def freeze(dependencies: list[str]) -> list[str]:
    """Exact versions of everything that installing `dependencies` brings, without build tags such as +cpu."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *dependencies], check=True)
        lines = subprocess.run(
            [*pip, "freeze"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    # CUDA libraries come with torch's own pins; naming them would break machines without a GPU build.
    return [pinned(line) for line in lines if not line.startswith(("nvidia-", "cuda-", "triton"))]


def pinned(line: str) -> str:
    name, _, version = line.partition("==")
    if (
        " @ " in name
    ):  # a file or an index that keeps builds of its own: torch @ file:///...torch-2.13.0+cpu-...
        name, _, where = line.partition(" @ ")
        version = where.rsplit("/", 1)[1].split("-")[1].replace("%2B", "+")
    return f"{name}=={version.partition('+')[0]}"


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    train = extras["train"] + extras["export"]
    development = [name for name in extras["dev"] if not name.startswith("huvidpo")]
    header = "# Written by requirements/lock.py from pyproject.toml. Do not edit.\n"
    for name, more in (("serve", []), ("train", train), ("dev", train + development)):
        lines = freeze(project["dependencies"] + more)
        (HERE / f"{name}.txt").write_text(header + "\n".join(lines) + "\n")
        print(f"{name}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
