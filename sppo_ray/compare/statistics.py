"""Means over seeds with their uncertainty, and the ratio of two of them. A figure that does not exist is NaN.

Intervals are 95 % percentile bootstraps over seeds. With few seeds they are too narrow (three seeds can be drawn in ten
ways only); the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95

Bound = Literal["exact", "at least", "at most", "unknown"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over runs."""

    mean: float
    sd: float  # of the runs, n - 1; NaN for one run
    low: float  # interval of the mean; NaN for one run
    high: float
    censored: int = 0  # runs whose true figure is larger than the one that went into the mean


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times less than the baseline: its mean divided by the arm's, above 1 = the arm needs less."""

    ratio: float
    low: float
    high: float
    bound: Bound  # at least: runs of the baseline were cut off; at most: runs of the arm; unknown: of both


NO_RATIO = Ratio(math.nan, math.nan, math.nan, "unknown")


def estimate(values: Sequence[float], *, censored: int = 0) -> Estimate:
    """Mean, standard deviation and interval. Nothing gives NaN."""
    if not values:
        return Estimate(math.nan, math.nan, math.nan, math.nan, censored)
    data = np.asarray(values, dtype=np.float64)
    if data.size == 1:
        return Estimate(float(data[0]), math.nan, math.nan, math.nan, censored)
    low, high = _quantiles(_resampled_means(data, seed=0))
    return Estimate(float(data.mean()), float(data.std(ddof=1)), low, high, censored)


def ratio(baseline: Sequence[float], arm: Sequence[float], *, baseline_censored: int = 0, arm_censored: int = 0) -> Ratio:
    """mean(baseline) / mean(arm), both restricted to the budget; the two are resampled independently.

    A censored run spent more than its figure says, so that one side's make the ratio a bound, and both sides' make it
    worthless: NaN. So does an arm that spent nothing.
    """
    over, under = np.asarray(baseline, dtype=np.float64), np.asarray(arm, dtype=np.float64)
    if not over.size or not under.size or (baseline_censored and arm_censored) or under.min() <= 0:
        return NO_RATIO
    bound: Bound = "at least" if baseline_censored else "at most" if arm_censored else "exact"
    low, high = math.nan, math.nan
    if over.size > 1 and under.size > 1:
        low, high = _quantiles(_resampled_means(over, seed=0) / _resampled_means(under, seed=1))
    return Ratio(float(over.mean() / under.mean()), low, high, bound)


def _resampled_means(data: np.ndarray, *, seed: int) -> np.ndarray:
    """[RESAMPLES] means of as many values drawn with replacement."""
    draws = np.random.default_rng(seed).integers(data.size, size=(RESAMPLES, data.size))
    return data[draws].mean(axis=1)


def _quantiles(means: np.ndarray) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
