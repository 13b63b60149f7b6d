"""Whether an answer means the same as the ground truth. Not symmetric: the ground truth sets the
form.

The rules are in docs/verifiers.md. What no rule decides is different.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from sppo_ray.rewards.math import real_sets
from sppo_ray.rewards.math.clocks import as_ratio, same_time
from sppo_ray.rewards.math.evaluator import TooLarge, Undefined
from sppo_ray.rewards.math.families import are_families, same_family
from sppo_ray.rewards.math.finished import leaves_work
from sppo_ray.rewards.math.forms import (
    ORDERED,
    Clock,
    Congruence,
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
    are_unlike,
    as_region,
    both_signs,
    only_member,
)
from sppo_ray.rewards.math.logic import COMMUTATIVE, is_formula, with_signs
from sppo_ray.rewards.math.nodes import Node, has_variables, walk
from sppo_ray.rewards.math.progressions import as_congruence, same_congruence
from sppo_ray.rewards.math.quantities import Reading
from sppo_ray.rewards.math.question import Question
from sppo_ray.rewards.math.reader import read_answer
from sppo_ray.rewards.math.rounding import places_of, rounds_to
from sppo_ray.rewards.math.statements import (
    has_value,
    is_statement_about,
    last_side,
    may_equal,
    same_equation,
    same_inequality,
    statement,
)
from sppo_ray.rewards.math.syntax import is_name
from sppo_ray.rewards.math.units import NO_TAIL, Tail
from sppo_ray.rewards.math.values import same_value, value_of, within
from sppo_ray.rewards.math.words import as_number

RELATIVE_TOLERANCE = Fraction(1, 1_000_000)
"""Of a decimal ground truth, which was rounded somewhere."""
_VERDICTS = frozenset([
    "yes", "no", "true", "false", "positive", "negative", "even", "odd", "up", "down", "always", "never",
    "sometimes", "correct", "incorrect", "increasing", "decreasing", "increase", "decrease", "increases",
    "decreases", "rational", "irrational",
])  # fmt: skip
"""Words that answer several questions in their order."""
_ZERO, _ONE = (Node("num", (Fraction(number), None)) for number in (0, 1))
_DEGREES = Node("/", (Node("num", (Fraction(180), None)), Node("const", ("pi",))))
_CONSTANT = re.compile(r"\+\s*(c|K|k|C_\{?[0-9]\}?)$")
_INFINITE = Node("const", ("inf",))
_FAILURES = (TooLarge, Undefined, KeyError, RecursionError, OverflowError, ZeroDivisionError)


class Comparison:
    """Compares answers to a question with its truth."""

    def __init__(self, question: Question | None = None) -> None:
        self._question = question or Question()

    def same(self, truth: str, answer: str) -> bool:
        """Whether a tidied answer means the same as a tidied truth, in any reading of both."""
        answer = self._with_constant_of(truth, answer)
        return any(self._same_reading(*pair) for pair in _readings(truth, answer))

    def _with_constant_of(self, truth: str, answer: str) -> str:
        """The answer with the truth's constant of integration: x^2 + c beside x^2 + C."""
        constant = _CONSTANT.search(answer)
        if constant is None or not truth.endswith("C") or not re.search(r"\+\s*C$", truth):
            return answer
        is_given = constant[1] in truth or self._question.has_letter(constant[1])
        return answer if is_given else f"{answer[: constant.start(1)]}C"

    def _same_reading(self, truth: Form, answer: Form) -> bool:
        try:
            return self.same_form(truth, answer)
        except _FAILURES:
            return truth == answer

    def same_form(self, truth: Form, answer: Form, *, inside: bool = False) -> bool:
        """Whether two forms are the same.

        `inside` a tuple, an interval or a matrix, a decimal may stand for the exact number that it
        rounds. Raises TooLarge, Undefined and the like where a value cannot be worked out.
        """
        if isinstance(truth, Logic) or isinstance(answer, Logic):
            return self._same_logic(truth, answer)
        if isinstance(truth, Relation):
            return self._same_relation(truth, answer)
        if isinstance(answer, Relation):
            return self._states(truth, answer)
        if isinstance(truth, Congruence) or isinstance(answer, Congruence):
            if _is_computed(answer) and not _is_computed(truth):
                return False
            truth, answer = as_congruence(truth), as_congruence(answer)
        if are_families(truth, answer, self._question):
            return same_family(truth, answer, self.same_form)
        truth, answer = _alike(truth, answer, is_ratio=self._question.asks_ratio)
        if isinstance(truth, Quantity) and isinstance(answer, Quantity):
            return self._same_quantity(truth, answer, inside=inside)
        if isinstance(truth, Items):
            return self._same_items(truth, answer)
        if isinstance(truth, Named):
            return self._same_named(truth, answer)
        if isinstance(truth, Reals):
            return _same_region(truth, answer)
        if isinstance(truth, Matrix) and isinstance(answer, Items) and answer.brackets == "()":
            column = _as_column(truth) if len(truth.rows) > 1 else None
            return column is not None and self._in_order(column, answer.items, inside=True)
        if isinstance(truth, Matrix) and isinstance(answer, Matrix) and truth.kind == "cases":
            return answer.kind == "cases" and self._same_cases(truth.rows, answer.rows)
        if isinstance(truth, Matrix) and isinstance(answer, Matrix):
            return truth.kind == answer.kind and self._same_rows(truth.rows, answer.rows)
        if isinstance(truth, Clock) and isinstance(answer, Clock):
            return same_time(truth, answer)
        if isinstance(truth, Ratio) and isinstance(answer, Ratio):
            return _same_ratio(truth, answer)
        if isinstance(truth, Congruence) and isinstance(answer, Congruence):
            return same_congruence(truth, answer)
        return truth == answer  # words, and what cannot be read

    # ----------------------------------------------------------------------------------- quantities

    def _same_quantity(self, truth: Quantity, answer: Quantity, *, inside: bool) -> bool:
        if leaves_work(truth.node, answer.node, inside=inside):
            return False
        if _in_radians(truth, answer):
            answer = _in_degrees(answer, truth.tail)
        elif _in_radians(answer, truth):
            truth = _in_degrees(truth, answer.tail)
        if not self._same_meaning(truth, answer):
            return False
        factors = self._tail_factors(truth, answer.tail)
        if answer.tail.scale in self._question.scales:  # 5 dozen is 5, where dozens are asked for
            factors += [factor / answer.tail.scale for factor in factors]
        matrices = self._question.is_about_matrices
        return any(
            _same_node(truth.node, _times(answer.node, factor), inside=inside, matrices=matrices)
            for factor in factors
        )

    def _same_meaning(self, truth: Quantity, answer: Quantity) -> bool:
        """Whether the answer adds no word to the truth's that could change the value, leaves none
        out that is known to (or could, behind a variable), and exchanges none.
        """
        needed = truth.tail.unknown if has_variables(truth.node) else truth.tail.changing
        added, left_out = answer.tail.unknown - truth.tail.words, needed - answer.tail.words
        harmless = self._question.counted | (
            self._question.named - truth.tail.changing - answer.tail.changing
        )
        if (added or left_out) and not added | left_out <= harmless:
            return False
        return _same_words(truth.tail.words, answer.tail.words)

    def _tail_factors(self, due: Quantity, answer: Tail) -> list[Fraction]:
        """What the answer's number is multiplied by to stand beside the truth's; [] where their
        units or percent signs differ. The percent sign of a number may be left out.
        """
        truth = due.tail
        if answer.shorthand and not truth.has_unit:
            return []
        asked = self._question.unit
        if answer.has_unit and not truth.has_unit and asked not in (None, (answer.factor, answer.dimensions)):
            return []  # 18 cents, where dollars are asked for
        scale = answer.scale / truth.scale
        if truth.has_unit and answer.has_unit:
            if truth.dimensions != answer.dimensions:
                return []
            scale *= answer.factor / truth.factor
        elif 1 not in (answer.factor, truth.factor) or (answer.factor != 1 and not answer.has_unit):
            scale *= answer.factor / truth.factor  # cm/m
        elif (truth.has_unit and answer.words) or (answer.has_unit and truth.words):
            return []  # 5 acres is not 5 boxes
        if truth.percent == answer.percent:
            return [scale]
        if truth.words or answer.words or truth.has_unit or answer.has_unit:
            return []  # 40% of them is not 0.4, and 25% is not 25 cents
        if not self._question.asks_percentage:
            is_number = not has_variables(due.node)
            return [scale * 100, *([scale] * is_number)] if truth.percent else [scale / 100]
        if truth.percent:
            return [scale * 100, scale]
        # a truth of 25 is 25 percent here, and not 2500 percent
        is_percentage = due.node.op == "num" and abs(due.node.args[0]) >= 1
        return [scale] if is_percentage else [scale / 100, scale]

    def _same_logic(self, truth: Form, answer: Form) -> bool:
        """Whether two formulas are built alike, up to the order of parts that have none. Equations
        with commas between them are joined by either word.
        """
        truth, answer = _joined_like(answer, truth), _joined_like(truth, answer)
        if not isinstance(truth, Logic) or not isinstance(answer, Logic):
            return False
        if truth.sign != answer.sign or len(truth.parts) != len(answer.parts):
            return False
        left = list(answer.parts)
        for part in truth.parts:
            candidates = left if truth.sign in COMMUTATIVE else left[:1]
            found = next((one for one in candidates if self.same_form(part, one)), None)
            if found is None:
                return False
            left.remove(found)
        return True

    # ------------------------------------------------------------------------------------ sequences

    def _same_items(self, truth: Items, answer: Form) -> bool:
        if isinstance(answer, Reals):
            points = all(one.low == one.high for one in answer.region)
            region = as_region(truth) if truth.brackets in ORDERED or points else None
            return region is not None and real_sets.same_region(region, answer.region)
        if isinstance(answer, Named):
            return truth.brackets not in ("{}", "or") and self._in_order(truth.items, answer.in_order)
        if isinstance(answer, Matrix):
            column = _as_column(answer)
            return truth.brackets == "()" and column is not None and self._in_order(truth.items, column)
        if not isinstance(answer, Items):
            member = only_member(truth)
            return member is not None and self.same_form(member, answer)
        if truth.brackets in ORDERED or answer.brackets in ORDERED:
            alike = truth.brackets == answer.brackets or {truth.brackets, answer.brackets} == {"()", ""}
            return alike and self._in_order(truth.items, answer.items, inside=True)
        if truth.brackets != answer.brackets and (are_unlike(truth) or are_unlike(answer)):
            return False  # 2 apples and 3 pears, 2 apples or 3 pears
        # 1, 2, ..., n; yes, no, yes
        if any(isinstance(item, Opaque) or _is_verdict(item) for item in (*truth.items, *answer.items)):
            return self._in_order(truth.items, answer.items)
        if are_unlike(truth) != are_unlike(answer):  # 30 km/h, 2 h: without units, the order tells
            return self._in_order(truth.items, answer.items)
        return self._same_members(truth.items, answer.items)

    def _same_members(self, truths: Sequence[Form], answers: Sequence[Form]) -> bool:
        """In any order; as often as in the truth, where it names one twice."""
        if not truths or not answers:
            return not truths and not answers
        matches = [[self._same_member(truth, answer) for answer in answers] for truth in truths]
        if not all(map(any, matches)) or not all(map(any, zip(*matches, strict=True))):
            return False
        counts = [sum(self._same_member(truth, other) for other in truths) for truth in truths]
        return max(counts, default=0) < 2 or counts == [sum(row) for row in matches]

    def _same_member(self, truth: Form, answer: Form) -> bool:
        nested = [isinstance(form, Items) and form.brackets == "{}" for form in (truth, answer)]
        return nested[0] == nested[1] and self.same_form(truth, answer)

    def _in_order(self, truths: Sequence[Form], answers: Sequence[Form], *, inside: bool = False) -> bool:
        return len(truths) == len(answers) and all(
            self.same_form(truth, answer, inside=inside)
            for truth, answer in zip(truths, answers, strict=True)
        )

    def _same_named(self, truth: Named, answer: Form) -> bool:
        by_name = [value for _, value in truth.by_name]
        if isinstance(answer, Named):
            alike = sorted(truth.names) == sorted(answer.names)
            return alike and self._in_order(by_name, [value for _, value in answer.by_name])
        if not isinstance(answer, Items) or answer.brackets not in ("()", ""):
            return False
        as_given = answer.brackets == "" and self._in_order(truth.values, answer.items)
        return as_given or self._in_order(truth.in_order, answer.items)

    def _same_rows(self, truth: Sequence[Sequence[Form]], answer: Sequence[Sequence[Form]]) -> bool:
        return len(truth) == len(answer) and all(
            self._in_order(row, other, inside=True) for row, other in zip(truth, answer, strict=True)
        )

    def _same_cases(self, truth: Sequence[Sequence[Form]], answer: Sequence[Sequence[Form]]) -> bool:
        """The same values under the same conditions, in any order."""
        return len(truth) == len(answer) and all(
            any(self._in_order(row, other) for other in answer) for row in truth
        )

    # ----------------------------------------------------------------------------------- statements

    def _states(self, truth: Form, answer: Relation) -> bool:
        """Whether an equation says that its last side is the truth: x = 6, f(2) = 6, 2 + 4 = 6.

        The other sides must have that value too, as far as it can be worked out.
        """
        found = statement(answer)
        if found is None:
            return False
        between, last = found
        form = read_answer(last)
        return self.same_form(truth, form) and all(self._side_is(side, form) for side in between)

    def _side_is(self, side: str, value: Form) -> bool:
        reading = read_answer(side)
        if not has_value(reading) and (verdict := may_equal(side, value)) is not None:
            return verdict
        return self.same_form(reading, value) or self.same_form(value, reading)

    def _same_relation(self, truth: Relation, answer: Form) -> bool:
        if not isinstance(answer, Relation):
            value = last_side(truth)
            return value is not None and self.same_form(read_answer(value), answer)
        if set(truth.signs) != {"="} or set(answer.signs) != {"="}:
            return same_inequality(truth, answer, self._same_side)
        if is_statement_about(truth, answer):
            return self._states(read_answer(truth.sides[-1]), answer)
        if len(truth.sides) == 2 and is_name(truth.sides[0]) and has_value(read_answer(truth.sides[1])):
            return False  # x = 5 is a value: 2x = 10 is the question
        return same_equation(truth, answer)

    def _same_side(self, truth: str, answer: str) -> bool:
        forms = read_answer(truth), read_answer(answer)
        return all(isinstance(form, Quantity) for form in forms) and self.same_form(*forms)


