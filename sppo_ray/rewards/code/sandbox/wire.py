"""Exchange plain values between a tester and the program under test, as lines of JSON. Neither side
trusts the other's objects.

None, bool, int, float, str and list are plain JSON; tuple, set, frozenset, deque, range, slice,
dict, its kinds and views, named tuples, bytes, complex, Fraction, Decimal, dates, arrays and NumPy
scalars are objects with their type name. Any other object, including a generator,
stays in its process and is sent as a number. Standard library only: see `confine`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

from sppo_ray.rewards.code.sandbox.identity import MUTABLE

MAX_LINE_BYTES = 16 << 20
_MORE_CALLS = 12_000
MAX_NAMES = 9
"""Of an exception class and its bases."""


class WireClosed(Exception):
    """The other side has ended, or sent more than a line may hold."""


_set_limit = sys.setrecursionlimit  # `told` replaces it in the module


class Deeper:
    """Within the block, values may be nested deeper than a program may call: a level takes several
    calls.
    """

    def __enter__(self) -> None:
        self._before = sys.getrecursionlimit()
        _set_limit(min(self._before + _MORE_CALLS, 2**31 - 1))

    def __exit__(self, *_: object) -> None:
        _set_limit(self._before)


class Wire:
    """Messages over a pair of file descriptors."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing, self._rest = incoming, outgoing, b""

    def send(self, message: dict[str, Any]) -> None:
        """Raises WireClosed, or ValueError when the message is too long."""
        with Deeper():
            line = json.dumps(message).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise ValueError("a value is too large to be sent")
        try:
            while line:
                line = line[os.write(self._outgoing, line) :]
        except OSError:
            raise WireClosed from None

    def receive(self, most: int = MAX_LINE_BYTES) -> dict[str, Any]:
        """The next message, of `most` bytes. Raises WireClosed, also for what is no message."""
        pieces, size = [self._rest], len(self._rest)
        while b"\n" not in pieces[-1]:
            piece = os.read(self._incoming, 1 << 16)
            size += len(piece)
            if not piece or size > most:
                raise WireClosed
            pieces.append(piece)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        try:
            with Deeper():
                message = json.loads(line)
        except (ValueError, RecursionError):
            raise WireClosed from None
        if not isinstance(message, dict):
            raise WireClosed
        return message


def encode(
    value: Any,
    keep: Callable[[Any], int],
    number: Callable[[Any], int] | None = None,
    own: Callable[[Any], list[str] | None] = lambda value: None,
) -> Any:
    """Convert `value` to JSON; `keep` stores an object without a plain form and returns its
    number; `number` gives the one of a container (see `identity`), None = it is not asked for;
    `own` gives the methods of a class under test that extends a built-in one (see `extended`).
    """
    if number is None and type(value) is list and _is_plain(value):
        return value
    data = _encoded(value, keep, number, own)
    return {"same": [number(value), data]} if number is not None and type(value) in MUTABLE else data


