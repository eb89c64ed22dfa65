import dataclasses
import logging
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from family import SIZE, build_random_family, image_unet
from reference import needs_reference, reference
from torch import Tensor

from huvidpo.catalog import DEFAULT_MODEL, Component, load_catalog
from huvidpo.checkpoint import load_tensors, read_metadata, save_tensors
from huvidpo.config import ClipRequest
from huvidpo.errors import Cancelled, CheckpointError, InvalidRequest
from huvidpo.latents import from_latents, to_latents
from huvidpo.loading import load_category, load_video_unet
from huvidpo.pipeline import KEPT_NEGATIVES, FirstFramePipeline, VideoPipeline, _check_size
from huvidpo.schedule import keep_detail
from huvidpo.unet import VideoUNet
from huvidpo.video import crop_to_aspect

EMBEDDINGS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)  # as diffusers gives them
PROMPTS = ["a white horse runs", "winter waterfall", "birds fly in the pink sky", "rain falls"]


@pytest.fixture(scope="module")
def pipelines(family: Path) -> Iterator[tuple[FirstFramePipeline, VideoPipeline]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))
        yield FirstFramePipeline.from_catalog(DEFAULT_MODEL), VideoPipeline.from_catalog(DEFAULT_MODEL)


@pytest.fixture
def first(pipelines: tuple) -> FirstFramePipeline:
    return pipelines[0]


@pytest.fixture
def video(pipelines: tuple) -> VideoPipeline:
    return pipelines[1]


def request(
    prompt: str = PROMPTS[0],
    seed: int = 1,
    category: str = "horse",
    style: str = "realistic",
    negative_prompt: str | None = None,
    **options: object,
) -> ClipRequest:
    small = {"steps": 3, "guidance": 2.0, "height": SIZE, "width": SIZE, "frames": 4, "corrections": "none"}
    small |= {"first_frame_size": (SIZE, SIZE), "first_frame_steps": 3}
    asked = ClipRequest(prompt, category, seed, style, negative_prompt)
    return dataclasses.replace(asked, options=asked.options.replace(**small | options))


