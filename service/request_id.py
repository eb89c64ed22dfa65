"""Of the request that is being answered, on the gateway and on runners that work for it: the id, for logs,
and what the caller said of its trace (W3C's traceparent), which is passed on.
"""

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
TRACE_PARENT: ContextVar[str] = ContextVar("trace_parent", default="")
