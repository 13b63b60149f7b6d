"""Plain values between a tester and the program under test, as lines of JSON. Neither side trusts the other's objects.

None, bool, int, float, str and list travel as JSON; tuple, set, frozenset, dict, bytes, complex, Fraction and Decimal in an
object with their name; NumPy arrays and scalars as lists and numbers. Anything else stays where it is, and a number stands
for it. Standard library only: see `confine`.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_LINE_BYTES = 16 << 20


class WireClosed(Exception):
    """The other side has ended, or sent more than a line may hold."""


class Wire:
    """Messages over a pair of file descriptors."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing, self._rest = incoming, outgoing, b""

    def send(self, message: dict[str, Any]) -> None:
        """Raises WireClosed, or ValueError when the message is too long."""
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise ValueError("a value is too large to be sent")
        try:
            while line:
                line = line[os.write(self._outgoing, line) :]
        except OSError:
            raise WireClosed from None

    def receive(self) -> dict[str, Any]:
        """The next message. Raises WireClosed, also for what is no message."""
        pieces, size = [self._rest], len(self._rest)
        while b"\n" not in pieces[-1]:
            piece = os.read(self._incoming, 1 << 16)
            size += len(piece)
            if not piece or size > MAX_LINE_BYTES:
                raise WireClosed
            pieces.append(piece)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise WireClosed from None
        if not isinstance(message, dict):
            raise WireClosed
        return message


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """`value` as JSON can hold it; `keep` takes what has no plain form and gives the number that stands for it."""

    def each(values: Any) -> list[Any]:
        return [encode(one, keep) for one in values]

    if value is None or isinstance(value, bool):
        return value
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value) if type(value) is not base else value
    if isinstance(value, (list, deque, range)):
        return each(value)
    for name, base in _CONTAINERS.items():
        if isinstance(value, base):
            return {name: each(value)}
    if isinstance(value, dict):
        return {"dict": [each(item) for item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (Fraction, Decimal)):
        return {type(value).__name__.lower(): str(value)}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), keep)
    return {"kept": keep(value)}


_CONTAINERS: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def decode(data: Any, find: Callable[[int], Any]) -> Any:
    """The value again; `find` gives what stands behind a number. Raises ValueError or TypeError for what `encode` never makes."""
    if isinstance(data, list):
        return [decode(one, find) for one in data]
    if not isinstance(data, dict):
        return data
    ((name, inner),) = data.items()
    if name in _CONTAINERS:
        return _CONTAINERS[name](decode(one, find) for one in inner)
    if name == "dict":
        return {decode(key, find): decode(one, find) for key, one in inner}
    if name == "kept":
        return find(inner)
    return _PLAIN[name](inner)


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*parts),
    "fraction": Fraction,
    "decimal": Decimal,
}
