"""The work-arounds in service/app.py and service/router.py lean on BentoML's private parts: they are checked
here, and a new version has to be looked at before the pins move.
"""

import asyncio
import gc
import inspect
import weakref
from contextvars import ContextVar
from importlib.metadata import version

import pytest


@pytest.mark.parametrize(
    ("package", "pinned"),
    [
        ("bentoml", "1.4.39"),
        ("pydantic", "2.14.3"),
        ("starlette", "1.10.0"),
        ("uvicorn", "0.54.0"),
        ("aiohttp", "3.14.5"),
    ],
)
def test_versions_the_work_arounds_were_made_for(package, pinned):
    assert version(package) == pinned


def test_private_parts_are_where_we_use_them():
    from _bentoml_sdk.service.dependency import Dependency

    assert "BentoMLContainer.remote_runner_mapping" in inspect.getsource(Dependency.get)


def test_the_arbiter_can_be_told_whom_to_stop_first():
    from bentoml._internal.utils.circus import Arbiter
    from circus.watcher import Watcher

    assert "self.exit_stack.__exit__" in inspect.getsource(Arbiter.stop)  # the sockets go first: see drain.py
    assert list(inspect.signature(Watcher._stop).parameters) == ["self", "close_output_streams"]


def test_services_are_configured_with_the_cures():
    from service.app import FirstFrameRunner, Gateway, VideoRunner

    for runner in (FirstFrameRunner, VideoRunner):
        assert runner.config["workers"] == 1
        assert not runner.apis
    assert Gateway.config["runner_probe"] == {"enabled": False}
    assert list(Gateway.apis) == ["generate_video"]


def test_our_time_limit_is_in_the_place_of_bentomls():
    import bentoml
    from bentoml._internal.server.http.traffic import TimeoutMiddleware

    from service.app import SETTINGS, Gateway, without_kept_timers
    from service.http import LastResort

    app = bentoml.Service.to_asgi(Gateway)
    before = [one.cls for one in app.user_middleware]
    after = without_kept_timers(app).user_middleware
    assert [one.cls for one in after] == [LastResort if cls is TimeoutMiddleware else cls for cls in before]
    (ours,) = (one for one in after if one.cls is LastResort)
    assert ours.kwargs == {"timeout": SETTINGS.request_timeout + 60}


def test_requests_are_let_go_once_they_are_answered():
    """BentoML's time limit keeps each for its whole seconds. Of ours asyncio may keep 100: it throws timers
    that are off away when they are more than that, and most.
    """
    from bentoml._internal.server.http.traffic import TimeoutMiddleware

    from service.http import LastResort

    mark = ContextVar("mark")  # what every timer holds is the context it was made in

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        pass

    async def ask(app, kept):
        mark.set(own := type("Mark", (), {})())
        kept.add(own)
        await app({"type": "http"}, None, send)

    async def kept_by(limit):
        app, kept = limit(answer, 600), weakref.WeakSet()
        for _ in range(300):
            await asyncio.create_task(ask(app, kept))
        gc.collect()
        return len(kept)

    assert asyncio.run(kept_by(TimeoutMiddleware)) == 300
    assert asyncio.run(kept_by(LastResort)) <= 110


def test_gateway_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, service.app, service.http, service.router; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_waiting_threads_of_runners_sleep():
    """libgomp says what it has read when torch loads it."""
    import os
    import subprocess
    import sys

    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", "import service.app, torch"],
        env=env | {"OMP_DISPLAY_ENV": "TRUE"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
