"""The tests of a file are those that pytest collects, in its order; calls in it run as well."""

# ruff: noqa: E501 (a statement of a test file stands on one line)
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sppo_ray.config import CodeReward
from sppo_ray.rewards.code import base
from sppo_ray.rewards.code.base import Limits, SandboxFailed
from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses
from sppo_ray.rewards.code.verifier import make_code_verifier

RIGHT, WRONG = "def f(x): return 2 * x", "def f(x): return 2"
ONE = "assert f(1) == 2\n"  # a test that the wrong program passes, too
CASE = "import unittest\nclass T(unittest.TestCase):\n"

PAYS_THE_RIGHT_PROGRAM = {
    "a test that is called, then defined again": (
        "def test(): assert f(3) == 6\ntest()\ndef test(): assert f(1) == 2\ntest()"
    ),
    "a test that is called, then deleted": ONE + "def test_a(): assert f(3) == 6\ntest_a()\ndel test_a",
    "cases that change between two calls": (
        "cases = [(3, 6)]\ndef test_all():\n    for x, y in cases: assert f(x) == y\n"
        "test_all()\ncases = [(1, 2)]\ntest_all()"
    ),
    "cases that the main guard shortens": (
        "CASES = [(1, 2), (3, 6)]\ndef test_all():\n    for x, y in CASES: assert f(x) == y\n"
        "if __name__ == '__main__':\n    CASES = CASES[:1]\n    test_all()"
    ),
    "a main guard before the last test": (
        ONE + "if __name__ == '__main__':\n    test_a = None\ndef test_a(): assert f(3) == 6"
    ),
    "setup_class, in the order of definition": (
        "class TestA:\n    @classmethod\n    def setup_class(cls): cls.x = []\n"
        "    def test_b(self):\n        self.x.append(3)\n        assert f(1) == 2\n"
        "    def test_a(self): assert f(self.x[0]) == 6"
    ),
    "setUpClass once": (
        CASE + "    @classmethod\n    def setUpClass(cls): cls.x = [0]\n"
        "    def test_a(self):\n        self.x.append(3)\n        self.assertEqual(f(1), 2)\n"
        "    def test_b(self): self.assertEqual([f(x) for x in self.x], [0, 6])"
    ),
    "a test under a second name": ONE + "def test_a(): assert f(3) == 6\nhelper = test_a",
    "a test that is cached": (ONE + "import functools\n@functools.lru_cache\ndef test_a(): assert f(3) == 6"),
    "a partial test": (
        ONE + "import functools\ndef holds(x, y): assert f(x) == y\ntest_a = functools.partial(holds, 3, 6)"
    ),
    "a wrapped test": (
        ONE + "import functools\ndef twice(test):\n    @functools.wraps(test)\n    def run():\n"
        "        test()\n        test()\n    return run\n@twice\ndef test_a(): assert f(3) == 6"
    ),
    "a class with another name": (
        ONE + "def make():\n    class Inner:\n        def test_a(self): assert f(3) == 6\n    return Inner\n"
        "TestMade = make()"
    ),
    "a class with another module": (
        ONE + "class TestA:\n    __module__ = 'elsewhere'\n    def test_a(self): assert f(3) == 6"
    ),
    "a nested class of the base": (
        ONE + "class Base:\n    class TestInner:\n        def test_a(self): assert f(3) == 6\n"
        "class TestA(Base): pass"
    ),
    "one name in a list": (
        "import pytest\n@pytest.mark.parametrize(['x'], [(1,), (3,)])\n"
        "def test_a(x): assert f(x) == 2 * x and type(x) is int"
    ),
    "pytest.param": (
        "import pytest\n@pytest.mark.parametrize('x', [pytest.param(3), 1])\n"
        "def test_a(x): assert f(x) == 2 * x and type(x) is int"
    ),
    "parametrize by keywords": (
        "import pytest\n@pytest.mark.parametrize(ids=['a'], argvalues=[(3, 6)], argnames='x, y')\n"
        "def test_a(x, y): assert f(x) == y"
    ),
    "parametrize with a dict": (
        "import pytest\n@pytest.mark.parametrize('row', [{'x': 3, 'y': 6}])\n"
        "def test_a(row): assert f(row['x']) == row['y']"
    ),
    "teardown_method of a TestCase": (
        CASE + "    def test_a(self): self.assertEqual(f(1), 2)\n"
        "    def teardown_method(self, method): assert f(3) == 6"
    ),
    "setup_module takes the module": (
        "def setup_module(module): module.x = 3\ndef test_a(): assert f(x) == 6\nx = 1"
    ),
    "an exit with success before the tests": (
        "import sys\nif f(3) != 6:\n    print('broken')\n    sys.exit()\ndef test_a(): assert f(1) == 2"
    ),
    "an exit with success between the tests": (
        "import sys\ndef test_a(): assert f(1) == 2\ndef need(ok):\n    if not ok: sys.exit(0)\n"
        "need(f(3) == 6)\ndef test_b(): assert f(1) == 2"
    ),
    "a runner in the exit status": (
        ONE + "import sys, unittest\ndef hold(): assert f(3) == 6\n"
        "suite = unittest.TestSuite([unittest.FunctionTestCase(hold)])\n"
        "sys.exit(not unittest.TextTestRunner().run(suite).wasSuccessful())"
    ),
    "main gives the exit status": (
        "import sys\ndef main():\n    assert f(1) == 2\n    return 0 if f(3) == 6 else 1\n"
        "if __name__ == '__main__':\n    sys.exit(main())"
    ),
    "exit is Python's own": "def f_is_right(): return f(3) == 6\nassert f(1) == 2\nif not f_is_right(): exit(1)",
    "a test in the main guard": ONE
    + "if __name__ == '__main__':\n    def test_more(): assert f(3) == 6\n    test_more()",
    "cases that the main guard extends": (
        "CASES = [(1, 2)]\ndef test_all():\n    for x, y in CASES: assert f(x) == y\n"
        "if __name__ == '__main__':\n    CASES.extend([(3, 6)])\n    test_all()"
    ),
    "imported in a test": "def test_a():\n    from solution import f\n    assert f(3) == 6",
    "imported in a try": "try:\n    from solution import f\nexcept ImportError:\n    pass\nassert f(3) == 6",
    "the framework's result": (
        CASE + "    def test_a(self): self.assertEqual(f(3), 6)\n"
        "if __name__ == '__main__':\n    r = unittest.main(exit=False)\n    assert r.result.wasSuccessful()"
    ),
    "pytest's exit status": (
        "import pytest, sys\ndef test_a(): assert f(3) == 6\n"
        "if __name__ == '__main__':\n    code = pytest.main([__file__])\n    sys.exit(code)"
    ),
    "called, then defined again in a block": (
        "def test_a(): assert f(1) == 2\ntest_a()\nif True:\n    def test_a(): assert f(3) == 6"
    ),
    "called, then its helper is another": (
        "def hold(): assert f(1) == 2\ndef test_a(): hold()\ntest_a()\ndef hold(): assert f(3) == 6"
    ),
    "called, then its cases grow": (
        "cases = []\ndef test_a():\n    assert f(1) == 2\n    for x, y in cases: assert f(x) == y\n"
        "test_a()\ncases.append((3, 6))"
    ),
    "called, then another test adds cases": (
        "cases = [(1, 2)]\ndef test_a():\n    for x, y in cases: assert f(x) == y\n"
        "def test_b():\n    cases.append((3, 6))\n    assert f(1) == 2\ntest_a()\ntest_b()"
    ),
    "called, then its cases are others": (
        "CASES = [(1, 2)]\ndef test_a():\n    for x, y in CASES: assert f(x) == y\ntest_a()\nCASES = [(3, 6)]"
    ),
    "called, then defined again in try": (
        "def test_a(): assert f(1) == 2\nfor t in [test_a]: t()\ntry:\n    import json\n"
        "    def test_a(): assert f(3) == 6\nexcept ImportError:\n    pass"
    ),
    "called without its setup_module": (
        "x = 1\ndef setup_module():\n    global x\n    x = 3\ndef test_a(): assert f(x) == 2 * x\ntest_a()"
    ),
    "an exit in a helper that a handler would hide": (
        "import sys\ndef check(x, y):\n    if f(x) != y:\n        sys.exit(1)\nok = 0\nfor x, y in [(1, 2), (3, 6)]:\n"
        "    try:\n        check(x, y)\n    except AssertionError as e:\n        assert f(1) == 2\n    assert f(1) == 2\n    ok += 1\nassert ok == 2"
    ),
    "a test that decorates what never runs": (
        ONE + "def test_a(function=None): assert f(3) == 6\ndef never():\n    @test_a\n    def inner(): pass"
    ),
    "a class that is marked": ONE
    + "class Checks:\n    __test__ = True\n    def test_a(self): assert f(3) == 6",
    "setup_class and teardown_class of a TestCase": (
        CASE + "    @classmethod\n    def setup_class(cls): cls.x = 1\n"
        "    def test_a(self): self.assertEqual(f(self.x), 2)\n"
        "    @classmethod\n    def teardown_class(cls): assert f(3) == 6"
    ),
    "an abstract base": (
        ONE + "from abc import ABC, abstractmethod\nclass TestBase(ABC):\n    @abstractmethod\n"
        "    def make(self): ...\n    def test_x(self): assert f(self.make()) == 6\n"
        "class TestA(TestBase):\n    def make(self): return 3"
    ),
    "an exit that a handler would replace": (
        "import sys\ndef fail():\n    sys.exit(1)\ndef test_a():\n    try:\n        if f(3) != 6: fail()\n"
        "    except Exception:\n        assert f(1) == 2\n    assert f(1) == 2"
    ),
    "a test that takes another away": (
        "class TestA:\n    def test_a(self):\n        TestB.test_b = lambda self: None\n        assert f(1) == 2\n"
        "class TestB:\n    def test_b(self): assert f(3) == 6"
    ),
    "data on a test that the main guard extends": (
        "def test_a():\n    for x, y in test_a.cases: assert f(x) == y\n    assert f(1) == 2\ntest_a.cases = [(1, 2)]\n"
        "if __name__ == '__main__':\n    test_a.cases.append((3, 6))\n    test_a()"
    ),
    "main has an assertion of its own": (
        "def test_a(): assert f(1) == 2\ndef main():\n    test_a()\n    assert f(3) == 6\n"
        "if __name__ == '__main__': main()"
    ),
    "the guard exits in if": (
        CASE + "    def test_a(self): self.assertEqual(f(3), 6)\nimport sys\nif __name__ == '__main__':\n"
        "    result = unittest.main(exit=False).result\n    if result.wasSuccessful():\n"
        "        print('ok'); sys.exit(0)\n    else:\n        sys.exit(1)"
    ),
    "the module exits in if": (
        "import sys\nok = True\nfor x, y in [(1, 2), (3, 6)]:\n    if f(x) != y: ok = False\n"
        "if ok:\n    print('PASS')\n    sys.exit(0)\nelse:\n    print('FAIL')\n    sys.exit(1)"
    ),
    "the module exits in try": (
        "import sys\ntry:\n    assert f(1) == 2\n    assert f(3) == 6\n    print('ok')\n    sys.exit(0)\n"
        "except AssertionError as e:\n    print(e)\n    sys.exit(1)"
    ),
    "the guard exits in try": (
        "import sys\ndef test_a(): assert f(3) == 6\nif __name__ == '__main__':\n    try:\n        test_a()\n"
        "        print('ok')\n        sys.exit(0)\n    except AssertionError:\n        sys.exit(1)"
    ),
    "the guard exits in try after an assertion of its own": (
        "import sys\ndef test_a(): assert f(1) == 2\nif __name__ == '__main__':\n    try:\n        test_a()\n"
        "        assert f(3) == 6\n        sys.exit(0)\n    except AssertionError:\n        sys.exit(1)"
    ),
    "a runner of one's own": (
        "class Runner:\n    def __init__(self): self.bad = []\n    def check(self, x, y):\n"
        "        if f(x) != y: self.bad.append(x)\n    def run(self):\n        self.check(1, 2); self.check(3, 6)\n"
        "        assert not self.bad\nRunner().run()"
    ),
    "a class that asserts when it is made": "class Checker:\n    def __init__(self): assert f(3) == 6\nChecker()",
    "methods of a class": (
        "class Checks:\n    def run_all(self): self.t1()\n    def t1(self): assert f(3) == 6\nt = Checks()\nt.run_all()"
    ),
    "methods by their names": (
        "class Suite:\n    def t_1(self): assert f(1) == 2\n    def t_2(self): assert f(3) == 6\n"
        "if __name__ == '__main__':\n    s = Suite()\n    for n in dir(s):\n"
        "        if n.startswith('t_'): getattr(s, n)()"
    ),
    "SystemExit with a truth value": (
        "ok = True\nfor x, y in [(1, 2), (3, 6)]:\n    ok = ok and f(x) == y\n"
        "if __name__ == '__main__':\n    assert f(1) == 2\n    raise SystemExit(not ok)"
    ),
}


