import asyncio
import io
import json

import numpy as np
import pytest
from PIL import Image

from huvidpo.errors import InvalidRequest
from service import hop
from service.errors import BadFields, MalformedBody
from service.images import from_png, read_first_frame, to_png
from service.schemas import GenerateRequest, RunnerJob, parse
from service.settings import Settings

GOOD = '"prompt": "a horse", "category": "horse", "style": "realistic"'


def test_defaults_leave_everything_open():
    request = parse(GenerateRequest, f"{{{GOOD}}}".encode())
    assert (request.seed, request.steps, request.first_frame, request.format) == (None, None, None, "mp4")


@pytest.mark.parametrize(
    ("extra", "field", "says"),
    [
        ('"stepz": 3', "stepz", "known: prompt, category, style"),
        ('"steps": "3"', "steps", "valid integer"),
        ('"steps": true', "steps", "valid integer"),
        ('"steps": 0', "steps", "greater than or equal to 1"),
        ('"steps": 2.5', "steps", "valid integer"),
        ('"guidance": NaN', "guidance", "finite"),
        ('"guidance": 1e400', "guidance", "finite"),
        ('"seed": -1', "seed", "greater than or equal to 0"),
        ('"seed": 4294967296', "seed", "less than or equal to 4294967295"),
        ('"format": "avi"', "format", "'mp4', 'gif' or 'webp'"),
        ('"first_frame": ["x"]', "first_frame", "string of plain base64"),
        ('"first_frame": "not base64!"', "first_frame", "not base64"),
        ('"first_frame": "/etc/passwd"', "first_frame", "not base64"),
        ('"first_frame": "http://127.0.0.1/x.png"', "first_frame", "not base64"),
    ],
)
def test_wrong_fields_are_named(extra, field, says):
    with pytest.raises(BadFields) as refused:
        parse(GenerateRequest, f"{{{GOOD}, {extra}}}".encode())
    assert refused.value.field == field
    assert says in str(refused.value)


def test_fields_may_have_diffusers_names():
    asked = {"prompt": "a horse", "category": "horse", "style": "realistic"}
    other = asked | {"num_inference_steps": 4, "guidance_scale": 2.0, "num_frames": 8}
    ours = asked | {"steps": 4, "guidance": 2.0, "frames": 8}
    by_other, by_ours = (parse(GenerateRequest, json.dumps(names).encode()) for names in (other, ours))
    assert by_other == by_ours
    with pytest.raises(BadFields, match="num_inference_steps and steps mean the same: send one"):
        parse(GenerateRequest, json.dumps(ours | {"num_inference_steps": 4}).encode())


def test_every_wrong_field_is_listed():
    with pytest.raises(BadFields) as refused:
        parse(GenerateRequest, b'{"steps": 0, "fps": 0}')
    assert {one["field"] for one in refused.value.details} == {"prompt", "category", "steps", "fps"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 100_000])
def test_what_is_not_json_is_called_so(body):
    with pytest.raises(MalformedBody, match="not valid JSON"):
        parse(GenerateRequest, body)


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"text"'])
def test_other_json_is_called_not_an_object(body):
    with pytest.raises(BadFields, match="must be a JSON object"):
        parse(GenerateRequest, body)


def test_long_names_of_callers_are_cut():
    with pytest.raises(BadFields) as refused:
        parse(GenerateRequest, f'{{{GOOD}, "{"x" * 10_000}": 1}}'.encode())
    assert len(str(refused.value)) < 500


def image_file(size=(8, 6), format="PNG", mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, 128).save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_first_frame_is_cropped_to_the_models_size(format):
    frame = from_png(read_first_frame(image_file((40, 20), format), 16, 16, 10_000))
    assert frame.shape == (16, 16, 3)
    assert frame.dtype == np.uint8


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16"])
def test_first_frame_of_any_colour_mode(mode):
    assert from_png(read_first_frame(image_file(mode=mode), 8, 8, 10_000)).shape == (8, 8, 3)


