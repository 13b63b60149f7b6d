"""The free-text arithmetic reward: the last number decides."""

from __future__ import annotations

from decimal import InvalidOperation

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.config import CustomReward
from sppo_ray.rewards.last_number import answer, reward
from sppo_ray.rewards.registry import build_verifier


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        ("25 + 30 = 55.", "55", 1.0),
        ("55", "55", 1.0),
        ("The answer is 55, I am sure!", "55", 1.0),
        ("55.0", "55", 1.0),
        ("-4", "-4", 1.0),
        ("5 - 9 = -4", "-4", 1.0),
        ("5 - 9", "9", 1.0),  # a difference: the minus belongs to the operation
        ("5-9", "9", 0.0),  # no number
        ("The total is 1,234.", "1234", 1.0),
        ("The total is 1,234.", "234", 0.0),
        ("7, or 3/7", "7", 0.0),
        ("2^7", "7", 0.0),
        ("\u22127", "-7", 1.0),
        ("\u22127", "7", 0.0),
        ("<think>maybe 7", "7", 0.0),
        ("<think>so 7</think>no idea", "7", 0.0),
        ("<think>so 8</think>7", "7", 1.0),
        ("55, or rather 56", "55", 0.0),
        ("= 7.5", "5", 0.0),  # 7.5 is one number
        ("x55", "55", 0.0),  # part of a word
        ("155", "55", 0.0),
        ("fifty-five", "55", 0.0),
        ("", "55", 0.0),
        ("-$7", "7", 0.0),
        ("The answer is -$7.", "7", 0.0),
        ("The answer is \u20137", "7", 0.0),
        ("\uff0d7", "7", 0.0),
        ("\u20117", "7", 0.0),
        ("- 7", "7", 0.0),
        ("\u2212 7", "7", 0.0),
        ("minus 7", "7", 0.0),
        ("-(7)", "7", 0.0),
        ("\\frac{3}{7}", "7", 0.0),
        ("2^{7}", "7", 0.0),
        ("\\sqrt{7}", "7", 0.0),
        ("1 / 7", "7", 0.0),
        ("3 \\div 7", "7", 0.0),
        ("7!", "7", 0.0),
        ("7 million", "7", 0.0),
        ("7%", "7", 0.0),
        ("7 dozen", "7", 0.0),
        ("7\\cdot10", "7", 0.0),
        ("3.\u200b7", "7", 0.0),
        ("-\xa37", "7", 0.0),
        ("\ufe637", "7", 0.0),
        ("-$7", "-7", 1.0),
        ("\u20137", "-7", 1.0),
        (".5", "0.5", 1.0),
        ("\\$1{,}234", "1234", 1.0),
        ("it is -7", "-7", 1.0),
        ("The answer is **7**", "7", 1.0),
        ("**7** apples", "7", 1.0),
        ("*7*", "7", 1.0),
        ("The answer - 7", "7", 1.0),
        ("The answer \u2014 7", "7", 1.0),
        ("7*x", "7", 0.0),
        ("2 + 7", "7", 0.0),
        ("3 times 7", "7", 0.0),
        ("2**7", "7", 0.0),
        ("√7", "7", 0.0),
        ("7π", "7", 0.0),
        ("7 / 2 / 1 and 7/ 2", "2", 0.0),
        ("the sum is 3 - 10 = -7", "-7", 1.0),
    ],
)
def test_the_last_number_decides(response: str, truth: str, expected: float) -> None:
    assert reward(response, truth, {}) == expected


@given(guesses=st.lists(st.integers(0, 200), min_size=1))
def test_listing_guesses_gains_nothing(guesses: list[int]) -> None:
    assert reward(" ".join(map(str, guesses)), "55", {}) == float(guesses[-1] == 55)


def test_a_ground_truth_that_is_no_number_is_an_error_and_no_zero() -> None:
    with pytest.raises(InvalidOperation):
        reward("55", "fifty-five", {})


def test_it_is_reached_as_a_custom_function() -> None:
    verifier = build_verifier(CustomReward(function="sppo_ray.rewards.last_number:reward"))
    assert verifier.score("25 + 30 = 55", "55", {}) == (1.0, "correct")
    assert verifier.score("25 + 30 = 56", "55", {}) == (0.0, "wrong")


@pytest.mark.parametrize(
    ("response", "voted"),
    [
        ("2 + 5 = 7.0", "7"),
        ("007", "7"),
        ("-1.50", "-1.5"),
        ("it is -0", "0"),
        ("100", "100"),
        ("none", None),
    ],
)
def test_equal_numbers_are_one_vote(response: str, voted: str | None):
    assert answer(response) == voted
