"""Forms in which tests run, or hide a failure: each pays a right program and no wrong one."""

# ruff: noqa: E501 (a form stands on one line)
from __future__ import annotations

import pytest

from tests.unit.rewards.code_forms import EVEN, RAISES, RIGHT, TWO, WRONG, unittest_of, verdict

# tests that the right program passes and the wrong one does not: a reward each
JUDGED: dict[str, tuple[str, str, str]] = {
    # tests that pytest and unittest run
    "class with object as its base": (
        EVEN + "class TestB(object):\n    def test_a(self): assert f(2) == 4",
        RIGHT,
        WRONG,
    ),
    "class with a base": (
        EVEN + "class Base:\n    due = 4\nclass TestB(Base):\n    def test_a(self): assert f(2) == self.due",
        RIGHT,
        WRONG,
    ),
    "inherited test": (
        EVEN + "class Base:\n    def test_a(self): assert f(2) == 4\nclass TestB(Base): pass",
        RIGHT,
        WRONG,
    ),
    "called in dead code": (
        EVEN + "def test_a():\n    assert f(2) == 4\ndef main():\n    test_a()",
        RIGHT,
        WRONG,
    ),
    "calls itself": (EVEN + "def test_a(n=1):\n    assert f(2) == 4\n    if n: test_a(0)", RIGHT, WRONG),
    "addTest": (
        "import unittest\n"
        + EVEN
        + "class T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(2), 4)\n"
        "def suite():\n    s = unittest.TestSuite()\n    s.addTest(T('test_a'))\n    return s",
        RIGHT,
        WRONG,
    ),
    "nested class": (
        EVEN + "class TestA:\n    class TestB:\n        def test_a(self): assert f(2) == 4",
        RIGHT,
        WRONG,
    ),
    "defined in a branch": (EVEN + "if True:\n    def test_a(): assert f(2) == 4", RIGHT, WRONG),
    "made by a function": (
        EVEN + "def make(x, due):\n    def run(): assert f(x) == due\n    return run\ntest_1 = make(2, 4)",
        RIGHT,
        WRONG,
    ),
    "a runner whose result is not looked at": (
        unittest_of(
            "self.assertEqual(f(2), 4)",
            EVEN + "unittest.TextTestRunner().run(unittest.TestSuite([T('test_a')]))",
        ),
        RIGHT,
        WRONG,
    ),
    "a runner of a class in a function": (
        "import unittest\n"
        + EVEN
        + "def run():\n    class T(unittest.TestCase):\n        def test_a(self): self.assertEqual(f(2), 4)\n"
        "    unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))\nrun()",
        RIGHT,
        WRONG,
    ),
    "a runner whose result is the exit status": (
        unittest_of(
            "self.assertEqual(f(2), 4)",
            "import sys\nif __name__ == '__main__':\n    r = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))\n    sys.exit(not r.wasSuccessful())",
        ),
        RIGHT,
        WRONG,
    ),
    "test methods set up by pytest": (
        "class TestA:\n    @classmethod\n    def setup_class(cls): cls.x = 2\n    def setup_method(self, method): self.due = 4\n"
        "    def test_a(self): assert f(self.x) == self.due",
        RIGHT,
        WRONG,
    ),
    "parametrized method": (
        "import pytest\nclass TestA:\n    @pytest.mark.parametrize('x, due', [(0, 0), (2, 4)])\n    def test_a(self, x, due): assert f(x) == due",
        RIGHT,
        WRONG,
    ),
    "unused imports": (
        "import asyncio, threading\nfrom unittest.mock import patch, MagicMock\nassert f(2) == 4",
        RIGHT,
        WRONG,
    ),
    "a test whose value is asserted": (
        EVEN + "def test_a():\n    return f(2) == 4\nassert test_a()",
        RIGHT,
        WRONG,
    ),
    "a helper named as a test": (
        "def test_case(x, due):\n    assert f(x) == due\ntest_case(0, 0)\ntest_case(2, 4)",
        RIGHT,
        WRONG,
    ),
    "tests in a loop": (TWO + "for t in (t1, t2): t()", RIGHT, WRONG),
    "tests in a list and a main guard": (
        TWO
        + "TESTS = [t1, t2]\nif __name__ == '__main__':\n    for t in TESTS:\n        t()\n        print('ok', t.__name__)",
        RIGHT,
        WRONG,
    ),
    "tests in a dict": (
        TWO + "TESTS = {'zero': t1, 'two': t2}\nfor name, t in TESTS.items(): t()",
        RIGHT,
        WRONG,
    ),
    "tests in a comprehension": (TWO + "[t() for t in (t1, t2)]", RIGHT, WRONG),
    "tests in a function": (TWO + "def run_all():\n    t1()\n    t2()\nrun_all()", RIGHT, WRONG),
    "tests in a loop of main": (
        TWO + "def main():\n    for t in [t1, t2]: t()\nif __name__ == '__main__':\n    main()",
        RIGHT,
        WRONG,
    ),
    "an exit at the end of a function": (
        TWO + "import sys\ndef main():\n    t1()\n    t2()\n    print('ok')\n    sys.exit(0)\nmain()",
        RIGHT,
        WRONG,
    ),
    "an exit status at the end of a function": (
        "import sys\ndef main():\n    if f(0) == 0 and f(2) == 4:\n        sys.exit(0)\n    else:\n        sys.exit(1)\n"
        "if __name__ == '__main__':\n    main()",
        RIGHT,
        WRONG,
    ),
    "a loop over functions of which only some assert": (
        "def apply(g, x): return g(x)\ndef holds(x):\n    assert f(x) == 2 * x\n    return x\n"
        "r = apply(f, 2)\napply(holds, 0)\nassert r == 4",
        RIGHT,
        WRONG,
    ),
    "a mark in a variable": (
        "import pytest\ncases = pytest.mark.parametrize('x, y', [(0, 0), (2, 4)])\n@cases\ndef test_a(x, y): assert f(x) == y",
        RIGHT,
        WRONG,
    ),
    "a mark under another name": (
        "import pytest\nCASES = [0, 2]\nnames = ['y']\ncases = pytest.mark.parametrize\n"
        "@cases('x', CASES)\n@pytest.mark.parametrize(names, [(2,)])\ndef test_a(x, y): assert f(x) == y * x",
        RIGHT,
        WRONG,
    ),
    "a mark of a class": (
        "import pytest\nclass TestA:\n    pytestmark = [pytest.mark.slow, pytest.mark.parametrize('x', [0, 2])]\n"
        "    def test_a(self, x): assert f(x) == 2 * x",
        RIGHT,
        WRONG,
    ),
    "a mark of the module": (
        "import pytest\npytestmark = pytest.mark.parametrize('x', [0, 2])\ndef test_a(x): assert f(x) == 2 * x",
        RIGHT,
        WRONG,
    ),
    "tests that a decorator named as a test collects": (
        "tests = []\ndef test(g):\n    tests.append(g)\n@test\ndef zero(): assert f(0) == 0\n@test\ndef two(): assert f(2) == 4\n"
        "for t in tests: t()",
        RIGHT,
        WRONG,
    ),
    "a decorator named as a test": (
        "import functools\ndef testcase(g):\n    @functools.wraps(g)\n    def run(): g()\n    return run\n"
        "@testcase\ndef test_a(): assert f(2) == 4",
        RIGHT,
        WRONG,
    ),
    "a maker of decorators named as a test": (
        "def test_times(*n):\n    def mark(g):\n        def run():\n            for _ in range(n[0]): g()\n        return run\n"
        "    return mark\n@test_times(2)\ndef test_a(): assert f(2) == 4",
        RIGHT,
        WRONG,
    ),
    "a class that decorates a helper": (
        "class Memo:\n    def __init__(self, g): self.g = g\n    def __call__(self, x): return self.g(x)\n"
        "@Memo\ndef due(x): return 2 * x\ndef test_a(): assert f(2) == due(2)",
        RIGHT,
        WRONG,
    ),
    "names imported by a star": (
        "from math import *\ndef test_a(): assert f(2) == 4 * cosh(0) and sinh(0) == f(0)",
        RIGHT,
        WRONG,
    ),
    "a file that is none": (
        "import os\nwith open(os.devnull, 'w') as out: print(f(2), file=out)\nassert f(2) == 4",
        RIGHT,
        WRONG,
    ),
    "a cleanup of the module": (
        "import unittest\ndef holds(): assert f(2) == 4\ndef setUpModule(): unittest.addModuleCleanup(holds)\n"
        "class T(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(0), 0)",
        RIGHT,
        WRONG,
    ),
    "a cleanup of a test": (
        unittest_of("self.assertEqual(f(0), 0)\n        self.addCleanup(lambda: self.assertEqual(f(2), 4))"),
        RIGHT,
        WRONG,
    ),
    # failures that the tests hide
    **{
        f"hidden: {what}": (
            EVEN
            + f"def test_x():\n    assert f(2) == 4\nbad, ok = 0, True\ntry:\n    test_x()\nexcept {what}",
            RIGHT,
            WRONG,
        )
        for what in (
            "AssertionError as e:\n    print('failed', e)",
            "AssertionError:\n    import logging\n    logging.error('failed')",
            "AssertionError:\n    import traceback\n    traceback.print_exc()",
            "Exception:\n    bad += 1",
            "Exception:\n    ok = False",
            "(AssertionError, ValueError):\n    ok = False",
            "BaseException:\n    pass",
        )
    },
    "hidden under the main guard": (
        EVEN
        + "if __name__ == '__main__':\n    try:\n        assert f(2) == 4\n    except AssertionError as e:\n        print(e)",
        RIGHT,
        WRONG,
    ),
    "hidden in a helper": (
        EVEN
        + "def holds(x, due):\n    try:\n        assert f(x) == due\n        return True\n    except AssertionError:\n        return False\nholds(2, 4)",
        RIGHT,
        WRONG,
    ),
    "hidden in check": (
        "def check(candidate):\n    assert candidate(0) == 0\n    for x in (1, 2):\n        try:\n            assert candidate(x) == 2 * x\n        except Exception as e:\n            print(e)\ncheck(f)",
        RIGHT,
        WRONG,
    ),
    "hidden in a method": (
        "import unittest\nclass T(unittest.TestCase):\n    def one(self, x): self.assertEqual(f(x), 2 * x)\n    def test_a(self):\n        self.one(0)\n        for x in (1, 2):\n            try:\n                self.one(x)\n            except AssertionError:\n                pass",
        RIGHT,
        WRONG,
    ),
    "hidden by an alias": (
        EVEN + "AE = AssertionError\ntry:\n    assert f(2) == 4\nexcept AE:\n    pass",
        RIGHT,
        WRONG,
    ),
    "hidden, another error after an assertion": (
        "try:\n    assert f(0) == 0\n    assert f(2)[0] == 4\nexcept Exception:\n    pass\nassert f(0) == 0",
        "def f(x): return [4] if x else 0",
        WRONG,
    ),
    "hidden, the value has no such item": (
        EVEN + "try:\n    got = f(2)['a']\nexcept TypeError:\n    got = 4\nassert got == 4",
        "def f(x): return {'a': 4} if x else 0",
        WRONG,
    ),
    "hidden, the handler asserts something else": (
        EVEN
        + "try:\n    assert f(2) == 4\nexcept AssertionError as e:\n    assert isinstance(e, AssertionError)",
        RIGHT,
        WRONG,
    ),
    "runTest": (
        "import unittest\n"
        + EVEN
        + "class T(unittest.TestCase):\n    def runTest(self): self.assertEqual(f(2), 4)",
        RIGHT,
        WRONG,
    ),
    "asserted at the end of the module": (
        EVEN + "def test_a(): assert f(0) == 0\ndef teardown_module(): assert f(2) == 4",
        RIGHT,
        WRONG,
    ),
    "hidden, raise is the failure": (
        EVEN
        + "for x in (1, 2):\n    try:\n        if f(x) != 2 * x: raise ValueError('wrong')\n    except ValueError:\n        continue",
        RIGHT,
        WRONG,
    ),
    "hidden, the program's exception skips": (
        "def run(x):\n    try:\n        got = f(x)\n    except ValueError:\n        return\n    assert got == 2 * x\nrun(1)\nrun(2)\nimport pytest\nwith pytest.raises(ValueError):\n    f(-1)",
        "def f(x):\n    if x < 0: raise ValueError\n    return 2 * x",
        RAISES,
    ),
}


@pytest.mark.parametrize("name", JUDGED)
def test_a_form_pays_the_right_program_only(name: str) -> None:
    tests, right, wrong = JUDGED[name]
    assert (verdict(right, tests), verdict(wrong, tests)) == (1.0, 0.0)
