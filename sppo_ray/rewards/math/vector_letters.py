r"""Letters without arrows that are vectors all the same, because numbers are not written so:
(b \cdot c)a, a \times (b \times c), b \cdot b.
"""

from __future__ import annotations

from collections.abc import Sequence

from sppo_ray.rewards.math.nodes import Node
from sppo_ray.rewards.math.ordered import DOTS, cross, dot_of
from sppo_ray.rewards.math.tokens import MARKS, TIMES, Token

_VECTORS = frozenset("abcuvwpqr")
r"""Letters that are vectors in a \times (b \times c); l, w and h are lengths."""
_FUNCTIONS = frozenset("fgFG")
_NONE = ("", "")


def product_in_brackets(tokens: Sequence[Token], start: int, end: int) -> Node | None:
    r"""The bracket whose content is `start` to `end` as a product of vectors, where it has two
    letters and stands beside another one: (b \cdot c)a, (a \cdot b)(c \cdot d), and so on with
    \times.
    """
    inside = tokens[start:end]
    if len(inside) != 3 or not (_is_letter(inside[0]) and _is_letter(inside[2])):
        return None
    one, sign, other = (text for _, text in inside)
    before = [_NONE, _NONE, *tokens[: start - 1]][-2:]
    behind = [*tokens[end + 1 : end + 3], _NONE, _NONE][:2]
    if sign in DOTS:
        return dot_of(one, other) if _is_factor(before[1], behind[0]) else None
    joined = (before[:1] if before[1][1] in TIMES else []) + (behind[1:] if behind[0][1] in TIMES else [])
    vectors = _VECTORS & {one, other, *(text for _, text in joined)}
    return cross(one, other) if sign == r"\times" and len(vectors) > 2 else None


def has_square(tokens: Sequence[Token]) -> bool:
    r"""Whether b \cdot b stands alone: numbers would be b^2."""
    for at, (one, sign, other) in enumerate(zip(tokens, tokens[1:], tokens[2:], strict=False)):
        around = [tokens[place][1] for place in (at - 1, at + 3) if 0 <= place < len(tokens)]
        if one == other and _is_letter(one) and sign[1] in DOTS and TIMES.isdisjoint(around):
            return True
    return False


def are_letters(*nodes: Node) -> bool:
    return all(node.op == "sym" and len(node.args[0]) == 1 for node in nodes)


def _is_factor(before: Token, behind: Token) -> bool:
    left = before[1] == ")" or (_is_letter(before) and before[1] not in _FUNCTIONS)
    return left or _is_letter(behind) or behind[1] == "(" or behind[1][1:] in MARKS


def _is_letter(token: Token) -> bool:
    return token[0] == "name" and len(token[1]) == 1
