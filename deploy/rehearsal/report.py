"""The page about a rehearsal: counts, waiting times, when each alert fired and cleared, a picture."""

import datetime
import json
import os
import statistics
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def show(result: Result) -> None:
    print(markdown(result))


def write(result: Result, root: Path) -> None:
    """docs/rehearsal.md, docs/images/rehearsal.webp, and the run itself among the benchmarks' results."""
    name = f"rehearsal_{os.cpu_count()}cpu_{datetime.date.today().isoformat()}.json"
    (root / "benchmarks/results" / name).write_text(json.dumps(result, indent=1) + "\n")
    draw(result, root / "docs/images/rehearsal.webp")
    (root / "docs/rehearsal.md").write_text(HEAD.format(name=name) + markdown(result))


HEAD = """# A rehearsal

`make rehearsal` runs the deployment on one machine: Postgres, Prometheus, Alertmanager, two gateways, two
first-frame and two video runners as processes, in the environment that `deploy/kubernetes` gives their pods,
each with an address of its own. Clients go on asking - jobs through OpenAI's client, clips over HTTP and
gRPC - while one thing after the other goes wrong. Every minute of the alerts' rules is a second here. What
cannot be had this way: a network between machines, and a scheduler. This page is what one run wrote
(`benchmarks/results/{name}`).

![requests as dots over time by how long they took, drills as bands, alerts as bars](images/rehearsal.webp)

"""


def markdown(result: Result) -> str:
    audit = result["audit"]
    lines = [
        f"Ready after {result['ready']:.0f} s, over after {result['seconds']:.0f} s.", "",
        f"**Jobs: {audit['accepted']} accepted, {audit['completed']} completed, {audit['lost']} lost, "
        f"{audit['duplicated']} duplicated, {audit['stuck']} stuck, {audit['unreadable']} without a clip.**",
        "",
        "| door | asked | ended well | otherwise | p50 s | p95 s |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for door, outcomes in sorted(result["outcomes"].items()):
        waits = sorted(a["seconds"] for a in result["asked"] if a["door"] == door and a["outcome"] == "ok")
        others = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()) if name != "ok")
        total = sum(outcomes.values())
        lines.append(
            f"| {door} | {total} | {outcomes.get('ok', 0)} | {others or '-'} | "
            f"{_quantile(waits, 50):.1f} | {_quantile(waits, 95):.1f} |"
        )
    lines += ["", "| what went wrong | from - to | alerts: fired, cleared after | |", "|---|---|---|---|"]
    for entry in result["timeline"]:
        alerts = ", ".join(_alert(result, entry, name) for name in entry["alerts"]) or "-"
        span = f"{entry['from']:.0f} - {entry['to']:.0f} s"
        lines.append(f"| {entry['drill']} | {span} | {alerts} | {entry['problem'] or 'ok'} |")
    return "\n".join(lines) + "\n"


def _alert(result: Result, entry: dict[str, Any], name: str) -> str:
    """When it fired and cleared, in seconds after the drill began."""
    times = {
        state: at - entry["from"]
        for at, alert, state in reversed(result["alerts"])
        if alert == name and entry["from"] <= at <= entry["to"]
    }
    said = (f"{times[state]:.0f} s" if state in times else "never" for state in ("firing", "resolved"))
    return f"{name} {', '.join(said)}"


def _quantile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def draw(result: Result, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for _, name, _ in result["alerts"]))
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(12, 7), height_ratios=[3, 2], layout="constrained"
    )
    colours = {"job": "tab:blue", "http": "tab:green", "grpc": "tab:purple"}
    for door, colour in colours.items():
        for good, marker in ((True, "o"), (False, "x")):
            points = [a for a in result["asked"] if a["door"] == door and (a["outcome"] == "ok") == good]
            above.scatter(
                [a["at"] for a in points], [max(a["seconds"], 0.05) for a in points], s=14, c=colour,
                marker=marker, label=door if good else f"{door}, refused or lost its connection",
            )  # fmt: skip
    above.set(
        yscale="log",
        ylabel="seconds from asking to the answer",
        title="Every request, by when it was asked for",
    )
    figure.legend(loc="outside lower center", fontsize=8, ncols=3)
    for number, entry in enumerate(result["timeline"]):
        for axis in (above, below):
            axis.axvspan(entry["from"], entry["to"], color="0.93" if number % 2 else "0.98", zorder=0)
        above.text(
            entry["from"] + 1, 0.02, entry["drill"], rotation=90, fontsize=6.5, va="bottom",
            transform=above.get_xaxis_transform(), color="0.35",
        )  # fmt: skip
    for row, name in enumerate(names):
        began = None
        for at, alert, state in result["alerts"]:
            if alert == name and state == "firing":
                began = at
            elif alert == name and began is not None:
                below.barh(row, at - began, left=began, color="tab:red", height=0.6)
                began = None
    below.set(xlabel="seconds", title="Alerts, from firing to clear", xlim=(0, result["seconds"]))
    below.set_yticks(range(len(names)), names, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, pil_kwargs={"quality": 85})
    plt.close(figure)
