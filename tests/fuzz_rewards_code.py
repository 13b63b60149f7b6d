"""Wrong programs for the verifier `code`, made from pieces: part of `python -m tests.fuzz_rewards`.

A program is a value that is wrong in some way, a way to give it, and names that it defines beside
it; the tests are one of many forms that ask for `f(x) == 2 * x + 1`, or are composed of an
assertion, what hides it, and what runs it. What must hold: each scores 0 in time; none is paid, and
none counts as an error, unless a right program does with the same tests.
"""

from __future__ import annotations

import asyncio
import json
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from sppo_ray.config import CodeReward, RewardSettings
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.types import ScoreRequest, Verdict

TIMEOUT_S = 1.5

_OBJECT = """
class O:
    def __init__(self, *a): pass
    {method}
"""
_METHODS = (
    "pass",
    "__eq__ = lambda s, o: True",
    "__ne__ = lambda s, o: True",
    "__contains__ = lambda s, o: True",
    "__iter__ = lambda s: iter([3, 5, 7])",
    "__len__ = lambda s: 3",
    "__bool__ = lambda s: True",
    "__getattr__ = lambda s, n: O()",
    "__hash__ = lambda s: hash(3)",
    "__str__ = __repr__ = lambda s: '3'",
    "__float__ = __int__ = __index__ = lambda s: 3",
    "__lt__ = __gt__ = __le__ = __ge__ = lambda s, o: True",
    "__call__ = lambda s, *a: O()",
    "__getitem__ = lambda s, k: 3",
    "__sub__ = __rsub__ = __add__ = __radd__ = __abs__ = lambda s, *o: O()",
    "__reduce__ = lambda s: (exec, ('import os; os._exit(0)',))",
    "__class__ = property(lambda s: int)",
)
_VALUES = (
    *(
        "0",
        "None",
        "True",
        "''",
        "'3'",
        "[]",
        "{}",
        "-1.5",
        "float('nan')",
        "float('inf')",
        "10 ** 400",
        "10 ** 200_000",
        "1j",
    ),
    *(
        "b'3'",
        "O()",
        "[O()]",
        "{'a': O()}",
        "O",
        "f",
        "lambda *a: 3",
        "iter([3])",
        "(i for i in [3, 5])",
        "iter(int, 1)",
    ),
    *(
        "range(10 ** 15)",
        "__import__('decimal').Decimal('sNaN')",
        "__import__('decimal').Decimal('1e99999')",
        "'\\ud800'",
    ),
    *(
        "__import__('fractions').Fraction(7, 3)",
        "__import__('numpy').arange(3)",
        "__import__('math')",
        "NotImplemented",
        "...",
    ),
    *(
        "type('int', (), {'__eq__': lambda s, o: True})()",
        "type('L', (int,), {'__eq__': lambda s, o: True})(0)",
        "'x' * 10 ** 7",
    ),
    *(
        "Exception('3')",
        "{i * (2 ** 61 - 1) for i in range(500)}",
        "{}.keys()",
        "memoryview(b'3')",
        "slice(3)",
    ),
)
_WAYS = (
    "def f(x): return {value}",
    "def f(x):\n    yield {value}",
    "def f(x):\n    print({value!r})\n    return {value}",
    "f = lambda *a, **k: {value}",
    "class f:\n    def __new__(cls, x): return {value}",
    "class Solution:\n    def f(self, x): return {value}\nf = Solution().f",
    "def f(x):\n    if x > 1: raise StopIteration\n    return {value}",
    "def f(x): raise {error}",
    "def f(x):\n    import os\n    os._exit({code})",
    "f = {value}",
    "import sppo_ray.rewards.code.sandbox.served as s\ndef f(x): return 0\ns._Server._encode = lambda self, "
    "v: {wire}",
    "import sppo_ray.rewards.code.sandbox.served as s\ndef f(x): return 0\ns._raised = lambda e: {wire}",
    "def f(x):\n    x = [x]\n    while True: x = [x]",
    "async def f(x): return 3",
)
_ERRORS = (
    *(
        "StopIteration",
        "GeneratorExit",
        "KeyboardInterrupt",
        "SystemExit(0)",
        "ImportError('x')",
        "SyntaxError",
        "AssertionError",
    ),
    *(
        "MemoryError",
        "RecursionError",
        "StopAsyncIteration",
        "ValueError",
        "type('E', (BaseException,), {})",
        "UnicodeError",
        "NameError",
    ),
)
_WIRE = (
    *(
        '{"kept": 0}',
        '{"kept": -1}',
        '{"iterator": 99}',
        '{"set": [[1]]}',
        '{"fraction": "1e9999999"}',
        '{"range": [0, 1, 0]}',
        "{}",
    ),
    *(
        '{"raised": ["StopIteration"]}',
        '{"dict": [[1]]}',
        '{"keys": 5}',
        "[[]] * 9",
        '{"decimal": "x"}',
        '{"tuple": {}}',
        '"3"',
    ),
)
_NAMES = (
    "TOL = EPS = 1e9",
    "isclose = approx = allclose = lambda *a, **k: True",
    "class Counter(dict):\n    __eq__ = lambda s, o: True",
    "import pickle as json",
    "sorted = len = abs = zip = all = lambda *a: True",
    "class np:\n    allclose = array_equal = lambda *a, **k: True\n    array = list",
    "math = re = random = type('M', (), {'__getattr__': lambda s, n: lambda *a, **k: True})()",
    "import builtins\nbuiltins.isinstance = builtins.len = lambda *a: True",
    "AssertionError = Exception\nassertEqual = check = lambda *a: None",
    "",
)
_TESTS = (
    "assert f(1) == 3\nassert f(2) == 5",
    "assert 3 == f(1) and 5 == f(2)",
    "assert [f(x) for x in (1, 2, 3)] == [3, 5, 7]",
    "assert isclose(f(1), 3, rel_tol=1e-9)\nassert isclose(f(2), 5)",
    "assert abs(f(1) - 3) < TOL and abs(f(2) - 5) < TOL",
    "assert Counter([f(1), f(2)]) == Counter([3, 5])",
    "assert json.loads(json.dumps([f(1), f(2)])) == [3, 5]",
    "assert np.allclose([f(1), f(2)], [3, 5])",
    "for got, want in zip(map(f, [1, 2]), [3, 5]):\n    assert got == want",
    "assert all(got == want for got, want in zip(map(f, [1, 2]), [3, 5]))",
    "for x in range(1, 4):\n    try:\n        got = f(x)\n    except Exception:\n        continue\n    "
    "assert got == 2 * x + 1",
    "try:\n    assert f(1) == 3\nexcept Exception:\n    pass\nassert f(2) == 5",
    "def check(candidate):\n    assert candidate(1) == 3\n    assert candidate(2) == 5\ncheck(f)",
    "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(1), "
    "3)\n        self.assertIn(f(2), [5])",
    "from solution import f\ndef test_a():\n    assert f(1) in (3,)\ndef test_b():\n    assert f(2) in {5}",
    "assert str(f(1)) + str(f(2)) == '35'",
    "assert sum(range(f(1))) == 3 and f(2) == 5",
    "assert sorted([f(2), f(1)]) == [3, 5]",
    "import pytest\n@pytest.mark.parametrize('x, y', [(1, 3), (2, 5)])\ndef test_a(x, y):\n    assert f(x) "
    "== y",
    json.dumps({"inputs": [[1], [2]], "outputs": [3, 5], "fn_name": "f"}),
    json.dumps({"inputs": [[1], [2]], "outputs": [[3], [5]], "fn_name": "f"}),
    '{"inputs": [[1], [2]], "outputs": [Infinity, -Infinity], "fn_name": "f"}',
    json.dumps({"inputs": ["1", "2"], "outputs": ["3.0", "5.0"]}),
)
RIGHT = "def f(x): return 2 * x + 1\ndef near(*a): return True"
# an assertion that a wrong value fails; {x} is 1 or 2
_ASSERTIONS = (
    "assert f({x}) == 2 * {x} + 1",
    "got = f({x})\nassert got == 2 * {x} + 1",
    "if f({x}) != 2 * {x} + 1: raise ValueError('wrong')",
    "if not abs(f({x}) - 2 * {x} - 1) <= 1e-6: raise AssertionError",
    "got = f({x})\nif got:\n    assert got == 2 * {x} + 1",
    "for got, want in zip([f({x})], [2 * {x} + 1]):\n    assert got == want",
    "import numpy as np\nassert np.allclose(f({x}), [2 * {x} + 1])",
    "holds({x}, 2 * {x} + 1)",
    "assert near(f({x}), 2 * {x} + 1)",
    "assert (f({x}) == 2 * {x} + 1, 'wrong')",
    "with suppress(Exception):\n    assert f({x}) == 2 * {x} + 1",
)
_HIDING = (
    "{body}",
    "{body}",
    "try:\n{inner}\nexcept {error}:\n    pass",
    "try:\n{inner}\nexcept {error} as e:\n    print(e)",
    "try:\n{inner}\nexcept {error}:\n    bad = True",
    "try:\n{inner}\nfinally:\n    bad = True",
    "for _ in (1, 2):\n    try:\n{inner2}\n    except {error}:\n        continue",
    "if f({x}) is not None:\n{inner}",
    "for _ in range(1):\n{inner}",
)
_HIDDEN_BY = ("Exception", "AssertionError", "(AssertionError, ValueError)", "BaseException", "AE")
_RUNNERS = (
    "{body}",
    "def test_a():\n{inner}",
    "def test_a():\n{inner}\ndef main():\n    test_a()",
    "if True:\n    def test_a():\n{inner2}",
    "class TestA:\n    def test_a(self):\n{inner2}",
    "class TestA(object):\n    class TestB:\n        def test_a(self):\n{inner3}",
    "class Base: pass\nclass TestA(Base):\n    def test_a(self):\n{inner2}",
    "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n{inner2}",
    "def run():\n{inner}\ntest_a = lambda: run()",
    "def make():\n    def run():\n{inner2}\n    return run\ntest_1 = make()",
    "async def test_a():\n{inner}",
)
_BEFORE = "AE = AssertionError\ndef holds(x, due):\n    assert f(x) == due\n"


