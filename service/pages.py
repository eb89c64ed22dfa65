"""What the gateway answers beside BentoML's routes: the page at /, GET /models, the rating page at /rate."""

from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from huvidpo.catalog import Catalog
from service.http import App, Receive, Scope, Send
from service.judging import Judging
from service.lineage import describe
from service.rating import rating_app
from service.settings import Settings
from service.web import headers, static, with_headers

PATHS = frozenset({"/", "/models", "/rate"})
PREFIXES = ("/rate/", "/page/")
FILES = ("style.css", "app.js", "api.js", "pair.js", "view.js")


def with_pages(
    app: App, settings: Settings, catalog: Catalog, running: Callable[[], dict[str, list[str]]] = dict
) -> App:
    """`app`, with our pages in front. `running`: hashes of the weights that runners have of each category.
    Raises ClipFolderError or PreferencesError if /rate cannot be shown.
    """
    pages, page = Starlette(routes=_routes(settings, catalog, running)), _page()

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path == "/" or path.startswith("/page/"):
            await page(scope, receive, send)
        elif path in PATHS or path.startswith(PREFIXES):
            await pages(scope, receive, send)
        else:
            await app(scope, receive, send)

    return routed


def _routes(
    settings: Settings, catalog: Catalog, running: Callable[[], dict[str, list[str]]]
) -> list[BaseRoute]:
    def models(request: Request) -> Response:
        answer, hashes = describe(catalog, settings.model), running()
        for category in answer["categories"]:
            category["running"] = hashes.get(category["name"], [])
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})

    routes: list[BaseRoute] = [Route("/models", models)]
    if settings.rating_clips:
        page = rating_app(Judging(Path(settings.rating_clips)))
        # a relative address: right behind a proxy too
        to_page = Route("/rate", lambda request: RedirectResponse("rate/"))
        routes += [to_page, Mount("/rate", page)]
    return routes


def _page() -> App:
    """The page where clips are made. It gets them with its key, where there are keys: they are blobs then."""
    routes = [Route("/", static("page/index.html")), Route("/page/icon.svg", static("icon.svg"))]
    routes += [Route(f"/page/{name}", static(f"page/{name}")) for name in FILES]
    return with_headers(Starlette(routes=routes), headers("'self' blob:"))
