"""Trained networks -> ONNX -> TensorRT engines, checked on the way."""
