"""/v1/videos of the real service, with OpenAI's own client."""

import base64
import io
import json
import time
from collections.abc import Iterator

import grpc
import openai
import pytest
from e2e.conftest import kill
from PIL import Image

from huvidpo.catalog import DEFAULT_MODEL
from huvidpo.video import decode
from service.protos import video_generation_pb2 as messages
from service.protos import video_generation_pb2_grpc as stubs

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
GOOD = {"prompt": "a white horse runs", "extra_body": {"num_inference_steps": 2, "num_frames": 4, "seed": 5}}


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def image(size=(60, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def done(client) -> openai.types.Video:
    return client.videos.create_and_poll(**GOOD)


def test_create_and_poll(server, client, done):
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    assert (done.model, done.size, done.seconds, done.prompt) == (
        DEFAULT_MODEL,
        "32x32",
        "0.5",
        GOOD["prompt"],
    )
    assert (done.category, done.style, done.seed) == (
        "horse",
        "realistic",
        5,
    )  # inferred; the first one; ours
    assert done.expires_at == pytest.approx(done.completed_at + 86_400, abs=1)
    data = client.videos.download_content(done.id).content
    assert decode(data)[0].shape == (4, 32, 32, 3)
    same = server.generate(prompt=GOOD["prompt"], steps=2, frames=4, seed=5)
    assert data == same.content, "another door, another clip"


def test_content_in_three_variants_and_in_parts(server, client, done):
    picture = Image.open(io.BytesIO(client.videos.download_content(done.id, variant="thumbnail").content))
    assert (picture.format, picture.size) == ("WEBP", (32, 32))
    sheet = Image.open(io.BytesIO(client.videos.download_content(done.id, variant="spritesheet").content))
    assert (sheet.format, sheet.size) == ("JPEG", (4 * 32, 32))
    whole = server.client.get(f"/v1/videos/{done.id}/content")
    assert whole.headers["content-type"] == "video/mp4"
    part = server.client.get(f"/v1/videos/{done.id}/content", headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, whole.content[4:12])


def test_list_in_pages(client, done):
    ids = [client.videos.create(**GOOD).id for _ in range(3)]
    newest = [one.id for one in client.videos.list(limit=2)]  # goes on to the last page
    assert newest[:3] == ids[::-1]
    assert newest.index(done.id) >= 3
    oldest = [one.id for one in client.videos.list(limit=2, order="asc")]
    assert oldest == newest[::-1]
    first = client.videos.list(limit=2)
    assert (len(first.data), first.has_more, first.last_id) == (2, True, ids[1])


def test_delete(client):
    id = client.videos.create_and_poll(**GOOD).id
    gone = client.videos.delete(id)
    assert (gone.id, gone.deleted, gone.object) == (id, True, "video.deleted")
    for ask in (client.videos.retrieve, client.videos.download_content, client.videos.delete):
        with pytest.raises(openai.NotFoundError) as missing:
            ask(id)
        assert missing.value.code == "not_found"


def test_a_first_frame_of_ones_own(server, client):
    sent = client.videos.create_and_poll(**GOOD, input_reference=("a.png", image(), "image/png"))
    assert sent.status == "completed"
    url = "data:image/png;base64," + base64.b64encode(image()).decode()
    extra = GOOD["extra_body"] | {"input_reference": {"image_url": url}}
    named = client.videos.create_and_poll(prompt=GOOD["prompt"], extra_body=extra)
    assert client.videos.download_content(sent.id).content == client.videos.download_content(named.id).content
    body = {"prompt": "a horse", "num_inference_steps": 1, "input_reference": {"image_url": url}}
    assert server.client.post("/v1/videos", json=body).json()["status"] == "queued"


def test_remix_keeps_all_but_the_prompt(client, done):
    again = client.videos.remix(done.id, prompt="a black horse")
    assert again.remixed_from_video_id == done.id
    assert (again.prompt, again.seed, again.seconds, again.category) == ("a black horse", 5, "0.5", "horse")
    assert client.videos.poll(again.id).status == "completed"


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"prompt": "a dog"}, "category", "names none, choose one of: waterfall"),
        ({"prompt": "horses by a waterfall"}, "category", "names waterfall, horse, choose"),
        ({"category": "dance"}, "category", "known: waterfall"),
        ({"style": "noir"}, "style", "known: realistic"),
        ({"model": "sora-2"}, "model", "this server has tiny"),
        ({"size": "720x1280"}, "size", "this model makes 32x32"),
        ({"width": 64}, "width", "this model makes 32x32"),
        ({"seconds": "12"}, "seconds", "allows 0.25 to 8"),
        ({"seconds": "4", "num_frames": 3}, "seconds", "are 32 frames"),
        ({"num_inference_steps": 0}, "num_inference_steps", "num_inference_steps: input should be greater"),
        ({"num_inference_steps": 101}, "num_inference_steps", "at most 100"),
        ({"num_frames": "many"}, "num_frames", "valid integer"),
        ({"colour": "red"}, "colour", "no such field"),
        ({"webhook_url": "https://example.com"}, "webhook_url", "webhooks are off here"),
        ({"input_reference": {"image_url": "https://x/a.png"}}, "input_reference", "not followed"),
        (
            {"input_reference": {"image_url": "data:image/png;base64,eA=="}},
            "input_reference",
            "cannot be read",
        ),
        ({"input_reference": {"file_id": "a"}}, "input_reference.image_url", "missing"),
    ],
)
def test_what_is_refused(client, change, param, says):
    fields = {"prompt": "a horse"} | change
    prompt = fields.pop("prompt")
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.videos.create(prompt=prompt, extra_body=fields)
    assert refused.value.param == param
    assert says in refused.value.message
    assert (refused.value.type, refused.value.code) == ("invalid_request_error", "invalid_request")
    assert refused.value.body["request_id"] == refused.value.response.headers["x-request-id"]


