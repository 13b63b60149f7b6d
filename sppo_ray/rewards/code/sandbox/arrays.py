"""NumPy in the tests: an empty array of the program must not match a longer one. NumPy repeats it
zero times, and all of nothing is true.
"""

from __future__ import annotations

import operator

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


_CLOSE = ("allclose", "isclose", "array_equiv", "subtract", "equal")
_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")


def operate(name: str, left: Any, right: Any) -> Any:
    """Compare two values of the tests, or calculate with them."""
    if "ndarray" in (type(left).__name__, type(right).__name__):
        _refuse_empty(left, right, beside_numbers=name in ("eq", "sub"))
    return getattr(operator, name)(left, right)


def make(dtype: str, values: Any, shape: list[int] | None = None) -> Any:
    """An array of numbers or text, or one of them; others stay plain. `shape`: of an array that is
    empty or has no dimensions.
    Raises ValueError for what is no number: NumPy would read numbers, and NaN, from text.
    """
    if dtype[1:2] == "U" and isinstance(values, (list, str)):
        return _of_text(dtype, values, shape)
    if dtype[1:2] not in ("b", "i", "u", "f", "c"):
        return values
    import numpy

    if shape:
        return _empty(numpy.dtype(dtype), shape)
    kind, made = numpy.dtype(dtype), numpy.array(values)
    is_number = isinstance(values, list) or made.shape == ()
    if kind.kind not in "biufc" or not is_number or (made.size and made.dtype.kind not in "biufc"):
        raise ValueError(f"no array of numbers: {dtype}, {made.dtype}")
    is_array = isinstance(values, list) or shape is not None
    return numpy.array(values, dtype=kind) if is_array else kind.type(values)


def _of_text(dtype: str, values: list[Any] | str, shape: list[int] | None) -> Any:
    import numpy

    if isinstance(values, str):
        return numpy.str_(values)
    if shape is not None:
        return _empty(numpy.dtype(dtype), shape)
    made = numpy.array(values)
    if made.dtype.kind != "U" or not all(type(one) is str for one in made.ravel().tolist()):
        raise ValueError(f"no array of text: {made.dtype}")
    return made.astype(dtype)


def _empty(kind: Any, shape: list[int]) -> Any:
    import numpy

    if kind.kind not in "biufcU" or 0 not in shape or not all(type(one) is int for one in shape):
        raise ValueError(f"no empty array: {kind}, {shape}")
    return numpy.empty(shape, kind)


def is_empty(values: Any) -> bool:
    """Whether nested lists hold no number."""
    return isinstance(values, list) and all(map(is_empty, values))


def widened(value: Any) -> Any:
    """An array or number of NumPy in double precision where a narrow one equals what it is not:
    float16(inf) == 70000, float16(3.14) == 3.1416.
    """
    import numpy

    wide = {"f": numpy.float64, "c": numpy.complex128}.get(value.dtype.kind)
    if wide is None or value.dtype.itemsize >= numpy.dtype(wide).itemsize:
        return value
    is_half = value.dtype == numpy.float16
    return value.astype(wide) if is_half or not numpy.isfinite(value).all() else value


def patch_numpy() -> None:
    """Functions that compare repeat no empty list."""
    try:
        import numpy
    except ImportError:  # the tests may try it
        return
    for name in {*_CLOSE, *_COMPARISONS}:
        setattr(numpy, name, _same_shape(getattr(numpy, name)))


def _same_shape(compare: Callable[..., Any]) -> Callable[..., Any]:
    def checked(a: Any, b: Any, *args: Any, **named: Any) -> Any:
        _refuse_empty(a, b, beside_numbers=compare.__name__ in _CLOSE)
        return compare(a, b, *args, **named)

    return checked


def _refuse_empty(left: Any, right: Any, *, beside_numbers: bool = False) -> None:
    import numpy

    shapes = numpy.shape(left), numpy.shape(right)
    if (beside_numbers or () not in shapes) and (0 in shapes[0]) != (0 in shapes[1]):
        raise AssertionError(f"arrays of the shapes {shapes[0]} and {shapes[1]}")
