"""Looks at every step's figures and raises an alarm when training goes wrong. Pure: figures in, alarms out.

    figures --> each detector: calm, odd, or not taken at this step
                enough odd steps within its window --> one Alarm, which stays up until the window is calm again

A step that is odd does not count towards what is usual, so a fault does not become the normal state by lasting. What an alarm
does (`guardrails.action`) is up to the loop.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sppo_ray.config.guardrails import Action, GuardrailSettings
from sppo_ray.errors import UserError
from sppo_ray.trainer.detectors import DETECTORS, Detector, Figures, Odd, Usual, synchronous_mismatch

MEMORY = 30  # calm steps that say what is usual


class GuardrailStop(UserError):
    """A guardrail ended the run; the message is the diagnosis. Starting it again as it is would lead there again."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class Alarm:
    """One fault, as it is told to people and machines."""

    detector: str  # the setting guardrails.<detector> holds its limit
    step: int  # steps done when it was raised
    since: int  # first odd step
    action: Action  # warn, pause or stop
    message: str  # what was seen, since when, what it usually means, what to do

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Guardrails:
    """One run's detectors and their memory."""

    def __init__(self, settings: GuardrailSettings, *, synchronous: bool) -> None:
        """`synchronous`: no sample is staler than its step (loop.max_staleness 0)."""
        self._watches = [
            _Watch(name, detector, limit, "warn" if detector.only_warns else settings.action)
            for name, detector in DETECTORS.items()
            if (limit := getattr(settings, name)) is not None and settings.action != "off"
        ]
        if synchronous:
            for watch in self._watches:
                watch.judge = synchronous_mismatch if watch.name == "mismatch" else watch.judge

    def check(self, step: int, figures: Figures) -> tuple[Alarm, ...]:
        """Take in the figures of `step` (steps done) and return the alarms that it raised. One that is up is not raised again."""
        return tuple(alarm for watch in self._watches if (alarm := watch.check(step, figures)) is not None)

    def remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in the steps of an interrupted run: rows of metrics.jsonl. What they raised is up, and not raised again."""
        for row in rows:
            if is_step(row):
                self.check(row["step"], finite_or_nan(row))

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Those that are up."""
        return tuple(watch.alarm for watch in self._watches if watch.alarm is not None)

    def metrics(self) -> dict[str, float]:
        """For the step's row: how many alarms are up, and which."""
        return {"guardrail/alarms": len(self.alarms)} | {f"guardrail/{alarm.detector}": 1.0 for alarm in self.alarms}

    def watched(self) -> dict[str, int]:
        """Steps that each detector has judged."""
        return {watch.name: watch.judged for watch in self._watches}


class _Watch:
    """A detector over the steps of a run."""

    def __init__(self, name: str, detector: Detector, limit: float, action: Action) -> None:
        self.name = name
        self.judge = detector.judge
        self.alarm: Alarm | None = None
        self.judged = 0
        self._detector = detector
        self._limit = limit
        self._action = action
        self._calm: deque[Figures] = deque(maxlen=MEMORY)
        self._previous: Figures = {}
        self._latest: deque[tuple[int, Odd | None]] = deque(maxlen=detector.window)

    def check(self, step: int, figures: Figures) -> Alarm | None:
        if not all(math.isfinite(figures.get(name, math.nan)) for name in self._detector.watches):
            return None
        self.judged += 1
        odd = self.judge(figures, Usual(self._calm, self._previous), self._limit)
        self._latest.append((step, odd))
        self._previous = {name: figures[name] for name in self._detector.watches}
        if odd is None:
            self._calm.append(self._previous)
        found = [(at, seen) for at, seen in self._latest if seen is not None]
        if self.alarm is not None:
            self.alarm = self.alarm if found else None
            return None
        needed = self._limit if self._detector.needed is None else self._detector.needed
        if sum(seen.weight for _, seen in found) >= needed:
            self.alarm = self._raise(step, found)
        return self.alarm

    def _raise(self, step: int, found: list[tuple[int, Odd]]) -> Alarm:
        since, (seen, _) = found[0][0], found[-1][1]
        total = sum(odd.weight for _, odd in found)
        count = f" ({total} in {len(found)} steps)" if self._detector.needed is None else ""
        message = (
            f"{self.name.replace('_', ' ')}: {seen}{count}, since step {since}. It usually means {self._detector.meaning}. "
            f"What to do: {self._detector.remedy}. guardrails.{self.name} holds the limit."
        )
        return Alarm(self.name, step, since, self._action, message)


def is_step(row: Mapping[str, Any]) -> bool:
    """Whether a row of metrics.jsonl is a training step's, and no evaluation's."""
    return "seconds/step" in row


def finite_or_nan(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row of metrics.jsonl, where null stands for what was not finite."""
    numbers = {name: math.nan if value is None else value for name, value in row.items()}
    return {name: value for name, value in numbers.items() if isinstance(value, int | float)}
