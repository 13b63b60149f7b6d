"""NumPy in the tests: an empty array of the program must not match a longer one. NumPy repeats it
zero times, and all of nothing is true.
"""

from __future__ import annotations

import operator

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")


def operate(name: str, left: Any, right: Any) -> Any:
    """Compare two values of the tests, or calculate with them."""
    if "ndarray" in (type(left).__name__, type(right).__name__):
        _refuse_empty(left, right)
    return getattr(operator, name)(left, right)


def make(dtype: str, values: list[Any]) -> Any:
    """An array of numbers, or one number; others stay plain. NumPy would read numbers, and NaN,
    from text.
    """
    if dtype[1:2] not in ("b", "i", "u", "f", "c"):
        return values
    import numpy

    if not isinstance(values, list):
        return numpy.dtype(dtype).type(values)
    made = numpy.array(values)
    if made.size and made.dtype.kind not in "biufc":
        raise ValueError(f"no array of numbers: {made.dtype}")
    return numpy.array(values, dtype=dtype)


def patch_numpy() -> None:
    """Functions that compare repeat no empty list."""
    try:
        import numpy
    except ImportError:  # the tests may try it
        return
    for name in ("allclose", "isclose", "array_equiv", "subtract", *_COMPARISONS):
        setattr(numpy, name, _same_shape(getattr(numpy, name)))


def _same_shape(compare: Callable[..., Any]) -> Callable[..., Any]:
    def checked(a: Any, b: Any, *args: Any, **named: Any) -> Any:
        _refuse_empty(a, b)
        return compare(a, b, *args, **named)

    return checked


def _refuse_empty(left: Any, right: Any) -> None:
    import numpy

    shapes = numpy.shape(left), numpy.shape(right)
    if () not in shapes and shapes[0] != shapes[1] and (0 in shapes[0]) != (0 in shapes[1]):
        raise AssertionError(f"arrays of the shapes {shapes[0]} and {shapes[1]}")
