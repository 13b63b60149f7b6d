"""A run leaves no process and no shared memory, however it ends. A second signal ends it at
once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from sppo_ray.rundir.metrics import read_events, read_metrics
from tests.ray.test_train import REPOSITORY, TIMEOUT_S, actor, command, wait_for_event, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 2000
TINY = ["--eval.at_start=false", "--eval.every=0", "--checkpoint.every=1", "--data.held_out.0.size=16"]
SHARED_MEMORY = Path("/dev/shm")
# other programs' semaphores come and go
OURS = ("psm_", "plasma", "ray", "sppo", "torch_", "vllm", "tmp")


class Run:
    """A run under way, and everything that it has started."""

    def __init__(self, run_dir: Path, *more: str) -> None:
        self.path = run_dir
        self.shared = shared_memory()
        self.process = subprocess.Popen(
            command(run_dir, STEPS, *TINY, *more),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.family: list[psutil.Process] = []

    def reach(self, step: int) -> None:
        wait_for_step(self.path, step, self.process)
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        ours = " ".join(command_line(process) for process in self.family)
        assert all(part in ours for part in ("raylet", "gcs_server", "ray::", "reaper.py")), ours

    def ended(self, within_s: float) -> int:
        """The exit code, once nothing is left."""
        code = self.process.wait(timeout=within_s)
        _, alive = psutil.wait_procs(self.family, timeout=20)
        left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        assert not left, f"orphans: {left}"
        assert shared_memory() <= self.shared
        return code

    @property
    def state(self) -> dict[str, object]:
        return json.loads((self.path / "status.json").read_text())


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return ""


def shared_memory() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(OURS)}


def test_nothing_is_left_of_a_run_that_is_stopped_forced_or_killed(tmp_path: Path) -> None:
    """One run directory, four ends, three resumptions: SIGINT, SIGTERM twice, SIGKILL beside a
    frozen critic, SIGTERM.
    """
    run = Run(tmp_path / "run")
    run.reach(2)
    run.process.send_signal(signal.SIGINT)
    assert run.ended(120) == 0
    assert run.state["phase"] == "stopped"
    assert any(event["message"].startswith("stopping after this step") for event in read_events(run.path))

    run = Run(tmp_path / "run", "--resume")
    run.reach(read_metrics(run.path)[-1]["step"] + 1)
    os.kill(actor(run.path, "learner-0")["pid"], signal.SIGSTOP)  # the step under way does not end
    run.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + TIMEOUT_S
    while not run.state["stopping"] and time.monotonic() < deadline:
        time.sleep(0.05)
    run.process.send_signal(signal.SIGTERM)
    assert run.ended(30) == 143
    assert run.state["phase"] == "stopped"
    assert read_events(run.path)[-1]["message"] == "ended at once by SIGTERM"

    run = Run(tmp_path / "run", "--resume")
    run.reach(read_metrics(run.path)[-1]["step"] + 1)
    os.kill(actor(run.path, "critic-0")["pid"], signal.SIGSTOP)
    run.process.kill()
    assert run.ended(30) == -signal.SIGKILL

    run = Run(tmp_path / "run", "--resume")
    wait_for_event(run.path, "restored", run.process)
    run.reach(read_metrics(run.path)[-1]["step"] + 1)
    run.process.send_signal(signal.SIGTERM)
    assert run.ended(120) == 143
    steps = [row["step"] for row in read_metrics(run.path) if "reward/mean" in row]
    assert steps == list(range(1, len(steps) + 1))


def test_a_driver_that_is_killed_goes_on_under_its_supervisor(tmp_path: Path) -> None:
    """`--restarts 1`: SIGKILL of the driver; the run resumes by itself and ends."""
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir, 4, *TINY, "--restarts=1"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(run_dir, 2, process)
    driver = json.loads((run_dir / "job.json").read_text())["pid"]
    assert driver != process.pid
    os.kill(driver, signal.SIGKILL)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out + err
    assert "the run was killed by SIGKILL after step" in err
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["restarts"]) == ("finished", 4, 1)
