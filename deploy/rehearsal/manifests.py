"""What the manifests and the image say of a pod: its environment, its ports, how long it may take to end."""

import base64
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
Manifest = dict[str, Any]


@dataclass(frozen=True)
class PodSpec:
    """`mounts`: path in the container -> name of its volume. `files`: path -> content, of mounted secrets."""

    component: str
    environment: dict[str, str]
    mounts: dict[str, str]
    files: dict[str, bytes]
    grace_seconds: int


def render(overlay: str) -> list[Manifest]:
    """An overlay of deploy/kubernetes, as `kubectl kustomize` gives it. Raises CalledProcessError."""
    kubectl = Path(sys.executable).parent / "kubectl"
    command = [str(kubectl), "kustomize", str(ROOT / "deploy/kubernetes" / overlay)]
    return list(
        yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    )


def pod_specs(manifests: list[Manifest]) -> dict[str, PodSpec]:
    """Component -> what its Deployment runs."""
    found = {(m["kind"], m["metadata"]["name"]): m for m in manifests}
    image = image_environment()
    return {
        name: _pod_spec(manifest, found, image)
        for (kind, name), manifest in found.items()
        if kind == "Deployment"
    }


def image_environment() -> dict[str, str]:
    """What the Dockerfile sets for the service; PATH is this machine's own."""
    (block,) = re.findall(r"^ENV PATH=(?:.*\\\n)*.*$", (ROOT / "Dockerfile").read_text(), re.M)
    names = dict(re.findall(r"(\w+)=(\S+)", block))
    return {name: value for name, value in names.items() if name != "PATH"}


def _pod_spec(deployment: Manifest, found: dict[tuple[str, str], Manifest], image: dict[str, str]) -> PodSpec:
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = dict(image)
    for source in container.get("envFrom", []):
        environment |= found["ConfigMap", source["configMapRef"]["name"]]["data"]
    for entry in container.get("env", []):
        if "value" in entry:
            environment[entry["name"]] = entry["value"]
        else:
            wanted = entry["valueFrom"]["secretKeyRef"]
            environment[entry["name"]] = _secret(found, wanted["name"])[wanted["key"]].decode()
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    files = {
        f"{path}/{key}": content
        for path, volume in mounts.items()
        if volume in secrets
        for key, content in _secret(found, secrets[volume]).items()
    }
    component = deployment["metadata"]["name"]
    return PodSpec(component, environment, mounts, files, pod["terminationGracePeriodSeconds"])


def _secret(found: dict[tuple[str, str], Manifest], name: str) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in found["Secret", name]["data"].items()}
