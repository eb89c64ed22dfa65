import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from reference import REFERENCE, needs_reference
from safetensors.torch import load_file
from torch import Tensor

from huvidpo.errors import Cancelled, CheckpointError, InvalidRequest
from huvidpo.schedule import (
    SETTLE_FRACTION,
    UNCHANGED,
    adain,
    correct_end,
    correct_step,
    first_frame_schedule,
    guide,
    keep_detail,
    make_scheduler,
    match_histogram,
    mix_noise,
    noise_to_start,
    sample,
    spread,
    step_frames,
)
from huvidpo.unet import VideoUNet

SD14 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
ZERO_SNR = SD14 | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "set_alpha_to_one": True,
}
CONFIGS = {"epsilon": SD14, "zero_snr_v": ZERO_SNR}


def perfect_model(clean: Tensor, config: dict):
    """The prediction that leads exactly to `clean`, from the config's own noise schedule."""
    alphas = make_scheduler(config, "ddim", 10).alphas_cumprod

    def predict(latents: Tensor, timestep: Tensor, rows: list[int]) -> Tensor:
        alpha = alphas[timestep]
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        if config.get("prediction_type") != "v_prediction":
            return (latents - signal * clean[rows]) / sigma
        noise = (latents - signal * clean[rows]) / sigma
        return signal * noise - sigma * clean[rows]

    return predict


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_a_perfect_model_leads_to_the_clean_clip(sampler: str, config: dict) -> None:
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 2, 3, 4, 5, 5)
    latents = torch.cat([clean[:, :, :1], noise[:, :, 1:]], dim=2)
    out, rows = sample(perfect_model(clean, config), latents, make_scheduler(config, sampler, 10))
    assert rows == [0, 1]
    # SD 1.4 ends at alpha_bar of T = 0, just short of clean
    torch.testing.assert_close(out, clean, atol=0.1 if config is SD14 else 2e-3, rtol=0)
    assert torch.equal(out[:, :, 0], clean[:, :, 0])


def test_ddim_step_by_hand() -> None:
    """x' = sqrt(a') (x - sqrt(1-a) e) / sqrt(a) + sqrt(1-a') e, on frames 1.. only."""
    scheduler = make_scheduler(SD14, "ddim", 4)
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]
    x, e = torch.full((1, 1, 3, 1, 1), 2.0), torch.full((1, 1, 3, 1, 1), 0.5)
    a, b = scheduler.alphas_cumprod[751].item(), scheduler.alphas_cumprod[501].item()
    expected = math.sqrt(b) * (2 - math.sqrt(1 - a) * 0.5) / math.sqrt(a) + math.sqrt(1 - b) * 0.5
    out = step_frames(scheduler, e, scheduler.timesteps[0], x)
    torch.testing.assert_close(out.flatten(), torch.tensor([2.0, expected, expected]))


SDXL_EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
SD14_PNDM = {  # as published; its clip_sample is of a later hand
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SD21 = SD14_PNDM | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False}
LINEAR = {"_class_name": "DDPMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
EVERY = {
    "sd14": SD14,
    "zero_snr": ZERO_SNR,
    "sdxl": SDXL_EULER,
    "pndm": SD14_PNDM,
    "sd21": SD21,
    "ddpm": LINEAR,
}
EVERY |= {
    f"{name} {s}": EVERY[name] | {"timestep_spacing": s}
    for name in ("sd14", "sd21")
    for s in ("linspace", "trailing")
}


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_any_number_of_steps_starts_at_noise_and_falls(sampler: str, config: dict) -> None:
    facts = make_scheduler(config, sampler, 1).config
    for steps in range(1, 1001):
        times = np.array(spread(facts, steps, lead=int(sampler == "dpm++")))
        assert len(times) == steps
        assert times[0] >= max(749, 1000 - 1000 / steps - 1), steps
        assert (np.diff(times) < 0).all(), steps
        assert times[-1] >= 0, steps


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 334, 999, 1000])
def test_any_number_of_steps_ends_clean(sampler: str, config: dict, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, 5, 5, generator=generator)
    latents = torch.cat([clean[:, :, :1], noise[:, :, 1:]], dim=2)
    out, _ = sample(perfect_model(clean, config), latents, make_scheduler(config, sampler, steps))
    # without set_alpha_to_one DDIM ends at alpha_bar of T = 0, just short of clean
    ends_short = sampler == "ddim" and not config.get("set_alpha_to_one", True)
    torch.testing.assert_close(out, clean, atol=0.15 if ends_short else 5e-3, rtol=0)


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("share", [1e-6, 0.01, 0.5, 0.75, 0.999])
def test_a_clip_is_made_again_from_any_share_of_the_schedule(
    sampler: str, config: dict, share: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, 5, 5, generator=generator)
    plain = make_scheduler(config, sampler, 20).timesteps.tolist()
    scheduler = make_scheduler(config, sampler, 20, share)
    start, *rest = scheduler.timesteps.tolist()
    assert start == max(0, round(1000 * share) - 1)
    assert rest == [time for time in plain if time < start]
    noisy = noise_to_start(scheduler, clean, noise)
    assert torch.equal(noisy[:, :, 0], clean[:, :, 0])
    assert not torch.equal(noisy[:, :, 1:], clean[:, :, 1:])
    out, _ = sample(perfect_model(clean, config), noisy, scheduler)
    ends_short = sampler == "ddim" and not config.get("set_alpha_to_one", True)
    torch.testing.assert_close(out, clean, atol=0.15 if ends_short else 5e-3, rtol=0)