# ----------------------------------------------------------------------------------------- readings


def _readings(truth: str, answer: str) -> list[tuple[Form, Form]]:
    """Pairs of readings of texts that have several.

    Letters are units where only the other side has one (3 h against 3 hours), or variables on both
    sides; 1,234 is also two numbers; 1,5 is a decimal beside a decimal.
    """
    if any(map(is_formula, (truth, answer))):
        truth, answer = with_signs(truth), with_signs(answer)
    first = read_answer(truth), read_answer(answer)
    pairs = [first]
    if _has_unit(first[0]) != _has_unit(first[1]):
        letters = Reading(letters=True)
        pair = read_answer(truth, letters), read_answer(answer, letters)
        pairs += [pair] if _has_unit(pair[0]) and _has_unit(pair[1]) else []
    if len(pairs) == 1 and _has_unit(first[0]) != _has_unit(first[1]):
        algebra = Reading(units=False)
        pair = read_answer(truth, algebra), read_answer(answer, algebra)
        pairs += [pair] if not _has_unit(pair[0]) and not _has_unit(pair[1]) else []
    if re.search(r"[0-9],[1-9][0-9]{2}(?![0-9])", f"{truth} {answer}") and ",0" not in truth + answer:
        ungrouped = Reading(grouped=False)
        pairs.append((read_answer(truth, ungrouped), read_answer(answer, ungrouped)))
    if (decimal := _decimal_comma(answer, beside=truth)) is not None:
        pairs.append((first[0], read_answer(decimal)))
    if truth.startswith(("0,", "-0,")) and (decimal := _decimal_comma(truth, beside=answer)) is not None:
        pairs.append((read_answer(decimal), first[1]))
    return pairs


