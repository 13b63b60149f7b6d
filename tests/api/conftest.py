"""A server over run directories: inside the test's process, or as the process that `sppo-ray serve`
is.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from sppo_ray import redaction
from sppo_ray.api.app import create_app
from sppo_ray.api.settings import ApiSettings
from sppo_ray.api.tokens import add_token

NO_RAY = "http://127.0.0.1:9"  # the discard port: refused at once

# A token of whoever runs the tests must not reach the servers and clients of the tests.
for name in ("SPPO_RAY_API", "SPPO_RAY_API_TOKEN", "SPPO_RAY_API_TOKENS"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _look_for_secrets_again() -> None:
    """A test's variables are not those of the test before, which may be a moment ago."""
    redaction._values_in_environment.cache_clear()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs"
    path.mkdir()
    return path


@pytest.fixture
def make_server(runs: Path) -> Iterator[Callable[..., TestClient]]:
    """The application in this process, over `runs`; Ray is away. Answers are never from memory."""
    with ExitStack() as stack:

        def make(**settings: Any) -> TestClient:
            given = {"runs": runs, "refresh_s": 0.0, "ray_address": NO_RAY, "rate_per_second": 0.0} | settings
            application = create_app(ApiSettings(**given))
            client = TestClient(
                application,
                base_url="http://127.0.0.1",
                client=("127.0.0.1", 5000),
                raise_server_exceptions=False,
            )
            return stack.enter_context(client)

        yield make


@pytest.fixture
def server(make_server: Callable[..., TestClient]) -> TestClient:
    return make_server()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    runs: Path, *options: str, port: int | None = None, env: dict[str, str] | None = None
) -> Iterator[tuple[str, Any]]:
    """`sppo-ray serve` as a process of its own: (URL, process). Ended by its id."""
    port = port or free_port()
    command = [sys.executable, "-m", "sppo_ray", "serve", "--runs", str(runs), "--port", str(port), *options]
    process = subprocess.Popen(command, env=os.environ | (env or {}))
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, process)
        yield url, process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, str]]:
    """(URL, runs, an operator's token) of a server process without Ray."""
    runs, tokens = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("etc") / "tokens"
    token = add_token(tokens, "olga", "operator")
    with serving(runs, "--tokens", str(tokens), "--ray-address", NO_RAY, "--rate", "0") as (url, _):
        yield url, runs, token


def _wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"the server at {url} did not come up (exit code {process.poll()})")
