"""Working an expression out at a point, within bounds of time and memory: see `values`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from sppo_ray.rewards.math.expressions import UNKNOWN
from sppo_ray.rewards.math.nodes import Node

MAX_BITS = 1 << 17
"""Of an exact number: 39,000 digits."""
MAX_EXPONENT_BITS = 1 << 14
"""Of the magnitude of a number that is not exact: it may have 2^(2^14) digits before the point, and
none is stored.
"""
MAX_GAMMA_DIGITS = 400
"""Of the precision of a factorial of what is no whole number."""
MAX_TERMS = 2000
"""Of a sum or a product with bounds."""
MAX_WORK = 20_000
"""Operations on one expression: sums inside sums multiply them."""
MP = mpmath.MPContext()

Number = Any
"""A Fraction, or a real or complex number of `MP`."""


class TooLarge(Exception):
    """The value is too large to be worked out."""


class Undefined(Exception):
    """The expression has no value: it divides by zero, say."""


def inexact(number: Number) -> Number:
    return (
        MP.mpf(number.numerator) / number.denominator if isinstance(number, Fraction) else MP.convert(number)
    )


def real_or_none(number: Number) -> Number | None:
    number = inexact(number)
    if isinstance(number, MP.mpc):
        return number.real if abs(number.imag) <= abs(number.real) * MP.mpf(10) ** -30 else None
    return number


def real(number: Number) -> Number:
    """The number as a real one, not exact. Raises Undefined where it is none."""
    found = real_or_none(number)
    if found is None or MP.isnan(found):
        raise Undefined("no real number")
    return found


class Evaluator:
    """Works a tree out at a point, to `digits` digits where it is not exact."""

    def __init__(self, point: Mapping[str, Fraction], digits: int) -> None:
        self._point, self._digits = dict(point), digits
        self._place = repr(sorted(point.items()))
        self.extra_digits = 0  # of the long numbers that were rounded
        self._work = 0

    def value(self, node: Node) -> Number:
        self._work = 0
        with MP.workdps(self._digits):
            return self._value(node)

    def _value(self, node: Node) -> Number:
        self._work += 1
        if self._work > MAX_WORK:
            raise TooLarge
        op, args = node
        if op == "num":
            return args[0]
        if op == "sym":
            at = self._point[args[0]]
            # powers of an exact one would grow long
            return at if at.denominator == 1 else inexact(at)
        if op == "const":
            return {"pi": +MP.pi, "e": +MP.e, "i": MP.mpc(0, 1), "inf": MP.inf}[args[0]]
        if op in ("sum", "prod"):
            return self._series(node)
        if op == "call":
            return self._call(args[0], [self._value(arg) for arg in args[1:]])
        if op in ("±", "∓"):
            raise Undefined("two values")
        return self._operation(op, [self._value(arg) for arg in args])

    def _operation(self, op: str, values: list[Number]) -> Number:
        if op == "neg":
            return -values[0]
        if op in ("!", "!!"):
            return self._factorial(values[0], 2 if op == "!!" else 1)
        if op == "abs":
            return abs(values[0])
        one, other = values
        if op == "^":
            return self._power(one, other)
        if op == "/" and not other:
            raise Undefined("a division by zero")
        one, other = self._alike(one, other)
        result = (
            one * other
            if op == "*"
            else one / other
            if op == "/"
            else one - other
            if op == "-"
            else one + other
        )
        return self._bounded(result)

    def _alike(self, one: Number, other: Number) -> tuple[Number, Number]:
        """Both as fractions, or none."""
        if isinstance(one, Fraction) and isinstance(other, Fraction):
            return one, other
        return self._rounded(one), self._rounded(other)

    def _rounded(self, number: Number) -> Number:
        if not isinstance(number, Fraction):
            return number
        bits = max(number.numerator.bit_length(), number.denominator.bit_length())
        if bits > 64:
            self.extra_digits += bits * 3 // 10
        return inexact(number)

    def _bounded(self, number: Number) -> Number:
        if isinstance(number, Fraction):
            if max(number.numerator.bit_length(), number.denominator.bit_length()) > MAX_BITS:
                raise TooLarge
        elif (
            not MP.isinf(number)
            and not MP.isnan(number)
            and abs(MP.mag(number)) > MAX_EXPONENT_BITS
            and number
        ):
            raise TooLarge
        return number

    def _power(self, base: Number, exponent: Number) -> Number:
        if not base:
            if not exponent or real(exponent) < 0:
                raise Undefined("a power of zero")
            return base
        whole = isinstance(exponent, Fraction) and exponent.denominator == 1
        if whole and isinstance(base, Fraction):
            if base not in (1, -1):
                bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(
                    exponent.numerator
                )
                if bits > MAX_BITS:
                    raise TooLarge
            return base ** (exponent.numerator if base not in (1, -1) else exponent.numerator % 2)
        if isinstance(exponent, Fraction) and exponent.denominator != 1 and real_or_none(base) is not None:
            return self._root_power(base, exponent)
        base, exponent = self._rounded(base), exponent.numerator if whole else self._rounded(exponent)
        if MP.isinf(base) or (not whole and MP.isinf(exponent)):
            return MP.power(base, exponent)
        size = abs(exponent) * (abs(MP.log(abs(base))) + 1)
        if size > MAX_EXPONENT_BITS:
            raise TooLarge
        return self._bounded(MP.power(base, exponent))

    def _root_power(self, base: Number, exponent: Fraction) -> Number:
        """A power with a fraction as exponent: exact where it can be, and real for a negative base
        under an odd root.
        """
        negative = real(base) < 0
        root = self._root(abs(base), exponent.denominator)
        if negative and exponent.denominator % 2 == 0:
            root = self._rounded(root) * MP.expjpi(MP.mpf(1) / exponent.denominator)
        elif negative:
            root = -root
        return self._power(root, Fraction(exponent.numerator))

    def _root(self, base: Number, degree: int) -> Number:
        if isinstance(base, Fraction) and degree <= 64:
            top, bottom = _whole_root(base.numerator, degree), _whole_root(base.denominator, degree)
            if top is not None and bottom is not None:
                return Fraction(top, bottom)
        if degree.bit_length() > 64:
            raise TooLarge
        return MP.power(self._rounded(base), MP.mpf(1) / degree)

    def _factorial(self, number: Number, step: int) -> Number:
        if isinstance(number, Fraction) and number.denominator == 1:
            count = number.numerator
            if count < 0:
                raise Undefined("a factorial of a negative number")
            if count > 10_000:
                raise TooLarge
            self._work += count // 2
            return Fraction(math.factorial(count) if step == 1 else math.prod(range(count, 0, -2)))
        number = self._rounded(number)
        if step == 2 or MP.isinf(number) or abs(number) > 1000 or self._digits > MAX_GAMMA_DIGITS:
            raise TooLarge
        try:
            return MP.gamma(number + 1)
        except ValueError:  # a pole
            raise Undefined("a factorial of a negative number") from None

    def _series(self, node: Node) -> Number:
        index, first, last, term = node.args
        bounds = [self._value(first), self._value(last)]
        if any(not isinstance(bound, Fraction) or bound.denominator != 1 for bound in bounds):
            raise Undefined("a sum without whole bounds")
        low, high = (bound.numerator for bound in bounds)
        if high - low > MAX_TERMS or high < low:
            raise TooLarge
        outside, total = self._point.get(index), Fraction(node.op == "prod")
        for at in range(low, high + 1):
            self._point[index] = Fraction(at)
            total = self._operation("*" if node.op == "prod" else "+", [total, self._value(term)])
        if outside is not None:
            self._point[index] = outside
        return total

    # ------------------------------------------------------------------------------------ functions

    def _call(self, name: str, values: list[Number]) -> Number:
        if name == "root":
            degree, base = values
            if not degree:
                raise Undefined("a root of degree zero")
            exact = isinstance(degree, Fraction)
            return self._power(base, 1 / degree if exact else 1 / self._rounded(degree))
        if name == "binom":
            return self._binomial(*values)
        if name in ("floor", "ceil"):
            whole = values[0] if isinstance(values[0], Fraction) else real(values[0])
            rounded = getattr(math if isinstance(whole, Fraction) else MP, name)(whole)
            return Fraction(int(rounded))
        if name in ("gcd", "lcm"):
            if any(not isinstance(value, Fraction) or value.denominator != 1 for value in values):
                raise Undefined(f"{name} of what is no whole number")
            return self._bounded(Fraction(getattr(math, name)(*(value.numerator for value in values))))
        if name in ("max", "min"):
            return (max if name == "max" else min)(values, key=real)
        if name.startswith(UNKNOWN):  # any function that has no identities, another one at each point
            number, shift = self._rounded(values[0]), zlib.crc32((name + self._place).encode()) % 1009
            sign = 1 if shift % 2 else -1  # |f(x)| is not f(x)
            return sign * (MP.atan(number * 3 + shift) + number * number / 7)
        return self._bounded(self._elementary(name, values))

    def _binomial(self, above: Number, below: Number) -> Number:
        if all(
            isinstance(number, Fraction) and number.denominator == 1 and number >= 0
            for number in (above, below)
        ):
            count = min(below.numerator, max(above.numerator - below.numerator, 0))
            if count * above.numerator.bit_length() > MAX_BITS or count > 10_000:
                raise TooLarge
            return Fraction(math.comb(above.numerator, below.numerator))
        above, below = self._rounded(above), self._rounded(below)
        if max(abs(above), abs(below)) > 1000 or self._digits > MAX_GAMMA_DIGITS:
            raise TooLarge
        return MP.binomial(above, below)

    def _elementary(self, name: str, values: list[Number]) -> Number:
        numbers = [self._rounded(value) for value in values]
        self._work += self._digits
        if any(MP.mag(number) > MAX_EXPONENT_BITS for number in numbers if number and not MP.isinf(number)):
            raise TooLarge
        if name in ("log", "ln"):
            if not numbers[-1] or (name == "log" and numbers[0] in (0, 1)):
                raise Undefined("a logarithm of zero")
            power = _exact_log(*values) if name == "log" else None
            return power or (
                MP.log(numbers[-1]) / MP.log(numbers[0]) if name == "log" else MP.log(numbers[0])
            )
        if name == "exp" and abs(numbers[0]) > MAX_EXPONENT_BITS:
            raise TooLarge
        try:
            result = _ELEMENTARY[name](numbers[0])
        except (ZeroDivisionError, ValueError):
            raise Undefined(f"{name} at a pole") from None
        if name in _WITH_POLES and MP.mag(result) > self._digits * 2:  # a pole, missed by rounding
            raise Undefined(f"{name} at a pole")
        return result


_ELEMENTARY: dict[str, Callable[[Number], Number]] = {
    "sin": MP.sin, "cos": MP.cos, "tan": MP.tan, "cot": MP.cot, "sec": MP.sec, "csc": MP.csc,
    "arcsin": MP.asin, "arccos": MP.acos, "arctan": MP.atan, "arccot": MP.acot, "arcsec": MP.asec,
    "arccsc": MP.acsc,
    "sinh": MP.sinh, "cosh": MP.cosh, "tanh": MP.tanh, "coth": MP.coth,
    "arcsinh": MP.asinh, "arccosh": MP.acosh, "arctanh": MP.atanh, "exp": MP.exp,
}  # fmt: skip
_WITH_POLES = frozenset(["tan", "cot", "sec", "csc", "coth"])


def _whole_root(number: int, degree: int) -> int | None:
    """The whole root of a number that is not negative, or None where there is none."""
    if degree == 2:
        root = math.isqrt(number)
        return root if root * root == number else None
    if number.bit_length() > 4096:
        return None
    guess = round(number ** (1 / degree)) if number.bit_length() < 1000 else 0
    return next(
        (root for root in (guess - 1, guess, guess + 1) if root >= 0 and root**degree == number), None
    )


def _exact_log(base: Number, number: Number) -> Fraction | None:
    """The logarithm where it is a whole number: of 8 to the base 2."""
    if not all(isinstance(one, Fraction) and one > 0 for one in (base, number)) or number == 1 or base == 1:
        return None
    with MP.workdps(30):
        guess = MP.log(inexact(number)) / MP.log(inexact(base))
        whole = int(MP.nint(guess))
    if abs(whole) > 5000 or abs(guess - whole) > 1e-9 or base**whole != number:
        return None
    return Fraction(whole)
