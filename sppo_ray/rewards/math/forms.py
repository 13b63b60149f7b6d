"""The kinds of things that an answer can be, as data: `reader` makes them, `compare` compares
them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

from sppo_ray.rewards.math import real_sets
from sppo_ray.rewards.math.finished import leaves_work
from sppo_ray.rewards.math.nodes import Node, has_variables, walk
from sppo_ray.rewards.math.real_sets import Interval, Region
from sppo_ray.rewards.math.units import NO_TAIL, Tail
from sppo_ray.rewards.math.values import value_of


@dataclass(frozen=True, slots=True)
class Quantity:
    """An expression with what stands behind it."""

    node: Node
    tail: Tail = NO_TAIL


@dataclass(frozen=True, slots=True)
class Words:
    """Text, in the form that `canonical_words` gives."""

    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """Several things: `brackets` is "" for a list, "or" for alternatives, "{}" for a set, and "()",
    "[]", "(]" or "[)".
    """

    brackets: str
    items: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """Values of variables, in the order in which they stand: x=1, y=2."""

    names: tuple[str, ...]
    values: tuple[Form, ...]

    @property
    def by_name(self) -> tuple[tuple[str, Form], ...]:
        return tuple(sorted(zip(self.names, self.values, strict=True), key=lambda pair: pair[0]))

    @property
    def in_order(self) -> tuple[Form, ...]:
        """The values in the order of a tuple without names: by name for x, y, z and other
        neighbours of the alphabet, else as they stand (r, theta).
        """
        by_name = self.by_name
        letters = [ord(name) for name, _ in by_name if len(name) == 1]
        neighbours = letters == list(range(letters[0], letters[0] + len(by_name))) if letters else False
        numbered = all(re.fullmatch(r"[a-zA-Z]_\{?[0-9]\}?", name) for name in self.names)
        return tuple(value for _, value in by_name) if neighbours or numbered else self.values


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of a matrix (`kind` ""), of a determinant ("v"), or the values and conditions of a
    function by cases ("cases").
    """

    kind: str
    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True, slots=True)
class Reals:
    """A set of real numbers; `name` is the variable that lies in it, "" where none is named."""

    region: Region
    name: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """Sides and the signs between them, as text: ("x", "2y"), ("=",)."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day: hours, minutes, seconds, and "am", "pm" or ""."""

    time: tuple[int, int, int]
    half: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """3:4 or 1:2:4."""

    parts: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Congruence:
    """left is one of the residues modulo modulus; `left` is "" where it is not named."""

    left: str
    residues: tuple[Node, ...]
    modulus: Node


@dataclass(frozen=True, slots=True)
class Family:
    """A form for every number of `domain` in place of `parameter`: "Z" the whole ones, "N" those
    that are not negative, "P" the positive ones.
    """

    form: Form
    parameter: str
    domain: str = "Z"


@dataclass(frozen=True, slots=True)
class Logic:
    r"""An operator of logic or of sets and its parts, in their order: \to, p and q."""

    sign: str
    parts: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """What cannot be read: text without white space."""

    text: str


Form = (
    Quantity
    | Words
    | Items
    | Named
    | Matrix
    | Reals
    | Relation
    | Clock
    | Ratio
    | Congruence
    | Family
    | Logic
    | Opaque
)

_ONE = Node("num", (Fraction(1), None))
_MAX_SIGNS = 3
ORDERED = ("()", "[]", "(]", "[)")
"""Brackets that keep the order of what stands in them."""


def both_signs(form: Form) -> list[Form]:
    r"""A quantity with \pm as its values; other forms as they are.

    Two \pm are independent of each other; \mp is the other sign of \pm.
    """
    if not isinstance(form, Quantity):
        return [form]
    ops = [part.op for part in walk(form.node) if part.op in ("±", "∓")]
    if not ops:
        return [form]
    if len(ops) > _MAX_SIGNS or "∓" in ops:
        choices = [(sign,) * len(ops) for sign in (1, -1)]
    else:
        choices = list(product((1, -1), repeat=len(ops)))
    return [replace(form, node=_with_signs(form.node, list(signs))) for signs in choices]


def _with_signs(node: Node, signs: list[int]) -> Node:
    """Takes a sign from `signs` for each \\pm and \\mp, in the order of `walk`."""
    sign = signs.pop(0) if node.op in ("±", "∓") else 0
    args = tuple(_with_signs(arg, signs) if isinstance(arg, Node) else arg for arg in node.args)
    if not sign:
        return Node(node.op, args)
    positive = (sign > 0) == (node.op == "±")
    if len(args) == 2:
        return Node("+" if positive else "-", args)
    return args[0] if positive else Node("neg", args)


def as_region(form: Form) -> Region | None:
    """A form as a set of real numbers, where it can be one: an interval, a set of points; not with
    units or words behind them.
    """
    if isinstance(form, Reals):
        return form.region
    if not isinstance(form, Items):
        return None
    if not all(isinstance(item, Quantity) and item.tail == NO_TAIL for item in form.items):
        return None
    if any(isinstance(item, Quantity) and leaves_work(_ONE, item.node, inside=True) for item in form.items):
        return None
    if form.brackets in ("{}", ""):
        return real_sets.union(
            real_sets.point(value_of(item.node)) for item in form.items if isinstance(item, Quantity)
        )
    if form.brackets in ORDERED and len(form.items) == 2:
        low, high = (value_of(item.node) for item in form.items if isinstance(item, Quantity))
        region = real_sets.union([Interval(low, form.brackets[0] == "[", high, form.brackets[1] == "]")])
        return region or None  # (2,1) is a point, and not the empty set
    return None


def are_unlike(items: Items) -> bool:
    """Whether it lists amounts of different things."""
    kinds = {(form.tail.words, form.tail.dimensions) for form in items.items if isinstance(form, Quantity)}
    return len(kinds) > 1


def only_member(items: Items) -> Form | None:
    r"""The member of a set of one; None of \{x\}, which may be the fractional part of x."""
    if items.brackets != "{}" or len(items.items) != 1:
        return None
    member = items.items[0]
    return None if isinstance(member, Quantity) and has_variables(member.node) else member
