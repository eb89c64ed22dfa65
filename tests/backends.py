"""Which backends can run here."""

import pytest

from huvidpo.hardware import limited_isa

needs_openvino = pytest.mark.skipif(bool(limited_isa()), reason=f"openvino crashes under {limited_isa()}")
