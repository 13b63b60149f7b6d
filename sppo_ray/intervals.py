"""95 % confidence intervals: the percentile bootstrap, and Wilson's interval of a share.

An interval is (low, high), or (NaN, NaN) without data. The same seed draws the same resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

Interval = tuple[float, float]

LEVEL = 0.95
RESAMPLES = 1000
_Z = 1.959964  # 97.5 % point of the normal distribution
_BLOCK_ENTRIES = 2**20  # bounds the memory of the resamples that are drawn together


def bootstrap_interval(values: Sequence[float], *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Bootstrap interval of the mean, from `resamples` resamples of the values."""
    if not len(values):
        return math.nan, math.nan
    return percentile_interval(resampled_means(values, seed=seed, resamples=resamples))


def resampled_means(
    values: Sequence[float] | np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return the means [resamples] of resamples with replacement, each as large as `values`."""
    data = np.asarray(values, dtype=np.float64)
    return np.concatenate([data[draws].mean(axis=1) for draws in _blocks(data.size, seed, resamples)])


def resampled_indices(size: int, *, seed: int, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Yield the indices [size] of each of `resamples` resamples, for statistics other than the
    mean.
    """
    return (draw for draws in _blocks(size, seed, resamples) for draw in draws)


def percentile_interval(statistics: Sequence[float] | np.ndarray) -> Interval:
    """The middle 95 % of a statistic's values in the resamples."""
    if not len(statistics):
        return math.nan, math.nan
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(statistics, [tail, 1.0 - tail])
    return float(low), float(high)


def wilson_interval(share: float, count: int) -> Interval:
    """Interval of a mean of `count` zeros and ones; too wide for a mean of fractions."""
    if count == 0:
        return math.nan, math.nan
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    variance = max(share * (1 - share), 0.0) / count + _Z**2 / (4 * count**2)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(variance)
    return centre - half, centre + half


def _blocks(size: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """The indices [n, size] of `resamples` resamples, n at a time."""
    generator = np.random.default_rng(seed)
    most = max(1, _BLOCK_ENTRIES // size)
    for start in range(0, resamples, most):
        yield generator.integers(size, size=(min(most, resamples - start), size))
