"""How good the critic's predictions are: proper scores, correlation and calibration error, each against a baseline.

A critic that always says the batch's mean reward is the *best constant*: a value worth its compute must beat it. The
functions take plain sequences; a figure that is not defined for the data (a correlation with a constant) is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A sigmoid saturates to exactly 0 or 1 in float32; one such value with the opposite reward must not make the mean infinite.
PROBABILITY_FLOOR = 1e-7


def calibration(values: Sequence[float], rewards: Sequence[float], *, bins: int = 10) -> dict[str, float]:
    """Scores of predicted probabilities `values` against `rewards`, both in [0, 1], one entry a sample (or a prompt).

    brier              mean (value - reward)^2
    brier_constant     the same for the best constant, i.e. the variance of the rewards
    log_loss           mean binary cross-entropy, which is the critic's own training loss (nats)
    log_loss_constant  the same for the best constant, i.e. the entropy of the mean reward
    ece                expected calibration error over `bins` bins of equal width
    pearson, spearman  correlation of value and reward; NaN when either is constant

    Raises ValueError on empty or unequal input.
    """
    value, reward = np.asarray(values, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if value.size == 0 or value.shape != reward.shape:
        raise ValueError(f"calibration needs as many values as rewards and at least one: got {value.size} and {reward.size}")
    mean = np.full_like(reward, reward.mean())
    return {
        "brier": float(np.mean((value - reward) ** 2)),
        "brier_constant": float(np.mean((mean - reward) ** 2)),
        "log_loss": _cross_entropy(value, reward),
        "log_loss_constant": _cross_entropy(mean, reward),
        "ece": _expected_calibration_error(value, reward, bins),
        "pearson": _pearson(value, reward),
        "spearman": _pearson(_ranks(value), _ranks(reward)),
    }


def _cross_entropy(value: np.ndarray, reward: np.ndarray) -> float:
    p = np.clip(value, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return float(-np.mean(reward * np.log(p) + (1.0 - reward) * np.log1p(-p)))


def _expected_calibration_error(value: np.ndarray, reward: np.ndarray, bins: int) -> float:
    """Sum over bins of (share of samples) x |mean value - mean reward|; bin b holds [b / bins, (b + 1) / bins)."""
    index = np.minimum((value * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(index, weights=value - reward, minlength=bins)
    return float(np.abs(gaps).sum() / value.size)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    # Compared with ptp, not with a computed deviation: the mean of equal floats may differ from them in the last digit.
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y)))


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing the mean of theirs (rewards are mostly ties)."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2.0)[inverse]
