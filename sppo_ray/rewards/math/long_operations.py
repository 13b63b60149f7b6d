r"""Whether an equation that begins with a limit, an integral, or an endless sum may be true:
\lim_{x\to0}\frac{\sin x}{x}=1.

A plausibility check by numbers, of a claim whose right side is known to be the truth: what cannot
be read (an unknown function, a parameter) is taken at its word.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import mpmath

from sppo_ray.rewards.math.expressions import UNKNOWN, Unreadable, read_expression
from sppo_ray.rewards.math.nodes import Node, walk
from sppo_ray.rewards.math.text import closing_brace
from sppo_ray.rewards.math.values import Number, TooLarge, Undefined, real, value_at

_LIMIT = re.compile(r"\\lim\s*_\s*(?=\{)")
_ARROW = re.compile(r"([a-zA-Z])\s*\\to\s*(.+?)\s*(?:\^\s*\{?\s*[-+]\s*\}?)?")
_DIFFERENTIAL = re.compile(r"(?:\\text\{\s*)?\bd\s*\}?\s*([a-zA-Z])\s*$|d([a-zA-Z])\s*$")
_TERMS = 400
_STEPS = 200
_TOLERANCE = 0.004


def may_be(side: str, value: Number) -> bool:
    """Whether the side of an equation can have this value. True where the side cannot be read."""
    try:
        found = (
            _limit(side)
            if side.startswith(r"\lim")
            else _integral(side)
            if side.startswith(r"\int")
            else _series(side)
        )
        if found is None:
            return True
        expected = real(value)
        return bool(abs(found - expected) <= _TOLERANCE * max(abs(expected), mpmath.mpf("0.01")))
    except (
        Unreadable,
        Undefined,
        TooLarge,
        KeyError,
        ZeroDivisionError,
        ValueError,
        OverflowError,
        RecursionError,
    ):
        return True


def _limit(side: str) -> Any:
    match = _LIMIT.match(side)
    end = closing_brace(side, match.end()) if match else None
    arrow = _ARROW.fullmatch(side[match.end() + 1 : end - 1].strip()) if match and end else None
    if arrow is None:
        return None
    body, towards = _known(side[end:], arrow[1]), _constant(arrow[2])
    if body is None:
        return None
    if mpmath.isinf(real(towards)):
        at = Fraction(10) ** 9 * (1 if real(towards) > 0 else -1)
    else:
        at = Fraction(str(mpmath.nstr(real(towards), 40))) + Fraction(1, 10**9)
    return real(value_at(body, {arrow[1]: at}))


def _integral(side: str) -> Any:
    bounds = re.match(r"\\int\s*(?:\\limits)?\s*_\s*", side)
    if bounds is None:
        return None
    low, rest = _mark(side[bounds.end() :])
    rest = rest.strip()
    if not rest.startswith("^"):
        return None
    high, rest = _mark(rest[1:].strip())
    variable = _DIFFERENTIAL.search(rest.replace(r"\,", " ").strip())
    if variable is None:
        return None
    name = variable[1] or variable[2]
    body = _known(rest.replace(r"\,", " ").strip()[: variable.start()] or "1", name)
    start, stop = (Fraction(str(mpmath.nstr(real(_constant(bound)), 30))) for bound in (low, high))
    if body is None:
        return None
    width = (stop - start) / _STEPS
    points = (start + width * (2 * step + 1) / 2 for step in range(_STEPS))
    return sum(real(value_at(body, {name: point})) for point in points) * real(width)


def _series(side: str) -> Any:
    r"""An endless sum by its first terms."""
    if not re.match(r"\\sum", side) or r"\infty" not in side:
        return None
    node = read_expression(side.replace(r"\infty", f"{{{_TERMS}}}", 1))
    if any(part.op == "call" and part.args[0].startswith(UNKNOWN) for part in walk(node)):
        return None
    return real(value_at(node, {}))


def _known(text: str, variable: str) -> Node | None:
    """The tree of an expression of one variable; None where anything else is unknown in it."""
    node = read_expression(text)
    unknown = {part.args[0] for part in walk(node) if part.op == "sym"} - {variable}
    functions = any(part.op == "call" and part.args[0].startswith(UNKNOWN) for part in walk(node))
    return None if unknown or functions else node


def _constant(text: str) -> Number:
    return value_at(read_expression(text.strip("{} ")), {})


def _mark(text: str) -> tuple[str, str]:
    """The argument of _ or ^, and what follows it."""
    if text.startswith("{"):
        end = closing_brace(text, 0)
        if end is None:
            raise Unreadable("a brace is missing")
        return text[1 : end - 1], text[end:]
    command = re.match(r"\\[a-zA-Z]+|.", text)
    if command is None:
        raise Unreadable("a bound is missing")
    return command.group(), text[command.end() :]
