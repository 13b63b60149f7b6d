"""The same command through `ray job submit` against a running head, as on a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SMALL = [
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=16",
    "--loop.steps=2",
    "--critic.warmup_steps=1",
]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head of its own: (address of its job server, environment of its clients). Ended by id, never by `ray stop`."""
    names = (
        "port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
        "runtime-env-agent-port", "metrics-export-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    temp_dir = tempfile.mkdtemp(prefix="spr-", dir="/tmp")  # Ray's socket paths have to stay short
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1"]
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


@pytest.mark.timeout(600)
def test_a_submitted_job_trains(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    run_dir = tmp_path / "run"
    train = ["python", "-m", "sppo_ray", "train", "quickstart", "--run-dir", str(run_dir), *SMALL]
    submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--", *train]
    done = subprocess.run(submit, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    # The log of a job is no terminal: one plain line a step.
    assert "step 2/2  reward" in done.stdout
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["samples"]) == ("finished", 2, 64)
