"""A FAKE of the Hugging Face hub: repositories in memory behind real HTTP, with the requests that
huggingface_hub makes for `snapshot_download` and `upload_folder`. Large files go by Git LFS.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "token-of-the-stand-in"
LFS_ENDINGS = (".safetensors", ".png")


@dataclass
class Repository:
    files: dict[str, bytes]
    gated: bool = False
    private: bool = False

    @property
    def commit(self) -> str:
        text = repr(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.files.items()))
        return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Hub:
    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # "GET /path"
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS, by SHA-256
    commits: list[str] = field(default_factory=list)  # messages


@contextlib.contextmanager
def hub(repositories: Mapping[str, Repository]) -> Iterator[Hub]:
    """Serve the repositories on a free port of this machine."""
    state = Hub(repositories=dict(repositories))
    handler = type("Handler", (_Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_HEAD(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(self._write)

    def do_PUT(self) -> None:
        self._answer(self._write)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, act: Any) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        act(self.path.partition("?")[0], body)

    # ------------------------------------------------------------------------------------ reading

    def _read(self, path: str, _: bytes) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            name, what, revision = found.groups()
            repository = self._repository(name, revision)
            if repository is None:
                return
            if what == "revision":
                siblings = [{"rfilename": file} for file in repository.files]
                self._json({"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings})
            else:
                self._json([_entry(file, data) for file, data in repository.files.items()])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found.groups()
            repository = self._repository(name, revision)
            if repository is None:
                return
            if file not in repository.files:
                self._refuse(404, "EntryNotFound")
                return
            data = repository.files[file]
            etag = hashlib.sha256(data).hexdigest() if file.endswith(LFS_ENDINGS) else _oid(data)
            self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.commit})
        else:
            self._refuse(404, "RepoNotFound")

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._is_known()):
            self._refuse(401, "RepoNotFound")
        elif repository.gated and not self._is_known():
            self._refuse(403, "GatedRepo")
        elif revision not in ("main", repository.commit):
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    # ------------------------------------------------------------------------------------ writing

    def _write(self, path: str, body: bytes) -> None:
        if path.startswith("/lfs/"):
            self.hub.objects[path.removeprefix("/lfs/")] = body
            self._send(200, b"")
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif not self._is_known():
            self._refuse(401, None)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.hub.repositories:
                self._json({"url": f"{self.hub.address}/{name}", "error": "exists"}, 409)
                return
            self.hub.repositories[name] = Repository({}, private=asked.get("visibility") == "private")
            self._json({"url": f"{self.hub.address}/{name}"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._json({"objects": [self._upload_of(one) for one in json.loads(body)["objects"]]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], body)
        else:
            self._refuse(404, "RepoNotFound")

    def _upload_of(self, wanted: dict[str, Any]) -> dict[str, Any]:
        action = {"href": f"{self.hub.address}/lfs/{wanted['oid']}", "header": {}}
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": action}}

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
        url = f"{self.hub.address}/{name}/commit/{repository.commit}"
        self._json({"success": True, "commitOid": repository.commit, "commitUrl": url})

    # ---------------------------------------------------------------------------------- answering

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None) -> None:
        headers = {} if code is None else {"X-Error-Code": code, "X-Error-Message": code}
        self._send(status, b"{}", headers)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    """Git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
    if name.endswith(LFS_ENDINGS):
        sha = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
    return entry
