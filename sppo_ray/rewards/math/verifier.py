"""The verdict on one response: what counts as its answer, what is no answer, and the comparison."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, Literal

from sppo_ray.rewards.base import BadGroundTruth
from sppo_ray.rewards.extract import last_boxed, last_boxes
from sppo_ray.rewards.math.compare import Comparison
from sppo_ray.rewards.math.finished import leaves_work
from sppo_ray.rewards.math.forms import Form, Items, Quantity
from sppo_ray.rewards.math.nodes import Node, has_variables, walk
from sppo_ray.rewards.math.question import Question
from sppo_ray.rewards.math.reader import read_answer
from sppo_ray.rewards.math.syntax import split_outside
from sppo_ray.rewards.math.text import tidy
from sppo_ray.rewards.math.words import (
    as_based,
    as_choice,
    as_choices,
    as_number,
    as_permutation,
    as_row_of_numbers,
    as_words,
    canonical_words,
    differ_in_case,
)
from sppo_ray.rewards.stated import last_stated

MAX_ANSWER_CHARS = 500
"""A longer answer is wrong unless the ground truth itself is at least half as long: no final answer
needs more.
"""

MAX_ANSWER_DEPTH = 30
"""Brackets and braces inside one another."""

Verdict = tuple[float, str]

_UNEVALUATED = re.compile(
    r"\\(sum|prod|coprod|i*int|oint|lim|limsup|liminf|gcd|lcm|det|max|min|bmod|pmod)(?![a-zA-Z])"
    r"|\\frac\s*\{\s*d(?:\^\d)?\s*\}\s*\{\s*(?:\\,|\s)*d|(?:gcd|lcm)\s*\("
)
_CHOICE_LETTER = re.compile(r"\(?\s*[A-J]\s*\)?")
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_CURRENCY = re.compile(r"\\text\{ (?:dollar|euro|sterling|rupee|yuan) \}$")
_GSM8K = re.compile(r"####\s*([^\n]+?)\s*$")


def make_math_verifier(
    extract: Literal["boxed", "last"] = "boxed",
) -> Callable[[str, str, Mapping[str, Any]], Verdict]:
    """The verifier for `reward.function.extract`: see `verify_math`."""

    def verify(response: str, ground_truth: str, extra: Mapping[str, Any]) -> Verdict:
        return verify_math(response, ground_truth, extra, extract=extract)

    return verify


def verify_math(
    response: str, ground_truth: str, extra: Mapping[str, Any], *, extract: Literal["boxed", "last"] = "boxed"
) -> Verdict:
    r"""1 when the answer of the response means the same as the ground truth, else 0.

    The answer is the last \boxed{}; with `extract="last"`, what is stated last where there is no
    box. Reasons: correct, wrong, no_answer, too_long, too_deep, unevaluated. Raises BadGroundTruth
    for an empty ground truth.
    """
    truth = _truth(ground_truth)
    found = answer_of(response, extract)
    if found is None:
        return 0.0, "no_answer"
    # most answers: no reading is needed
    if _INTEGER.fullmatch(truth) and _INTEGER.fullmatch(found):
        return (1.0, "correct") if int(truth) == int(found) else (0.0, "wrong")
    if found == truth:
        return 1.0, "correct"
    if len(found) > max(MAX_ANSWER_CHARS, 2 * len(truth)):
        return 0.0, "too_long"
    if _depth(found) > MAX_ANSWER_DEPTH:
        return 0.0, "too_deep"
    question = Question(str(extra.get("prompt", "")))
    if is_computation(truth, found):
        return 0.0, "unevaluated"
    if is_equivalent(truth, found, question) or _together(response, truth, question):
        return 1.0, "correct"
    return 0.0, "wrong"


def try_truth(ground_truth: str, extra: Mapping[str, Any]) -> None:
    """Read a ground truth and compare it with itself. Raises what that raises when the ground truth
    is at fault.
    """
    truth = tidy(_truth(ground_truth))
    Comparison().same(truth, truth)


def answer_of(response: str, extract: Literal["boxed", "last"] = "boxed") -> str | None:
    """The text of a response's answer; None when it has none."""
    return last_boxed(response) if extract == "boxed" else last_boxed(response) or last_stated(response)


