"""The automatic rule of the fleet's size: more engines while the learner waits for them, fewer while they are idle.

    share = seconds that the learner waited for generation / seconds of training, over the last rollout.autoscale.every_s
    share > busy_above --> one worker more        share < idle_below --> one fewer        between rollout.min and max_workers

One at a time, and measured anew after every change, so that a decision always sees the fleet that it is about.
"""

from __future__ import annotations

from sppo_ray.config import RolloutSettings
from sppo_ray.errors import UserError


class Autoscaler:
    """Pure: it is told of each step and says how many workers there should be."""

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
        """Share of the measured time that the learner waited; 0 before anything was measured."""
        return self._waited / self._seconds if self._seconds > 0 else 0.0

    def after_step(self, *, seconds: float, waited: float, workers: int, is_settled: bool) -> int | None:
        """How many workers to ask for now; None to leave them as they are.

        Args:
            seconds: of training in this step.
            waited: of them, those in which the learner waited for generation.
            workers: how many the fleet was last asked to have.
            is_settled: whether all of them serve and none is on its way out.
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
    """Raises UserError for a number of workers that is not to be."""
    low, high = settings.min_workers, settings.max_workers
    if wanted < low:
        raise UserError(f"rollout_workers {wanted} is less than rollout.min_workers {low}: ask for at least {low}")
    if high is not None and wanted > high:
        raise UserError(f"rollout_workers {wanted} is more than rollout.max_workers {high}: ask for at most {high}")
