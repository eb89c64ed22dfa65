"""The dashboard: as its script writes it, and by the rules of grafana/dashboard-linter."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BOARD = json.loads((DEPLOY / "grafana/huvidpo.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel, target["expr"]) for panel in PANELS for target in panel["targets"]]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RECORDED = re.compile(r"huvidpo:\w+:\w+")  # made of all processes together: they have no job and no instance
named = pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
asked = pytest.mark.parametrize(("panel", "query"), QUERIES, ids=[query for _, query in QUERIES])


def test_the_file_is_what_the_script_writes():
    spec = importlib.util.spec_from_file_location("dashboard", DEPLOY / "grafana/dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FILE.read_text() == json.dumps(module.dashboard(), indent=1) + "\n"


def test_datasource_job_and_instance_are_variables():
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("job", "instance"):
        variable = variables[name]
        assert variable["datasource"] == SOURCE
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")
        assert variable["refresh"] == 2, "on every change of the time range"
        assert re.fullmatch(rf"label_values\(huvidpo_build_info.*, {name}\)", variable["query"])


def test_nobody_edits_it_in_place():
    assert BOARD["editable"] is False
    assert BOARD["uid"] == "huvidpo"


def test_panels_do_not_overlap():
    taken = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        fields = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not fields & taken, panel["title"]
        assert max(x for x, _ in fields) < 24
        taken |= fields
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@named
def test_a_panel_says_what_it_shows(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in ("percentunit", "reqps", "s", "short")
    assert panel["datasource"] == SOURCE
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        assert target["legendFormat"]


@asked
def test_a_query_can_be_narrowed_and_fits_the_range(panel, query):
    if not RECORDED.fullmatch(query):
        selectors = re.findall(r"huvidpo_\w+(\{.*?\})?", query)
        for selector in selectors:
            assert 'job=~"$job"' in selector
            assert 'instance=~"$instance"' in selector
    assert set(re.findall(r"\[(.*?)\]", query)) <= {"$__rate_interval"}
    for counter in re.findall(r"(\S*)huvidpo_\w+_(?:total|bucket|sum|count)\b", query):
        assert counter.endswith("rate("), "a counter's value says nothing"


def test_the_cluster_gets_it_where_the_sidecar_looks():
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [kubectl, "kustomize", DEPLOY / "grafana"], capture_output=True, text=True, check=True
    )
    manifest = yaml.safe_load(done.stdout)
    assert (manifest["kind"], manifest["metadata"]["labels"]) == ("ConfigMap", {"grafana_dashboard": "1"})
    assert json.loads(manifest["data"]["huvidpo.json"]) == BOARD


def test_recorded_rules_that_it_shows_exist():
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())["groups"]
    records = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    assert {query for _, query in QUERIES if RECORDED.fullmatch(query)} <= records
