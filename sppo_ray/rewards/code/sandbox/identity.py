"""Which container is which, on both sides of the wire: `[[0] * n] * n`, a cached list, a getter
that hands out its own list.

Each list, dict, set, deque and bytearray that travels has a number for its object: a positive one
of the program's, a negative one of the tests'. When a number comes again, it is the same object,
with the contents that came. Before each message a side sends what changed in its objects since.
Standard library only: see `confine`.
"""

from __future__ import annotations

import operator
import sys
from collections import Counter, OrderedDict, defaultdict, deque

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MUTABLE = frozenset({list, dict, set, deque, bytearray, Counter, OrderedDict, defaultdict})
_EXACT = frozenset({bool, int, str, bytes})  # equal ones are the same
_WRITTEN = ("builtins", "datetime", "decimal", "fractions")
"""Modules of the types whose `repr` tells everything: -0.0, Decimal("1.00"), a time zone."""
_MOST_PARTS, _LEAST_PARTS, _ALL_PARTS = 20_000, 500, 2_000_000
"""Elements of all known objects together. Each message looks at them, so the more messages there
were, the fewer are known.
"""


class _Known:
    """An object, and its elements when both sides last knew the same ones."""

    __slots__ = ("number", "parts", "value")

    def __init__(self, number: int, value: Any) -> None:
        self.number, self.value, self.parts = number, value, parts(value)


class Objects:
    """The containers of one side by number. `sign`: of the numbers that it gives."""

    def __init__(self, sign: int) -> None:
        self._sign, self._last, self._messages = sign, 0, 0
        self._known: dict[int, _Known] = {}
        self._numbers: dict[int, int] = {}  # by id, which is unique while the object is known

    def number(self, value: Any) -> int:
        """The number of an object that is sent now."""
        number = self._numbers.get(id(value))
        if number is None:
            self._last += self._sign
            self.learn(self._last, value)
            return self._last
        known = self._known[number]
        known.parts = parts(value)
        return number

    def learn(self, number: int, value: Any) -> None:
        """Raises ValueError for an object that has a number: a program may not give a list of the
        tests a number of its own, and change it by that.
        """
        if id(value) in self._numbers:
            raise ValueError("an object has one number")
        self._known[number] = _Known(number, value)
        self._numbers[id(value)] = number

    def get(self, number: int) -> Any:
        known = self._known.get(number)
        return None if known is None else known.value

    def received(self, number: int, contents: Any) -> Any:
        """The object of a number, with these contents from now on."""
        known = self._known.get(number)
        if known is None or type(known.value) is not type(contents):
            if known is not None:
                raise ValueError("an object changed its type")
            self.learn(number, contents)
            return contents
        if not alike(known.value, contents):
            fill(known.value, contents)
        known.parts = parts(known.value)
        return known.value

    def changed(self) -> Iterator[_Known]:
        """Objects with other elements than at the last message."""
        for known in list(self._known.values()):
            now = parts(known.value)
            if len(now) != len(known.parts) or not all(map(operator.is_, now, known.parts)):
                known.parts = now
                yield known

    def forget(self, numbers: list[int]) -> None:
        for number in numbers:
            known = self._known.pop(number, None)
            if known is not None:
                del self._numbers[id(known.value)]

    def sweep(self) -> list[int]:
        """Forget what only this holds, and the oldest beyond the limit; returns their numbers."""
        self._messages += 1
        most = min(_MOST_PARTS, max(_LEAST_PARTS, _ALL_PARTS // self._messages))
        size = 0
        gone = []
        for known in reversed(self._known.values()):
            size += len(known.parts) + 1
            if size > most or sys.getrefcount(known.value) <= 2:
                gone.append(known.number)
        known = None  # type: ignore[assignment]
        self.forget(gone)
        return gone


def parts(value: Any) -> list[Any]:
    """The elements of a container."""
    return [*value, *value.values()] if isinstance(value, dict) else list(value)


def alike(one: Any, other: Any) -> bool:
    """Whether two values are the same to the last detail: 1.0 is not 1, nor is Decimal("1.0")
    Decimal("1.00"). Of objects of classes only the object itself: its own `==` is not asked.
    """
    kind = type(one)
    if one is other or kind is not type(other):
        return one is other
    if kind in (set, frozenset):
        twins = {value: value for value in one}
        return len(one) == len(other) and all(
            value in twins and alike(twins[value], value) for value in other
        )
    if kind in MUTABLE or isinstance(one, tuple):
        mine, theirs = parts(one), parts(other)
        same_factory = getattr(one, "default_factory", None) is getattr(other, "default_factory", None)
        return same_factory and len(mine) == len(theirs) and all(map(alike, mine, theirs))
    if kind.__name__ == "ndarray":
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return one == other if kind in _EXACT else kind.__module__ in _WRITTEN and repr(one) == repr(other)


def fill(value: Any, contents: Any) -> None:
    """Give a container the elements of another one."""
    value.clear()
    if isinstance(value, (dict, set)):
        value.update(contents)
        if isinstance(value, defaultdict):
            value.default_factory = contents.default_factory
    else:
        value.extend(contents)
