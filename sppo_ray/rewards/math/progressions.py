r"""Families of values, one for every whole number, and residues: \frac{\pi}{2} + k\pi, x = 3 \pmod
7.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from sppo_ray.rewards.math.evaluator import real
from sppo_ray.rewards.math.forms import Congruence, Family, Form, Items, Named, Quantity, Relation
from sppo_ray.rewards.math.nodes import Node, substitute, walk
from sppo_ray.rewards.math.reader import read_answer
from sppo_ray.rewards.math.syntax import is_name
from sppo_ray.rewards.math.values import same_value, value_of

_PARAMETERS = ("k", "n", "m", "l", "j", "z", "t", "N", "K")
"""Usual names of the whole number, where a family does not name it."""


def family_parameter(form: Form, member: Quantity) -> str | None:
    """The name of a family's whole number; None where it has none."""
    if isinstance(form, Family):
        return form.parameter
    names = {part.args[0] for part in walk(member.node) if part.op == "sym"}
    return next((name for name in _PARAMETERS if name in names), None)


def same_progression(truth: Node, mine: str, answer: Node, theirs: str, domains: tuple[str, str]) -> bool:
    """Whether a + bk and c + dn run through the same values: b is d or -d, and c is one of a +
    bk. For k that is not negative, both have to begin with the same value.
    """
    truth, answer = (
        substitute(node, {name: Node("+", (Node("sym", (name,)), Node("num", (Fraction(1), None))))})
        if domain == "P"
        else node
        for node, name, domain in zip((truth, answer), (mine, theirs), domains, strict=True)
    )
    half = [{"": "Z", "P": "N"}.get(domain, domain) for domain in domains]
    if half[0] != half[1] and domains[1]:
        return False
    renamed = substitute(answer, {theirs: Node("sym", (mine,))})
    if same_value(truth, renamed):
        return True
    if half != ["Z", "Z"]:
        return False
    start, step = _linear(truth, mine)
    other_start, other_step = _linear(renamed, mine)
    if not _is_linear(truth, mine) or not _is_linear(renamed, mine):
        return False
    if not any(same_value(step, one) for one in (other_step, Node("neg", (other_step,)))):
        return False
    offset = real(value_of(Node("/", (Node("-", (other_start, start)), step))))
    return bool(abs(offset - round(float(offset))) < 1e-30)


def with_parameter(form: Form, name: str, new: str, sign: int, shift: int) -> Form:
    """A form with sign * new + shift in place of its parameter."""
    if isinstance(form, (Items, Named)):
        field = "items" if isinstance(form, Items) else "values"
        parts = tuple(with_parameter(part, name, new, sign, shift) for part in getattr(form, field))
        return replace(form, **{field: parts})
    if not isinstance(form, Quantity):
        return form
    symbol = Node("sym", (new,))
    moved = Node("+", (symbol if sign > 0 else Node("neg", (symbol,)), Node("num", (Fraction(shift), None))))
    return replace(form, node=substitute(form.node, {name: moved}))


def as_congruence(form: Form) -> Form:
    """x = 7k + 3 for every whole number k as x = 3 modulo 7; other forms as they are."""
    if not isinstance(form, Family) or form.domain != "Z":
        return form
    named = isinstance(form.form, Relation) and len(form.form.sides) == 2
    value = read_answer(form.form.sides[1]) if isinstance(form.form, Relation) and named else form.form
    if not isinstance(value, Quantity) or not _is_linear(value.node, form.parameter):
        return form
    start, step = _linear(value.node, form.parameter)
    left = form.form.sides[0] if isinstance(form.form, Relation) else ""
    return Congruence(left, (start,), Node("abs", (step,)))


def same_congruence(truth: Congruence, answer: Congruence) -> bool:
    """Whether two congruences have the same modulus and, modulo it, the same residues."""
    named = truth.left != answer.left if truth.left and answer.left else not _is_simple(answer.left)
    if named or not same_value(truth.modulus, answer.modulus):
        return False
    pairs = ((truth.residues, answer.residues), (answer.residues, truth.residues))
    return all(
        any(_is_multiple(Node("-", (one, other)), truth.modulus) for other in others)
        for these, others in pairs
        for one in these
    )


def _is_simple(left: str) -> bool:
    return not left or is_name(left)


def _is_multiple(node: Node, of: Node) -> bool:
    quotient = value_of(Node("/", (node, of)))
    return isinstance(quotient, Fraction) and quotient.denominator == 1


def _linear(node: Node, name: str) -> tuple[Node, Node]:
    """a and b of a + bk, from the values at 0 and 1."""
    at_zero, at_one = (substitute(node, {name: Node("num", (Fraction(n), None))}) for n in (0, 1))
    return at_zero, Node("-", (at_one, at_zero))


def _is_linear(node: Node, name: str) -> bool:
    start, step = _linear(node, name)
    return same_value(node, Node("+", (start, Node("*", (step, Node("sym", (name,)))))))
