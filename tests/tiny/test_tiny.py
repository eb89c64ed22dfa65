"""The tiny family's world and trainers, at a few steps."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from huvidpo.hardware import prepare_to_train
from tiny import autoencoder, clip, common, dataset, decoder, first_frame, views
from tiny.autoencoder import Reconstruction, build, fold_normalisation, mean_psnr
from tiny.world import (
    CATEGORIES,
    COLOURS,
    PLACES,
    STYLES,
    Scene,
    caption,
    random_scene,
    render,
)
from training.loop import CHECKPOINT, STOPPED


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("category", CATEGORIES)
def test_clips_move_and_repeat(category: str, style: str) -> None:
    scene = random_scene(np.random.default_rng(0), category, style)
    clip_ = render(scene)
    assert clip_.shape == (16, 64, 64, 3)
    assert clip_.dtype == np.uint8
    np.testing.assert_array_equal(clip_, render(scene))
    assert np.abs(np.diff(clip_.astype(int), axis=0)).mean() > 1, "the clip stands still"


def test_a_scene_shows_its_style_and_colour() -> None:
    scene = Scene("helicopter", "pixel-art", "sea", "red", 1)
    blocks = render(scene, 1)[0].reshape(32, 2, 32, 2, 3)
    assert (blocks == blocks[:, :1, :, :1]).all(), "pixel art is made of 2 x 2 blocks"
    blue = render(dataclasses.replace(scene, colour="blue"), 1)[0].astype(int)
    assert np.abs(blue - render(scene, 1)[0]).max() > 100


def test_captions_name_the_scene() -> None:
    assert (
        caption(Scene("horse", "pixel-art", "mars", "white", 0))
        == "a white horse runs on Mars, pixel art style"
    )
    rng = np.random.default_rng(0)
    words = [caption(Scene("birds", "cartoon", "pink", "blue", 0), rng, drop=0.5) for _ in range(64)]
    assert {True, False} == {"blue" in w for w in words} == {"cartoon" in w for w in words}


def test_every_word_is_one_token_and_any_text_has_tokens() -> None:
    tokenizer = clip.build_tokenizer()
    places = " ".join(phrase for place in PLACES.values() for phrase in place.phrases)
    for word in f"{places} {' '.join(COLOURS)} pixel art claymation realistic cartoon style".split():
        assert tokenizer.tokenize(word) == [word.lower() + "</w>"]
    ids = tokenizer("naïve 猫 🎆").input_ids
    assert ids.count(tokenizer.eos_token_id) == 1, "an unknown character would end the text early"


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """128 stills and 128 short clips, with every folder of the trainers below `tmp_path`."""
    monkeypatch.setattr(dataset, "FRAMES", 2)
    for kind, count, frames in (("stills", 128, 1), ("clips", 64, 2), ("held_out", 8, 2)):
        dataset.write_split(tmp_path, kind, count, frames)
    for module in (autoencoder, clip, first_frame, common):
        for name in ("DATA", "RUNS", "FAMILY"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path)
    monkeypatch.setattr(autoencoder, "FOLDER", tmp_path / "first_frame" / "vae")
    monkeypatch.setattr(first_frame, "FOLDER", tmp_path / "first_frame")
    return tmp_path


def test_vae_learns_and_its_latents_are_normalised(small_data: Path) -> None:
    torch.manual_seed(0)
    clips, scenes = dataset.load_split(small_data, "clips")
    assert len(scenes) == len(clips) == 64
    vae = prepare_to_train(build())
    pictures = common.to_unit(torch.from_numpy(clips[:8, 0].copy()))
    task = Reconstruction(clips, pictures)
    before = task.evaluate(vae.eval())["psnr_db"]
    recipe = dataclasses.replace(autoencoder.RECIPE, steps=12, warmup_steps=2, sample_every=0, save_every=6)
    common.fit("vae", vae, task, recipe)
    assert task.evaluate(vae)["psnr_db"] > before
    assert (small_data / "vae" / CHECKPOINT).exists()

    with torch.no_grad():
        out = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        fold_normalisation(vae, pictures)
        posterior = vae.encode(pictures).latent_dist
        torch.testing.assert_close(posterior.mean.mean((0, 2, 3)), torch.zeros(12), atol=1e-4, rtol=0)
        torch.testing.assert_close(posterior.mean.std((0, 2, 3)), torch.ones(12), atol=1e-4, rtol=0)
        torch.testing.assert_close(vae.decode(posterior.mean).sample, out, atol=1e-3, rtol=0)


def test_trainer_that_is_stopped_is_no_success(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next step of tiny.build would begin without its weights."""
    plain = Reconstruction.loss

    def loss(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *arguments)

    monkeypatch.setattr(Reconstruction, "loss", loss)
    monkeypatch.setattr("sys.argv", ["x", "--steps", "100", "--threads", "1"])
    with pytest.raises(SystemExit) as left:
        autoencoder.main()
    assert left.value.code == STOPPED
    assert (small_data / "vae" / CHECKPOINT).exists()
    assert not (small_data / "first_frame" / "vae").exists()


