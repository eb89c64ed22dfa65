"""Which variables ask for traces; how the trace is passed on."""

import subprocess
import sys

import pytest

from service import tracing
from service.request_id import TRACE_PARENT


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ""),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ""),
    ],
)
def test_traces_are_made_when_asked_for(environment, expected):
    assert tracing.exporter_of(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_is_not_spoken_is_refused(environment):
    with pytest.raises(ValueError, match=r"^OTEL_.*: got '.*', (allowed|only) "):
        tracing.exporter_of(environment)


def test_without_traces_what_the_caller_sent_is_passed_on():
    sent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    before = TRACE_PARENT.set(sent)
    span = tracing.start("x")
    told = tracing.header(span)
    TRACE_PARENT.reset(before)
    assert not span.is_recording()
    assert told == sent


def test_without_traces_nothing_is_loaded_and_no_thread_runs():
    code = """
import sys, threading
from service import tracing
tracing.configure("Gateway", "0")
tracing.start("x").end()
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
assert threading.active_count() == 1
"""
    clean = {"PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-c", code], env=clean, check=True, timeout=60)
