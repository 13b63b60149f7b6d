"""Which letters of an expression are matrices or columns, and which are numbers: see `matrices`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from sppo_ray.rewards.math.nodes import Node, walk
from sppo_ray.rewards.math.tokens import GREEK

_CAPITAL = re.compile("(?:[A-Z]|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega)(?:_[^^ ]*)?'*")
_LETTER = re.compile("[a-zA-Z](?:_[^^ ]*)?'*")
_RUN = re.compile("[A-Z]{2,}")
T = Node("sym", ("T",))
TRANSPOSED = (T, Node("neg", (T,)))
_ONE = Node("num", (Fraction(1), None))
_INVERSE = Node("neg", (_ONE,))


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which letters are matrices, `tall` and `wide` ones among them, and which are columns."""

    matrices: frozenset[str]
    columns: frozenset[str]
    tall: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()


def kinds_of(trees: tuple[Node, Node], *, known: bool) -> list[Kinds]:
    """What the letters may be, the likeliest first; [] where all are numbers."""
    parts = [part for tree in trees for part in walk(tree)]
    turned = any(part.op == "^" and (part.args[1].op == "neg" or part.args[1] == T) for part in parts)
    if not (known or turned or any(map(is_run, parts))):
        return []
    letters = frozenset(name for part in parts for name in letters_of(part))
    capitals = frozenset(filter(_CAPITAL.fullmatch, letters))
    transposed = frozenset(name for tree in trees for name in _transposed(tree))
    behind = frozenset(name for tree in trees for name in _behind_matrices(tree))
    inverted = any(map(_inverts_a_capital, trees)) and (len(capitals) > 1 or behind)
    in_order = any(map(_has_both_orders, trees)) or (known and len(capitals) > 1)
    exponents = frozenset(name for tree in trees for name in _in_exponents(tree))
    if any(map(_is_conjugated, trees)):
        elements = frozenset(name for name in letters if _LETTER.fullmatch(name) or name in GREEK)
        return [Kinds((capitals | elements) - exponents, frozenset())]
    if not (transposed or inverted or in_order):
        return []
    tall, wide = (frozenset(name for tree in trees for name in _with_fewer(tree, end)) for end in (0, -1))
    return [
        Kinds(capitals - exponents, columns - capitals, tall - wide, wide - tall)
        for columns in (transposed | behind, transposed)
    ]


def _has_capital(node: Node) -> bool:
    return any(_CAPITAL.fullmatch(name) for part in walk(node) for name in letters_of(part))


def _powers(tree: Node) -> Iterator[tuple[Node, ...]]:
    return (part.args for part in walk(tree) if part.op == "^")


def _transposed(tree: Node) -> Iterator[str]:
    """The letters in what is transposed: x^T, (AB)^T."""
    for base, exponent in _powers(tree):
        if exponent in TRANSPOSED and not grows(base):
            yield from (name for part in walk(base) for name in letters_of(part))


def grows(base: Node) -> bool:
    """Whether ^T is a power in time: 2^T, (1 + R)^T."""
    numbers = ("num", "const")
    return base.op in numbers or (
        base.op in ("+", "-", "neg") and any(part.op in numbers for part in base.args)
    )


def _inverts_a_capital(tree: Node) -> bool:
    return any(exponent == _INVERSE and _has_capital(base) for base, exponent in _powers(tree))


def _is_conjugated(tree: Node) -> bool:
    """Whether a product has a letter and its own inverse, or powers of both: g h g^{-1}."""
    for found in _products(tree):
        bases = [(one.args if one.op == "^" else (one, _ONE)) for one in found]
        inverted = {base for base, exponent in bases if exponent.op == "neg"}
        others = {
            Node("sym", (name,))
            for base, exponent in bases
            if exponent.op != "neg"
            for name in letters_of(base)
        }
        if any(base.op == "sym" and base in others for base in inverted):
            return True
    return False


def _with_fewer(tree: Node, end: int) -> Iterator[str]:
    """Capitals with fewer columns than rows, X in (X^TX)^{-1}; fewer rows where `end` is -1."""
    for base, exponent in _powers(tree):
        found = _factors(base) if exponent == _INVERSE else []
        if len(found) < 2 or found[end].op != "^" or found[end].args[1] != T:
            continue
        ends = (found[end].args[0], found[-1 - end])
        if all(one.op == "sym" and _has_capital(one) and not is_run(one) for one in ends):
            yield from (one.args[0] for one in ends)


def _has_both_orders(tree: Node) -> bool:
    """Whether AB and BA stand in one expression."""
    runs = {part.args[0] for part in walk(tree) if is_run(part)}
    return len({"".join(sorted(run)) for run in runs}) < len(runs)


def _behind_matrices(tree: Node) -> Iterator[str]:
    """Lower-case letters that end a product, behind a matrix: A^{-1}b."""
    for *_, matrix, last in _products(tree):
        if last.op == "sym" and _has_capital(matrix) and last.args[0][0].islower():
            yield from filter(_LETTER.fullmatch, last.args)


def _products(tree: Node) -> Iterator[list[Node]]:
    """Each product in a tree as its factors."""
    left = [tree]
    while left:
        part = left.pop()
        found = _factors(part)
        if part.op == "*":
            yield found
        below = found if part.op == "*" else part.args
        left += [one for one in below if isinstance(one, Node)]


def _factors(node: Node) -> list[Node]:
    found, left = [], [node]
    while left:
        part = left.pop()
        if part.op == "*":
            left += reversed(part.args)
        else:
            found.append(part)
    return found


def _in_exponents(tree: Node) -> Iterator[str]:
    for _, exponent in _powers(tree):
        if exponent not in TRANSPOSED:
            yield from (name for part in walk(exponent) for name in letters_of(part))


def letters_of(node: Node) -> Iterator[str]:
    """The letters of a symbol: those of AB are A and B."""
    if node.op == "sym":
        yield from node.args[0] if is_run(node) else (node.args[0],)


def is_run(node: Node) -> bool:
    """Whether a symbol is several capitals in a row."""
    return node.op == "sym" and _RUN.fullmatch(node.args[0]) is not None
