"""The gRPC door: huvidpo.v1.VideoGeneration over the same core as HTTP, with standard health and reflection.

`service/protos/video_generation.proto` is the contract. A call that is cancelled, or past its deadline, has
its task cancelled by grpc.aio; that closes the core's generator, and so stops the runner within a step.
"""

import base64
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.trace import SpanKind

from service import tracing
from service.errors import INTERNAL, row_of, to_dict
from service.generation import Begun, Event, Finished, Progress, Queued, Started, count_request
from service.job_rows import Job
from service.jobs import JobEngine
from service.keys import Keys
from service.metrics import GRPC_ANSWERS
from service.protos import video_generation_pb2 as messages
from service.protos import video_generation_pb2_grpc as stubs
from service.request_id import CALLER, DOOR, REQUEST_ID, TRACE_PARENT
from service.schemas import GenerateRequest, parse
from service.settings import Settings

logger = logging.getLogger(__name__)
access = logging.getLogger("service.access")
Context: TypeAlias = grpc.aio.ServicerContext
SERVICE = messages.DESCRIPTOR.services_by_name["VideoGeneration"].full_name
CHUNK = 256 * 1024  # bytes of a clip in one message: far below the 4 MiB that clients accept by default
DOMAIN = "huvidpo"  # of ErrorInfo
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


async def start(jobs: JobEngine, keys: Keys, settings: Settings) -> "GrpcServer":
    """A running server on the settings' host and port. Raises RuntimeError when the port is taken."""
    options = [
        ("grpc.max_receive_message_length", settings.max_body_mib * 2**20),
        ("grpc.so_reuseport", 0),  # a second server on this port would silently take half of the calls
    ]
    server = grpc.aio.server(options=options)
    stubs.add_VideoGenerationServicer_to_server(VideoGeneration(jobs, keys), server)
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"{settings.grpc_host}:{settings.grpc_port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise RuntimeError(f"gRPC: {address} is taken, set HUVIDPO_GRPC_PORT (0: no gRPC)") from error
    await server.start()
    for name in ("", SERVICE):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    logger.info("gRPC listens on %s", address)
    return GrpcServer(server, status)


class GrpcServer:
    def __init__(self, server: grpc.aio.Server, status: health.aio.HealthServicer):
        self._server, self._status = server, status

    async def stop(self, grace: float) -> None:
        """Health says NOT_SERVING, no call is accepted; those running have `grace` seconds to finish."""
        await self._status.enter_graceful_shutdown()
        await self._server.stop(grace)


