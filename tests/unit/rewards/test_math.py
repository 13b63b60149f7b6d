r"""The mathematical verifier: labelled pairs, reward hacks, and each correction of Math-Verify's
own verdict.
"""

from __future__ import annotations

import json
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.rewards.base import BadGroundTruth
from sppo_ray.rewards.math import verify_math
from sppo_ray.rewards.math.quantities import Reading, read_quantity
from sppo_ray.rewards.math.text import tidy
from sppo_ray.rewards.math.units import read_tail
from sppo_ray.rewards.math.verifier import MAX_ANSWER_CHARS
from sppo_ray.rewards.math.words import as_based, as_choice, as_number, as_words, canonical_words

PAIRS_FILE = Path(__file__).parent / "math_pairs.jsonl"
PAIRS = [json.loads(line) for line in PAIRS_FILE.read_text(encoding="utf-8").splitlines()]


def reward(answer: str, truth: str, prompt: str = "") -> float:
    return verify_math(f"Hence the answer is \\boxed{{{answer}}}.", truth, {"prompt": prompt})[0]


@pytest.mark.parametrize(
    "pair", PAIRS, ids=lambda pair: f"{pair['truth']} {'==' if pair['same'] else '!='} {pair['answer']}"
)
def test_labelled_pair(pair: dict) -> None:
    """Whether a percent sign may be left out hangs on the question: three pairs have one."""
    assert reward(pair["answer"], pair["truth"], pair.get("prompt", "")) == float(pair["same"])


@given(st.integers(), st.integers())
def test_integers_are_compared_exactly(truth: int, answer: int) -> None:
    assert reward(str(answer), str(truth)) == float(truth == answer)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(2, 9))
def test_a_fraction_equals_its_multiple_and_not_its_neighbour(top: int, bottom: int, factor: int) -> None:
    truth = f"\\frac{{{top}}}{{{bottom}}}"
    assert reward(f"\\frac{{{factor * top}}}{{{factor * bottom}}}", truth) == 1.0
    assert reward(f"\\frac{{{top + 1}}}{{{bottom}}}", truth) == 0.0


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("", (0.0, "no_answer")),
        ("34", (0.0, "no_answer")),  # the number alone, not marked as the answer
        (r"\boxed{}", (0.0, "no_answer")),
        (r"\boxed{34", (0.0, "no_answer")),
        # every number, and 99 last
        ("".join(f"\\boxed{{{n}}}" for n in range(100)), (0.0, "wrong")),
        (r"\boxed{34} \boxed{35}", (0.0, "wrong")),
        (r"\boxed{" + ",".join(map(str, range(100))) + "}", (0.0, "wrong")),
        (r"\boxed{34 \text{ or } 35}", (0.0, "wrong")),
        (r"\boxed{x}", (0.0, "wrong")),
        (r"\boxed{34} is \boxed{34}", (1.0, "correct")),
        (r"\boxed{\sum_{k=1}^{4} k + 24}", (0.0, "unevaluated")),
        (r"\boxed{" + "3" * (MAX_ANSWER_CHARS + 1) + "}", (0.0, "too_long")),
        (r"\boxed{" + "(" * 31 + "34" + ")" * 31 + "}", (0.0, "too_deep")),
    ],
)
def test_hacks_and_marks(response: str, verdict: tuple[float, str]) -> None:
    assert verify_math(response, "34", {}) == verdict


def test_an_answer_as_long_as_its_truth_is_allowed() -> None:
    truth = "7" * 3000
    assert reward(truth, truth) == 1.0
    assert reward("7" * 2999 + "8", truth) == 0.0


def test_a_truth_may_be_boxed_itself_and_must_not_be_empty() -> None:
    assert verify_math(r"\boxed{0.5}", r"so \boxed{\frac{1}{2}}", {})[0] == 1.0
    with pytest.raises(BadGroundTruth, match="ground truth is empty"):
        verify_math(r"\boxed{5}", " ", {})


def test_it_works_off_the_main_thread() -> None:
    """Math-Verify's own timeout is signal.alarm, which raises in any other thread."""
    rewards: list[float] = []
    thread = threading.Thread(target=lambda: rewards.append(reward(r"\frac{2}{4}", r"0.50")))
    thread.start()
    thread.join()
    assert rewards == [1.0]


def test_numbers_as_text() -> None:
    assert as_number("58,500") == 58500
    assert as_number("-1.5e-3") == Fraction(-3, 2000)
    assert as_number("1e999999") is None  # it would be a million digits
    assert as_number("") is None
    assert as_number("5,00") is None


def test_words_bases_and_units_as_text() -> None:
    assert as_words(r"\text{(C)}") == "c"
    assert as_words("p - q") is None  # algebra
    assert as_words("xyz") is None
    assert canonical_words(tidy(r"\textbf{ Even }.")) == "even"
    assert as_based(r"4210_{\text{five}}") == ("4210", "5")
    assert as_based("x_1") is None


def test_what_stands_behind_a_number() -> None:
    metres_a_second = (("m", 1), ("s", -1))
    assert read_tail(" m/s").dimensions == read_tail(" metres per second").dimensions == metres_a_second
    assert read_tail(r" \mathrm{~m} / \mathrm{s}").dimensions == metres_a_second
    assert read_tail(" km/h").factor == Fraction(1000, 3600)
    assert read_tail(" square feet").factor == Fraction(3048, 10000) ** 2
    assert read_tail(" million dollars").scale == 1_000_000
    assert read_tail(r"\%").percent and read_tail(" percent").percent
    assert read_tail(" apples").words == {"apple"} and not read_tail(" apples").unknown
    assert read_tail(" squared").changing == read_tail(" squared").unknown == {"squared"}
    assert read_tail(" widgets").unknown == {"widget"} and not read_tail(" widgets").changing
    assert read_tail("ab", attached=True) is None  # 2ab is a product
    assert read_tail(" x+2") is None
    assert read_quantity(r"864 \text{ inches}^2", Reading()).tail.dimensions == (("m", 2),)
    assert (
        not read_quantity("3 h", Reading()).tail.has_unit
        and read_quantity("3 h", Reading(letters=True)).tail.has_unit
    )


def test_the_letter_of_a_choice() -> None:
    assert (
        as_choice("(B) 12")
        == as_choice(tidy(r"\textbf{(B) }12"))
        == as_choice("option B")
        == as_choice("B. yes")
        == "B"
    )
    assert (
        as_choice("(B) or (C)") is None
        and as_choice("B, A") is None
        and as_choice("not B") is None
        and as_choice("12") is None
    )


def test_tidy_keeps_what_carries_meaning() -> None:
    assert tidy(r"$\$32,\!348$.") == r"32,348\text{ dollar }"
    assert tidy(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}") == r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"
    assert tidy("−½") == r"-\frac{1}{2}"
    assert tidy(r"x \in [1,2]") == r"x \in [1,2]"
    assert tidy(r"\mathbf{7}") == "7"
