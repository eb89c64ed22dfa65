"""What the gateway answers beside BentoML's routes: GET /models, and the rating page at /rate."""

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

PATHS = frozenset({"/models", "/rate"})
PREFIX = "/rate/"


def with_pages(app: App, settings: Settings, catalog: Catalog) -> App:
    """`app`, with our pages in front. Raises ClipFolderError or PreferencesError if /rate cannot be shown."""
    pages = Starlette(routes=_routes(settings, catalog))

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and (scope["path"] in PATHS or scope["path"].startswith(PREFIX))
        await (pages if ours else app)(scope, receive, send)

    return routed


def _routes(settings: Settings, catalog: Catalog) -> list[BaseRoute]:
    def models(request: Request) -> Response:
        return JSONResponse(describe(catalog, settings.model), headers={"Cache-Control": "no-store"})

    routes: list[BaseRoute] = [Route("/models", models)]
    if settings.rating_clips:
        page = rating_app(Judging(Path(settings.rating_clips)))
        # a relative address: right behind a proxy too
        to_page = Route("/rate", lambda request: RedirectResponse("rate/"))
        routes += [to_page, Mount("/rate", page)]
    return routes