def answer(response: str) -> str | None:
    r"""The last \boxed{} as text in one form for each plain number: tidied, without white space,
    "1,000.0" as "1000".

    Equal expressions in unlike forms (\frac{1}{2} and 0.5) stay apart: comparing each pair of
    responses costs too much. What is too long for an answer stays as it is.
    """
    boxed = last_boxed(response)
    if boxed is None or len(boxed) > MAX_ANSWER_CHARS:
        return boxed
    text = "".join(_CURRENCY.sub("", tidy(boxed)).split())
    number = as_number(text)
    return text if number is None else str(number)


def is_equivalent(truth: str, found: str, question: Question) -> bool:
    """Whether an answer means the same as a ground truth."""
    truth, found = tidy(truth), tidy(found)
    decided = _decide_as_text(truth, found, question)
    return Comparison(question).same(truth, found) if decided is None else decided


def is_computation(truth: str, found: str) -> bool:
    """Whether an answer leaves to the verifier what was asked: 12345 \\cdot 6789, a sum, a limit,
    where the truth is a value.
    """
    last = split_outside(found, "=")[-1][1]
    if _UNEVALUATED.search(last) and r"\equiv" not in found:
        return not _UNEVALUATED.search(truth) and as_words(tidy(truth)) is None
    try:
        expected, given = (read_answer(tidy(text)) for text in (truth, last))
    except RecursionError:
        return False
    return (
        isinstance(expected, Quantity)
        and isinstance(given, Quantity)
        and not has_variables(given.node)
        and leaves_work(expected.node, given.node)
    )


def _truth(ground_truth: str) -> str:
    truth = ground_truth if "\\boxed" not in ground_truth else last_boxed(ground_truth) or ""
    marked = _GSM8K.search(truth)
    truth = (marked[1] if marked else truth).strip()
    if not truth:
        raise BadGroundTruth("the ground truth is empty")
    return truth


def _together(response: str, truth: str, question: Question) -> bool:
    """Whether the boxes that end the response are together the list or the tuple that the truth
    is.
    """
    form = read_answer(tidy(truth))
    if not isinstance(form, Items) or len(form.items) < 2 or form.brackets not in ("", "()", "{}"):
        return False
    boxes = last_boxes(response, len(form.items), alternatives=form.brackets != "()")
    if not boxes or any(len(box) > MAX_ANSWER_CHARS or _depth(box) > MAX_ANSWER_DEPTH for box in boxes):
        return False
    if form.brackets == "()" and any(map(_is_infinite, form.items)):
        return False  # an interval is more than its ends
    opens, closes = {"()": "()", "{}": (r"\{", r"\}")}.get(form.brackets, ("", ""))
    named = all("=" in box for box in boxes)
    together = ", ".join(boxes)
    return is_equivalent(truth, together if named else f"{opens}{together}{closes}", question)


def _is_infinite(form: Form) -> bool:
    return isinstance(form, Quantity) and Node("const", ("inf",)) in walk(form.node)


def _decide_as_text(truth: str, found: str, question: Question) -> bool | None:
    """The verdict where no form is needed, None elsewhere."""
    if truth == found:
        return True
    true_number, number = as_number(truth), as_number(found)
    if true_number is not None and number is not None and true_number.denominator == number.denominator == 1:
        return true_number == number
    if (row := as_row_of_numbers(truth)) is not None:
        return row == as_row_of_numbers(found)
    words = as_words(truth)
    if words is not None and differ_in_case(truth, found):
        return False
    if words is not None or _CHOICE_LETTER.fullmatch(truth):
        known = words if words is not None else canonical_words(truth)
        if known in (canonical_words(found), (as_choice(found, question.quotes) or "").casefold()):
            return True
        if len(known) == 1:
            return False
    if (letter := as_choice(truth)) is not None and canonical_words(found) == letter.casefold():
        return True  # the truth is a letter with its text
    choices, ticked = as_choices(truth), as_choices(found)
    if choices is not None and ticked is not None:
        # Another order than the alphabet's is one of its own, and so is a row of letters: CBA.
        in_a_row = "".join(ticked) in found.replace(" ", "")
        ordered = in_a_row or list(choices) != sorted(choices)
        return ticked == choices if ordered else sorted(ticked) == list(choices)
    if (permutation := as_permutation(truth)) is not None:
        return permutation == as_permutation(found)
    true_based, based = as_based(truth), as_based(found)
    if true_based and based and (true_based[1] or based[1]):
        known = based[1] in (None, true_based[1]) or (true_based[1] is None and question.asks_base(based[1]))
        return true_based[0] == based[0] and known
    return None


def _depth(text: str) -> int:
    changes = ((c in "([{") - (c in ")]}") for c in text)
    return max(accumulate(changes), default=0)
