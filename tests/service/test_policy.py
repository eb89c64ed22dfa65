"""The operator's lists: what they say of a request at every door, and the file they are read from."""

import asyncio
import json
import os

import pytest
from prometheus_client import REGISTRY

from huvidpo.catalog import load_catalog
from service.errors import ContentRefused, row_of, to_dict
from service.events import _accepted
from service.generation import Finished, Generation, Started
from service.grpc_server import job_message, messages_of, status_of
from service.http import _clip_response, error_response
from service.job_rows import Rows, new_job
from service.lineage import of_job
from service.policy import Policy
from service.schemas import GenerateRequest
from service.settings import Settings

LISTS = """
[weapons]
action = "block"
deny = ["gun", "machine-gun"]
allow = ["water gun", "gun dog"]

[brands]
action = "tag"
deny = ["acme"]

[drafts]
deny = ["horse"]
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(LISTS)
    return file


def lists(policy: Policy, prompt: str, negative: str | None = None) -> tuple[str, ...]:
    return policy.judge({"prompt": prompt, "negative_prompt": negative}).lists


def counted(action: str, name: str = "") -> float:
    labels = {"check": "prompt", "action": action, "list": name}
    return REGISTRY.get_sample_value("huvidpo_policy_verdicts_total", labels) or 0.0


def test_what_lists_say(file):
    policy = Policy(str(file))
    before = counted("ok"), counted("tag", "brands"), counted("block", "weapons")
    assert lists(policy, "a horse runs") == ()  # a list is off unless it says otherwise
    assert lists(policy, "an A.C.M.E horse", "acme") == ("brands",)
    assert lists(policy, "a child with a water gun, and a gun dog") == ()
    for prompt, negative, field in [
        ("a gun", None, "prompt"), ("a horse", "g\u200bün", "negative_prompt"),
        ("acme machine  gun", "", "prompt"), ("a water gun and a gun", None, "prompt"),
    ]:  # fmt: skip
        with pytest.raises(ContentRefused, match=rf"^{field}: .*\(list weapons\)") as refused:
            lists(policy, prompt, negative)
        assert refused.value.field == field
    assert counted("ok") - before[0] == 2
    assert counted("tag", "brands") - before[1] == 2  # also of one that another list blocked
    assert counted("block", "weapons") - before[2] == 4


def test_without_a_file_there_is_no_verdict():
    assert Policy("").judge({"prompt": "a gun"}) is None


def test_a_changed_file_counts_at_once_and_a_broken_one_not(file, caplog):
    policy = Policy(str(file))
    file.write_text('[brands]\naction = "tag"\ndeny = ["horse"]\n')
    os.utime(file, ns=(0, 1))
    assert lists(policy, "a gun and a horse") == ("brands",)
    for number, broken in enumerate(['[brands]\naction = "shout"\ndeny = []', "[", "\xff"], 2):
        file.write_text(broken, encoding="latin-1")
        os.utime(file, ns=(0, number))
        assert lists(policy, "a horse") == lists(policy, "two horse") == ("brands",)
    file.unlink()
    assert lists(policy, "a horse") == ("brands",)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4  # once each
    assert all(one.startswith("what was read before stays good: ") for one in said)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[a]\naction = "shout"\ndeny = []', r"a\.action: Input should be 'off', 'tag' or 'block'"),
        ("[a]", r"a\.deny: Field required"),
        ('[a]\ndeny = ["b"]\nblock = true', r"a\.block: Extra inputs are not permitted"),
        ('[a]\ndeny = ["a$$"]', r"a\.deny\.0: 'a\$\$': \$ cannot be part of a term"),
        ("[a]\ndeny = [7]", r"a\.deny\.0: '7': expected text of 1 to 100 letters"),
        ('["A list"]\ndeny = []', "A list: String should match pattern"),
        ("a = 1", "a: expected a table with deny, and perhaps action and allow"),
        ("[a", r"Expected '\]' at the end of a table"),
    ],
)
def test_a_damaged_file_refuses_the_start(file, text, says):
    file.write_text(text)
    with pytest.raises(ValueError, match=says) as refused:
        Generation(Settings(policy_file=str(file)), load_catalog(), None, None)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_refuses_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"HUVIDPO_POLICY_FILE: .*none.toml cannot be read: No such file"):
        Policy(str(tmp_path / "none.toml"))


def admitted(file, **fields):
    core = Generation(Settings(policy_file=str(file)), load_catalog(), None, None)

    async def main():
        return core.admit(GenerateRequest(category="horse", **fields))

    return asyncio.run(main())


def test_a_refusal_has_the_shape_of_all_errors(file):
    with pytest.raises(ContentRefused) as refused:
        admitted(file, prompt="a horse", negative_prompt="a gun")
    error = refused.value
    answer = error_response(error, "id1")
    assert (answer.status_code, row_of(error).grpc) == (400, "INVALID_ARGUMENT")
    assert json.loads(answer.body)["error"] == {
        "code": "content_policy_violation", "type": "invalid_request_error", "param": "negative_prompt",
        "field": "negative_prompt", "request_id": "id1", "message": to_dict(error)["message"],
    }  # fmt: skip
    assert "negative_prompt: this server makes no clips" in status_of(error, "id1").message


def test_the_verdict_is_told_at_every_door(file, tmp_path):
    plan = admitted(file, prompt="an acme horse")
    told = {"action": "tag", "lists": ["brands"]}
    assert plan.verdict.told() == told
    started = Started(plan.clip, "tiny", plan.warnings, plan.verdict)
    assert _accepted(started)["prompt_verdict"] == told
    message = next(messages_of(started)).accepted.prompt_verdict
    assert (message.action, list(message.lists)) == ("tag", ["brands"])
    finished = Finished(b"", "video/mp4", 1, "tiny", {}, {}, {}, verdict=plan.verdict)
    assert _clip_response(finished).headers["x-prompt-verdict"] == "tag brands"
    unjudged = Finished(b"", "video/mp4", 1, "tiny", {}, {}, {})
    assert "x-prompt-verdict" not in _clip_response(unjudged).headers

    async def stored():
        rows = Rows(f"sqlite:///{tmp_path}/jobs.sqlite")
        await rows.prepare()
        asked = {"prompt": "an acme horse", "category": "horse", "steps": 1}
        await rows.add(new_job("video_1", "", asked, 1, None, prompt_verdict=told), None, "0" * 64)
        await rows.add(new_job("video_2", "", asked, 1, None), None, "0" * 64)
        found = [await rows.get(f"video_{i}") for i in (1, 2)]
        rows.close()
        return found

    judged, not_judged = asyncio.run(stored())
    assert of_job(judged, None)["prompt_verdict"] == told
    assert job_message(judged).prompt_verdict.lists == ["brands"]
    assert of_job(not_judged, None)["prompt_verdict"] is None
    assert not job_message(not_judged).HasField("prompt_verdict")
