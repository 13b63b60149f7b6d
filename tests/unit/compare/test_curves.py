"""What is read off learning curves, and means and ratios over seeds: numbers that a person can
check.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.compare.curves import Crossing, Point, area, crossing, until
from sppo_ray.compare.statistics import estimate, ratio


def curve(*points: tuple[float, float]) -> list[Point]:
    """(seconds, accuracy); 10 samples and 100 tokens a second."""
    return [Point(seconds, 10 * seconds, 100 * seconds, accuracy) for seconds, accuracy in points]


RISING = curve((0, 0.2), (10, 0.4), (20, 0.6), (30, 0.7))


# ------------------------------------------------------------------------------------------- curves


def test_until_cuts_the_line_at_the_budget() -> None:
    # Between (20, .6) and (30, .7), half way at 25: .65.
    assert until(RISING, 25)[-1] == Point(25, 250, 2500, pytest.approx(0.65))
    assert until(RISING, 30) == RISING
    assert until(RISING, 99) == RISING


def test_area_is_the_mean_accuracy_over_the_budget() -> None:
    # Trapezoids of 10 s: .3, .5, .65, so (3 + 5 + 6.5) / 30.
    assert area(RISING, 30) == pytest.approx(14.5 / 30)
    # Ended early: 10 more seconds at .7.
    assert area(RISING, 40) == pytest.approx((14.5 + 7) / 40)


def test_crossing_lies_on_the_line_between_two_evaluations() -> None:
    # From .4 at 10 s to .6 at 20 s: .5 is half way, and .7 at 30 s confirms it.
    assert crossing(RISING, 0.5, 30) == Crossing(
        True, pytest.approx(15), pytest.approx(150), pytest.approx(1500)
    )


def test_a_single_lucky_evaluation_does_not_count() -> None:
    lucky = curve((0, 0.2), (10, 0.6), (20, 0.4), (30, 0.6), (40, 0.7))
    # .6 at 10 s is followed by .4; the crossing is between 20 s (.4) and 30 s (.6): .5 half way.
    assert crossing(lucky, 0.5, 40).seconds == pytest.approx(25)


def test_the_last_evaluation_alone_is_no_proof() -> None:
    assert crossing(RISING, 0.65, 30) == Crossing(False, 30, 300, 3000)


def test_a_base_above_the_target_needs_nothing() -> None:
    assert crossing(RISING, 0.1, 30) == Crossing(True, 0, 0, 0)


def test_a_crossing_beyond_the_budget_does_not_count() -> None:
    # .5 is met at 15 s; within 12 s the run had spent 120 samples.
    assert crossing(RISING, 0.5, 12) == Crossing(False, 12, 120, 1200)


def test_a_run_that_ended_early_is_cut_off_at_the_budget() -> None:
    assert crossing(RISING, 0.9, 60) == Crossing(False, 60, 300, 3000)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_higher_target_is_never_reached_earlier(accuracies: list[float], one: float, other: float) -> None:
    points = curve(*((10.0 * index, accuracy) for index, accuracy in enumerate(accuracies)))
    low, high = (crossing(points, target, 1000) for target in sorted((one, other)))
    assert low.seconds <= high.seconds + 1e-9
    assert low.reached or not high.reached


# --------------------------------------------------------------------------------------- statistics


def test_mean_and_sample_deviation() -> None:
    figure = estimate([1.0, 2.0, 6.0])
    # Mean 3; squares 4 + 1 + 9 = 14 over n - 1 = 2.
    assert (figure.mean, figure.sd) == (3.0, pytest.approx(math.sqrt(7)))
    # Resamples of three values: the lowest mean, 1, comes with chance 1/27 > 2.5 %, so it is the
    # 2.5 % quantile; 6 likewise.
    assert (figure.low, figure.high) == (1.0, 6.0)


def test_equal_runs_have_a_certain_mean() -> None:
    figure = estimate([0.5] * 4)
    assert (figure.mean, figure.sd, figure.low, figure.high) == (0.5, 0.0, 0.5, 0.5)


def test_one_run_has_no_interval_and_none_no_mean() -> None:
    assert estimate([2.0]).mean == 2.0
    assert math.isnan(estimate([2.0]).low) and math.isnan(estimate([2.0]).sd)
    assert math.isnan(estimate([]).mean)


def test_ratio_of_means() -> None:
    # (30 + 50) / 2 = 40 against (10 + 10) / 2 = 10; the baseline's mean is 30 at least and 50 at
    # most.
    speed = ratio([30.0, 50.0], [10.0, 10.0])
    assert (speed.ratio, speed.low, speed.high, speed.bound) == (4.0, 3.0, 5.0, "exact")


def test_ratio_of_censored_runs_is_a_bound() -> None:
    assert ratio([60.0, 60.0], [10.0, 20.0], baseline_censored=1).bound == "at least"
    assert ratio([60.0, 60.0], [10.0, 60.0], arm_censored=1).bound == "at most"
    assert math.isnan(ratio([60.0, 60.0], [60.0, 20.0], baseline_censored=2, arm_censored=1).ratio)


def test_ratio_to_nothing_is_no_number() -> None:
    assert math.isnan(ratio([10.0], [0.0]).ratio)
    assert math.isnan(ratio([], [1.0]).ratio)


@given(st.lists(st.floats(1, 100), min_size=1, max_size=6), st.floats(0.1, 10))
def test_an_arm_against_itself_scaled(values: list[float], factor: float) -> None:
    assert ratio([factor * value for value in values], values).ratio == pytest.approx(factor)
