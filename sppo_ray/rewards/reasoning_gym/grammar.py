"""Check that a text is an arithmetic expression, from Python's syntax tree, without evaluating it.

It allows only the given names and calls of the given functions: no attribute, subscript, text,
comparison, lambda or keyword, and no number or power that takes too long to evaluate (9**9**9).
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

_TOKENS = re.compile(
    r"(?:(?:\d+(?:\.\d*)?|\.\d+)(?![\w.])|[A-Za-z][A-Za-z0-9]*(?!\w)|[-+*/(),]|[ \t\r\n])+", re.ASCII
)
_INTEGER_TOKENS = re.compile(r"(?:0x[0-9a-fA-F]+\b|\d+\b|<<|>>|[-+*&|^~()]|[ ])+", re.ASCII)
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub)
_INTEGER_OPERATORS = (
    *_OPERATORS[:3],
    ast.BitAnd,
    ast.BitOr,
    ast.BitXor,
    ast.LShift,
    ast.RShift,
    ast.Invert,
    ast.USub,
)
_MAX_NUMBER_CHARS = 40
_MAX_DEPTH = 50
_MAX_EXPONENT = 100
_MAX_SIZE = 1_000
"""Of digits and degree: an upper bound, see `_size`."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names that an expression may use."""

    variables: Collection[str] = ()
    functions: Collection[str] = ()


class _NotAllowed(ValueError):
    pass


def is_expression(text: object, names: Names, *, longest: int = 1_000) -> bool:
    """Whether `text` is an expression of decimal numbers, + - * / **, brackets, and `names`, that
    is quick to evaluate.
    """
    tree = _parsed(text, _TOKENS, longest)
    if tree is None:
        return False
    try:
        return _size(tree, names, depth=_depth_allowed(longest)) <= max(_MAX_SIZE, longest)
    except (_NotAllowed, ArithmeticError):
        return False


def is_integer_expression(text: object) -> bool:
    """Whether `text` is an expression of integers, also hexadecimal ones, with + - * and the
    operators on bits.
    """
    tree = _parsed(text, _INTEGER_TOKENS, 10_000)
    allowed = (ast.BinOp, ast.UnaryOp, ast.Constant, *_INTEGER_OPERATORS)
    return tree is not None and all(isinstance(node, allowed) for node in ast.walk(tree))


def evaluate(text: str) -> tuple[Fraction, list[Fraction]]:
    """Return the exact value of an expression of numbers, + - * / and brackets, and the numbers in
    it. Raises ValueError, ArithmeticError.
    """
    tree = _parsed(text, _TOKENS, 1_000)
    if tree is None:
        raise _NotAllowed
    return _value(tree), [_value(node) for node in ast.walk(tree) if isinstance(node, ast.Constant)]


def _parsed(text: object, tokens: re.Pattern[str], longest: int) -> ast.expr | None:
    if not isinstance(text, str) or len(text) > longest or not tokens.fullmatch(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "2(3)": Python wonders about a missing comma
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _depth_allowed(longest: int) -> int:
    return max(_MAX_DEPTH, min(longest // 10, 400))  # a sum is as deep as it has terms


def _size(node: ast.expr, names: Names, *, depth: int) -> float:
    """Return upper bounds of the digits of its value and of its degree as a polynomial. Raises
    _NotAllowed.
    """
    if depth == 0:
        raise _NotAllowed
    match node:
        case ast.Constant(value=int() | float() as value) if type(value) is not bool:
            if len(str(value)) > _MAX_NUMBER_CHARS:
                raise _NotAllowed
            return len(str(value))
        case ast.Name(id=name) if name in names.variables:
            return 1
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _size(operand, names, depth=depth - 1)
        case ast.Call(func=ast.Name(id=name), args=[_, *more] as given, keywords=[]) if (
            name in names.functions and len(more) < 2
        ):
            return max(_size(one, names, depth=depth - 1) for one in given)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _size_of_power(left, right, names, depth=depth - 1)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return max(_size(left, names, depth=depth - 1), _size(right, names, depth=depth - 1))
        case ast.BinOp(left=left, op=ast.Mult() | ast.Div(), right=right):
            return _size(left, names, depth=depth - 1) + _size(right, names, depth=depth - 1)
    raise _NotAllowed


def _size_of_power(base: ast.expr, exponent: ast.expr, names: Names, *, depth: int) -> float:
    below, above = _size(base, names, depth=depth), _size(exponent, names, depth=depth)
    if any(isinstance(node, ast.Name) for node in ast.walk(exponent)):
        return below + above  # 2**x stays as it is; 2**(9*x/x) costs at most what its digits allow
    value = _value(exponent)
    if abs(value) > _MAX_EXPONENT or value.denominator > _MAX_EXPONENT:
        raise _NotAllowed
    return below * max(1.0, abs(float(value)))


def _value(node: ast.expr) -> Fraction:
    """Evaluate an expression of numbers; powers of powers may nest only once. Raises _NotAllowed,
    ArithmeticError.
    """
    match node:
        case ast.Constant(value=int() | float() as value):
            return Fraction(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _value(left) / _value(right)
    raise _NotAllowed
