r"""Reading a tidied answer: what kind of thing it is, in one form for all ways to write it.

`\{x \mid x>2\}`, `x > 2`, `2<x` and `(2,\infty)` are the same set of real numbers. Each kind has a
method that returns None where the text is of another kind; they are tried in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from fractions import Fraction

from sppo_ray.rewards.math import real_sets
from sppo_ray.rewards.math.clocks import read_clock
from sppo_ray.rewards.math.domains import domain_of, whole_numbers_in
from sppo_ray.rewards.math.evaluator import Number, TooLarge, Undefined, real
from sppo_ray.rewards.math.finished import leaves_work
from sppo_ray.rewards.math.forms import (
    Congruence,
    Family,
    Form,
    Items,
    Logic,
    Matrix,
    Named,
    Opaque,
    Quantity,
    Ratio,
    Reals,
    Relation,
    Words,
    as_region,
    both_signs,
)
from sppo_ray.rewards.math.listing import equation_name, flat, solutions
from sppo_ray.rewards.math.logic import COMMUTATIVE, in_words, is_enumeration, split_formula
from sppo_ray.rewards.math.nodes import Node, has_variables
from sppo_ray.rewards.math.quantities import (
    USUAL,
    Reading,
    is_number_word,
    read_compound,
    read_part,
    read_quantity,
)
from sppo_ray.rewards.math.real_sets import INFINITY, Interval, Region
from sppo_ray.rewards.math.syntax import connected, is_name, is_one_group, split_outside
from sppo_ray.rewards.math.text import unbraced
from sppo_ray.rewards.math.tokens import Unreadable, raise_if
from sppo_ray.rewards.math.units import NO_TAIL, read_tail
from sppo_ray.rewards.math.values import value_of, within
from sppo_ray.rewards.math.words import as_words

_RELATIONS = ("=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\notin", r"\approx")
_ORDERS = frozenset(["<", ">", r"\le", r"\ge", r"\ne"])
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})*,[0-9]{3}(?![0-9])(?!.*,[0-9]{3}(?![0-9]))")
_OTHER_SET_SIGNS = ("<", ">", r"\le", r"\ge")
_MODULO = re.compile(
    r"\\(?:pmod|pod|bmod|mod)(?![a-zA-Z])|\\text\{\s*mod(?:ulo)?\s*\}"
    r"|(?<![a-zA-Z\\])mod(?:ulo)?(?![a-zA-Z])"
)
_WHOLE_SET = r"\\mathbb\s*\{?\s*[ZN]\s*\}?(?:\s*(?:_|\^)\s*\{?[^{}\s]{1,4}\}?)?"
_FOR_ALL = re.compile(
    r",?\s*(?:\\quad\s*)?\(?\s*"
    r"(?:\\text\{\s*(?:,\s*)?(?:where|for|with)[a-z ]*\}|where|for all|for any|for|with|\\forall)?\s*"
    rf"([a-zA-Z])\s*(?:\\in\s*(?P<set>{_WHOLE_SET})"
    r"|(?P<words>\\text\{\s*(?:is|an|any|some|\\in|integers?|,| )*integers?[a-z ]*\}"
    r"|is an(?:y)? integer))\s*\)?$"
)
_ENVIRONMENT = re.compile(r"\\begin\{([a-zA-Z]*)(\*?)\}(?:\{[clr| ]*\})?")
_BRACKETED_ENVIRONMENT = re.compile(r"[(\[|]\s*(\\begin.*)[)\]|]", re.DOTALL)
_SYSTEMS = ("cases", "dcases", "aligned", "align", "gathered", "split")
_CONDITION = re.compile(r"\\text\{\s*,?\s*(?:if|for|when|where)?\s*\}|^\s*,?\s*\b(?:if|for|when|where)\b")
_IN = re.compile(r"^[A-Za-z]\s*\\in\s*")
_IN_REALS = re.compile(r",?\s*[a-zA-Z]\s*\\in\s*\\mathbb\{R\}\s*,?")
_ALL_REALS = re.compile(r"\\mathbb\s*\{R\}")
_REALS_WITHOUT = re.compile(r"\\mathbb\s*\{R\}\s*(?:-|\\backslash)\s*(\\\{.*\\\})")
_OUTWARD = re.compile(r"\].*,.*[\[\]]|[\[(\]].*,.*\[")
_MAY_BE_COMPLEX = re.compile(r"\|.*(?<![a-zA-Z\\])[zw](?![a-zA-Z]).*\|")
_BARRED_LETTER = re.compile(r"\|\s*([a-vxy](?:_\{?[0-9]\}?)?)\s*\|")
_DISTANCE = re.compile(r"\s*([A-Za-z])\s*(?:([-+])\s*([^-+]+))?")
_BRACKETS = (("(", ")", "()"), ("[", "]", "[]"), ("(", "]", "(]"), ("[", ")", "[)"), (r"\{", r"\}", "{}"))
_SIGNS_OF_WORDS = {"or": r"\lor", "and": r"\land"}
_UNKNOWNS = frozenset("xyztwrs")
"""x_1 and x_2 are solutions in any order."""
_ONE = Node("num", (Fraction(1), None))
_FAILURES = (Unreadable, TooLarge, Undefined, RecursionError, KeyError, OverflowError, ZeroDivisionError)


def read_answer(text: str, reading: Reading = USUAL) -> Form:
    """The form of a tidied answer; Opaque, and never an exception, where it cannot be read."""
    try:
        return _Reader(reading).read(text)
    except _FAILURES:
        return Opaque("".join(text.split()))


class _Reader:
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def read(self, text: str) -> Form:
        text = unbraced(text.strip())
        text = re.sub(r"^\\text\{\s*([-0-9.][^{}\\]*)\}$", r"\1", text).strip()  # \text{4:10 PM}
        raise_if(not text, "nothing")
        kinds = (
            self._family,
            read_clock,
            self._congruence,
            self._environment,
            self._logic,
            self._alternatives,
            self._set_builder,
            self._set_operation,
            self._relation,
            self._bracketed,
            self._ratio,
            _read_words,
            read_compound,
        )
        forms = (kind(text) for kind in kinds)
        return next((form for form in forms if form is not None), None) or read_quantity(text, self._reading)

    # -------------------------------------------------------------- families, congruences, matrices

    def _family(self, text: str) -> Form | None:
        match = _FOR_ALL.search(text)
        if match is None or match.start() == 0:
            return None
        form = self.read(text[: match.start()].rstrip(" ,;"))
        domain = domain_of(match["set"] or "", match.group())
        if isinstance(form, Reals) and form.name == match[1]:  # 1 \le n \le 3, n \in \mathbb{Z}
            return whole_numbers_in(form.region) or Family(form, match[1], domain)
        return Family(form, match[1], domain)

    def _congruence(self, text: str) -> Form | None:
        marks = list(_MODULO.finditer(text))
        if len(marks) != 1 or (r"\equiv" not in text and "=" not in text and marks[0].start() == 0):
            return None
        before = in_words(text[: marks[0].start()]).strip().rstrip("(").strip()
        modulus = unbraced(text[marks[0].end() :].strip().rstrip(")").strip()).lstrip("{").rstrip("}")
        left, _, right = before.rpartition(r"\equiv" if r"\equiv" in before else "=")
        residues = [part for _, part in split_outside(connected(right), ",", "or", "and")]
        return Congruence("".join(left.split()), tuple(map(self._node, residues)), self._node(modulus))

    def _node(self, text: str):
        return read_part(text, self._reading)

    def _environment(self, text: str) -> Form | None:
        """A matrix, or a system of equations."""
        bracketed = _BRACKETED_ENVIRONMENT.fullmatch(text)
        text = bracketed[1].strip() if bracketed else text
        match = _ENVIRONMENT.match(text)
        if match is None:
            return self._scaled_matrix(text)
        closes = rf"\end{{{match[1]}{match[2]}}}"
        end = text.find(closes)
        if end < 0 or text[end + len(closes) :].strip(" )]|"):
            return None
        rows = [row for _, row in split_outside(text[match.end() : end], "\\\\") if row]
        if "cases" in match[1] and any("&" in row for row in rows):
            return Matrix("cases", tuple(map(self._case, rows)))
        if match[1] in _SYSTEMS:
            equations = (split_outside(row.replace("&", " "), ",") for row in rows)
            parts = [part for row in equations for _, part in row if part]
            return self._listed(parts, ["and"] * len(parts))
        cells = tuple(tuple(self.read(cell) for _, cell in split_outside(row, "&")) for row in rows)
        raise_if(not cells or len({len(row) for row in cells}) != 1, "rows of different lengths")
        is_determinant = match[1].lower().startswith("v") or (bracketed and bracketed[0][0] == "|")
        return Matrix("v" if is_determinant else "", cells)

    def _scaled_matrix(self, text: str) -> Form | None:
        """A number before a matrix."""
        scalar, begin, rest = text.partition(r"\begin")
        if not begin or not scalar.strip(r" \cdotimes"):
            return None
        matrix = self._environment(begin + rest)
        if not isinstance(matrix, Matrix) or matrix.kind:
            return None
        scalar = scalar.strip()
        if scalar.endswith("=") and is_name(scalar[:-1].strip()):
            return matrix
        scalar = "-1" if scalar == "-" else scalar.removesuffix(r"\cdot").removesuffix(r"\times").strip()
        factor = self._node(scalar)
        rows = (tuple(_multiplied(factor, cell) for cell in row) for row in matrix.rows)
        return replace(matrix, rows=tuple(rows))

    def _case(self, row: str) -> tuple[Form, ...]:
        """A value and its condition."""
        value, *conditions = (part for _, part in split_outside(row, "&"))
        condition = _CONDITION.sub("", " ".join(conditions)).strip(" ,.;")
        return self.read(value.strip(" ,;")), self.read(condition) if condition else Words("otherwise")

    # ---------------------------------------------------------------------------------------- logic

    def _logic(self, text: str) -> Form | None:
        r"""A formula of logic, or solutions between \lor and \land."""
        formula = split_formula(text)
        if formula is None:
            return None
        if is_enumeration(formula):
            try:
                return self.read(in_words(text))
            except _FAILURES:  # of several variables, say: a formula of statements
                pass
        return self._operation(*formula)

    def _operation(self, sign: str, parts: Sequence[str]) -> Logic:
        forms = [read_answer(part, self._reading) for part in parts]
        inner = [
            form.parts if isinstance(form, Logic) and form.sign == sign and sign in COMMUTATIVE else (form,)
            for form in forms
        ]
        return Logic(sign, tuple(form for some in inner for form in some))

    # ---------------------------------------------------------------------------------------- lists

    def _alternatives(self, text: str) -> Form | None:
        """Several statements or values: with commas, "or" and "and"."""
        text = connected(text)
        groups = [part for _, part in split_outside(text, ";")]
        if len(groups) > 1 and all("," in group for group in groups):
            return flat("", [self.read(group) for group in groups])
        parts = self._parts(text)
        if len(parts) < 2 or any(not part for _, part in parts):
            return None
        return self._listed([part for _, part in parts], [sign for sign, _ in parts])

    def _parts(self, text: str) -> list[tuple[str, str]]:
        """The parts of a list and the sign before each; 12,500 is one part."""
        parts = split_outside(text, ",", ";", "or", "and", "\\\\")
        if not self._reading.grouped:
            return parts
        joined: list[tuple[str, str]] = []
        for sign, part in parts:
            together = f"{joined[-1][1]},{part}" if joined and sign == "," else ""
            if together and together in text and _THOUSANDS.search(together):
                joined[-1] = (joined[-1][0], together)
                continue
            joined.append((sign, part))
        return joined

    def _listed(self, parts: Sequence[str], signs: Sequence[str]) -> Form:
        """Several statements or values, and the sign before each: the solutions of one variable,
        the values of several, equations that all or alternatively hold, or else a list.
        """
        forms = self._with_repeated_name(parts, [self.read(part) for part in parts])
        if any(isinstance(form, Reals) for form in forms) and all(
            isinstance(form, (Reals, Relation)) for form in forms
        ):
            return _combined(forms, set(signs))
        words = {sign for sign in signs[1:] if sign in _SIGNS_OF_WORDS}
        names, brackets = [equation_name(form) for form in forms], "or" if "or" in words else ""
        values = [
            self.read(form.sides[-1]) if isinstance(form, Relation) and name else form
            for form, name in zip(forms, names, strict=True)
        ]
        if all(names):
            bases = {re.sub(r"_\{?[0-9]+\}?$", "", name) for name in names if name}
            numbered = bases.isdisjoint(_UNKNOWNS) and bases.isdisjoint(names)  # a_1, a_2 in their order
            if len(set(names)) == 1:
                return flat("or", values)
            if len(bases) == 1 and not (numbered and len(set(names)) == len(names)):
                return flat(brackets, values)
            if (found := solutions([name for name in names if name], values, signs)) is not None:
                return found
        if names[0] and not any(isinstance(form, Relation) for form in forms[1:]):  # x = 4, 9
            return flat(brackets, values)
        if words and all(isinstance(form, Relation) for form in forms):
            raise_if(len(words) > 1, "alternatives and conditions together")
            return Logic(_SIGNS_OF_WORDS[words.pop()], tuple(forms))
        return flat(brackets, forms)

    def _with_repeated_name(self, parts: Sequence[str], forms: list[Form]) -> list[Form]:
        r"""x \ne 1, 2 as x \ne 1, x \ne 2."""
        rest_is_plain = all(isinstance(form, Quantity) for form in forms[1:])
        if r"\ne" not in parts[0] or not isinstance(forms[0], Reals) or not rest_is_plain:
            return forms
        name = parts[0].partition(r"\ne")[0]
        return [forms[0], *(self.read(rf"{name}\ne {part}") for part in parts[1:])]

    # ----------------------------------------------------------------------------------------- sets

    def _set_builder(self, text: str) -> Form | None:
        r"""\{x \mid x > 2\}, \{x \in \mathbb{R} : x > 2\}."""
        if not (text.startswith(r"\{") and text.endswith(r"\}")):
            return None
        parts = split_outside(text[2:-2], "|", ":")
        if len(parts) != 2 or not re.match(r"[A-Za-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?$", parts[0][1]):
            return None
        form = self.read(_IN_REALS.sub("", parts[1][1]))
        return replace(form, name="") if isinstance(form, Reals) else form

    def _set_operation(self, text: str) -> Form | None:
        r"""Unions, intersections, differences, \mathbb{R} and what it lacks."""
        named, text = text, _IN.sub("", text)
        parts = [(s, part) for s, part in split_outside(text, r"\cup", r"\cap", r"\setminus") if s or part]
        if len(parts) == 1:
            without = _REALS_WITHOUT.fullmatch(text)
            if without:
                return Reals(real_sets.complement(self._region(without[1])))
            return Reals(real_sets.EVERYTHING) if _ALL_REALS.fullmatch(text) else None
        signs = {sign for sign, _ in parts[1:]}
        try:
            return self._combined_regions(parts)
        except (Unreadable, KeyError):  # A \cup B
            if len(signs) > 1 or named != text or not all(part for _, part in parts):
                raise
        return self._operation(*signs, [part for _, part in parts])

    def _combined_regions(self, parts: Sequence[tuple[str, str]]) -> Form:
        region = self._region(parts[0][1])
        for sign, part in parts[1:]:
            other = self._region(part)
            if sign == r"\cup":
                region = real_sets.union([*region, *other])
            else:
                other = real_sets.complement(other) if sign == r"\setminus" else other
                region = real_sets.intersection(region, other)
        return Reals(region)

    def _region(self, text: str) -> Region:
        region = as_region(self.read(text))
        if region is None:
            raise Unreadable("no set of real numbers")
        return region

    # ----------------------------------------------------------------------------------- statements

    def _relation(self, text: str) -> Form | None:
        parts = split_outside(text, *_RELATIONS)
        if len(parts) < 2:
            return None
        sides, signs = tuple(part for _, part in parts), tuple(sign for sign, _ in parts[1:])
        if not all(sides):
            return self._relation(text.strip("=")) if text.strip("=") != text else None
        if r"\in" in signs or r"\notin" in signs:
            return self._membership(sides, signs)
        if all(sign in ("=", r"\approx") for sign in signs):
            return self._equation(sides, signs)
        try:
            return self._inequality(sides, signs)
        except (Unreadable, KeyError, Undefined):
            return Relation(sides, signs)

    def _membership(self, sides: tuple[str, ...], signs: tuple[str, ...]) -> Form | None:
        if len(sides) != 2 or not is_name(sides[0]):
            return None
        form = self.read(sides[1])
        region = as_region(form)
        if region is None:
            has_name = isinstance(form, Quantity) and r"\mathbb" not in sides[1]  # x \in A
            return Relation(sides, signs) if has_name else form if signs[0] == r"\in" else None
        return Reals(real_sets.complement(region) if signs[0] == r"\notin" else region, sides[0])

    def _equation(self, sides: tuple[str, ...], signs: tuple[str, ...]) -> Form:
        """An equation without the approximation that follows an exact side; (x, y) = (1, 2) as the
        values of x and y.
        """
        exact = signs.index(r"\approx") + 1 if r"\approx" in signs else len(sides)
        if exact > 1 or not is_name(sides[0]):
            for one in sides[exact:]:
                self._refuse_false(sides[exact - 1], one)
            sides = sides[:exact]
        if len(sides) == 1:
            return self.read(sides[0])
        if len(sides) == 2 and (two := self._two_values(*sides)) is not None:
            return two
        first = unbraced(sides[0])
        if len(sides) == 2 and first.startswith("(") and first.endswith(")") and "," in first:
            names, values = [name.strip() for name in first[1:-1].split(",")], self.read(sides[1])
            is_tuple = isinstance(values, Items) and values.brackets == "()"
            if is_tuple and all(map(is_name, names)) and len(values.items) == len(names) == len(set(names)):
                return Named(tuple(names), values.items)
        return Relation(sides, ("=",) * (len(sides) - 1))

    def _refuse_false(self, exact: str, near: str) -> None:
        r"""`12 \approx 100` is no answer. What is no plain number is not judged."""
        try:
            one, other = self.read(exact), self.read(near)
            plain = all(isinstance(form, Quantity) and form.tail == NO_TAIL for form in (one, other))
            is_near = not plain or within(value_of(one.node), value_of(other.node), Fraction(1, 10))
        except (Unreadable, TooLarge, Undefined):
            return
        raise_if(not is_near or (isinstance(one, Words) and one != other), "a false approximation")

    def _two_values(self, side: str, value: str) -> Relation | None:
        r"""|x| = 3 as x = \pm 3; None of other equations. z and w may be complex."""
        inside = _BARRED_LETTER.fullmatch(side)
        form = read_answer(value, self._reading) if inside else None
        if not inside or not isinstance(form, Quantity) or form.tail != NO_TAIL or has_variables(form.node):
            return None
        positive = len(both_signs(form)) == 1 and real(value_of(form.node)) > 0
        return Relation((inside[1], rf"\pm ({value})"), ("=",)) if positive else None

    def _inequality(self, sides: tuple[str, ...], signs: tuple[str, ...]) -> Form:
        """A chain with one variable as a set of real numbers. Raises Unreadable for any other."""
        places = [n for n, side in enumerate(sides) if is_name(side) or re.fullmatch(r"\|.*\|", side)]
        bounded = len(places) == 1 and len(sides) <= 3 and _ORDERS.issuperset(signs)
        raise_if(not bounded, "no bounds of a variable")
        name, region = sides[places[0]], real_sets.EVERYTHING
        raise_if(_MAY_BE_COMPLEX.search(name) is not None, "a distance in the complex plane")
        for index, sign in enumerate(signs):
            raise_if(index not in (places[0] - 1, places[0]), "no bounds of a variable")
            on_left = index < places[0]
            bounds = self._bounds(sides[index] if on_left else sides[index + 1])
            raise_if(len(bounds) > 1 and sign != r"\ne", "two bounds")
            for bound in bounds:
                region = real_sets.intersection(region, _bounded_by(sign, bound, on_left=on_left))
        inside = re.fullmatch(r"\|(.*)\|", name)
        return self._distance(inside[1], region) if inside else Reals(region, name)

    def _bounds(self, text: str) -> list[Number]:
        forms = both_signs(read_quantity(text, self._reading))
        computed = [isinstance(form, Quantity) and leaves_work(_ONE, form.node) for form in forms]
        raise_if(any(computed), "a bound that is left to be worked out")
        tails = [form.tail for form in forms if isinstance(form, Quantity)]
        raise_if(any(tail != NO_TAIL for tail in tails), "a unit or words")
        return [value_of(form.node) for form in forms if isinstance(form, Quantity)]

    def _distance(self, inside: str, region: Region) -> Form:
        """|x - c| in a region."""
        match = _DISTANCE.fullmatch(inside)
        if match is None:
            raise Unreadable("no distance")
        center: Number = Fraction(0)
        if match[3]:
            center = value_of(self._node(match[3])) * (1 if match[2] == "-" else -1)
        distances = real_sets.intersection(region, (Interval(Fraction(0), True, INFINITY, False),))
        left = [Interval(-one.high, one.has_high, -one.low, one.has_low) for one in distances]
        moved = (
            Interval(_moved(one.low, center), one.has_low, _moved(one.high, center), one.has_high)
            for one in [*left, *distances]
        )
        return Reals(real_sets.union(moved), match[1])

    # ------------------------------------------------------------------------------------- brackets

    def _bracketed(self, text: str) -> Form | None:
        if text == r"\emptyset":
            return Items("{}", ())
        if _OUTWARD.fullmatch(text):  # ]0,1[
            first, last = {"]": "("}.get(text[0], text[0]), {"[": ")"}.get(text[-1], text[-1])
            text = first + text[1:-1] + last
        for opens, closes, brackets in _BRACKETS:
            if text.startswith(opens) and text.endswith(closes) and is_one_group(text):
                return self._items(text[len(opens) : -len(closes)].strip(), brackets)
        return None

    def _items(self, inner: str, brackets: str) -> Form | None:
        parts = [part for _, part in self._parts(inner) if part]
        if brackets == "()" and len(parts) == 1 and "," in inner:  # (3,125) is a point
            parts = [part for _, part in split_outside(inner, ",") if part]
        if len(parts) < 2 and brackets != "{}":
            raise_if(brackets != "()", "one value in square brackets")
            return None
        if brackets == "{}" and any(sign in inner for sign in _OTHER_SET_SIGNS):
            return None
        return flat(brackets, [self.read(part) for part in parts])

    def _ratio(self, text: str) -> Form | None:
        """3:4, 3 to 4."""
        parts = [part for _, part in split_outside(text, ":", "to")]
        if len(parts) == 1:
            parts = re.split(r"\s+to\s+", text)
        if len(parts) < 2 or not all(parts):
            return None
        return Ratio(tuple(read_quantity(part, self._reading) for part in parts))


def _multiplied(factor: Node, cell: Form) -> Form:
    if not isinstance(cell, Quantity):
        raise Unreadable("a number times what is no number")
    return replace(cell, node=Node("*", (factor, cell.node)))


def _read_words(text: str) -> Form | None:
    words = as_words(text)
    if words is None or is_number_word(words) or (text.casefold() == words and read_tail(text) is None):
        return None
    return Words(words)


def _combined(forms: Sequence[Form], signs: AbstractSet[str]) -> Form:
    """Inequalities of one variable together; with commas they are alternatives where nothing meets
    them all.
    """
    forms = [_as_point(form) for form in forms]
    regions = [form for form in forms if isinstance(form, Reals)]
    names = {form.name for form in regions} - {""}
    raise_if(len(regions) != len(forms), "an equation among inequalities")
    raise_if(len(names) > 1, "inequalities of several variables")
    raise_if({"or", "and"} <= set(signs), "alternatives and conditions together")
    raise_if(not all(form.region for form in regions), "a condition that nothing meets")
    both = regions[0].region
    for form in regions[1:]:
        both = real_sets.intersection(both, form.region)
    if "or" in signs or (not both and "and" not in signs):
        both = real_sets.union(interval for form in regions for interval in form.region)
    return Reals(both, next(iter(names), ""))


def _as_point(form: Form) -> Form:
    """x = 1 as the set of 1, beside inequalities."""
    if not isinstance(form, Relation) or equation_name(form) is None or len(form.sides) != 2:
        return form
    value = read_answer(form.sides[1])
    if not isinstance(value, Quantity) or value.tail != NO_TAIL:
        return form
    return Reals((real_sets.point(value_of(value.node)),), form.sides[0])


def _bounded_by(sign: str, bound: Number, *, on_left: bool) -> Region:
    """The numbers that stand in a relation to a bound, which stands on the left or on the right."""
    if sign == r"\ne":
        return real_sets.complement((real_sets.point(bound),))
    closed = sign in (r"\le", r"\ge")
    if (sign in ("<", r"\le")) != on_left:
        return (Interval(-INFINITY, False, bound, closed),)
    return (Interval(bound, closed, INFINITY, False),)


def _moved(number: Number, center: Number) -> Number:
    return number if number in (INFINITY, -INFINITY) else number + center
