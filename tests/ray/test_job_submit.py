"""Training with `ray job submit` on a running head, controlled through its run directory."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from sppo_ray.rundir.commands import outcome_of, send
from sppo_ray.trainer.checkpoint import verify_checkpoint
from tests.ray_head import BIN, ray_head

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 280
SMALL = [
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--eval.every=0",
    "--eval.at_start=false",
    "--checkpoint.every=0",
    "--loop.steps=2000",
    "--critic.warmup_steps=1",
]


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    with ray_head() as found:
        yield found


class Job:
    """A submitted run. Its state and log are asked for by HTTP: a client that follows the log of a
    job holds a WebSocket, which Ray's job server may close.
    """

    def __init__(self, head: tuple[str, dict[str, str]], run_dir: Path) -> None:
        self.path, (address, environment) = run_dir, head
        train = ["python", "-m", "sppo_ray", "train", "quickstart", "--run-dir", str(run_dir), *SMALL]
        submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--no-wait"]
        self.name = "train-quickstart"
        subprocess.run(
            [*submit, "--submission-id", self.name, "--", *train],
            cwd=REPOSITORY,
            env=environment,
            check=True,
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        self.jobs = JobSubmissionClient(address)

    @property
    def status(self) -> dict[str, Any]:
        path = self.path / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and not self.jobs.get_job_status(self.name).is_terminal():
            if found := condition():
                return found
            time.sleep(0.2)
        self.jobs.stop_job(self.name)
        raise AssertionError(f"{what} never came: {self.status}, {self.jobs.get_job_logs(self.name)}")

    def do(self, kind: Any) -> tuple[str, str]:
        sent = send(self.path, kind, by="the test")
        answer = self.wait(lambda: outcome_of(self.path, sent), f"an answer to {kind}")
        return answer["outcome"], answer["detail"]

    def end(self) -> tuple[JobStatus, str]:
        """Return its final state and what it printed."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (status := self.jobs.get_job_status(self.name)).is_terminal():
            assert time.monotonic() < deadline, f"the job does not end: {self.status}"
            time.sleep(0.2)
        return status, self.jobs.get_job_logs(self.name)


@pytest.mark.timeout(600)
def test_a_submitted_job_trains_and_stops_resumably_while_it_is_paused(
    head: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    job = Job(head, tmp_path / "run")
    job.wait(lambda: job.status.get("state", {}).get("step", 0) >= 1, "step 1")
    assert job.do("pause") == ("done", "pauses after the current step")
    job.wait(lambda: job.status["phase"] == "paused", "the pause")
    step = job.status["state"]["step"]
    assert job.do("stop") == ("done", "stops after the current step, with a checkpoint")
    status, printed = job.end()
    assert status == JobStatus.SUCCEEDED
    # The log of a job is no terminal: one plain line a step.
    assert re.search(r"^step +1/2000  reward", printed, re.MULTILINE)
    summary = json.loads((job.path / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["samples"]) == ("stopped", step, 32 * step)
    assert job.status["phase"] == "stopped"
    assert verify_checkpoint(job.path / "checkpoints" / f"step-{step:06d}").step == step
    record = json.loads((job.path / "job.json").read_text())
    assert record["run_id"] == "run" and record["submission_id"] == job.name
