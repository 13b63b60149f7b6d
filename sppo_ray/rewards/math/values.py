"""Comparing what expressions are worth: exactly, or to as many digits as it takes.

Rational numbers are compared exactly, as fractions. Others are compared at a precision that grows
with the digits of the numbers in them, so that 1 - 2^-60 and 1 - 2^-61 differ. Expressions with
variables are compared at points that the two expressions determine: an answer cannot be made to
fit them. A value that would take more than a few milliseconds (99999999!, 9^{9^9}) raises TooLarge.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction

from sppo_ray.rewards.math.evaluator import (
    MP,
    Evaluator,
    Number,
    TooLarge,
    Undefined,
    inexact,
    real,
    real_or_none,
)
from sppo_ray.rewards.math.letters import as_products, with_complex
from sppo_ray.rewards.math.matrices import same_matrices
from sppo_ray.rewards.math.nodes import Node, has_variables, walk

MAX_DIGITS = 2500
"""Of the precision at which two numbers are compared."""
_DIGITS = 50
_CONFIRMING_DIGITS = 320
_WHOLE_OPERATIONS = ("!", "!!", "sum", "prod")
_WHOLE_CALLS = ("floor", "ceil", "binom", "gcd", "lcm", "max", "min")
_WITH_STEPS = frozenset([
    "floor", "ceil", "max", "min", "root", "ln", "log", "arcsin", "arccos", "arctan", "arccot", "arcsec",
    "arccsc",
])  # fmt: skip
_MIN_POINTS = 3
"""That must agree on a constant factor."""
_PRIME = 999_983
_FAR, _PART = 15, Fraction(61, 97)
"""From _FAR on, a point is left out where the expressions are too large."""
_LARGE = ((15, 30), (31, 60), (61, 150))
"""Of whole numbers."""


def same_value(truth: Node, answer: Node, *, matrices: bool = False) -> bool:
    """Whether two expressions have the same value, for all values of their variables; `matrices`:
    the question is about them. Raises TooLarge and Undefined.
    """
    if not _names(truth, answer):
        pair, digits = _numbers(truth, answer, {})
        if any(map(_differs_from_zero, pair, (answer, truth))):
            return False
        return same_number(pair, digits) and _stays_same(truth, answer, {})
    in_order = same_matrices(truth, answer, known=matrices)
    if in_order is not None:
        return in_order
    products = as_products(truth, answer)
    return _same_function(truth, answer) or (products is not None and _same_function(*products))


def _names(*trees: Node) -> list[str]:
    return sorted({part.args[0] for tree in trees for part in walk(tree) if part.op == "sym"})


def _differs_from_zero(number: Number, other: Node) -> bool:
    """Whether a number is 0 and the other expression is not, however small: e^{-1000}."""
    return isinstance(number, Fraction) and number == 0 and _is_never_zero(other)


def _is_never_zero(node: Node) -> bool:
    if node.op == "num":
        return bool(node.args[0] != 0)
    if node.op in ("const", "^"):
        infinite = Node("const", ("inf",)) in walk(node)
        return not infinite and (node.op == "const" or _is_never_zero(node.args[0]))
    return node.op in ("*", "/", "neg") and all(map(_is_never_zero, node.args))


def _stays_same(truth: Node, answer: Node, point: Mapping[str, Fraction]) -> bool:
    """Whether two values that are the same to fifty digits are the same to some hundred: 1 and 1 -
    e^{-100} are not.
    """
    pair, digits = _numbers(truth, answer, point, _CONFIRMING_DIGITS)
    return same_number(pair, digits)


def value_of(node: Node) -> Number:
    """The value of an expression without variables. Raises TooLarge, Undefined, and KeyError for a
    variable.
    """
    return _numbers(node, node, {})[0][0]


def value_at(node: Node, point: Mapping[str, Fraction]) -> Number:
    """The value of an expression at a point, to about fifty digits. Raises TooLarge, Undefined, and
    KeyError for a variable.
    """
    return Evaluator(point, _DIGITS).value(node)


def same_number(pair: tuple[Number, Number], digits: int) -> bool:
    """Whether two numbers are the same: fractions exactly, others to the digits that they were
    worked out to, but for a few.
    """
    one, other = pair
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    return _near(one, other, digits - 15)


def within(truth: Number, answer: Number, tolerance: Fraction) -> bool:
    """Whether a real answer is off by at most `tolerance` of the truth."""
    if isinstance(truth, Fraction) and isinstance(answer, Fraction):
        return abs(truth - answer) <= tolerance * abs(truth)
    one, other = real(truth), real(answer)
    return bool(abs(one - other) <= abs(one) * tolerance.numerator / tolerance.denominator)


def proportional(one: Node, other: Node) -> int:
    """1 or -1 when one expression is the other times a constant of this sign, else 0 (and without
    variables). Raises TooLarge and Undefined.
    """
    in_order = same_matrices(one, other)
    if in_order is not None:
        return 1 if in_order else -1 if same_matrices(one, Node("neg", (other,))) else 0
    one, other = with_complex(one, other)
    ratios: list[Number] = []
    barred = any(map(_is_barred, (*walk(one), *walk(other))))
    for point in _all_points(one, other) if _names(one, other) else ():
        try:
            (mine, theirs), _ = _numbers(one, other, point)
        except Undefined:
            continue
        except TooLarge:
            if _is_far(point):
                continue
            raise
        mine, theirs = real_or_none(mine), real_or_none(theirs)
        if mine is None or theirs is None:
            if barred and (mine is None) != (theirs is None):
                return 0
            continue
        if not all(isinstance(number, Fraction) or MP.isfinite(number) for number in (mine, theirs)):
            return 0
        if not mine or not theirs:
            if mine or theirs:
                return 0
            continue
        ratios.append(mine / theirs)
        if abs(ratios[-1] - ratios[0]) > abs(ratios[0]) * MP.mpf(10) ** -25:  # both may be tiny
            return 0
    return 0 if len(ratios) < _MIN_POINTS else 1 if ratios[0] > 0 else -1


def _same_function(truth: Node, answer: Node) -> bool:
    """At points where both are real, or at all of them where they never are; at least two points
    must decide. An answer that is real only where few of the points are is another function.
    """
    truth, answer = with_complex(truth, answer)
    at_real, at_others, only_truth = [], [], 0
    imaginary = any(part == Node("const", ("i",)) for tree in (truth, answer) for part in walk(tree))
    whole = any(map(_is_of_whole_numbers, (*walk(truth), *walk(answer))))
    barred, answer_barred = any(map(_is_barred, walk(truth))), _is_barred_outside_logarithms(answer)
    points = _all_points(truth, answer, whole=whole)
    if _counts_steps(truth, answer):
        points = [{name: Fraction(value // 1) for name, value in point.items()} for point in points]
    for point in points:
        try:
            (one, other), digits = _numbers(truth, answer, point)
        except Undefined:
            continue
        except TooLarge:
            if _is_far(point):
                continue
            raise
        same = _near(one, other, digits - 20)
        is_real, answer_is_real = real_or_none(one) is not None, real_or_none(other) is not None
        if not imaginary and is_real != answer_is_real and (barred if is_real else answer_barred):
            return False
        if imaginary or (is_real and answer_is_real):
            if not same:
                return False
            at_real.append(point)
        else:
            at_others.append(same)
            is_due = not whole or all(value.denominator == 1 for value in point.values())
            only_truth += is_real and is_due
    if at_real:
        if len(at_real) < only_truth:
            return False
        decided = len(at_real) >= 2 or (len(at_others) >= 1 and all(at_others))
        return decided and _stays_same(truth, answer, at_real[0])
    return len(at_others) >= 2 and all(at_others)


def _is_barred(node: Node) -> bool:
    """Whether it is |x|: bars say that the expression is meant for negative values too."""
    return node.op == "abs" and has_variables(node)


def _is_barred_outside_logarithms(node: Node) -> bool:
    r"""Whether an answer has bars that make it another function: \sqrt{|x|} is not \sqrt{x}, but
    \ln|x| is more than \ln x.
    """
    if node.op == "call" and node.args[0] in ("ln", "log") and node.args[-1].op == "abs":
        return False
    parts = (part for part in node.args if isinstance(part, Node))
    return _is_barred(node) or any(map(_is_barred_outside_logarithms, parts))


def _is_of_whole_numbers(node: Node) -> bool:
    """Whether an operation is meant for whole numbers: n!, (-1)^n, \\binom{n}{k}."""
    if node.op == "^":
        return has_variables(node.args[1])
    return node.op in _WHOLE_OPERATIONS or (node.op == "call" and node.args[0] in _WHOLE_CALLS)


def _has_steps(node: Node) -> bool:
    """Whether it may change far from where it is usually looked at."""
    if node.op == "^":
        power = node.args[1]
        return has_variables(node.args[0]) and power.op != "num" and not has_variables(power)
    return node.op == "abs" or (
        node.op == "call" and node.args[0] in _WITH_STEPS and any(map(has_variables, _parts(node)))
    )


def _parts(node: Node) -> list[Node]:
    return [part for part in node.args if isinstance(part, Node)]


def _counts_steps(truth: Node, answer: Node) -> bool:
    r"""Whether the variables of \lfloor n/2 \rfloor are whole numbers."""
    rounds = (
        part.op == "call" and part.args[0] in ("floor", "ceil") for part in (*walk(truth), *walk(answer))
    )
    return {*_names(truth, answer)} <= {*"nkm"} and any(rounds)


def _draws(truth: Node, answer: Node) -> random.Random:
    """A source of numbers that both expressions determine."""
    return random.Random(hashlib.blake2b(repr((truth, answer)).encode(), digest_size=8).digest())


def _all_points(truth: Node, answer: Node, *, whole: bool = False) -> list[dict[str, Fraction]]:
    points = _points(truth, answer, whole=whole)
    has_steps = any(map(_has_steps, (*walk(truth), *walk(answer))))
    return points + (_far_points(truth, answer) if has_steps else [])


def _is_far(point: Mapping[str, Fraction]) -> bool:
    return max(map(abs, point.values()), default=0) >= _FAR


def _far_points(truth: Node, answer: Node) -> list[dict[str, Fraction]]:
    """Points at which each variable is large."""
    draw, names = _draws(truth, answer), _names(truth, answer)
    ranges = ((100, 400), (-400, -100), (1000, 9000), (-9000, -1000))
    return [{name: Fraction(draw.randint(*ends)) + _PART for name in names} for ends in ranges]


def _points(truth: Node, answer: Node, *, whole: bool = False) -> list[dict[str, Fraction]]:
    """Values for the variables: around 1, larger, negative, of both signs, and whole numbers (more
    of them, of all parities, where `whole` numbers are meant).
    """
    draw, names = _draws(truth, answer), _names(truth, answer)
    ranges = ((40, 150, 1), (110, 420, 1), (30, 260, -1), (55, 310, 0), (5, 95, 1), (7, 60, 1), (20, 90, -1))
    points = []
    for number, (low, high, sign) in enumerate(ranges):
        values = {}
        for index, name in enumerate(names):
            step = (index * 7919 + number * 104_729 + 613) % (high - low)
            signed = sign or (1 if (index + number) % 2 else -1)
            values[name] = signed * (low + step + Fraction(draw.randrange(_PRIME), _PRIME)) / 97
        points.append(values)
    if len(names) > 1:
        points += _related_points(names, Fraction(draw.randrange(_PRIME), _PRIME))
    starts = (3, 8, 1, 2, 4, 6, 11, 12) if whole else (3, 8)
    points += [{name: Fraction(index + start) for index, name in enumerate(names)} for start in starts]
    if whole:
        points += [{name: Fraction(start - index) for index, name in enumerate(names)} for start in (9, 14)]
        points += [{name: Fraction(start) for name in names} for start in (5, 10)]
        # with a divisor that all but one have in common
        points += [
            {name: Fraction(5 if index % 3 == odd else 12 + 6 * index) for index, name in enumerate(names)}
            for odd in range(3)
        ]
        points += [{name: Fraction(draw.randint(*ends)) for name in names} for ends in _LARGE]
        points += [
            {name: Fraction(37 * step + 11 * index, 101) for index, name in enumerate(names)}
            for step in range(-6, 18)
        ]
    return points


def _related_points(names: Sequence[str], part: Fraction) -> list[dict[str, Fraction]]:
    """Points at which the variables rise and fall, whole ones and others, and have unlike signs,
    the first or the last one being the largest. `part`: a fraction to add.
    """
    order = {name: index for index, name in enumerate(names)}
    last = len(names) - 1
    points = [{name: Fraction(2 + 9 * at) for name, at in order.items()}]
    points += [{name: Fraction(5 + 7 * (last - at)) for name, at in order.items()}]
    points += [{name: 3 + 5 * at + part for name, at in order.items()}]
    points += [{name: 3 + 4 * (last - at) + part for name, at in order.items()}]
    for sign in (1, -1):
        points += [{name: sign * (-1) ** at * (2 + 3 * at + part) for name, at in order.items()}]
        points += [{name: sign * (-1) ** at * (2 + 3 * (last - at) + part) for name, at in order.items()}]
    return points


# ------------------------------------------------------------------------------------------ numbers


def _numbers(
    one: Node, other: Node, point: Mapping[str, Fraction], digits: int = _DIGITS
) -> tuple[tuple[Number, Number], int]:
    """Both values, and the digits they were worked out to: enough to tell apart whatever the
    numbers in them can make differ.
    """
    rough = Evaluator(point, digits)
    pair = (rough.value(one), rough.value(other))
    if all(isinstance(number, Fraction) for number in pair) or rough.extra_digits == 0:
        return pair, digits
    digits += 2 * rough.extra_digits
    if digits > MAX_DIGITS:
        raise TooLarge
    fine = Evaluator(point, digits)
    return (fine.value(one), fine.value(other)), digits


def _near(one: Number, other: Number, digits: int) -> bool:
    with MP.workdps(digits + 20):
        one, other = inexact(one), inexact(other)
        if MP.isnan(one) or MP.isnan(other):
            return False
        if MP.isinf(one) or MP.isinf(other):
            return bool(one == other)
        bound = MP.mpf(10) ** -digits
        largest = max(abs(one), abs(other))
        return bool(largest < bound or abs(one - other) <= bound * largest)
