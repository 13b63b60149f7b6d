"""Checks the metrics of every step and raises an alarm when training fails. Pure.

    metrics --> each detector: normal, anomaly, or skipped
        --> enough anomalies within its window: one alarm, until the window has no anomaly

Steps with an anomaly are left out of the medians, so a lasting fault does not become normal. The
loop acts on an alarm (`guardrails.action`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from sppo_ray.config.guardrails import Action, GuardrailSettings
from sppo_ray.errors import UserError
from sppo_ray.rundir.metrics import is_training_step
from sppo_ray.rundir.status import Alert
from sppo_ray.trainer.detectors import DETECTORS, Anomaly, Baseline, Detector, Figures, synchronous_mismatch

MEMORY = 30  # normal steps in the medians


class GuardrailStop(UserError):
    """A guardrail ended the run. The message is the diagnosis. A restart would fail in the same
    way.
    """

    exit_code = 5


class Guardrails:
    """The detectors of a run with their history."""

    def __init__(self, settings: GuardrailSettings, *, synchronous: bool) -> None:
        """`synchronous`: loop.max_staleness is 0."""
        self._watches = [
            _Watch(name, detector, limit, "warn" if detector.only_warns else settings.action)
            for name, detector in DETECTORS.items()
            if (limit := getattr(settings, name)) is not None and settings.action != "off"
        ]
        if synchronous:
            for watch in self._watches:
                watch.judge = synchronous_mismatch if watch.name == "mismatch" else watch.judge

    def check(self, step: int, figures: Figures) -> tuple[Alert, ...]:
        """Check the metrics after `step` steps and return the new alarms."""
        return tuple(alarm for watch in self._watches if (alarm := watch.check(step, figures)) is not None)

    def remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Restore the history and the active alarms of an interrupted run from the rows of its
        metrics.jsonl.
        """
        for row in rows:
            if is_training_step(row):
                self.check(row["step"], finite_or_nan(row))

    @property
    def alarms(self) -> tuple[Alert, ...]:
        """The active alarms."""
        return tuple(watch.alarm for watch in self._watches if watch.alarm is not None)

    def metrics(self) -> dict[str, float]:
        """Return the number of active alarms and 1 for each active alarm, for metrics.jsonl."""
        return {"guardrail/alarms": len(self.alarms)} | {
            f"guardrail/{alarm.detector}": 1.0 for alarm in self.alarms
        }

    def watched(self) -> dict[str, int]:
        """Return the number of steps that each detector has checked."""
        return {watch.name: watch.judged for watch in self._watches}


class _Watch:
    """A detector with its history."""

    def __init__(self, name: str, detector: Detector, limit: float, action: Action) -> None:
        self.name = name
        self.judge = detector.judge
        self.alarm: Alert | None = None
        self.judged = 0
        self._detector = detector
        self._limit = limit
        self._action = action
        self._normal: deque[Figures] = deque(maxlen=MEMORY)
        self._previous: Figures = {}
        window = int(limit) if detector.window is None else detector.window
        self._latest: deque[tuple[int, Anomaly | None]] = deque(maxlen=window)

    def check(self, step: int, figures: Figures) -> Alert | None:
        if not all(math.isfinite(figures.get(name, math.nan)) for name in self._detector.watches):
            return None
        self.judged += 1
        anomaly = self.judge(figures, Baseline(self._normal, self._previous), self._limit)
        self._latest.append((step, anomaly))
        self._previous = {name: figures[name] for name in self._detector.watches}
        if anomaly is None:
            self._normal.append(self._previous)
        found = [(at, seen) for at, seen in self._latest if seen is not None]
        if self.alarm is not None:
            self.alarm = self.alarm if found else None
            return None
        needed = self._limit if self._detector.needed is None else self._detector.needed
        if sum(seen.weight for _, seen in found) >= needed:
            self.alarm = self._raise(step, found)
        return self.alarm

    def _raise(self, step: int, found: list[tuple[int, Anomaly]]) -> Alert:
        since, (seen, _) = found[0][0], found[-1][1]
        total = sum(anomaly.weight for _, anomaly in found)
        count = f" ({total} in {len(found)} steps)" if self._detector.needed is None else ""
        message = (
            f"{self.name.replace('_', ' ')}: {seen}{count}, since step {since}. It usually means "
            f"{self._detector.meaning}. "
            f"What to do: {self._detector.remedy}. guardrails.{self.name} holds the limit."
        )
        return Alert(detector=self.name, step=step, since=since, action=self._action, message=message)


def finite_or_nan(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of metrics.jsonl, with NaN for null."""
    numbers = {name: math.nan if value is None else value for name, value in row.items()}
    return {name: value for name, value in numbers.items() if isinstance(value, int | float)}
