"""Read a row's unit tests in the formats of common data sets.

{"inputs": [...], "outputs": [...]}               stdin and stdout of a script (APPS, TACO, verl's
                                                  prime code)
{"inputs", "outputs", "fn_name": "f"}             arguments and value of a function, or of a method
                                                  of class Solution
[{"input", "output", "type": "stdin_stdout"}]     the same, a test each (DeepCoder, LiveCodeBench);
[{"input", "output", "fn_name" or "metadata": {"func_name"}}]      metadata also as JSON text
{"functional": "assert f(1) == 2 ..."}            Python; also under "test", "tests", "test_code",
                                                  "assert_case"
["assert f(1) == 2", ...]                         MBPP's test_list; as {"test_list", "test_imports",
                                                  "test_setup_code"} with what these add
assert f(1) == 2 ...                              Python as it is: statements, test_* functions,
                                                  unittest, HumanEval's check
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation, localcontext
from math import isfinite
from typing import Any

from sppo_ray.rewards.code.sandbox.same import is_near

_CODE_KEYS = ("functional", "test", "tests", "test_code", "assert_case", "test_list")
_NAME_KEYS = ("fn_name", "func_name", "entry_point")


@dataclass(frozen=True, slots=True)
class ScriptTests:
    """Pairs (stdin, expected stdout) of a script."""

    cases: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ModuleTests:
    """Tests that call functions: `name` with each case's "args" must return its "expected", in
    one reading of all cases (`_readings`); or Python code in `source`.
    """

    name: str | None
    cases: tuple[Mapping[str, Any], ...] | None
    source: str | None


def read_tests(ground_truth: str, extra: Mapping[str, Any]) -> ScriptTests | ModuleTests:
    """Read the tests in a row's ground truth; the function's name may also be in `extra`. Raises
    ValueError when there are none.
    """
    try:
        data = _json(ground_truth)
    except ValueError:
        data = ground_truth
    tests = _read(data, _name_in(extra))
    if not (tests.cases if isinstance(tests, ScriptTests) else tests.cases or (tests.source or "").strip()):
        raise ValueError("the ground truth holds no tests")
    return tests


def _read(data: Any, name: str | None) -> ScriptTests | ModuleTests:
    if isinstance(data, str):
        return ModuleTests(name, None, data)
    if isinstance(data, list) and all(isinstance(one, str) for one in data):
        return ModuleTests(name, None, "\n".join(data))
    if isinstance(data, list) and all(
        isinstance(one, dict) and {"input", "output"} <= one.keys() for one in data
    ):
        script = not data or "stdin" in _kind_of(data[0])
        name = None if script else _name_in(data[0]) or name
        if name is None and "function" in _kind_of(data[0]):
            raise ValueError(
                "the tests of the ground truth are functional and name no function: add fn_name to the first"
            )
        return _pairs([one["input"] for one in data], [one["output"] for one in data], name)
    if isinstance(data, dict):
        name = _name_in(data) or name
        if "inputs" in data and "outputs" in data:
            inputs, outputs = data["inputs"], data["outputs"]
            if name is None and isinstance(inputs, str) and isinstance(outputs, str):
                inputs, outputs = [inputs], [outputs]  # one case
            if not (isinstance(inputs, list) and isinstance(outputs, list)):
                raise ValueError("inputs and outputs of the ground truth must be lists, one entry a case")
            return _pairs(inputs, outputs, name, may_wrap=True)
        for key in _CODE_KEYS:
            if data.get(key):
                return _with_setup(_read(data[key], name), data)
    raise ValueError(
        "the ground truth is no set of tests: give inputs and outputs, input and output of each, or Python "
        "with assert statements"
    )


def _with_setup(tests: ScriptTests | ModuleTests, row: Mapping[str, Any]) -> ScriptTests | ModuleTests:
    """Put MBPP's imports and definitions before its test_list."""
    setup = [*(row.get("test_imports") or []), row.get("test_setup_code") or ""]
    if isinstance(tests, ScriptTests) or tests.source is None or not any(setup):
        return tests
    return replace(tests, source="\n".join([*filter(None, setup), tests.source]))


def _kind_of(test: Mapping[str, Any]) -> str:
    return str(test.get("type") or test.get("testtype") or "")