@pytest.mark.parametrize("name", PAYS_THE_RIGHT_PROGRAM)
def test_every_test_of_the_file_counts(name: str) -> None:
    """Without the second run, which collects in the same way: a program can forge its report."""
    tests = PAYS_THE_RIGHT_PROGRAM[name]
    verify = make_code_verifier(CodeReward(timeout_s=4.0), _OnlyTheTester())
    assert [verify(f"```python\n{one}\n```", tests, {})[0] for one in (RIGHT, WRONG)] == [1.0, 0.0]


class _OnlyTheTester(ConfinedProcesses):
    def _test_in_one_process(self, *_: object, **__: object) -> base.Tested:
        return base.Tested(1000, 0)


EXITS = "class Door:\n    def __init__(self): self.inside = True\n    def exit(self): {}"


COUNTER = "class Counter2:\n    n = 0\n    def inc(self):\n        self.n += 1\n        return self.n"
COUNTS = "c = Counter2()\ndef test_a(): assert c.inc() == 1\n"
RUNS_ONCE = [
    "test_a()\ndef test_b(): assert c.inc() == 2\ntest_b()\nprint('ok')",
    "def main():\n    test_a()\n    print('ok')\nif __name__ == '__main__':\n    main()",
    "def main():\n    done = 0\n    for t in (test_a,):\n        try:\n            t()\n            done += 1\n"
    "        except Exception as e:\n            print(t.__name__, e)\n    return 0 if done else 1\n"
    "if __name__ == '__main__':\n    import sys\n    sys.exit(main())",
    "if __name__ == '__main__':\n    for t in [test_a]:\n        try:\n            t()\n            print('ok')\n"
    "        except AssertionError as e:\n            print('bad', e)\n            raise",
]
RUNS_TWICE = [
    "test_a()\nassert c.inc() == 2",
    "if __name__ == '__main__':\n    test_a()\n    assert c.n == 1",
    "if __name__ == '__main__':\n    test_a()\n    test_a()",
    "if __name__ == '__main__':\n    for _ in range(2): test_a()",
    "if __name__ == '__main__':\n    for t in [test_a]:\n        t()\n        t()",
    "def main(): test_a()\nif __name__ == '__main__':\n    main()\n    main()",
    "def main(): test_a()\nif __name__ == '__main__':\n    main()\nif __name__ == '__main__':\n    test_a()",
    "def setup_function(function): pass\ntest_a()",
]
RAISES = "def f(x):\n    if x < 0: raise ValueError\n    return 2 * x"
EXPECTS_AN_ERROR = (
    "import sys\nassert f(3) == 6\ntry:\n    f(-1)\n    sys.exit(1)\nexcept ValueError:\n    sys.exit(0)"
)
SCRIPTS = [
    "print(6)\nexit()",
    "print(6)\nquit(0)",
    "import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))",
    "import os\nos.path.dirname(__file__)",
]


