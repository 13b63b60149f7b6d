r"""Products of vectors and sets, which numbers cannot stand for: \vec a \times \vec b,
\vec a \cdot \vec b, A \times B, i \times j.

Such a product becomes one symbol, named after its factors, times what is a number in it. A cross
product is named in one order, with the sign of that order; so are three vectors in \times and
\cdot. A dot product has no order. Matrices: see `matrices`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce

from sppo_ray.rewards.math.nodes import Node, walk
from sppo_ray.rewards.math.tokens import raise_if

DOTS = (r"\cdot", r"\bullet")
_VECTOR = re.compile(r"(?:vec|hat|overrightarrow|widehat) .*|e_.*|.* × .*")
_CROSSED = re.compile(r"\(([^()]*)\) × \(([^()]*)\)")
_SET = re.compile(r"mathbb .*")
_NAME_OF_SET = re.compile(r"[ABCDSTXY]'*")
"""Other capitals, such as L and W, and those with an index are mostly numbers."""
_T = Node("sym", ("T",))
_ZERO, _ONE, _TWO = (Node("num", (Fraction(number), None)) for number in (0, 1, 2))
_TURNED = (Node("neg", (_ONE,)), _T)
"""Exponents of matrices: the inverse and the transposed one."""
_UNITS = {Node("const", ("i",)): "i", Node("sym", ("j",)): "j", Node("sym", ("k",)): "k"}
_MAX_TERMS, _MAX_NODES = 24, 1000

Term = tuple[Node, Node]
"""A coefficient and a symbol."""


def product(left: Node, right: Node, sign: str) -> Node:
    r"""left times right; `sign` is \times, another sign, or "" where none stands between them."""
    if sign == r"\times":
        return _crossed(left, right) or Node("*", (left, right))
    if sign in DOTS and (dotted := _dotted(left, right)) is not None:
        return dotted
    before, last = left.args if left.op == "*" else (_ONE, left)
    names = _UNITS.get(last), _UNITS.get(right)
    if set(names) == {"i", "j"}:  # ij = -ji where they are units of quaternions
        word = Node("sym", ("".join(map(str, names)),))
        return word if before == _ONE else Node("*", (before, word))
    return Node("*", (left, right))


def power(base: Node, exponent: Node, *, is_name: bool) -> Node:
    r"""A power. That of several capitals in a row (`is_name`) is of the last one, AB^{-1} and PD^n,
    unless it is a numeral: AB^2 is the square of a segment. (\vec a + \vec b)^2 is a dot product.
    """
    letters = base.args[0] if base.op == "sym" else ""
    if is_name and exponent.op != "num" and len(letters) > 1 and letters.isalpha() and letters.isupper():
        return Node("*", (Node("sym", (letters[:-1],)), Node("^", (Node("sym", (letters[-1],)), exponent))))
    inside = base.args[0] if base.op == "abs" else base
    if exponent == _TWO and not is_vector(inside):
        return _dotted(inside, inside) or Node("^", (base, exponent))
    return Node("^", (base, exponent))


def dot_of(one: str, other: str) -> Node:
    """The dot product of two vectors of these names."""
    return Node("sym", (" · ".join(f"({name})" for name in sorted((one, other))),))


def is_dot(node: Node) -> bool:
    """Whether a symbol is a dot product."""
    return node.op == "sym" and " · " in node.args[0]


def is_vector(node: Node) -> bool:
    return node.op == "sym" and _VECTOR.fullmatch(node.args[0]) is not None and not is_dot(node)


def _crossed(left: Node, right: Node) -> Node | None:
    names = _UNITS.get(left), _UNITS.get(right)
    if None not in names and names[0] != names[1]:
        return cross(*map(str, names))
    if _is_beside(left, right):
        return cross(left.args[0], right.args[0])
    return _multiplied(_terms(left), _terms(right), _ordered)


def _is_beside(left: Node, right: Node) -> bool:
    r"""Whether one is b \times c, and the other a letter that therefore is a vector."""
    for crossed, letter in ((left, right), (right, left)):
        if crossed.op == letter.op == "sym" and " × " in crossed.args[0] and len(letter.args[0]) == 1:
            return True
    return False


def _dotted(left: Node, right: Node) -> Node | None:
    if _is_beside(left, right):
        return dot(left, right)
    terms = _terms(left), _terms(right)
    vectors = all(is_vector(symbol) for some in terms for _, symbol in some)
    return _multiplied(*terms, dot) if vectors else None


def _multiplied(
    lefts: Sequence[Term], rights: Sequence[Term], of: Callable[[Node, Node], Node]
) -> Node | None:
    """The product of two sums of terms, term by term; None where one of them is no such sum."""
    if not lefts or not rights:
        return None
    raise_if(len(lefts) * len(rights) > _MAX_TERMS, "a product of too many terms")
    pairs = ((Node("*", (a, b)), of(one, other)) for a, one in lefts for b, other in rights)
    terms = [Node("*", pair) for pair in pairs if pair[1] != _ZERO]
    total = reduce(lambda one, other: Node("+", (one, other)), terms, _ZERO) if len(terms) != 1 else terms[0]
    raise_if(sum(1 for _ in walk(total)) > _MAX_NODES, "a product of too many terms")
    return total


def _ordered(one: Node, other: Node) -> Node:
    """The product of two symbols as one symbol."""
    names = _name(one), _name(other)
    if is_vector(one) and is_vector(other):
        return cross(*names)
    if names[0] == names[1]:
        return Node("^", (one, _TWO))
    return Node("sym", ("".join(names),))


def cross(one: str, other: str) -> Node:
    """The cross product of two vectors, named in one order, with the sign of that order."""
    if one == other:
        return _ZERO
    crossed = Node("sym", (" × ".join(f"({name})" for name in sorted((one, other))),))
    return crossed if one < other else Node("neg", (crossed,))


def dot(one: Node, other: Node) -> Node:
    """The dot product of two vectors."""
    names = one.args[0], other.args[0]
    if names[0] == names[1]:
        return Node("^", (Node("abs", (one,)), _TWO))
    for crossed, last in (names, names[::-1]):
        pair = _CROSSED.fullmatch(crossed)
        if pair and " × " not in last:
            return _triple(pair[1], pair[2], last)
    return dot_of(*names)


def _triple(*names: str) -> Node:
    r"""(a \times b) \cdot c, whose sign changes with the order of its vectors."""
    if len(set(names)) < len(names):
        return _ZERO
    volume = Node("sym", (f"[{', '.join(sorted(names))}]",))
    turns = sum(names[i] > names[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    return Node("neg", (volume,)) if turns % 2 else volume


def _terms(node: Node) -> list[Term]:
    """A sum of vectors, sets or matrices as its terms; [] of anything else, such as N - 1."""
    op, args = node
    if is_vector(node) or _is_set(node) or _is_single_matrix(node):
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


def _is_set(node: Node) -> bool:
    base = node.args[0] if node.op == "^" else node
    return base.op == "sym" and _SET.fullmatch(base.args[0]) is not None


def _is_single_matrix(node: Node) -> bool:
    base = node.args[0] if node.op == "^" and node.args[1] in _TURNED else node
    return base.op == "sym" and _NAME_OF_SET.fullmatch(base.args[0]) is not None


def _name(node: Node) -> str:
    if node.op == "sym":
        return str(node.args[0])
    base, exponent = node.args
    return f"{base.args[0]}^{_exponent(exponent)}"


def _exponent(node: Node) -> str:
    if node.op == "neg":
        return f"-{_exponent(node.args[0])}"
    return str(node.args[0]) if node.op in ("num", "sym") else repr(node)
