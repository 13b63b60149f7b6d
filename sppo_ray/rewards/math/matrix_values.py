"""Working an expression out with matrices and columns in place of its letters, exactly and within
bounds of time: see `matrices`.
"""

from __future__ import annotations

import math
import random
import zlib
from fractions import Fraction

from sppo_ray.rewards.math.evaluator import TooLarge
from sppo_ray.rewards.math.matrix_letters import TRANSPOSED, Kinds, T, grows, is_run, letters_of
from sppo_ray.rewards.math.nodes import Node, walk

SIZE = 4
MAX_PRODUCTS, MAX_BITS, MAX_EXPONENT = 200, 1024, 64
_CONSTANTS = {"pi": Fraction(math.pi), "e": Fraction(math.e), "i": Fraction(math.log(17))}
"""Numbers in place of the constants, which no short fraction equals: no identity of theirs is
needed beside matrices.
"""
_NUMBERS = range(2, 48)
"""Of variables; small, because some are exponents."""

Matrix = tuple[tuple[Fraction, ...], ...]
Value = Fraction | Matrix


class NoMatrix(Exception):
    """The shapes do not fit, a matrix is divided by, or it has no inverse."""


class MatrixEvaluator:
    """Works an expression out at one choice of matrices, columns and numbers."""

    def __init__(self, kinds: Kinds, trees: tuple[Node, Node], choice: int) -> None:
        names = sorted({name for tree in trees for part in walk(tree) for name in letters_of(part)})
        self._kinds, self._choice, self._done = kinds, choice, 0
        draw = random.Random(zlib.crc32(f"{trees} {choice}".encode()))  # an answer cannot be made to fit
        self._numbers = dict(zip(names, map(Fraction, draw.sample(_NUMBERS, len(_NUMBERS))), strict=False))

    def value(self, node: Node) -> Value:
        op, args = node
        if op == "num":
            return Fraction(args[0])
        if op == "sym":
            return self._letters(node)
        if op == "const" and args[0] in _CONSTANTS:
            return _CONSTANTS[args[0]]
        if op == "^":
            return self._power(*args)
        if op == "neg":
            return _scaled(Fraction(-1), self.value(args[0]))
        if op in ("+", "-"):
            one, other = map(self.value, args)
            return _sum(one, other if op == "+" else _scaled(Fraction(-1), other))
        if op == "*":
            return self._product(*map(self.value, args))
        if op == "/":
            top, bottom = map(self.value, args)
            if not isinstance(bottom, Fraction) and not isinstance(top, Fraction):
                raise NoMatrix
            return self._product(top, _inverse(bottom))
        return self._opaque(node)

    def _letters(self, node: Node) -> Value:
        value: Value = Fraction(1)
        for name in letters_of(node):
            value = self._product(value, self._letter(name))
        return value

    def _letter(self, name: str) -> Value:
        if name in self._kinds.matrices:
            last_row, last_column = name not in self._kinds.wide, name not in self._kinds.tall
            *rows, last = self._matrix(name, SIZE)
            rows.append(tuple(entry * last_row for entry in last))
            return tuple((*row[:-1], row[-1] * last_column) for row in rows)
        if name in self._kinds.columns:
            return self._matrix(name, 1)
        return self._numbers.get(name, Fraction(zlib.crc32(name.encode())))

    def _matrix(self, name: str, columns: int) -> Matrix:
        """Whole numbers that a name determines; a large diagonal makes sure of an inverse."""

        def entry(row: int, column: int) -> Fraction:
            mixed = zlib.crc32(f"{name} {row} {column} {self._choice}".encode()) % 7 - 3
            return Fraction(mixed + (11 if row == column else 0))

        return tuple(tuple(entry(row, column) for column in range(columns)) for row in range(SIZE))

    def _power(self, base: Node, exponent: Node) -> Value:
        if exponent in TRANSPOSED and not grows(base):
            value = self.value(base)
            value = value if isinstance(value, Fraction) else tuple(zip(*value, strict=True))
            return value if exponent == T else _inverse(value)
        if is_run(base) and exponent.op == "num":
            raise NoMatrix  # AB^2 may be A times B^2, or (AB)^2
        value, power = self.value(base), self.value(exponent)
        if not isinstance(power, Fraction) or power.denominator != 1 or abs(power) > MAX_EXPONENT:
            return self._opaque(Node("^", (base, exponent)))
        square = _inverse(value) if power < 0 else value
        result: Value = Fraction(1)
        for bit in reversed(bin(abs(power.numerator))[2:]):
            result = self._product(result, square) if bit == "1" else result
            square = self._product(square, square)
        return result

    def _product(self, one: Value, other: Value) -> Value:
        """The product; a matrix of one entry is a number."""
        self._done += 1
        if self._done > MAX_PRODUCTS or max(map(_bits, (one, other))) > MAX_BITS:
            raise TooLarge
        if isinstance(one, Fraction):
            return _scaled(one, other)
        if isinstance(other, Fraction):
            return _scaled(other, one)
        if len(one[0]) != len(other):
            raise NoMatrix
        columns = tuple(zip(*other, strict=True))
        rows = tuple(tuple(_dot(row, column) for column in columns) for row in one)
        return rows[0][0] if len(rows) == len(columns) == 1 else rows

    def _opaque(self, node: Node) -> Value:
        """A value that only the same function of the same arguments has."""
        values = [self.value(arg) if isinstance(arg, Node) else arg for arg in node.args]
        name = f"{node.op} {values}"
        square = any(isinstance(value, tuple) for value in values) and node.op != "abs"
        return self._matrix(name, SIZE) if square else Fraction(zlib.crc32(name.encode()))


