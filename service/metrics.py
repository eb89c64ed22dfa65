"""Prometheus metrics. Every process of one `bentoml serve` writes into one folder; any of them can show all.

Import it only where a service is constructed: prometheus_client reads PROMETHEUS_MULTIPROC_DIR when imported.
"""

import os
import re
from pathlib import Path

import psutil
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead

_SECONDS = (
    0.01,
    0.03,
    0.1,
    0.3,
    1.0,
    2.0,
    4.0,
    8.0,
    15.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)  # floats: ints break parsers
_STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)

ANSWERS = Counter("huvidpo_http_answers", "HTTP answers, by path (others: other).", ["path", "status"])
REQUESTS = Counter(
    "huvidpo_requests",
    "Requests answered; door: http or grpc, key: name of the API key, anonymous without keys.",
    ["outcome", "category", "door", "key"],
)
POLICY = Counter(
    "huvidpo_policy_verdicts",
    "What the operator's policy said; check: prompt or frames, action: ok, tag, block or failed.",
    ["check", "action", "list"],
)
GRPC_ANSWERS = Counter("huvidpo_grpc_answers", "gRPC calls answered.", ["method", "code"])
BUILD = Gauge(
    "huvidpo_build_info",
    "What this process runs; 1.",
    ["version", "commit", "model"],
    multiprocess_mode="livemax",
)
JOBS = Counter("huvidpo_jobs", "Jobs that have ended: ok, or the code of their error.", ["outcome"])
ACTIVE_JOBS = Gauge(
    "huvidpo_active_jobs",
    "Jobs in the database that have not ended, by state; every gateway tells the same.",
    ["state"],
    multiprocess_mode="livemax",
)
OLDEST_JOB = Gauge(
    "huvidpo_oldest_queued_job_age_seconds",
    "Seconds since the oldest job that is still queued was made; 0 when none is.",
    multiprocess_mode="livemax",
)
FEEDBACK = Gauge(
    "huvidpo_feedback_backlog_records",
    "Opinions saved since the weights that their category runs on were written.",
    ["category"],
    multiprocess_mode="livemax",
)
WEBHOOKS = Counter("huvidpo_webhooks", "Ends of jobs told: ok, or failed after the last try.", ["outcome"])
IN_FLIGHT = Gauge("huvidpo_requests_in_flight", "Requests being worked on.", multiprocess_mode="livesum")
STAGE_SECONDS = Histogram(
    "huvidpo_stage_seconds", "Seconds a request spent in a stage.", ["stage"], buckets=_SECONDS
)
BATCH_SIZE = Histogram("huvidpo_batch_size", "Requests denoised together.", ["stage"], buckets=_SIZES)
QUEUE_DEPTH = Gauge(
    "huvidpo_queue_depth", "Requests waiting in a runner.", ["stage"], multiprocess_mode="livesum"
)
QUEUED_WORK = Gauge(
    "huvidpo_queued_work_seconds",
    "Seconds of a runner's computing that wait in it, as learnt step times tell; 0 while it knows none.",
    ["stage"],
    multiprocess_mode="livesum",
)
QUEUE_SECONDS = Histogram(
    "huvidpo_queue_seconds",
    "Seconds a job waited in a runner until it ran, was refused or its client left.",
    ["stage", "outcome"],
    buckets=_SECONDS,
)
RUNNERS = Gauge(
    "huvidpo_runners",
    "Runners of a stage that this gateway knows, by whether they can take jobs: ready or not_ready.",
    ["stage", "state"],
    multiprocess_mode="livesum",
)
STEP_SECONDS = Histogram(
    "huvidpo_step_seconds",
    "Seconds of one denoising step of a batch; the first, which holds other work too, is left out.",
    ["stage"],
    buckets=_STEP_SECONDS,
)
CANCEL_SECONDS = Histogram(
    "huvidpo_cancel_seconds",
    "Seconds from when a runner was told that nobody waits for a running job until it ran no more.",
    ["stage"],
    buckets=_STEP_SECONDS,
)
ETA_RATIO = Histogram(
    "huvidpo_eta_ratio",
    "Seconds a stage took from when it accepted a job, by those it then said it would: 1 is exact.",
    ["stage"],
    buckets=(0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0),
)
MEMORY_USED = Gauge(
    "huvidpo_device_memory_used_bytes",
    "Memory a runner holds, after its latest batch: of its GPU as torch reserved it, else of the process.",
    ["stage"],
    multiprocess_mode="livesum",
)
MEMORY_LIMIT = Gauge(
    "huvidpo_device_memory_limit_bytes",
    "Memory of the device a runner is on: of the GPU, else of the container or machine.",
    ["stage"],
    multiprocess_mode="livemax",
)
RESIDENT = Gauge(
    "huvidpo_resident_categories",
    "Categories whose weights a runner has in memory.",
    ["stage"],
    multiprocess_mode="livemax",
)
TURN_SECONDS = Histogram(
    "huvidpo_turn_seconds",
    "Seconds a batch waited while another stage's ran on the same cores.",
    ["stage"],
    buckets=_SECONDS,
)
PAUSES = Counter("huvidpo_pauses", "Batches that ran between two steps of a longer one.", ["stage"])
STEPS = Counter(
    "huvidpo_denoising_steps", "Denoising steps done, counted once per clip of the batch.", ["stage"]
)
CANCELLED = Counter(
    "huvidpo_cancelled_jobs", "Jobs dropped because nobody waited for them any more.", ["stage"]
)
WEIGHTS = Gauge(
    "huvidpo_category_weights_info",
    "Weights a category runs on; 1.",
    ["category", "stage", "sha256"],
    multiprocess_mode="livemax",
)
RELOADS = Counter(
    "huvidpo_reloads", "New weights of a category that a runner found: taken or refused.", ["outcome"]
)
BACKEND = Gauge(
    "huvidpo_backend_info", "What a stage runs on; 1.", ["stage", "backend"], multiprocess_mode="livemax"
)
LOAD_SECONDS = Histogram(
    "huvidpo_engine_load_seconds",
    "Seconds an engine took to load for a category, or to compile for a new shape, while a batch waited.",
    ["stage"],
    buckets=_SECONDS,
)

for _outcome in ("taken", "refused"):
    RELOADS.labels(_outcome)
for _stage in ("first_frame", "video"):  # 0 until there is one, so that a rate sees the first
    for _metric in (CANCEL_SECONDS, ETA_RATIO, PAUSES):
        _metric.labels(_stage)


def forget_the_dead() -> None:
    """Drops the gauges of processes that were killed: what waited in them waits no more. For every start."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    for file in Path(folder).glob("gauge_live*.db") if folder else ():
        pid = re.search(r"_(\d+)\.db$", file.name)
        if pid and not psutil.pid_exists(int(pid[1])):
            mark_process_dead(int(pid[1]))
