"""One request is one tree of spans, over the gateway, the hop and both runners."""

import secrets
import time
from collections import Counter

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.protos import video_generation_pb2 as messages
from service.protos import video_generation_pb2_grpc as stubs

CALLER = "00f067aa0ba902b7"  # the span that calls
SECRET = "a purple unicorn nobody should read of"
STAGE = {"wait for {}", "{}", "encode {}"}


@pytest.fixture
def spans(collector):
    """trace -> its (process, span) as they have come, once there are `count` of them."""

    def spans(trace: str, count: int) -> list:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = [
                (resource.resource.attributes, span)
                for body in list(collector.bodies)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
                if span.trace_id.hex() == trace
            ]
            if len(found) >= count:
                return [({a.key: a.value.string_value for a in facts}, span) for facts, span in found]
            time.sleep(0.1)
        raise AssertionError(f"{len(found)} spans came, not {count}: {[span.name for _, span in found]}")

    return spans


def check_tree(found: list, door: str) -> None:
    """All hang together, under the caller's span, and each stage has its own."""
    ids = {span.span_id.hex() for _, span in found}
    tops = [span for _, span in found if span.parent_span_id.hex() not in ids]
    assert [(top.name, top.parent_span_id.hex()) for top in tops] == [(door, CALLER)]
    names = {span.name for _, span in found}
    for stage in ("first_frame", "video"):
        assert {f"hop to {stage}"} | {name.format(stage) for name in STAGE} <= names
    by_id = {span.span_id.hex(): (facts, span) for facts, span in found}
    processes = set()
    for facts, span in found:
        processes.add(facts["service.instance.id"])
        if span.name == "PUT /jobs/":
            assert by_id[span.parent_span_id.hex()][1].name.startswith("hop to")
            assert facts["service.instance.id"] != by_id[span.parent_span_id.hex()][0]["service.instance.id"]
    assert processes == {"Gateway", "FirstFrameRunner", "VideoRunner"}
    (video,) = [span for _, span in found if span.name == "video"]
    assert [event.name for event in video.events] == ["step"] * 2


def test_a_request_over_http_is_one_tree_over_three_processes(server, spans, collector):
    trace = secrets.token_hex(16)
    body = {"prompt": SECRET, "category": "horse", "style": "realistic", "steps": 2}
    headers = {"traceparent": f"00-{trace}-{CALLER}-01", "Authorization": "Bearer hidden-key"}
    assert server.client.post("/generate_video", json=body, headers=headers).status_code == 200
    check_tree(spans(trace, 11), "POST /generate_video")
    sent = b"".join(collector.bodies)
    assert SECRET.encode() not in sent
    assert b"hidden-key" not in sent


def test_a_batch_is_linked_to_its_requests(server, collector, spans):
    trace = secrets.token_hex(16)
    body = {"prompt": "x", "category": "horse", "style": "realistic", "steps": 1}
    server.client.post("/generate_video", json=body, headers={"traceparent": f"00-{trace}-{CALLER}-01"})
    spans(trace, 11)
    deadline = time.monotonic() + 60
    batches: set[str] = set()
    while batches != {"batch of first_frame", "batch of video"} and time.monotonic() < deadline:
        every = [
            span
            for sent in list(collector.bodies)
            for resource in ExportTraceServiceRequest.FromString(sent).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        batches = {span.name for span in every for link in span.links if link.trace_id.hex() == trace}
        time.sleep(0.1)
    assert batches == {"batch of first_frame", "batch of video"}


def test_a_call_over_grpc_is_one_tree(server, spans):
    trace = secrets.token_hex(16)
    request = messages.GenerateRequest(prompt="x", category="horse", style="realistic", steps=2)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = stubs.VideoGenerationStub(channel)
        list(stub.Generate(request, metadata=(("traceparent", f"00-{trace}-{CALLER}-01"),)))
    check_tree(spans(trace, 11), "huvidpo.v1.VideoGeneration/Generate")


def test_a_job_is_one_tree_with_the_request_that_made_it(server, spans):
    trace = secrets.token_hex(16)
    body = {"prompt": "x", "category": "horse", "num_inference_steps": 2}
    headers = {"traceparent": f"00-{trace}-{CALLER}-01"}
    id = server.client.post("/v1/videos", json=body, headers=headers).json()["id"]
    deadline = time.monotonic() + 120
    while server.client.get(f"/v1/videos/{id}").json()["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = spans(trace, 13)
    check_tree(found, "POST /v1/")
    names = {span.span_id: span.name for _, span in found}
    parents = {names[span.parent_span_id] for _, span in found if span.name.startswith("hop to")}
    assert parents == {"job first_frame", "job video"}


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "name"),
    [
        ("GET", "/no/such/path", b"", 404, "GET other"),
        ("GET", "/models", b"", 200, "GET /models"),
        ("GET", "/rate", b"", 307, "GET /rate"),
        ("POST", "/generate_video", b"x" * 2**21, 413, "POST /generate_video"),
        ("POST", "/generate_video", b"x", 415, "POST /generate_video"),
    ],
)
def test_every_answer_has_one_span(server, spans, method, path, content, status, name):
    trace = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace}-{CALLER}-01", "Content-Type": "text/plain"}
    assert server.client.request(method, path, content=content, headers=headers).status_code == status
    (found,) = spans(trace, 1)
    span = found[1]
    assert span.name == name
    told = {a.key: a.value.int_value for a in span.attributes}
    assert told == {"http.response.status_code": status}
    assert Counter([span.parent_span_id.hex()]) == {CALLER: 1}
