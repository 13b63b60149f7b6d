"""Means over seeds with uncertainty, and the ratio of two of them. A missing figure is NaN.
Intervals are 95 % percentile bootstraps over seeds. With few seeds they are too narrow (three seeds
can be drawn in ten ways only); the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sppo_ray.intervals import bootstrap_interval, percentile_interval, resampled_means

RESAMPLES = 10_000

Bound = Literal["exact", "at least", "at most", "unknown"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over runs."""

    mean: float
    sd: float  # of the runs, n - 1; NaN for one run
    low: float  # interval of the mean; NaN for one run
    high: float
    censored: int = 0  # runs whose true figure is larger than the one in the mean


@dataclass(frozen=True, slots=True)
class Ratio:
    """The baseline's mean divided by the arm's; above 1 the arm needs less."""

    ratio: float
    low: float
    high: float
    # at least: runs of the baseline were cut off; at most: runs of the arm; unknown: runs of both
    bound: Bound


NO_RATIO = Ratio(math.nan, math.nan, math.nan, "unknown")


def estimate(values: Sequence[float], *, censored: int = 0) -> Estimate:
    """Compute mean, standard deviation and interval; NaN without values."""
    if not values:
        return Estimate(math.nan, math.nan, math.nan, math.nan, censored)
    data = np.asarray(values, dtype=np.float64)
    if data.size == 1:
        return Estimate(float(data[0]), math.nan, math.nan, math.nan, censored)
    low, high = bootstrap_interval(data, seed=0, resamples=RESAMPLES)
    return Estimate(float(data.mean()), float(data.std(ddof=1)), low, high, censored)


def ratio(
    baseline: Sequence[float], arm: Sequence[float], *, baseline_censored: int = 0, arm_censored: int = 0
) -> Ratio:
    """Compute mean(baseline) / mean(arm), both restricted to the budget and resampled
    independently.

    A censored run spent more than its figure, so censored runs on one side make the ratio a bound,
    and on both sides NaN. An arm without cost also gives NaN.
    """
    over, under = np.asarray(baseline, dtype=np.float64), np.asarray(arm, dtype=np.float64)
    if not over.size or not under.size or (baseline_censored and arm_censored) or under.min() <= 0:
        return NO_RATIO
    bound: Bound = "at least" if baseline_censored else "at most" if arm_censored else "exact"
    low, high = math.nan, math.nan
    if over.size > 1 and under.size > 1:
        means = resampled_means(over, seed=0, resamples=RESAMPLES)
        low, high = percentile_interval(means / resampled_means(under, seed=1, resamples=RESAMPLES))
    return Ratio(float(over.mean() / under.mean()), low, high, bound)
