"""Who is told of an alert."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy/prometheus"
CONFIG = PROMETHEUS / "alertmanager.yaml"
ALERTS = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
RECEIVERS = {"page": "pager", "ticket": "tickets"}
needs_amtool = pytest.mark.skipif(
    shutil.which("amtool") is None, reason="needs Debian's package prometheus-alertmanager"
)


def amtool(*arguments: str) -> str:
    done = subprocess.run(["amtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@needs_amtool
def test_the_configuration_is_one():
    assert "SUCCESS" in amtool("check-config", str(CONFIG))


@needs_amtool
@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_every_alert_reaches_who_should_know(alert):
    severity = alert["labels"]["severity"]
    labels = [f"alertname={alert['alert']}", f"severity={severity}"]
    receiver = RECEIVERS[severity]
    amtool("config", "routes", "test", f"--config.file={CONFIG}", f"--verify.receivers={receiver}", *labels)


@needs_amtool
def test_what_has_no_severity_is_not_lost():
    assert amtool("config", "routes", "test", f"--config.file={CONFIG}", "alertname=New") == "tickets"


def test_what_is_silenced_by_another_exists():
    names = {alert["alert"] for alert in ALERTS}
    text = CONFIG.read_text()
    for rule in yaml.safe_load(text)["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            for name in matcher.partition('"')[2].rstrip('"').split("|"):
                assert any(known.startswith(name.removesuffix(".*")) for known in names), name
