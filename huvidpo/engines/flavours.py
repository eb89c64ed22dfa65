"""TensorRT in its two flavours, which share one API: what they are called, and where their messages go.

Builds run in processes without torch: this module imports none.
"""

import importlib
import logging
from functools import cache
from typing import Any

from huvidpo.errors import EngineError

logger = logging.getLogger(__name__)

FLAVOURS = {"tensorrt": ("tensorrt", "tensorrt-cu13"), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13")}
"""backend in a manifest: (module, package). The first is preferred; both may be installed."""


def import_flavour(flavour: str) -> Any:
    """The module. Raises EngineError if it is not installed."""
    module, package = FLAVOURS[flavour]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        other = next(name for name in FLAVOURS if name != flavour)
        raise EngineError(
            f"{flavour} cannot be loaded ({error}): pip install {package}, use {other}, "
            "or serve with HUVIDPO_BACKEND=torch"
        ) from error


@cache
def make_logger(trt: Any) -> Any:
    """TensorRT's messages into `logging`, errors kept. One per process: TensorRT ignores later ones."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.CRITICAL,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.DEBUG,
    }

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.NOTSET)
            if level:
                logger.log(level, "%s", message)
            if level >= logging.ERROR:
                self.errors.append(message)

        def last_error(self) -> str:
            return self.errors[-1] if self.errors else "it gave no reason"

    return Logger()
