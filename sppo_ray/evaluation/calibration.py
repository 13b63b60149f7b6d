"""Measure the critic's predictions: proper scores, ranking, correlation and calibration error,
against baselines.

The *best constant* critic always predicts the mean reward; a useful critic must beat it. The
functions take plain sequences with one entry per prompt (reward = its empirical solve rate) or per
sample. An undefined figure, such as a correlation with a constant, is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sppo_ray.intervals import RESAMPLES, Interval, percentile_interval, resampled_indices, wilson_interval
from sppo_ray.rundir.jsonlines import finite_json

# A sigmoid saturates to exactly 0 or 1 in float32; one such value with the opposite reward must not
# make the mean infinite.
PROBABILITY_FLOOR = 1e-7
BINS = 10
# Names of sets of prompts in tables and plots.
HELD_OUT, SEEN = "held-out prompts", "seen in training"
# on a first pass over the data the critic has not seen them yet
TRAINED_ON = "training samples, valued before their update"


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The predictions in [low, high), and their rewards."""

    low: float
    high: float  # the last bin holds 1.0 as well
    count: int
    value_mean: float  # NaN in an empty bin
    reward_mean: float  # NaN in an empty bin

    def reward_interval(self) -> Interval:
        """95 % Wilson interval of the mean reward. Meant for rewards 0 and 1; too wide for averages
        of k of them.
        """
        return wilson_interval(self.reward_mean, self.count)


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """The critic's calibration on one set of prompts or samples."""

    count: int
    figures: Mapping[str, float]  # of `calibration`; {} for nothing
    bins: tuple[ReliabilityBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: {"count", "figures", "bins"}, NaN as null."""
        return finite_json(asdict(self))

    @classmethod
    def from_dict(cls, node: Mapping[str, Any]) -> CalibrationReport:
        """The inverse of `to_dict`, null as NaN. Raises KeyError or TypeError for another JSON
        object.
        """
        figures = {name: math.nan if figure is None else figure for name, figure in node["figures"].items()}
        rows = [
            {name: math.nan if cell is None else cell for name, cell in row.items()} for row in node["bins"]
        ]
        return cls(node["count"], figures, tuple(ReliabilityBin(**row) for row in rows))


NOT_VALUED = CalibrationReport(0, {}, ())
"""No prompt had both a value and a reward."""


def calibration(values: Sequence[float], rewards: Sequence[float], *, bins: int = BINS) -> dict[str, float]:
    """Compute scores of predicted probabilities `values` against `rewards`, both in [0, 1], one
    entry per sample (or prompt).

    brier              mean (value - reward)^2
    brier_constant     the same for the best constant, i.e. the variance of the rewards
                       ("uncertainty")
    reliability        part of the Brier score that recalibration removes: mean over samples of
                       (bin's mean value - bin's mean reward)^2; 0 is best
    resolution         gain from distinguishing prompts: mean of (bin's mean reward - mean
                       reward)^2; large is best.
                       brier = reliability - resolution + brier_constant (Murphy 1973) when the
                       values of a bin are equal;
                       otherwise their spread inside the bins makes a small difference
    log_loss           mean binary cross-entropy, which is the critic's own training loss (nats)
    log_loss_constant  the same for the best constant, i.e. the entropy of the mean reward
    ece                expected calibration error over `bins` bins of equal width
    auroc              chance that a solved sample has a higher value than an unsolved one, ties
                       count half. A fractional
                       reward r counts as r solved and 1 - r unsolved samples, so that an average of
                       k outcomes gives what
                       the k outcomes by themselves would
    pearson, spearman  correlation of value and reward; NaN when either is constant

    With a reward outside [0, 1], log-loss and AUROC are NaN. Raises ValueError on empty or unequal
    input.
    """
    value, reward = _arrays(values, rewards)
    mean = np.full_like(reward, reward.mean())
    in_range = bool(reward.min() >= 0.0 and reward.max() <= 1.0)
    counts, value_gaps, reward_gaps = _bin_sums(value, reward, bins)
    return {
        "brier": float(np.mean((value - reward) ** 2)),
        "brier_constant": float(np.mean((mean - reward) ** 2)),
        "reliability": float(np.sum(value_gaps**2 / np.maximum(counts, 1)) / value.size),
        "resolution": float(np.sum(reward_gaps**2 / np.maximum(counts, 1)) / value.size),
        "log_loss": _cross_entropy(value, reward) if in_range else math.nan,
        "log_loss_constant": _cross_entropy(mean, reward) if in_range else math.nan,
        "ece": float(np.abs(value_gaps).sum() / value.size),
        "auroc": _auroc(value, reward) if in_range else math.nan,
        "pearson": _pearson(value, reward),
        "spearman": _pearson(_ranks(value), _ranks(reward)),
    }


def reliability_bins(
    values: Sequence[float], rewards: Sequence[float], *, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Return the table behind ECE and the reliability plot: `bins` bins of equal width, including
    empty ones.
    """
    value, reward = _arrays(values, rewards)
    index = _bin_index(value, bins)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        value_means = np.bincount(index, weights=value, minlength=bins) / counts
        reward_means = np.bincount(index, weights=reward, minlength=bins) / counts
    return tuple(
        ReliabilityBin(
            b / bins, (b + 1) / bins, int(counts[b]), float(value_means[b]), float(reward_means[b])
        )
        for b in range(bins)
    )


def calibrate(values: Sequence[float], rewards: Sequence[float], *, bins: int = BINS) -> CalibrationReport:
    """Compute figures and bins."""
    return CalibrationReport(
        len(values), calibration(values, rewards, bins=bins), reliability_bins(values, rewards, bins=bins)
    )


def calibration_intervals(
    values: Sequence[float],
    rewards: Sequence[float],
    *,
    seed: int,
    bins: int = BINS,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Percentile bootstrap of every figure of `calibration`, over prompts; (NaN, NaN) where
    undefined.

    Small bins bias ECE and reliability upwards, more so in a resample, so their intervals tend to
    be high.
    """
    value, reward = _arrays(values, rewards)
    draws = resampled_indices(value.size, seed=seed, resamples=resamples)
    rows = [calibration(value[draw], reward[draw], bins=bins) for draw in draws]
    return {name: percentile_interval(_finite([row[name] for row in rows])) for name in rows[0]}


# ------------------------------------------------------------------------------------------- inside


def _arrays(values: Sequence[float], rewards: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    value, reward = np.asarray(values, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if value.size == 0 or value.shape != reward.shape:
        raise ValueError(
            f"calibration needs as many values as rewards and at least one: got {value.size} and "
            f"{reward.size}"
        )
    return value, reward


def _cross_entropy(value: np.ndarray, reward: np.ndarray) -> float:
    p = np.clip(value, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return float(-np.mean(reward * np.log(p) + (1.0 - reward) * np.log1p(-p)))


def _bin_index(value: np.ndarray, bins: int) -> np.ndarray:
    """Bin b holds [b / bins, (b + 1) / bins). The outermost bins also take values outside [0, 1] (a
    critic without a sigmoid).
    """
    return np.clip(np.floor(value * bins).astype(np.int64), 0, bins - 1)


def _bin_sums(value: np.ndarray, reward: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each bin [bins]: count, sum of (value - reward), sum of (reward - mean reward)."""
    index = _bin_index(value, bins)
    counts = np.bincount(index, minlength=bins)
    value_gaps = np.bincount(index, weights=value - reward, minlength=bins)
    return counts, value_gaps, np.bincount(index, weights=reward - reward.mean(), minlength=bins)


def _auroc(value: np.ndarray, reward: np.ndarray) -> float:
    """Mann-Whitney's U divided by its maximum; each entry has weight `reward` among the solved and
    1 - reward among the unsolved.
    """
    levels, index = np.unique(value, return_inverse=True)
    solved = np.bincount(index, weights=reward, minlength=levels.size)
    unsolved = np.bincount(index, weights=1.0 - reward, minlength=levels.size)
    if solved.sum() == 0.0 or unsolved.sum() == 0.0:
        return math.nan
    below = np.cumsum(unsolved) - unsolved / 2.0
    return float(np.sum(solved * below) / (solved.sum() * unsolved.sum()))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    # Compared with ptp, not with a computed deviation: the mean of equal floats may differ from
    # them in the last digit.
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y)))


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing the mean of theirs (rewards are mostly ties)."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2.0)[inverse]


def _finite(figures: Sequence[float]) -> list[float]:
    return [figure for figure in figures if math.isfinite(figure)]
