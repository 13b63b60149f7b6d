r"""Whether two families run through the same values: \frac{\pi}{4} + k\pi for every whole number k.

What a family is made of (values, tuples, sets) is compared by the `same_form` that is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sppo_ray.rewards.math.forms import (
    ORDERED,
    Family,
    Form,
    Items,
    Named,
    Quantity,
    Reals,
    Relation,
    both_signs,
)
from sppo_ray.rewards.math.listing import equation_name
from sppo_ray.rewards.math.nodes import Node, walk
from sppo_ray.rewards.math.progressions import family_parameter, same_progression, with_parameter
from sppo_ray.rewards.math.question import Question
from sppo_ray.rewards.math.reader import read_answer
from sppo_ray.rewards.math.statements import statement

SameForm = Callable[[Form, Form], bool]

_WHOLE = "whole"
"""Stands for the whole numbers of two families in turn."""
_SHIFTS = (0, 1, -1, 2, -2, 3, -3)
"""Of the whole number of a family of tuples."""
_WHOLE_NAMES = frozenset("nkm")
"""Of variables that are whole numbers without saying so."""


def are_families(truth: Form, answer: Form, question: Question) -> bool:
    r"""Whether one of them is a family, or both are angles with a whole number that no words name,
    \frac{\pi}{4} + k\pi. A letter of the question is a variable, and so is each but k where the
    question is not known.
    """
    if isinstance(truth, Family) or isinstance(answer, Family):
        return True
    if not isinstance(truth, Quantity) or not isinstance(answer, Quantity):
        return False
    names = [family_parameter(form, form) for form in (truth, answer)]
    if any(name is None or question.has_letter(name) for name in names):
        return False
    is_known = names[0] == "k" or question.is_known
    return is_known and _is_angle(truth) and _is_angle(answer)


def same_family(truth: Form, answer: Form, same_form: SameForm) -> bool:
    """Whether two families run through the same values, whatever the name of their whole number."""
    form, other = _member(truth), _member(answer)
    if isinstance(form, Relation) and isinstance(other, Relation):
        return same_form(form, other)
    if len({name for one in (truth, answer) if (name := _name_of(one))}) > 1:
        return False
    if isinstance(form, Reals) or isinstance(other, Reals):
        names = {one.name if isinstance(one, Reals) else "" for one in (form, other)}
        is_alike = names <= _WHOLE_NAMES or _domain_of(truth) == _domain_of(answer)
        return is_alike and same_form(form, other)
    if any(isinstance(one, Named) or _is_ordered(one) for one in (form, other)):
        return _same_row(truth, answer, form, other, same_form)
    forms, others = _members(form), _members(other)
    if len(forms) == len(others) > 1:
        return all(
            any(same_family(_like(truth, f), _like(answer, o), same_form) for o in others) for f in forms
        )
    if not isinstance(form, Quantity) or not isinstance(other, Quantity):
        return same_form(form, other)
    mine, theirs = family_parameter(truth, form), family_parameter(answer, other)
    periodic = isinstance(truth, Family) or _is_angle(form)
    if mine is None or theirs is None or not periodic or form.tail != other.tail:
        return same_form(form, other)
    domains = [f.domain if isinstance(f, Family) else "" for f in (truth, answer)]
    return same_progression(form.node, mine, other.node, theirs, (domains[0], domains[1]))


def _same_row(truth: Form, answer: Form, form: Form, other: Form, same_form: SameForm) -> bool:
    """Whether two tuples, intervals or rows of named values run through the same ones: the whole
    number of one may be that of the other, shifted or with the other sign, in all parts.
    """
    if _is_ordered(form) != _is_ordered(other):
        return False
    if not isinstance(truth, Family) or not isinstance(answer, Family):
        return same_form(form, other)
    is_whole = truth.domain == answer.domain == "Z"
    if not is_whole and truth.domain != answer.domain:
        return False
    changes = [(sign, shift) for shift in _SHIFTS for sign in (1, -1)] if is_whole else [(1, 0)]
    mine = with_parameter(form, truth.parameter, _WHOLE, 1, 0)
    return any(
        same_form(mine, with_parameter(other, answer.parameter, _WHOLE, *change)) for change in changes
    )


def _member(form: Form) -> Form:
    """The form of a family for one number; x = a + bk as a + bk."""
    form = form.form if isinstance(form, Family) else form
    if isinstance(form, Relation) and (found := statement(form)) is not None and not found[0]:
        return read_answer(found[1])
    return form


def _members(form: Form) -> list[Form]:
    return list(form.items) if isinstance(form, Items) else both_signs(form)


def _name_of(form: Form) -> str | None:
    """x of x = 2k."""
    return equation_name(form.form if isinstance(form, Family) else form)


def _is_angle(form: Quantity) -> bool:
    return Node("const", ("pi",)) in walk(form.node) or form.tail.dimensions == (("degree", 1),)


def _domain_of(form: Form) -> str:
    """The whole numbers that a set of real numbers is confined to; "" where it is not."""
    return form.domain if isinstance(form, Family) else ""


def _is_ordered(form: Form) -> bool:
    return isinstance(form, Items) and form.brackets in ORDERED


def _like(model: Form, form: Form) -> Form:
    return replace(model, form=form) if isinstance(model, Family) else form
