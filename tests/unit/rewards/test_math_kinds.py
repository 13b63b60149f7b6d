r"""The mathematical verifier, kind by kind: pairs that are equal by construction, and pairs that
are not.
"""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sppo_ray.rewards.extract import last_boxes, with_open_thinking
from sppo_ray.rewards.math import make_math_verifier, verify_math
from sppo_ray.rewards.stated import last_stated
from tests.unit.rewards.math_verdicts import different, reward, same

settings.register_profile("kinds", max_examples=60, deadline=None)
settings.load_profile("kinds")

WHOLE = st.integers(1, 999)
DIGIT = st.integers(1, 9)


# ------------------------------------------------------------------------------------- exact values


@given(DIGIT, st.integers(20, 300))
def test_tiny_numbers(digit: int, power: int) -> None:
    same(rf"\frac{{{digit}}}{{10^{{{power}}}}}", rf"{digit}\times10^{{-{power}}}")
    different(
        rf"{digit}\times10^{{-{power}}}",
        rf"{digit + 1}\times10^{{-{power}}}",
        rf"{digit}\times10^{{-{power + 1}}}",
    )
    different(rf"1-\frac{{1}}{{2^{{{power}}}}}", rf"1-\frac{{1}}{{2^{{{power + 1}}}}}", "1")
    different(rf"\sqrt{{2}}+10^{{-{power}}}", r"\sqrt{2}")


@given(st.integers(2, 300))
def test_factorials_of_numbers_that_are_next_to_each_other(number: int) -> None:
    same(rf"\frac{{1}}{{{number}!}}", rf"\frac{{{number + 1}}}{{{number + 1}!}}")
    different(rf"\frac{{1}}{{{number}!}}", rf"\frac{{1}}{{{number + 1}!}}", "0")


@given(WHOLE, WHOLE)
def test_a_decimal_is_no_exact_fraction_unless_it_is(top: int, bottom: int) -> None:
    value = Fraction(top, bottom)
    decimal = f"{top / bottom:.4f}"
    assert reward(decimal, rf"\frac{{{top}}}{{{bottom}}}") == float(Fraction(decimal) == value)
    different(r"\pi", "3.141593", "3.14")


@given(st.integers(1, 9), st.integers(0, 99))
def test_recurring_decimals(period: int, start: int) -> None:
    value = Fraction(start, 100) + Fraction(period, 900)
    truth = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    same(
        truth,
        rf"0.{start:02d}\overline{{{period}}}",
        rf"0.{start:02d}\dot{{{period}}}",
        f"0.{start:02d}({period})",
    )
    different(truth, f"0.{start:02d}{period}", rf"0.{start:02d}\overline{{{period % 9 + 1}}}")


@given(WHOLE, st.integers(2, 9))
def test_mixed_numbers_and_thousands(whole: int, bottom: int) -> None:
    value = whole + Fraction(1, bottom)
    same(
        rf"{whole}\frac{{1}}{{{bottom}}}",
        rf"\frac{{{value.numerator}}}{{{value.denominator}}}",
        f"{whole} 1/{bottom}",
    )
    different(rf"{whole}\frac{{1}}{{{bottom}}}", rf"{whole}\cdot\frac{{1}}{{{bottom}}}", str(whole))
    same(str(whole * 1000), f"{whole},000", rf"{whole}{{,}}000", rf"{whole}\,000", rf"{whole}\!,\!000")
    same(rf"{whole * 1000}\sqrt{{2}}", rf"{whole},000\sqrt{{2}}")


# -------------------------------------------------------------------------------- what is no answer


@given(st.integers(10, 9999), st.integers(10, 9999))
def test_a_computation_is_not_its_value(one: int, other: int) -> None:
    for sign, value in ((r"\cdot", one * other), ("+", one + other), ("-", one - other)):
        assert verify_math(rf"\boxed{{{one} {sign} {other}}}", str(value), {}) == (0.0, "unevaluated")
        same(str(value), rf"{one} {sign} {other} = {value}")
        different(str(value), rf"{one} {sign} {other} = {value + 1}", rf"{one} {sign} {other + 1} = {value}")


@pytest.mark.parametrize(
    ("truth", "answer"), [("6", r"\gcd(12,18)"), ("7", r"\frac{d}{dx}(7x)"), ("10", r"\sum_{k=1}^4 k")]
)
def test_an_operation_is_not_its_value(truth: str, answer: str) -> None:
    assert verify_math(rf"\boxed{{{answer}}}", truth, {}) == (0.0, "unevaluated")


@pytest.mark.parametrize(
    "answer",
    [
        "99999999!",
        r"\binom{10^9}{10^8}",
        "(1+x)^{5000}",
        r"\sin(10^{10^6})",
        "9^{9^{9^{9}}}",
        r"\sqrt{" * 20 + "2" + "}" * 20,
    ]
    + [r"\int_0^{10^9} x dx", r"\prod_{k=1}^{10^9} k", r"e^{e^{e^{e^{9}}}}", "(((99!)!)!)!"],
)
def test_no_answer_escapes_by_being_too_large(answer: str) -> None:
    assert verify_math(rf"\boxed{{{answer}}}", "34", {})[0] == 0.0
    assert verify_math(rf"\boxed{{{answer}}}", answer, {})[0] == 1.0  # the truth's own text