def test_noise_to_start_is_what_training_adds() -> None:
    clean, noise = torch.randn(2, 1, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    scheduler = make_scheduler(SD14, "ddim", 20, 0.5)
    added = DDIMScheduler(**SD14).add_noise(clean, noise, torch.tensor([499]))
    torch.testing.assert_close(noise_to_start(scheduler, clean, noise)[:, :, 1:], added[:, :, 1:])


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan, math.inf])
def test_any_other_share_is_refused(share: float) -> None:
    assert make_scheduler(SD14, "ddim", 4, 1).timesteps.tolist() == [751, 501, 251, 1]
    with pytest.raises(InvalidRequest, match=r"^share: got .*, expected a number above 0 and of at most 1$"):
        make_scheduler(SD14, "ddim", 4, share)


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("steps", [3, 7, 30, 334])
def test_every_ddim_step_leads_to_the_next_timestep(config: dict, steps: int) -> None:
    """With a perfect model the sample is sqrt(a) clean + sqrt(1 - a) noise at every timestep."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, 5, 5, generator=generator, dtype=torch.float64)
    scheduler, model = make_scheduler(config, "ddim", steps), perfect_model(clean, config)

    def at(time: Tensor) -> Tensor:
        alpha = scheduler.alphas_cumprod[time].double()
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    x = at(scheduler.timesteps[0])
    for time, following in itertools.pairwise(scheduler.timesteps):
        x = scheduler.step(model(x, time, [0]), time, x)[0]
        torch.testing.assert_close(x, at(following), atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [SD14, ZERO_SNR, SD21], ids=["sd14", "zero_snr", "sd21"])
@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_steps_that_divide_are_diffusers_own(config: dict, steps: int) -> None:
    theirs = DDIMScheduler.from_config(config)
    theirs.set_timesteps(steps)
    ours = make_scheduler(config, "ddim", steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    x, prediction = torch.randn(2, 1, 4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    for time in theirs.timesteps:
        assert torch.equal(ours.step(prediction, time, x)[0], theirs.step(prediction, time, x).prev_sample)


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_latents_are_never_clipped(sampler: str, config: dict) -> None:
    """Schedulers made for pixels clip to [-1, 1], DDIM unless told otherwise."""
    clean = torch.full((1, 4, 3, 5, 5), 7.0)
    other = config | {"clip_sample": True, "thresholding": True}
    for told in (config, other):
        out, _ = sample(perfect_model(clean, config), clean, make_scheduler(told, sampler, 10))
        assert out.min() > 6


@pytest.mark.parametrize(
    ("config", "steps", "error", "message"),
    [
        (SD14 | {"num_train_timesteps": 100}, 101, InvalidRequest, "has 100 timesteps"),
        (
            SD14 | {"prediction_type": "flow_prediction"},
            10,
            CheckpointError,
            "prediction_type 'flow_prediction'",
        ),
        (SD14 | {"timestep_spacing": "random"}, 10, CheckpointError, "timestep_spacing 'random'"),
        (ZERO_SNR | {"prediction_type": "epsilon"}, 10, CheckpointError, "predict v"),
    ],
)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_what_cannot_be_sampled_is_refused(
    sampler: str, config: dict, steps: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_scheduler(config, sampler, steps)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 334, 1000])
def test_first_frames_start_at_noise_too(kind: Any, steps: int) -> None:
    shared = kind.from_config(SDXL_EULER)
    before = dict(vars(shared))
    scheduler, asked = first_frame_schedule(shared, steps)
    scheduler.set_timesteps(**asked, device="cpu")
    times = scheduler.timesteps.double().numpy()
    assert len(times) == steps
    assert times[0] >= max(749, 1000 - 1000 / steps - 1)
    assert (np.diff(times) < 0).all()
    assert not scheduler.config.get("clip_sample", False)
    assert vars(shared) == before
    theirs = kind.from_config(SDXL_EULER)
    theirs.set_timesteps(50)
    if steps == 50 and kind is not DPMSolverMultistepScheduler:  # of 51 it takes 50: 1000 does not divide
        assert times.tolist() == theirs.timesteps.tolist()


def test_a_scheduler_that_takes_no_timesteps_keeps_its_own() -> None:
    scheduler, asked = first_frame_schedule(PNDMScheduler.from_config(SD14_PNDM), 20)
    assert isinstance(scheduler, PNDMScheduler)
    assert asked == {"num_inference_steps": 20}


def test_noise_mixing_has_the_originals_std() -> None:
    noise = torch.randn(1, 4, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    mixed = mix_noise(noise, 0.2)
    assert torch.equal(mixed[:, :, 0], noise[:, :, 0])
    torch.testing.assert_close(mixed[:, :, 5], 0.2 * noise[:, :, 0] + 0.8 * noise[:, :, 5])
    assert mixed[:, :, 1:].std().item() == pytest.approx(math.sqrt(0.2**2 + 0.8**2), abs=3e-3)
    assert torch.equal(mix_noise(noise, 0.0), noise)


def test_guidance_is_per_request() -> None:
    unconditional, conditional = torch.zeros(2, 1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1)
    assert guide(unconditional, conditional, torch.tensor([1.0, 7.5])).flatten().tolist() == [1.0, 7.5]


def test_adain_takes_mean_and_std_per_channel() -> None:
    content = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    style = torch.tensor([[[[10.0, 30.0, 50.0]]]])
    torch.testing.assert_close(adain(content, style), style)


def test_lamp_corrections_by_hand() -> None:
    torch.manual_seed(0)
    latents = torch.randn(2, 3, 4, 6, 6) * torch.arange(1, 5).view(1, 1, 4, 1, 1)
    early, late, end = correct_step(latents, 30, 30), correct_step(latents, 31, 30), correct_end(latents)

    def std(clip: Tensor, frame: int) -> Tensor:
        return clip[:, :, frame].std(dim=(-2, -1))

    assert torch.equal(early[:, :, :2], latents[:, :, :2])
    for frame in (2, 3):
        torch.testing.assert_close(std(early, frame), std(latents, 1))
        torch.testing.assert_close(std(late, frame), std(latents, 0))
    torch.testing.assert_close(std(late, 1), std(latents, 0))
    assert torch.equal(end[:, :, 0], latents[:, :, 0])
    torch.testing.assert_close(std(end, 3), std(latents, 0))


def test_settling_starts_where_lamp_starts_it() -> None:
    assert [i for i in range(50) if i > SETTLE_FRACTION * 50] == list(range(31, 50))


def test_detail_is_kept_where_nothing_moved_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(40, 216, (16, 16, 3), dtype=np.uint8)
    blurred = np.broadcast_to(first.mean((0, 1)).astype(np.uint8), first.shape)
    frames = np.stack([blurred] * 3)
    frames[1, :8] += 40  # the upper half moved
    frames[2] += 2  # noise
    kept = keep_detail(frames, first)
    assert np.array_equal(kept[0], first)
    assert np.array_equal(kept[1, 8:], first[8:])
    assert np.array_equal(kept[1, :8], frames[1, :8])
    lost, put_back = first.astype(float) - blurred, kept[2].astype(float) - frames[2]
    np.testing.assert_allclose(put_back, np.exp(-((2 / UNCHANGED) ** 2)) * lost, atol=0.51)


def test_a_clip_that_moves_is_not_stopped_by_its_first_frame() -> None:
    """A square that wanders over another's place: what was lost of the first frame does not shine through."""
    first = np.zeros((16, 16, 3), np.uint8)
    first[4:8, 4:8], first[4:8:2, 4:8:2] = 200, 255  # with a pattern, which the VAE loses
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    for t in range(5):
        frames[t, 4:8, 4 + t : 8 + t] = 210
    kept = keep_detail(frames, first)
    assert np.array_equal(kept[4, :, :8], frames[4, :, :8]), "left behind"
    assert np.array_equal(kept[4, :, 8:], frames[4, :, 8:]), "where it came to"


