"""Trained networks -> ONNX -> TensorRT engines, checked on the way."""

import huvidpo  # noqa: F401  # first: it quiets libraries before they are loaded