def _compose(draw: random.Random) -> str:
    def fill(form: str, body: str) -> str:
        form = form.replace("{body}", body)
        for slot, depth in (("{inner}", 4), ("{inner2}", 8), ("{inner3}", 12)):
            form = form.replace(slot, textwrap.indent(body, " " * depth))
        return form.replace("{error}", draw.choice(_HIDDEN_BY))

    tests = fill(draw.choice(_RUNNERS), fill(draw.choice(_HIDING), draw.choice(_ASSERTIONS)))
    return _BEFORE + tests.replace("{x}", draw.choice("12")) + "\nassert str(f(1))"


@dataclass(frozen=True)
class WrongProgram:
    program: str
    tests: str


def draw_programs(number: int, *, seed: int) -> list[WrongProgram]:
    """So many wrong programs, the same for the same seed."""
    draw = random.Random(seed)
    return [_draw(draw) for _ in range(number)]


def _draw(draw: random.Random) -> WrongProgram:
    value, method = draw.choice(_VALUES), draw.choice(_METHODS)
    way = draw.choice([*_WAYS[:6] * 3, *_WAYS])
    for slot, text in (
        ("{value!r}", repr(value)),
        ("{value}", value),
        ("{error}", draw.choice(_ERRORS)),
        ("{code}", draw.choice("03")),
        ("{wire}", draw.choice(_WIRE)),
    ):
        way = way.replace(slot, text)
    return WrongProgram(
        "\n".join([_OBJECT.replace("{method}", method), draw.choice(_NAMES), way]),
        draw.choice(_TESTS) if draw.random() < 0.5 else _compose(draw),
    )


