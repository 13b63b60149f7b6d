"""Several values or statements as one form: a list, alternatives, solutions of several
variables.
"""

from __future__ import annotations

from collections.abc import Sequence

from sppo_ray.rewards.math.forms import ORDERED, Form, Items, Named, Relation, both_signs
from sppo_ray.rewards.math.syntax import is_name


def solutions(names: Sequence[str], values: Sequence[Form], signs: Sequence[str]) -> Form | None:
    """x = 1, y = 2 as the values of several variables; x = 1, y = 2 or x = 2, y = 1 as two of them.

    None where alternatives are within one of them, or where they do not name the same variables.
    """
    size = len(names) // names.count(names[0])
    starts = range(0, len(names), size)
    alike = all(list(names[at : at + size]) == list(names[:size]) for at in starts)
    within = {sign for at, sign in enumerate(signs) if at % size}
    if not alike or len(set(names[:size])) < size or size == 1 or "or" in within:
        return None
    found = [Named(tuple(names[:size]), tuple(values[at : at + size])) for at in starts]
    return found[0] if len(found) == 1 else flat("or" if "or" in signs else "", found)


def flat(brackets: str, forms: Sequence[Form]) -> Form:
    r"""The forms in brackets, each a \pm b as its two values; one form without brackets as it is.

    In ordered brackets, \pm makes two tuples.
    """
    pairs = [both_signs(form) for form in forms]
    if brackets in ORDERED and any(len(pair) > 1 for pair in pairs):
        return Items("", tuple(Items(brackets, tuple(pair[n % len(pair)] for pair in pairs)) for n in (0, 1)))
    items = [one for form in forms for one in both_signs(form)]
    return Items(brackets, tuple(items)) if brackets or len(items) > 1 else items[0]


def equation_name(form: Form) -> str | None:
    """x of x = 3, where the right side is its value."""
    if isinstance(form, Relation) and form.signs == ("=",) and is_name(form.sides[0]):
        return "".join(form.sides[0].split())
    return None
