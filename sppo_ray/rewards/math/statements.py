"""Equations and inequalities between texts: what they state, and whether two of them say the
same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import takewhile

from sppo_ray.rewards.math.evaluator import TooLarge, Undefined
from sppo_ray.rewards.math.forms import Form, Quantity, Relation
from sppo_ray.rewards.math.long_operations import may_be
from sppo_ray.rewards.math.nodes import Node, has_variables
from sppo_ray.rewards.math.reader import read_answer
from sppo_ray.rewards.math.syntax import is_long_operation, is_name
from sppo_ray.rewards.math.units import NO_TAIL
from sppo_ray.rewards.math.values import proportional, same_value, value_of

_SEGMENT = r"[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?"
_RATIO_OF_NAMES = re.compile(
    rf"\\[dt]?frac\{{[A-Za-z_{{}}]+\}}\{{[A-Za-z_{{}}]+\}}|{_SEGMENT}(?:[:/]{_SEGMENT})+"
)
_WITHOUT_PROOF = re.compile(r"\\(?:lim|i*int|oint|frac\{d\})(?![a-zA-Z])")
_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def statement(relation: Relation) -> tuple[tuple[str, ...], str] | None:
    """The sides between a name and the last side, and the last side, of an equation that states a
    value.

    Without a name, all sides but the last have to be computations. None where it states no value:
    2x = 6, x - y = 7.
    """
    if set(relation.signs) != {"="}:
        return None
    sides = list(relation.sides)
    while len(sides) > 1 and is_name(sides[0]):
        sides.pop(0)
    *between, last = sides
    if len(sides) < len(relation.sides) or all(_is_computation(side) for side in between):
        return tuple(between), last
    return None


def last_side(truth: Relation) -> str | None:
    """The value that a truth gives to a name or to a ratio of names; None where it gives none."""
    first = "".join(truth.sides[0].split())
    if set(truth.signs) != {"="} or not (is_name(truth.sides[0]) or _RATIO_OF_NAMES.fullmatch(first)):
        return None
    return truth.sides[-1]


def is_statement_about(truth: Relation, answer: Relation) -> bool:
    """Whether the answer gives a value to the names of the truth: x = y = 2."""
    names, found = _names(truth), _names(answer)
    return bool(names) and names <= found and statement(answer) is not None


def _names(relation: Relation) -> set[str]:
    """The names before the first side that is none."""
    return {"".join(side.split()) for side in takewhile(is_name, relation.sides[:-1])}


def has_value(form: Form) -> bool:
    """Whether a form is a number that can be worked out."""
    try:
        return isinstance(form, Quantity) and value_of(form.node) is not None
    except (TooLarge, Undefined, KeyError):
        return False


def may_equal(side: str, value: Form) -> bool | None:
    """Whether a limit, an integral or an endless sum may have a value; None of other sides."""
    if not is_long_operation(side):
        return None
    if not _WITHOUT_PROOF.match(side.strip()) and r"\infty" not in side:
        return False  # what could have been worked out was not
    return not (isinstance(value, Quantity) and has_value(value)) or may_be(
        side.strip(), value_of(value.node)
    )


def same_equation(truth: Relation, answer: Relation) -> bool:
    """Whether two equations differ by a factor: y = 2x + 1 and 2x - y + 1 = 0."""
    if len(truth.sides) != 2 or len(answer.sides) != 2:
        return False
    nodes = _nodes(*truth.sides, *answer.sides)
    if nodes is None:
        return _squeezed(truth) == _squeezed(answer)
    if not any(map(has_variables, nodes)):  # f(2) = 5
        pairs = (nodes[2:], nodes[:1:-1])
        return any(all(map(same_value, nodes[:2], pair)) for pair in pairs)
    return proportional(Node("-", nodes[:2]), Node("-", nodes[2:])) != 0


def same_inequality(truth: Relation, answer: Relation, same_side: Callable[[str, str], bool]) -> bool:
    """The same chain, or the chain read from the other end; two sides also up to a factor."""
    if len(truth.sides) != len(answer.sides):
        return False
    turned = Relation(answer.sides[::-1], tuple(_TURNED.get(sign, sign) for sign in answer.signs[::-1]))
    readable_backwards = all(sign in _TURNED or sign in (r"\ne", r"\approx", "=") for sign in answer.signs)
    for other in (answer, turned) if readable_backwards else (answer,):
        pairs = zip(truth.sides, other.sides, strict=True)
        if truth.signs == other.signs and all(
            "".join(a.split()) == "".join(b.split()) or same_side(a, b) for a, b in pairs
        ):
            return True
    nodes = _nodes(*truth.sides, *answer.sides) if len(truth.sides) == 2 and readable_backwards else None
    if nodes is None:
        return False
    sign = proportional(Node("-", nodes[:2]), Node("-", nodes[2:]))
    turned_sign = _TURNED.get(answer.signs[0], answer.signs[0])
    return sign != 0 and truth.signs[0] == (answer.signs[0] if sign > 0 else turned_sign)


def _is_computation(side: str) -> bool:
    """Whether a side has no variables, or is a limit, an integral or a sum."""
    if is_long_operation(side):
        return True
    form = read_answer(side)
    return isinstance(form, Quantity) and not has_variables(form.node)


def _nodes(*sides: str) -> tuple[Node, ...] | None:
    forms = [read_answer(side) for side in sides]
    nodes = tuple(form.node for form in forms if isinstance(form, Quantity) and form.tail == NO_TAIL)
    return nodes if len(nodes) == len(sides) else None


def _squeezed(relation: Relation) -> tuple[str, ...]:
    return tuple("".join(side.split()) for side in relation.sides)