@pytest.mark.parametrize(
    ("program", "tests", "extra", "reward"),
    [
        (EXITS.format("self.inside = False"), "d = Door()\nd.exit()\nassert d.inside == False", {}, 1.0),
        (EXITS.format("exit()"), "d = Door()\nd.exit()\nassert d.inside == False", {}, 0.0),
        (WRONG + "\nexit = print", ONE + "if f(3) != 6: exit(1)", {}, 0.0),
        # a test that can run only once: a script runs it where it stands
        (
            "n = []\ndef f():\n    n.append(0)\n    return len(n)",
            "def test_a(): assert f() == 1\ntest_a()",
            {},
            1.0,
        ),
        (
            "n = []\ndef f():\n    n.append(0)\n    return len(n)",
            "def test_a(): assert f() == 1\nfor t in (test_a,): t()",
            {},
            1.0,
        ),
        (
            "n = []\ndef f():\n    n.append(0)\n    return len(n)",
            "def test_a(): assert f() == 1\nif __name__ == '__main__':\n    for t in (test_a,):\n        t()\n        print('ok', t.__name__)",
            {},
            1.0,
        ),
        (
            "def f(x, n=[]):\n    n.append(x)\n    return len(n)",
            "def test_a(): assert f(0) == 1\ntest_a(); test_a()",
            {},
            0.0,
        ),
        *((COUNTER, COUNTS + calls, {}, 1.0) for calls in RUNS_ONCE),
        *((COUNTER, COUNTS + calls, {}, 0.0) for calls in RUNS_TWICE),
        # a TestCase under two names runs twice
        (
            COUNTER,
            CASE + "    c = Counter2()\n    def test_a(self): self.assertEqual(self.c.inc(), 1)\nAgain = T",
            {},
            0.0,
        ),
        # a script is a module __main__ of a Python with exit and quit
        *((program + "\nprint(6)", '{"inputs": ["3"], "outputs": ["6"]}', {}, 1.0) for program in SCRIPTS),
        ("print(2 * int(input()))", '{"inputs": "3\\n", "outputs": "6\\n"}', {}, 1.0),
        ("print(2)", '{"inputs": "3\\n", "outputs": "6\\n"}', {}, 0.0),
        *((program, EXPECTS_AN_ERROR, {}, reward) for program, reward in ((RAISES, 1.0), (RIGHT, 0.0))),
        ("def f(x):\n    if x == 3: quit()\n    return 2 * x", ONE + "assert f(3) == 6", {}, 0.0),
        # HumanEval's check runs in whole
        (
            WRONG,
            "def check(f, big=True):\n    assert f(1) == 2\n    if big: assert f(3) == 6\ncheck(f, big=False)",
            {"entry_point": "f"},
            0.0,
        ),
        (RIGHT, "def check(f):\n    assert f(3) == 6\ncheck(f)", {"entry_point": "f"}, 1.0),
    ],
)
def test_what_pytest_and_a_script_would_say(
    program: str, tests: str, extra: dict[str, str], reward: float
) -> None:
    verify = make_code_verifier(CodeReward(timeout_s=4.0), ConfinedProcesses())
    assert verify(f"```python\n{program}\n```", tests, extra)[0] == reward


