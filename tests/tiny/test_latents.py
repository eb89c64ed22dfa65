"""What stage 1 of the tiny family learns from."""

import json
from pathlib import Path

import numpy as np

from tiny import dataset, latents, views
from tiny.autoencoder import build
from tiny.world import FRAMES, render


def test_a_clip_is_seen_as_it_is_and_in_two_other_views() -> None:
    scenes = dataset.scenes("clips", 24)
    seen = [latents.views_of(scene) for scene in scenes]
    assert {clip.shape for clip in seen} == {(3, FRAMES, 64, 64, 3)}
    whole = [render(scene, views.SHORT) for scene in scenes]
    for clip, plain in zip(seen, whole, strict=True):
        np.testing.assert_array_equal(clip[0], plain[:FRAMES])
    starts = range(views.SHORT - FRAMES + 1)
    found = {
        (flipped, start > 0)
        for clip, plain in zip(seen, whole, strict=True)
        for flipped, way in ((False, plain), (True, plain[:, :, ::-1]))
        for start in starts
        if np.array_equal(clip[1], way[start : start + FRAMES])
    }
    assert found == {(False, False), (False, True), (True, False), (True, True)}
    np.testing.assert_array_equal(latents.views_of(scenes[0]), seen[0])


def test_other_clips_are_seen_in_five_views_three_of_them_from_a_later_moment() -> None:
    scenes = dataset.scenes("clips", 32)
    seen = np.stack([latents.more_views_of(scene) for scene in scenes])
    assert seen.shape == (32, 5, FRAMES, 64, 64, 3)
    for clips, scene in zip(seen, scenes, strict=True):
        plain = render(scene, views.SHORT)
        mirrored = plain[:, :, ::-1]
        np.testing.assert_array_equal(clips[0], plain[:FRAMES])
        np.testing.assert_array_equal(clips[1], mirrored[:FRAMES])
        for clip, way in ((clips[2], plain), (clips[3], mirrored)):
            starts = range(1, views.SHORT - FRAMES + 1)
            assert any(np.array_equal(clip, way[start : start + FRAMES]) for start in starts)
        assert not any(np.array_equal(clips[4], clip) for clip in clips[:4])
    np.testing.assert_array_equal(latents.more_views_of(scenes[0]), seen[0])


def test_a_store_of_other_clips_is_not_kept(tmp_path: Path) -> None:
    """Else its captions and latents are of different clips."""
    vae = build().eval()
    scenes = dataset.scenes("clips", 3)
    clips = np.stack([render(scene) for scene in scenes])
    latents.write_store(tmp_path, clips, scenes, vae)
    store = tmp_path / "latents.npy"
    first = store.stat().st_mtime_ns
    latents.write_store(tmp_path, clips, scenes, vae)
    assert store.stat().st_mtime_ns == first, "the same is encoded once"
    latents.write_store(tmp_path, clips[:2], scenes[:2], vae)
    assert len(np.load(store)) == len(json.loads((tmp_path / "captions.json").read_text())) == 2
    (tmp_path / "captions.json").unlink()
    latents.write_store(tmp_path, clips, scenes, vae)
    assert len(np.load(store)) == 3, "nobody knows what the old latents were of"
