"""Starts a separate Ray head with its job server, and ends it by process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
_PORTS = (
    "port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port", "metrics-export-port",
)  # fmt: skip


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


@contextmanager
def ray_head(*, cpus: int = 4) -> Iterator[tuple[str, dict[str, str]]]:
    """(address of its job server, environment of its clients)."""
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    temp_dir = tempfile.mkdtemp(prefix="spr-", dir="/tmp")  # Ray's socket paths have to stay short
    # Ray's own niceness of 15 would let its workers starve where anything else runs beside them.
    environment = (
        {"RAY_worker_niceness": "0"} | os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    )
    command = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        f"--num-cpus={cpus}",
        "--node-ip-address=127.0.0.1",
    ]
    command += [f"--temp-dir={temp_dir}", "--object-store-memory=268435456", "--disable-usage-stats"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = Path(temp_dir) / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_for_port(ports["dashboard-port"], process, log)
        yield f"http://127.0.0.1:{ports['dashboard-port']}", environment
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        _, left = psutil.wait_procs(family, timeout=15)
        for orphan in left:
            orphan.kill()
        shutil.rmtree(temp_dir, ignore_errors=True)


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(f"the Ray head did not come up: {log.read_text()}")
