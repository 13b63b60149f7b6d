r"""Letters that are no numbers: matrices, vectors, group elements, complex numbers; and equations
with words between them. Pairs that are equal by construction, and pairs that are not.
"""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.rewards.math.expressions import read_expression
from sppo_ray.rewards.math.matrices import same_matrices
from sppo_ray.rewards.math.words import as_permutation
from tests.unit.rewards.math_verdicts import different, reward, same

CAPITALS = st.permutations(["A", "B", "C", "P", "Q", r"\Lambda", r"\Sigma"])


@settings(max_examples=25)
@given(CAPITALS, st.integers(2, 9))
def test_products_with_an_inverse_or_a_transpose_have_an_order(letters: list[str], number: int) -> None:
    a, b, c = (f"{{{letter}}}" for letter in letters[:3])
    different(f"{a}{b}{a}^{{-1}}", b, f"{a}^{{-1}}{b}{a}", f"{b}{a}{a}^{{-1}}")
    different(f"{a}^T{b}", f"{b}{a}^T", f"{a}{b}^T", f"{b}^T{a}")
    same(f"({a}{b})^{{-1}}", f"{b}^{{-1}}{a}^{{-1}}")
    same(f"({a}{b}{c})^T", f"{c}^T{b}^T{a}^T")
    same(f"({a}+{b})^T", f"{a}^T+{b}^T", f"{b}^T+{a}^T")
    both = f"{number}{a}^{{-1}}{c}+{number}{a}^{{-1}}{b}"
    same(f"{number}{a}^{{-1}}({b}+{c})", both)
    same(f"{a}^{{-1}}{b}", f"({b}^{{-1}}{a})^{{-1}}")
    same(f"{a}{b}^n{a}^{{-1}}", f"{a}{b}^{{n-1}}{b}{a}^{{-1}}")


@settings(max_examples=25)
@given(st.permutations("xyuv"), st.sampled_from("ABM"))
def test_columns(letters: list[str], matrix: str) -> None:
    x, y, *_ = letters
    same(f"{x}^T{matrix}{y}", f"{y}^T{matrix}^T{x}", rf"{x}^\top {matrix} {y}")
    different(f"{x}^T{matrix}{y}", f"{matrix}{y}{x}^T", f"{x}^T{matrix}^T{y}", f"{y}^T{matrix}{x}")
    same(f"{x}^T{y}", f"{y}^T{x}")
    different(f"{x}{y}^T", f"{y}{x}^T", f"{x}^T{y}")


def test_matrices_are_compared_exactly() -> None:
    """The inverse of X^TX beside one of X: two inverses only where X has one."""
    trees = [read_expression(text) for text in ("(X^TX)^{-1}X^T", "X^{-1}", "(Y^TX)^{-1}Y^T", "(XX)^{-1}X")]
    assert same_matrices(trees[0], trees[0]) is True
    assert same_matrices(trees[0], trees[1]) is False
    assert same_matrices(trees[2], trees[0]) is False
    assert same_matrices(trees[1], trees[3]) is None  # one letter is a number


def test_the_question_makes_matrices_of_capitals() -> None:
    asked = "Let A and B be 3 by 3 matrices. Expand."
    assert reward("A^2+2AB+B^2", "(A+B)^2") == 1.0
    assert reward("A^2+2AB+B^2", "(A+B)^2", asked) == 0.0
    assert reward("A^2+BA+AB+B^2", "(A+B)^2", asked) == 1.0
    assert reward(r"\frac{B}{A}", r"\frac{B}{A}+0", asked) == 1.0


@settings(max_examples=25)
@given(st.permutations("ABCPRSVLM"))
def test_capitals_in_a_row_keep_their_order_unless_they_are_numbers(letters: list[str]) -> None:
    a, b, c, *_ = letters
    different(a + b + c, a + c + b, c + b + a, f"{a} {c} {b}")
    different(f"2{a}{b}", f"2{b}{a}")
    same(rf"\sqrt{{{a}{b}}}", rf"\sqrt{{{b}{a}}}", rf"\sqrt{{{b} {a}}}")
    same(f"({a}+{b})^2", f"{a}^2+2{a}{b}+{b}^2")


@settings(max_examples=25)
@given(st.permutations("abcuv"))
def test_dot_products_are_no_products_of_numbers(letters: list[str]) -> None:
    a, b, c, d, _ = letters
    different(rf"({a}\cdot {b}){c}", rf"({b}\cdot {c}){a}", f"{a}{b}{c}")
    same(rf"({a}\cdot {b}){c}", rf"{c}({b}\cdot {a})", rf"({b} \cdot {a}) {c}")
    u, v, w, x = (rf"\vec {letter}" for letter in (a, b, c, d))
    different(rf"({u}\cdot {v})({w}\cdot {x})", rf"({u}\cdot {w})({v}\cdot {x})")
    same(rf"({u}+2{v})\cdot {w}", rf"{w}\cdot {u}+2{v}\cdot {w}")
    same(rf"|{u}-{v}|^2", rf"|{u}|^2-2{u}\cdot {v}+|{v}|^2", rf"({v}-{u})^2")
    same(rf"{u}\cdot({v}\times {w})", rf"{w}\cdot({u}\times {v})", rf"-{v}\cdot({u}\times {w})")
    different(rf"{u}\cdot({v}\times {w})", rf"{v}\cdot({u}\times {w})", "0")


