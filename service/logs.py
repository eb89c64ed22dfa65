"""Logs: lines of text for people, or with HUVIDPO_LOG_FORMAT=json an object a line for machines.

Every line of a process, whoever writes it, has time, level, logger and message; where they are known the id
of the request, the name of the API key and the trace; and of an exception its traceback.
"""

import logging
import time
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from service.request_id import CALLER, REQUEST_ID, TRACE_PARENT
from service.settings import Settings


class _Formatter(JsonFormatter):
    def __init__(self, process: str):
        super().__init__(reserved_attrs=[*_OF_THE_RECORD], rename_fields={"exc_info": "exception"})
        self.converter = time.gmtime
        self._process = process

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        log_data |= {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
        }
        _, _, trace = TRACE_PARENT.get().partition("-")
        known = {"request_id": REQUEST_ID.get(), "key": CALLER.get().name, "trace_id": trace[:32]}
        log_data |= {name: value for name, value in known.items() if value not in ("", "-")}
        super().add_fields(log_data, record, message_dict)


# What BentoML adds to each, beside what Python does: it is said under our names, or is empty.
_OF_THE_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"} | {
    "levelname_bracketed", "component", "trace_msg", "request_id", "service_name", "color_message",
}  # fmt: skip


def configure(settings: Settings, process: str) -> None:
    """For this process, once its loggers have their handlers. `process`: what it is, for the lines."""
    if settings.log_format != "json":
        return
    formatter = _Formatter(process)
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        handler.setFormatter(formatter)