def _has_unit(form: Form) -> bool:
    return isinstance(form, Quantity) and form.tail.has_unit


def _decimal_comma(text: str, *, beside: str) -> str | None:
    """1,5 as 1.5, where a decimal stands beside it. 1,234 is a thousand and more."""
    number = as_number(beside)
    comma = re.fullmatch(r"(-?[0-9]+),([0-9]{1,2}|[0-9]{4,})", text)
    if comma is None or number is None or number.denominator == 1:
        return None
    return f"{comma[1]}.{comma[2]}"


def _alike(truth: Form, answer: Form, *, is_ratio: bool) -> tuple[Form, Form]:
    r"""Both in one kind, where a thing has two.

    A sum with \pm is a list, the only member of a set is that member, a ratio of two parts is a
    fraction, and a time of day is a ratio beside one.
    """
    truth, answer = (
        Items("", tuple(both_signs(f))) if len(both_signs(f)) > 1 else f for f in (truth, answer)
    )
    pairs = ((truth, answer), (answer, truth))
    truth, answer = (_without_clock(form, beside, is_ratio=is_ratio) for form, beside in pairs)
    return _as_kind_of(answer, truth), _as_kind_of(truth, answer)


def _without_clock(form: Form, beside: Form, *, is_ratio: bool) -> Form:
    """A time of day as a ratio beside a ratio or a fraction."""
    is_fraction = isinstance(beside, Quantity) and beside.node.op == "/"
    is_beside_one = is_fraction or (isinstance(beside, Ratio) and len(beside.parts) == 2)
    if not isinstance(form, Clock) or not is_beside_one:
        return form
    return as_ratio(form, is_ratio=is_ratio) or form