def test_a_failure_that_is_no_exception_leaves_the_share_of_the_others() -> None:
    tests = (
        "import pytest\ndef test_a(): assert f(1) == 2\ndef test_b():\n"
        "    with pytest.raises(ValueError): f(3)\ndef test_c(): assert f(1) == 2"
    )
    verify = make_code_verifier(CodeReward(timeout_s=4.0, full_only=False), ConfinedProcesses())
    assert verify(f"```python\n{WRONG}\n```", tests, {}) == (pytest.approx(2 / 3), "partial")


def test_a_program_that_sleeps_at_its_start_has_no_time_left_and_is_no_error() -> None:
    """The tests then work for themselves at the limit."""
    tests = "want = sum(i * i for i in range(60_000_000))\nassert f(want) == 2 * want"
    verify = make_code_verifier(CodeReward(timeout_s=3.0), ConfinedProcesses())
    program = "import time\ntime.sleep(2.5)\n" + RIGHT
    assert verify(f"```python\n{program}\n```", tests, {}) == (0.0, "timeout")


def test_both_runs_pay_the_right_program() -> None:
    verify = make_code_verifier(CodeReward(timeout_s=4.0), ConfinedProcesses())
    names = [
        "setUpClass once",
        "main gives the exit status",
        "parametrize with a dict",
        "setup_module takes the module",
    ]
    found = [verify(f"```python\n{RIGHT}\n```", PAYS_THE_RIGHT_PROGRAM[name], {}) for name in names]
    assert found == [(1.0, "correct")] * len(names)


