"""The manifests: as committed they render to what is expected, are valid, and agree with the service."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from huggingface_hub.file_download import repo_folder_name
from rated import write_rated

from huvidpo.files import hash_file
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
KUBERNETES = ROOT / "deploy/kubernetes"
RENDERED = Path(__file__).parent / "rendered"
OVERLAYS = ["overlays/cpu-tiny", "overlays/one-gpu", "overlays/scaled", "training"]
SHIPPED_BY_OTHERS = ("keda.sh", "gateway.networking.k8s.io")  # kinds that Kubernetes itself does not know
PATHS = {"HUVIDPO_ENGINES", "HUVIDPO_WEIGHTS", "HUVIDPO_CATALOG"}  # read by huvidpo, not by the service
VARIABLES = {f"HUVIDPO_{field.name.upper()}" for field in fields(Settings)} | PATHS
SERVICES = {"FirstFrameRunner": "first-frame", "VideoRunner": "video"}
Manifest = dict[str, Any]


def render(overlay: str) -> str:
    done = subprocess.run(
        [BIN / "kubectl", "kustomize", KUBERNETES / overlay], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def manifests(overlay) -> list[Manifest]:
    return list(yaml.safe_load_all(render(overlay)))


def named(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(name, pod's spec) of everything that runs."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]
        elif manifest["kind"] == "CronJob":
            yield manifest["metadata"]["name"], manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def environment(container: Manifest) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def test_they_render_to_what_is_committed(overlay):
    """After a change that is meant: kubectl kustomize deploy/kubernetes/X > tests/deploy/rendered/X.yaml"""
    assert render(overlay) == (RENDERED / f"{Path(overlay).name}.yaml").read_text()


def test_they_are_valid(manifests):
    for manifest in manifests:
        if manifest["apiVersion"].split("/")[0] not in SHIPPED_BY_OTHERS:
            kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_an_invalid_one_is_found():
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Service", "metadata": {}, "spec": {"port": 1}}, "1.37", strict=True
        )


def test_containers_have_no_more_than_they_need(manifests):
    for name, pod in pods(manifests):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod.get("initContainers", []) + pod["containers"]:
            tag = container["image"].rpartition(":")[2]
            assert re.search(r"\d|cpu|cuda", tag), container["image"]
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert "/tmp" in mounted, f"{name}: nowhere to write"


def test_variables_exist(manifests):
    for name, pod in pods(manifests):
        for container in pod["containers"]:
            assert {v for v in environment(container) if v.startswith("HUVIDPO_")} <= VARIABLES, name
    for settings in named(manifests, "ConfigMap").values():
        ours = {key: value for key, value in settings["data"].items() if key.startswith("HUVIDPO_")}
        assert set(ours) <= VARIABLES
        Settings.from_env(ours)


def test_services_reach_ports_that_are_open(manifests):
    workloads = [m for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]
    for name, service in named(manifests, "Service").items():
        wanted = service["spec"]["selector"].items()
        chosen = [m for m in workloads if wanted <= m["spec"]["template"]["metadata"]["labels"].items()]
        assert [m["metadata"]["name"] for m in chosen] == [name]
        ports = chosen[0]["spec"]["template"]["spec"]["containers"][0]["ports"]
        open_ports = {port["name"]: port["containerPort"] for port in ports}
        for port in service["spec"]["ports"]:
            assert open_ports[port["targetPort"]] == port["port"], name


def test_the_gateway_finds_its_runners(manifests):
    deployments = named(manifests, "Deployment")
    if "video" not in deployments:
        return
    (gateway,) = deployments["gateway"]["spec"]["template"]["spec"]["containers"]
    depends = dict(item.split("=", 1) for item in environment(gateway)["BENTOML_SERVE_DEPENDS"].split())
    assert depends == {runner: f"http://{name}:3000" for runner, name in SERVICES.items()}
    for runner, name in SERVICES.items():
        (container,) = deployments[name]["spec"]["template"]["spec"]["containers"]
        assert environment(container)["BENTOML_SERVE_SERVICE_NAME"] == runner
        assert named(manifests, "Service")[name]["spec"]["clusterIP"] == "None"
    classes = re.findall(r"^class (\w+)", (ROOT / "service/app.py").read_text(), re.M)
    assert {"Gateway", *SERVICES} <= set(classes)


def test_probes_ask_what_the_service_answers(manifests):
    for name, deployment in named(manifests, "Deployment").items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        asked = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness")}
        assert asked == {"startup": "/readyz", "readiness": "/readyz"}, name
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 600, "weights load for minutes"


def test_pods_are_given_the_time_to_drain(manifests):
    settings = [m["data"] for m in named(manifests, "ConfigMap").values()]
    for name, deployment in named(manifests, "Deployment").items():
        pod = deployment["spec"]["template"]["spec"]
        before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = int(settings[0]["HUVIDPO_DRAIN_SECONDS"])
        assert before + drain < pod["terminationGracePeriodSeconds"], name


def test_only_gateways_and_prometheus_reach_runners(manifests):
    policies = named(manifests, "NetworkPolicy")
    if not policies:
        pytest.skip("jobs answer on no port")
    everything = policies["default-deny"]["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if "runners" in policies:
        (rule,) = policies["runners"]["spec"]["ingress"]
        gateway, prometheus = rule["from"]
        assert gateway == {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}}
        assert prometheus["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}
        assert "egress" not in policies["runners"]["spec"]


def test_what_is_mounted_exists(manifests, overlay):
    beside = list(yaml.safe_load_all(render("overlays/scaled"))) if overlay == "training" else []
    claims = set(named([*manifests, *beside], "PersistentVolumeClaim"))
    for name, pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        templates = {
            claim["metadata"]["name"]
            for manifest in named(manifests, "StatefulSet").values()
            for claim in manifest["spec"]["volumeClaimTemplates"]
        }
        for mount in pod["containers"][0]["volumeMounts"]:
            assert mount["name"] in volumes.keys() | templates, name
        wanted = {
            v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
        }
        assert wanted <= claims, name


def test_every_category_is_trained():
    from huvidpo.catalog import load_catalog

    job = named(list(yaml.safe_load_all(render("training"))), "Job")["motion"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    categories = environment(container)["CATEGORIES"].split()
    assert categories == sorted(load_catalog().categories)
    assert job["completions"] == len(categories)


@pytest.mark.parametrize("index", [0, 7])
def test_an_index_trains_its_category(index, tmp_path):
    """The job's own script, with a `python` that says how it was called."""
    job = named(list(yaml.safe_load_all(render("training"))), "Job")["motion"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    env = environment(container) | {"JOB_COMPLETION_INDEX": str(index), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = subprocess.run(
        [*container["command"], *container["args"]], env=env, capture_output=True, text=True, check=True
    ).stdout.split()
    category = environment(container)["CATEGORIES"].split()[index]
    assert said[:2] == ["-m", "training.motion"]
    assert said[said.index("--category") + 1] == category
    assert said[said.index("--out") + 1] == f"/training/weights/{category}.safetensors"
    from training.motion import _parser

    assert _parser().parse_args(said[2:]).resume


def test_feedback_becomes_a_candidate_that_the_gate_judges(tiny_family, tmp_path, capsys):
    """The cron job's own script, its volumes in another place, with a `python` that writes down how it was
    called, and is refused by the gate; then the very commands at tiny size.
    """
    cron = named(list(yaml.safe_load_all(render("training"))), "CronJob")["feedback"]["spec"]
    job = cron["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    categories = environment(container)["CATEGORIES"].split()
    assert job["completions"] == len(categories)
    stage1 = tiny_family / "categories" / "horse.safetensors"
    (tmp_path / "training/weights").mkdir(parents=True)
    shutil.copyfile(stage1, tmp_path / "training/weights/horse.safetensors")
    write_rated(tmp_path / "data/feedback")
    (tmp_path / "python").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\ncase $2 in judging.promote) exit 4;; esac\n'
    )
    (tmp_path / "python").chmod(0o755)
    small = ["frames=4", "height=32", "width=32", "batch_size=1", "steps=1", "passes=0", "save_every=2"]
    small += ["sample_every=0", "sample_steps=1", "max_winner_drift=none", "precision=fp32"]
    env = environment(container) | {
        "MODEL": "tiny",
        "JOB": "feedback-1",
        "TRAINING": " ".join(f"--set {setting}" for setting in small),
        "GATE": "--count 1 --steps 1",
        "PATH": f"{tmp_path}:/usr/bin:/bin",
    }
    clip = re.search(r"--clip (\S+)", environment(container)["GATE"])[1]
    fetched = re.search(r"--clip=(\S+)@(\w{40})", render("overlays/scaled"))
    assert (
        clip
        == f"/weights/hub/{repo_folder_name(repo_id=fetched[1], repo_type='model')}/snapshots/{fetched[2]}"
    )
    (script,) = container["args"]
    script = re.sub(r"/(?=(training|data)/)", f"{tmp_path}/", script)

    def run(category: str) -> str:
        index = {"JOB_COMPLETION_INDEX": str(categories.index(category))}
        command = [*container["command"], script]
        return subprocess.run(command, env=env | index, capture_output=True, text=True, check=True).stdout

    assert run("rain") == "nobody has said anything of rain\n"
    assert not (tmp_path / "called").exists()
    run("horse")
    calls = [line.split() for line in (tmp_path / "called").read_text().splitlines()]
    assert [call[1] for call in calls] == ["training.dpo", "training.merge", "judging.promote"]
    codes = [importlib.import_module(name).main(arguments) for _, name, *arguments in calls]
    assert codes[:2] == [0, 0]
    assert codes[2] in (0, 4)
    assert "judge: simulated" in capsys.readouterr().out
    candidate = tmp_path / "training/candidates/feedback-1/horse"
    verdict = json.loads((candidate / "gate/promotion.json").read_text())
    assert verdict["candidate_sha256"] == hash_file(candidate / "horse.safetensors")
    assert verdict["against_sha256"] == hash_file(stage1)


@pytest.mark.skipif(
    shutil.which("checkov") is None, reason="checkov is not installed: pipx install checkov==3.3.30"
)
@pytest.mark.parametrize("what", [("-d", RENDERED), ("-f", ROOT / "Dockerfile")], ids=["manifests", "image"])
def test_checkov_finds_nothing(what):
    done = subprocess.run(
        ["checkov", *what, "--config-file", KUBERNETES / "checkov.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
