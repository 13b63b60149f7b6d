from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.algorithms.base import OverlongSettings
from sppo_ray.algorithms.shaping import informative, shaped_reward

BUFFER = OverlongSettings(buffer_tokens=20)


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    # of at most 100 tokens the last 20 cost: up to 80 nothing, 85 a quarter, 90 a half, 100 all of
    # the penalty
    [(1, 1.0), (80, 1.0), (85, 0.75), (90, 0.5), (100, 0.0)],
)
def test_worked_example(num_tokens: int, expected: float) -> None:
    assert shaped_reward(1.0, num_tokens, 100, BUFFER) == pytest.approx(expected)


def test_a_wrong_and_long_answer_falls_below_zero_unless_there_is_a_floor() -> None:
    assert shaped_reward(0.0, 90, 100, BUFFER) == pytest.approx(-0.5)
    assert shaped_reward(0.0, 90, 100, BUFFER, floor=0.0) == 0.0
    assert shaped_reward(1.0, 90, 100, BUFFER, floor=0.0) == pytest.approx(0.5)


def test_the_penalty_scales_and_none_is_off() -> None:
    assert shaped_reward(1.0, 90, 100, OverlongSettings(buffer_tokens=20, penalty=0.5)) == pytest.approx(0.75)
    assert shaped_reward(1.0, 100, 100, None) == 1.0


@given(st.floats(0, 1), st.integers(1, 200), st.integers(1, 200), st.floats(0.01, 2))
def test_longer_is_never_better_and_probabilities_stay_probabilities(
    reward: float, buffer: int, num_tokens: int, penalty: float
) -> None:
    overlong = OverlongSettings(buffer_tokens=buffer, penalty=penalty)
    here, longer = (
        shaped_reward(reward, count, 200, overlong, floor=0.0) for count in (num_tokens, num_tokens + 1)
    )
    assert 0.0 <= longer <= here <= reward


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([1, 1, 1], False), ([0, 0], False), ([1, 0, 1], True), ([0.5], False), ([], False)],
)
def test_equal_rewards_teach_nothing(rewards: list[float], expected: bool) -> None:
    assert informative(rewards) is expected
