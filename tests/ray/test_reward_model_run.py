"""A run with a reward model in an actor of its own: its metrics, and the loss of that actor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo_ray.rundir.metrics import read_metrics
from tests.chaos.run import TrainingRun
from tests.ray.test_faults import SETTINGS
from tests.unit.models.test_reward_model import save

pytestmark = pytest.mark.slow  # two minutes


@pytest.fixture
def run(tmp_path: Path) -> Iterator[TrainingRun]:
    model = save(tmp_path / "model", max_position_embeddings=512)
    parts = [
        f"{{name: liked, function: {{type: model, model: {model}, transform: {{type: sigmoid}}, "
        "cpus_per_replica: 0.25}}",
        "{name: right, weight: 0, function: {type: running-sum}}",
    ]
    function = f"--reward.function={{type: sum, parts: [{', '.join(parts)}]}}"
    run = TrainingRun(tmp_path / "run", [*SETTINGS, "--learner.ranks=1", "--rollout.workers=1", function])
    try:
        run.start()
        yield run
    finally:
        run.close()


@pytest.mark.timeout(600)
def test_a_run_survives_the_loss_of_its_reward_model(run: TrainingRun) -> None:
    run.wait_until_whole(3, within_s=280)
    for fault in (signal.SIGKILL, signal.SIGSTOP):
        lost, step = run.pid_of("reward-model-0-0", run.status), run.step
        assert lost is not None
        os.kill(lost, fault)
        run.wait(f"step {step + 3}", lambda after=step + 2: run.step > after, within_s=240)
        assert run.pid_of("reward-model-0-0", run.status) not in (None, lost)
    assert run.end() == []
    rows = [row for row in read_metrics(run.path) if "reward/mean" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        assert row["reward/liked"] == row["reward/mean"] and row["reward/errors"] == 0
        assert row["reward/watched"] == row["reward/right"]
        assert {"reward/liked/score", "reward/liked/score_std", "reward/liked/score_drift"} <= row.keys()
