"""The gRPC door of the real service, through the generated client."""

import io
import time
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from PIL import Image

from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.video import decode
from service.protos import video_generation_pb2 as messages
from service.protos import video_generation_pb2_grpc as stubs

SERVICE = "huvidpo.v1.VideoGeneration"


def request(**fields) -> messages.GenerateRequest:
    whole = {"prompt": "a white horse runs", "category": "horse", "style": "realistic", "steps": 2} | fields
    return messages.GenerateRequest(**whole)


@pytest.fixture(scope="module")
def channel(server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel) -> stubs.VideoGenerationStub:
    return stubs.VideoGenerationStub(channel)


def refusal(call) -> tuple[grpc.StatusCode, str, dict]:
    """Code, message and the error details by type of a call that fails."""
    with pytest.raises(grpc.RpcError) as failed:
        list(call)
    details = {}
    for packed in rpc_status.from_call(failed.value).details:
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        assert packed.Unpack(detail)
        details[type(detail).__name__] = detail
    assert details["RequestInfo"].request_id == details["ErrorInfo"].metadata["request_id"]
    assert details["ErrorInfo"].domain == "huvidpo"
    return failed.value.code(), failed.value.details(), details


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_the_strength_of_preferences(server, stub):
    """At every door: as shipped unless it is given, named by the answer, refused where it cannot be had."""
    asked = {"prompt": "a white horse runs", "steps": 2, "seed": 5, "frames": 2}
    shipped, plain, none = (server.generate(**asked, preference_strength=s) for s in (None, 1, 0))
    assert plain.content == shipped.content != none.content
    assert none.headers["x-weights"] == shipped.headers["x-weights"] + "; preference_strength=0"
    events = stub.Generate(request(seed=5, frames=2, preference_strength=0))
    assert b"".join(event.chunk for event in events) == none.content
    code, text, _ = refusal(stub.Generate(request(category="rain", preference_strength=0.5)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("preference_strength: got 0.5; the weights of rain that run here have one")
    beyond = {"prompt": "a horse", "preference_strength": "1.6"}
    for body in ({"json": beyond}, {"files": {name: (None, value) for name, value in beyond.items()}}):
        job = server.client.post("/v1/videos", **body)
        assert (job.status_code, job.json()["error"]["param"]) == (422, "preference_strength")


def test_progress_then_the_clip(server, stub):
    call = stub.Generate(request(seed=5, frames=4, fps=12), metadata=(("x-request-id", "mine-1"),))
    events = list(call)
    kinds = [event.WhichOneof("event") for event in events]
    assert events[1].queued.position >= 0
    first_frame = ["queued", "started", *["progress"] * 3]
    assert kinds[:10] == ["accepted", *first_frame, "queued", "started", "progress", "progress"]
    assert kinds[10] == "clip"
    assert set(kinds[11:]) == {"chunk"}
    assert (events[0].accepted.model, events[0].accepted.seed) == (DEFAULT_MODEL, 5)
    steps = [(event.progress.stage, event.progress.step, event.progress.total) for event in events[3:6]]
    assert steps == [("first_frame", step, 3) for step in (1, 2, 3)]
    clip, data = events[10].clip, b"".join(event.chunk for event in events[11:])
    assert (clip.media_type, clip.size, clip.seed) == ("video/mp4", len(data), 5)
    assert set(clip.seconds) == {"queue", "first_frame", "video", "encode"}
    assert set(clip.backends) == {"first_frame", "video"}
    frames, fps = decode(data)
    assert frames.shape == (4, 32, 32, 3)
    assert fps == 12
    assert ("x-request-id", "mine-1") in call.initial_metadata()
    assert data == server.generate(prompt="a white horse runs", steps=2, seed=5, frames=4, fps=12).content, (
        "another door, another clip"
    )


def test_a_first_frame_of_ones_own_and_another_format(stub):
    buffer = io.BytesIO()
    Image.new("RGB", (60, 20), (200, 30, 30)).save(buffer, format="PNG")
    events = list(stub.Generate(request(first_frame=buffer.getvalue(), frames=2, format="gif")))
    assert "first_frame" not in {event.progress.stage for event in events if event.HasField("progress")}
    assert b"".join(event.chunk for event in events).startswith(b"GIF8")


def test_every_wrong_field_is_named(server, stub):
    before = server.metric("huvidpo_requests_total", outcome="invalid_request")
    code, message, details = refusal(stub.Generate(request(steps=0, guidance=-1.0)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "steps" in message
    assert details["ErrorInfo"].reason == "invalid_request"
    assert [one.field for one in details["BadRequest"].field_violations] == ["steps", "guidance"]
    assert server.metric("huvidpo_requests_total", outcome="invalid_request") == before + 1
    assert (
        server.metric("huvidpo_requests_total", door="grpc", key="anonymous", outcome="invalid_request") > 0
    )
    assert server.metric("huvidpo_grpc_answers_total", method="Generate", code="INVALID_ARGUMENT") > 0


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"category": "dance"}, "category", "known: waterfall"),
        ({"style": "noir"}, "style", "known: realistic"),
        ({"steps": 101}, "steps", "at most 100"),
        ({"prompt": " "}, "prompt", "empty"),
        ({"first_frame": b"no image"}, "first_frame", "cannot be read"),
        ({"format": "avi"}, "format", "mp4"),
    ],
)
def test_the_same_validation_as_over_http(stub, change, field, says):
    code, message, details = refusal(stub.Generate(request(**change)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert says in message
    assert [one.field for one in details["BadRequest"].field_violations] == [field]


def test_a_message_that_is_too_large(stub):
    with pytest.raises(grpc.RpcError) as failed:
        list(stub.Generate(request(first_frame=bytes(2**20 + 1))))
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_leaving_stops_the_denoising_within_a_step(server, stub, how):
    def steps():
        return server.metric("huvidpo_denoising_steps_total", stage="video")

    dropped = server.metric("huvidpo_cancelled_jobs_total", stage="video")

    def left():  # at a deadline either side may be the first to notice
        return sum(server.metric("huvidpo_requests_total", outcome=o) for o in ("cancelled", "timeout"))

    before_it = left()
    # first frame done beforehand: the deadline has to fall into the second stage
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, format="PNG")
    slow = request(category="rain", steps=100, frames=64, first_frame=buffer.getvalue())
    before = steps()
    call = stub.Generate(slow, timeout=1.5 if how == "deadline" else None)
    expected = grpc.StatusCode.CANCELLED
    if how == "cancel":
        until(lambda: steps() >= before + 2)
        call.cancel()
    else:
        expected = grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.RpcError) as ended:
        list(call)
    assert ended.value.code() == expected
    at_leaving = steps()
    until(lambda: server.metric("huvidpo_cancelled_jobs_total", stage="video") == dropped + 1)
    assert steps() - at_leaving <= 2
    until(lambda: left() == before_it + 1)
    assert server.metric("huvidpo_requests_in_flight") == 0


