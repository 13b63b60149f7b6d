"""A run of a minute with faults; `make chaos` (tests/chaos) covers every role in every state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.trajectories import read_step
from tests.chaos.cells import Cell
from tests.chaos.record import audit
from tests.chaos.run import TrainingRun
from tests.chaos.strike import strike

PROMPTS = 32
SETTINGS = [
    f"--data.prompts_per_step={PROMPTS}",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=32",
    "--critic.warmup_steps=1",
    "--loop.steps=2000",
    "--loop.max_staleness=1",
    "--learner.ranks=2",
    "--rollout.workers=2",
    "--rollout.cpus_per_worker=0.25",
    "--rollout.probe_every_s=1",
    "--rollout.probe_timeout_s=10",
    "--eval.every=0",
    "--eval.at_start=false",
    "--checkpoint.every=2",
    "--checkpoint.export=false",
    "--logging.progress=plain",
    "--guardrails.action=warn",
]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[TrainingRun]:
    run = TrainingRun(tmp_path / "run", SETTINGS)
    try:
        run.start()
        yield run
    finally:
        run.close()


@pytest.mark.timeout(600)
def test_with_faults_nothing_is_lost_and_the_end_is_clean(run: TrainingRun) -> None:
    """2 engines, 2 learner ranks, staleness 1. An engine is killed while it generates, then the
    critic, then an engine is frozen; each time the run heals itself. Then SIGTERM: checkpoint, exit
    143, no orphan.
    """
    run.wait_until_whole(3, within_s=280)
    for role, fault in (("rollout", "SIGKILL"), ("critic", "SIGKILL"), ("rollout", "SIGSTOP")):
        struck = strike(Cell(role, "generating", fault, staleness=1), run, within_s=60)
        run.wait(f"step {struck.step + 2}", lambda after=struck.step + 1: run.step > after, within_s=120)
        run.rest_until_whole(within_s=180, since=struck.at)
        run.wait_until_whole(run.step + 1, within_s=120, since=struck.at)
    assert run.end() == []  # ended by SIGTERM with code 143, nothing left behind

    summary = json.loads((run.path / "summary.json").read_text())
    steps = summary["steps"]
    # Three restarts: of an engine, of the training processes as a whole, of an engine.
    assert (summary["status"], summary["restarts"], run.resumes) == ("stopped", 3, 0)
    assert (run.path / "checkpoints" / f"step-{steps:06d}" / "manifest.json").exists()
    rows = [row for row in read_metrics(run.path) if "reward/mean" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert {row["staleness/max"] for row in rows} == {0, 1}
    assert rows[-1]["sync/workers"] == 2
    assert {row["worker"] for row in read_step(run.path, 3).to_pylist()} == {"rollout-0", "rollout-1"}
    # Each request of each step once, the struck ones included, and none older than one version.
    assert audit(run.path, range(1, steps + 1), prompts=PROMPTS, samples_per_prompt=1, staleness=1).is_clean
