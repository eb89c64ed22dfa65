"""Of the request that is being answered, on the gateway and on runners that work for it: the id, for logs,
what the caller said of its trace (W3C's traceparent), which is passed on, and, on the gateway, who it is.
"""

from contextvars import ContextVar
from dataclasses import dataclass

from service.order import Priority


@dataclass(frozen=True)
class Caller:
    """`name` of the API key, "" without keys; `priority` that it may ask for at most."""

    name: str = ""
    priority: Priority = "normal"


DOOR: ContextVar[str] = ContextVar("door", default="http")  # or grpc
NOBODY = Caller()
CALLER: ContextVar[Caller] = ContextVar("caller", default=NOBODY)
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
TRACE_PARENT: ContextVar[str] = ContextVar("trace_parent", default="")
