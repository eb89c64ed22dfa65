"""/v1/videos through LiteLLM, unpatched, as it speaks to vLLM."""

import time

import pytest

from huvidpo.video import decode


@pytest.fixture
def litellm(monkeypatch):
    """Imported for this test alone: it takes seconds, in every process that does."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches that from GitHub
    import litellm

    return litellm


@pytest.mark.filterwarnings("ignore")  # pydantic's and asyncio's, of its own classes
def test_create_status_and_content(server, litellm):
    where = {"api_base": f"{server.url}/v1", "api_key": "none"}
    extra = {"num_inference_steps": 2, "num_frames": 4, "seed": 5}
    job = litellm.video_generation(
        model="hosted_vllm/tiny", prompt="a white horse runs", extra_body=extra, **where
    )
    where |= {"video_id": job.id, "custom_llm_provider": "hosted_vllm"}
    deadline = time.monotonic() + 120
    while litellm.video_status(**where).status != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert decode(litellm.video_content(**where))[0].shape == (4, 32, 32, 3)
