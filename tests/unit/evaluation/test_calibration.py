"""Calibration metrics: hand-computed numbers, independent implementations, invariances."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from sppo_ray.evaluation.calibration import (
    CalibrationReport,
    ReliabilityBin,
    calibrate,
    calibration,
    calibration_intervals,
    reliability_bins,
)

VALUES = st.floats(0.0, 1.0, allow_subnormal=False)
BINARY = st.lists(st.tuples(VALUES, st.sampled_from([0.0, 1.0])), min_size=2, max_size=40)
SOLVE_RATES = st.lists(
    st.tuples(VALUES, st.integers(0, 8).map(lambda solved: solved / 8)), min_size=2, max_size=40
)


# ---------------------------------------------------------------------------------- worked examples


def test_two_bins_by_hand():
    """Values .2 .2 .8 .8 against 0 1 1 1, two bins: each bin holds two equal values."""
    figures = calibration([0.2, 0.2, 0.8, 0.8], [0.0, 1.0, 1.0, 1.0], bins=2)
    assert figures["brier"] == pytest.approx((0.04 + 0.64 + 0.04 + 0.04) / 4)
    # variance of rewards of mean 3/4
    assert figures["brier_constant"] == pytest.approx(0.75 * 0.25)
    # bin means: value .2 reward 1/2, value .8 reward 1
    assert figures["ece"] == pytest.approx((0.3 + 0.2) / 2)
    assert figures["reliability"] == pytest.approx((0.3**2 + 0.2**2) / 2)
    assert figures["resolution"] == pytest.approx(0.25**2)  # |1/2 - 3/4| = |1 - 3/4| = 1/4
    assert figures["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.2) + 2 * math.log(0.8)) / 4)
    # of the 3 x 1 pairs (solved, unsolved): .2 against .2 is a tie, twice .8 against .2
    assert figures["auroc"] == pytest.approx((0.5 + 1 + 1) / 3)
    # covariance .3 * .25 over sqrt(.09 * .1875)
    assert figures["pearson"] == pytest.approx(1 / math.sqrt(3))


def test_the_brier_score_is_reliability_minus_resolution_plus_uncertainty():
    figures = calibration([0.1, 0.1, 0.1, 0.7, 0.7], [0.0, 0.5, 0.0, 1.0, 0.25])
    decomposed = figures["reliability"] - figures["resolution"] + figures["brier_constant"]
    assert figures["brier"] == pytest.approx(decomposed)


def test_auroc_of_solve_rates_is_that_of_the_single_responses():
    # avg@2 of 1/2, 1, 0 at values .6, .9, .3. Solved: .6 .9 .9, unsolved: .6 .3 .3
    # pairs: .6 against .6 .3 .3 = 1/2 + 1 + 1; each .9 beats all three = 6; of 9
    assert calibration([0.6, 0.9, 0.3], [0.5, 1.0, 0.0])["auroc"] == pytest.approx(8.5 / 9)
    singly = calibration([0.6, 0.6, 0.9, 0.9, 0.3, 0.3], [1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    assert singly["auroc"] == pytest.approx(8.5 / 9)


def test_what_is_not_defined_is_nan():
    constant = calibration([0.5, 0.5], [0.0, 1.0])
    assert math.isnan(constant["pearson"]) and math.isnan(constant["spearman"])
    assert constant["auroc"] == 0.5  # all ties
    assert math.isnan(calibration([0.2, 0.8], [1.0, 1.0])["auroc"])  # nothing unsolved
    # a critic of a reward on [-1, 1], trained by squared error
    shifted = calibration([-0.5, 1.5], [-1.0, 1.0])
    assert math.isnan(shifted["log_loss"]) and math.isnan(shifted["auroc"])
    assert shifted["brier"] == pytest.approx(0.25) and shifted["pearson"] == pytest.approx(1.0)


@pytest.mark.parametrize(("values", "rewards"), [([], []), ([0.5], [1.0, 0.0])])
def test_empty_and_unequal_input_is_refused(values: list[float], rewards: list[float]):
    with pytest.raises(ValueError, match="as many values as rewards"):
        calibration(values, rewards)


def test_the_bins_hold_their_lower_edge_and_the_last_holds_one():
    table = reliability_bins([0.0, 0.24, 0.25, 1.0], [0.0, 1.0, 1.0, 0.0], bins=4)
    assert [row.count for row in table] == [2, 1, 0, 1]
    assert (table[0].low, table[0].high, table[0].value_mean, table[0].reward_mean) == (0.0, 0.25, 0.12, 0.5)
    assert math.isnan(table[2].value_mean) and math.isnan(table[2].reward_interval()[0])
    assert (table[3].value_mean, table[3].reward_mean) == (1.0, 0.0)


def test_the_wilson_interval_of_a_bin():
    # 8 of 10: the interval of Wilson 1927 is [0.490, 0.943] in any table
    low, high = ReliabilityBin(0.0, 1.0, 10, 0.7, 0.8).reward_interval()
    assert (low, high) == (pytest.approx(0.490, abs=5e-4), pytest.approx(0.943, abs=5e-4))
    # three successes prove little
    assert ReliabilityBin(0.0, 1.0, 3, 0.9, 1.0).reward_interval()[0] < 0.5


def test_a_report_survives_json():
    report = calibrate([0.1, 0.9, 0.95], [0.0, 1.0, 1.0], bins=2)
    back = CalibrationReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert back == report and back.count == 3
    undefined = calibrate([0.5], [1.0], bins=2)
    back = CalibrationReport.from_dict(json.loads(json.dumps(undefined.to_dict(), allow_nan=False)))
    assert math.isnan(back.figures["pearson"]) and math.isnan(back.bins[0].value_mean)


def test_the_intervals_hold_the_figure_and_shrink_with_the_sample():
    draw = random.Random(0)
    values = [draw.random() for _ in range(400)]
    rewards = [float(draw.random() < value) for value in values]
    few, many = (calibration_intervals(values[:n], rewards[:n], seed=1, resamples=200) for n in (50, 400))
    for name in ("brier", "auroc", "pearson", "log_loss"):
        low, high = many[name]
        assert low < calibration(values, rewards)[name] < high
        assert high - low < few[name][1] - few[name][0]
    assert many == calibration_intervals(values, rewards, seed=1, resamples=200)
    assert all(
        math.isnan(bound) for bound in calibration_intervals([0.5] * 4, [0, 1, 0, 1], seed=0)["pearson"]
    )


# ------------------------------------------------------------------------------------------- parity


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values with ties, binary rewards."""
    generator = np.random.default_rng(seed)
    values = generator.integers(1, 30, size=count) / 30
    return values, (generator.random(count) < values).astype(float)