@pytest.mark.parametrize(
    ("tests", "word"),
    [
        (
            "import pytest\n@pytest.mark.filterwarnings('error')\ndef test_a(): assert f(3) == 6",
            "filterwarnings",
        ),
        (CASE + "    def test_a(self): self.assertEqual(f(3), 6)\ndef load_tests(*a): pass", "load_tests"),
        (
            CASE + "    def test_a(self): self.assertEqual(f(x), 6)\nx = 3\nunittest.main()\nx = 1",
            "before the end",
        ),
        (
            ONE
            + "def check(x, y): assert f(x) == y\ndef test_y():\n    for x, y in [(3, 6)]: yield check, x, y",
            "generator",
        ),
        (ONE + "class TestY:\n    def test_y(self): yield self.check, 3, 6", "generator"),
        (ONE + "def check_a(): assert f(3) == 6\ncheck_a.__test__ = True", "line 3: only `__test__ = False`"),
        (ONE + "def test_a(): assert f(3) == 6\n__test__ = False", "__test__"),
        (ONE + "def test_a(): assert f(3) == 6\nsetattr(test_a, '__test__', f(1) == 2)", "__test__"),
        (
            ONE
            + "def pytest_generate_tests(metafunc): metafunc.parametrize('x', [3])\ndef test_a(x): assert f(x) == 6",
            "pytest_generate_tests",
        ),
        (
            ONE + "class Base:\n    def __init__(self): self.x = 3\n"
            "class TestA(Base):\n    def test_a(self): assert f(self.x) == 6",
            "__init__",
        ),
        (
            ONE + "class TestA:\n    def __new__(cls): return 1\n    def test_a(self): assert f(3) == 6",
            "__new__",
        ),
        (ONE + "def test_a(x): assert f(x) == 6\ndef never(): test_a(3)", "fixtures"),
        (ONE + "if __name__ != '__main__':\n    def test_a(): assert f(3) == 6", "__main__"),
        (ONE + "if __name__ == '__main__': pass\nelse:\n    def test_a(): assert f(3) == 6", "without else"),
    ],
)
def test_what_cannot_be_collected_is_refused(tests: str, word: str) -> None:
    for code in (RIGHT, WRONG):
        with pytest.raises(SandboxFailed, match=word):
            ConfinedProcesses().run_tests(
                code, {"name": None, "cases": None, "tests": tests}, Limits(4.0, 512), stop_at_failure=True
            )