def image(seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def latents_of(
    video: VideoPipeline, requests: list[ClipRequest], images: list[np.ndarray]
) -> list[Tensor | None]:
    with torch.no_grad():
        prepared = video.prepare_latents(requests, video.encode_first_frame(requests, images))
        return video.denoise(requests, prepared, video.encode_prompt(requests))


def first_latents_of(first: FirstFramePipeline, requests: list[ClipRequest]) -> list[Tensor | None]:
    with torch.no_grad():
        return first.denoise(requests, first.prepare_latents(requests), first.encode_prompt(requests))


def assert_close(a: list[Tensor | None], b: list[Tensor | None], atol: float = 1e-4) -> None:
    for one, other in zip(a, b, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


def assert_frames_close(a: np.ndarray | None, b: np.ndarray | None) -> None:
    """But for the rounding of a level."""
    assert a is not None
    assert b is not None
    assert np.abs(a.astype(int) - b).max() <= 1


def test_prompt_to_clip(first: FirstFramePipeline, video: VideoPipeline) -> None:
    requests = [request(), request(PROMPTS[2], seed=2, style="pixel-art")]
    images = first(requests)
    clips = video(requests, images)
    for picture, clip in zip(images, clips, strict=True):
        assert (picture.shape, picture.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert (clip.shape, clip.dtype) == ((4, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(params=[False, True])
def zeros(first: FirstFramePipeline, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether SDXL takes zeros for an empty negative prompt."""
    before = first.pipe.config.force_zeros_for_empty_prompt
    first.pipe.register_to_config(force_zeros_for_empty_prompt=request.param)
    yield request.param
    first.pipe.register_to_config(force_zeros_for_empty_prompt=before)


def test_a_negative_prompt_is_encoded_once(
    first: FirstFramePipeline, zeros: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And to what diffusers makes of it, bit for bit."""
    encoded: list[str] = []
    encode = first.pipe.encode_prompt

    def noting(text: str, **options: object) -> tuple:
        encoded.append(text)
        return encode(text, **options)

    monkeypatch.setattr(first, "_negatives", OrderedDict())
    monkeypatch.setattr(first.pipe, "encode_prompt", noting)
    negatives = ["", "red sky", "", "red sky"]
    ours = first.encode_prompt(
        [request(PROMPTS[i], negative_prompt=text) for i, text in enumerate(negatives)]
    )
    prompts = [text for text in encoded if text not in negatives]
    assert [text for text in encoded if text in negatives] == (["red sky"] if zeros else ["", "red sky"])
    for i, (prompt, text) in enumerate(zip(prompts, negatives, strict=True)):
        with torch.no_grad():
            theirs = encode(prompt, negative_prompt=text or None)
        for name, wanted in zip(EMBEDDINGS, theirs, strict=True):
            assert torch.equal(ours[name][i], wanted[0]), (name, text)
    for number in range(2 * KEPT_NEGATIVES):
        first.encode_prompt([request(negative_prompt=f"red {number}")])
    assert len(first._negatives) == KEPT_NEGATIVES


@pytest.mark.parametrize("corrections", ["none", "lamp"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_clip_is_the_same_whatever_the_batch(video: VideoPipeline, sampler: str, corrections: str) -> None:
    """8 requests of other prompts, seeds, styles, guidance and noise mixing, together and one by one."""
    styles = list(load_catalog().styles)
    requests = [
        request(
            PROMPTS[i % 4],
            seed=10 + i,
            style=styles[i // 2],
            negative_prompt="red sky" if i % 3 else None,
            guidance=1.5 + i,
            noise_mix=i / 10,
            sampler=sampler,
            corrections=corrections,
        )
        for i in range(8)
    ]
    images = [image(i) for i in range(8)]
    together = latents_of(video, requests, images)
    single = [latents_of(video, [one], [picture])[0] for one, picture in zip(requests, images, strict=True)]
    assert_close(together, single)


def test_first_frame_is_the_same_whatever_the_batch(first: FirstFramePipeline) -> None:
    requests = [request(PROMPTS[i % 4], seed=i, negative_prompt="red" if i % 3 else None) for i in range(8)]
    together = first_latents_of(first, requests)
    assert_close(together, [first_latents_of(first, [one])[0] for one in requests])


def test_a_seed_names_one_clip(first: FirstFramePipeline, video: VideoPipeline) -> None:
    def clip(seed: int) -> np.ndarray:
        one = request(seed=seed)
        return video([one], first([one]))[0]

    assert np.array_equal(clip(5), clip(5))
    assert not np.array_equal(clip(5), clip(6))


def test_global_random_state_is_neither_read_nor_moved(video: VideoPipeline) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    once = latents_of(video, [request()], [image()])
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert_close(once, latents_of(video, [request()], [image()]), atol=0)


def test_frame_0_stays_the_first_frames_latent(video: VideoPipeline) -> None:
    one = request(noise_mix=0.2, corrections="lamp")
    encoded = video.encode_first_frame([one], [image()])
    (out,) = latents_of(video, [one], [image()])
    assert out is not None
    assert torch.equal(out[:, 0], encoded[0])
    assert not torch.allclose(out[:, 1], encoded[0])


def test_detail_is_of_each_requests_own_first_frame(video: VideoPipeline) -> None:
    """Of another size, cropped as it is encoded, and with a request of the batch dropped on the way."""
    requests = [request(seed=seed, corrections="detail") for seed in range(3)]
    images = [image(seed, (SIZE, SIZE + 16)) for seed in range(3)]
    plain = video(
        [dataclasses.replace(r, options=r.options.replace(corrections="none")) for r in requests], images
    )
    cropped = [crop_to_aspect(picture, SIZE, SIZE) for picture in images]

    def drop_the_first(step: int, total: int, latents: Tensor) -> list[bool]:
        return [len(latents) < 3] + [True] * (len(latents) - 1)

    none, *made = video(requests, images, drop_the_first)
    assert none is None
    for clip, other, first in zip(made, plain[1:], cropped[1:], strict=True):
        assert clip is not None
        assert np.array_equal(clip[0], first)
        assert_frames_close(clip, keep_detail(other, first))
    again = video.again(requests, [np.stack([picture] * 4) for picture in cropped], 0.5)
    assert all(np.array_equal(clip[0], first) for clip, first in zip(again, cropped, strict=True))


@pytest.mark.parametrize("corrections", ["none", "lamp"])
def test_a_clip_made_again_keeps_more_of_itself_the_less_it_is_noised(
    video: VideoPipeline, corrections: str
) -> None:
    asked = [request(corrections=corrections, steps=8), request(seed=2, corrections=corrections, steps=8)]
    clips = [np.stack([image(10 * i + f) for f in range(4)]) for i in range(2)]
    plain = video(asked, [clip[0] for clip in clips])
    far = []
    for share in (1, 0.7, 0.05):
        made = video.again(asked, clips, share)
        assert_frames_close(made[1], video.again(asked[1:], clips[1:], share)[0])
        assert_frames_close(made[0][0], plain[0][0])  # the first frame, whatever the share
        assert np.array_equal(made[0], plain[0]) == (share == 1)
        through_vae = from_latents(video.vae, to_latents(video.vae, clips[0]))
        far.append(np.abs(made[0][1:].astype(float) - through_vae[1:]).mean())
    if corrections == "none":  # LAMP's move every frame's colours, whatever it was
        assert far[0] > far[1] > far[2]
    with pytest.raises(InvalidRequest, match="clips: got one of 3 frames, expected 4"):
        video.again(asked, [clips[0], clips[1][:3]], 0.5)
    with pytest.raises(InvalidRequest, match="share: got 0,"):
        video.again(asked, clips, 0)


def test_every_input_matters(video: VideoPipeline) -> None:
    base = latents_of(video, [request()], [image()])[0]
    changed = {
        "prompt": [request("winter waterfall")],
        "style": [request(style="cartoon")],
        "negative_prompt": [request(negative_prompt="red")],
        "guidance": [request(guidance=4.0)],
        "noise_mix": [request(noise_mix=0.7)],
        "steps": [request(steps=4)],
        "sampler": [request(sampler="dpm++")],
        "corrections": [request(corrections="lamp")],
        "category": [request(category="rain")],
    }
    for name, requests in changed.items():
        other = latents_of(video, requests, [image()])[0]
        assert not torch.allclose(base, other, atol=1e-4), name
    assert not torch.allclose(base, latents_of(video, [request()], [image(1)])[0], atol=1e-4)


def test_without_guidance_the_negative_prompt_is_not_even_run(video: VideoPipeline) -> None:
    one = request(guidance=1.0)
    kv = video.encode_prompt([one])
    assert kv[0][0].shape[0] == 1
    assert_close(
        latents_of(video, [one], [image()]),
        latents_of(video, [request(guidance=1.0, negative_prompt="red")], [image()]),
    )


def test_first_frame_of_any_size_is_cropped(video: VideoPipeline) -> None:
    wide = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    wide[:, SIZE : 2 * SIZE] = image()
    encoded = video.encode_first_frame([request()], [wide])
    torch.testing.assert_close(encoded, video.encode_first_frame([request()], [image()]))


def test_half_precision(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and noise stay float32; only the networks are cast."""
    monkeypatch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))
    half = torch.bfloat16
    first = FirstFramePipeline.from_catalog(DEFAULT_MODEL, dtype=half)
    video = VideoPipeline.from_catalog(DEFAULT_MODEL, dtype=half, categories=["horse"])
    assert {first.pipe.unet.dtype, video.unets["horse"].dtype, video.vae.dtype} == {half}
    (latents,) = latents_of(video, [request()], first([request()]))
    assert latents is not None
    assert latents.dtype == torch.float32
    assert torch.isfinite(latents).all()
    assert video.decode([request()], [latents])[0].shape == (4, SIZE, SIZE, 3)


@pytest.mark.filterwarnings("error")
def test_the_smallest_clips_are_finite_or_refused(video: VideoPipeline) -> None:
    """LAMP's corrections of one latent pixel are NaN; two frames leave none to correct after the second."""
    least = request(seed=1, height=8, width=8, frames=2, corrections="lamp")
    (clip,) = video([least], [np.zeros((16, 16, 3), np.uint8)])
    assert clip is not None
    assert clip.shape == (2, 8, 8, 3)
    with pytest.raises(
        InvalidRequest, match=r"8 x 8, of which one latent pixel is left.*corrections \"none\""
    ):
        _check_size(least.options, 8)
    _check_size(least.options.replace(corrections="none"), 8)
    _check_size(least.options.replace(width=16), 8)


def test_sizes_other_than_square(video: VideoPipeline) -> None:
    clip = video([request(height=24, width=40, frames=3, steps=1)], [image(size=(50, 90))])[0]
    assert clip.shape == (3, 24, 40, 3)


@pytest.mark.parametrize("stage", ["first", "video"])
def test_callback_reports_every_step(stage: str, first: FirstFramePipeline, video: VideoPipeline) -> None:
    seen = []

    def on_step(step: int, total: int, latents: Tensor) -> None:
        seen.append((step, total, tuple(latents.shape)))

    requests = [request(), request(seed=2)]
    if stage == "first":
        first(requests, on_step)
    else:
        video(requests, [image(), image()], on_step)
    shape = (2, 8, 8, 8) if stage == "first" else (2, 8, 4, 8, 8)
    assert seen == [(step, 3, shape) for step in (1, 2, 3)]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_dropped_requests_leave_the_batch_at_once(video: VideoPipeline, sampler: str) -> None:
    requests = [request(seed=i, sampler=sampler) for i in range(3)]
    images = [image(i) for i in range(3)]
    sizes = []

    def drop(step: int, total: int, latents: Tensor) -> list[bool] | None:
        sizes.append(len(latents))
        return {1: [True, False, True], 2: [False, True]}.get(step)

    clips = video(requests, images, drop)
    assert sizes == [3, 2, 1]
    assert clips[:2] == [None, None]
    assert np.abs(clips[2].astype(int) - video([requests[2]], [images[2]])[0]).max() <= 1


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_dropped_first_frames_leave_the_batch_at_once(first: FirstFramePipeline, guidance: float) -> None:
    requests = [request(PROMPTS[i], seed=i, first_frame_guidance=guidance) for i in range(3)]
    sizes = []

    def drop(step: int, total: int, latents: Tensor) -> list[bool] | None:
        sizes.append(len(latents))
        return {1: [False, True, True], 2: [True, False]}.get(step)

    images = first(requests, drop)
    assert sizes == [3, 2, 1]
    assert images[0] is None
    assert images[2] is None
    assert np.abs(images[1].astype(int) - first([requests[1]])[0]).max() <= 1


@pytest.mark.parametrize("stage", ["first", "video"])
def test_dropping_all_cancels_within_a_step(
    stage: str, first: FirstFramePipeline, video: VideoPipeline
) -> None:
    steps = []

    def drop(step: int, total: int, latents: Tensor) -> list[bool]:
        steps.append(step)
        return [False]

    with pytest.raises(Cancelled):
        first([request()], drop) if stage == "first" else video([request()], [image()], drop)
    assert steps == [1]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_another_batch_may_run_between_two_steps(video: VideoPipeline, sampler: str) -> None:
    """The service pauses a long clip for a short one: neither may change."""
    long, short = request(PROMPTS[0], sampler=sampler), request(PROMPTS[3], 2, "rain", frames=3, steps=2)
    between = []

    def on_step(step: int, total: int, latents: Tensor) -> None:
        if step == 2:
            between.append(video([short], [image(1)])[0])

    (paused,) = video([long], [image()], on_step)
    np.testing.assert_array_equal(paused, video([long], [image()])[0])
    np.testing.assert_array_equal(between[0], video([short], [image(1)])[0])


def test_what_can_share_a_batch() -> None:
    one = request()
    other = request("rain falls", seed=9, style="cartoon", guidance=7.0, noise_mix=0.5, first_frame_steps=9)
    assert VideoPipeline.can_share_batch(one, other)
    assert not FirstFramePipeline.can_share_batch(one, other)
    assert FirstFramePipeline.can_share_batch(one, request(steps=9, category="rain", frames=9))
    for options in (
        {"steps": 4},
        {"frames": 5},
        {"height": 40},
        {"sampler": "dpm++"},
        {"corrections": "lamp"},
        {"guidance": 1.0},
        {"category": "rain"},
    ):
        assert not VideoPipeline.can_share_batch(one, request(**options)), options


def test_mixed_batches_are_refused(video: VideoPipeline, first: FirstFramePipeline) -> None:
    with pytest.raises(ValueError, match="can_share_batch"):
        video([request(), request(steps=9)], [image(), image()])
    with pytest.raises(ValueError, match="can_share_batch"):
        first([request(), request(first_frame_steps=9)])
    with pytest.raises(ValueError, match="2 requests came with 1 first frames"):
        video([request(), request()], [image()])
    with pytest.raises(ValueError, match="no requests"):
        first([])


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"category": "dragon"}, "category", "known: waterfall"),
        ({"style": "baroque"}, "style", "known: realistic"),
        ({"prompt": "horse " * 60}, "prompt", "63 tokens (style included), the text encoder reads 46"),
        ({"negative_prompt": "horse " * 47}, "negative_prompt", "47 tokens"),
    ],
)
@pytest.mark.parametrize("stage", ["first", "video"])
def test_bad_requests(
    stage: str, changes: dict, field: str, text: str, first: FirstFramePipeline, video: VideoPipeline
) -> None:
    bad = dataclasses.replace(request(), **changes)
    with pytest.raises(InvalidRequest) as error:
        first([bad]) if stage == "first" else video([bad], [image()])
    assert error.value.field == field
    assert text in error.value.message


def test_the_longest_prompt_fits(video: VideoPipeline) -> None:
    video.check_inputs([request("horse " * 43)], [image()])


@pytest.mark.parametrize("bad", [None, image().astype(np.float32), image()[..., :1]])
def test_bad_first_frame(video: VideoPipeline, bad: object) -> None:
    with pytest.raises(InvalidRequest, match="first_frame"):
        video([request()], [bad])  # type: ignore[list-item]


def test_only_chosen_categories_are_loaded(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))
    video = VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["rain"])
    with pytest.raises(InvalidRequest, match="loaded here: rain"):
        video([request()], [image()])


def test_categories_share_what_they_do_not_change(video: VideoPipeline, family: Path) -> None:
    base, horse = video.unets["smile"], video.unets["horse"]
    tuned = load_tensors(family / "categories/horse.safetensors")
    assert tuned
    for (name, ours), theirs in zip(horse.named_parameters(), base.parameters(), strict=True):
        if name in tuned:
            assert torch.equal(ours, tuned[name])
            assert not torch.equal(ours, theirs)
        else:
            assert ours.data_ptr() == theirs.data_ptr()


def test_missing_category_weights_are_warned_of(
    family: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))
    with caplog.at_level(logging.WARNING, "huvidpo"):
        VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["smile", "horse"])
    assert [record.getMessage() for record in caplog.records if "no weights" in record.getMessage()] == [
        f"no weights at {family / 'categories/smile.safetensors'}: the base model is used"
    ]


def test_a_call_changes_no_shared_component(first: FirstFramePipeline, video: VideoPipeline) -> None:
    modules = [first.pipe.unet, first.pipe.vae, first.pipe.text_encoder, video.vae, *video.unets.values()]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    scheduler, config = dict(vars(first.pipe.scheduler)), dict(video.scheduler_config)
    one = request(corrections="lamp")
    video([one], first([one]))
    for module, old in zip(modules, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())
    assert vars(first.pipe.scheduler) == scheduler
    assert video.scheduler_config == config


def test_epsilon_family_with_an_euler_first_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SD 1.4's and SDXL's own schedules."""
    family = build_random_family(tmp_path, zero_snr=False)
    monkeypatch.setenv("HUVIDPO_CATALOG", str(family / "catalog"))
    first, video = (
        FirstFramePipeline.from_catalog(DEFAULT_MODEL),
        VideoPipeline.from_catalog(DEFAULT_MODEL, categories=["horse"]),
    )
    requests = [request(seed=i, corrections="lamp") for i in range(2)]
    together = first_latents_of(first, requests)
    assert_close(together, [first_latents_of(first, [one])[0] for one in requests])
    for sampler in ("ddim", "dpm++"):
        clip = video([request(sampler=sampler, corrections="lamp")], [image()])[0]
        assert clip.shape == (4, SIZE, SIZE, 3)


def test_dpo_unet_replaces_the_first_frame_pipelines(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = UNet2DConditionModel.from_pretrained(family / "first_frame/unet")
    with torch.no_grad():
        unet.conv_out.bias += 1
    unet.save_pretrained(tmp_path / "dpo/unet")
    toml = (family / "catalog/random.toml").read_text()
    extra = f'first_frame_unet = {{ path = "{tmp_path}/dpo", subfolder = "unet" }}\n[models.tiny.video]'
    (tmp_path / "random.toml").write_text(toml.replace("[models.tiny.video]", extra))
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path))
    first = FirstFramePipeline.from_catalog(DEFAULT_MODEL)
    assert torch.equal(first.pipe.unet.conv_out.bias, unet.conv_out.bias)


def test_float16_files_run_in_float32_on_a_cpu(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights ship as float16."""
    copy = shutil.copytree(family, tmp_path / "half")
    for path in copy.rglob("*.safetensors"):
        half = {name: x.half() if x.is_floating_point() else x for name, x in load_tensors(path).items()}
        save_tensors(path, half, read_metadata(path))
    toml = (copy / "catalog/random.toml").read_text()
    (copy / "catalog/random.toml").write_text(toml.replace(family.as_posix(), copy.as_posix()))
    monkeypatch.setenv("HUVIDPO_CATALOG", str(copy / "catalog"))
    first, video = (
        FirstFramePipeline.from_catalog(DEFAULT_MODEL, device="cpu"),
        VideoPipeline.from_catalog(DEFAULT_MODEL),
    )
    pipe = first.pipe
    modules = [pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, video.vae, video.text_encoder]
    for module in [*modules, *video.unets.values()]:
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert video([request()], first([request()]))[0].shape == (4, SIZE, SIZE, 3)


def test_missing_model_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Path) -> None:
    toml = (family / "catalog/random.toml").read_text()
    (tmp_path / "random.toml").write_text(toml.replace(f"{family.as_posix()}/video", f"{tmp_path}/nowhere"))
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path))
    for pipeline in (FirstFramePipeline, VideoPipeline):
        with pytest.raises(
            CheckpointError, match=r"video_unet is missing, there is no folder .*nowhere/unet"
        ):
            pipeline.from_catalog(DEFAULT_MODEL)


