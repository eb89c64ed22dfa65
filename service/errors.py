"""One table from exception to answer, and the one JSON shape every error has:

    {"error": {"code", "message", "type", "param", "request_id", "field"?,
               "details"?: [{"field", "message"}, ...]}}

`type` and `param` are there for OpenAI's clients.

An error that is not in the table is ours: the client reads "internal" and a request id, the log the
traceback.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huvidpo.errors import Cancelled, HuViDPOError, InvalidRequest


class MalformedBody(InvalidRequest):
    """The body is not JSON at all."""


class BadFields(InvalidRequest):
    """The body is JSON, but its fields are not as the schema says; `details` has every one of them."""

    def __init__(self, message: str, field: str | None, details: list[dict[str, str]]):
        super().__init__(message, field)
        self.details = details


class ContentRefused(InvalidRequest):
    """What the operator makes no clips of, by their lists of terms or their check of frames."""


class FrameCheckFailed(HuViDPOError):
    """The operator's check of frames could not tell whether a clip may be given out."""


class TooLarge(HuViDPOError):
    """The body is larger than the service accepts."""


class SlowBody(HuViDPOError):
    """The body did not come in the time that the service waits for it."""


class WrongMediaType(HuViDPOError):
    """The body is of a content type that is not read here."""


class Unauthenticated(HuViDPOError):
    """The request carries no key of this service."""


class Forbidden(HuViDPOError):
    """A page of another site sent the request."""


class NotFound(HuViDPOError):
    """What the request names is not here."""


class Conflict(HuViDPOError):
    """The request contradicts an earlier one."""


class QueueFull(HuViDPOError):
    """As many requests wait as the service holds. `retry_after`: seconds until a place should be free."""

    def __init__(self, message: str, retry_after: int = 1):
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(HuViDPOError):
    """A runner is loading, restarting or gone: the same request may work in a few seconds."""

    retry_after = 5


class TimedOut(HuViDPOError):
    """The request took longer than the service allows. `retry_after`: seconds until there should be time for
    it; None where that would not help.
    """

    def __init__(self, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Row:
    """How one kind of error is answered."""

    error: type[Exception]
    status: int  # HTTP
    grpc: str  # name of a grpc.StatusCode; runners do not load gRPC
    code: str  # what programs read; also what travels between gateway and runner


# Most special first: the first row whose class fits wins.
TABLE = (
    Row(FrameCheckFailed, 500, "INTERNAL", "frame_check_failed"),
    Row(MalformedBody, 400, "INVALID_ARGUMENT", "malformed_body"),
    Row(ContentRefused, 400, "INVALID_ARGUMENT", "content_policy_violation"),  # OpenAI's status and code
    Row(InvalidRequest, 422, "INVALID_ARGUMENT", "invalid_request"),
    Row(Unauthenticated, 401, "UNAUTHENTICATED", "unauthenticated"),
    Row(Forbidden, 403, "PERMISSION_DENIED", "forbidden"),
    Row(NotFound, 404, "NOT_FOUND", "not_found"),
    Row(SlowBody, 408, "DEADLINE_EXCEEDED", "body_timeout"),
    Row(Conflict, 409, "ALREADY_EXISTS", "conflict"),
    Row(TooLarge, 413, "OUT_OF_RANGE", "body_too_large"),
    Row(WrongMediaType, 415, "INVALID_ARGUMENT", "unsupported_media_type"),
    Row(QueueFull, 429, "RESOURCE_EXHAUSTED", "queue_full"),
    Row(Cancelled, 499, "CANCELLED", "cancelled"),
    Row(Unavailable, 503, "UNAVAILABLE", "unavailable"),
    Row(TimedOut, 504, "DEADLINE_EXCEEDED", "timeout"),
)
INTERNAL = Row(Exception, 500, "INTERNAL", "internal")
INTERNAL_MESSAGE = "something went wrong on our side; the request id finds it in the server's log"

# Answers made by the web framework carry only a status; these are their codes.
STATUS_CODES = {row.status: row.code for row in TABLE[4:]}
STATUS_CODES |= {405: "method_not_allowed", 503: "not_ready"}


def row_of(error: BaseException) -> Row:
    return next((row for row in TABLE if isinstance(error, row.error)), INTERNAL)


def to_dict(error: BaseException) -> dict[str, Any]:
    """The inside of the JSON shape, without the request id. No text of an error outside the table gets in."""
    row = row_of(error)
    if row is INTERNAL:
        return {"code": row.code, "message": INTERNAL_MESSAGE}
    extras = {name: getattr(error, name, None) for name in ("field", "details", "retry_after")}
    return {"code": row.code, "message": str(error)} | {
        name: value for name, value in extras.items() if value is not None
    }


def shape(status: int, problem: dict[str, Any], request_id: str) -> dict[str, Any]:
    """The one JSON shape around `to_dict`, for an answer of this HTTP status."""
    contract = {"type": error_type(status), "param": problem.get("field"), "request_id": request_id}
    return {"error": problem | contract}


def error_type(status: int) -> str:
    """What OpenAI's clients find in `type`."""
    special = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return special.get(status, "server_error" if status >= 500 else "invalid_request_error")


def from_dict(problem: Mapping[str, Any]) -> Exception:
    """The exception that `to_dict` was given, as far as the other side of a hop needs it."""
    row = next((row for row in TABLE if row.code == problem["code"]), INTERNAL)
    if row is INTERNAL:
        return RuntimeError(f"runner failed: {problem['message']}")
    if issubclass(row.error, InvalidRequest):
        return row.error(problem["message"], problem.get("field"))
    if row.error is QueueFull:
        return QueueFull(problem["message"], problem.get("retry_after", 1))
    return row.error(problem["message"])
