"""huvidpo.client and `python -m huvidpo --server` against the real service."""

import asyncio
import subprocess
import sys

import pytest
from PIL import Image
from ports import free_port

from huvidpo.__main__ import main
from huvidpo.client import AsyncClient, Client, ServiceError
from huvidpo.errors import InvalidRequest
from huvidpo.video import decode

FIELDS = {"num_inference_steps": 2, "num_frames": 4, "seed": 5}


def test_submit_wait_download(server, tmp_path):
    seen = []
    with Client(server.url) as client:
        job = client.submit("a white horse runs", **FIELDS)
        done = client.wait(job["id"], on_progress=lambda job: seen.append(job["progress"]))
        client.download(job["id"], tmp_path / "clip.mp4")
        client.download(job["id"], tmp_path / "clip.webp", variant="thumbnail")
        client.delete(job["id"])
        with pytest.raises(ServiceError) as gone:
            client.get(job["id"])
    assert (job["status"], done["status"]) == ("queued", "completed")
    assert seen == sorted(seen)
    assert seen[-1] == 100
    assert decode(tmp_path / "clip.mp4")[0].shape == (4, 32, 32, 3)
    assert Image.open(tmp_path / "clip.webp").size == (32, 32)
    assert (gone.value.code, gone.value.status, len(gone.value.request_id)) == ("not_found", 404, 32)


def test_the_same_for_asyncio(server, tmp_path):
    frame = tmp_path / "frame.jpg"
    Image.new("RGB", (40, 40), (0, 90, 200)).save(frame)

    async def both():
        async with AsyncClient(server.url) as client:
            jobs = await asyncio.gather(
                client.submit("rain", first_frame=frame.read_bytes(), idempotency_key="async", **FIELDS),
                client.submit("rain", first_frame=frame.read_bytes(), idempotency_key="async", **FIELDS),
            )
            assert jobs[0]["id"] == jobs[1]["id"]
            done = await client.wait(jobs[0]["id"])
            await client.download(done["id"], tmp_path / "clip.mp4")
            long = await client.submit("rain", num_inference_steps=100, num_frames=64)
            assert (await client.cancel(long["id"]))["error"]["code"] == "cancelled"
            with pytest.raises(ServiceError, match="cancelled"):
                await client.wait(long["id"])
            await client.delete(long["id"])
            return await client.get(done["id"])

    assert asyncio.run(both())["category"] == "rain"
    assert decode(tmp_path / "clip.mp4")[0].shape == (4, 32, 32, 3)


def test_errors(server):
    with Client(server.url) as client, pytest.raises(InvalidRequest, match="known: waterfall") as refused:
        client.submit("a horse", category="dance")
    assert refused.value.field == "category"
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ServiceError, match="running"):
        client.submit("a horse")


def test_the_command(server, tmp_path, capfd):
    out = tmp_path / "clip.gif"
    given = ["a white horse runs", "--server", server.url, "--out", str(out)]
    assert main([*given, "--steps", "2", "--frames", "4", "--seed", "5"]) == 0
    told = capfd.readouterr().out
    assert "seed 5" in told
    assert f"{out}: {out.stat().st_size} bytes, 4 frames at 8 per second" in told
    assert Image.open(out).format == "GIF"
    assert main([*given, "--category", "dance"]) == 2
    assert "known: waterfall" in capfd.readouterr().err


def test_the_client_loads_no_torch():
    code = "import sys, huvidpo.client; assert not {'torch', 'av', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