def _encoded(
    value: Any,
    keep: Callable[[Any], int],
    number: Callable[[Any], int] | None,
    own: Callable[[Any], list[str] | None],
) -> Any:
    def each(values: Any) -> list[Any]:
        return [one if type(one) in _SCALARS else encode(one, keep, number, own) for one in values]

    if value is None or isinstance(value, bool):
        return value
    if hasattr(type(value), "_sppo_number"):
        return {"kept": type(value)._sppo_number}
    if (names := own(value)) is not None:
        return {"own": [keep(value), _encoded(value, keep, number, lambda value: None), names]}
    if (name := _NAMES.get(id(value))) is not None:
        return {"builtin": name}
    for base, plain_of in _NUMBERS_AND_TEXT:
        if isinstance(value, base) and type(value).__module__ != "numpy":
            if type(value) is base:
                return value
            named = [value._name_, each([value._value_])[0]] if hasattr(value, "_value_") else []
            return {"kind": [type(value).__name__, plain_of(value), False, *named]}
    if type(value) is list:
        return each(value)
    base = next((base for base in _BASES if isinstance(value, base)), None)
    if base is not None and type(value) not in MUTABLE and type(value) is not base and not _is_named(value):
        plain = _encoded(base(value), keep, number, own)
        return {"kind": [type(value).__name__, plain, hasattr(value, "__missing__")]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, slice):
        return {"slice": each([value.start, value.stop, value.step])}
    if isinstance(value, tuple) and _is_named(value):
        return {"named": [type(value).__name__, list(value._fields), each(value)]}
    for name, base in _CONTAINERS.items():
        if isinstance(value, base):
            return {name: each(value)}
    if type(value) in (Counter, OrderedDict):
        return {type(value).__name__: [each(item) for item in value.items()]}
    if type(value) is defaultdict and value.default_factory in (*_FACTORIES, None):
        name = getattr(value.default_factory, "__name__", None)
        return {"defaultdict": [name, [each(item) for item in value.items()]]}
    if type(value) is defaultdict:
        return {"kind": ["defaultdict", {"dict": [each(item) for item in value.items()]}, True]}
    if isinstance(value, dict):
        return {"dict": [each(item) for item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (Fraction, Decimal)):
        return {type(value).__name__.lower(): str(value)}
    if type(value) in _VIEWS:
        return {_VIEWS[type(value)]: each(value)}
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and _is_array_or_number(value):
        plain = float(value) if value.dtype.char == "g" and value.shape == () else value.tolist()
        data = [value.dtype.str, encode(plain, keep)]
        if type(value).__name__ != "ndarray":
            return {"scalar": data}
        has_shape = value.size == 0 or value.shape == ()  # else the lists have it
        return {"array": [*data, *([list(value.shape)] if has_shape else [])]}
    if type(value).__module__ == "datetime" and type(value).__name__ in _DATES and _has_plain_zone(value):
        return {type(value).__name__: str(value)}
    if type(value).__module__ == "datetime" and type(value).__name__ == "timedelta":
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    if type(value) is _GENERATOR:
        return {"generator": keep(value)}
    own = type(value).__module__ not in ("builtins", "itertools")
    return {"kept" if own or not hasattr(type(value), "__next__") else "iterator": keep(value)}


_NUMBERS_AND_TEXT: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
)
"""With their own conversion: `str` of an Enum is its name."""
_BASES = (list, dict, tuple, set, frozenset, deque)
_SCALARS = frozenset({int, float, str, bool, type(None)})
_SIMPLE = frozenset({int, str, bool, type(None)})
_CONTAINERS: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
_SHARED: dict[str, Any] = {
    one.__name__: one
    for one in (
        *(int, float, complex, str, bytes, bool, list, tuple, set, frozenset, dict),
        *(len, min, max, sum, abs, round, sorted, ord, chr),
    )
}
"""Built-in types and functions that go by their names."""
_NAMES = {id(one): name for name, one in _SHARED.items()}
_FACTORIES = (int, float, str, list, dict, set, tuple, bool)
_GENERATOR = type(one for one in ())
_DATES = frozenset({"date", "datetime", "time"})
_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}


def _is_plain(value: list[Any]) -> bool:
    """Whether it is made of lists and scalars only: lists of JSON may have a million parts."""
    rest = [value]
    while rest:
        for one in rest.pop():
            if type(one) is list:
                rest.append(one)
            elif type(one) not in _SCALARS:
                return False
    return True


def _is_array_or_number(value: Any) -> bool:
    """Whether a list or a plain value tells all of it: of no matrix, and of no array without
    dimensions that holds a text or an object.
    """
    if value.dtype.char == "g" and value.shape != ():  # long doubles, which no list holds
        return False
    is_array = type(value).__name__ == "ndarray"
    return value.dtype.kind in "biufc" if is_array and value.shape == () else is_array or value.shape == ()


def _has_plain_zone(value: Any) -> bool:
    """Whether the text of a time tells its zone: one with a summer time has more than an offset."""
    zone = getattr(value, "tzinfo", None)
    return zone is None or type(zone).__module__ == "datetime"


def _is_named(value: Any) -> bool:
    fields = getattr(value, "_fields", None)
    return isinstance(value, tuple) and isinstance(fields, tuple) and len(fields) == len(value)