@given(WHOLE, st.integers(2, 9))
def test_an_equation_is_right_only_when_it_states_the_truth(value: int, factor: int) -> None:
    same(
        str(value),
        f"x={value}",
        rf"f(2)={value}",
        rf"\angle ABC={value}",
        rf"P(X=1)={value}",
        rf"\text{{Area}}={value}",
    )
    different(str(value), f"{factor}x={value}", f"x-y={value}", f"-x={value}", f"x^2={value}")
    different(str(value), rf"\frac{{x}}{{{factor}}}={value}")
    different(str(value), f"x={value + 1}={value}", rf"\sqrt{{{value * value + 1}}}={value}")
    same(
        str(value), rf"\sqrt{{{value * value}}}={value}", rf"x=\frac{{{value * factor}}}{{{factor}}}={value}"
    )


def test_a_limit_an_integral_and_a_sum_must_be_able_to_be_so() -> None:
    same("1", r"\lim_{x\to 0}\frac{\sin x}{x}=1", r"\int_0^1 2x\,dx=1", r"\lim_{x\to0}f(x)=1")
    same("1", r"\sum_{n=1}^{\infty}\frac{1}{2^n}=1")
    different(
        "2", r"\lim_{x\to 0}\frac{\sin x}{x}=2", r"\int_0^1 2x\,dx=2", r"\sum_{n=1}^{\infty}\frac{1}{2^n}=2"
    )


# ---------------------------------------------------------------------------------- words and units


@given(
    WHOLE,
    st.sampled_from(
        ["squared", "cubed", "million", "thousand", "dozen", "less", "BC", "halves", "below zero"]
    ),
)
def test_a_word_that_changes_the_value_is_not_dropped(value: int, word: str) -> None:
    different(str(value), rf"{value}\text{{ {word}}}", f"{value} {word}")
    different(rf"{value}\text{{ {word}}}", str(value))
    same(rf"{value}\text{{ {word}}}", rf"{value}\ \mathrm{{{word}}}")


@given(WHOLE, st.sampled_from(["apples", "students", "ways", "books"]))
def test_a_word_that_does_not_is(value: int, word: str) -> None:
    same(str(value), rf"{value}\text{{ {word}}}", f"{value} {word}")
    different(
        f"{value} {word}", f"{value + 1} {word}", f"{value} chairs" if word != "ways" else f"{value} million"
    )


@given(WHOLE)
def test_words_of_magnitude(value: int) -> None:
    same(
        rf"{value}\text{{ million}}",
        str(value * 1_000_000),
        rf"{value},000,000",
        rf"{value * 1000}\text{{ thousand}}",
    )
    different(rf"{value}\text{{ million}}", rf"{value}\text{{ billion}}", str(value))
    same(rf"\${value}\text{{ million}}", rf"{value}\text{{ million dollars}}")
    same(f"{value} dozen", str(12 * value))


@given(WHOLE, st.sampled_from(["m", "J", "N", "W", "Pa", "V", "A", "Hz"]))
def test_prefixes_of_units(value: int, unit: str) -> None:
    same(
        rf"{value}\text{{ k{unit}}}",
        rf"{value * 1000}\text{{ {unit}}}",
        rf"{value}\ \mathrm{{k{unit}}}",
        str(value),
    )
    different(
        rf"{value}\text{{ k{unit}}}",
        rf"{value}\text{{ {unit}}}",
        rf"{value}\text{{ M{unit}}}",
        rf"{value}\text{{ kg}}",
    )


@given(WHOLE)
def test_conversions(value: int) -> None:
    same(rf"{value}\text{{ m}}", rf"\frac{{{value}}}{{1000}}\text{{ km}}", rf"{value * 100}\text{{ cm}}")
    same(rf"{value * 36}\text{{ km/h}}", rf"{value * 10}\text{{ m/s}}")
    same(
        rf"{value}\text{{ m/s}}^2",
        rf"{value}\ \mathrm{{m\,s^{{-2}}}}",
        rf"{value} \mathrm{{~m}} / \mathrm{{s}}^{{2}}",
    )
    different(
        rf"{value}\text{{ cm}}^2",
        rf"{value}\text{{ cm}}",
        rf"{value}\text{{ cm}}^3",
        rf"{value}\text{{ m}}^2",
    )
    same(rf"{60 + value % 60}\text{{ minutes}}", rf"1\text{{ hour }}{value % 60}\text{{ minutes}}")
    different(rf"{value}^\circ\text{{ N}}", rf"{value}^\circ\text{{ S}}")
    different(rf"{value}^\circ C", rf"{value}^\circ F")