@needs_reference
def test_lamp_checkpoints_serve_as_model_and_as_category() -> None:
    unet = load_video_unet(Component(str(reference("lamp/tiny")), "unet"), torch.float32, "first")
    base = VideoUNet.from_config(unet.config)
    category = load_category(base, reference("lamp/tiny"), "first")
    assert all(torch.equal(x, unet.state_dict()[name]) for name, x in category.state_dict().items())


def test_image_unet_is_inflated_on_load(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `sd14` names as its video UNet is Stable Diffusion's image UNet."""
    image_unet().save_pretrained(tmp_path / "sd/unet")
    toml = (family / "catalog/random.toml").read_text()
    (tmp_path / "random.toml").write_text(toml.replace(f"{family.as_posix()}/video", f"{tmp_path}/sd", 1))
    monkeypatch.setenv("HUVIDPO_CATALOG", str(tmp_path))
    unet = load_video_unet(load_catalog().model(DEFAULT_MODEL).video_unet, torch.float32)
    assert isinstance(unet, VideoUNet)
    assert not unet.conv_in.conv1d.weight.any()  # freshly inflated


@pytest.mark.parametrize("moments", [{}, {"latents_mean": [0.5] * 6, "latents_std": [2.0] * 6}])
def test_latents_are_normalised_as_the_vae_says(moments: dict) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=6,
        norm_num_groups=4,
        scaling_factor=0.5,
        **moments,
    )
    pixels = np.stack([image(i, (16, 16)) for i in range(10)])
    with torch.no_grad():
        latents = to_latents(vae, pixels)
        raw = vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
        torch.testing.assert_close(latents, (raw - 0.5) / 2 * 0.5 if moments else raw * 0.5)
        expected = ((vae.decode(raw).sample + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
        assert np.abs(from_latents(vae, latents) - expected).max() <= 1
