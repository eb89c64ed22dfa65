"""C2PA manifests: signed by a certificate of our own, read back, changed, taken away; and watermarks."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from certificates import write_certificates

from huvidpo.catalog import DEFAULT_MODEL, load_catalog
from huvidpo.config import ClipRequest
from huvidpo.errors import InvalidRequest
from huvidpo.video import decode, encode
from service.generation import Generation
from service.lineage import weights_of
from service.marks import Marks, marks_of, verify, watermark_of
from service.runners import encode_clip
from service.schemas import GenerateRequest, RunnerJob
from service.settings import Settings

CLIP = ClipRequest("a secret horse", "horse", seed=7, style="cartoon", preference_strength=0.5)

JOB = {
    "prompt": "a horse", "category": "horse", "style": None, "seed": 1, "negative_prompt": None,
    "options": {"fps": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    folder = tmp_path_factory.mktemp("certificates")
    return Settings(**write_certificates(folder), data=str(folder))


@pytest.fixture(scope="module")
def marks(settings) -> Marks:
    return marks_of(settings, load_catalog())


def clip(format="mp4") -> bytes:
    return encode(np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8), 8, format)


@pytest.mark.parametrize(("format", "media_type"), [
    ("mp4", "video/mp4"), ("gif", "image/gif"), ("webp", "image/webp"),
])  # fmt: skip
def test_a_signed_clip_says_what_made_it(settings, marks, format, media_type):
    signed = marks.mark(clip(format), media_type, CLIP)
    found = verify(signed, settings)
    assert (found["state"], found["made_by_model"]) == ("trusted", True)
    assert found["signer"] == {"organisation": "Tests of HuViDPO", "name": "signer"}
    lineage = found["lineage"]
    assert (lineage["model"], lineage["category"], lineage["style"], lineage["seed"]) == (
        DEFAULT_MODEL, "horse", "cartoon", 7,
    )  # fmt: skip
    assert lineage["preference_strength"] == 0.5
    assert lineage["weights"] == weights_of(load_catalog(), DEFAULT_MODEL, "horse")["sha256"]
    signed = marks.mark(clip(format), media_type, CLIP, "of the weights that ran")
    assert verify(signed, settings)["lineage"]["weights"] == "of the weights that ran"
    assert b"secret" not in signed  # the prompt is nobody else's business
    assert verify(signed, Settings(watermark="off"))["state"] == "valid"  # whoever signed it


def test_the_pictures_stay_as_they_were(marks):
    plain = clip()
    signed = marks.mark(plain, "video/mp4", CLIP)
    assert np.array_equal(decode(signed)[0], decode(plain)[0])
    assert len(signed) - len(plain) < 10_000


def test_what_is_changed_or_anothers_is_not_believed(settings, marks, tmp_path):
    signed = bytearray(marks.mark(clip(), "video/mp4", CLIP))
    signed[-20] ^= 1
    assert verify(bytes(signed), settings) == {
        "object": "provenance", "state": "invalid", "signer": None, "made_by_model": False, "lineage": None,
        "watermark": None,
    }  # fmt: skip
    assert verify(clip(), settings)["state"] == "none"
    stranger = Marks(Settings(**write_certificates(tmp_path)), load_catalog())
    assert verify(stranger.mark(clip(), "video/mp4", CLIP), settings)["state"] != "trusted"
    for nothing in (b"", b"no clip", b"\x89PNG"):
        with pytest.raises(InvalidRequest, match="file: expected an mp4"):
            verify(nothing, settings)


def test_a_certificate_that_cannot_sign_is_refused_at_the_start(settings, tmp_path):
    expired = Settings(**write_certificates(tmp_path, days=0.5))
    other = Settings(c2pa_certificate=settings.c2pa_certificate, c2pa_key=expired.c2pa_key)
    for wrong, says in [
        (
            Settings(c2pa_certificate="/nowhere.pem", c2pa_key=settings.c2pa_key),
            "C2PA_CERTIFICATE: '/nowhere",
        ),
        (Settings(c2pa_certificate=settings.c2pa_certificate), "HUVIDPO_C2PA_KEY: '' cannot be read"),
        (Settings(c2pa_certificate=__file__, c2pa_key=settings.c2pa_key), "cannot sign"),
        (expired, "cannot sign"),
        (other, "cannot sign"),
    ]:
        with pytest.raises(ValueError, match=says):
            marks_of(wrong, load_catalog())
    assert marks_of(Settings(), load_catalog()) is None


def test_a_clip_that_cannot_be_signed_is_not_given_out():
    async def runner(job):
        yield {"event": "done", "data": b"x", "queued": 0.0, "seconds": 0.0, "encode": 0.0, "backend": "none"}

    def expired(data, media_type, clip, weights):
        raise RuntimeError("the certificate has expired")

    async def main():
        core = Generation(Settings(), load_catalog(), runner, runner, expired)
        request = GenerateRequest(prompt="a horse", category="horse", style="cartoon")
        return [event async for event in core.generate(request)]

    with pytest.raises(RuntimeError, match="expired"):
        asyncio.run(main())


def test_a_clip_that_was_encoded_anew_is_known_by_its_watermark(settings):
    id = "video_0123456789abcdef01234567" + "89abcdef"
    signs = watermark_of(settings)(id)
    waves = np.random.default_rng(0).normal(size=(2, 320, 320, 3)).cumsum(1).cumsum(2)
    frames = (128 + 40 * waves / waves.std()).clip(0, 255).astype(np.uint8)
    clip = encode_clip(RunnerJob(**JOB, watermark=signs), frames)
    assert clip != encode_clip(RunnerJob(**JOB), frames) == encode(frames, 8)
    found = verify(clip, settings)
    assert (found["state"], found["watermark"]) == ("none", {"id": "0123456789abcdef01234567"})
    assert watermark_of(settings)(id) == signs  # the key made at the first time was kept
    assert Path(settings.data, "watermark.key").stat().st_mode & 0o077 == 0


def test_marks_that_have_to_be_are_or_there_is_no_clip(tmp_path):
    required = Settings(watermark="required", data=str(tmp_path))
    core = Generation(required, load_catalog(), None, None, watermark=watermark_of(required))

    async def plan():
        core.plan(GenerateRequest(prompt="a horse", category="horse"))

    with pytest.raises(InvalidRequest, match="64 x 64 pixels of its model are too few for a mark"):
        asyncio.run(plan())
    assert watermark_of(Settings(watermark="off")) is None
    (tmp_path / "short").write_bytes(b"short")
    with pytest.raises(ValueError, match="HUVIDPO_WATERMARK_KEY: got 5 bytes, expected 16 or more"):
        watermark_of(Settings(watermark_key=str(tmp_path / "short")))
    with pytest.raises(ValueError, match="HUVIDPO_WATERMARK: got 'on', allowed auto, required, off"):
        Settings(watermark="on")
