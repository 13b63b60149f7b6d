"""Limits how often a run restarts from its checkpoint without progress.

A loss at a later step than any earlier loss resets the count. Restarts are 1, 2, 4, ... s apart, at
most `max_restarts` in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo_ray.config import RecoverySettings
from sppo_ray.rollout.health import restart_delay_s


@dataclass(slots=True)
class Recovery:
    """Counts restarts without progress, so that a fault at the same step each time ends the run."""

    settings: RecoverySettings
    total: int = 0
    in_a_row: int = 0  # since the last progress
    furthest: int = -1  # most steps at any loss so far

    def next_delay(self, step: int) -> float | None:
        """Return the seconds to wait before the restart after a loss at `step`; None when the
        restarts are used up.
        """
        if step > self.furthest:
            self.furthest, self.in_a_row = step, 0
        if self.in_a_row >= self.settings.max_restarts:
            return None
        delay = restart_delay_s(self.in_a_row, base=self.settings.backoff_s)
        self.in_a_row += 1
        self.total += 1
        return delay
