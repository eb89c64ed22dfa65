"""The rules: they hold what they promise, and every expression finds something in a real service."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs Debian's package prometheus"
)


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "rules_test.yaml"],
    ],
    ids=["rules", "tests"],
)
def test_promtool(command):
    done = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_on_both_sides_and_has_its_page():
    runbook = (ROOT / "docs/runbook.md").read_text()
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text())["tests"]
    tried = [
        (entry["alertname"], bool(entry["exp_alerts"])) for test in tests for entry in test["alert_rule_test"]
    ]
    for name, alert in ALERTS.items():
        assert {(name, True), (name, False)} <= set(tried), name
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["for"]
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert f"\n## {name}\n" in runbook
    assert re.findall(r"^## (\w+)", runbook, re.M) == list(ALERTS)


def parts(expression: str) -> list[str]:
    """What an expression asks for, without the limits it compares with: those are rarely passed."""
    sides = re.split(r"\band\b|\bor(?=\s+absent\b)", expression)
    sides = [re.sub(r"\babsent\((.*?)\)", r"\1", side).strip() for side in sides]
    return [re.sub(r"\s*(>|==)\s*[\d.* ]+$", "", side) for side in sides]


def test_limits_are_taken_off():
    assert parts("a:b > 14.4 * 0.005 and sum(rate(x[5m])) > 0.1") == ["a:b", "sum(rate(x[5m]))"]
    assert parts('absent(x{a="b"}) or absent(y)') == ['x{a="b"}', "y"]
    assert parts("up == 0") == ["up"]
    assert parts("(sum(x) or vector(0)) / sum(y) > 0.05") == ["(sum(x) or vector(0)) / sum(y)"]


@pytest.fixture(scope="module")
def ask(tmp_path_factory, server):
    """Query -> its series, of a Prometheus that has watched a service work."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(folder / "rules.yaml")]
    target = {"targets": [server.url.removeprefix("http://")], "labels": {"job": "huvidpo-gateway"}}
    config["scrape_configs"] = [{"job_name": "huvidpo", "static_configs": [target]}]
    rules = (PROMETHEUS / "rules.yaml").read_text().replace("interval: 30s", "interval: 1s")
    (folder / "rules.yaml").write_text(rules)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command) as running:

        def series(query: str) -> list[dict]:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query}),
                timeout=10,
            ) as answer:
                return json.load(answer)["data"]["result"]

        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:  # until rates over work that was watched are there
                server.generate(steps=1, frames=2)
                server.client.post(
                    "/v1/videos", json={"prompt": "a horse", "num_inference_steps": 1, "num_frames": 2}
                )
                with suppress(OSError):
                    if series("huvidpo:queue_seconds:p95_5m") and series("rate(huvidpo_jobs_total[15m]) > 0"):
                        break
                time.sleep(0.5)
            yield series
        finally:
            running.terminate()


@needs_promtool
@pytest.mark.parametrize("rule", RULES, ids=[rule.get("alert") or rule["record"] for rule in RULES])
def test_every_expression_finds_something(ask, rule):
    """An expression over a metric that no service has never fires, and nobody notices."""
    for query in [rule["record"]] if "record" in rule else parts(rule["expr"]):
        seen = query.replace('outcome="queue_full"', 'outcome="ok"')  # no request of these tests was refused
        deadline = time.monotonic() + 20
        while not (found := ask(seen)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert found, query


@needs_promtool
def test_what_scales_runners_finds_something(ask):
    manifests = list(yaml.safe_load_all((ROOT / "tests/deploy/rendered/scaled.yaml").read_text()))
    scaled = [manifest for manifest in manifests if manifest["kind"] == "ScaledObject"]
    assert len(scaled) == 2
    for manifest in scaled:
        for trigger in manifest["spec"]["triggers"]:
            assert ask(trigger["metadata"]["query"]), trigger


@needs_promtool
def test_every_panel_finds_something(ask):
    board = json.loads((ROOT / "deploy/grafana/huvidpo.json").read_text())
    variables = {"$job": ".+", "$instance": ".+", "$__rate_interval": "1m"}
    for target in (target for panel in board["panels"] for target in panel.get("targets", ())):
        query = target["expr"]
        for name, value in variables.items():
            query = query.replace(name, value)
        assert ask(query), query


@needs_promtool
def test_an_expression_over_nothing_finds_nothing(ask):
    assert ask("huvidpo:no_such:ratio") == []
