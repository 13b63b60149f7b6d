"""Request bodies are read only with a valid token and within a time limit."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from starlette.testclient import TestClient
from uvicorn.server import ServerState

from sppo_ray.api import connection
from sppo_ray.api.tokens import add_token
from tests.api.conftest import NO_RAY, serving
from tests.api.test_jobs import problem

MALFORMED = [
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b"null",
    b'{"recipe": 5}',
    b"",
    b'{"seed": ' + b"9" * 5000 + b"}",
]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """(URL, an operator's token, a viewer's) of a server that waits 2 s for a body."""
    tokens = tmp_path_factory.mktemp("etc") / "tokens"
    operator, viewer = add_token(tokens, "olga", "operator"), add_token(tokens, "eve", "viewer")
    options = ("--tokens", str(tokens), "--ray-address", NO_RAY, "--rate", "0", "--body-timeout", "2")
    with serving(tmp_path_factory.mktemp("runs"), *options) as (url, _):
        yield url, operator, viewer


def exchange(
    url: str, head: str, body: bytes = b"", *, every_s: float = 0.0, wait_s: float = 10.0
) -> tuple[bytes, float]:
    """What comes back until the server closes, and after how long; the body is sent byte by byte
    with `every_s`.
    """
    place = urlsplit(url)
    began = time.monotonic()
    with socket.create_connection((place.hostname, place.port), timeout=wait_s) as client:
        client.sendall(head.encode())
        client.settimeout(every_s or wait_s)
        received, left = b"", list(body)
        while time.monotonic() - began < wait_s:
            try:
                if left:
                    client.sendall(bytes([left.pop(0)]))
                piece = client.recv(65536)
                received += piece
                if not piece:
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return received, time.monotonic() - began


def post(token: str | None, length: int = 1000, path: str = "/v1/jobs") -> str:
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{authorization}"
    return f"{head}Content-Length: {length}\r\n\r\n"


@pytest.mark.parametrize("token", [None, "sppo_wrong"])
def test_without_a_token_no_body_is_waited_for(slow: tuple[str, str, str], token: str | None) -> None:
    for path in ("/v1/jobs", "/v1/jobs/x/stop", "/nowhere"):
        answer, took = exchange(slow[0], post(token, path=path), b"{" * 100, every_s=0.05)
        assert answer.startswith(b"HTTP/1.1 401 ") and took < 1.5
        assert b"connection: close" in answer.lower()


def test_nor_is_a_viewers(slow: tuple[str, str, str]) -> None:
    answer, took = exchange(slow[0], post(slow[2]), b"{" * 100, every_s=0.05)
    assert answer.startswith(b"HTTP/1.1 403 ") and b"wrong-role" in answer and took < 1.5


def test_a_body_that_comes_slowly_is_given_up(slow: tuple[str, str, str]) -> None:
    """A byte now and then does not make the time longer."""
    answer, took = exchange(slow[0], post(slow[1]), b" " * 1000, every_s=0.1)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"urn:sppo-ray:request-timeout" in answer
    assert 1.5 < took < 6.0


def test_a_body_that_says_no_length_is_given_up_too(slow: tuple[str, str, str]) -> None:
    head = post(slow[1]).replace("Content-Length: 1000", "Transfer-Encoding: chunked")
    answer, took = exchange(slow[0], head, b"1\r\n \r\n" * 200, every_s=0.1)
    assert answer.startswith(b"HTTP/1.1 408 ") and took < 6.0


@pytest.mark.parametrize("body", MALFORMED)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/first"])
def test_what_a_body_holds_is_not_told_without_a_token(
    make_server: Callable[..., TestClient], tmp_path: Path, path: str, body: bytes
) -> None:
    token_file = tmp_path / "tokens"
    operator, viewer = add_token(token_file, "olga", "operator"), add_token(token_file, "eve", "viewer")
    server = make_server(tokens=token_file)

    def ask(token: str) -> object:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return server.request("POST" if path == "/v1/jobs" else "PATCH", path, content=body, headers=headers)

    problem(ask("wrong"), 401)
    problem(ask(viewer), 403, "wrong-role")
    assert ask(operator).status_code == 422


def test_a_length_beyond_the_limit_is_told_to_those_with_a_token(
    make_server: Callable[..., TestClient], tmp_path: Path
) -> None:
    operator = add_token(tmp_path / "tokens", "olga", "operator")
    server = make_server(tokens=tmp_path / "tokens", max_body_bytes=100)
    for length in ("101", "9" * 20, "9" * 5000):
        headers = {"Content-Length": length}
        problem(server.post("/v1/jobs", headers=headers), 401)
        problem(server.post("/v1/jobs", headers=headers | {"Authorization": f"Bearer {operator}"}), 413)


def test_an_allowed_page_sees_why_it_was_refused(
    make_server: Callable[..., TestClient], tmp_path: Path
) -> None:
    add_token(tmp_path / "tokens", "olga", "operator")
    server = make_server(tokens=tmp_path / "tokens", cors_origins=("https://a.example",))
    answer = server.get("/v1/jobs", headers={"Origin": "https://a.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://a.example")
    assert (
        "access-control-allow-origin"
        not in server.get("/v1/jobs", headers={"Origin": "https://b.example"}).headers
    )


def test_headers_without_end_end_the_connection(slow: tuple[str, str, str]) -> None:
    answer, took = exchange(
        slow[0], "GET /healthz HTTP/1.1\r\nX: " + "x" * (connection.HEAD_BYTES + 10), wait_s=10
    )
    assert answer == b"" and took < 5.0
    long = "x" * 30_000
    answer, _ = exchange(
        slow[0], f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)

    async def answer(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> tuple[bytes, bytes]:
        config = uvicorn.Config(
            answer, port=0, http=connection.BoundedProtocol, lifespan="off", log_config=None
        )
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(
            lambda: config.http_protocol_class(config, state, {}), "127.0.0.1", 0
        )
        async with listening:
            reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname()[:2])
            whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            writer.write(whole)
            first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            writer.write(sent)  # the next one never gets whole
            fresh, other = await asyncio.open_connection(*listening.sockets[0].getsockname()[:2])
            other.write(sent)
            rest = await asyncio.wait_for(fresh.read(), 5)
            if sent:
                rest += await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return first, rest

    first, rest = asyncio.run(ask())
    assert first.startswith(b"HTTP/1.1 204") and rest == b""
