"""The tables and plots of docs/capacity.md, of what benchmarks.capacity recorded last."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import ROOT

DOCUMENT, IMAGES = ROOT / "docs/capacity.md", ROOT / "docs/images"
LOADS = (0.6, 0.8, 0.9, 1.0)
LOAD = 0.8  # of everything that varies something else
DEPLOYED, WAITS = "as deployed", "by seconds that wait alone"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """The tables of docs/capacity.md, by name, of what a result has."""
    made = {}
    if "sizes" in result:
        rows = [row for row in result["sizes"] if row["load"] == LOAD]
        knowing = result["all_knowing_p95"]
        made["sizes"] = table(
            ("video runners", "first-frame runners", "gateways", "clips an hour", "p50, s", "p95, s",
             "p95 if gateways knew all, s", "in time, %", "busy, %", "$ for 1000 clips", "of linear"),
            [(f"{row['video']}", f"{row['first_frame']}", f"{row['gateways']}",
              f"{3600 * row['clips_per_second']:.0f}", f"{row['p50']:.1f}", f"{row['p95']:.1f}",
              f"{knowing[str(row['video'])]:.1f}", f"{100 * row['in_time']:.1f}", f"{100 * row['busy']:.0f}",
              f"{row['dollars_per_1000']:.2f}", f"{row['of_linear']:.3f}") for row in rows],
        )  # fmt: skip
        sizes = list(dict.fromkeys(row["video"] for row in result["sizes"]))
        made["loads"] = table(
            ("load", *(f"{size}" for size in sizes)),
            [(f"{load:.1f}", *(f"{row['wait_p95']:.0f} ({100 * row['in_time']:.0f})"
              for row in result["sizes"] if row["load"] == load)) for load in LOADS],
        )  # fmt: skip
        drawn = list(dict.fromkeys(row["drawn"] for row in result["drawing"]))
        made["drawing"] = table(
            ("of", *(f"load {load}, p95, s (in time, %)" for load in LOADS)),
            [(f"{one}", *(f"{row['p95']:.0f} ({100 * row['in_time']:.0f})"
              for row in result["drawing"] if row["drawn"] == one)) for one in drawn],
        )  # fmt: skip
        made["gateways"] = table(
            ("video runners of a gateway", "its jobs at once", "p50, s", "p95, s", "in time, %", "busy, %"),
            [(f"{row['per_gateway']}", f"{row['jobs_at_once']}", f"{row['p50']:.1f}", f"{row['p95']:.1f}",
              f"{100 * row['in_time']:.1f}", f"{100 * row['busy']:.0f}") for row in result["gateways"]],
        )  # fmt: skip
        made["mixes"] = table(
            ("categories", "clips an hour", "wait p95, s", "in time, %", "busy, %"),
            [(row["mix"], f"{3600 * row['clips_per_second']:.0f}", f"{row['wait_p95']:.1f}",
              f"{100 * row['in_time']:.1f}", f"{100 * row['busy']:.0f}") for row in result["mixes"]],
        )  # fmt: skip
        made["failures"] = table(
            ("hours between failures", "back after, s", "failures", "told to try again, %", "jobs lost",
             "wait p95, s", "in time, %"),
            [(f"{row['mtbf_hours']:.0f}" if row["mtbf_hours"] else "never", f"{row['restart_seconds']:.0f}",
              f"{row['failed']}", f"{100 * row['lost']:.2f}", f"{row['jobs_lost']}", f"{row['wait_p95']:.1f}",
              f"{100 * row['in_time']:.1f}") for row in result["failures"]],
        )  # fmt: skip
        made["scaling"] = table(
            ("arrivals", "runners", "start, s", "pods", "turns a day", "of these in 10 min", "in time, %",
             "refused, %", "busy, %", "$ for 1000 clips"),
            [(row["trace"], row["policy"], f"{row['start_seconds']:.0f}",
              f"{row['least_pods']} to {row['most_pods']}", f"{row['turns_per_day']:.0f}",
              f"{row['turns_in_10_min']:.0f}", f"{100 * row['in_time']:.1f}", f"{100 * row['refused']:.1f}",
              f"{100 * row['busy']:.0f}", f"{row['dollars_per_1000']:.2f}") for row in result["scaling"]],
        )  # fmt: skip
    if "validation" in result:
        made["validation"] = table(
            ("seconds of a clip", "served", "simulated", "error", "error, % of the total", "spread"),
            [(name, f"{row['served']:.2f}", f"{row['simulated']:.2f}", f"{row['error']:+.2f}",
              f"{100 * row['error'] / result['validation'][name.replace('wait', 'total')]['served']:+.1f}",
              f"{row['spread']:.2f}") for name, row in result["validation"].items()],
        )  # fmt: skip
    return made


def filled(document: str, made: Mapping[str, str]) -> str:
    """A document with its tables anew: each stands between two comments of its name."""
    for name, text in made.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = document.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{DOCUMENT}: has no place for the table {name!r}: {begin.strip()}{end.strip()}")
        document = before + begin + text + "\n" + end + after
    return document


def latest_results() -> dict[str, Any]:
    """Of every part what was recorded last."""
    merged: dict[str, Any] = {}
    for file in sorted((ROOT / "benchmarks/results").glob("capacity_*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            merged |= json.loads(line)
    return merged


def plot(result: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for load in LOADS:
        rows = [row for row in result["sizes"] if row["load"] == load]
        sizes = [row["video"] for row in rows]
        left.plot(sizes, [row["p95"] for row in rows], marker=".", label=f"load {load}")
        right.plot(sizes, [row["of_linear"] for row in rows], marker=".")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="video runners")
    left.set(yscale="log", title="seconds that 95 % of the clips do not exceed")
    ticks = [10, 20, 30, 50, 100, 200]
    left.set_yticks(ticks, [f"{tick}" for tick in ticks])
    left.set_yticks([], minor=True)
    left.set_ylim(10, 200)
    right.set(title="clips in time a runner, of linear", ylim=(0.9, 1.01))
    right.axhline(0.95, color="grey", linestyle=":")
    figure.legend(loc="outside lower center", ncols=len(LOADS))
    _save(figure, "capacity-size")
    figure = Figure(figsize=(10, 7), layout="constrained")
    traces = list(dict.fromkeys(row["trace"] for row in result["scaling"]))
    for axes, name in zip(figure.subplots(len(traces), 1, sharex=True), traces, strict=True):
        for policy in (WAITS, DEPLOYED):
            row = next(r for r in result["scaling"] if (r["trace"], r["policy"]) == (name, policy))
            label = policy if name == traces[0] else None
            axes.plot(*zip(*row["series"], strict=True), label=label, drawstyle="steps-post")
        axes.set(title=name, ylabel="video pods", ylim=(0, None), xlim=(0, 24), xticks=range(0, 25, 3))
    axes.set_xlabel("hours")
    figure.legend(loc="outside lower center", ncols=2)
    _save(figure, "capacity-scaling")


def _save(figure: Any, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.webp", format="webp", dpi=110)