def test_first_frames_of_16_bits_and_transparent_ones_are_what_a_viewer_shows():
    def uploaded(pixels: np.ndarray) -> np.ndarray:
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, "PNG")
        return from_png(read_first_frame(target.getvalue(), 8, 8, 10_000))

    assert (uploaded(np.full((8, 8), 0x4080, np.uint16)) == 0x40).all()
    hidden = np.zeros((8, 8, 4), np.uint8)
    hidden[..., 0] = 255
    assert (uploaded(hidden) == 255).all()


def test_png_round_trip():
    frame = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(from_png(to_png(frame)), frame)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read"),
        (b"hello", "cannot be read"),
        (image_file((99, 99), "JPEG")[:400], "cannot be read"),
        (image_file((101, 100)), "at most 10000 pixels"),
        (image_file(format="GIF"), "cannot be read"),
        (b"/etc/passwd", "cannot be read"),
        (b"http://127.0.0.1/x.png", "cannot be read"),
    ],
)
def test_bad_first_frames_are_refused(data, says):
    with pytest.raises(InvalidRequest, match=says) as refused:
        read_first_frame(data, 8, 8, 10_000)
    assert refused.value.field == "first_frame"


def test_decompression_bomb_is_refused_by_its_header():
    """30000 x 30000 pixels in a file of 1 kB would take 2.7 GB."""
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    with pytest.raises(InvalidRequest, match="at most 16000000 pixels"):
        read_first_frame(bomb, 8, 8, 16_000_000)


def test_images_are_text_in_json_only():
    body = f'{{{GOOD}, "first_frame": "aGVsbG8="}}'
    request = parse(GenerateRequest, body.encode())
    assert request.first_frame == b"hello"
    assert GenerateRequest(**request.model_dump()).first_frame == b"hello"
    assert '"first_frame":"aGVsbG8="' in request.model_dump_json()
    assert GenerateRequest.model_json_schema()["properties"]["first_frame"]["anyOf"][0]["type"] == "string"


def test_jobs_and_answers_cross_the_hop():
    job = RunnerJob(
        prompt="a\nb", category="horse", style="cartoon", seed=1, negative_prompt=None, options={"steps": 2}
    )
    assert hop.unpack_job(hop.pack_job(job)) == job
    job.first_frame = b"\n\x00PNG\n"
    assert hop.unpack_job(hop.pack_job(job)) == job
    newer = hop.pack(job.model_dump(exclude={"first_frame"}) | {"sharpness": 3}, b"x")
    assert hop.unpack_job(newer).first_frame == b"x"  # of a gateway that knows more

    async def read_all():
        reader = asyncio.StreamReader()
        for message in (hop.pack({"event": "step"}), hop.pack({"event": "done"}, b"\n1\n"), hop.pack({})):
            reader.feed_data(message)
        reader.feed_eof()
        return [message async for message in hop.messages(reader)]

    assert asyncio.run(read_all()) == [{"event": "step"}, {"event": "done", "data": b"\n1\n"}, {}]


def test_settings_come_from_the_environment():
    settings = Settings.from_env(
        {"HUVIDPO_MODEL": "sd14", "HUVIDPO_MAX_BATCH": "8", "HUVIDPO_CATALOG": "ignored"}
    )
    assert (settings.model, settings.max_batch, settings.queue_size) == ("sd14", 8, Settings().queue_size)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"HUVIDPO_MAX_BATCH": "many"}, "HUVIDPO_MAX_BATCH: got 'many'"),
        ({"HUVIDPO_MAX_BATCH": "0"}, "allowed 1 to 64"),
        ({"HUVIDPO_MAX_IN_FLIGHT": "96"}, "allowed 1 to 95"),
        ({"HUVIDPO_MAX_IN_FLIGHT": "90"}, "got 90 and 8, together at most 96"),
        ({"HUVIDPO_DTYPE": "int8"}, "HUVIDPO_DTYPE: got 'int8'"),
    ],
)
def test_wrong_settings_name_the_variable(env, says):
    with pytest.raises(ValueError, match=says):
        Settings.from_env(env)
