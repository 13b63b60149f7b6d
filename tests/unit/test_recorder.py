"""What the recorder adds up over several steps goes through a checkpoint (the figures made of it: tests/ray/test_train.py)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from sppo_ray.trainer.progress import SilentProgress
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.rundir import RunDir
from tests.unit.test_loop import Run


def test_the_samples_since_the_last_evaluation_survive_a_resume(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=2", "--checkpoint.every=2")
    run.train()
    records = run.path / "checkpoints" / "step-000002" / "records"
    # 2 steps of 4 samples: the fake critic says 0.5 of each, and prompts with an even number earn 1.
    assert json.loads((records / "sums.json").read_text()) == {"trained_on": [[0.5, 1.0], [0.5, 0.0]] * 4}
    resumed = Recorder(RunDir(run.path), run.config, SilentProgress())
    resumed.restore(records)
    asyncio.run(resumed.save(tmp_path))
    assert (tmp_path / "sums.json").read_text() == (records / "sums.json").read_text()
    resumed.restore(None)
    asyncio.run(resumed.save(tmp_path))
    assert json.loads((tmp_path / "sums.json").read_text()) == {"trained_on": []}
    resumed.close()
