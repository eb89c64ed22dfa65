"""Kubernetes' autoscaler, replayed: what deploy/kubernetes says of it, and how many pods it would have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

TOLERANCE = 0.1  # within which an autoscaler leaves things as they are


@dataclass(frozen=True)
class Scaler:
    """An autoscaler as deploy/kubernetes says it. `targets`: per pod, of `queued` seconds of work that wait
    and of `busy` seconds computed a second."""

    targets: Mapping[str, float]
    least: int
    most: int
    up_percent: float
    up_seconds: float
    down_pods: int
    down_seconds: float
    steady_seconds: float  # of which the highest advice counts before anything is taken away
    rise_seconds: float = 0.0  # of which the lowest one counts before anything is added


def read_scalers(file: Path) -> dict[str, Scaler]:
    """Stage -> its scaler in a file of manifests. Raises ValueError for what is not simulated."""
    found = {}
    for manifest in yaml.safe_load_all(file.read_text(encoding="utf-8")):
        if manifest["kind"] != "ScaledObject":
            continue
        spec, targets = manifest["spec"], {}
        for trigger in spec["triggers"]:
            query = trigger["metadata"]["query"]
            names = {"queued_work_seconds": "queued", "step_seconds_sum": "busy"}
            metric = next((name for part, name in names.items() if part in query), None)
            if metric is None or trigger["metricType"] != "AverageValue":
                raise ValueError(f"{file}: got the trigger {query!r}, expected the average of {list(names)}")
            targets[metric] = float(trigger["metadata"]["threshold"])
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        (up,), (down,) = behavior["scaleUp"]["policies"], behavior["scaleDown"]["policies"]
        if (up["type"], down["type"]) != ("Percent", "Pods"):
            raise ValueError(f"{file}: got policies {up} and {down}, expected Percent up and Pods down")
        found[manifest["metadata"]["name"].replace("-", "_")] = Scaler(
            targets, spec["minReplicaCount"], spec["maxReplicaCount"], up["value"], up["periodSeconds"],
            down["value"], down["periodSeconds"], behavior["scaleDown"]["stabilizationWindowSeconds"],
            behavior["scaleUp"]["stabilizationWindowSeconds"],
        )  # fmt: skip
    return found


class Autoscaler:
    """Kubernetes' own: advice by each metric, the highest counts, then windows, then policies."""

    def __init__(self, scaler: Scaler):
        self.scaler = scaler
        self._advice: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []

    def advise(self, now: float, current: int, metrics: Mapping[str, float]) -> int:
        """How many pods there should be; `metrics` are sums over all."""
        scaler = self.scaler
        wanted = max(self._by(metrics[name], target, current) for name, target in scaler.targets.items())
        wanted = min(scaler.most, max(scaler.least, wanted))
        longest = max(scaler.steady_seconds, scaler.rise_seconds)
        self._advice = [(at, one) for at, one in self._advice if at > now - longest] + [(now, wanted)]
        falls = max(one for at, one in self._advice if at > now - scaler.steady_seconds or at == now)
        rises = min(one for at, one in self._advice if at > now - scaler.rise_seconds or at == now)
        result = current
        if rises > current:
            result = min(rises, self._most(now, current))
        elif falls < current:
            result = max(falls, self._least(now, current))
        if result != current:
            self._changes.append((now, result - current))
        return result

    @staticmethod
    def _by(total: float, target: float, current: int) -> int:
        near = abs(total / (target * max(1, current)) - 1) <= TOLERANCE
        return current if near else math.ceil(total / target)

    def _most(self, now: float, current: int) -> int:
        before = current - self._changed(now, self.scaler.up_seconds)
        return math.ceil(before * (1 + self.scaler.up_percent / 100))

    def _least(self, now: float, current: int) -> int:
        return current - self._changed(now, self.scaler.down_seconds) - self.scaler.down_pods

    def _changed(self, now: float, seconds: float) -> int:
        self._changes = [(at, by) for at, by in self._changes if at > now - 3600]
        return sum(by for at, by in self._changes if at > now - seconds)
