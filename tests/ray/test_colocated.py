"""A run whose roles take turns is the run with devices of their own, bit for bit; also with an
engine that is killed in every phase. Ray, vLLM and DeepSpeed are real; on a CPU the engine's sleep
is the fake of `actors/engine_sleep.py`, and the states of ZeRO-0 move by its stand-in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
KILLS = "1:generate,2:policy,3:critic,4:publish,5:sync"
"""Step and place at which the engine is killed (`killing_driver.py`)."""


def run(run_dir: Path, *more: str) -> None:
    finish("sppo_ray", "train", "quickstart", "--run-dir", str(run_dir), *SETTINGS, *more)


def finish(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("separate") / "run"
    run(path)
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
        run(separate, *more)
    run(tmp_path / "run", COLOCATED, *more)
    ours, theirs = run_record.record(tmp_path / "run"), run_record.record(separate)
    assert len(ours["trajectories"]) == STEPS and len(ours["checkpoints"]) == 3
    for part, found in theirs.items():
        assert ours[part] == found, part


def test_an_engine_killed_in_each_phase_leaves_no_trace(separate: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    finish("tests.ray.killing_driver", str(path), KILLS, *SETTINGS, COLOCATED, "--rollout.max_restarts=9")
    kinds = [event["kind"] for event in read_events(path)]
    assert kinds.count("worker-lost") == kinds.count("worker-revived") == KILLS.count(":")
    assert "recovering" not in kinds
    ours, theirs = run_record.record(path), run_record.record(separate)
    for part in ("export", "trajectories", "evaluations"):
        assert ours[part] == theirs[part], part
