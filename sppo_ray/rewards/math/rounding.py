"""Whether a decimal stands for the number that it rounds."""

from __future__ import annotations

from fractions import Fraction

from sppo_ray.rewards.math.evaluator import Number, real
from sppo_ray.rewards.math.nodes import Node, walk
from sppo_ray.rewards.math.values import within

MIN_ROUNDED_DIGITS = 4
"""A decimal truth of so many significant digits is taken for rounded: 3.1416 accepts 3.14159."""
MIN_ROUNDED_PLACES = 3
"""So many decimal places make a number in a tuple or an interval stand for the exact one that it
rounds.
"""
MAX_ROUNDED_AWAY = Fraction(1, 100)
"""Of a number in a tuple or an interval: 0.33 stands for 1/3, and 0.05 is no 0.054."""


def places_of(node: Node) -> int | None:
    """The most decimal places of a numeral in the tree; None where all are exact."""
    found = [part.args[1] for part in walk(node) if part.op == "num" and part.args[1] is not None]
    return max(found, default=None)


def rounds_to(
    expected: Number, given: Number, places: int | None, answer_places: int | None, *, inside: bool
) -> bool:
    """Whether one of two numbers is the other one after it was rounded to its decimal places."""
    if places is not None and answer_places is not None:
        if answer_places <= places or not isinstance(expected, Fraction):
            return False
        digits = len(str(abs(expected.numerator * 10**places // expected.denominator)).lstrip("0"))
        rounded = places >= 2 if inside else places >= 1 and digits >= MIN_ROUNDED_DIGITS
        if inside and not within(expected, given, MAX_ROUNDED_AWAY):
            return False
        return rounded and _is_near(expected, given, places)
    shown = answer_places if places is None else places
    if inside and not within(expected, given, MAX_ROUNDED_AWAY):
        return False
    return inside and shown is not None and shown >= MIN_ROUNDED_PLACES and _is_near(expected, given, shown)


def _is_near(expected: Number, given: Number, places: int) -> bool:
    bound = Fraction(1, 2 * 10**places)
    if isinstance(expected, Fraction) and isinstance(given, Fraction):
        return abs(given - expected) <= bound
    return bool(abs(real(given) - real(expected)) <= real(bound))
