r"""Letters without arrows that are vectors all the same, because numbers are not written so:
(b \cdot c)a, a \times (b \times c), b \cdot b.
"""

from __future__ import annotations

from collections.abc import Sequence

from sppo_ray.rewards.math.nodes import Node
from sppo_ray.rewards.math.ordered import DOTS, cross, dot_of
from sppo_ray.rewards.math.tokens import MARKS, TIMES, Token, numeral

_VECTORS = frozenset("abcuvwpqr")
r"""Letters that are vectors in a \times (b \times c); l, w and h are lengths."""
_FUNCTIONS = frozenset("fgFG")
_BARS = frozenset(["|", r"\|", r"\vert", r"\lvert", r"\rvert"])
_FRACTIONS = frozenset([r"\frac", r"\dfrac", r"\tfrac", "{"])
_NONE = ("", "")


def product_in_brackets(tokens: Sequence[Token], start: int, end: int) -> Node | None:
    r"""The bracket whose content is `start` to `end` as a product of vectors, where it has two
    letters and stands beside another one: (b \cdot c)a, (a \cdot b)(c \cdot d), and so on with
    \times.
    """
    factor = tokens[start] if tokens[start][0] == "number" else None
    inside = tokens[start + (factor is not None) : end]
    if len(inside) != 3 or not (_is_letter(inside[0]) and _is_letter(inside[2])):
        return None
    one, sign, other = (text for _, text in inside)
    before = [_NONE, _NONE, *tokens[: start - 1]][-2:]
    behind = [*tokens[end + 1 : end + 3], _NONE, _NONE][:2]
    if sign in DOTS:
        top = [token for token in tokens[end + 1 : end + 4] if token[1] not in _FRACTIONS]
        found = dot_of(one, other) if _is_factor(before[1], (top or [_NONE])[0]) else None
        return Node("*", (Node("num", numeral(factor[1])), found)) if found and factor else found
    joined = (before[:1] if before[1][1] in TIMES else []) + (behind[1:] if behind[0][1] in TIMES else [])
    vectors = _VECTORS & {one, other, *(text for _, text in joined)}
    return cross(one, other) if sign == r"\times" and len(vectors) > 2 else None


def has_vectors(tokens: Sequence[Token]) -> bool:
    r"""Whether b \cdot b stands alone, for which numbers have b^2, or a \cdot b beside |b|."""
    dotted, barred = set[Token](), set[Token]()
    for at, (one, sign, other) in enumerate(zip(tokens, tokens[1:], tokens[2:], strict=False)):
        if sign[1] in DOTS and _is_letter(one) and _is_letter(other):
            around = [tokens[place][1] for place in (at - 1, at + 3) if 0 <= place < len(tokens)]
            if one == other and TIMES.isdisjoint(around):
                return True
            dotted |= {one, other} if one != other else set()
        if one[1] in _BARS and other[1] in _BARS and _is_letter(sign):
            barred.add(sign)
    return not dotted.isdisjoint(barred)


def are_letters(*nodes: Node) -> bool:
    return all(node.op == "sym" and len(node.args[0]) == 1 for node in nodes)


def _is_factor(before: Token, behind: Token) -> bool:
    left = before[1] == ")" or (_is_letter(before) and before[1] not in _FUNCTIONS)
    return left or _is_letter(behind) or behind[1] == "(" or behind[1][1:] in MARKS


def _is_letter(token: Token) -> bool:
    return token[0] == "name" and len(token[1]) == 1
