"""The page where people say which clips they like: plays them blind, saves each answer at once.

    python -m service.rating --clips runs/candidates/horse            then open http://127.0.0.1:3100/
    python -m service.rating --clips runs/candidates/horse --host 0.0.0.0 --port 8080
    python -m service.rating --clips runs/candidates/horse --segment-frames 5

No model is loaded. `--clips` is a folder with captions.jsonl; answers are appended to its ratings.jsonl. With
`--segment-frames` people compare two clips made of one filmed clip as a whole and in each such segment. The
service serves the same page at /rate when HUVIDPO_RATING_CLIPS names a folder. More in docs/rating.md.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from huvidpo import command
from huvidpo.errors import InvalidRequest
from preferences.pairs import scores_by_clip
from preferences.records import PreferencesError, huvidpo_json, read_records
from service.browsers import allowed_hosts
from service.errors import NotFound, TooLarge
from service.http import App, Guard, Receive, Scope, Send
from service.judging import PICTURES, Choice, Clip, Judging, Mode, Task
from service.schemas import Rater, parse, rater_name
from service.web import headers, static, with_headers

Exports = Mapping[str, Callable[[Judging], str]]
MAX_BODY = 4096  # bytes; an answer is 150, and 8 for each segment
FILES = ("style.css", "icon.svg", "app.js", "server.js", "view.js")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    rater: Rater


class _Answer(_Body):
    task: str = Field(max_length=64)


class ScoreAnswer(_Answer):
    answer: float = Field(ge=0, le=10, allow_inf_nan=False)


class CompareAnswer(_Answer):
    answer: Choice


Mark = Annotated[int, Field(ge=1, le=5)]


class Marks(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    aesthetics: Mark
    consistency: Mark
    alignment: Mark


class StudyAnswer(_Answer):
    answer: Marks


class Choices(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    whole: Choice
    parts: list[Choice]


class SegmentsAnswer(_Answer):
    answer: Choices


ANSWERS: dict[str, type[_Answer]] = {
    "score": ScoreAnswer,
    "compare": CompareAnswer,
    "segments": SegmentsAnswer,
    "study": StudyAnswer,
}


def rating_app(judging: Judging, exports: Exports | None = None) -> App:
    """The page and its API, to be mounted anywhere. Raises ClipFolderError or PreferencesError at once where
    the folder or its ratings are malformed, or clips are judged there in another way already.

    `exports`: file name -> what writes its text, offered for download; default: JSONL, and HuViDPO's JSON
    where clips are scored.
    """
    judging.check()
    scores = {"huvidpo.json": huvidpo} if "score" in judging.modes else {}
    page = _Page(judging, exports or {"ratings.jsonl": jsonl, **scores})
    routes = [
        Route("/api/page", page.about),
        Route("/api/{mode}/tasks", page.tasks),
        Route("/api/{mode}/answer", page.answer, methods=["POST"]),
        Route("/api/{mode}/undo", page.undo, methods=["POST"]),
        Route("/clips/{id}", page.clip),
        Route("/export/{name}", page.export),
        Route("/", static("index.html")),
        *(Route(f"/{name}", static(name)) for name in FILES),
    ]
    app = Starlette(routes=routes)
    app.router.default, app.router.redirect_slashes = _nothing_here, False
    return with_headers(app, headers())


def standalone(judging: Judging, exports: Exports | None = None) -> App:
    """The page as a server of its own, with the guard of the service around it."""
    hosts = allowed_hosts(os.environ.get("HUVIDPO_ALLOWED_HOSTS", ""))
    return Guard(rating_app(judging, exports), max_body=MAX_BODY, prefixes=("/",), hosts=hosts)


def jsonl(judging: Judging) -> str:
    """All records as they were written, retractions too."""
    return judging.file.read_text(encoding="utf-8") if judging.file.exists() else ""


def huvidpo(judging: Judging) -> str:
    """HuViDPO's own format; the score of a clip is the mean over its raters."""
    return huvidpo_json(scores_by_clip(read_records(judging.file)))