@given(st.permutations(range(1, 6)), st.integers(0, 4))
def test_products_of_cycles(numbers: list[int], turn: int) -> None:
    a, b, c, d, e = numbers
    truth = f"({a}{b}{c})({d}{e})"
    same(truth, f"({e} {d})({b} {c} {a})", f"({c},{a},{b})({d},{e})")
    different(truth, f"({a}{c}{b})({d}{e})", f"({a}{b}{c})", str(int(f"{a}{b}{c}") * int(f"{d}{e}")))
    different(f"({a}{b})({b}{c})", f"({b}{c})({a}{b})")
    assert as_permutation("(12)(12)") == ({}, {})
    assert as_permutation("(2)(3)") is None


@settings(max_examples=25)
@given(st.permutations("xyabmn"), st.integers(1, 9), st.integers(1, 9))
def test_words_between_equations(letters: list[str], one: int, other: int) -> None:
    x, y, *_ = letters
    for left, right in ((f"{x}={one}", f"{y}={other}"), (f"{x}+{y}={one}", f"{x}-2{y}={other}")):
        different(rf"{left}\text{{ and }}{right}", rf"{left}\text{{ or }}{right}", left)
        different(rf"{left}\text{{ or }}{right}", rf"{left} \land {right}", left, f"{left} and {right}")
        same(rf"{left}\text{{ or }}{right}", rf"{right} \lor {left}", f"{right} or {left}")
        same(rf"{left}\text{{ and }}{right}", f"{right}, {left}")
    pairs = f"{x}={one},{y}={other}", f"{x}={other + 10},{y}={one + 20}"
    crossed = f"{x}={one},{y}={one + 20}", f"{x}={other + 10},{y}={other}"
    for word in (" or ", ", ", r"\text{ or }"):
        same(word.join(pairs), word.join(pairs[::-1]))
        different(word.join(pairs), word.join(crossed))


@settings(max_examples=25)
@given(st.integers(1, 99))
def test_two_values(value: int) -> None:
    same(rf"x=\pm {value}", f"|x|={value}", f"x={value}, x=-{value}")
    different(f"|x|={value}", f"x={value}", rf"x=\pm {value + 1}", f"|y|={value}")
    assert reward(f"|x|={Fraction(value, 7)}", rf"\pm\frac{{{value}}}{{7}}") == 1.0


@pytest.mark.parametrize(
    "answer",
    ["AB^{-1}" * 60, "(" * 20 + "AB^{-1}" + ")^{37}" * 20, "+".join(["A^{37}B^{-1}C^{-37}"] * 24)]
    + ["Q^{-1}" + "AB" * 100 + "Q", r"(\vec a+\vec b)\cdot" * 20 + r"\vec c", "(1 2)" * 90]
    + ["((X^TX)^{-1}+" * 15 + "X" + ")^{-1}" * 15, "x=1,y=2 or " * 40 + "x=1,y=2", "|" + "z" * 200 + "|^2"]
    + [r"(a\cdot b)" * 50, "A B " * 100, "(|z|+" * 25 + "z" + ")^{-1}" * 25],
)
def test_no_answer_takes_long(answer: str) -> None:
    for truth in ("34", "AB^{-1}", "z^2", "(X^TX)^{-1}X^Ty", "(12)(13)"):
        started = time.process_time()
        assert reward(answer, truth) == 0.0
        assert time.process_time() - started < 1.0


@settings(max_examples=25)
@given(st.permutations("abxyuv"))
def test_bars_count_beside_a_variable_that_must_be_positive(letters: list[str]) -> None:
    """In either order of the letters: the first one is negative at some points, and the second
    positive.
    """
    a, b, *_ = letters
    different(rf"|{a}|\sqrt{{{b}}}", rf"{a}\sqrt{{{b}}}")
    different(rf"\ln {b}+|{a}|", rf"\ln {b}+{a}")
    different(f"{b}^{{|{a}|}}", f"{b}^{{{a}}}")
    same(rf"|{a}|\sqrt{{{b}}}", rf"\sqrt{{{a}^2{b}}}")


@settings(max_examples=25)
@given(st.permutations("abctvx"))
def test_functions_of_a_difference_are_compared_at_more_than_one(letters: list[str]) -> None:
    a, b, *_ = letters
    different(rf"\sqrt{{{b}-{a}}}", f"{b}-{a}", "1", rf"({b}-{a})^{{3/2}}")
    different(rf"\ln({b}-{a})", "0")
    different(rf"\sqrt{{{a}}}+\sqrt{{{b}-{a}}}", rf"\sqrt{{{a}}}+{b}-{a}")
    different(f"{b}({a}+{b})", f"|{b}({a}+{b})|")
    same(rf"\ln({b}-{a})", rf"2\ln\sqrt{{{b}-{a}}}")


@pytest.mark.parametrize("name", ["E", r"\mathbb{E}", r"\mathbb E"])
def test_a_mean_in_square_brackets_is_no_product(name: str) -> None:
    variance = rf"{name}[X^2]-{name}[X]^2"
    different(variance, "0", rf"{name}[X]^2-{name}[X^2]")
    same(variance, rf"{name}\left[X^2\right]-({name}[X])^2", rf"-{name}[X]^2+{name}[X^2]")
    different(rf"{name}[XY]", rf"{name}[X]Y", rf"{name}[X]{name}[Y]")
    same("2[x+1]", "2x+2")


def test_a_quotient_is_no_choice() -> None:
    different("BC", "B/C", "C/B")
    same("A, C", "A and C", "C, A")


@settings(max_examples=25)
@given(st.permutations("abckmn"))
def test_every_argument_of_a_common_divisor_counts(letters: list[str]) -> None:
    a, b, c, *_ = letters
    different(rf"\gcd({a},{b},{c})", rf"\gcd({a},{b})", rf"\gcd({b},{c})", rf"\gcd({a},{c})")
