"""The id of the request that is being answered, for logs: on the gateway, and on runners that work for it."""

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
