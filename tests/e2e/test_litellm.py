"""/v1/videos through LiteLLM, unpatched, as it speaks to vLLM. It is not in dev.txt: it brings the SDKs of a
dozen clouds, and older versions of packages that BentoML uses.
"""

import time

import pytest

from huvidpo.video import decode

litellm = pytest.importorskip("litellm", reason="LiteLLM is not installed: pip install litellm==1.110.2")


def test_create_status_and_content(server):
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
