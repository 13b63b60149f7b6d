"""How often a run goes back to its checkpoint: again and again while that brings it further, else a few times.

A loss further on than any before it starts the count anew. Restarts are 1, 2, 4, ... s apart, `max_restarts` in a row at most.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo_ray.config import RecoverySettings
from sppo_ray.trainer.health import restart_delay_s


@dataclass(slots=True)
class Recovery:
    """The restarts so far. What ends a run at the same step each time does not keep it busy for ever."""

    settings: RecoverySettings
    total: int = 0
    in_a_row: int = 0  # since the run last got further than before
    furthest: int = -1  # most steps done at any loss so far

    def next_delay(self, step: int) -> float | None:
        """Seconds to wait before the restart after a loss with `step` steps done; None when the restarts are used up."""
        if step > self.furthest:
            self.furthest, self.in_a_row = step, 0
        if self.in_a_row >= self.settings.max_restarts:
            return None
        delay = restart_delay_s(self.in_a_row, base=self.settings.backoff_s)
        self.in_a_row += 1
        self.total += 1
        return delay