def test_histogram_of_each_frame_becomes_that_of_frame_0() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    frames[1] = np.sqrt(frames[0] * 255.0).astype(np.uint8)  # another contrast, same order of pixels
    matched = match_histogram(frames)
    assert np.array_equal(matched[0], frames[0])
    assert np.abs(matched[1].astype(int) - frames[0]).mean() < 2
    for channel in range(3):
        shares = [np.sort(matched[i, ..., channel].ravel()) for i in (0, 2)]
        assert np.abs(shares[0].astype(int) - shares[1]).mean() < 2


def test_matching_identical_frames_changes_nothing() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8).repeat(3, axis=0)
    assert np.array_equal(match_histogram(frames), frames)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_dropping_a_request_leaves_the_others_alone(sampler: str) -> None:
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 3, 2, 3, 4, 4)
    latents = torch.cat([clean[:, :, :1], noise[:, :, 1:]], dim=2)
    model = perfect_model(clean, ZERO_SNR)
    whole, _ = sample(model, latents, make_scheduler(ZERO_SNR, sampler, 6))
    sizes = []

    def drop_second(step: int, total: int, x: Tensor) -> list[bool] | None:
        sizes.append(len(x))
        assert total == 6
        return [True, False, True] if step == 3 else None

    out, rows = sample(model, latents, make_scheduler(ZERO_SNR, sampler, 6), on_step=drop_second)
    assert (rows, sizes) == ([0, 2], [3, 3, 3, 2, 2, 2])
    torch.testing.assert_close(out, whole[[0, 2]])


