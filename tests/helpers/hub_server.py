"""A server on this machine that answers uploads to a model's repository as the Hugging Face hub does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

LARGE = (".safetensors", ".onnx")  # endings of files that go to the large file storage


class HubServer(ThreadingHTTPServer):
    """Stand-in of the hub with one user.

    Attributes:
        uri: its address, for HF_ENDPOINT.
        repositories: files by path, of every repository by its name.
        commits: number of commits.
        requests: methods and paths of all requests so far.
        read_only: whether the user's token may write nothing.
    """

    daemon_threads = True

    def __init__(self, user: str, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.user, self.token = user, token
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.commits, self.read_only = 0, False

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        """Carry out the operations of a commit."""
        files = self.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.commits += 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(200)

    def do_GET(self) -> None:
        self._read()
        path = self.path.partition("?")[0]
        if not self._is_known():
            self._answer(401, {"error": "Invalid credentials"})
        elif path == "/api/whoami-v2":
            self._answer(200, {"type": "user", "name": self.server.user})
        elif path.endswith("/tree/main"):
            files = self.server.repositories[self._repository(path)]
            self._answer(200, [_entry(name, content) for name, content in files.items()])
        else:
            self._answer(404, {"error": "not there"})

    def do_PUT(self) -> None:
        content = self._read()
        oid = self.path.removeprefix("/large/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.large[oid] = content
        self._answer(200)

    def do_POST(self) -> None:
        body, path = self._read(), self.path.partition("?")[0]
        if not self._is_known():
            self._answer(401, {"error": "Invalid credentials"})
        elif self.server.read_only:
            self._answer(403, {"error": f"You need write access. Token: {self.server.token}"})
        elif path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization'] or self.server.user}/{given['name']}"
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, {})
            self._answer(status, {"url": f"{self.server.uri}/{name}"})
        elif path == "/api/validate-yaml":
            _, head, _ = json.loads(body)["content"].split("---\n", 2)
            assert isinstance(yaml.safe_load(head), dict)
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                each | {"actions": {"upload": {"href": f"{self.server.uri}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            repository = self._repository(path)
            self.server.commit(repository, [json.loads(line) for line in body.splitlines()])
            answer = {"commitOid": "0" * 40, "commitUrl": f"{self.server.uri}/{repository}/commit/{'0' * 40}"}
            self._answer(200, answer)
        else:
            self._answer(404, {"error": "not there"})

    def _repository(self, path: str) -> str:
        return "/".join(path.removeprefix("/api/models/").split("/")[:2])

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _read(self) -> bytes:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, content: Any = None) -> None:
        body = json.dumps(content).encode() if content is not None else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Write nothing to the terminal."""


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@contextmanager
def hub_server(user: str, token: str) -> Iterator[HubServer]:
    """Run a `HubServer`."""
    with HubServer(user, token) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
