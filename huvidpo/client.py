"""A client of the service's jobs: submit, wait, download. `AsyncClient` is the same for asyncio.

    with Client("http://localhost:3000") as client:
        job = client.submit("a white horse runs on Mars", style="cartoon")
        job = client.wait(job["id"], on_progress=lambda job: print(job["progress"]))
        client.download(job["id"], Path("horse.mp4"))

A job is the dict that /v1/videos answers with (docs/jobs.md). Calls raise InvalidRequest for a request that
cannot be met and ServiceError for everything else that is not a good answer.
"""

import asyncio
import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from huvidpo.errors import HuViDPOError, InvalidRequest
from huvidpo.files import write_bytes

Job = dict[str, Any]
OnProgress = Callable[[Job], Any]
TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # seconds; no call but a download takes long


class ServiceError(HuViDPOError):
    """The service refused, failed or was not there. `code`: one of docs/api.md, "unreachable", or what a
    failed job carries. `status`: of HTTP, 0 without an answer.
    """

    def __init__(self, message: str, code: str, status: int = 0, request_id: str = ""):
        super().__init__(message)
        self.code, self.status, self.request_id = code, status, request_id


class Client:
    """`url`: of the service; `key`: an API key of it, where it has them."""

    def __init__(self, url: str, key: str = ""):
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=TIMEOUT)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(
        self, prompt: str, *, first_frame: bytes | None = None, idempotency_key: str = "", **fields: Any
    ) -> Job:
        """A queued job. `fields`: of docs/jobs.md, None for "not given"; `first_frame`: an image file."""
        return self._call("POST", "/v1/videos", **_submission(prompt, first_frame, idempotency_key, fields))

    def get(self, id: str) -> Job:
        return self._call("GET", f"/v1/videos/{id}")

    def cancel(self, id: str) -> Job:
        """The job, failed with the code "cancelled" unless it had ended before."""
        return self._call("POST", f"/v1/videos/{id}/cancel")

    def delete(self, id: str) -> None:
        self._call("DELETE", f"/v1/videos/{id}")

    def wait(self, id: str, on_progress: OnProgress | None = None) -> Job:
        """The job once it is completed; `on_progress` is called with it at each look. Raises ServiceError
        with the job's own code when it has failed.
        """
        while True:
            answer = self._answer("GET", f"/v1/videos/{id}")
            job, pause = _looked_at(answer, on_progress)
            if pause is None:
                return job
            time.sleep(pause)

    def download(self, id: str, out: Path, variant: str = "video") -> None:
        """Writes the clip, its "thumbnail" or its "spritesheet" to `out`."""
        answer = self._answer("GET", f"/v1/videos/{id}/content", params={"variant": variant})
        write_bytes(out, answer.content)

    def _call(self, method: str, path: str, **kwargs: Any) -> Any:
        return self._answer(method, path, **kwargs).json()

    def _answer(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            return _good(self._http.request(method, path, **kwargs))
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error


class AsyncClient:
    """As Client; `on_progress` is an ordinary function too."""

    def __init__(self, url: str, key: str = ""):
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=TIMEOUT)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def submit(
        self, prompt: str, *, first_frame: bytes | None = None, idempotency_key: str = "", **fields: Any
    ) -> Job:
        sent = _submission(prompt, first_frame, idempotency_key, fields)
        return await self._call("POST", "/v1/videos", **sent)

    async def get(self, id: str) -> Job:
        return await self._call("GET", f"/v1/videos/{id}")

    async def cancel(self, id: str) -> Job:
        return await self._call("POST", f"/v1/videos/{id}/cancel")

    async def delete(self, id: str) -> None:
        await self._call("DELETE", f"/v1/videos/{id}")

    async def wait(self, id: str, on_progress: OnProgress | None = None) -> Job:
        while True:
            answer = await self._answer("GET", f"/v1/videos/{id}")
            job, pause = _looked_at(answer, on_progress)
            if pause is None:
                return job
            await asyncio.sleep(pause)

    async def download(self, id: str, out: Path, variant: str = "video") -> None:
        answer = await self._answer("GET", f"/v1/videos/{id}/content", params={"variant": variant})
        await asyncio.to_thread(write_bytes, out, answer.content)

    async def _call(self, method: str, path: str, **kwargs: Any) -> Any:
        return (await self._answer(method, path, **kwargs)).json()

    async def _answer(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            return _good(await self._http.request(method, path, **kwargs))
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _submission(
    prompt: str, first_frame: bytes | None, idempotency_key: str, fields: dict[str, Any]
) -> dict[str, Any]:
    body = {"prompt": prompt} | {name: value for name, value in fields.items() if value is not None}
    if first_frame is not None:
        url = f"data:image/{_kind(first_frame)};base64,{base64.b64encode(first_frame).decode()}"
        body["input_reference"] = {"image_url": url}
    return {"json": body, "headers": {"Idempotency-Key": idempotency_key} if idempotency_key else {}}


def _kind(image: bytes) -> str:
    if image.startswith(b"\xff\xd8"):
        return "jpeg"
    return "webp" if image[8:12] == b"WEBP" else "png"


def _looked_at(answer: httpx.Response, on_progress: OnProgress | None) -> tuple[Job, float | None]:
    """The job, and the seconds until the next look; None when it is completed."""
    job = answer.json()
    if on_progress is not None:
        on_progress(job)
    if job["status"] == "failed":
        raise ServiceError(job["error"]["message"], job["error"]["code"], answer.status_code)
    pause = float(answer.headers.get("openai-poll-after-ms", "1000")) / 1000
    return job, None if job["status"] == "completed" else pause


def _good(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        problem = answer.json()["error"]
        message, code = problem["message"], problem["code"]
    except (ValueError, KeyError, TypeError):
        message, code, problem = f"the server answered {answer.status_code}", "not_ours", {}
    if answer.status_code in (400, 422):
        raise InvalidRequest(message, problem.get("param"))
    raise ServiceError(message, code, answer.status_code, problem.get("request_id", ""))


def _unreachable(url: httpx.URL, error: httpx.HTTPError) -> ServiceError:
    return ServiceError(f"{url}: {error or type(error).__name__}; is the service running?", "unreachable")