def test_what_the_policy_says_at_every_door(server, client):
    tagged = client.videos.create_and_poll(prompt="an A.C.M.E horse", extra_body=GOOD["extra_body"])
    assert tagged.prompt_verdict == {"action": "tag", "lists": ["brands"]}
    lineage = server.client.get(f"/v1/videos/{tagged.id}/lineage").json()
    assert lineage["prompt_verdict"] == tagged.prompt_verdict
    assert server.generate(prompt="an acme horse").headers["x-prompt-verdict"] == "tag brands"
    words = {"prompt": "a horse", "category": "horse", "negative_prompt": "a g.u.n"}
    paths = ("/generate_video", "/v1/videos", "/v1/videos/sync")
    answers = [server.client.post(path, json=words) for path in paths]
    answers.append(server.client.post(f"/v1/videos/{tagged.id}/remix", json={"prompt": "a gün"}))
    for answer in answers:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "content_policy_violation")
        assert error["message"].startswith(f"{error['param']}: this server makes no clips of what it says")
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt="a horse with a gun")
    assert (refused.value.code, refused.value.param) == ("content_policy_violation", "prompt")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub, asked = stubs.VideoGenerationStub(channel), messages.GenerateRequest(**words)
        job = messages.CreateJobRequest(request=asked)
        for call in (lambda: list(stub.Generate(asked)), lambda: stub.CreateJob(job)):
            with pytest.raises(grpc.RpcError, match="negative_prompt: this server makes no clips") as failed:
                call()
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.videos.list(limit=1).data[0].id == tagged.id  # they made no job


def test_what_the_frame_check_says_at_every_door(server, client):
    tagged = client.videos.create_and_poll(**of_frames(12))
    assert tagged.frames_verdict == {"action": "tag", "reason": "a dozen"}
    lineage = server.client.get(f"/v1/videos/{tagged.id}/lineage").json()
    assert lineage["frames_verdict"] == tagged.frames_verdict
    assert server.generate(frames=12).headers["x-frames-verdict"] == "tag a dozen"
    counted = server.metric("huvidpo_policy_verdicts_total", check="frames", action="block")
    blocked = client.videos.create_and_poll(**of_frames(13))
    says = "this server does not give out what was made: unlucky"
    assert (blocked.status, blocked.error.code, blocked.error.message) == ("failed", CODE, says)
    assert server.client.get(f"/v1/videos/{blocked.id}/content").status_code == 404
    assert json.loads(_events(server, blocked.id)[-1]["data"])["error"]["code"] == CODE
    body = {"prompt": "a horse", "category": "horse", "steps": 1, "frames": 13}
    refused = server.client.post("/generate_video", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, CODE)
    told = server.client.post("/generate_video", json=body, headers={"Accept": "text/event-stream"}).text
    assert f'"code": "{CODE}"' in told.split("event: ")[-1]
    assert "event: done" not in told
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = stubs.VideoGenerationStub(channel)
        assert stub.GetJob(messages.GetJobRequest(id=tagged.id)).clip.frames_verdict.reason == "a dozen"
        assert stub.GetJob(messages.GetJobRequest(id=blocked.id)).error.code == CODE
        with pytest.raises(grpc.RpcError, match="unlucky") as failed:
            list(stub.Generate(messages.GenerateRequest(**body)))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.metric("huvidpo_policy_verdicts_total", check="frames", action="block") == counted + 4


CODE = "content_policy_violation"


def of_frames(frames):
    return {"prompt": "a horse", "extra_body": {"num_inference_steps": 1, "num_frames": frames}}


def test_cancel(server, client):
    long = {"num_inference_steps": 100, "num_frames": 64, "category": "rain"}
    job = client.videos.create(prompt="rain", extra_body=long)
    steps = server.metric("huvidpo_denoising_steps_total", stage="video")
    _until(lambda: server.metric("huvidpo_denoising_steps_total", stage="video") >= steps + 2)
    dropped = server.metric("huvidpo_cancelled_jobs_total", stage="video")
    answer = server.client.post(f"/v1/videos/{job.id}/cancel").json()
    assert (answer["status"], answer["error"]["code"]) == ("failed", "cancelled")
    _until(lambda: server.metric("huvidpo_cancelled_jobs_total", stage="video") == dropped + 1)
    assert client.videos.retrieve(job.id).error.code == "cancelled"  # to look at it is no error
    with pytest.raises(openai.NotFoundError, match="its status is failed"):
        client.videos.download_content(job.id)


