r"""Verifier of mathematical answers: the last \boxed{} compared with the ground truth by Math-Verify.

Math-Verify's own timeout is SIGALRM, which works in a main thread only and turns a timeout into "not equal". It is
switched off here: the deadline is the process's (`sppo_ray.rewards.pool`). Five things are decided before algebra,
because Math-Verify alone is wrong or slow on them: plain numbers (0.0000672 is not 0.0000671), text (even is not
neve), number bases (52_8 is not 52_9), units (5 cm is not 5 m; 2t is not 2), and tuples (no sets). An answer that leaves
the work to the verifier (a sum, product, integral or limit where the ground truth has none) is not an answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, I

from sppo_ray.rewards.answer_text import as_based, as_choice, as_number, as_words, canonical_words, same_number, tidy
from sppo_ray.rewards.extract import last_boxed
from sppo_ray.rewards.units import converted, in_dollars, split_unit

MAX_ANSWER_CHARS = 500
"""A longer answer is wrong unless the ground truth itself is at least half as long: no final answer needs more."""

MAX_ANSWER_DEPTH = 30
"""Brackets and braces inside one another; the parser's time grows exponentially with them."""

_UNEVALUATED = re.compile(r"\\(sum|prod|coprod|i*int|oint|lim|limsup|liminf)(?![a-zA-Z])")
_CHOICE_LETTER = re.compile(r"\(?\s*[A-J]\s*\)?")
_TUPLE = re.compile(r"(?:\\left\s*)?\([^()]*,[^()]*\)")
_SET = re.compile(r"(?:\\left\s*)?\\\{[^{}]*,.*\\\}", re.DOTALL)
_LATEX = (
    LatexExtractionConfig(
        try_extract_without_anchor=False,
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last", equations=False
        ),
    ),
)
_WARM_UP = (  # one of each shape: the parser builds its tables as it meets them
    (r"\frac{1}{2}", "0.51"),
    ("(1,2]", "[1,2]"),
    (r"x^2+\sqrt{3}", r"\sqrt{3}+2x"),
    ("1,-2", r"\{-2,1\}"),
    ("y=2x+3", "2y=4x+6"),
    (r"2\sqrt{13}", r"\sqrt[3]{52}"),
    (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3"),
    (r"\begin{pmatrix} 1/5 \\ -2 \end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}"),
    (r"\left(3,\frac{\pi}{2}\right)", r"(3,90^\circ)"),
    (r"6-5i", r"1\pm\sin x"),
)
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeout is off, which is meant


def verify_math(response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
    r"""1 when the last \boxed{} of the response equals the ground truth, else 0.

    Reasons: correct, wrong, no_answer, too_long, too_deep, unevaluated. Raises ValueError for an empty ground
    truth, and whatever Math-Verify raises while it compares: a failure to decide is not a wrong answer.
    """
    truth = ground_truth if "\\boxed" not in ground_truth else last_boxed(ground_truth) or ""
    if not truth.strip():
        raise ValueError("the ground truth is empty")
    answer = last_boxed(response)
    if answer is None:
        return 0.0, "no_answer"
    if answer == truth.strip():
        return 1.0, "correct"
    if len(answer) > max(MAX_ANSWER_CHARS, 2 * len(truth)):
        return 0.0, "too_long"
    if _depth(answer) > MAX_ANSWER_DEPTH:
        return 0.0, "too_deep"
    if _UNEVALUATED.search(answer) and not _UNEVALUATED.search(truth):
        return 0.0, "unevaluated"
    dollars = in_dollars(truth), in_dollars(answer)
    return (1.0, "correct") if is_equivalent(tidy(truth), tidy(answer), dollars=dollars) else (0.0, "wrong")


def answer(response: str) -> str | None:
    r"""The last \boxed{} as text in one form for each plain number: tidied, without white space, "1,000.0" as "1000".

    Equal expressions in unlike forms (\frac{1}{2} and 0.5) stay apart: algebra on each pair of responses costs too much.
    What is too long for an answer stays as it is.
    """
    boxed = last_boxed(response)
    if boxed is None or len(boxed) > MAX_ANSWER_CHARS:
        return boxed
    text = "".join(tidy(boxed).split())
    number = as_number(text)
    return text if number is None else str(number)


def is_equivalent(truth: str, answer: str, *, dollars: tuple[bool, bool] = (False, False)) -> bool:
    """Whether a tidied answer means the same as a tidied ground truth. Not symmetric: the ground truth sets the form.

    `dollars` says of both whether a dollar sign stood there.
    """
    if True in dollars:
        truth, truth_unit = split_unit(truth, letters=True)
        answer, unit = split_unit(answer, letters=True)
        in_truth, in_answer = (("dollar",) if sign else found for sign, found in zip(dollars, (truth_unit, unit), strict=True))
    else:
        decided = _decide_as_text(truth, answer)
        if decided is not None:
            return decided
        truth, in_truth = split_unit(truth)
        answer, in_answer = split_unit(answer, letters=in_truth is not None)
    if in_truth and in_answer:
        in_their_unit = converted(answer, in_answer, in_truth)
        if in_their_unit is None:
            return False
        answer = in_their_unit
    decided = _decide_as_text(truth, answer)
    return _equal_by_algebra(truth, answer) if decided is None else decided


def warm_up() -> None:
    """Build the parser's tables now (a second or two), so that no sample pays for them."""
    for truth, answer in _WARM_UP:
        _equal_by_algebra(truth, answer)


def _decide_as_text(truth: str, answer: str) -> bool | None:
    """The verdict where no algebra is needed, None elsewhere."""
    if truth == answer:
        return True
    true_number, number = as_number(truth), as_number(answer)
    if true_number is not None and number is not None:
        return same_number(true_number, number)
    if len({number for side in answer.split("=") if (number := as_number(side.strip())) is not None}) > 1:
        return False  # 35 = 34: the parser would take either side
    words = as_words(truth)
    if words is not None or _CHOICE_LETTER.fullmatch(truth):
        choice = as_choice(answer) or ""
        known = words if words is not None else canonical_words(truth)
        if known in (canonical_words(answer), choice.casefold()):
            return True
        if words is not None:
            return False
    if _TUPLE.fullmatch(truth) and _SET.fullmatch(answer):
        return False  # to Math-Verify both are collections
    true_based, based = as_based(truth), as_based(answer)
    if true_based and based and (true_based[1] or based[1]):
        return true_based[0] == based[0] and (None in (true_based[1], based[1]) or true_based[1] == based[1])
    return None


def _equal_by_algebra(truth: str, answer: str) -> bool:
    return verify(
        list(_parse_truth(truth)),
        _parse(answer),
        float_rounding=_decimals(truth),
        allow_set_relation_comp=True,  # 1 < x < 2 and (1, 2) answer the same question
        timeout_seconds=None,
        raise_on_error=True,
    )


@lru_cache(maxsize=512)
def _parse_truth(truth: str) -> tuple[Any, ...]:
    return tuple(_parse(truth))


def _parse(text: str) -> list[Any]:
    if text.count(r"\pm") == 1 and r"\frac" in text and "," not in text:  # the parser knows it in sums only
        text = text.replace(r"\pm", "+") + "," + text.replace(r"\pm", "-")
    return [_imaginary(one) for one in parse(f"\\boxed{{{text}}}", _LATEX, parsing_timeout=None, raise_on_error=True)]


def _imaginary(parsed: Any) -> Any:
    """i as the imaginary unit where nothing else is unknown: to the parser it is one in 2+7i and a variable in 7 i and i^2."""
    unknown = parsed.free_symbols if isinstance(parsed, Basic) else ()
    return parsed.subs(dict.fromkeys(unknown, I)) if [one.name for one in unknown] == ["i"] else parsed


def _depth(text: str) -> int:
    changes = ((c in "([{") - (c in ")]}") for c in text)
    return max(accumulate(changes), default=0)


def _decimals(truth: str) -> int:
    """Decimal places to compare: six significant digits where the ground truth is a small decimal, else six places."""
    number = as_number(truth)
    if not number or abs(number) >= 1:
        return 6
    return 5 + len(str(int(1 / abs(number))))