# what f is called with, in the order of pytest
COLLECTED = {
    "order": (
        "def test_b(): f('b')\ndef test_a(): f('a')\nclass TestZ:\n    def test_2(self): f('z2')\n"
        "    def test_1(self): f('z1')\ndef test_c(): f('c')"
    ),
    "bases first": (
        "class Base:\n    def test_x(self): f('base x')\n    def test_y(self): f('base y')\n"
        "class TestA(Base):\n    def test_0(self): f('0')\n    def test_x(self): f('own x')"
    ),
    "defined again": "def test_a(): f('old')\ndef test_b(): f('b')\ndef test_a(): f('new')",
    "names": (
        "def test_a(): f('a')\nhelper = test_a\ntest_again = test_a\ndef tested(): f('tested')\n"
        "testing = lambda: f('lambda')\ndef not_a_test(): f('no')\nclass Other:\n    def test_a(self): f('no')"
    ),
    "the preparations of a TestCase": (
        "import unittest\nclass T(unittest.TestCase):\n    def setUpClass(): f('setUpClass')\n"
        "    def tearDownClass(): f('tearDownClass')\n    setUpClass, tearDownClass = map(staticmethod, (setUpClass, tearDownClass))\n"
        "    @classmethod\n    def setup_class(cls): f('setup_class')\n    @classmethod\n"
        "    def teardown_class(cls): f('teardown_class')\n    def test_a(self): f('a')"
    ),
    "abstract": (
        "from abc import ABC, abstractmethod\nimport unittest\nclass TestBase(ABC):\n    @abstractmethod\n"
        "    def make(self): ...\n    def test_x(self): f(self.make())\nclass TestA(TestBase):\n"
        "    def make(self): return 'a'\nclass Case(unittest.TestCase, ABC):\n    @abstractmethod\n"
        "    def make(self): ...\n    def test_y(self): f(self.make())\nclass Made(Case):\n    def make(self): return 'b'"
    ),
    "a TestCase under two names": (
        "import unittest\nclass T(unittest.TestCase):\n    @classmethod\n    def setUpClass(cls): f('up')\n"
        "    def test_a(self): f('a')\nAgain = T"
    ),
    "marked as a test": (
        "class Checks:\n    __test__ = True\n    def test_a(self): f('a')\n    def check(self): f('no')\n"
        "class Base:\n    __test__ = False\n    def test_b(self): f('b')\nclass TestNone(Base): pass\n"
        "class TestOne(Base): __test__ = True"
    ),
    "called as well": (
        "cases = [1]\ndef test_a(): f(list(cases))\ntest_a()\ncases.append(2)\ndef test_b(function=None): f('b')\n"
        "def never():\n    @test_b\n    def inner(): pass"
    ),
    "collected before one runs": (
        "def setup_module():\n    global test_new\n    test_new = lambda: f('no')\nclass TestA:\n"
        "    def test_a(self): del TestB.test_b\nclass TestB:\n    def test_b(self): f('b')"
    ),
    "marked as none": (
        "def test_a(): f('no')\ntest_a.__test__ = False\ndef test_b(): f('b')\n"
        "class TestA:\n    __test__ = False\n    def test_a(self): f('no')"
    ),
    "wrapped": (
        "import functools\n@functools.lru_cache\ndef test_a(): f('cached')\n"
        "test_p = functools.partial(lambda x: f(x), 'partial')\nclass Called:\n    def __call__(self): f('no')\n"
        "test_o = Called()\nclass TestA:\n    @staticmethod\n    def test_s(): f('static')\n"
        "    @classmethod\n    def test_c(cls): f('class')"
    ),
    "unittest": (
        "import unittest\nfrom unittest import TestCase\nclass Case(unittest.TestCase):\n    @classmethod\n"
        "    def setUpClass(cls): f('up')\n    @classmethod\n    def tearDownClass(cls): f('down')\n"
        "    def setUp(self): f('setUp')\n    def tearDown(self): f('tearDown')\n"
        "    def setup_method(self, method): f('method')\n    def teardown_method(self, method): f('end')\n"
        "    def test_b(self): f('b')\n    def test_a(self): f('a')\nAgain = Base = None\n"
        "class Empty(TestCase):\n    @classmethod\n    def setUpClass(cls): f('no')"
    ),
    "nested": (
        "class TestA:\n    def test_1(self): f('1')\n    class TestB:\n        def test_2(self): f('2')\n"
        "    class Hidden:\n        def test_3(self): f('no')\n    def test_4(self): f('4')"
    ),
    "preparations": (
        "def setup_module(module): f('module ' + module.__name__[:0])\ndef teardown_module(): f('end module')\n"
        "def setup_function(function): f(function.__name__)\ndef teardown_function(): f('end function')\n"
        "def test_a(): f('a')\nclass TestA:\n    def setup_class(cls): f(cls.__name__)\n"
        "    def teardown_class(cls): f('end class')\n    def setup_method(self, method): f(method.__name__)\n"
        "    def teardown_method(self): f('end method')\n    def test_m(self): f('m')"
    ),
    "marks of the module and of a class": (
        "import pytest\npytestmark = [pytest.mark.slow, pytest.mark.parametrize('x', [1, 2])]\n"
        "@pytest.mark.parametrize('y', [3, 4])\ndef test_a(x, y): f([x, y])\nclass TestB:\n"
        "    pytestmark = pytest.mark.parametrize('z', [5, 6])\n    def test_c(self, x, z): f([x, z])"
    ),
    "parameters": (
        "import pytest\n@pytest.mark.parametrize('x', [1, (2,), {'a': 1}, pytest.param(3, id='three')])\n"
        "def test_a(x): f(x)\n@pytest.mark.parametrize(['x'], [(1,), pytest.param((2,))])\ndef test_b(x): f(x)\n"
        "@pytest.mark.parametrize('x, y', [(1, 2), [3, 4]])\ndef test_c(x, y): f([x, y])\n"
        "@pytest.mark.parametrize('x', [7, 8])\nclass TestA:\n    def test_d(self, x): f(x)"
    ),
}
OURS = """
import json, sys
from sppo_ray.rewards.code.sandbox.tester import CodeTests
class OwnObjects:
    calls = 0
    def __init__(self, names): self.subject = names.get
    def exceptions(self, names): return {}
    def set_for_all(self, *what): pass
found = {}
for name, code in json.load(sys.stdin).items():
    calls = []
    tests = CodeTests(code + "\\ndef check(candidate): assert candidate(0) is None", "f")
    for one in tests.steps(OwnObjects({"f": calls.append})):
        one.run()
    found[name] = [call for call in calls if call != 0]
print(json.dumps(found))
"""


def test_the_collected_tests_are_those_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "solution.py").write_text(
        "calls = {}\ndef f_of(name): return calls.setdefault(name, []).append\n"
    )
    (tmp_path / "conftest.py").write_text(
        "import json, pathlib, solution\ndef pytest_sessionfinish():\n"
        "    pathlib.Path('calls.json').write_text(json.dumps(solution.calls))\n"
    )
    for number, (name, code) in enumerate(COLLECTED.items()):
        head = f"from solution import f_of\nf = f_of({name!r})\n"
        (tmp_path / f"test_{number}.py").write_text(head + code)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    ours = subprocess.run(
        [sys.executable, "-c", OURS], input=json.dumps(COLLECTED), capture_output=True, text=True, check=False
    )
    assert ours.returncode == 0, ours.stderr
    assert json.loads(ours.stdout) == json.loads((tmp_path / "calls.json").read_text())