@given(st.integers(1, 12), st.integers(0, 59))
def test_times_of_day(hour: int, minute: int) -> None:
    time = f"{hour}:{minute:02d}"
    same(time, f"{hour} : {minute:02d}")
    different(
        time, f"{hour + 12}:{minute:02d}", f"{hour % 12 + 1}:{minute:02d}", f"{hour}:{(minute + 1) % 60:02d}"
    )
    same(rf"{time}\text{{ p.m.}}", rf"{time} PM", rf"\text{{{time} pm}}", f"{hour % 12 + 12}:{minute:02d}")
    different(rf"{time}\text{{ p.m.}}", rf"{time}\text{{ a.m.}}")


@given(WHOLE)
def test_percent(value: int) -> None:
    same(
        rf"{value}\%",
        str(value),
        f"{value} percent",
        f"{value} per cent",
        rf"\frac{{{value}}}{{100}}",
        f"{value / 100}",
    )
    different(str(value), rf"{value}\%", f"{value} percent", rf"{value}\% of them")
    asked = "What percent of the students pass?"
    assert reward(rf"{value}\%", str(value), prompt=asked) == 1.0
    assert reward(rf"{100 * value}\%", str(value), prompt=asked) == 0.0
    assert reward(rf"{value}\%", rf"\frac{{{value}}}{{100}}", prompt=asked) == 1.0


@given(st.integers(2, 49), st.integers(50, 99))
def test_amounts_of_unlike_things_keep_their_order_without_units(one: int, other: int) -> None:
    for truth in (
        rf"{one}\text{{ km/h}}, {other}\text{{ h}}",
        rf"{one}\text{{ red}}, {other}\text{{ blue}}",
    ):
        different(truth, f"{other}, {one}", rf"{other}\text{{ and }}{one}")
        same(truth, f"{one}, {other}")
    same(rf"{one}\text{{ m}}, {other}\text{{ s}}", rf"{other}\text{{ s}}, {one}\text{{ m}}")
    same(f"{one}, {other}", f"{other}, {one}")


@given(st.integers(2, 99))
def test_sec_is_a_second_behind_a_number_and_else_a_function(value: int) -> None:
    same(rf"{value}\text{{ seconds}}", rf"{value}\text{{ sec}}", rf"{value}\ \text{{sec}}", f"{value} sec")
    assert reward(rf"{value}\text{{ sec}}", str(value), prompt="How many seconds?") == 1.0
    same(rf"\frac{{{value}}}{{\cos x}}", rf"{value}\text{{sec}}\,x", rf"{value}\sec x")
    different(rf"{value}\text{{ minutes}}", rf"{value}\text{{ sec}}")


@given(st.integers(2, 99), st.sampled_from(["dozen", "hundred", "thousand", "million"]))
def test_a_word_of_magnitude_may_be_what_is_asked_in(value: int, word: str) -> None:
    answer = rf"{value}\text{{ {word}}}"
    assert reward(answer, str(value), prompt=f"How many {word} eggs are there?") == 1.0
    assert reward(answer, str(value), prompt="How many eggs are there?") == 0.0
    assert reward(answer, str(value + 1), prompt=f"How many {word} eggs are there?") == 0.0


# ------------------------------------------------------------------------------- sets and sequences


@given(st.integers(-9, 9), st.integers(1, 9))
def test_inequalities_and_intervals(low: int, width: int) -> None:
    high = low + width
    same(f"({low},{high}]", f"{low}<x\\le {high}", f"{high}\\ge x>{low}", rf"x>{low}\text{{ and }}x\le{high}")
    same(f"({low},{high}]", rf"\{{x\mid {low}<x\le {high}\}}", rf"\{{x\in\mathbb{{R}} : {low}<x\le {high}\}}")
    different(
        f"({low},{high}]",
        f"{low}<x<{high}",
        f"[{low},{high}]",
        f"{low}\\le x\\le{high}",
        f"({low},{high + 1}]",
    )
    outside = rf"(-\infty,{low})\cup({high},\infty)"
    same(outside, rf"x<{low}\text{{ or }}x>{high}", f"x<{low}, x>{high}", rf"x<{low} \lor x>{high}")
    different(outside, rf"x\le{low}\text{{ or }}x>{high}", rf"({low},{high})")
    same(
        rf"x\neq {low}",
        rf"(-\infty,{low})\cup({low},\infty)",
        rf"\mathbb{{R}}\setminus\{{{low}\}}",
        f"x != {low}",
    )
    different(rf"x\neq {low}", f"x={low}", rf"x\neq {high}")


