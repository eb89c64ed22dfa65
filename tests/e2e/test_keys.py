"""The service with API keys, over both doors, and with a certificate that signs its clips."""

import hashlib

import grpc
import pytest
from certificates import write_certificates
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.protos import video_generation_pb2 as messages
from service.protos import video_generation_pb2_grpc as stubs

GOOD = {"prompt": "a horse", "num_inference_steps": 1, "num_frames": 2}


LIMITS = {"cat": " rate=2", "dan": " concurrency=1"}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-secret"}


@pytest.fixture(scope="module")
def keyed(start_server, random_family, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    hashes = [
        f"{name}:{hashlib.sha256(f'{name}-secret'.encode()).hexdigest()}"
        for name in ("ann", "bob", "cat", "dan")
    ]
    hashes = [line + LIMITS.get(line[:3], "") for line in hashes]
    file.write_text("\n".join(hashes))
    signs = {f"HUVIDPO_{name.upper()}": path for name, path in write_certificates(file.parent).items()}
    server = start_server(
        HUVIDPO_CATALOG=str(random_family / "catalog"),
        HUVIDPO_BACKEND="torch",
        HUVIDPO_API_KEYS=str(file),
        **signs,
    )
    server.wait_ready()
    yield server
    server.stop()


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic YQ=="}])
@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/generate_video"), ("POST", "/v1/videos"), ("GET", "/v1/videos"), ("POST", "/v1/videos/sync"),
    ("GET", "/v1/models"), ("POST", "/feedback"), ("DELETE", "/v1/videos/video_1"),
])  # fmt: skip
def test_without_a_key_there_is_no_answer(keyed, method, path, headers):
    answer = keyed.client.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (answer.json()["error"]["code"], answer.json()["error"]["type"]) == (
        "unauthenticated", "authentication_error",
    )  # fmt: skip


def test_a_job_is_seen_with_the_key_that_made_it(keyed):
    id = keyed.client.post("/v1/videos", json=GOOD, headers=bearer("ann")).json()["id"]
    assert keyed.client.get(f"/v1/videos/{id}", headers=bearer("ann")).status_code == 200
    for method, path in [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/content"),
        ("GET", "/events"),
        ("GET", "/lineage"),
        ("POST", "/cancel"),
        ("POST", "/remix"),
    ]:
        body = {"json": {"prompt": "x"}} if path == "/remix" else {}
        answer = keyed.client.request(method, f"/v1/videos/{id}{path}", headers=bearer("bob"), **body)
        assert answer.status_code == 404, (method, path)
    opinion = {"video": id, "score": 5}
    assert keyed.client.post("/feedback", json=opinion, headers=bearer("bob")).status_code == 404
    keyed.client.get(f"/v1/videos/{id}/events", headers=bearer("ann"))  # until it has ended
    said = keyed.client.post("/feedback", json=opinion | {"rater": "eve"}, headers=bearer("ann")).json()
    assert said["rater"] == "ann/eve"
    assert keyed.client.post("/feedback", json=opinion, headers=bearer("ann")).json()["rater"] == "ann"
    listed = {
        name: [one["id"] for one in keyed.client.get("/v1/videos", headers=bearer(name)).json()["data"]]
        for name in ("ann", "bob")
    }
    assert listed == {"ann": [id], "bob": []}
    with grpc.insecure_channel(f"127.0.0.1:{keyed.grpc_port}") as channel:
        get, mine = stubs.VideoGenerationStub(channel).GetJob, messages.GetJobRequest(id=id)
        assert get(mine, metadata=[*bearer("ann").items()]).id == id
        for metadata, code in [
            ([*bearer("bob").items()], grpc.StatusCode.NOT_FOUND),
            ([], grpc.StatusCode.UNAUTHENTICATED),
        ]:
            with pytest.raises(grpc.RpcError) as refused:
                get(mine, metadata=metadata)
            assert refused.value.code() == code


def test_probes_need_no_key(keyed):
    for path in ("/livez", "/readyz", "/metrics"):
        assert keyed.client.get(path).status_code == 200
    with grpc.insecure_channel(f"127.0.0.1:{keyed.grpc_port}") as channel:
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
    assert status == health_pb2.HealthCheckResponse.SERVING


def test_the_page_asks_for_a_key(keyed, browse):
    page = browse(f"{keyed.url}/")
    page.wait_for_selector("#locked[open]")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#locked[open]")
    page.fill("#key", "ann-secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#locked:not([open])", state="attached")
    page.fill("#prompt", "rain")
    page.keyboard.press("Enter")
    page.wait_for_selector("#clip:not([hidden])")
    page.click("#up")
    page.wait_for_selector('#up[aria-pressed="true"]')


def test_a_key_has_its_rate_at_every_door(keyed):
    """Two clips a minute."""
    paths = ("/v1/videos", "/generate_video", "/v1/videos/sync", "/v1/videos/video_1/remix")
    for _ in range(2):
        keyed.client.post("/v1/videos", json=GOOD, headers=bearer("cat"))
    for path in paths:
        refused = keyed.client.post(path, json=GOOD, headers=bearer("cat"))
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error"), path
        assert 1 <= int(refused.headers["retry-after"]) <= 30
    with grpc.insecure_channel(f"127.0.0.1:{keyed.grpc_port}") as channel:
        request = messages.GenerateRequest(prompt="a horse", category="horse", style="realistic")
        calls = stubs.VideoGenerationStub(channel)
        for call in (
            lambda **more: calls.CreateJob(messages.CreateJobRequest(request=request), **more),
            lambda **more: list(calls.Generate(request, **more)),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call(metadata=[*bearer("cat").items()])
            assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert keyed.client.get("/v1/videos", headers=bearer("cat")).status_code == 200  # to look is free


def test_a_key_has_as_many_clips_in_the_making_as_it_may(keyed):
    """One."""
    long = {"prompt": "rain", "num_inference_steps": 100, "num_frames": 64}
    one = bearer("dan") | {"Idempotency-Key": "one"}
    id = keyed.client.post("/v1/videos", json=long, headers=one).json()["id"]
    refused = keyed.client.post("/v1/videos", json=long, headers=bearer("dan"))
    assert refused.status_code == 429
    assert "1 clips of this key are in the making" in refused.json()["error"]["message"]
    assert keyed.client.post("/v1/videos", json=long, headers=one).json()["id"] == id  # the same job
    keyed.client.post(f"/v1/videos/{id}/cancel", headers=bearer("dan"))
    again = keyed.client.post("/v1/videos", json=long, headers=bearer("dan"))
    assert again.json()["status"] == "queued"
    keyed.client.delete(f"/v1/videos/{again.json()['id']}", headers=bearer("dan"))
    assert keyed.client.post("/v1/videos/sync", json=GOOD, headers=bearer("dan")).status_code == 200


def test_clips_are_signed_and_say_what_made_them(keyed):
    answer = keyed.client.post("/v1/videos/sync", json=GOOD | {"seed": 3}, headers=bearer("ann"))
    say = {"headers": bearer("ann")}
    found = keyed.client.post("/v1/provenance/verify", files={"file": answer.content}, **say).json()
    assert (found["state"], found["lineage"]["seed"], found["made_by_model"]) == ("trusted", 3, True)
    changed = answer.content[:-20] + bytes(20)
    found = keyed.client.post("/v1/provenance/verify", files={"file": changed}, **say).json()
    assert (found["state"], found["lineage"]) == ("invalid", None)
    wrong = keyed.client.post("/v1/provenance/verify", files={"file": b"text"}, **say)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "file")
