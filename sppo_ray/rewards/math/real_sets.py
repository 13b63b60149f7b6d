"""Sets of real numbers as unions of intervals: what an inequality, an interval or a set of points
stands for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sppo_ray.rewards.math.values import Number, real, same_number

INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, each with whether it belongs to the interval. A point is [x, x]."""

    low: Number
    has_low: bool
    high: Number
    has_high: bool


Region = tuple[Interval, ...]
"""Sorted intervals that neither overlap nor touch."""

EVERYTHING: Region = (Interval(-INFINITY, False, INFINITY, False),)


def point(number: Number) -> Interval:
    return Interval(number, True, number, True)


def union(intervals: Iterable[Interval]) -> Region:
    """The intervals as one region."""
    ordered = sorted(
        (one for one in intervals if not _is_empty(one)), key=lambda one: (real(one.low), not one.has_low)
    )
    merged: list[Interval] = []
    for one in ordered:
        if merged and _touch(merged[-1], one):
            merged[-1] = _joined(merged[-1], one)
        else:
            merged.append(one)
    return tuple(merged)


def intersection(one: Region, other: Region) -> Region:
    """What lies in both."""
    return union(_common(a, b) for a in one for b in other)


def complement(region: Region) -> Region:
    """All other real numbers."""
    gaps, low, has_low = [], -INFINITY, False
    for one in region:
        gaps.append(Interval(low, has_low, one.low, not one.has_low))
        low, has_low = one.high, not one.has_high
    return union([*gaps, Interval(low, has_low, INFINITY, False)])


def same_region(one: Region, other: Region) -> bool:
    """Whether two regions hold the same numbers."""
    return len(one) == len(other) and all(
        (a.has_low, a.has_high) == (b.has_low, b.has_high) and equal(a.low, b.low) and equal(a.high, b.high)
        for a, b in zip(one, other, strict=True)
    )


def equal(one: Number, other: Number) -> bool:
    return same_number((one, other), 50)


def _less(one: Number, other: Number) -> bool:
    return not equal(one, other) and bool(real(one) < real(other))


def _is_empty(one: Interval) -> bool:
    if equal(one.low, one.high):
        return not (one.has_low and one.has_high)
    return not _less(one.low, one.high)


def _touch(left: Interval, right: Interval) -> bool:
    if equal(left.high, right.low):
        return left.has_high or right.has_low
    return _less(right.low, left.high)


def _joined(left: Interval, right: Interval) -> Interval:
    if equal(left.high, right.high):
        return Interval(left.low, left.has_low, left.high, left.has_high or right.has_high)
    last = right if _less(left.high, right.high) else left
    return Interval(left.low, left.has_low, last.high, last.has_high)


def _common(one: Interval, other: Interval) -> Interval:
    if equal(one.low, other.low):
        low, has_low = one.low, one.has_low and other.has_low
    else:
        inner = other if _less(one.low, other.low) else one
        low, has_low = inner.low, inner.has_low
    if equal(one.high, other.high):
        high, has_high = one.high, one.has_high and other.has_high
    else:
        inner = one if _less(one.high, other.high) else other
        high, has_high = inner.high, inner.has_high
    return Interval(low, has_low, high, has_high)
