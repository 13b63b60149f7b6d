"""The recorder's sums over several steps survive a checkpoint."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from sppo_ray.display.progress import SilentProgress
from sppo_ray.rollout.health import RestartBudget
from sppo_ray.rollout.member import Member
from sppo_ray.rollout.views import WorkerView
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.trainer.checkpoint import TrainerState
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.timing import StageClock
from tests.unit.trainer.test_loop import Run


def test_the_samples_since_the_last_evaluation_survive_a_resume(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=2", "--checkpoint.every=2")
    run.train()
    records = run.path / "checkpoints" / "step-000002" / "records"
    # 2 steps of 4 samples: the fake critic says 0.5 of each, and prompts with an even number earn
    # 1.
    assert json.loads((records / "sums.json").read_text()) == {"trained_on": [[0.5, 1.0], [0.5, 0.0]] * 4}
    resumed = Recorder(RunDir(run.path), run.config, SilentProgress())
    resumed.restore(records)
    asyncio.run(resumed.save(tmp_path))
    assert (tmp_path / "sums.json").read_text() == (records / "sums.json").read_text()
    resumed.restore(None)
    asyncio.run(resumed.save(tmp_path))
    assert json.loads((tmp_path / "sums.json").read_text()) == {"trained_on": []}
    resumed.close()


def test_a_worker_is_busy_while_it_has_a_request() -> None:
    member = Member("rollout-0", RestartBudget(60.0))
    member.book(1, 10.0)
    member.book(1, 11.0)
    member.book(-1, 14.0)  # one is left
    assert member.view(15.0).busy_seconds == 5.0
    member.book(-1, 16.0)
    assert member.view(20.0).busy_seconds == 6.0  # idle since 16
    member.book(2, 30.0)
    assert member.view(31.0).busy_seconds == 7.0


def test_busy_is_the_share_of_the_step(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=1")
    run.train()
    recorder, now = Recorder(RunDir(run.path), run.config, SilentProgress()), 0.0
    recorder._clock = StageClock(lambda: now)
    # Steps of 10 s: rollout-0 worked 4 s of the second, in which rollout-1 came; in the third the
    # fleet is a new one.
    for step, totals in enumerate([{"0": 100.0}, {"0": 104.0, "1": 3.0}, {"0": 8.0, "1": 8.0}], start=2):
        now += 10.0
        fleet = [
            WorkerView(f"rollout-{name}", "HEALTHY", step, 0, 0, 0, total) for name, total in totals.items()
        ]
        recorder.step(replace(TrainerState.initial(), step=step), [], {}, learner_version=step, fleet=fleet)
    recorder.close()
    busy = [
        {name: row[name] for name in row if name.startswith("busy/")} for row in read_metrics(run.path)[-3:]
    ]
    assert busy == [{}, {"busy/rollout-0": 0.4}, {"busy/rollout-1": 0.5}]