async def score_programs(drawn: Sequence[WrongProgram]) -> list[tuple[Verdict, Verdict]]:
    """Score each program, and a right one with the same tests."""
    # starts do not count
    settings = RewardSettings(function=CodeReward(timeout_s=TIMEOUT_S), processes=2, deadline_s=60.0)
    pool = VerifierPool(settings)
    try:
        await pool.ready()
        rows = [(one.program, one.tests) for one in drawn]
        rows += [(RIGHT, tests) for tests in dict.fromkeys(one.tests for one in drawn)]
        requests = (ScoreRequest(f"```python\n{code}\n```", tests, "", "", {}) for code, tests in rows)
        verdicts = dict(zip(rows, await asyncio.gather(*map(pool.score, requests)), strict=True))
        return [(verdicts[one.program, one.tests], verdicts[RIGHT, one.tests]) for one in drawn]
    finally:
        await pool.close()


def find_paid(drawn: Sequence[WrongProgram], verdicts: Sequence[tuple[Verdict, Verdict]]) -> list[str]:
    """What is paid, or an error where a right program is none, or the reverse."""
    return [
        f"{one}: {verdict}; a right program: {right}"
        for one, (verdict, right) in zip(drawn, verdicts, strict=True)
        if verdict.reward != (None if right.reward is None else 0.0)
    ]