def _name_in(row: Mapping[str, Any]) -> str | None:
    """Return the function's name in a row, a test or their metadata, which may be JSON text."""
    inner = row.get("metadata")
    if isinstance(inner, str):
        inner = _value(inner)
    places = (row, inner) if isinstance(inner, Mapping) else (row,)
    return next((str(place[key]) for place in places for key in _NAME_KEYS if place.get(key)), None)


def _pairs(
    inputs: Sequence[Any], outputs: Sequence[Any], name: str | None, *, may_wrap: bool = False
) -> ScriptTests | ModuleTests:
    """`may_wrap`: a data set of this form may put each value into a list of one, as APPS does."""
    if len(inputs) != len(outputs):
        raise ValueError(f"the ground truth has {len(inputs)} inputs and {len(outputs)} outputs")
    pairs = zip(inputs, outputs, strict=True)
    if name is None:
        return ScriptTests(tuple((_text(given), _text(due)) for given, due in pairs))
    wrapped = may_wrap and all(isinstance(due, list) and len(due) == 1 for due in outputs)
    cases = ({**_arguments(given), "expected": _readings(due, wrapped=wrapped)} for given, due in pairs)
    return ModuleTests(name, tuple(cases), None)


def _text(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _arguments(given: Any) -> dict[str, Any]:
    """Return "args": a list, or text with one value a line; and of a mapping "named", keyword
    arguments.
    """
    if isinstance(given, Mapping):
        return {"args": [], "named": dict(given)}
    if isinstance(given, str):
        return {"args": [_value(line) for line in given.split("\n") if line.strip()]}
    return {"args": list(given)}


def _readings(due: Any, *, wrapped: bool) -> list[Any]:
    """Return what is expected in each reading of the row: the value, the text where it is a number,
    and the member of the wrapper list. A program answers all cases of a row in one reading.
    """
    value = _value(due)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [value, due if number else value, due[0] if wrapped else value]


def _json(text: str) -> Any:
    """Raises ValueError. Integers may be longer than the 4,300 digits of Python's `int`."""
    return json.loads(text, parse_int=lambda digits: int(digits if len(digits) < 4300 else Decimal(digits)))


def _value(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return _json(text)
    except ValueError:
        return text


# ------------------------------------------------------------------------------------------- stdout

_WORD = re.compile(r"[^ \t\r]+")
_HAS_DECIMALS = re.compile(r"\.[0-9]")  # `2000000.` may be the end of a sentence
_DIGITS = 800  # of a word of 400 characters, with what its exponent adds
_CLEARLY_NEAR, _LARGE = 5e-7, 1e8  # by floats; half of what `is_near` allows
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def same_output(written: str, due: str) -> bool:
    """Compare by line and word. White space at the ends is ignored, and decimals may differ a
    little (`same.is_near`); infinite and undefined numbers are compared as words.
    """
    written, due = written.strip(" \t\r\n"), due.strip(" \t\r\n")
    if written.count("\n") != due.count("\n"):
        return False
    return all(map(_same_line, written.split("\n"), due.split("\n")))


def _same_line(mine: str, theirs: str) -> bool:
    """Read no further than to the first difference: the program's line may be 4 MiB long."""
    pairs = itertools.zip_longest(_WORD.finditer(mine), _WORD.finditer(theirs))
    return all(a and b and _same_word(a[0], b[0]) for a, b in pairs)


def _same_word(word: str, due: str) -> bool:
    if word == due:
        return True
    are_numbers = all(len(one) <= 400 and _NUMBER.fullmatch(one) for one in (word, due))
    if not are_numbers or not _HAS_DECIMALS.search(due):
        return False
    expected = float(due)
    if not isfinite(expected) or not isfinite(float(word)):
        return False
    if abs(float(word) - expected) <= _CLEARLY_NEAR * min(abs(expected), 1.0) and abs(expected) < _LARGE:
        return True  # without the seconds that a million decimals take
    try:
        with localcontext(prec=_DIGITS):  # a float has 15
            error = float(abs(Decimal(word) - Decimal(due)))
    except InvalidOperation:  # an exponent of twenty digits, of a number that a float takes for 0
        return False
    return is_near(error, expected, due, is_printed=True)
