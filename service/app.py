"""The BentoML services, thin: a gateway and two runners, each a process. `bentofile.yaml` points here.

Every process imports this module, so heavy imports stay inside the methods. What each setting cures in
BentoML 1.4.39:

- runner_probe off, own `__is_ready__`: the built-in /readyz hangs while a runner loads, and blocks shutdown;
- no `batchable` API: the built-in batcher mis-models long jobs, batching.py is used instead;
- runners have no API of BentoML's: none of its kinds takes a job by its id (desk.py), and its client knows
  one address of a service (router.py);
- LastResort in the place of its time limit: that one's timers keep every request for as long (http.py);
- workers=1: in a container a dead worker is not replaced; when it is the only one, its process ends and the
  orchestrator starts a new one;
- on_deployment: SIGTERM reaches all processes at once unless told otherwise (drain.py).
"""

import logging
import os
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import bentoml
from bentoml.validators import ContentType

from huvidpo import __version__
from service.schemas import GenerateRequest, RunnerJob
from service.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request

# Before torch is imported: threads that wait for work would spin on the cores that the other runner needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # GNU's OpenMP, which torch brings
os.environ.setdefault("KMP_BLOCKTIME", "0")  # milliseconds; LLVM's and Intel's
# Of a GPU that two processes share: pieces that are free but apart are of use to neither.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
SETTINGS = Settings.from_env()
if SETTINGS.log_format == "json":
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of loading weights are no lines of a log
RUNNER_BODY = 64 * 2**20  # bytes; a job with an SDXL-size PNG is 2 MB
_COMMON: dict[str, Any] = {
    "workers": 1,
    "traffic": {
        "timeout": SETTINGS.request_timeout + 60
    },  # the last resort: ours fires first, and answers in our shape
    "logging": {
        "access": {"enabled": False}
    },  # the guard writes a line for every answer, BentoML for its own
}
# All that BentoML answers. Left out on purpose: its page at "/", which loads a tracker from another site.
PATHS = frozenset(
    {"/generate_video", "/livez", "/healthz", "/readyz", "/metrics", "/docs.json", "/schema.json"}
)


class GuardedService(bentoml.Service):
    """A BentoML service inside our guard: only the outermost layer sees all errors and all bodies."""

    def to_asgi(self, is_main: bool = True) -> Any:
        from service import logs, metrics, tracing
        from service.http import Guard, ReadAgain

        logs.configure(SETTINGS, self.name)
        tracing.configure(self.name, __version__)
        # BentoML shows the warnings of others only, unless told otherwise
        logging.getLogger("service").setLevel(logging.INFO)
        metrics.forget_the_dead()
        metrics.BUILD.labels(__version__, SETTINGS.commit or "unknown", SETTINGS.model).set(1)
        app = without_kept_timers(super().to_asgi(is_main))
        app.add_middleware(ReadAgain)
        return Guard(app, max_body=SETTINGS.max_body_mib * 2**20, paths=PATHS)


def without_kept_timers(app: Any) -> Any:
    """BentoML's application with our time limit for its own, of the same seconds."""
    from bentoml._internal.server.http.traffic import TimeoutMiddleware
    from starlette.middleware import Middleware

    from service.http import LastResort

    app.user_middleware = [
        Middleware(LastResort, **one.kwargs) if one.cls is TimeoutMiddleware else one
        for one in app.user_middleware
    ]
    return app


class RunnerService(GuardedService):
    """A runner: reads what gateways send, and nothing else."""

    def to_asgi(self, is_main: bool = True) -> Any:
        from service import hop
        from service.desk import DESCRIBE, PREFIX, DeskDoor
        from service.http import Guard

        def runner() -> Any:
            return bentoml.get_current_service()

        guard = super().to_asgi(is_main)
        app = DeskDoor(guard.app, lambda: runner().desk, lambda: runner().describe())
        paths = guard.paths | {DESCRIBE}
        return Guard(app, max_body=RUNNER_BODY, paths=paths, prefixes=(PREFIX,), reads=hop.MEDIA_TYPE)


class GatewayService(GuardedService):
    """The gateway with our pages, past BentoML: its metrics would keep a series for every clip."""

    def to_asgi(self, is_main: bool = True) -> Any:
        from huvidpo.catalog import load_catalog
        from service import pages
        from service.browsers import allowed_hosts
        from service.doors import FEEDBACK, PREFIX, Doors
        from service.http import Guard

        guard = super().to_asgi(is_main)
        app = pages.with_pages(
            guard.app,
            SETTINGS,
            load_catalog(),
            lambda: bentoml.get_current_service().routers[1].weights(),
        )
        doors = Doors(app, SETTINGS, lambda: bentoml.get_current_service().core)
        return Guard(
            doors,
            max_body=guard.max_body,
            paths=guard.paths | pages.PATHS | {FEEDBACK},
            prefixes=(*pages.PREFIXES, PREFIX),
            forms=("/v1/videos", "/v1/videos/sync", "/v1/provenance/verify"),
            admit=doors.admit,
            hosts=allowed_hosts(SETTINGS.allowed_hosts),
            body_seconds=SETTINGS.body_seconds,
        )