def _as_kind_of(model: Form, form: Form) -> Form:
    if isinstance(model, Quantity) and isinstance(form, Items):
        return only_member(form) or form
    if isinstance(model, Quantity) and isinstance(form, Ratio) and model.node.op == "/":
        parts = [part for part in form.parts if isinstance(part, Quantity)]
        is_fraction = len(parts) == len(form.parts) == 2 and parts[0].tail == parts[1].tail
        return Quantity(Node("/", tuple(part.node for part in parts))) if is_fraction else form
    return form


def _joined_like(model: Form, form: Form) -> Form:
    r"""Equations with commas between them, joined by the \lor or \land of the other side."""
    if not isinstance(model, Logic) or model.sign not in (r"\lor", r"\land") or not isinstance(form, Items):
        return form
    listed = form.brackets == "" and all(isinstance(item, Relation) for item in form.items)
    return Logic(model.sign, form.items) if listed else form


# ------------------------------------------------------------------------------------------- values


def _times(node: Node, factor: Fraction) -> Node:
    return node if factor == 1 else Node("*", (node, Node("num", (factor, None))))


def _same_node(truth: Node, answer: Node, *, inside: bool, matrices: bool) -> bool:
    """Exact against exact is compared exactly; with a decimal, to one part in a million or to its
    digits.
    """
    try:
        if same_value(truth, answer, matrices=matrices):
            return True
    except (TooLarge, Undefined):
        return truth == answer
    places, answer_places = places_of(truth), places_of(answer)
    if has_variables(truth) or has_variables(answer) or (places is None and not (inside and answer_places)):
        return False
    expected, given = value_of(truth), value_of(answer)
    if places is not None and within(expected, given, RELATIVE_TOLERANCE):
        return True
    return rounds_to(expected, given, places, answer_places, inside=inside)


