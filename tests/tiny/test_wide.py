"""Clips seen anyhow, and the training of the tiny video base on them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from huvidpo.unet import VideoUNet
from tiny import dataset, views, wide, world
from tiny.judge import views as judged
from training.loop import TrainingError, learning_rate

CPU = torch.device("cpu")
RECIPE = wide.WideRecipe(steps=4, batch_size=4, warmup_steps=1, every_long=2, first=4)


def test_a_clip_follows_from_its_number_and_all_kinds_come() -> None:
    clips = [views.film(number) for number in range(20)]
    assert [len(set(clip.captions)) >= 1 and len(clip.captions) for clip in clips] == [views.WORDINGS] * 20
    assert {len(clip.pixels) for clip in clips} == {views.SHORT, views.LONG}
    again = views.film(13)
    assert np.array_equal(again.pixels, clips[13].pixels)
    assert again.captions == clips[13].captions
    assert not np.array_equal(clips[0].pixels, clips[8].pixels), "two scenes of one category"


def test_moved_clips_show_the_edge_or_the_other_side() -> None:
    clip = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    right = views.moved(clip, 1, 0)
    assert np.array_equal(right[:, :, 1:], clip[:, :, :-1])
    assert np.array_equal(right[:, :, 0], clip[:, :, 0])
    up = views.moved(clip, 0, -2, "wrap")
    assert np.array_equal(up, np.roll(clip, -2, axis=1))
    assert np.array_equal(views.moved(clip, 0, 0), clip)


def test_every_view_is_another_and_keeps_its_size() -> None:
    scenes = [world.Scene("horse", "cartoon", "mars", "white", 5)]
    seen = {name: views.held_out(scenes, name) for name in views.VIEWS}
    assert {clip.shape for clip in seen.values()} == {(1, 16, 64, 64, 3)}
    plain = world.render(scenes[0], 24)
    assert np.array_equal(seen["later"][0], plain[5:21])
    assert np.array_equal(seen["mirrored"][0], plain[:16, :, ::-1])
    rng = np.random.default_rng(0)
    anyhow = [views.seen_anyhow(plain, rng) for _ in range(20)]
    assert {clip.shape for clip in anyhow} == {plain.shape}
    assert all(not np.array_equal(clip, plain) for clip in anyhow[:8])


def test_an_archive_grows_and_gives_windows_of_its_clips() -> None:
    archive = wide.Archive(views.SHORT, CPU)
    for start in (0, 700):  # beyond what it has room for at first
        clip = torch.arange(start, start + 700.0)[:, None, None, None, None].expand(-1, 12, -1, 16, 16)
        along = clip.expand(-1, -1, views.SHORT, -1, -1) + torch.arange(views.SHORT)[:, None, None] / 100
        archive.add(along.half(), clip[:, :2, 0, :1, :1].expand(-1, -1, 77, 128).half())
    assert archive.count == 1400
    latents, texts = archive.draw(200, 16, np.random.default_rng(0))
    rows = texts[:, 0, 0]
    assert len(set(rows.tolist())) > 150
    starts = (latents[:, 0, 0, 0, 0] - rows)[rows < 64] * 100  # half precision holds hundredths there
    assert ((starts.round() >= 0) & (starts.round() <= 8)).all()
    small = latents[rows < 64][:, 0, :, 0, 0]
    assert torch.allclose(small.diff(dim=1), torch.tensor(0.01), atol=0.04), "frames in order"


@pytest.fixture(scope="module")
def film() -> Iterator[wide.Film]:
    """Real clips of a few scenes through a small VAE with random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=12, norm_num_groups=4,
    )  # fmt: skip
    shipped = wide.Studio.open(CPU)
    studio = wide.Studio(vae.eval(), shipped.text_encoder, shipped.tokenizer, CPU)
    with wide.Film(clips=24, cameras=1, at_once=2) as film:
        film.open(studio)
        while len(film) < 20:
            film.take(4)
        yield film


