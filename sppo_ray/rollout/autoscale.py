"""Adjusts the number of rollout workers to the time that the learner waits for generation.

    share = seconds of waiting / seconds of training, over at least rollout.autoscale.every_s
    share > busy_above --> add one worker         (at most rollout.max_workers)
    share < idle_below --> remove one worker      (at least rollout.min_workers)

The measurement restarts after every change, so it always describes the current fleet.
"""

from __future__ import annotations

from sppo_ray.config import RolloutSettings
from sppo_ray.errors import UserError


class Autoscaler:
    """Computes the number of workers from the timing of each step. Pure."""

    def __init__(self, settings: RolloutSettings) -> None:
        """`settings.autoscale` must be set."""
        if settings.autoscale is None or settings.max_workers is None:
            raise ValueError("rollout.autoscale and rollout.max_workers must be set")
        self._rule = settings.autoscale
        self._low, self._high = settings.min_workers, settings.max_workers
        self._workers = settings.workers
        self._seconds = self._waited = 0.0

    @property
    def share(self) -> float:
        """Share of the measured time in which the learner waited; 0 before the first
        measurement.
        """
        return self._waited / self._seconds if self._seconds > 0 else 0.0

    def after_step(self, *, seconds: float, waited: float, workers: int, is_settled: bool) -> int | None:
        """Return the new number of workers; None for no change.

        Args:
            seconds: duration of the step.
            waited: seconds of the step in which the learner waited for generation.
            workers: the target number of workers.
            is_settled: whether no worker is starting or draining.
        """
        if workers != self._workers or not is_settled:
            self._workers, self._seconds, self._waited = workers, 0.0, 0.0
            return None
        self._seconds += seconds
        self._waited += waited
        if self._seconds < self._rule.every_s:
            return None
        share, self._seconds, self._waited = self.share, 0.0, 0.0
        wanted = workers + (share > self._rule.busy_above) - (share < self._rule.idle_below)
        wanted = min(max(wanted, self._low), self._high)
        return wanted if wanted != workers else None


def require_within_bounds(wanted: int, settings: RolloutSettings) -> None:
    """Raise UserError for a number outside rollout.min_workers and rollout.max_workers."""
    low, high = settings.min_workers, settings.max_workers
    if wanted < low:
        raise UserError(
            f"rollout_workers {wanted} is less than rollout.min_workers {low}: ask for at least {low}"
        )
    if high is not None and wanted > high:
        raise UserError(
            f"rollout_workers {wanted} is more than rollout.max_workers {high}: ask for at most {high}"
        )