def _in_radians(degrees: Quantity, radians: Quantity) -> bool:
    """Whether one angle is given in degrees and the other in radians, named or with pi."""
    if degrees.tail.dimensions != (("degree", 1),):
        return False
    named = radians.tail.dimensions == (("radian", 1),)
    return named or (radians.tail == NO_TAIL and Node("const", ("pi",)) in walk(radians.node))


def _in_degrees(angle: Quantity, tail: Tail) -> Quantity:
    return Quantity(Node("*", (angle.node, _DEGREES)), replace(angle.tail, dimensions=tail.dimensions))


def _same_words(truth: frozenset[str], answer: frozenset[str]) -> bool:
    return not truth or not answer or truth <= answer or answer <= truth


# ------------------------------------------------------------------------------------------- others


def _same_region(truth: Reals, answer: Form) -> bool:
    region = None if isinstance(answer, Items) and answer.brackets == "" else as_region(answer)
    if region is None:
        return False
    named = isinstance(answer, Reals) and truth.name and answer.name and truth.name != answer.name
    return not named and real_sets.same_region(truth.region, region)


def _same_ratio(truth: Ratio, answer: Ratio) -> bool:
    """3:4 and 6:8 are the same ratio."""
    mine = [part.node for part in truth.parts if isinstance(part, Quantity)]
    theirs = [part.node for part in answer.parts if isinstance(part, Quantity)]
    if not len(mine) == len(theirs) == len(truth.parts) == len(answer.parts):
        return False
    tails = [[part.tail for part in ratio.parts if isinstance(part, Quantity)] for ratio in (truth, answer)]
    if any(len(set(some)) > 1 for some in tails) and tails[0] != tails[1]:  # 3 kg : 4 g
        return False
    if any(leaves_work(_ONE, part) for part in theirs) and not any(leaves_work(_ONE, part) for part in mine):
        return False
    if any(part == _ZERO or _INFINITE in walk(part) for part in (*mine, *theirs)):
        return mine == theirs
    crossed = zip(mine[1:], theirs[1:], strict=True)
    return all(same_value(Node("*", (mine[0], other)), Node("*", (theirs[0], one))) for one, other in crossed)


def _is_computed(form: Form) -> bool:
    """Whether a congruence has a number that is more than a numeral or a fraction: 7^{100}."""
    nodes = (*form.residues, form.modulus) if isinstance(form, Congruence) else ()
    return any(
        not has_variables(node) and any(part.op not in ("num", "neg", "/") for part in walk(node))
        for node in nodes
    )


def _is_verdict(form: Form) -> bool:
    return isinstance(form, Words) and form.text in _VERDICTS


def _as_column(matrix: Matrix) -> tuple[Form, ...] | None:
    if matrix.kind or not matrix.rows:
        return None
    if all(len(row) == 1 for row in matrix.rows):
        return tuple(row[0] for row in matrix.rows)
    return tuple(matrix.rows[0]) if len(matrix.rows) == 1 else None