class RawBody(bentoml.IODescriptor):
    """Leaves the parsing, and so the error answers, to us; BentoML lists the fields of the other base."""

    @classmethod
    async def from_http_request(cls, request: "Request", serde: Any) -> Any:
        # what BentoML takes the arguments from
        return SimpleNamespace(model_fields=["request"], request=request)


class GenerateBody(RawBody, GenerateRequest):
    pass


class _Runner:
    """What both runners share: one batcher around one model, and the desk where jobs are brought."""

    def _start(self, stage: str, load: Any, encode: Any) -> None:
        from service.batching import Batcher
        from service.desk import Desk
        from service.frame_check import load as load_check
        from service.runners import end_process, stream
        from service.turns import Turns

        check = load_check(SETTINGS)
        self.batcher: Batcher[RunnerJob, Any] = Batcher(
            stage,
            partial(load, SETTINGS),
            max_batch=SETTINGS.max_batch,
            queue_size=SETTINGS.queue_size,
            turns=Turns(leads=stage == "first_frame"),
            on_broken=end_process,
        )
        self.desk = Desk(lambda job: stream(self.batcher, job, encode, check))

    def describe(self) -> dict[str, Any]:
        """As JSON: what this runner is, what it takes, how much waits in it; see Batcher.describe."""
        batcher = self.batcher
        limits = {"max_steps": SETTINGS.max_steps, "max_frames": SETTINGS.max_frames}
        told = {"stage": batcher.stage, "model": SETTINGS.model, "backend": batcher.backend, "limits": limits}
        told |= {"device": SETTINGS.device_of(batcher.stage) or "auto", "dtype": SETTINGS.dtype or "auto"}
        return told | batcher.describe()

    async def __is_ready__(self) -> bool:
        return self.batcher.ready

    async def __is_alive__(self) -> bool:
        return self.batcher.alive

    @bentoml.on_shutdown
    def close(self) -> None:
        self.batcher.close()


@bentoml.service(service_class=RunnerService, **_COMMON)
class FirstFrameRunner(_Runner):
    """Prompt -> first frame."""

    def __init__(self) -> None:
        from service import runners

        self._start("first_frame", runners.load_first_frame, runners.encode_frame)


@bentoml.service(service_class=RunnerService, **_COMMON)
class VideoRunner(_Runner):
    """First frame and prompt -> clip."""

    def __init__(self) -> None:
        from service import runners

        self._start("video", runners.load_video, runners.encode_clip)


# http: BentoML would listen on all addresses unless told; BENTOML_HOST and --host still say otherwise
@bentoml.service(
    service_class=GatewayService, runner_probe={"enabled": False}, http={"host": "127.0.0.1"}, **_COMMON
)
class Gateway:
    """Text-to-video: a prompt, a category of motion and a style in, a clip out."""

    first_frame = bentoml.depends(FirstFrameRunner)
    video = bentoml.depends(VideoRunner)

    def __init__(self) -> None:
        from bentoml._internal.configuration.containers import BentoMLContainer

        from huvidpo.catalog import load_catalog
        from service.generation import Generation
        from service.marks import marks_of, watermark_of
        from service.router import Router

        addresses = BentoMLContainer.remote_runner_mapping.get()

        def router(stage: str, service: Any) -> Router:
            return Router(stage, addresses[service.name], SETTINGS.accept_timeout)

        catalog = load_catalog()
        marks = marks_of(SETTINGS, catalog)
        self.routers = router("first_frame", FirstFrameRunner), router("video", VideoRunner)
        mark = marks.mark if marks else None
        self.core = Generation(
            SETTINGS,
            catalog,
            *self.routers,
            mark,
            watermark_of(SETTINGS),
            self._check_room,
            self._withdraw,
            self.routers[1].check_strength,
        )
        self.began = False

    def _check_room(self) -> None:
        for router in self.routers:
            router.check_room()

    async def _withdraw(self, id: str) -> None:
        for router in self.routers:
            await router.withdraw(id)

    @bentoml.on_deployment
    def deploy() -> None:  # in the process that starts the others
        from service import drain, logs

        logs.configure(SETTINGS, "parent")
        drain.gateway_first()

    @bentoml.on_startup
    async def start(self) -> None:
        from service import drain

        for router in self.routers:
            await router.start()
        drain.install(self.core, SETTINGS.drain_seconds)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        for router in self.routers:
            await router.close()

    @bentoml.api(input_spec=GenerateBody)
    async def generate_video(self, request: Any) -> Annotated[bytes, ContentType("video/mp4")]:
        """Makes a clip. X-Seed, X-Model, X-Weights, X-Backend, X-Request-Id and Server-Timing tell how,
        X-Warning which words meant nothing to the model.
        """
        from service.http import answer_generate

        return await answer_generate(self.core, request)  # type: ignore[return-value]  # a Response passes as it is

    async def __is_ready__(self) -> bool:
        """Whether it can accept: from when each stage has had a runner until it drains. One lost later is
        no reason to be away: jobs wait for another, and who waits for a clip is told.
        """
        self.began = self.began or all(router.ready for router in self.routers)
        return self.began and not self.core.draining