@given(st.integers(-9, 9), st.integers(1, 9))
def test_matrices_and_systems(first: int, step: int) -> None:
    a, b, c, d = (first + step * n for n in range(4))
    truth = rf"\begin{{pmatrix}}{a}&{b}\\{c}&{d}\end{{pmatrix}}"
    same(
        truth,
        rf"\begin{{bmatrix}}{a}&{b}\\[4pt]{c}&{d}\end{{bmatrix}}",
        rf"\begin{{bmatrix}}{a}&{b}\cr{c}&{d}\end{{bmatrix}}",
    )
    different(
        truth,
        rf"\begin{{pmatrix}}{a}&{c}\\{b}&{d}\end{{pmatrix}}",
        rf"\begin{{vmatrix}}{a}&{b}\\{c}&{d}\end{{vmatrix}}",
    )
    same(
        f"({a},{b})",
        rf"\begin{{cases}}x={a}\\y={b}\end{{cases}}",
        f"x={a},y={b}",
        rf"\begin{{pmatrix}}{a}\\{b}\end{{pmatrix}}",
    )
    different(
        f"({a},{b})",
        rf"\begin{{cases}}x={b}\\y={a}\end{{cases}}",
        f"({b},{a})",
        rf"\{{{a},{b}\}}",
        f"[{a},{b}]",
    )


@given(st.integers(2, 30), st.integers(0, 29))
def test_congruences_and_families(modulus: int, residue: int) -> None:
    assume(residue < modulus)
    truth = rf"x\equiv {residue}\pmod{{{modulus}}}"
    same(
        truth,
        rf"x\equiv {residue}\ (\mathrm{{mod}}\ {modulus})",
        rf"x={modulus}k+{residue},\ k\in\mathbb{{Z}}",
    )
    different(truth, rf"x\equiv {residue + 1}\pmod{{{modulus}}}", rf"x\equiv {residue}\pmod{{{modulus + 1}}}")
    family = rf"\frac{{\pi}}{{{modulus}}}+k\pi,\ k\in\mathbb{{Z}}"
    same(family, rf"\frac{{\pi}}{{{modulus}}}+n\pi", rf"\frac{{\pi}}{{{modulus}}}+(k+1)\pi, k\in\mathbb{{Z}}")
    different(family, rf"\frac{{\pi}}{{{modulus}}}+2k\pi", rf"\frac{{\pi}}{{{modulus + 1}}}+k\pi")


@given(st.integers(2, 99))
def test_decimals_inside_tuples_and_intervals(bottom: int) -> None:
    exact, value = rf"\frac{{1}}{{{bottom}}}", 1 / bottom
    same(rf"({exact},2)", f"({value:.4f},2)")
    different(rf"({exact},2)", f"({value + 0.001:.4f},2)", f"(2,{value:.4f})")
    # alone it is exact
    assert reward(f"{value:.4f}", exact) == float(Fraction(f"{value:.4f}") == Fraction(1, bottom))


# ------------------------------------------------------------------------ words that change a value

VALUES = [
    "pi", "googol", "octillion", "nonillions", "zillion", "sixteenths", "twenty-fifths", "hundredths",
    "halves", "kilo", "mega", "kilos", "sin", "log", "logs", "arg", "imaginary", "complex", "recurring",
    "repeating", "infinity", "in binary", "in hex", "octal", "base two", "factorial", "squared",
    "reciprocal", "dozen", "score", "gross", "lakh", "crores", "myriads", "mille", "percentage points",
    "basis points", "K", "B", "T", "M", "a", "pairs", "times", "fold", "or more", "at most", "negated",
    "rounded", "decades", "orders of magnitude",
]  # fmt: skip


@settings(max_examples=25)
@given(WHOLE, st.sampled_from(VALUES))
def test_a_word_that_names_nothing_counted_is_not_added(value: int, word: str) -> None:
    different(str(value), rf"{value}\text{{ {word}}}", rf"{value} \mathrm{{~{word}}}")
    different(rf"\frac{{{value}}}{{1000}}", rf"\frac{{{value}}}{{1000}}\text{{ {word}}}")


@settings(max_examples=25)
@given(WHOLE, st.text("abcdefgjkmpvw", min_size=4, max_size=9))
def test_an_unknown_word_counts_only_where_truth_or_question_names_it(value: int, letters: str) -> None:
    word = f"zq{letters}s"
    different(str(value), f"{value} {word}", rf"{value}\text{{ {word}}}")
    same(f"{value} {word}", rf"{value}\text{{ {word}}}", str(value))
    assert reward(f"{value} {word}", str(value), prompt=f"How many {word} are there?") == 1.0
    assert reward(f"{value} {word}", str(value + 1), prompt=f"How many {word} are there?") == 0.0


@given(WHOLE, st.sampled_from(["octillion", "googol", "sixteenths", "log", "recurring", "in binary", "kilo"]))
def test_a_word_of_the_truth_that_changes_the_value_is_not_left_out(value: int, word: str) -> None:
    different(rf"{value}\text{{ {word}}}", str(value), f"{value} apples")
    same(rf"{value}\text{{ {word}}}", rf"{value}\ \mathrm{{{word}}}")


@settings(max_examples=25)
@given(WHOLE)
def test_large_words_of_magnitude_and_counted_things(value: int) -> None:
    same(rf"{value}\cdot 10^{{27}}", f"{value} octillion")
    same(rf"{value}\pi", rf"{value}\text{{ pi}}", f"{value} pi")
    same(str(value), f"{value} in total", rf"{value}\text{{ people}}", rf"{value}\text{{ units}}^2")
    same(str(value), f"{value}个苹果", f"{value}人")
    same(str(value), f"{value} vertices", f"{value} red marbles", f"{value} years old", f"{value} points")
    different(str(value), f"{value}个亿", f"{value}个半", f"{value}个百分点", f"{value}分之一")
    assert reward(f"{value} squares", str(value), prompt="How many squares are there?") == 1.0
    assert reward(f"{value} more apples", str(value), prompt="How many more apples has Ann?") == 1.0
    assert reward(f"{value} squared", str(value), prompt="How many squares are there?") == 0.0


