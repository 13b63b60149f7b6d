"""The tree of an expression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Node(NamedTuple):
    """An operation and its operands.

    num (value: Fraction, decimal places or None), sym (name), const (pi, e, i or inf), + - * / ^
    (two operands), neg, ! !! abs, mixed (whole number, fraction), ± ∓ (one or two operands), call
    (name, operands), sum and prod (name, from, to, term).
    """

    op: str
    args: tuple[Any, ...]


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    yield node
    for part in node.args:
        if isinstance(part, Node):
            yield from walk(part)


def has_variables(node: Node) -> bool:
    return any(part.op == "sym" for part in walk(node))


def substitute(node: Node, values: Mapping[str, Node]) -> Node:
    """The tree with values in place of symbols."""
    if node.op == "sym":
        return values.get(node.args[0], node)
    args = (substitute(arg, values) if isinstance(arg, Node) else arg for arg in node.args)
    return Node(node.op, tuple(args))
