"""Compare a value with the expected value."""

from __future__ import annotations

import json
from collections import deque

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from typing import Any

_TOLERANCE = 1e-6
_LARGEST_ERROR = 1e-9
"""Beside 0 and beside integers."""
_LEAST_ERROR, _LARGEST_REST, _DIGITS_OF_ERROR = 1e-17, 1e-13, 15
"""Of what a rounding error leaves of 0, e.g. the sine of pi: 1.2246467991473532e-16."""


def same(value: Any, expected: Any) -> bool:
    """Whether two values are equal; a tuple, deque or range may replace a list, decimals may differ
    by a millionth; True is not 1.
    """
    if isinstance(value, (list, tuple, deque, range)) and isinstance(expected, (list, tuple)):
        return len(value) == len(expected) and all(same(*pair) for pair in zip(value, expected, strict=True))
    if isinstance(value, dict) and isinstance(expected, dict):
        return len(value) == len(expected) and _same_items(value, expected)
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, float) or isinstance(expected, float):
        return (
            isinstance(value, (int, float))
            and isinstance(expected, (int, float))
            and same_number(value, expected)
        )
    return bool(value == expected)


def _same_items(value: dict[Any, Any], expected: dict[Any, Any]) -> bool:
    plain = {_text_key(key): one for key, one in value.items()}  # JSON knows text keys only
    return plain.keys() == set(map(_text_key, expected)) and all(
        same(plain[_text_key(key)], one) for key, one in expected.items()
    )


def _text_key(key: Any) -> str:
    """Return a key as JSON writes it."""
    return json.dumps(key) if key is None or isinstance(key, bool) else str(key)


def same_number(value: float, expected: float) -> bool:
    """Compare numbers: a decimal by `is_near`, an expected integer within a rounding error;
    infinite and undefined ones exactly.
    """
    if value == expected:
        return True
    try:
        rounded = float(value)
    except OverflowError:  # an integer beyond all decimals
        return False
    if rounded != rounded or expected != expected:
        return rounded != rounded and expected != expected
    if isinstance(expected, int):  # a large one has no decimal of its own
        size = max(1, abs(expected))
        return size <= 2**53 and abs(rounded - expected) <= min(_LARGEST_ERROR * size, _TOLERANCE)
    if not abs(expected) < float("inf"):
        return False
    is_whole = isinstance(value, int) and expected == int(expected)
    error = float(abs(value - int(expected))) if is_whole else abs(rounded - expected)
    return is_near(error, expected, repr(expected))


def is_near(error: float, expected: float, text: str, *, is_printed: bool = False) -> bool:
    """Whether an error of a decimal, written as `text`, is a millionth of it at most, and from 1 on
    no more than its last digit, but for digits beyond the sixth.

    Below 1, a printed decimal may differ by its last digit where it has at least two digits more,
    else by half of it, but never by more than a millionth. Beside 0 and beside what a rounding
    error leaves of it, 1e-9 does not count.
    """
    size = abs(expected)
    mantissa, _, exponent = text.lower().partition("e")
    # clamped: 0.0e999 is 0
    digit = 10.0 ** (max(-400, min(300, int(exponent or 0))) - len(mantissa.partition(".")[2]))
    digit = min(digit, size * 1e-12) if exponent and size >= 1.0 else digit  # 1e+16 has one digit
    if size >= 1.0:
        return error <= min(_TOLERANCE * size, max(digit, _TOLERANCE))
    is_zero = size == 0.0 or (_LEAST_ERROR < size < _LARGEST_REST and _digits(mantissa) >= _DIGITS_OF_ERROR)
    if is_zero and error <= _LARGEST_ERROR:
        return True
    rounding = min(_TOLERANCE, digit if digit * 100 <= size else digit / 2) if is_printed else 0.0
    return error <= max(_TOLERANCE * size, rounding)


def _digits(mantissa: str) -> int:
    return len(mantissa.lstrip("+-0.").replace(".", ""))