@settings(max_examples=25)
@given(st.integers(2, 9), st.data())
def test_the_base_of_a_numeral(base: int, data: st.DataObject) -> None:
    digits = "1" + data.draw(st.text("0123456789"[:base], min_size=1, max_size=6))
    different(digits, rf"{digits}_{base}", rf"{digits}_{{{base}}}", rf"({digits})_{{{base}}}")
    same(rf"{digits}_{base}", rf"{digits}_{{{base}}}", digits)
    same(digits, rf"{digits}_{{10}}")
    assert reward(rf"{digits}_{base}", digits, prompt=f"Write it in base {base}.") == 1.0
    assert reward(rf"{digits}_{base}", digits, prompt=f"Write it in base {base + 10}.") == 0.0


@given(st.sampled_from("ABCDE"), st.sampled_from(["'", "''", "_1", "^c", "^2", "!", "+", r"\prime"]))
def test_a_mark_makes_another_letter_of_a_choice(letter: str, mark: str) -> None:
    different(letter, f"{letter}{mark}", rf"\text{{{letter}{mark}}}")
    same(letter, f"'{letter}'", f'"{letter}"', rf"\text{{``{letter}''}}")


# -------------------------------------------------------------------------------------------- logic

ATOM = st.sampled_from(["p", "q", "r", "s", "P(x)", "x>2"])
COMMUTATIVE = [r"\land", r"\lor", r"\iff", r"\oplus"]
FORMULA = st.recursive(
    ATOM,
    lambda inner: st.one_of(
        st.tuples(st.just(r"\neg"), inner),
        st.tuples(st.sampled_from([*COMMUTATIVE, r"\to"]), inner, inner),
        st.tuples(st.sampled_from([r"\forall x", r"\exists y"]), inner),
    ),
    max_leaves=5,
)


def _latex(formula: str | tuple, *, turned: bool = False) -> str:
    """A formula in LaTeX; `turned`: in another spelling, and backwards where that is the same."""
    if isinstance(formula, str):
        return formula
    sign, *parts = formula
    texts = [_latex(part, turned=turned) for part in parts]
    texts = [text if isinstance(part, str) else f"({text})" for text, part in zip(texts, parts, strict=True)]
    if len(texts) == 1:
        return f"{sign.replace('neg', 'lnot') if turned else sign} {texts[0]}"
    if turned and sign == r"\to":
        return rf"{texts[1]} \Leftarrow {texts[0]}"
    if turned:
        return f"{texts[1]} {sign.replace('lor', 'vee').replace('iff', 'Leftrightarrow')} {texts[0]}"
    return f"{texts[0]} {sign} {texts[1]}"


def _flipped(formula: str | tuple) -> str | tuple:
    """The formula with its first operator replaced, or its implication reversed."""
    sign, *parts = formula
    if sign == r"\to":
        return (sign, parts[1], parts[0])
    other = {r"\land": r"\lor", r"\lor": r"\land", r"\iff": r"\to", r"\oplus": r"\iff"}
    other[r"\forall x"] = r"\exists x"
    return (other[sign], *parts) if sign in other else parts[0]


@given(FORMULA)
def test_formulas_of_logic(formula: str | tuple) -> None:
    assume(not isinstance(formula, str) and "x>2" not in formula[1:])
    # of two equal sides, "and" says the same as "or"
    assume(len(formula) < 3 or not reward(_latex(formula[1]), _latex(formula[2])))
    same(_latex(formula), _latex(formula, turned=True))
    different(_latex(formula), _latex(_flipped(formula)))


def test_logic_beside_sets_and_lists() -> None:
    different(r"p \land q", r"p \lor q", "p", r"\neg p \land q", r"p \land q \land r")
    different(r"p \to q", r"q \to p", r"p \iff q", r"\neg q \to \neg p", r"p \gets q", "q -> p")
    different(r"p \to q", r"p \because q", r"p \mapsto q")
    different("(3,4)", r"3\land 4", r"3 \wedge 4")
    different("x>5", r"x\to 5", r"x \approx 5")
    different(r"dx \wedge dy", r"dy \wedge dx")
    different(r"p\text{ xor }q", "p", r"p \lor q")
    different(r"p\text{ implies }q", "p", r"q \to p")
    same(r"p\text{ xor }q", r"q \oplus p")
    same("3, 4", r"x=3 \lor x=4", r"3 \lor 4")
    same(r"p \lor q", r"p \text{ or } q")
    same(r"(2,5)", r"x>2 \land x<5")
    same(r"A\cup B", r"B \cup A")
    different(r"A\cup B", r"A\cap B", r"A\setminus B")
    different(r"A\setminus B", r"B\setminus A")
    different(r"x\in A", r"y\in A", r"A\in x", r"x\notin A")
    different(r"2\operatorname{tr}A", "2")
    different(r"p\text{ and }\neg q", r"p\text{ or }\neg q")
    different(r"x=1 \lor x=2", r"x=1 \land x=2")
    different(r"x\in A\lor x\in B", r"x\in A\land x\in B")
    different("(AB)^{-1}", "AB^{-1}")
    different("B", "(B)'")


