"""The interface of an experiment tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """Shows the metrics of one run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step; all of them are finite."""
        ...

    def forget_from(self, step: int) -> None:
        """Hide the metrics of `step` and later, which a resumed run writes again."""
        ...

    def close(self) -> None: ...
