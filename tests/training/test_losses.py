import pytest
import torch
from diffusers import DDIMScheduler
from reference import REFERENCE, needs_reference
from safetensors.torch import load_file

from huvidpo.errors import HuViDPOError
from huvidpo.unet import VideoUNet
from training.inversion import invert, levels, split
from training.loop import select_trainable
from training.losses import add_noise, motion_loss, prediction_target
from training.recipes import LAMP_TRAINABLE

SD14 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler(prediction_type: str) -> DDIMScheduler:
    zero = prediction_type == "v_prediction"
    return DDIMScheduler(**SD14, prediction_type=prediction_type, rescale_betas_zero_snr=zero)


def test_loss_counts_the_frames_after_the_first_only():
    prediction = torch.zeros(1, 1, 3, 1, 2)
    target = torch.tensor([[9.0, 9.0], [1.0, 3.0], [0.0, 2.0]]).reshape(1, 1, 3, 1, 2)
    assert motion_loss(prediction, target).item() == pytest.approx((1 + 9 + 0 + 4) / 4)
    assert motion_loss(prediction.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_first_frame_stays_clean():
    latents, noise = torch.randn(2, 2, 2, 3, 4, 4)
    noisy = add_noise(scheduler("epsilon"), latents, noise, torch.tensor([999, 10]))
    assert torch.equal(noisy[:, :, 0], latents[:, :, 0])
    assert not torch.isclose(noisy[:, :, 1:], latents[:, :, 1:]).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_target_gives_back_the_clean_latents(kind):
    latents, noise = torch.randn(2, 3, 4, 2, 4, 4)
    timesteps = torch.tensor([5, 500, 900])
    noisy = scheduler(kind).add_noise(latents, noise, timesteps)
    target = prediction_target(scheduler(kind), latents, noise, timesteps)
    abar = scheduler(kind).alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
    clean, same_noise = split(scheduler(kind), target, noisy, abar)
    torch.testing.assert_close(clean, latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(same_noise, noise, atol=1e-4, rtol=1e-4)


def test_other_prediction_types_are_refused():
    with pytest.raises(HuViDPOError, match="epsilon and v_prediction"):
        prediction_target(scheduler("sample"), *torch.zeros(2, 1, 1, 2, 2, 2), torch.tensor([1]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_inversion_finds_the_noise_a_perfect_network_sees(kind):
    """A network that knows one noise: inversion returns that very noise at each level."""
    schedule = scheduler(kind)
    latents, noise = torch.randn(2, 1, 4, 3, 4, 4)

    def network(sample, timestep, text):
        if kind == "epsilon":
            return noise
        # the velocity at the level the sample is really at: abar is 1 at the start, where t says 0
        abar = schedule.alphas_cumprod[timestep] if network.called else torch.tensor(1.0)
        network.called = True
        return abar.sqrt() * noise - (1 - abar).sqrt() * latents

    network.called = False
    timesteps = levels(schedule, 5)
    assert timesteps.tolist() == [199, 399, 599, 799, 999]
    found = list(invert(network, schedule, latents, torch.zeros(1, 1, 1), timesteps))
    assert len(found) == 5
    for level in found:
        torch.testing.assert_close(level[:, :, 1:], noise[:, :, 1:], atol=1e-3, rtol=1e-3)


@needs_reference
def test_one_step_equals_the_originals():
    """Loss and gradients of one step of the original trainer, with its noise and timesteps."""
    given = load_file(REFERENCE / "lamp/train/io_first_prev.safetensors")
    expected = load_file(REFERENCE / "lamp/train/grads_first_prev.safetensors")
    unet = VideoUNet.from_lamp(REFERENCE / "lamp/tiny/unet", "first_prev")
    names = select_trainable(unet, LAMP_TRAINABLE)
    schedule = DDIMScheduler(**SD14)
    latents, noise, timesteps = given["latents"], given["noise"], given["timesteps"]

    noisy = add_noise(schedule, latents, noise, timesteps)
    torch.testing.assert_close(noisy, given["noisy_latents"])
    prediction = unet(noisy, timesteps, given["encoder_hidden_states"])
    loss = motion_loss(prediction, prediction_target(schedule, latents, noise, timesteps))
    torch.testing.assert_close(loss, given["loss"][0], atol=1e-6, rtol=1e-6)

    loss.backward()
    params = dict(unet.named_parameters())
    assert {f"grad.{name}" for name in names} == {name for name in expected if name.startswith("grad.")}
    for name in names:
        torch.testing.assert_close(params[name].grad, expected[f"grad.{name}"], atol=2e-5, rtol=1e-3)
