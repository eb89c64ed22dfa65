"""A small model hub: enough of its protocol for the hub's own client to list and fetch repositories."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "1" * 40


class FakeHub(ThreadingHTTPServer):
    """Serves `repos`, id -> folder; `asked` notes every path."""

    def __init__(self, repos: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.asked = repos, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def fetched(self) -> list[str]:
        """Files whose contents were sent, repository first."""
        files = [path.removeprefix("GET /") for path in self.asked if path.startswith("GET /")]
        return [name.replace(f"/resolve/{COMMIT}/", "/").replace("/resolve/main/", "/") for name in files]


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            folder = self.server.repos.get(repo) if revision in ("", "main", COMMIT) else None
            if folder is None:
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            files = [file for file in folder.rglob("*") if file.is_file()]
            siblings = [
                {"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size} for file in files
            ]
            answer = {"id": folder.name, "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        self.server.asked.append(f"GET {path}")
        return self.file(path, body=True)

    def do_HEAD(self) -> None:
        self.file(self.path.partition("?")[0], body=False)

    def file(self, path: str, body: bool) -> None:
        repo, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        if revision not in ("main", COMMIT):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        file = self.server.repos.get(repo, Path("/nowhere")) / name
        if not file.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        self.send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_hub(repos: dict[str, Path]) -> Iterator[FakeHub]:
    hub = FakeHub(repos)
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