# -------------------------------------------------------------------------------- products in order

VECTOR = st.sampled_from([r"\vec {}", r"\vec{{{}}}", r"\mathbf{{{}}}", r"\hat {}", r"\boldsymbol{{{}}}"])


@settings(max_examples=25)
@given(VECTOR, st.permutations("abc"), st.integers(2, 9))
def test_cross_products(style: str, letters: list[str], factor: int) -> None:
    a, b, c = (style.format(letter) for letter in letters)
    different(rf"{a}\times {b}", rf"{b}\times {a}", rf"{a}\times {c}", rf"{a}\cdot {b}", "0")
    same(rf"{a}\times {b}", rf"-{b}\times {a}", rf"-({b}\times {a})")
    same(rf"{factor}{a}\times {b}", rf"{a}\times {factor}{b}")
    same(rf"({a}+{b})\times {c}", rf"{a}\times {c}+{b}\times {c}", rf"{a}\times {c}-{c}\times {b}")
    different(rf"({a}\times {b})\times {c}", rf"{a}\times ({b}\times {c})", rf"({b}\times {a})\times {c}")
    same(rf"({a}\times {b})\cdot {c}", rf"{c}\cdot({a}\times {b})")


@settings(max_examples=25)
@given(st.permutations("ABCSTX"), st.integers(2, 99), st.integers(2, 99))
def test_products_of_sets_and_matrices_have_an_order(letters: list[str], one: int, other: int) -> None:
    a, b, *_ = letters
    different(rf"{a}\times {b}", rf"{b}\times {a}", rf"{a}\times {a}")
    different(f"{a}^{{-1}}{b}", f"{b} {a}^{{-1}}", f"{a} {b}^{{-1}}")
    same(rf"2{a}\times {b}", rf"{a}\times 2{b}")
    same(rf"{one}\times {other}x", rf"{other}\times {one}x", rf"{one * other}x")
    same(r"n(n-1)", r"n\times(n-1)", r"(n-1)\times n")
    same(rf"{a}({a}-1)", rf"{a}\times({a}-1)")
    same(r"\mathbb{R}\times\mathbb{R}", r"\mathbb{R}^2")
    different(r"\mathbb{R}\times\mathbb{Z}", r"\mathbb{Z}\times\mathbb{R}")
    different("nCr", "rCn")


def test_capitals_of_physics_and_geometry_are_numbers() -> None:
    same("nRT", "nTR", "RnT", r"R\cdot n\cdot T")
    same(r"\frac{R_1R_2}{R_1+R_2}", r"\frac{R_1\cdot R_2}{R_1+R_2}", r"\frac{R_2R_1}{R_2+R_1}")
    same(r"\frac{GMm}{r^2}", r"\frac{GmM}{r^2}")
    same(r"L\times W", r"W\times L")
    same("uv", r"u\times v", "vu")
    same(r"\frac dt", "d/t", r"\frac{d}{t}")


@settings(max_examples=25)
@given(st.permutations("xyztuvwabkV"))
def test_derivatives_are_no_fractions(letters: list[str]) -> None:
    y, x, *_ = letters
    different(rf"\frac{{d{y}}}{{d{x}}}", rf"\frac {y}{x}", rf"\frac{{d{x}}}{{d{y}}}", rf"{y}/{x}")
    same(rf"\frac{{d{y}}}{{d{x}}}", f"d{y}/d{x}", rf"\frac{{\mathrm{{d}}{y}}}{{\mathrm{{d}}{x}}}")
    different(rf"{y}{x}", f"d{y}/d{x}")
    different(rf"\frac{{\Delta {y}}}{{\Delta {x}}}", rf"\frac {y}{x}")
    different(rf"\frac{{d^2{y}}}{{d{x}^2}}", rf"\frac {{{y}}}{{{x}^2}}")
    different(r"x\,dy", r"y\,dx")
    same("a+nd", "nd+a", "dn+a")


# ------------------------------------------------------------------------------------ bars, percent


@settings(max_examples=25)
@given(st.integers(1, 2), st.integers(2, 9))
def test_bars_of_the_truth_are_not_left_out(shift: int, factor: int) -> None:
    for inside in ("x", f"x-{shift}", f"{factor}x+{shift}", r"\sin x"):
        truth = rf"{factor}\ln|{inside}|+C"
        different(truth, rf"{factor}\ln({inside})+C", rf"{factor}\ln(-({inside}))+C", rf"\ln|{inside}|+C")
        same(truth, rf"C+\ln(|{inside}|^{factor})", rf"\frac{{{factor}}}{{2}}\ln(({inside})^2)+C")
        same(rf"{factor}\ln({inside})+C", rf"{factor}\ln|{inside}|+C")
    different(r"\sqrt{x}", r"\sqrt{|x|}")
    different("|x|", "x", "-x")
    same("|x|", r"\sqrt{x^2}")