class VideoGeneration(stubs.VideoGenerationServicer):
    def __init__(self, jobs: JobEngine, keys: Keys):
        self.core, self.jobs, self.keys = jobs.core, jobs, keys

    async def Generate(
        self, request: messages.GenerateRequest, context: Context
    ) -> AsyncIterator[messages.GenerateEvent]:
        async with self._answering(context, "Generate") as owner:
            self.keys.spend(owner)
            with self.keys.place(owner):
                left = context.time_remaining()
                async with aclosing(self.core.generate(read(request), left)) as events:
                    async for event in events:
                        for message in messages_of(event):
                            yield message

    async def CreateJob(self, request: messages.CreateJobRequest, context: Context) -> messages.Job:
        async with self._answering(context, "CreateJob") as owner:
            self.keys.spend(owner)
            wanted = read(request.request)
            return job_message(await self.jobs.create(wanted, owner, request.idempotency_key or None))

    async def GetJob(self, request: messages.GetJobRequest, context: Context) -> messages.Job:
        async with self._answering(context, "GetJob") as owner:
            return job_message(await self.jobs.get(request.id, owner))

    async def WatchJob(
        self, request: messages.WatchJobRequest, context: Context
    ) -> AsyncIterator[messages.Job]:
        async with self._answering(context, "WatchJob") as owner:
            async for job in self.jobs.watch(request.id, owner):
                yield job_message(job)

    async def ListJobs(
        self, request: messages.ListJobsRequest, context: Context
    ) -> messages.ListJobsResponse:
        async with self._answering(context, "ListJobs") as owner:
            size = request.page_size or 20
            page = await self.jobs.page(owner, request.after or None, size, not request.oldest_first)
            return messages.ListJobsResponse(jobs=map(job_message, page.jobs), has_more=page.has_more)

    async def CancelJob(self, request: messages.CancelJobRequest, context: Context) -> messages.Job:
        async with self._answering(context, "CancelJob") as owner:
            return job_message(await self.jobs.cancel(request.id, owner))

    async def DeleteJob(
        self, request: messages.DeleteJobRequest, context: Context
    ) -> messages.DeleteJobResponse:
        async with self._answering(context, "DeleteJob") as owner:
            await self.jobs.delete(request.id, owner)
            return messages.DeleteJobResponse()

    async def DownloadJob(
        self, request: messages.DownloadJobRequest, context: Context
    ) -> AsyncIterator[messages.GenerateEvent]:
        async with self._answering(context, "DownloadJob") as owner:
            job = await self.jobs.get(request.id, owner)
            data = await self.jobs.read_clip(job)
            yield messages.GenerateEvent(clip=job_message(job).clip)
            for chunk in chunks(data):
                yield chunk

    @asynccontextmanager
    async def _answering(self, context: Context, method: str) -> AsyncGenerator[str, None]:
        """Around every method: gives the caller's name; the request id; exceptions as statuses; one line and
        one count for the answer. The text of our faults stays here."""
        metadata = {name: str(value) for name, value in context.invocation_metadata() or ()}
        asked = metadata.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        REQUEST_ID.set(request_id)
        TRACE_PARENT.set(metadata.get("traceparent", "")[:64])
        DOOR.set("grpc")
        span = tracing.start(f"{SERVICE}/{method}", SpanKind.SERVER)
        TRACE_PARENT.set(tracing.header(span))
        code, name, started = "CANCELLED", "", time.monotonic()
        try:
            await context.send_initial_metadata((("x-request-id", request_id),))
            name = self.keys.check(metadata.get("authorization", ""))
            CALLER.set(self.keys.caller(name))
            yield name
            code = "OK"
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            if row_of(error) is INTERNAL:
                logger.exception("request %s failed", request_id)
            code, status = row_of(error).grpc, status_of(error, request_id)
            details = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(grpc.StatusCode[code], status.message, details)
        finally:
            GRPC_ANSWERS.labels(method, code).inc()
            tracing.answered(span, code, failure=code in ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"))
            facts = {
                "client": context.peer(), "key": name or "-", "method": "gRPC", "path": method,
                "status": code, "seconds": round(time.monotonic() - started, 4),
            }  # fmt: skip
            access.info("%s %s %s %s %s %.3f s %s", *facts.values(), request_id, extra=facts)


def read(request: messages.GenerateRequest) -> GenerateRequest:
    """The request as every door has it, by the same rules as a JSON body. Raises BadFields."""
    fields: dict[str, Any] = {field.name: value for field, value in request.ListFields()}
    if "first_frame" in fields:
        fields["first_frame"] = base64.b64encode(request.first_frame).decode("ascii")
    try:
        return parse(GenerateRequest, json.dumps(fields).encode())
    except Exception as error:
        count_request(row_of(error).code)
        raise


def messages_of(event: Event) -> Iterator[messages.GenerateEvent]:
    """An event of the core as it is sent: one message, or for the clip its header and chunks."""
    if isinstance(event, Started):
        accepted = messages.Accepted(
            model=event.model,
            seed=event.request.seed,
            warnings=event.warnings,
            prompt_verdict=event.verdict.told() if event.verdict else None,
        )
        yield messages.GenerateEvent(accepted=accepted)
    elif isinstance(event, Queued):
        queued = messages.Queued(stage=event.stage, position=event.position, eta_seconds=event.eta)
        yield messages.GenerateEvent(queued=queued)
    elif isinstance(event, Begun):
        yield messages.GenerateEvent(started=messages.Started(stage=event.stage))
    elif isinstance(event, Progress):
        progress = messages.Progress(stage=event.stage, step=event.step, total=event.total)
        yield messages.GenerateEvent(progress=progress)
    elif isinstance(event, Finished):
        clip = messages.Clip(
            media_type=event.media_type,
            size=len(event.data),
            seed=event.seed,
            model=event.model,
            seconds=event.seconds,
            backends=event.backends,
            frames_verdict=event.frames_verdict,
        )
        yield messages.GenerateEvent(clip=clip)
        yield from chunks(event.data)


def chunks(data: bytes) -> Iterator[messages.GenerateEvent]:
    for start in range(0, len(data), CHUNK):
        yield messages.GenerateEvent(chunk=data[start : start + CHUNK])


def job_message(job: Job) -> messages.Job:
    asked = {name: value for name, value in job.request.items() if value is not None}
    message = messages.Job(
        id=job.id,
        status=messages.Job.Status.Value(job.status.upper()),
        progress=job.progress,
        request=messages.GenerateRequest(**asked),
        created_at=_timestamp(job.created_at),
        remixed_from=job.source or "",
        warnings=job.warnings or (),
        prompt_verdict=job.prompt_verdict,
        stage=job.stage or "",
    )
    if job.ended:
        message.completed_at.CopyFrom(_timestamp(job.completed_at or job.created_at))
        message.expires_at.CopyFrom(_timestamp(job.expires_at))
    if job.error:
        message.error.CopyFrom(
            messages.JobError(**{name: job.error.get(name, "") for name in ("code", "message", "field")})
        )
    if job.status == "completed" and job.report:
        report = {name: job.report[name] for name in ("media_type", "model", "seconds", "backends")}
        report["frames_verdict"] = job.report.get("frames_verdict")
        message.clip.CopyFrom(messages.Clip(size=job.report["bytes"], seed=job.request["seed"], **report))
    return message


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(round(seconds * 1000))
    return stamp


def status_of(error: Exception, request_id: str) -> status_pb2.Status:
    """google.rpc.Status of any exception, with the details that the proto file promises."""
    row, problem = row_of(error), to_dict(error)
    info = error_details_pb2.ErrorInfo(reason=row.code, domain=DOMAIN, metadata={"request_id": request_id})
    details: list[Message] = [info, error_details_pb2.RequestInfo(request_id=request_id)]
    if fields := problem.get("details") or ([problem] if "field" in problem else []):
        Violation = error_details_pb2.BadRequest.FieldViolation
        wrong = [Violation(field=one["field"], description=one["message"]) for one in fields]
        details.append(error_details_pb2.BadRequest(field_violations=wrong))
    if "retry_after" in problem:
        delay = Duration(seconds=problem["retry_after"])
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code = grpc.StatusCode[row.grpc].value[0]
    return status_pb2.Status(code=code, message=problem["message"], details=map(_packed, details))


def _packed(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
