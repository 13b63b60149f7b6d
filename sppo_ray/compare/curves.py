"""A run's learning curve: accuracy at the budget, area under it, and the cost to reach a target.

Time is training time, without evaluations and checkpoints. Values between two evaluations are
interpolated linearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One held-out evaluation, with the training time and tokens until then."""

    seconds: float
    samples: float  # trained on
    tokens: float  # generated for training: greedy baselines and dropped groups included
    accuracy: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """The cost of a run to reach a target, or its whole cost within the budget if it never did."""

    reached: bool
    seconds: float
    samples: float
    tokens: float


def until(curve: Sequence[Point], budget_s: float) -> list[Point]:
    """Cut the curve at the budget. A run ends with a whole step, so its last evaluation may be
    later; the last point is then interpolated.
    """
    within = [point for point in curve if point.seconds <= budget_s]
    beyond = [point for point in curve if point.seconds > budget_s]
    if within and beyond and within[-1].seconds < budget_s:
        before, after = within[-1], beyond[0]
        within.append(_between(before, after, (budget_s - before.seconds) / (after.seconds - before.seconds)))
    return within


def area(curve: Sequence[Point], budget_s: float) -> float:
    """Mean accuracy over the budget's time (trapezoids). A run that ended early keeps its last
    accuracy.
    """
    points = until(curve, budget_s)
    total = sum(
        (after.seconds - before.seconds) * (before.accuracy + after.accuracy) / 2
        for before, after in zip(points, points[1:], strict=False)
    )
    return (total + (budget_s - points[-1].seconds) * points[-1].accuracy) / budget_s


def crossing(curve: Sequence[Point], target: float, budget_s: float) -> Crossing:
    """Find when the curve reaches `target`: the first of two consecutive evaluations at or above it
    (a single one may be luck).

    The time is interpolated from the evaluation before. Later than the budget does not count.
    """
    for index, (here, following) in enumerate(zip(curve, curve[1:], strict=False)):
        if here.accuracy >= target and following.accuracy >= target:
            at = _meets(curve[index - 1], here, target) if index else here
            if at.seconds <= budget_s:
                return Crossing(True, at.seconds, at.samples, at.tokens)
            break
    end = until(curve, budget_s)[-1]
    return Crossing(False, budget_s, end.samples, end.tokens)


def _meets(before: Point, after: Point, target: float) -> Point:
    # `before` lies below the target: otherwise it, followed by `after`, would have been the
    # crossing.
    return _between(before, after, (target - before.accuracy) / (after.accuracy - before.accuracy))


def _between(before: Point, after: Point, share: float) -> Point:
    def mix(old: float, new: float) -> float:
        return old + share * (new - old)

    return Point(
        mix(before.seconds, after.seconds),
        mix(before.samples, after.samples),
        mix(before.tokens, after.tokens),
        mix(before.accuracy, after.accuracy),
    )
