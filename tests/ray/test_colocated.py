"""A run whose roles take turns is the run with devices of their own, bit for bit; also with an
engine that is killed in every phase. Ray, vLLM and DeepSpeed are real; on a CPU the engine's sleep
is the fake of `actors/engine_sleep.py`, and the states of ZeRO-0 move by its stand-in.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.rundir.metrics import read_events
from tests.ray import run_record
from tests.ray.test_train import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 6
SETTINGS = [
    f"--loop.steps={STEPS}",
    "--seed=3",
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=16",
    "--critic.warmup_steps=1",
    "--checkpoint.every=2",
    "--checkpoint.keep=9",
    "--eval.every=3",
    "--logging.progress=plain",
]
COLOCATED = "--cluster.layout=colocated"
STAGES = {"generate-wait": 1, "update": 2, "critic-wait": 3, "sync": 4}
"""Where the engine is killed, and after which step."""


def start(run_dir: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sppo_ray", "train", "quickstart", "--run-dir", str(run_dir)]
    return subprocess.Popen(
        [*command, *SETTINGS, *more],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("separate") / "run"
    finish(start(path))
    return path


@pytest.mark.parametrize(
    "more",
    [[], ["--learner.zero_stage=2", "--critic.zero_stage=2"]],
    ids=["stand-in", "DeepSpeed's offload_states"],
)
def test_taking_turns_changes_no_bit(more: list[str], separate: Path, tmp_path: Path) -> None:
    """Weights, optimizers, random states, prompts, responses, evaluations and metrics."""
    if more:
        separate = tmp_path / "separate"
        finish(start(separate, *more))
    finish(start(tmp_path / "run", COLOCATED, *more))
    ours, theirs = run_record.record(tmp_path / "run"), run_record.record(separate)
    assert len(ours["trajectories"]) == STEPS and len(ours["checkpoints"]) == 3
    for part, found in theirs.items():
        assert ours[part] == found, part


def test_an_engine_killed_in_each_phase_leaves_no_trace(separate: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start(path, COLOCATED, "--rollout.max_restarts=9")
    killed: set[int] = set()
    for stage, step in STAGES.items():
        status = wait_for_stage(path, process, stage, step, but_not=killed)
        killed.add(engine_of(status))
        os.kill(engine_of(status), signal.SIGKILL)
    finish(process)
    kinds = [event["kind"] for event in read_events(path)]
    assert kinds.count("worker-revived") == len(STAGES)
    assert "recovering" not in kinds
    ours, theirs = run_record.record(path), run_record.record(separate)
    for part in ("export", "trajectories", "evaluations"):
        assert ours[part] == theirs[part], part


def engine_of(status: dict[str, Any]) -> Any:
    """The process id of the engine in status.json; None while it starts."""
    rows = status.get("actors", [])
    return next((row["pid"] for row in rows if row["name"] == "rollout-0"), None)


def wait_for_stage(
    path: Path, process: subprocess.Popen[str], stage: str, step: int, *, but_not: set[int]
) -> dict[str, Any]:
    """Return status.json of a moment in `stage`, after `step` steps, with an engine that has not
    been killed.
    """
    while process.poll() is None:
        time.sleep(0.005)
        file = path / "status.json"
        status: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        is_there = status.get("stage") == stage and (status.get("state") or {}).get("step", 0) >= step
        if is_there and engine_of(status) not in {None, *but_not}:
            return status
    raise AssertionError(f"{stage} after step {step} was not seen: {process.communicate()}")
