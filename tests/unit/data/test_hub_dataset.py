"""`type: hf` against a local server that answers as the hub does; not the hub itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError

COMMIT, NAME = "0" * 40, "owner/sums"
FILE = "data/train-00000-of-00001.parquet"
READ = """
from sppo_ray.config.loading import load_config
from sppo_ray.data.sources import open_sources
keys = "prompt_key: question, ground_truth_key: answer"
config = load_config("quickstart", ["--data.train=[{type: hf, dataset: owner/sums, " + keys + "}]"])
[source] = open_sources(config.data.train)
print(len(source), source[1].id, source[1].ground_truth)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a server with one dataset of two rows."""
    table = pa.table({"question": ["1+1=", "1+2="], "answer": ["so #### 2", "so #### 3"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    info = {"id": NAME, "sha": COMMIT, "private": False, "tags": [], "siblings": [{"rfilename": FILE}]}
    entry = {"type": "file", "path": FILE, "size": len(content), "oid": "1" * 40}
    folder = {"type": "directory", "path": "data", "oid": "2" * 40, "size": 0}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{"1" * 40}"')
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(json.dumps([entry] if "paths-info" in self.path else {}).encode())

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].replace("%2F", "/")
            if path.endswith(FILE):
                self.answer(content, "application/octet-stream")
            elif "/tree/" in path:
                whole = "recursive=True" in self.path or "recursive=true" in self.path
                rows = [entry] if path.endswith("/data") else [folder, entry] if whole else [folder]
                self.answer(json.dumps(rows).encode())
            elif path.startswith(f"/api/datasets/{NAME}"):
                self.answer(json.dumps(info).encode())
            else:
                self.answer(b"{}", status=404)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_dataset_of_the_hub_is_read_once_and_then_from_the_cache(hub: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}

    def read(**more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", READ], env=environment | more, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert read() == "2 owner/sums/1 so #### 3\n"
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert read(**offline) == "2 owner/sums/1 so #### 3\n"


def test_a_path_is_no_name() -> None:
    with pytest.raises(UserError, match="dataset: String should match pattern"):
        load_config("quickstart", ["--data.train=[{type: hf, dataset: /etc/passwd}]"])
