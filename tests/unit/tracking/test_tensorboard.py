"""Experiment trackers: what the recorder tells them, and what TensorBoard then shows."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from sppo_ray.errors import UserError
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.tracking.tensorboard import TensorBoard
from tests.unit.trainer.test_loop import Run


def scalars(directory: Path, tag: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    known = tag in accumulator.Tags()["scalars"]
    return {event.step: event.value for event in accumulator.Scalars(tag)} if known else {}


def test_tensorboard_shows_the_resumed_steps_only(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    for step in range(8):
        first.write(step, {"reward/mean": step / 10})
    first.close()
    resumed = TensorBoard(tmp_path)
    resumed.forget_from(6)
    for step in (6, 7):
        resumed.write(step, {"reward/mean": 2.0})
    resumed.close()
    assert scalars(tmp_path, "reward/mean") == pytest.approx(
        {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 2.0, 7: 2.0}
    )


def test_a_run_writes_its_finite_metrics_to_tensorboard(tmp_path: Path) -> None:
    run = Run(tmp_path, "--loop.steps=3", "--logging.tensorboard=true")
    run.train()
    rows = read_metrics(run.path)
    written = {row["step"]: row["reward/mean"] for row in rows if "reward/mean" in row}
    assert scalars(run.path / "tensorboard", "reward/mean") == pytest.approx(written)
    undefined = {name for row in rows for name in row.get("nonfinite", [])}
    assert undefined  # the fake critic is constant, so its correlation is not defined
    for name in undefined:
        values = scalars(run.path / "tensorboard", name).values()
        assert all(map(math.isfinite, values))


def test_a_missing_package_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(UserError, match="is not installed: pip install tensorboard, or set --logging"):
        TensorBoard(tmp_path)
