"""The limit of restarts from a checkpoint."""

from __future__ import annotations

from sppo_ray.config import RecoverySettings
from sppo_ray.launch.restarts import Recovery


def test_back_off_doubles_up_to_a_minute_and_the_restarts_end() -> None:
    recovery = Recovery(RecoverySettings(max_restarts=8, backoff_s=1.0))
    assert [recovery.next_delay(5) for _ in range(9)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, None]
    assert (recovery.total, recovery.in_a_row, recovery.furthest) == (8, 8, 5)


def test_only_a_step_further_than_ever_gives_restarts_back() -> None:
    recovery = Recovery(RecoverySettings(max_restarts=2, backoff_s=1.0))
    # lost at 10, restored, lost again before 10
    assert [recovery.next_delay(step) for step in (10, 8)] == [1.0, 2.0]
    assert recovery.next_delay(10) is None  # as far as before is not further
    assert [recovery.next_delay(step) for step in (11, 11)] == [1.0, 2.0]
    assert recovery.total == 4


def test_none_allowed() -> None:
    assert Recovery(RecoverySettings(max_restarts=0)).next_delay(3) is None
