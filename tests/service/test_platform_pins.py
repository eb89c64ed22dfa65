"""The work-arounds in service/app.py and service/remote.py lean on BentoML's private parts: they are checked
here, and a new version has to be looked at before the pins move.
"""

import inspect
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
    from _bentoml_impl.client.proxy2 import AsyncClient, RemoteProxy, SessionManager

    assert inspect.iscoroutinefunction(SessionManager.get_session)
    assert "_session_manager" in inspect.getsource(AsyncClient.__init__)
    assert isinstance(inspect.getattr_static(RemoteProxy, "to_async"), property)


def test_services_are_configured_with_the_cures():
    from service.app import FirstFrameRunner, Gateway, VideoRunner

    for runner in (FirstFrameRunner, VideoRunner):
        assert runner.config["runner_connection"]["max_requests"] >= 10**9
        assert runner.config["runner_connection"]["max_age"] >= 1e9
        assert runner.config["workers"] == 1
        assert runner.apis["run"].is_stream
        assert not runner.apis["run"].batchable
    assert Gateway.config["runner_probe"] == {"enabled": False}
    assert list(Gateway.apis) == ["generate_video"]


def test_gateway_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, service.app, service.http, service.remote; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
