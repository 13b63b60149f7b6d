"""Values of the program that would say what the tests want to hear, and messages that would keep
a verdict from being given: all are 0.
"""

# ruff: noqa: E501 (a form stands on one line)
from __future__ import annotations

import json

import pytest

from tests.unit.rewards.code_forms import verdict

LIES = "import sys\nclass {}({}):\n    def __new__(cls, *a): return {}.__new__(cls)\n    if '<program>' in sys.modules:\n        {}\n"
SUBTRACTS = "__sub__ = __rsub__ = lambda s, o: 0.0"
NEAR_4 = "def test_a():\n    assert abs(f(2) - 4) < 1e-6\n"
OF_FUNCTIONS: dict[str, tuple[str, str]] = {
    "a difference": (NEAR_4, LIES.format("f", "float", "float", SUBTRACTS)),
    "approx": (
        "from pytest import approx\ndef test_a():\n    assert f(2) == approx(4.0)\n",
        LIES.format("f", "float", "float", SUBTRACTS),
    ),
    "almost equal": (
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertAlmostEqual(f(2), 4.0)\n",
        LIES.format("f", "float", "float", SUBTRACTS),
    ),
    "a candidate": (
        "def check(candidate):\n    assert abs(candidate(2) - 4) < 1e-6\ndef test_x(): check(f)\n",
        LIES.format("f", "float", "float", SUBTRACTS),
    ),
    "a method of text": (
        "def test_a():\n    assert f('x').startswith('ab')\n",
        LIES.format("f", "str", "str", "def startswith(self, *a): return True"),
    ),
    "a length": ("def test_a():\n    assert len(f('x')) == 3\n", LIES.format("f", "str", "str", "def __len__(self): return 3")),
    "a set": (
        "def test_a():\n    assert not f([1]) ^ {1}\n",
        LIES.format("f", "frozenset", "frozenset", "__xor__ = lambda s, o: frozenset()"),
    ),
    "a method of Solution": (
        "def test_a():\n    assert abs(Solution().f(2) - 4) < 1e-6\n",
        LIES.format("Solution", "float", "float", SUBTRACTS) + "    def f(self, x): return Solution()\n",
    ),
    "its class said to be under test": (
        NEAR_4,
        LIES.format("W", "float", "float", SUBTRACTS)
        + "def f(x):\n    one = sys._getframe()\n    while one:\n        s = one.f_locals.get('self')\n"
        "        if hasattr(s, '_own'): s._own[W] = ['__sub__', '__rsub__']\n        one = one.f_back\n    return W()\n",
    ),
}


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_a_value_of_a_function_is_a_plain_one(name: str) -> None:
    """Whatever its class says of it, also where the function is that class."""
    tests, wrong = OF_FUNCTIONS[name]
    assert verdict(wrong, tests) == 0.0


STATS = (
    "import sys\nIN = '<program>' in sys.modules\nclass Stats:\n    def __init__(self, v): self.v = v\n"
    "    def mean(self): return self if IN else 0.0\n    __sub__ = __rsub__ = lambda s, o: 0.0\n"
    "    __abs__ = lambda s: 0.0\n    __and__ = lambda s, o: {1, 2}\n    __mod__ = lambda s, o: 0\n"
)


@pytest.mark.parametrize(
    "what", ["abs(s.mean() - 2.0) < 1e-9", "abs(s.mean()) < 1e-9", "s.mean() & {1, 2} == {1, 2}", "s.mean() % 3 == 0"]
)
def test_a_method_that_returns_its_object_gives_no_number(what: str) -> None:
    tests = f"def test_a():\n    s = Stats([1, 2, 3])\n    assert {what}\n"
    assert verdict(STATS, tests) == 0.0
    almost = "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertAlmostEqual(Stats([1]).mean(), 2.0)\n"
    assert verdict(STATS, almost) == 0.0


def test_objects_with_operators_may_be_chained() -> None:
    tests = (
        "def test_a():\n    v = Vec(1)\n    assert (v + 1).x == 2 and (v + Vec(2)).x == 3\n    assert v.twice().twice().x == 4\n"
        "    assert v.twice() is v and (v + Vec(1)).x == 9\n"
    )
    program = (
        "class Vec:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return Vec(self.x + getattr(o, 'x', o))\n"
        "    def twice(self):\n        self.x *= 2\n        return self\n"
    )
    assert verdict(program, tests) == 1.0
    assert verdict(program.replace("*= 2", "*= 3"), tests) == 0.0


@pytest.mark.parametrize("does", ["sys.exit(0)", "raise E", "os._exit(0)", "raise KeyboardInterrupt"])
@pytest.mark.parametrize(
    ("where", "tests"),
    [
        ("random.seed", "import random\nrandom.seed(7)\nassert f(2) == 4\nassert f(3) == 6"),
        ("random.seed", "import random\ndef test_a():\n    random.seed(7)\n    assert f(2) == 4\n"),
        ("sys.setrecursionlimit", "import sys\nsys.setrecursionlimit(5000)\nassert f(2) == 4"),
    ],
)
def test_a_replaced_seed_does_not_avoid_a_verdict(does: str, where: str, tests: str) -> None:
    collides = "class I(int):\n    def __hash__(self): return hash(str(int(self)))\nclass E(Exception): pass\n"
    program = f"import os, random, sys\n{collides}e = E(); e.a = {{I(k * (2**61 - 1)) for k in range(1, 60000)}}\n"
    program = program if does == "raise E" else "import os, random, sys\n"
    does = "raise e" if does == "raise E" else does
    assert verdict(f"{program}def seed(*a): {does}\n{where} = seed\ndef f(x): return 2 * x + 1\n", tests) == 0.0


@pytest.mark.parametrize("wraps", ["{}", "[{}]", "{{'a': {}}}"])
@pytest.mark.parametrize("due", [4.5, 4, "4"])
def test_no_value_of_a_json_case_learns_what_is_due(wraps: str, due: object) -> None:
    program = (
        "class N(float):\n    due = 0.0\n    def __eq__(self, o):\n        self.due = o\n        return float.__eq__(self, o)\n"
        "    def __float__(self): return float(self.due)\n    __hash__ = float.__hash__\n"
    )
    whole = {"{}": due, "[{}]": [due]}.get(wraps, {"a": due})
    tests = json.dumps({"inputs": [[2], [3]], "outputs": [whole, whole], "fn_name": "f"})
    for make in (f"def f(x): return {wraps.format('N(0.0)')}", f"class f(N):\n    def __new__(c, *a): return {wraps.format('N.__new__(c)')}"):
        assert verdict(program + make, tests) == 0.0
    learns = program.replace("class N", "class f") + "    def __new__(c, *a): return float.__new__(c, 0.0)\n"
    if wraps == "{}":
        assert verdict(learns, tests) == 0.0