def test_decoder_learns_and_latents_stay(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_data / "first_frame" / "vae"
    for name, value in {"FOLDER": folder, "DATA": small_data, "CLIPS": 4, "SCENES": 1, "PICTURES": 2}.items():
        monkeypatch.setattr(decoder, name, value)
    monkeypatch.setattr(decoder, "RECIPE", dataclasses.replace(decoder.RECIPE, warmup_steps=2))
    torch.manual_seed(0)
    build().half().save_pretrained(folder)
    before = AutoencoderKL.from_pretrained(folder)
    test = decoder.held_out()
    assert set(test) == {*views.VIEWS, "second world"}

    monkeypatch.setattr("sys.argv", ["x", "--steps", "12", "--threads", "1"])
    decoder.main()
    after = AutoencoderKL.from_pretrained(folder)
    for name, tensor in before.state_dict().items():
        if not name.startswith("decoder."):
            torch.testing.assert_close(after.state_dict()[name], tensor, atol=0, rtol=0)
    for pictures in test.values():
        assert mean_psnr(after, pictures) > mean_psnr(before, pictures)


def test_pictures_are_rendered_once(small_data: Path) -> None:
    path = small_data / "seen" / "anyhow.npy"
    found = decoder.pictures(path, 2)
    np.testing.assert_array_equal(found[decoder.FRAMES :], decoder.frames_of(1))
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(decoder.pictures(path, 2), found)
    assert path.stat().st_mtime_ns == written
    assert len(decoder.pictures(path, 3)) == 3 * decoder.FRAMES, "a store of another count is made anew"


def test_clip_and_first_frame_train_and_write_a_pipeline(
    small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "BATCH", 16)
    monkeypatch.setattr(first_frame, "BATCH", 8)
    monkeypatch.setattr(first_frame, "SAMPLE_STEPS", 2)
    monkeypatch.setattr("sys.argv", ["x", "--steps", "2", "--threads", "1"])
    clip.main()
    build().save_pretrained(small_data / "first_frame" / "vae")
    latents = np.random.default_rng(0).standard_normal((128, 12, 16, 16)).astype(np.float16)
    np.save(small_data / "stills_latents.npy", latents)
    monkeypatch.setattr("sys.argv", ["x", "--steps", "1", "--threads", "1"])
    first_frame.main()
    index = json.loads((small_data / "first_frame" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is False
    towers = first_frame.TextTowers()
    hidden, pooled = towers(["a white horse runs", ""])
    assert hidden.shape == (2, 48, 256)
    assert pooled.shape == (2, 128)
    assert isinstance(AutoencoderKL.from_pretrained(small_data / "first_frame" / "vae"), AutoencoderKL)


def test_the_file_of_prompts_is_what_the_world_says():
    from tiny.prompts import FILE, text

    assert FILE.read_text(encoding="utf-8") == text()


def test_the_file_of_words_is_what_the_captions_say():
    from huvidpo.words import words_of
    from tiny.prompts import FILE as PROMPTS
    from tiny.words import FILE, other_words, text
    from tiny.world import caption, random_scene

    assert FILE.read_text(encoding="utf-8") == text()
    rng = np.random.default_rng(0)
    captions = [caption(random_scene(rng), rng, 0.4) for _ in range(2000)]
    prompts = [line.partition(": ")[2] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    others = [part.format("", c="", p="") for part in other_words()]
    assert sorted(words_of("\n".join(captions + prompts + others))) == text().split()