def decode(
    data: Any,
    find: Callable[[int], Any],
    iterate: Callable[[str, int], Any],
    on_nan: Callable[[Any], None] | None = None,
    make_array: Callable[..., Any] = lambda dtype, values, *shape: values,
    same: Callable[[int, Any], Any] = lambda number, contents: contents,
    refuse: Callable[[], BaseException] = KeyError,
    extend: Callable[..., Any] = lambda number, plain, names: plain,
) -> Any:
    """Convert JSON back to the value; `find` returns the object of a number, `iterate` an iterator
    or generator; `on_nan` is called for a number that is none; `same` returns the container of a
    number, with the contents that it gets; `extend` a value with methods of the program's.
    Raises ValueError, TypeError and the like for invalid input.
    """

    scalars = _SIMPLE if on_nan else _SCALARS

    def again(one: Any) -> Any:
        if type(one) is list:  # here, because lists of JSON may have a million parts
            return [part if type(part) in scalars else again(part) for part in one]
        return decode(one, find, iterate, on_nan, make_array, same, refuse, extend)

    if isinstance(data, list):
        return again(data)
    if not isinstance(data, dict):
        if on_nan is not None and isinstance(data, float) and data != data:
            on_nan(data)
        return data
    ((name, inner),) = data.items()
    if name == "kind":
        plain = again(inner[1])
        made = _subclass(str(inner[0]), type(plain), refuse if inner[2] is True else None)(plain)
        if len(inner) > 3:  # a member of an Enum
            made.name, made.value = str(inner[3]), again(inner[4])
        return made
    if name == "same":
        number, contents = inner[0], again(inner[1])
        if type(number) is not int:
            raise TypeError("no number of a container")
        return same(number, contents) if type(contents) in MUTABLE else contents
    if name in _CONTAINERS:
        return _CONTAINERS[name](again(one) for one in inner)
    if name in ("dict", "items"):
        pairs = {again(key): again(one) for key, one in (inner if name == "dict" else map(_pair, inner))}
        return pairs if name == "dict" else pairs.items()
    if name == "defaultdict":
        kinds = {kind.__name__: kind for kind in _FACTORIES}
        return defaultdict(kinds[inner[0]] if inner[0] is not None else None, map(again, inner[1]))
    if name in ("Counter", "OrderedDict"):
        pairs = dict(map(again, inner))
        return Counter(pairs) if name == "Counter" else OrderedDict(pairs)
    if name == "keys":
        return dict.fromkeys(map(again, inner)).keys()
    if name == "values":
        return dict(enumerate(map(again, inner))).values()
    if name in ("iterator", "generator"):
        return iterate(name, inner)
    if name == "slice":
        return slice(*map(again, inner))
    if name == "named":
        return _named_tuple(inner[0], tuple(inner[1]))(*map(again, inner[2]))
    if name in ("array", "scalar"):
        return make_array(inner[0], again(inner[1]), *inner[2:])
    if name == "kept":
        return find(inner)
    if name == "own":
        return extend(int(inner[0]), again(inner[1]), inner[2])
    if name == "builtin":
        return _SHARED[inner]
    value = _PLAIN[name](inner)
    if on_nan is not None and name in ("complex", "decimal") and value != value:
        on_nan(value)
    return value


@lru_cache
def _named_tuple(name: str, fields: tuple[str, ...]) -> type:
    return namedtuple(name, fields)  # it refuses what is no name


def _subclass(name: str, base: type, refuse: Callable[[], BaseException] | None) -> type:
    """A class for a value of a class of the program's that extends a built-in one. `refuse`: it
    has a way of its own for a missing key.
    """
    if base not in (int, float, str, *_BASES):
        raise TypeError("no such kind")

    def missing(self: Any, key: Any) -> Any:
        raise refuse()  # type: ignore[misc]

    return type(name, (base,), {"__missing__": missing} if refuse is not None else {})


def _date(kind: str, inner: Any) -> Any:
    import datetime  # costs time, and few tests need it

    made = getattr(datetime, kind)
    return made(*inner) if kind == "timedelta" else made.fromisoformat(inner)


def _fraction(text: str) -> Fraction:
    """A fraction as `str` writes it: 1e99999999 would take seconds."""
    if not re.fullmatch("-?[0-9]+(?:/[0-9]+)?", text):
        raise ValueError("no fraction")
    return Fraction(text)


def _pair(item: Any) -> Any:
    return item["tuple"]


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda parts: range(*parts),
    "complex": lambda parts: complex(*parts),
    "fraction": _fraction,
    "decimal": Decimal,
    **{name: partial(_date, name) for name in (*_DATES, "timedelta")},
}
