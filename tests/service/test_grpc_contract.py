"""The generated code against its proto file, and errors as statuses."""

import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from huvidpo.errors import InvalidRequest
from service.errors import TABLE, BadFields, QueueFull, TimedOut
from service.grpc_server import job_message, status_of
from service.job_rows import new_job

ROOT = Path(__file__).parents[2]


def test_the_generated_code_is_what_the_proto_file_gives(tmp_path):
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    protos = [str(path.relative_to(ROOT)) for path in (ROOT / "service" / "protos").glob("*.proto")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *protos], check=True, cwd=ROOT
    )
    made = sorted((tmp_path / "service" / "protos").iterdir())
    assert len(made) == 3 * len(protos)
    for file in made:
        committed = ROOT / "service" / "protos" / file.name
        assert committed.read_text() == file.read_text(), f"{file.name} is stale: run `make protos`"


def test_a_job_tells_its_warnings():
    asked = {"prompt": "a zebra", "category": "horse"}
    assert job_message(new_job("video_1", "", asked, 5, None, warnings=["no zebra"])).warnings == ["no zebra"]
    assert job_message(new_job("video_1", "", asked, 5, None)).warnings == []


def test_every_row_has_a_grpc_code():
    assert {row.grpc for row in TABLE} <= set(grpc.StatusCode.__members__)


def details(error):
    status = status_of(error, "id-1")
    found = {}
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        packed.Unpack(detail)
        found[type(detail).__name__] = detail
    return status, found


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (InvalidRequest("steps: no", "steps"), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (QueueFull("full", 7), grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full"),
        (RuntimeError("secret"), grpc.StatusCode.INTERNAL, "internal"),
    ],
)
def test_errors_as_statuses(error, code, reason):
    status, found = details(error)
    assert status.code == code.value[0]
    assert "secret" not in str(status)
    assert (found["ErrorInfo"].reason, found["RequestInfo"].request_id) == (reason, "id-1")


def test_what_details_an_error_carries():
    wrong = [{"field": "a", "message": "x"}, {"field": "b", "message": "y"}]
    _, found = details(BadFields("x; y", "a", wrong))
    listed = [(one.field, one.description) for one in found["BadRequest"].field_violations]
    assert listed == [("a", "x"), ("b", "y")]
    for full in (QueueFull("full", 7), TimedOut("late", 7)):
        _, found = details(full)
        assert found["RetryInfo"].retry_delay.seconds == 7
        assert "BadRequest" not in found
    assert "RetryInfo" not in details(TimedOut("late"))[1]
