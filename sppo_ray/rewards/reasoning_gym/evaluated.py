"""Restrict the answers for reasoning-gym scorers that evaluate text, by `eval` or by SymPy's
`parse_expr`, which uses `eval`.

    answer --> grammar of its task --> the same text, or a plain literal in Python's own spelling --> scorer
                   '-- no answer of this kind: wrong, and the scorer never sees it

Some scorers also evaluate text of the entry (an integrand, a problem). That text has a grammar too,
because an entry may come from a file or over REST. Light to import: the pool asks this module which
samples need a separate process.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from sppo_ray.config import ReasoningGymReward, RewardFunction, UserReward
from sppo_ray.rewards.reasoning_gym.grammar import Names, is_expression, is_integer_expression

Entry = Mapping[str, Any]

FUNCTIONS = frozenset(
    {
        "Abs", "acos", "acosh", "acot", "asin", "asinh", "atan", "atanh", "cos", "cosh", "cot", "csc",
        "exp", "ln", "log", "sec", "sign", "sin", "sinh", "sqrt", "tan", "tanh"
    }
)  # fmt: skip
"""SymPy functions that an answer may call."""
_CONSTANTS = frozenset({"C", "c", "K", "k", "E", "pi"})
_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9]{0,7}")
_MAX_LITERAL_CHARS = 20_000


def needs_own_process(function: RewardFunction, extra: Mapping[str, Any]) -> bool:
    """Whether scoring this sample may run code of its answer; its process must then not be
    reused.
    """
    if isinstance(function, ReasoningGymReward):
        return extra.get("reasoning_gym_task") in ANSWERS
    return isinstance(function, UserReward) and function.isolate


def _arithmetic(answer: str, entry: Entry) -> str | None:
    """Numbers, + - * / ** and brackets."""
    return answer if is_expression(answer, Names()) else None


def _antiderivative(answer: str, entry: Entry) -> str | None:
    """An expression in the variable of the integral and a constant. No `Integral`, although some
    solutions have one left, where SymPy failed: the question itself would be paid.
    """
    return answer if is_expression(answer, _names_of_integral(entry)) else None


def _polynomial(answer: str, entry: Entry) -> str | None:
    """An expression in the variables of the solution, as long as that one is long."""
    longest = max(1_000, 2 * len(entry["answer"]))
    return answer if is_expression(answer, Names(_variables_of(entry)), longest=longest) else None


def _letters(answer: str, entry: Entry) -> str | None:
    """The solution itself (compared as text) or a literal list."""
    return answer if answer == entry["answer"] else _literal(answer)


def _numbers(answer: str, entry: Entry) -> str | None:
    return answer if answer.strip() == str(entry["answer"]).strip() else _literal(answer)


def _board(answer: str, entry: Entry) -> str | None:
    return answer if answer in entry["metadata"]["valid_answers"] else _literal(answer)


ANSWERS: dict[str, Callable[[str, Entry], str | None]] = {
    "binary_matrix": _letters,
    "countdown": _arithmetic,
    "intermediate_integration": _antiderivative,
    "n_queens": _board,
    "polynomial_multiplication": _polynomial,
    "puzzle24": _arithmetic,
    "simple_integration": _antiderivative,
    "spiral_matrix": _numbers,
    "string_insertion": _letters,
}
"""For each task whose scorer evaluates the answer: a function that returns the text for the scorer;
None = not an answer of this kind, so wrong.
"""


def _literal(text: str) -> str | None:
    """A list of numbers and texts, possibly nested once, in Python's own spelling; also a single
    text.
    """
    if len(text) > _MAX_LITERAL_CHARS:
        return None
    try:
        value = ast.literal_eval(text)
        return repr(value) if _is_plain(value, depth=2) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _is_plain(value: object, *, depth: int) -> bool:
    if type(value) in (str, int, float, bool):
        return True
    return (
        depth > 0 and type(value) in (list, tuple) and all(_is_plain(one, depth=depth - 1) for one in value)
    )


# -------------------------------------------------------------------------------- text of the entry


def _integral_is_one(entry: Entry) -> bool:
    return bool(_VARIABLE.fullmatch(entry["metadata"]["variable"])) and is_expression(
        entry["metadata"]["integrand"], _names_of_integral(entry), longest=10_000
    )


def _product_is_a_polynomial(entry: Entry) -> bool:
    return is_expression(entry["answer"], Names(_variables_of(entry)), longest=100_000)


def _problem_is_of_integers(entry: Entry) -> bool:
    return is_integer_expression(entry["metadata"]["problem"])


def _solution_is_a_list(entry: Entry) -> bool:
    return _literal(entry["answer"]) is not None


ENTRIES: dict[str, Callable[[Entry], bool]] = {
    "bitwise_arithmetic": _problem_is_of_integers,
    "intermediate_integration": _integral_is_one,
    "number_sorting": _solution_is_a_list,
    "polynomial_multiplication": _product_is_a_polynomial,
    "simple_integration": _integral_is_one,
}
"""For each task whose scorer evaluates text of the entry: a check of that text."""


def _names_of_integral(entry: Entry) -> Names:
    return Names(_CONSTANTS | {entry["metadata"]["variable"]}, FUNCTIONS)


def _variables_of(entry: Entry) -> frozenset[str]:
    return frozenset(name for name in entry["metadata"]["variables"] if _VARIABLE.fullmatch(name))
