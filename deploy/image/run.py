#!/usr/bin/env python3
"""deploy/image/run.py IMAGE DATA [ARGUMENT ...]: runs an image without a container engine, as in a cluster.

As a user who is not root, the image's root read-only, /tmp empty, /data the folder DATA, on this machine's
network. The environment is the image's; variables named HUVIDPO_* and BENTOML_* here come after it. ARGUMENTs
follow the image's entry point. Needs root, buildah and bubblewrap. Ends with the status of what ran.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

USER = "10001"  # in the manifests too


def buildah(*arguments: str) -> str:
    return subprocess.run(
        ["buildah", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def command(root: Path, config: dict, data: Path, arguments: list[str]) -> list[str]:
    own = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith(("HUVIDPO_", "BENTOML_"))
    ]
    variables = (item.split("=", 1) for item in [*config.get("Env", []), *own])
    environment = [word for name, value in variables for word in ("--setenv", name, value)]
    (root / "data").mkdir(exist_ok=True)  # a place to mount on, as engines make it
    return [
        "/usr/bin/bwrap", "--clearenv", *environment, "--ro-bind", str(root), "/",
        "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--bind", str(data), "/data",
        "--ro-bind", "/etc/hosts", "/etc/hosts", "--die-with-parent",
        "--unshare-user", "--unshare-pid", "--uid", USER, "--gid", USER,
        "--chdir", config.get("WorkingDir") or "/", *config["Entrypoint"], *arguments,
    ]  # fmt: skip


def main() -> int:
    if len(sys.argv) < 3:
        sys.exit("usage: deploy/image/run.py localhost/huvidpo:cpu DATA [ARGUMENT ...]")
    image, data, *arguments = sys.argv[1:]
    container = buildah("from", image)
    try:
        root = Path(buildah("mount", container))
        config = json.loads(buildah("inspect", container))["OCIv1"]["config"]
        running = subprocess.Popen(command(root, config, Path(data), arguments))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: running.terminate())
        return running.wait()
    finally:
        buildah("rm", container)


if __name__ == "__main__":
    sys.exit(main())
