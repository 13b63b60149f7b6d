"""Commands to a real run: pause, checkpoint, two workers, one worker. The result does not
change.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.rundir.commands import outcome_of, send
from sppo_ray.rundir.metrics import read_events, read_metrics
from sppo_ray.rundir.trajectories import read_step
from sppo_ray.trainer.checkpoint import verify_checkpoint
from tests.ray.run_record import exported_weights
from tests.ray.test_train import REPOSITORY, command

STEPS = 14
TIMEOUT_S = 600
# Logical CPUs: rollout .5 + learner .5 + critic .25 + verifier .1 = 1.35; a second engine fits into
# 2 (1.85), a third does not.
SMALL = [
    "--eval.every=0",
    "--eval.at_start=false",
    "--checkpoint.every=0",
    "--cluster.local_cpus=2",
    "--rollout.max_workers=3",
]


class Run:
    """A run under way, steered by commands."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir
        self.process = subprocess.Popen(
            command(run_dir, STEPS, *SMALL),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def status(self) -> dict[str, Any]:
        path = self.path / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def states(self) -> dict[str, str]:
        return {worker["name"]: worker["state"] for worker in self.status["fleet"]}

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError(f"{what} never came: {self.status}, {self.process.communicate(timeout=20)}")

    def wait_for_step(self, step: int) -> None:
        self.wait(lambda: self.status.get("state", {}).get("step", 0) >= step, f"step {step}")

    def end(self) -> None:
        """Wait for the end, which has to be a good one."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, out + err

    def do(self, kind: Any, **fields: Any) -> tuple[str, str]:
        sent = send(self.path, kind, by="the test", **fields)
        answer = self.wait(lambda: outcome_of(self.path, sent), f"an answer to {kind}")
        return answer["outcome"], answer["detail"]


def rewards(run_dir: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["reward/mean"]) for row in read_metrics(run_dir) if "reward/mean" in row]


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_one_two_one_workers_in_mid_run_change_no_bit_of_the_result(tmp_path: Path) -> None:
    undisturbed = Run(tmp_path / "undisturbed")
    undisturbed.end()
    run = Run(tmp_path / "scaled")
    run.wait_for_step(1)

    assert run.do("pause") == ("done", "pauses after the current step")
    run.wait(lambda: run.status["phase"] == "paused", "the pause")
    paused_at = run.status["state"]["step"]
    outcome, checkpoint = run.do("checkpoint")
    assert (outcome, checkpoint) == ("done", f"step-{paused_at:06d}")
    assert verify_checkpoint(run.path / "checkpoints" / checkpoint).step == paused_at

    assert run.do("scale", rollout_workers=4) == (
        "refused",
        "rollout_workers 4 is more than rollout.max_workers 3: ask for at most 3",
    )
    assert run.do("scale", rollout_workers=3)[0] == "done"
    run.wait(
        lambda: run.states == {"rollout-0": "HEALTHY", "rollout-1": "HEALTHY", "rollout-2": "PENDING"},
        "the second worker",
    )
    status = run.status
    assert [(row["worker"], row["waiting_for"]) for row in status["pending"]] == [("rollout-2", "0.5 CPU")]
    assert (status["wanted_workers"], status["paused"], status["stage"]) == (3, True, "pause")
    assert time.time() - status["heartbeat"] < 5  # and that although nothing has happened for long
    assert status["state"]["step"] == paused_at
    assert run.do("scale", rollout_workers=2) == ("done", "3 -> 2 rollout workers: drains rollout-2")
    run.wait(
        lambda: "rollout-2" not in run.states and not run.status["pending"], "the end of the third worker"
    )

    assert run.do("resume") == ("done", "resumes")
    run.wait_for_step(paused_at + 2)
    assert run.do("scale", rollout_workers=1) == ("done", "2 -> 1 rollout workers: drains rollout-1")
    run.end()

    assert exported_weights(run.path) == exported_weights(undisturbed.path) != {}
    assert rewards(run.path) == rewards(undisturbed.path)
    workers = {}
    for step in range(1, STEPS + 1):
        samples = read_step(run.path, step).to_pylist()
        # none lost, none repeated
        assert len({row["prompt_id"] for row in samples}) == len(samples) == 32
        workers[step] = {row["worker"] for row in samples}
    assert workers[paused_at] == workers[STEPS] == {"rollout-0"}
    assert workers[paused_at + 1] == {"rollout-0", "rollout-1"}
    kinds = [event["kind"] for event in read_events(run.path)]
    assert [kind for kind in kinds if kind.startswith("worker-")].count("worker-drained") == 2
    job = json.loads((run.path / "job.json").read_text())
    assert (job["run_id"], job["submission_id"], job["pid"]) == ("scaled", None, run.process.pid)
    assert (
        run.states == {"rollout-0": "HEALTHY"}
        and json.loads((run.path / "summary.json").read_text())["restarts"] == 0
    )