def test_events(server, client, done):
    body = {"prompt": "rain", "num_inference_steps": 20, "num_frames": 16}
    id = server.client.post("/v1/videos", json=body).json()["id"]
    events = _events(server, id)
    numbers = [int(event["id"]) for event in events if "id" in event]
    assert numbers == sorted(set(numbers))
    assert (events[-1]["event"], numbers[-1]) == ("completed", 20 + 3 + 2)
    assert {"in_progress", "completed"} <= {event["event"] for event in events} <= {
        "queued", "in_progress", "started", "completed",
    }  # fmt: skip
    assert json.loads(events[-1]["data"]) == server.client.get(f"/v1/videos/{id}").json()
    assert [event["id"] for event in _events(server, id, str(numbers[-2]))] == [str(numbers[-1])]
    assert _events(server, id, str(numbers[-1])) == []
    assert server.client.get("/v1/videos/video_0/events").status_code == 404


def _events(server, id, last="") -> list[dict[str, str]]:
    headers = {"Last-Event-ID": last} if last else {}
    answer = server.client.get(f"/v1/videos/{id}/events", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block.splitlines() for block in answer.text.split("\n\n") if block]
    return [dict(line.split(": ", 1) for line in block) for block in blocks]


def test_polling_hint_and_models(server, client, done):
    created = server.client.post("/v1/videos", json={"prompt": "a horse", "num_inference_steps": 1})
    assert 200 <= int(created.headers["openai-poll-after-ms"]) <= 5000
    assert "openai-poll-after-ms" not in server.client.get(f"/v1/videos/{done.id}").headers
    assert [model.id for model in client.models.list()] == [DEFAULT_MODEL]
    assert client.models.retrieve(DEFAULT_MODEL).owned_by == "huvidpo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sora-2")


def test_idempotency_key(server):
    def post(seed):
        body = {"prompt": "a horse", "num_inference_steps": 1, "seed": seed}
        return server.client.post("/v1/videos", json=body, headers={"Idempotency-Key": "one"})

    first, again, other = post(1), post(1), post(2)
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")


def test_sync_answers_with_the_clip(server):
    body = {"prompt": "a white horse runs", "num_inference_steps": 2, "num_frames": 4, "seed": 5}
    form = server.client.post(
        "/v1/videos/sync", files={name: (None, str(value)) for name, value in body.items()}
    )
    assert form.headers["content-type"] == "video/mp4"
    assert form.headers["x-seed"] == "5"
    assert form.content == server.client.post("/v1/videos/sync", json=body).content


def test_what_a_form_says_twice_is_refused(server):
    picture = ("input_reference", ("a.png", b"picture", "image/png"))
    twice = [("prompt", (None, "rain")), ("prompt", (None, "a horse"))]
    both = [twice[0], picture, ("input_reference[image_url]", (None, "data:image/png;base64,AAAA"))]
    for form, said in ((twice, "prompt: given more than once"), (both, "got a file and an image_url")):
        answer = server.client.post("/v1/videos", files=form)
        assert answer.status_code == 422
        assert said in answer.json()["error"]["message"]


def test_paths_leave_no_series_in_the_metrics(server, done):
    assert done.id not in server.client.get("/metrics").text
    assert server.client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_a_job_outlives_the_whole_service(start_server, random_family, tmp_path):
    """kill -9 of every process in the second stage: after a restart the clip is made, its frame not again."""
    env = {"HUVIDPO_CATALOG": str(random_family / "catalog"), "HUVIDPO_BACKEND": "torch"}
    env |= {"HUVIDPO_DATA": str(tmp_path), "HUVIDPO_LEASE_SECONDS": "2"}
    first = start_server(**env)
    first.wait_ready()
    body = {"prompt": "rain", "num_inference_steps": 40, "num_frames": 64, "seed": 5}
    id = first.client.post("/v1/videos", json=body).json()["id"]
    _until(lambda: first.metric("huvidpo_denoising_steps_total", stage="video") >= 2)
    frame = tmp_path / "clips" / id / "first_frame.png"
    drawn = frame.stat()
    kill(first.process)
    second = start_server(**env)
    second.wait_ready()
    heard = [int(event["id"]) for event in _events(second, id, "4") if "id" in event]
    assert (heard[-1], min(heard) > 4) == (40 + 3 + 2, True)
    with openai.OpenAI(base_url=f"{second.url}/v1", api_key="none") as client:
        assert client.videos.poll(id).status == "completed"
    assert second.metric("huvidpo_denoising_steps_total", stage="first_frame") == 0
    assert frame.stat() == drawn
    second.stop()


def _until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
