"""Gauges of several processes: prometheus_client keeps a file for each."""

import os
import subprocess
import sys

SET = """
import os, signal
from service import metrics
metrics.IN_FLIGHT.inc(32)
metrics.QUEUE_DEPTH.labels("video").set(7)
if {killed}:
    os.kill(os.getpid(), signal.SIGKILL)
metrics.forget_the_dead()
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_what_a_killed_process_counted_is_forgotten(tmp_path):
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    killed = [sys.executable, "-c", SET.format(killed=True)]
    assert subprocess.run(killed, env=env, timeout=60).returncode == -9
    lives = [sys.executable, "-c", SET.format(killed=False)]
    done = subprocess.run(lives, env=env, capture_output=True, text=True, check=True, timeout=60)
    assert "huvidpo_requests_in_flight 32.0" in done.stdout
    assert 'huvidpo_queue_depth{stage="video"} 7.0' in done.stdout
