"""OpenTelemetry traces, by the standard OTEL_* variables; without them nothing is loaded, made or sent.

The trace travels as W3C's traceparent (request_id.TRACE_PARENT), through HTTP, gRPC and the hop to runners.
The provider is our own, not the global one: BentoML makes another for its own middleware. Spans hold names,
sizes and codes; never a prompt, a key, or the text of an exception, which may quote one.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import row_of
from service.request_id import TRACE_PARENT

_W3C = TraceContextTextMapPropagator()
_tracer: Tracer | None = None  # of this process, once configured


def exporter_of(environment: Mapping[str, str]) -> str:
    """ "otlp", or "" for no traces. Raises ValueError for what is not supported."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    places = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    given = environment.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(map(environment.get, places)) else "none"
    )
    if given not in ("otlp", "none"):
        raise ValueError(f"OTEL_TRACES_EXPORTER: got {given!r}, allowed otlp or none")
    name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = (
        environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(name) or "http/protobuf"
    )
    if given == "otlp" and protocol != "http/protobuf":
        raise ValueError(f"{name}: got {protocol!r}, only http/protobuf is spoken; its port is often 4318")
    return "" if given == "none" else given


def configure(process: str, version: str) -> None:
    """Once in every process, before it answers. Raises ValueError."""
    global _tracer
    if not exporter_of(os.environ):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    service = os.environ.get("OTEL_SERVICE_NAME", "huvidpo")
    facts = {"service.name": service, "service.version": version, "service.instance.id": process}
    provider = TracerProvider(resource=Resource.create(facts))  # what is left at exit is sent then
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("huvidpo", version)


def start(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    links: Iterable[str] = (),
    root: bool = False,
    **attributes: Any,
) -> Span:
    """A span under TRACE_PARENT, or `root`, linked to the traces of `links`; whoever starts it ends it."""
    if _tracer is None:
        return INVALID_SPAN
    parent = _W3C.extract({} if root else {"traceparent": TRACE_PARENT.get()})
    contexts = [get_current_span(_W3C.extract({"traceparent": link})).get_span_context() for link in links]
    found = [Link(context) for context in contexts if context.is_valid]
    return _tracer.start_span(name, parent, kind, attributes, found)


def header(span: Span) -> str:
    """`traceparent` for what is done within the span; without traces, what the caller sent."""
    context = span.get_span_context()
    if not context.is_valid:
        return TRACE_PARENT.get()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def failed(span: Span, error: Exception) -> None:
    """Marks the span with the code of the error alone."""
    span.set_attribute("error.type", row_of(error).code)
    span.set_status(Status(StatusCode.ERROR))


def answered(span: Span, code: str | int, failure: bool) -> None:
    """Ends the span of a door: `code` of HTTP, or the name of gRPC's."""
    span.set_attribute(
        "http.response.status_code" if isinstance(code, int) else "rpc.response.status_code", code
    )
    if failure:
        span.set_status(Status(StatusCode.ERROR))
    span.end()