@settings(max_examples=25)
@given(st.integers(2, 99), st.sampled_from("nxk"))
def test_the_percent_sign_behind_a_variable_is_not_left_out(bottom: int, name: str) -> None:
    percentage, number = rf"\frac{{{name}}}{{{bottom}}}\%", rf"\frac{{{name}}}{{{bottom}}}"
    different(percentage, number)
    different(number, percentage)
    same(percentage, rf"\frac{{{name}}}{{{100 * bottom}}}", rf"{name}/{bottom} \%")
    assert reward(number, percentage, prompt="What percent is it?") == 1.0


# ----------------------------------------------------------------------------------- text and boxes


@given(WHOLE, st.sampled_from([r"\bf {}", r"{{\rm {}}}", r"{{\color{{blue}}{}}}", r"\Large {}",
r"\hspace{{2mm}}{}",
                               r"\text{{Answer: }} {}", r"\mathbf{{{}}}", "{}个", "＝{}",
                               "答案：{}"]))  # fmt: skip
def test_styles(value: int, style: str) -> None:
    same(str(value), style.format(value))
    different(str(value), style.format(value + 1))


@given(st.integers(1, 99))
def test_ordinals(value: int) -> None:
    same(str(value), f"{value}th", rf"{value}^{{\text{{th}}}}", rf"{value}^\text{{th}}")
    different(str(value), f"{value + 1}th", rf"{value}^{{2}}" if value > 1 else "2")


@given(st.sampled_from("ABCDE"), st.sampled_from(["A larger sample", "I and II", "12", "does not exist"]))
def test_choices_with_their_text(letter: str, text: str) -> None:
    same(letter, f"{letter}: {text}", f"({letter}) {text}", f"{letter}. {text}", rf"\text{{Option {letter}}}")
    other = "ABCDE"[("ABCDE".index(letter) + 1) % 5]
    different(letter, f"{other}: {text}", f"{letter} or {other}", f"{letter}, {other}")
    same(
        f"{min(letter, other)}{max(letter, other)}", rf"{letter}, {other}", rf"\text{{{letter} and {other}}}"
    )


def test_roots_and_plain_python() -> None:
    same(r"4\sqrt{2}", r"4\sqrt(2)", "4*sqrt(2)", r"4\sqrt2")
    same(r"\sqrt[3]{5}", r"\sqrt[3]5", "5^{1/3}")
    same(r"\dfrac{\pi}{2}", "pi/2", "2*pi/4")
    same("1024", "2**10")
    different(r"\sqrt{13}", r"\sqrt13")


def test_several_boxes_are_together_a_list_or_a_tuple() -> None:
    assert last_boxes(r"first \boxed{9}. So \boxed{1} and \boxed{-2}.", 2) == ["1", "-2"]
    assert last_boxes(r"\boxed{9}, \boxed{1} and \boxed{-2}", 2) == []  # there is one more
    assert verify_math(r"The integers are \boxed{-2} and \boxed{1}.", "1,-2", {})[0] == 1.0
    assert verify_math(r"$x=\boxed{3}$, $y=\boxed{4}$", "(3,4)", {})[0] == 1.0
    for wrong in (
        r"\boxed{4} and \boxed{3}",
        r"\boxed{3}, \boxed{4}, \boxed{5}",
        r"\boxed{3}, but then \boxed{4}",
    ):
        assert verify_math(wrong, "(3,4)", {})[0] == 0.0


def test_answers_without_a_box_count_where_they_are_asked_for() -> None:
    last = make_math_verifier("last")
    assert last_stated("Then 3, so the answer is **42**.") == "42"
    assert [
        last(text, "42", {})[0] for text in ("The answer is 42.", "so $x=42$", "41, then 42", r"\boxed{42}")
    ] == [1.0] * 4
    assert [last(text, "42", {})[0] for text in ("42, so the answer is 41.", r"42 \boxed{41}", "")] == [
        0.0
    ] * 3
    assert verify_math("The answer is 42.", "42", {}) == (0.0, "no_answer")


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("The answer is: **5**", 1.0),
        ("The answer is $5$. I checked it with $x=2$.", 1.0),
        ("The final answer is 5 since $a=6$", 1.0),
        ("The answer is therefore approximately $5$", 1.0),
        ("The answer is $5$, and not $6$.", 1.0),
        ("The answer is not $5$", 0.0),
        ("The answer is either $4$ or $5$", 0.0),
        ("The answer is $1$, $2$, $3$, $4$, $5$", 0.0),
        ("The answer is 5 or 6", 0.0),
        ("The answer is $6$, and not $5$.", 0.0),
        ("The answer is $6$. I checked it with $x=5$.", 0.0),
        ("The answer is less than $5$", 0.0),
        ("It is impossible that the answer is $5$", 0.0),
        ("The final answer is 6 since $a=5$", 0.0),
    ],
)
def test_what_is_stated_without_a_box(response: str, reward: float) -> None:
    assert make_math_verifier("last")(response, "5", {})[0] == reward


