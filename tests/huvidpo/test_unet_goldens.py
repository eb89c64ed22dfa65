"""The video UNet against its own recorded numbers (tests/goldens/record.py)."""

import json

import pytest
import torch
from goldens import record

GOLDEN = json.loads(record.FILE.read_text())


@pytest.mark.parametrize("mode", ["first_prev", "first"])
@pytest.mark.parametrize("case", record.CASES)
def test_outputs(case: str, mode: str):
    with torch.no_grad():
        result = record.unet(mode)(*record.inputs(case))
    expected = torch.tensor(GOLDEN["outputs"][f"{mode}.{case}"])
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


def test_training_step():
    assert record.training() == pytest.approx(GOLDEN["training"], rel=1e-4)


def test_attention_modes_differ():
    """Else one of the two would be recorded twice."""
    clip = torch.tensor(GOLDEN["outputs"]["first_prev.long"])
    assert (clip - torch.tensor(GOLDEN["outputs"]["first.long"])).abs().max() > 1e-2
