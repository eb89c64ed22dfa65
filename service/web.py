"""Pages that run nothing but what this server sends: their files, and headers that hold browsers to it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response

from service.http import App, Message, Receive, Scope, Send

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def static(name: str) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers with a file of service/static, as it was at the start."""
    file = STATIC / name
    content = file.read_bytes()

    async def endpoint(request: Request) -> Response:
        headers = {"Cache-Control": "no-cache"}
        return Response(content, media_type=MEDIA_TYPES[file.suffix], headers=headers)

    return endpoint


def headers(media: str = "'self'") -> dict[str, str]:
    """For every answer of a page. `media`: where its clips may come from."""
    return {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"media-src {media}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


def with_headers(app: App, more: dict[str, str]) -> App:
    """Every answer of `app` with these headers too."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(more)
            await send(message)

        await app(scope, receive, send_more)

    return wrapped