def test_health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    described = database.FindFileContainingSymbol(SERVICE)
    assert [method.name for method in described.service[0].method] == [
        method.name for method in messages.DESCRIPTOR.services_by_name["VideoGeneration"].methods
    ]


def test_a_port_that_is_taken_ends_the_start(server, start_server, random_family):
    catalog = str(random_family / "catalog")
    other = start_server(
        HUVIDPO_GRPC_PORT=str(server.grpc_port), HUVIDPO_CATALOG=catalog, HUVIDPO_BACKEND="torch"
    )
    until(lambda: "set HUVIDPO_GRPC_PORT" in other.log.read_text(errors="replace"))
    other.stop()


@pytest.fixture(scope="module")
def job(stub) -> messages.Job:
    """A job that has been watched to its end."""
    created = stub.CreateJob(messages.CreateJobRequest(request=request(seed=5, frames=4)))
    assert created.status == messages.Job.QUEUED
    assert (created.request.seed, created.request.steps, created.request.fps) == (5, 2, 8)
    seen = list(stub.WatchJob(messages.WatchJobRequest(id=created.id)))
    progress = [one.progress for one in seen]
    assert progress == sorted(progress)
    assert {one.id for one in seen} == {created.id}
    return seen[-1]


def test_a_job_and_its_clip(server, stub, job):
    assert (job.status, job.progress) == (messages.Job.COMPLETED, 100)
    assert job.expires_at.seconds - job.completed_at.seconds == pytest.approx(86_400, abs=1)
    assert (job.clip.media_type, job.clip.model, job.clip.seed) == ("video/mp4", DEFAULT_MODEL, 5)
    assert stub.GetJob(messages.GetJobRequest(id=job.id)) == job
    clip, *chunks = stub.DownloadJob(messages.DownloadJobRequest(id=job.id))
    data = b"".join(event.chunk for event in chunks)
    assert (clip.clip, clip.clip.size) == (job.clip, len(data))
    over_http = server.client.get(f"/v1/videos/{job.id}/content").content
    assert data == over_http, "the doors have the same jobs"


def test_jobs_in_pages(stub, job):
    made = [stub.CreateJob(messages.CreateJobRequest(request=request(steps=1))).id for _ in range(2)]
    first = stub.ListJobs(messages.ListJobsRequest(page_size=2))
    assert ([one.id for one in first.jobs], first.has_more) == (made[::-1], True)
    rest = stub.ListJobs(messages.ListJobsRequest(page_size=100, after=made[0]))
    assert job.id in [one.id for one in rest.jobs]
    assert not rest.has_more
    code, _, details = refusal(_streamed(stub.ListJobs, messages.ListJobsRequest(page_size=101)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == "limit"


def test_cancel_and_delete(stub):
    slow = messages.CreateJobRequest(request=request(steps=100, frames=64), idempotency_key="slow")
    id = stub.CreateJob(slow).id
    assert stub.CreateJob(slow).id == id
    other = messages.CreateJobRequest(request=request(), idempotency_key="slow")
    assert refusal(_streamed(stub.CreateJob, other))[0] == grpc.StatusCode.ALREADY_EXISTS
    ended = stub.CancelJob(messages.CancelJobRequest(id=id))
    assert (ended.status, ended.error.code) == (messages.Job.FAILED, "cancelled")
    code, message, _ = refusal(stub.DownloadJob(messages.DownloadJobRequest(id=id)))
    assert (code, "its status is failed" in message) == (grpc.StatusCode.NOT_FOUND, True)
    stub.DeleteJob(messages.DeleteJobRequest(id=id))
    assert refusal(_streamed(stub.GetJob, messages.GetJobRequest(id=id)))[0] == grpc.StatusCode.NOT_FOUND


def _streamed(method, message):
    """A unary call as something to iterate over, so that `refusal` reads both kinds."""
    yield method(message)