def test_dropping_all_stops_at_once() -> None:
    steps = []

    def drop_all(step: int, total: int, x: Tensor) -> list[bool]:
        steps.append(step)
        return [False]

    latents = torch.zeros(1, 2, 3, 4, 4)
    with pytest.raises(Cancelled):
        sample(perfect_model(latents, SD14), latents, make_scheduler(SD14, "ddim", 5), on_step=drop_all)
    assert steps == [1]


GOLDENS = [("cfg8_first_prev", "first_prev"), ("cfg8_stock", "first"), ("nocfg4_first_prev", "first_prev")]


@needs_reference
@pytest.mark.parametrize(("case", "attention"), GOLDENS)
def test_equals_the_originals_sampling_loop(case: str, attention: str) -> None:
    """The whole loop with its corrections. The cfg cases were recorded at guidance 7.5."""
    golden, config, unet = _golden(case, attention)
    steps = len(golden["timesteps"])
    mixed = mix_noise(golden["noise"], 0.2)
    latents = torch.cat([golden["first_frame_latents"], mixed[:, :, 1:]], dim=2)
    torch.testing.assert_close(latents, golden["initial_latents"], atol=1e-6, rtol=0)
    scheduler = make_scheduler(config, "ddim", steps)
    assert torch.equal(scheduler.timesteps, golden["timesteps"])

    # the original's hard-coded index: never reached in so few steps
    out, _ = sample(_denoiser(unet, golden), latents, scheduler, corrections="lamp", settle_after=30)
    torch.testing.assert_close(out, golden["final_latents"], atol=1e-4, rtol=0)


@needs_reference
@pytest.mark.parametrize(("case", "attention"), GOLDENS)
def test_equals_every_step_of_the_original(case: str, attention: str) -> None:
    """Each step from the original's own latents, so that errors cannot add up."""
    golden, config, unet = _golden(case, attention)
    scheduler = make_scheduler(config, "ddim", len(golden["timesteps"]))
    model = _denoiser(unet, golden)
    before = golden["initial_latents"]
    for index, timestep in enumerate(scheduler.timesteps):
        with torch.no_grad():
            after = step_frames(scheduler, model(before, timestep, [0]), timestep, before)
        expected = golden["latents_after_step"][index]
        torch.testing.assert_close(correct_step(after, index, 30), expected, atol=1e-4, rtol=0)
        before = expected


def _golden(case: str, attention: str) -> tuple[dict[str, Tensor], dict, VideoUNet]:
    assert REFERENCE is not None
    lamp = Path(REFERENCE) / "lamp"
    config = json.loads((lamp / "pipe/ddim_config.json").read_text())
    unet = VideoUNet.from_lamp(f"{lamp}/tiny", attention=attention).eval()
    return load_file(lamp / f"pipe/{case}.safetensors"), config, unet


def _denoiser(unet: VideoUNet, golden: dict[str, Tensor]):
    guided = len(golden["unet_out_step0"]) == 2

    def predict(latents: Tensor, timestep: Tensor, rows: list[int]) -> Tensor:
        if not guided:
            return unet(latents, timestep, golden["text_embeddings"])
        text = torch.cat([golden["uncond_embeddings"], golden["text_embeddings"]])
        unconditional, conditional = unet(torch.cat([latents, latents]), timestep, text).chunk(2)
        return guide(unconditional, conditional, torch.tensor([7.5]))

    return predict