def test_parity_with_scipy():
    values, rewards = drawn(200, seed=1)
    figures = calibration(values, rewards)
    assert figures["pearson"] == pytest.approx(stats.pearsonr(values, rewards).statistic)
    assert figures["spearman"] == pytest.approx(stats.spearmanr(values, rewards).statistic)
    ranks = stats.mannwhitneyu(values[rewards == 1], values[rewards == 0]).statistic
    assert figures["auroc"] == pytest.approx(ranks / (rewards.sum() * (1 - rewards).sum()))


def test_parity_of_scores_and_bins_with_scipy():
    values, rewards = drawn(200, seed=2)
    values += 1e-9  # off the edges of the bins, where the last digit decides
    figures = calibration(values, rewards)
    cross_entropy = -special.xlogy(rewards, values) - special.xlog1py(1 - rewards, -values)
    assert figures["log_loss"] == pytest.approx(cross_entropy.mean())
    assert figures["log_loss_constant"] == pytest.approx(stats.bernoulli(rewards.mean()).entropy())
    assert figures["brier_constant"] == pytest.approx(stats.tvar(rewards) * 199 / 200)
    table = reliability_bins(values, rewards)
    solved, predicted, counts = (
        stats.binned_statistic(values, of, how, bins=10, range=(0, 1)).statistic
        for of, how in ((rewards, "mean"), (values, "mean"), (values, "count"))
    )
    assert [row.reward_mean for row in table] == pytest.approx(solved, nan_ok=True)
    assert [row.value_mean for row in table] == pytest.approx(predicted, nan_ok=True)
    assert figures["ece"] == pytest.approx(np.nansum(np.abs(solved - predicted) * counts) / 200)


@given(BINARY)
def test_auroc_equals_counting_all_pairs(pairs: list[tuple[float, float]]):
    solved, unsolved = ([v for v, r in pairs if r == outcome] for outcome in (1.0, 0.0))
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in solved for b in unsolved]
    auroc = calibration(*zip(*pairs, strict=True))["auroc"]
    assert auroc == pytest.approx(sum(wins) / len(wins)) if wins else math.isnan(auroc)


# -------------------------------------------------------------------------------------- invariances


@given(SOLVE_RATES, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(pairs: list[tuple[float, float]], shuffler: random.Random):
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    assert_same(calibration(*zip(*pairs, strict=True)), calibration(*zip(*shuffled, strict=True)))


@given(SOLVE_RATES)
def test_counting_every_sample_twice_changes_nothing(pairs: list[tuple[float, float]]):
    assert_same(calibration(*zip(*pairs, strict=True)), calibration(*zip(*(pairs * 2), strict=True)))


@given(SOLVE_RATES)
def test_ranking_figures_see_only_the_order_of_the_values(pairs: list[tuple[float, float]]):
    """On a grid, so that the map cannot merge neighbours by rounding."""
    values, rewards = [round(v, 2) for v, _ in pairs], [r for _, r in pairs]
    before, after = calibration(values, rewards), calibration([(v**3 + v) / 2 for v in values], rewards)
    assert_same(
        {name: before[name] for name in ("auroc", "spearman")},
        {name: after[name] for name in ("auroc", "spearman")},
    )


@given(SOLVE_RATES)
def test_turning_values_and_rewards_round_changes_no_figure_of_loss_or_ranking(
    pairs: list[tuple[float, float]],
):
    """Predicting failures is predicting successes: V -> 1 - V, R -> 1 - R."""
    values, rewards = [round(v, 2) for v, _ in pairs], [r for _, r in pairs]
    turned = calibration([1 - v for v in values], [1 - r for r in rewards])
    names = ("brier", "brier_constant", "log_loss", "log_loss_constant", "pearson")
    here = calibration(values, rewards)
    assert_same({name: here[name] for name in names}, {name: turned[name] for name in names})


@given(SOLVE_RATES)
def test_brier_decomposes_with_what_is_left_inside_the_bins(pairs: list[tuple[float, float]]):
    """brier = reliability + variance of (value - reward) inside the bins; brier_constant =
    resolution + that of the reward.
    """
    values, rewards = (np.array(column) for column in zip(*pairs, strict=True))
    figures = calibration(values, rewards)
    index = np.minimum((values * 10).astype(int), 9)
    inside = [
        sum(np.var(part[index == b]) * np.sum(index == b) for b in range(10) if np.any(index == b))
        / len(values)
        for part in (values - rewards, rewards)
    ]
    assert figures["brier"] == pytest.approx(figures["reliability"] + inside[0], abs=1e-12)
    assert figures["brier_constant"] == pytest.approx(figures["resolution"] + inside[1], abs=1e-12)


def assert_same(one: dict[str, float], other: dict[str, float]) -> None:
    assert one == pytest.approx(other, abs=1e-9, nan_ok=True)