def _dot(one: tuple[Fraction, ...], other: tuple[Fraction, ...]) -> Fraction:
    return sum((a * b for a, b in zip(one, other, strict=True)), Fraction(0))


def _bits(value: Value) -> int:
    entries = (value,) if isinstance(value, Fraction) else (entry for row in value for entry in row)
    return max(max(entry.numerator.bit_length(), entry.denominator.bit_length()) for entry in entries)


def _sum(one: Value, other: Value) -> Value:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one + other
    # a number beside a matrix is a multiple of the identity
    first, second = (
        _scaled(value, _IDENTITY) if isinstance(value, Fraction) else value for value in (one, other)
    )
    if (len(first), len(first[0])) != (len(second), len(second[0])):
        raise NoMatrix
    return tuple(
        tuple(a + b for a, b in zip(row, others, strict=True))
        for row, others in zip(first, second, strict=True)
    )


def _scaled(number: Fraction, value: Value) -> Value:
    if isinstance(value, Fraction):
        return number * value
    return tuple(tuple(number * entry for entry in row) for row in value)


def _inverse(value: Value) -> Value:
    """The inverse, by Gauss and Jordan, without a last row and column that are 0. Raises NoMatrix
    where there is none.
    """
    if isinstance(value, Fraction):
        return 1 / value
    if len(value) != len(value[0]):
        raise NoMatrix
    if len(value) == SIZE and not any(value[-1]) and not any(row[-1] for row in value):
        inner = _inverse(tuple(row[:-1] for row in value[:-1]))
        assert isinstance(inner, tuple)
        return (*((*row, Fraction(0)) for row in inner), (Fraction(0),) * SIZE)
    size = len(value)
    rows = [[*row, *(Fraction(at == place) for place in range(size))] for at, row in enumerate(value)]
    for at in range(size):
        pivot = next((place for place in range(at, size) if rows[place][at]), None)
        if pivot is None:
            raise NoMatrix
        rows[at], rows[pivot] = rows[pivot], rows[at]
        rows[at] = [entry / rows[at][at] for entry in rows[at]]
        for place in set(range(size)) - {at}:
            factor = rows[place][at]
            rows[place] = [entry - factor * above for entry, above in zip(rows[place], rows[at], strict=True)]
    return tuple(tuple(row[size:]) for row in rows)


_IDENTITY: Matrix = tuple(tuple(Fraction(row == column) for column in range(SIZE)) for row in range(SIZE))