class _Page:
    """The endpoints. Reading folders and files happens on other threads than the event loop's."""

    def __init__(self, judging: Judging, exports: Exports):
        self.judging, self.exports = judging, exports

    def about(self, request: Request) -> Response:
        return _json({"modes": self.judging.modes, "exports": list(self.exports)})

    def tasks(self, request: Request) -> Response:
        mode, rater = self._mode(request), _rater(request)
        tasks, answers = self.judging.session(mode, rater)
        return _json({"tasks": [_task(task) for task in tasks], "answers": answers})

    async def answer(self, request: Request) -> Response:
        mode = self._mode(request)
        body: Any = parse(ANSWERS[mode], await _body(request))
        answer = body.answer.model_dump() if isinstance(body.answer, BaseModel) else body.answer
        await run_in_threadpool(self.judging.submit, mode, body.rater, body.task, answer)
        return _json({"saved": body.task})

    async def undo(self, request: Request) -> Response:
        body = parse(_Body, await _body(request))
        return _json({"undone": await run_in_threadpool(self.judging.undo, self._mode(request), body.rater)})

    def clip(self, request: Request) -> Response:
        clip = self.judging.clip(request.path_params["id"])
        return FileResponse(clip.path, headers={"Cache-Control": "private, max-age=31536000, immutable"})

    def export(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.exports:
            raise NotFound(f"there is no such export, known: {', '.join(self.exports)}")
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
        return Response(self.exports[name](self.judging), media_type="text/plain", headers=headers)

    def _mode(self, request: Request) -> Mode:
        mode = request.path_params["mode"]
        if mode not in self.judging.modes:
            raise NotFound(f"there is no such mode here, known: {', '.join(self.judging.modes)}")
        return mode


def _rater(request: Request) -> str:
    try:
        return rater_name(request.query_params.get("rater", ""))
    except ValueError as error:
        raise InvalidRequest(f"rater: {error}", "rater") from error


async def _body(request: Request) -> bytes:
    """Raises TooLarge."""
    body = await request.body()
    if len(body) > MAX_BODY:
        raise TooLarge(f"the body is larger than {MAX_BODY} bytes")
    return body


def _task(task: Task) -> dict[str, Any]:
    return {"id": task.id, "clips": [_clip(clip) for clip in task.clips], "parts": task.parts}


def _clip(clip: Clip) -> dict[str, Any]:
    """What a rater may know of a clip: what it should show, not what made it."""
    return {
        "id": clip.id,
        "picture": clip.path.suffix.lower() in PICTURES,
        "prompt": clip.entry.prompt,
        "style": clip.entry.style,
    }


def _json(content: Any) -> Response:
    return JSONResponse(content, headers={"Cache-Control": "no-store"})


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound("there is nothing at this path of the rating page")


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)

    def work() -> int:
        serve(standalone(judging_of(args)), args.host, args.port)
        return 0

    return command.run("service.rating", work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.rating",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clips", required=True, type=Path, help="folder of clips with captions.jsonl")
    parser.add_argument("--ratings", type=Path, help="answers go here; default: ratings.jsonl of the clips")
    parser.add_argument(
        "--segment-frames",
        type=int,
        help="compare clips made of one filmed clip, also in each segment of so many frames",
    )
    add_address(parser)
    return parser


def judging_of(args: argparse.Namespace) -> Judging:
    """Raises PreferencesError for segments without frames."""
    if args.segment_frames is not None and args.segment_frames < 1:
        raise PreferencesError(f"--segment-frames: got {args.segment_frames}, expected 1 or more")
    return Judging(args.clips, ratings=args.ratings, segment_frames=args.segment_frames or 0)


def add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable from other machines too")
    parser.add_argument("--port", type=int, default=3100, help="default: 3100")


def serve(app: App, host: str, port: int) -> None:
    """Runs until SIGINT or SIGTERM."""
    import uvicorn

    print(f"open http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)


if __name__ == "__main__":
    sys.exit(main())
