"""Experiment trackers: they receive a run's metrics in addition to metrics.jsonl."""

from __future__ import annotations

from sppo_ray.config import LoggingSettings
from sppo_ray.rundir.layout import RunDir
from sppo_ray.tracking.base import Tracker
from sppo_ray.tracking.tensorboard import TensorBoard


def open_trackers(settings: LoggingSettings, run_dir: RunDir) -> list[Tracker]:
    """Open the trackers that `logging` turns on. Raises UserError when a package is missing."""
    return [TensorBoard(run_dir.tensorboard)] if settings.tensorboard else []
