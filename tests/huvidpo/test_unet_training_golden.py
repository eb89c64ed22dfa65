"""One step of stage 1 (motion) against the original's: loss, gradients, weights after AdamW."""

import json

import pytest
import torch
import torch.nn.functional as F
from reference import needs_reference, reference
from safetensors.torch import load_file

from huvidpo.unet import VideoUNet

pytestmark = needs_reference


@pytest.mark.parametrize("checkpointing", [False, True])
def test_stage_one_step(checkpointing: bool):
    io = load_file(reference("lamp/train/io_first_prev.safetensors"))
    expected = load_file(reference("lamp/train/grads_first_prev.safetensors"))
    meta = json.loads(reference("lamp/train/meta.json").read_text())
    unet = VideoUNet.from_lamp(reference("lamp/tiny/unet"), attention="first_prev").train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(any(part in name for part in meta["trainable_modules"]))
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    assert {f"grad.{name}" for name in trained} == {name for name in expected if name.startswith("grad.")}

    out = unet(io["noisy_latents"], io["timesteps"], io["encoder_hidden_states"])
    torch.testing.assert_close(out, io["model_pred"], atol=2e-5, rtol=0)
    loss = F.mse_loss(out[:, :, 1:], io["noise"][:, :, 1:])
    torch.testing.assert_close(loss, io["loss"][0], atol=2e-5, rtol=0)

    loss.backward()
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, expected[f"grad.{name}"], atol=2e-5, rtol=0, msg=name)
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-5, weight_decay=1e-2)
    optimizer.step()
    for name, parameter in trained.items():
        torch.testing.assert_close(
            parameter, expected[f"after_adamw_step.{name}"], atol=2e-5, rtol=0, msg=name
        )
