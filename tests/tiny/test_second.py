"""The second generation of the tiny family: its world, its words, its stages at a few steps."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny.second import data, networks, stages, words
from tiny.second.common import CHANNELS, CONTEXT, SIDE, SIZE, Workshop
from tiny.second.world import (
    CAMERAS,
    CATEGORIES,
    PLACES,
    STILL,
    Scene,
    random_scene,
    random_scenes,
    render,
    render_with_subject,
    view_of,
)
from training.loop import CHECKPOINT

SCENE = Scene("guitar", "realistic", "sea", "red", STILL, 5)


@pytest.mark.parametrize("category", CATEGORIES)
def test_clips_repeat_move_on_and_never_stop(category: str) -> None:
    scene = random_scene(np.random.default_rng(4), category, "cartoon")
    scene = dataclasses.replace(scene, camera=STILL)
    clip, subject = render_with_subject(scene, 48)
    assert clip.shape == (48, 64, 64, 3)
    np.testing.assert_array_equal(clip[:2], render(scene, 2))
    assert subject[0].max() > 200, "the subject is not in the first frame"
    changes = np.abs(np.diff(clip.astype(int), axis=0)).mean((1, 2, 3))
    assert changes[24:].mean() > 0.8 * changes[:24].mean() > 0


def test_a_view_turns_moves_and_starts_a_clip_elsewhere() -> None:
    view = dataclasses.replace(view_of(SCENE), mirror=False)
    clip = render(SCENE, 8, view=view)
    turned = render(SCENE, 8, view=dataclasses.replace(view, mirror=True))
    np.testing.assert_array_equal(turned, clip[:, :, ::-1])
    later = render(SCENE, 3, view=dataclasses.replace(view, phase=view.phase + 5))
    np.testing.assert_array_equal(later, clip[5:])
    still, moved = (
        render_with_subject(SCENE, 1, view=dataclasses.replace(view, right=x))[1][0] for x in (0.0, 0.125)
    )
    np.testing.assert_array_equal(moved[:, 16:], still[:, 8:-8])


@pytest.mark.parametrize("camera", CAMERAS[1:])
def test_the_camera_moves_what_stands_still(camera: str) -> None:
    picture = dataclasses.replace(SCENE, category=STILL, camera=STILL)
    assert not np.ptp(render(picture, 3), axis=0).any()
    assert np.ptp(render(dataclasses.replace(picture, camera=camera), 9), axis=0).any()
    # a mirrored scene pans to the same side
    for mirror in (False, True):
        scene = dataclasses.replace(SCENE, category="birds", camera="right")
        clip = render(scene, 22, view=dataclasses.replace(view_of(scene), mirror=mirror))
        sand = clip[:, 50:].astype(int)  # the ground goes left by 4 pixels in 21 frames
        there, elsewhere = (
            np.abs(sand[21, :, 8:-8] - np.roll(sand[0], -x, 1)[:, 8:-8]).mean() for x in (4, -4)
        )
        assert there < elsewhere


def test_a_scene_has_a_size_of_pixels() -> None:
    small, large = render(SCENE, 1)[0], render(SCENE, 1, 128)[0]
    shrunk = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 3


def test_captions() -> None:
    scene = Scene("horse", "pixel-art", "mars", "orange", "left", 0)
    assert words.plain(scene) == "an orange horse runs on Mars, the camera pans left, pixel art style"
    rng = np.random.default_rng(0)
    drawn = [words.caption(scene, rng) for _ in range(200)]
    assert len(set(drawn)) > 190
    clean = [text for text in drawn if re.search("left", text, re.I)]
    assert len(clean) > 180, "but for typos, every caption says how the camera moves"
    bare = {
        words.caption(dataclasses.replace(scene, camera=STILL), rng, drop=1.0).lower() for _ in range(200)
    }
    assert not any("orange" in text or "mars" in text for text in bare)
    kept_aside = {words.held_out(dataclasses.replace(scene, camera=STILL), rng) for _ in range(20)}
    assert all(any(noun in text for noun in ("pony", "stallion")) for text in kept_aside)


def test_held_out_sentences_are_not_trained_on() -> None:
    for category, sentences in words.HELD_OUT.items():
        assert not set(sentences) & set(words.SENTENCES[category])


def test_every_language_and_table_is_whole() -> None:
    for language in words.LANGUAGES.values():
        assert set(language.sentences) == set(CATEGORIES)
        assert set(language.places) == set(PLACES)
    assert set(words.NOUNS) == set(words.SENTENCES) == {*CATEGORIES, STILL}
    assert set(words.PLACE_TAGS) == set(words.PLACE_WORDS) == set(PLACES)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """With 24 stills, 4 encoded clips, and a VAE and text encoder of two steps."""
    shop = Workshop(tmp_path_factory.mktemp("family"))
    data.write_stills(shop, 24)
    few = {
        name: dataclasses.replace(recipe, steps=2, batch_size=4, sample_every=0)
        for name, recipe in stages.recipes(False).items()
    }
    stages.train_clip(shop, few["clip"])
    stages.train_vae(shop, few["vae"])
    vae = stages.load_vae(shop)
    data.write_still_latents(shop, vae)
    data.write_clip_latents(shop, vae, 4)
    return shop


def test_stages_leave_a_family(shop: Workshop) -> None:
    assert (shop.root / "vae" / CHECKPOINT).exists()
    latents = np.load(shop.data / "stills_latents.npy")
    assert latents.shape == (24, CHANNELS, SIDE, SIDE)
    assert abs(float(latents.astype(np.float32).std()) - 1) < 0.2
    assert data.ClipLatents(shop).window(3, 40, 8).shape == (CHANNELS, 8, SIDE, SIDE)


def test_a_text_of_77_tokens_is_read(shop: Workshop) -> None:
    towers = stages.TextTower(shop)
    hidden, pooled, last = towers(["a horse " * 60, ""])
    assert hidden.shape == (2, CONTEXT, 256)
    assert pooled.shape == (2, 128)
    assert last.shape == (2, CONTEXT, 128)
    lengths = [len(towers.tokenizer(words.caption(s, np.random.default_rng(i))).input_ids)
               for i, s in enumerate(random_scenes(300, 1))]  # fmt: skip
    assert np.quantile(lengths, 0.99) <= CONTEXT


def test_the_video_base_learns_from_windows_of_any_length(shop: Workshop) -> None:
    unet, held = networks.build_video(), data.scenes("held_out")[:1]
    truths = np.stack([render(s, 16, SIZE) for s in held])
    task = stages.Continuing(
        shop, 1 * 4, data.ClipLatents(shop), stages.TextTower(shop), stages.load_vae(shop), unet,
        stages.scheduler(), (truths, held),
    )  # fmt: skip
    loss, _ = task.loss(unet, 0, torch.Generator().manual_seed(0))
    again, _ = task.loss(unet, 0, torch.Generator().manual_seed(0))
    assert loss == again
    loss.backward()
    assert all(p.grad is not None for name, p in unet.named_parameters() if "conv1d" in name)
    clips = task.continued(unet.eval(), truths[:, 0], ["a horse runs"], 3)
    assert clips.shape == (1, 3, SIZE, SIZE, 3)


def test_training_the_first_frame_writes_a_pipeline(shop: Workshop, tmp_path: Path) -> None:
    recipe = dataclasses.replace(stages.recipes(False)["first_frame"], steps=2, batch_size=4, sample_every=0)
    stages.train_first_frame(shop, recipe)
    assert (shop.first_frame / "model_index.json").exists()
