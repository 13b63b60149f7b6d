"""How far the scores of a reward model have moved since the run's first step.

    reward/<score>_drift = (mean score of the step - mean score of the first step)
                           / standard deviation of the first step

A policy that is trained on a reward model moves its responses to where the model's scores are high.
A drift of several standard deviations means that the model now scores responses unlike those of the
start, where it may be wrong. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sppo_ray.rundir.metrics import is_training_step

SCORE = "score"


def is_score(part: str) -> bool:
    """Whether a part of a reward (`Verdict.parts`) is the score of a reward model."""
    return part.rpartition("/")[2] == SCORE


class ScoreDrift:
    """Mean and standard deviation of each score in the first step that has it."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, float]] = {}

    @classmethod
    def since_the_first_of(cls, rows: Iterable[Mapping[str, Any]]) -> ScoreDrift:
        """Read the first step from the rows of metrics.jsonl, on resume."""
        drift = cls()
        for row in rows:
            if is_training_step(row):
                drift.of(row)
        return drift

    def of(self, figures: Mapping[str, Any]) -> dict[str, float]:
        """Return reward/<score>_drift of a step; 0 in the first one. A score that did not vary in
        the first step has no drift.
        """
        found = {}
        for name, mean in figures.items():
            if not (name.startswith("reward/") and is_score(name)) or mean is None:
                continue
            first, spread = self._first.setdefault(name, (mean, figures[f"{name}_std"]))
            if spread > 0:
                found[f"{name}_drift"] = (mean - first) / spread
        return found
