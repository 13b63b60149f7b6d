r"""Products whose factors have an order: \vec a \times \vec b, A \times B, A^{-1} B.

Such a product becomes one symbol, named after its factors in their order, times what is a number
in it. A cross product of two vectors is named in one order, with the sign of that order.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import reduce

from sppo_ray.rewards.math.nodes import Node, walk
from sppo_ray.rewards.math.tokens import raise_if

_VECTOR = re.compile(r"(?:vec|hat|overrightarrow|widehat) .*|e_.*|.* × .*")
_SET = re.compile(r"mathbb .*")
_NAME_OF_SET = re.compile(r"[ABCDSTXY]'*")
"""Other capitals, such as L and W, and those with an index are mostly numbers."""
_CAPITALS = re.compile(r"(?:[A-Z](?:_[^A-Z^]*)?'*(?:\^(?:-[0-9]+|T))?)+")
_TURNED = (Node("neg", (Node("num", (Fraction(1), None)),)), Node("sym", ("T",)))
"""Exponents of matrices: the inverse and the transposed one."""
_ZERO, _ONE = (Node("num", (Fraction(number), None)) for number in (0, 1))

_MAX_TERMS, _MAX_NODES = 24, 1000

Term = tuple[Node, Node]
"""A coefficient and a symbol."""


def product(left: Node, right: Node, sign: str) -> Node:
    r"""left times right; `sign` is \times, another sign, or "" where none stands between them."""
    if sign == r"\times":
        return _times(left, right)
    before, last = left.args if left.op == "*" else (_ONE, left)
    if not sign and _have_order(last, right) and _name(last) != _name(right):
        word = Node("sym", (_name(last) + _name(right),))
        return word if before == _ONE else Node("*", (before, word))
    return Node("*", (left, right))


def power(base: Node, exponent: Node) -> Node:
    """A power; the inverse of several capitals in a row is that of the last one: AB^{-1}."""
    letters = base.args[0] if base.op == "sym" else ""
    if exponent in _TURNED and len(letters) > 1 and letters.isalpha() and letters.isupper():
        last = Node("^", (Node("sym", (letters[-1],)), exponent))
        return product(Node("sym", (letters[:-1],)), last, "")
    return Node("^", (base, exponent))


def _have_order(one: Node, other: Node) -> bool:
    """Whether two factors side by side are matrices, one of them inverse or transposed, or such a
    one and a vector: A^{-1}b. Capitals alone are mostly numbers: PV = nRT.
    """
    if _is_matrix(one) and _is_matrix(other):
        return "^" in _name(one) + _name(other)
    return any(
        _is_matrix(matrix) and (matrix.op == "^" or "^" in _name(matrix)) and _is_letter(vector)
        for matrix, vector in ((one, other), (other, one))
    )


def _times(left: Node, right: Node) -> Node:
    lefts, rights = _terms(left), _terms(right)
    if not lefts or not rights:
        return Node("*", (left, right))
    raise_if(len(lefts) * len(rights) > _MAX_TERMS, "a product of too many terms")
    pairs = ((Node("*", (a, b)), _ordered(one, other)) for a, one in lefts for b, other in rights)
    terms = [Node("*", pair) for pair in pairs if pair[1] != _ZERO]
    total = reduce(lambda one, other: Node("+", (one, other)), terms, _ZERO) if len(terms) != 1 else terms[0]
    raise_if(sum(1 for _ in walk(total)) > _MAX_NODES, "a product of too many terms")
    return total


def _ordered(one: Node, other: Node) -> Node:
    """The product of two symbols as one symbol."""
    names = _name(one), _name(other)
    if _is_vector(one) and _is_vector(other):
        if names[0] == names[1]:
            return _ZERO
        crossed = Node("sym", (" × ".join(f"({name})" for name in sorted(names)),))
        return crossed if names[0] < names[1] else Node("neg", (crossed,))
    if names[0] == names[1]:
        return Node("^", (one, Node("num", (Fraction(2), None))))
    return Node("sym", ("".join(names),))


def _terms(node: Node) -> list[Term]:
    """A sum of vectors, sets or matrices as its terms; [] of anything else, such as N - 1."""
    op, args = node
    if _is_vector(node) or _is_set(node) or _is_single_matrix(node):
        return [(_ONE, node)]
    if op == "neg":
        return [(Node("neg", (factor,)), symbol) for factor, symbol in _terms(args[0])]
    if op in ("+", "-"):
        first, second = _terms(args[0]), _terms(args[1])
        signed = second if op == "+" else [(Node("neg", (factor,)), symbol) for factor, symbol in second]
        return [*first, *signed] if first and second else []
    if op == "*" and (terms := _terms(args[1])):
        return [(Node("*", (args[0], factor)), symbol) for factor, symbol in terms]
    if op in ("*", "/") and (terms := _terms(args[0])):
        return [(Node(op, (factor, args[1])), symbol) for factor, symbol in terms]
    return []


def _is_vector(node: Node) -> bool:
    return node.op == "sym" and _VECTOR.fullmatch(node.args[0]) is not None


def _is_set(node: Node) -> bool:
    base = node.args[0] if node.op == "^" else node
    return base.op == "sym" and _SET.fullmatch(base.args[0]) is not None


def _is_single_matrix(node: Node) -> bool:
    base = node.args[0] if node.op == "^" and node.args[1] in _TURNED else node
    return base.op == "sym" and _NAME_OF_SET.fullmatch(base.args[0]) is not None


def _is_matrix(node: Node) -> bool:
    """Whether a node is a capital, several in a row, or the inverse of one."""
    base = node.args[0] if node.op == "^" and node.args[1] in _TURNED else node
    return base.op == "sym" and _CAPITALS.fullmatch(base.args[0]) is not None


def _name(node: Node) -> str:
    if node.op == "sym":
        return str(node.args[0])
    base, exponent = node.args
    return f"{base.args[0]}^{_exponent(exponent)}"


def _exponent(node: Node) -> str:
    if node.op == "neg":
        return f"-{_exponent(node.args[0])}"
    return str(node.args[0]) if node.op in ("num", "sym") else repr(node)


def _is_letter(node: Node) -> bool:
    return node.op == "sym" and re.fullmatch("[a-z](?:_.*)?", node.args[0]) is not None