def test_choices_that_are_stated_without_a_box() -> None:
    last = make_math_verifier("last")
    texts = ("The final answer is (B).", "Answer: B", "Answer: B, C", "Answer: A, B")
    assert [last(text, "B", {})[0] for text in texts] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "opens", ["<think>", "<Thinking>", "[THINK]", "<seed:think>", "◁think▷", "<|begin_of_thought|>"]
)
def test_thinking_that_the_prompt_opens_and_nothing_closes_does_not_count(opens: str) -> None:
    odd = {"[THINK]": "[/THINK]", "◁think▷": "◁/think▷", "<|begin_of_thought|>": "<|end_of_thought|>"}
    closes = odd.get(opens, f"</{opens[1:]}")
    prompt = f"2+3?{opens}\n"
    assert verify_math(with_open_thinking(r"it is \boxed{5}, since", prompt), "5", {})[0] == 0.0
    assert verify_math(with_open_thinking(rf"hm \boxed{{4}}{closes} \boxed{{5}}", prompt), "5", {})[0] == 1.0
    assert with_open_thinking("plain", f"{opens}example{closes} now you") == "plain"


@pytest.mark.parametrize("opens", ["<Think>", "<THINK>", "<think >", '<think id="1">'])
def test_think_tags_in_other_spellings(opens: str) -> None:
    assert verify_math(rf"{opens} it is \boxed{{5}}, since", "5", {})[0] == 0.0
    assert verify_math(rf"{opens} \boxed{{4}}</think> \boxed{{5}}", "5", {})[0] == 1.0
    assert verify_math(rf"{opens} \boxed{{5}}</THINK > \boxed{{4}}", "5", {})[0] == 0.0


def test_truths_of_gsm8k() -> None:
    assert verify_math(r"\boxed{11}", "5 + 6 = <<5+6=11>>11 we add. #### 11", {})[0] == 1.0
    assert verify_math(r"\boxed{12}", "we add. #### 11", {})[0] == 0.0


# ------------------------------------------------------------------------------------------ attacks

ATTACKS = [json.loads(line) for line in Path(__file__).with_name("math_attacks.jsonl").open()]


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in ATTACKS}))
def test_attacks_on_one_kind(kind: str) -> None:
    """Wrong answers that were paid once, and right ones beside them."""
    cases = [case for case in ATTACKS if case["kind"] == kind]
    boxes = (case.get("response") or f"\\boxed{{{case['answer']}}}" for case in cases)
    verdicts = [
        verify_math(response, case["truth"], {"prompt": case.get("prompt", "")})[0]
        for case, response in zip(cases, boxes, strict=True)
    ]
    assert [case for case, verdict in zip(cases, verdicts, strict=True) if verdict != case["same"]] == []


@pytest.mark.parametrize(
    "answer",
    ["x(" * 28 + "x" + ")" * 28, "h(" * 28 + "x" + ")" * 28, r"\vec a" + r"\times(\vec a+\vec b+\vec c)" * 12]
    + [r"\neg " * 80 + "p", r"p \to " * 70 + "q", r"\forall x " * 45 + "p"]
    + ["(" + r"\vec a+" * 60 + r"\vec a)\times \vec b", r"(\vec a+\vec b)\cdot\vec a\times" * 12 + r"\vec c"],
)
def test_nested_and_long_formulas_take_no_time(answer: str) -> None:
    started = time.process_time()
    assert reward(answer, "34") == 0.0
    assert time.process_time() - started < 1.0  # 0.04 s; 2^28 steps where brackets are read twice


def test_brackets_that_may_be_a_functions_are_read_once() -> None:
    same(r"\frac{3}{2}x", r"x(\frac12+1)", r"x(1+\frac12)")


def test_sums_inside_sums_take_no_time() -> None:
    term = "1"
    for name in "abcd":
        term = rf"\sum_{{{name}=1}}^{{1999}} {term}"
    assert reward(term, "7") == 0.0


def test_a_comma_before_three_digits_is_no_decimal_comma() -> None:
    different("1.234", "1,234")
    different("2.5", "2,500")
    same("1.5", "1,5")
    same("1234", "1,234")


def test_what_a_measured_thing_is_made_of() -> None:
    same("12", r"12\text{ loaves of bread}", r"12\text{ cups of flour}")
    same(r"12\text{ pounds}", r"12\text{ pounds of meat}")
    different("6", r"6\text{ of pi}", r"6\text{ tenths of apples}")
    asked = "A farmer grows pumpkins. He sells a third of them. What is left?"
    assert reward("12", r"12\text{ pumpkins}", prompt=asked) == 1.0
    assert reward("12", r"12\text{ thirds}", prompt=asked) == 0.0
