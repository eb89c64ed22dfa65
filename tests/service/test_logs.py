"""Logs as JSON: every line of every logger is an object, whatever is in it."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from service.settings import Settings

ROOT = Path(__file__).parents[2]
LOGGERS = """
import logging, sys
from bentoml._internal.log import configure_server_logging
from service import logs
from service.request_id import CALLER, REQUEST_ID, TRACE_PARENT, Caller
from service.settings import Settings

configure_server_logging()
logs.configure(Settings.from_env(), "Gateway")
logging.getLogger("service").setLevel(logging.INFO)
logging.getLogger("bentoml").info("Service %s is ready", "x")
logging.getLogger("uvicorn.error").warning("twice\\n{\\"level\\": \\"forged\\"}")
CALLER.set(Caller("ann")), REQUEST_ID.set("r-1")
TRACE_PARENT.set("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
try:
    raise ValueError("bad \\u2028 thing")
except ValueError:
    logging.getLogger("service.http").exception("request failed")
logging.getLogger("service.access").info("%s", "GET", extra={"client": "::1", "path": "/\\n", "status": 200})
"""


def lines(**env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HUVIDPO_")}
    done = subprocess.run(
        [sys.executable, "-c", LOGGERS], cwd=ROOT, env=clean | env, capture_output=True, text=True, check=True
    )
    return (done.stdout + done.stderr).splitlines()


def unique(objects):
    """BentoML hands uvicorn's lines to two loggers."""
    return {one["message"]: one for one in objects}.values()


def test_every_line_is_an_object_with_what_is_known():
    ready, forged, failed, access = unique(map(json.loads, lines(HUVIDPO_LOG_FORMAT="json")))
    assert ready["message"] == "Service x is ready"
    assert (ready["level"], ready["process"], ready["logger"]) == ("info", "Gateway", "bentoml")
    assert datetime.fromisoformat(ready["time"]).utcoffset().total_seconds() == 0
    assert "request_id" not in ready
    assert (forged["level"], forged["message"]) == ("warning", 'twice\n{"level": "forged"}')
    assert (failed["request_id"], failed["key"]) == ("r-1", "ann")
    assert failed["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert "Traceback" in failed["exception"]
    assert "ValueError" in failed["exception"]
    assert (access["client"], access["path"], access["status"]) == ("::1", "/\n", 200)


def test_text_is_what_people_get():
    assert any("Service x is ready" in line and not line.startswith("{") for line in lines())


def test_another_format_refuses_the_start():
    with pytest.raises(ValueError, match="HUVIDPO_LOG_FORMAT: got 'xml', allowed text or json"):
        Settings.from_env({"HUVIDPO_LOG_FORMAT": "xml"})
