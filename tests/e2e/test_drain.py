"""SIGTERM, with work in flight in both stages of a real `bentoml serve`."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

REQUESTS = 4


@pytest.fixture
def slow_catalog(random_family, tmp_path):
    """The random family, whose first frames take as many steps as would do for a good one."""
    catalog = shutil.copytree(random_family / "catalog", tmp_path / "catalog")
    file = catalog / "random.toml"
    text = file.read_text()
    assert "first_frame_steps = 3" in text
    file.write_text(text.replace("first_frame_steps = 3", "first_frame_steps = 60"))
    return catalog


def test_what_was_accepted_is_finished(start_server, slow_catalog):
    server = start_server(
        HUVIDPO_CATALOG=str(slow_catalog),
        HUVIDPO_BACKEND="torch",
        HUVIDPO_MAX_BATCH="1",
        HUVIDPO_DRAIN_SECONDS="300",
    )
    server.wait_ready()
    with ThreadPoolExecutor(REQUESTS) as pool:
        accepted = [pool.submit(server.generate, seed=i, steps=30) for i in range(REQUESTS)]
        while not server.metric("huvidpo_denoising_steps_total", stage="video"):
            time.sleep(0.02)
        first_frames = server.metric("huvidpo_batch_size_count", stage="first_frame")
        assert first_frames < REQUESTS, "no first frame is left to draw: nothing is tested"
        server.process.terminate()
        while (ready := server.client.get("/readyz")).status_code == 200:
            time.sleep(0.02)
        assert ready.json()["error"]["code"] == "not_ready"
        refused = server.generate()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        answers = [one.result() for one in accepted]
    assert [answer.status_code for answer in answers] == [200] * REQUESTS, server.tail()
    server.process.wait(60)
    with pytest.raises(httpx.ConnectError):
        server.client.get("/livez")
