"""The dashboard as code: writes huvidpo.json beside itself, which Grafana imports.

python deploy/grafana/dashboard.py
"""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("huvidpo.json")
WHERE = 'job=~"$job", instance=~"$instance"'  # of every series that a process of ours tells
RATE = "$__rate_interval"
WIDTH, HEIGHT, COLUMNS = 8, 8, 24  # in Grafana's grid

Panel = tuple[str, str, str, dict[str, str]]  # title, description, unit, legend -> query


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Of a counter, a second, summed."""
    matchers = ", ".join(filter(None, [where, WHERE]))
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{matchers}}}[{RATE}]))"


def quantile(q: float, metric: str, by: str = "stage") -> str:
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'{by}, le')})"


def mean(histogram: str) -> str:
    return f"{rate(f'{histogram}_sum', 'stage')} / {rate(f'{histogram}_count', 'stage')}"


def gauge(metric: str, by: str = "stage", how: str = "sum") -> str:
    return f"{how} by ({by}) ({metric}{{{WHERE}}})"


ROWS: dict[str, list[Panel]] = {
    "Overview": [
        (
            "Requests failed",
            "Share of accepted requests that failed. The objective is 0.5 % over 30 days.",
            "percentunit",
            {
                "5 minutes": "huvidpo:requests_failed:ratio_rate5m",
                "an hour": "huvidpo:requests_failed:ratio_rate1h",
            },
        ),
        (
            "Clips slow",
            "Share of clips that took more than 30 s once they ran. The objective is 5 % over 30 days.",
            "percentunit",
            {"5 minutes": "huvidpo:clips_slow:ratio_rate5m", "an hour": "huvidpo:clips_slow:ratio_rate1h"},
        ),
        (
            "Requests",
            "Requests a second, by how they ended and at which door they came.",
            "reqps",
            {"{{door}} {{outcome}}": rate("huvidpo_requests_total", "door, outcome")},
        ),
        (
            "Requests by key",
            "Requests a second of each API key; anonymous where none is asked for.",
            "reqps",
            {"{{key}}": rate("huvidpo_requests_total", "key")},
        ),
        (
            "HTTP answers",
            "HTTP answers a second, by status; runners answer their gateways, too.",
            "reqps",
            {"{{status}}": rate("huvidpo_http_answers_total", "status")},
        ),
        (
            "Seconds by stage, p95",
            "95 of 100 requests spent less than this in a stage: queue, first frame, video, encoding.",
            "s",
            {"{{stage}}": quantile(0.95, "huvidpo_stage_seconds")},
        ),
        (
            "Work that waits",
            "Seconds of computing that wait for each stage; runners scale on it.",
            "s",
            {"{{stage}}": gauge("huvidpo_queued_work_seconds")},
        ),
        (
            "Waiting, p95",
            "95 of 100 jobs waited less than this in a runner, by what ended the wait.",
            "s",
            {"{{stage}} {{outcome}}": quantile(0.95, "huvidpo_queue_seconds", "stage, outcome")},
        ),
        (
            "Batch size",
            "Requests denoised together, on average.",
            "short",
            {"{{stage}}": mean("huvidpo_batch_size")},
        ),
        (
            "Real by announced time, p10 and p90",
            "Seconds a stage took, by those it announced when it accepted the job. 1 is exact.",
            "short",
            {
                "{{stage}} p10": quantile(0.1, "huvidpo_eta_ratio"),
                "{{stage}} p90": quantile(0.9, "huvidpo_eta_ratio"),
            },
        ),
    ],
    "Runners": [
        (
            "Runners",
            "Runners that gateways know, by whether they take jobs; the most that one gateway knows.",
            "short",
            {"{{stage}} {{state}}": gauge("huvidpo_runners", "stage, state", "max")},
        ),
        (
            "Memory",
            "Memory a runner holds, as a share of what it may: of its GPU, else of its container.",
            "percentunit",
            {
                "{{stage}} {{instance}}": f"{gauge('huvidpo_device_memory_used_bytes', 'stage, instance')} / "
                f"{gauge('huvidpo_device_memory_limit_bytes', 'stage, instance')}"
            },
        ),
        (
            "Resident categories",
            "Categories whose weights a runner has in memory.",
            "short",
            {"{{stage}} {{instance}}": gauge("huvidpo_resident_categories", "stage, instance")},
        ),
        (
            "A step, p50 and p95",
            "Seconds of one denoising step of a batch.",
            "s",
            {
                "{{stage}} p50": quantile(0.5, "huvidpo_step_seconds"),
                "{{stage}} p95": quantile(0.95, "huvidpo_step_seconds"),
            },
        ),
        (
            "Cancelling, p95",
            "Seconds that a job which nobody wants still runs; at most a step.",
            "s",
            {"{{stage}}": quantile(0.95, "huvidpo_cancel_seconds")},
        ),
        (
            "What runs",
            "Version, commit and model of each process.",
            "short",
            {
                "{{version}} {{commit}} {{model}}": gauge(
                    "huvidpo_build_info", "version, commit, model", "count"
                )
            },
        ),
    ],
    "Jobs and feedback": [
        (
            "Jobs",
            "Jobs that have not ended, as the database has them.",
            "short",
            {"{{state}}": gauge("huvidpo_active_jobs", "state", "max")},
        ),
        (
            "Oldest job that waits",
            "Seconds since the oldest job that is still queued was made.",
            "s",
            {"age": f"max(huvidpo_oldest_queued_job_age_seconds{{{WHERE}}})"},
        ),
        (
            "Jobs that ended",
            "Jobs a second that ended, by how.",
            "short",
            {"{{outcome}}": rate("huvidpo_jobs_total", "outcome")},
        ),
        (
            "Feedback that no weights know of",
            "Opinions saved since the weights of their category were written.",
            "short",
            {"{{category}}": gauge("huvidpo_feedback_backlog_records", "category", "max")},
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": _place(0, y, COLUMNS, 1),
            }
        )
        for number, panel in enumerate(row):
            line, column = divmod(number, COLUMNS // WIDTH)
            panels.append(_panel(panel, _place(column * WIDTH, y + 1 + line * HEIGHT, WIDTH, HEIGHT)))
        y += 1 + -(-len(row) // (COLUMNS // WIDTH)) * HEIGHT
    for number, entry in enumerate(panels, 1):
        entry["id"] = number
    datasource = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    names = {"job": "huvidpo_build_info", "instance": 'huvidpo_build_info{job=~"$job"}'}
    variables = [_variable(name, f"label_values({series}, {name})") for name, series in names.items()]
    return {
        "uid": "huvidpo",
        "title": "HuViDPO",
        "description": "What is asked for, what waits, what runs. Written by deploy/grafana/dashboard.py.",
        "tags": ["huvidpo"],
        "editable": False,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [datasource, *variables]},
        "panels": panels,
    }


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    title, description, unit, queries = panel
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend, "datasource": source}
        for number, (legend, query) in enumerate(queries.items())
    ]
    defaults = {"unit": unit, "min": 0}
    return {
        "type": "timeseries", "title": title, "description": description,
        "datasource": source, "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []}, "gridPos": place,
    }  # fmt: skip


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "label": name, "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": query, "refresh": 2, "includeAll": True, "allValue": ".+", "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