def test_what_is_filmed_is_kept_by_its_length(film: wide.Film) -> None:
    assert {frames: archive.count > 0 for frames, archive in film.archives.items()} == {24: True, 48: True}
    latents, texts = film.draw(3, 48, np.random.default_rng(0))
    assert latents.shape == (3, 12, 48, 16, 16)
    assert texts.shape == (3, 77, 128)


def network() -> VideoUNet:
    torch.manual_seed(1)
    image = UNet2DConditionModel(
        sample_size=16, in_channels=12, out_channels=12, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, attention_head_dim=2, cross_attention_dim=128, norm_num_groups=4,
    )  # fmt: skip
    return VideoUNet.from_2d(image)


def test_a_stopped_run_goes_on_as_if_it_had_not(film: wide.Film, tmp_path) -> None:
    whole, halves = (wide.Trainer(network(), RECIPE, CPU) for _ in range(2))
    for step in range(4):
        whole.take_step(whole.batch(film, step), learning_rate(RECIPE, step, step / 4))
        if step < 2:
            halves.take_step(halves.batch(film, step), learning_rate(RECIPE, step, step / 4))
    halves.save(tmp_path / "run.safetensors")
    resumed = wide.Trainer(network(), RECIPE, CPU)
    resumed.load(tmp_path / "run.safetensors")
    assert resumed.step == 2
    for step in (2, 3):
        resumed.take_step(resumed.batch(film, step), learning_rate(RECIPE, step, step / 4))
    fresh = network().state_dict()
    for name, param in whole.unet.state_dict().items():
        assert torch.equal(param, resumed.unet.state_dict()[name]), name
    averages = whole.average.state_dict()
    assert all(torch.equal(averages[name], kept) for name, kept in resumed.average.state_dict().items())
    assert any(not torch.equal(averages[name], fresh[name]) for name in fresh), "it has moved"
    other = wide.Trainer(network(), wide.WideRecipe(batch_size=8), CPU)
    with pytest.raises(TrainingError, match="a run of another recipe"):
        other.load(tmp_path / "run.safetensors")


def test_a_run_ends_with_its_steps_and_learns(film: wide.Film, tmp_path) -> None:
    recipe = wide.WideRecipe(
        steps=12, batch_size=4, lr=5e-3, warmup_steps=2, every_long=100, first=4, save_every=100
    )
    trainer = wide.Trainer(network(), recipe, CPU)
    fixed = trainer.batch(film, 1_000)

    def loss() -> float:
        with torch.no_grad():
            answer = trainer.unet(fixed.noisy, fixed.timesteps, fixed.text)
        return float(wide.motion_loss(answer, fixed.target))

    before = loss()
    assert wide.run(recipe, film, trainer, tmp_path / "checkpoint.safetensors", None)
    assert trainer.step == 12
    assert loss() < 0.95 * before
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_too_few_clips_are_refused(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["tiny.wide", "--clips", "100"])
    assert wide.main() == 2
    assert "clips: got 100, expected 640 or more" in capsys.readouterr().err


def test_the_measure_tells_a_stencil_from_motion_that_is_read() -> None:
    """The changes of the scene as it is, pasted on a first frame that is seen otherwise, gain nothing."""
    scenes = [world.random_scene(np.random.default_rng(n), c) for n, c in enumerate(world.CATEGORIES)]
    plain = views.held_out(scenes, "as it is")
    for name in views.VIEWS:
        truths = views.held_out(scenes, name)
        stencils = [judged.stencil(truth, clip) for truth, clip in zip(truths, plain, strict=True)]
        gains = judged.means(stencils, truths)["gain"]
        assert gains > 20 if name == "as it is" else gains < 1, name


def test_a_guitar_looks_the_same_at_two_moments_and_goes_on_in_two_ways() -> None:
    found = judged.undecided(dataset.scenes("held_out", 16))
    assert found["categories"] == ["guitar"]
    assert found["gain_of_another"] < 0 < found["gain_of_the_mean"] < 8
