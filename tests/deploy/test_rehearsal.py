"""The rehearsal: what it takes from the manifests, that it knows every alert, and a short one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.rehearsal.drills import DRILLS, NOT_REHEARSED
from deploy.rehearsal.manifests import ROOT, image_environment, pod_specs, render
from deploy.rehearsal.report import markdown
from deploy.rehearsal.watch import PROGRAMS, faster, faster_rules

RULES = (ROOT / "deploy/prometheus/rules.yaml").read_text()


def test_pods_have_the_environment_of_the_manifests():
    specs = pod_specs(render("overlays/cpu-tiny"))
    assert set(specs) == {"gateway", "first-frame", "video"}
    assert all(spec.environment["HUVIDPO_MODEL"] == "tiny" for spec in specs.values())  # a ConfigMap's
    gateway = specs["gateway"]
    assert gateway.environment["HUVIDPO_DATABASE_URL"].startswith("postgresql://huvidpo:for-trying@postgres")
    assert gateway.environment["HUVIDPO_DATA"] == "/data"  # the image's
    assert gateway.files["/etc/huvidpo/api-keys"].startswith(b"trying:")
    assert specs["video"].environment["BENTOML_SERVE_SERVICE_NAME"] == "VideoRunner"
    assert gateway.grace_seconds > int(gateway.environment["HUVIDPO_DRAIN_SECONDS"])


def test_the_image_sets_what_the_dockerfile_says():
    environment = image_environment()
    assert environment["BENTOML_PORT"] == "3000"
    assert "PATH" not in environment


@pytest.mark.parametrize(
    ("given", "expected"), [("5m", "5s"), ("6h", "360s"), ("30s", "1s"), ("1d", "1440s"), ("90s", "2s")]
)
def test_a_minute_is_a_second(given, expected):
    assert faster(given) == expected


def test_rules_keep_everything_but_their_durations(tmp_path):
    slow, fast = yaml.safe_load(RULES), yaml.safe_load(faster_rules(RULES))
    names = [[rule.get("alert") or rule["record"] for rule in group["rules"]] for group in slow["groups"]]
    assert names == [
        [rule.get("alert") or rule["record"] for rule in group["rules"]] for group in fast["groups"]
    ]
    assert "[5m]" in RULES
    assert not [rule for group in fast["groups"] for rule in group["rules"] if "m]" in rule["expr"]]


def test_every_alert_is_made_to_fire_or_it_is_said_why_not():
    alerts = {
        rule["alert"]
        for group in yaml.safe_load(RULES)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    rehearsed = {alert for drill in DRILLS for alert in drill.alerts}
    assert rehearsed <= alerts
    assert alerts - rehearsed <= NOT_REHEARSED.keys()
    assert not rehearsed & NOT_REHEARSED.keys()


def test_the_report_says_what_was_lost():
    asked = [{"door": "job", "at": 1.0, "outcome": "ok", "seconds": 2.0}]
    audit = {"accepted": 3, "completed": 2, "lost": 1, "duplicated": 0, "stuck": 0, "unreadable": 0}
    entry = {"drill": "a fault", "from": 10.0, "to": 30.0, "alerts": ("A", "B"), "problem": "B did not fire"}
    alerts = [(12.0, "A", "firing"), (20.0, "A", "resolved"), (40.0, "B", "firing")]
    page = markdown(
        {
            "ready": 5.0, "seconds": 60.0, "audit": audit, "outcomes": {"job": {"ok": 1, "internal": 1}},
            "asked": asked, "timeline": [entry], "alerts": alerts,
        }
    )  # fmt: skip
    assert "3 accepted, 2 completed, 1 lost" in page
    assert "| job | 2 | 1 | 1 internal | 2.0 | 2.0 |" in page
    assert "| a fault | 10 - 30 s | A 2 s, 10 s, B never, never | B did not fire |" in page


def can_rehearse() -> bool:
    if None in (*PROGRAMS.values(), shutil.which("unshare")):
        return False
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return False
    own = [] if os.getuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    tried = ["unshare", *own, "--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    return subprocess.run(tried, capture_output=True).returncode == 0


@pytest.mark.skipif(
    not can_rehearse(),
    reason="needs postgresql, prometheus, prometheus-alertmanager, and a mount namespace of one's own",
)
def test_a_short_rehearsal():
    """kill -9 of a video runner; nothing is lost."""
    command = [sys.executable, "-m", "deploy.rehearsal", "--small", "--rate", "0.4", "--drills", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 duplicated, 0 stuck, 0 without a clip" in done.stdout
