"""How good the critic's predictions are: proper scores, ranking, correlation and calibration error, against baselines.

A critic that always says the mean reward is the *best constant*: a value worth its compute must beat it. The functions
take plain sequences, one entry a prompt (reward = its empirical solve rate) or a sample (reward = its own); a figure that
is not defined for the data (a correlation with a constant) is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sppo_ray.trainer.jsonlines import finite_json

# A sigmoid saturates to exactly 0 or 1 in float32; one such value with the opposite reward must not make the mean infinite.
PROBABILITY_FLOOR = 1e-7
BINS = 10
# What sets of prompts are called in tables and plots.
HELD_OUT, SEEN = "held-out prompts", "seen in training"
TRAINED_ON = "training samples, valued before their update"  # on a first pass over the data the critic has not seen them yet
_Z = 1.959964  # 97.5 % point of the normal distribution


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The predictions that fell into [low, high), and what became of them."""

    low: float
    high: float  # the last bin holds 1.0 as well
    count: int
    value_mean: float  # NaN in an empty bin
    reward_mean: float  # NaN in an empty bin

    def reward_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the mean reward. Exact in kind for rewards 0 and 1; too wide for averages of k of them."""
        if self.count == 0:
            return float("nan"), float("nan")
        n, p = self.count, self.reward_mean
        centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(max(p * (1 - p), 0.0) / n + _Z**2 / (4 * n**2))
        return centre - half, centre + half


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
        """The inverse of `to_dict`, null as NaN. Raises KeyError or TypeError for another JSON object."""
        figures = {name: math.nan if figure is None else figure for name, figure in node["figures"].items()}
        rows = [{name: math.nan if cell is None else cell for name, cell in row.items()} for row in node["bins"]]
        return cls(node["count"], figures, tuple(ReliabilityBin(**row) for row in rows))


NOT_VALUED = CalibrationReport(0, {}, ())
"""No prompt had both a value and a reward."""


def calibration(values: Sequence[float], rewards: Sequence[float], *, bins: int = BINS) -> dict[str, float]:
    """Scores of predicted probabilities `values` against `rewards`, both in [0, 1], one entry a sample (or a prompt).

    brier              mean (value - reward)^2
    brier_constant     the same for the best constant, i.e. the variance of the rewards ("uncertainty")
    reliability        share of the Brier score that recalibration would mend: mean over samples of
                       (bin's mean value - bin's mean reward)^2; 0 is best
    resolution         what telling prompts apart gains: mean of (bin's mean reward - mean reward)^2; large is best.
                       brier = reliability - resolution + brier_constant (Murphy 1973) when the values of a bin are equal;
                       otherwise their spread inside the bins makes a small difference
    log_loss           mean binary cross-entropy, which is the critic's own training loss (nats)
    log_loss_constant  the same for the best constant, i.e. the entropy of the mean reward
    ece                expected calibration error over `bins` bins of equal width
    auroc              chance that a solved sample has a higher value than an unsolved one, ties count half. A fractional
                       reward r counts as r solved and 1 - r unsolved samples, so that an average of k outcomes gives what
                       the k outcomes by themselves would
    pearson, spearman  correlation of value and reward; NaN when either is constant

    With a reward outside [0, 1], log-loss and AUROC are NaN. Raises ValueError on empty or unequal input.
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


def reliability_bins(values: Sequence[float], rewards: Sequence[float], *, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """The table behind ECE and the reliability plot: `bins` bins of equal width, the empty ones too."""
    value, reward = _arrays(values, rewards)
    index = _bin_index(value, bins)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        value_means = np.bincount(index, weights=value, minlength=bins) / counts
        reward_means = np.bincount(index, weights=reward, minlength=bins) / counts
    return tuple(
        ReliabilityBin(b / bins, (b + 1) / bins, int(counts[b]), float(value_means[b]), float(reward_means[b]))
        for b in range(bins)
    )


def calibrate(values: Sequence[float], rewards: Sequence[float], *, bins: int = BINS) -> CalibrationReport:
    """Figures and bins at once."""
    return CalibrationReport(len(values), calibration(values, rewards, bins=bins), reliability_bins(values, rewards, bins=bins))


def calibration_intervals(
    values: Sequence[float],
    rewards: Sequence[float],
    *,
    seed: int,
    bins: int = BINS,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap of every figure of `calibration`: prompts drawn with replacement. (NaN, NaN) where undefined.

    ECE and reliability are biased upwards by small bins, the more so in a resample: their intervals tend to lie high.
    """
    value, reward = _arrays(values, rewards)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(value.size, size=value.size) for _ in range(resamples))
    rows = [list(calibration(value[draw], reward[draw], bins=bins).values()) for draw in draws]
    tail = (1.0 - level) / 2.0
    names = calibration(value, reward, bins=bins)
    return {name: _finite_quantiles(np.array(column), tail) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


# ------------------------------------------------------------------------------------------------------ inside


def _arrays(values: Sequence[float], rewards: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    value, reward = np.asarray(values, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if value.size == 0 or value.shape != reward.shape:
        raise ValueError(f"calibration needs as many values as rewards and at least one: got {value.size} and {reward.size}")
    return value, reward


def _cross_entropy(value: np.ndarray, reward: np.ndarray) -> float:
    p = np.clip(value, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return float(-np.mean(reward * np.log(p) + (1.0 - reward) * np.log1p(-p)))


def _bin_index(value: np.ndarray, bins: int) -> np.ndarray:
    """Bin b holds [b / bins, (b + 1) / bins); the outermost take what lies outside [0, 1] (a critic without a sigmoid)."""
    return np.clip(np.floor(value * bins).astype(np.int64), 0, bins - 1)


def _bin_sums(value: np.ndarray, reward: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each bin [bins]: count, sum of (value - reward), sum of (reward - mean reward)."""
    index = _bin_index(value, bins)
    counts = np.bincount(index, minlength=bins)
    value_gaps = np.bincount(index, weights=value - reward, minlength=bins)
    return counts, value_gaps, np.bincount(index, weights=reward - reward.mean(), minlength=bins)


def _auroc(value: np.ndarray, reward: np.ndarray) -> float:
    """Mann-Whitney's U over its maximum, each entry with weight `reward` among the solved and 1 - reward among the rest."""
    levels, index = np.unique(value, return_inverse=True)
    solved = np.bincount(index, weights=reward, minlength=levels.size)
    unsolved = np.bincount(index, weights=1.0 - reward, minlength=levels.size)
    if solved.sum() == 0.0 or unsolved.sum() == 0.0:
        return math.nan
    below = np.cumsum(unsolved) - unsolved / 2.0
    return float(np.sum(solved * below) / (solved.sum() * unsolved.sum()))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    # Compared with ptp, not with a computed deviation: the mean of equal floats may differ from them in the last digit.
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y)))


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing the mean of theirs (rewards are mostly ties)."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2.0)[inverse]


def _finite_quantiles(figures: np.ndarray, tail: float) -> tuple[float, float]:
    finite = figures[np.isfinite(figures)]
    if finite.size == 0:
        return math.nan, math.nan
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return float(low), float(high)
