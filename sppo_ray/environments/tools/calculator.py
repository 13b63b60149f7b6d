"""The calculator tool: exact arithmetic of integers and decimals, without evaluating Python."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from decimal import Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext

_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")  # 2,5 may be 2.5, and is no number here
MAX_CHARS = 200
MAX_DIGITS = 60
_OPERATIONS: dict[type, Callable[[Decimal, Decimal], Decimal]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: _floor(a, b),
    ast.Mod: lambda a, b: a - b * _floor(a, b),
}


class CannotCalculate(ValueError):
    """The expression has no value; the message is for the policy."""


def calculate(expression: str) -> str:
    """Return the value of an expression in + - * / // % ** and brackets, e.g. "0.3" for "0.1+0.2".

    Numbers have up to 60 digits: 1/3 is rounded there, and a larger integer is an error. Raises
    CannotCalculate.
    """
    if len(expression) > MAX_CHARS:
        raise CannotCalculate(f"the expression has more than {MAX_CHARS} characters")
    text = _THOUSANDS.sub("", expression.strip()).replace("^", "**")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CannotCalculate("not an arithmetic expression") from None
    with localcontext(prec=MAX_DIGITS, Emax=MAX_DIGITS - 1, Emin=-MAX_DIGITS):
        try:
            return _text(_value(tree.body, text))
        except DivisionByZero:
            raise CannotCalculate("division by zero") from None
        except (InvalidOperation, Overflow, RecursionError):
            raise CannotCalculate("the number is too large or not defined") from None


def _value(node: ast.expr, text: str) -> Decimal:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return +Decimal(node.value)  # + rounds, and raises Overflow
    if isinstance(node, ast.Constant) and type(node.value) is float:
        return +Decimal(ast.get_source_segment(text, node) or "")  # all its digits
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, text)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left, text), _value(node.right, text))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        exponent = _value(node.right, text)
        if abs(exponent) > 1000:
            raise InvalidOperation
        return _finite(_value(node.left, text) ** exponent)  # 0**-1 is infinite
    raise CannotCalculate("only numbers, + - * / // % ** and brackets are known")


def _floor(a: Decimal, b: Decimal) -> Decimal:
    """The quotient, rounded down, worked out to enough digits."""
    with localcontext(prec=4 * MAX_DIGITS):
        quotient = (a / b).to_integral_value("ROUND_FLOOR")
    return +quotient


def _finite(value: Decimal) -> Decimal:
    if not value.is_finite():
        raise InvalidOperation
    return value


def _text(value: Decimal) -> str:
    if value == value.to_integral_value():
        return str(int(value))
    return format(value.normalize(), "f")
