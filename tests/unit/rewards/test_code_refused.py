"""Forms of tests that cannot be judged: each is an error for every program."""

# ruff: noqa: E501 (a form stands on one line)
from __future__ import annotations

import pytest

from tests.unit.rewards.code_forms import EVEN, RIGHT, WRONG, unittest_of, verdict

OBJECT = (
    "assert f(0) == 0\nclass Deco:\n    def __init__(self, g): self.g = g\n    def __call__(self): self.g()\n"
)

# a form that is refused, with the line and a word of the reason
REFUSED = {
    "import contextlib\nwith contextlib.suppress(Exception):\n    assert f(2) == 4": (2, "suppress"),
    "from contextlib import suppress as quiet\nwith quiet(Exception):\n    assert f(2) == 4": (1, "suppress"),
    "with suppress(Exception):\n    assert f(2) == 4": (1, "suppress"),
    "class Quiet:\n    def __enter__(self): pass\n    def __exit__(self, *a): return True\nwith Quiet():\n    assert f(2) == 4": (
        3,
        "__exit__",
    ),
    "def test_a():\n    try:\n        assert f(2) == 4\n    finally:\n        return": (3 - 1, "finally"),
    "for x in (1, 2):\n    try:\n        assert f(x) == 4\n    finally:\n        break": (2, "finally"),
    "for x in (1, 2):\n    try:\n        assert f(x) == 4\n    finally:\n        continue": (2, "finally"),
    "try:\n    assert f(2) == 4\nexcept* AssertionError:\n    pass": (1, "except*"),
    "import builtins\ntry:\n    assert f(2) == 4\nexcept builtins.AssertionError:\n    pass": (1, "builtins"),
    "import pytest\nwith pytest.raises(AssertionError):\n    assert f(2) == 5": (2, "its own assertion"),
    unittest_of("with self.assertRaises(Exception):\n            self.assertEqual(f(2), 5)"): (
        4,
        "its own assertion",
    ),
    "assert f(0) == 0\nasync def test_a():\n    assert f(2) == 4": (2, "async"),
    "import unittest\nclass T(unittest.IsolatedAsyncioTestCase):\n    async def test_a(self):\n        self.assertEqual(f(2), 4)": (
        3,
        "async",
    ),
    "import threading\nt = threading.Thread(target=lambda: g())\ndef g(): assert f(2) == 4\nt.start()": (
        1,
        "threading",
    ),
    "from concurrent.futures import ThreadPoolExecutor\nThreadPoolExecutor().submit(f, 2)\nassert f(2) == 4": (
        1,
        "concurrent",
    ),
    "assert (f(2) == 4, 'wrong')": (1, "tuple"),
    "assert f(0) == 0\nz = zip\nfor a, b in z(f(3), [1]):\n    assert a == b": (2, "zip"),
    "match f(2):\n    case got:\n        assert got == 4": (1, "match"),
    "assert eval(f('x')) == 4": (1, "eval"),
    "import pickle\nassert pickle.loads(f(1)) == 4": (1, "pickle"),
    "import unittest.mock\nwith unittest.mock.patch('solution.g'):\n    assert f(2) == 4": (2, "patch"),
    "import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    f(2)\nassert out.getvalue() == '4'": (
        2,
        "redirect_stdout",
    ),
    "import pytest\nwith pytest.warns(UserWarning):\n    assert f(2) == 4": (2, "warns"),
    unittest_of("with self.assertLogs():\n            self.assertEqual(f(2), 4)"): (4, "assertLogs"),
    "import warnings\nwith warnings.catch_warnings(record=True) as w:\n    assert f(2) == 4\nassert w": (
        2,
        "catch_warnings",
    ),
    "found = []\nassert f(found.append) is None\nassert found == [1]": (2, "method of their own"),
    "import pytest\n@pytest.mark.skip\ndef test_a(): assert f(2) == 4": (2, "skip"),
    "import pytest\n@pytest.mark.xfail\ndef test_a(): assert f(2) == 5": (2, "xfail"),
    "import unittest\nclass T(unittest.TestCase):\n    @unittest.expectedFailure\n    def test_a(self): self.assertEqual(f(2), 5)": (
        3,
        "expectedFailure",
    ),
    "import pytest\nassert f(0) == 0\n@pytest.fixture(autouse=True)\ndef x():\n    assert f(2) == 4": (
        3,
        "fixture",
    ),
    "def test_a(capsys):\n    f(2)\n    assert capsys.readouterr().out == '4'": (1, "fixtures"),
    "assert f(0) == 0\nclass TestA:\n    def __init__(self): pass\n    def test_a(self): assert f(2) == 4": (
        2,
        "__init__",
    ),
    "def test_a():\n    yield\n    assert f(2) == 4": (1, "generator"),
    "from contextlib import contextmanager\nassert f(0) == 0\n@contextmanager\ndef test_a():\n    assert f(2) == 4\n    yield": (
        4,
        "generator",
    ),
    # what a decorator puts into the place of a test
    OBJECT + "@Deco\ndef test_a(): assert f(2) == 4": (5, "decorator"),
    OBJECT + "Again = Deco\n@Again\ndef test_a(): assert f(2) == 4": (6, "decorator"),
    OBJECT + "def deco(g): return Deco(g)\n@deco\ndef test_a(): assert f(2) == 4": (6, "decorator"),
    OBJECT + "deco = Deco(None)\n@deco\ndef test_a(): assert f(2) == 4": (6, "decorator"),
    EVEN + "class TestA:\n    @property\n    def test_a(self): assert f(2) == 4": (3, "decorator"),
    OBJECT + "@Deco\nclass TestA:\n    def test_a(self): assert f(2) == 4": (5, "decorator"),
    # files
    "import tempfile\nassert f(0) == 0\nwith tempfile.TemporaryDirectory() as d:\n    assert f(2) == 4": (
        1,
        "files",
    ),
    "assert f(0) == 0\ndef test_a():\n    with open('/tmp/x', 'w') as out: out.write('a')\n    assert f(2) == 4": (
        3,
        "open",
    ),
    "import os\nassert f(0) == 0\nos.makedirs('/tmp/x')\nassert f(2) == 4": (3, "makedirs"),
    unittest_of("self.addCleanup(self.assertEqual, f(2), 4)\n        self.doCleanups()"): (5, "doCleanups"),
    "assert f(0) == 0\ndef cases():\n    assert f(2) == 4\n    yield\ncases()": (2, "generator"),
    "assert f(0) == 0\ndef one(x):\n    assert f(x) == 4\nmap(one, [2])": (4, "never runs"),
    "assert f(0) == 0\ndef test_a(): return f(2) == 4": (2, "returns"),
    "assert f(0) == 0\ndef test_a():\n    if f(2) != 4: return False\n    return True": (2, "returns"),
    unittest_of("self.assertEqual(f(0), 0)\n        [self.assertGreater(x, 0) for x in []]"): (
        5,
        "comprehension",
    ),
    # two functions of the program
    "class Judge:\n    def holds(self, got): return near(got, 4)\nassert Judge().holds(f(2))": (
        None,
        "would judge",
    ),
    "class Judge:\n    def __init__(self, got): self.got = got\n    def holds(self): return near(self.got, 4)\nassert Judge(f(2)).holds()": (
        None,
        "would judge",
    ),
    unittest_of("self.holds(f(2))\n    def holds(self, got): self.assertTrue(near(got, 4))"): (
        None,
        "would judge",
    ),
    "import unittest\nclass T(unittest.TestCase):\n    def setUp(self): self.got = f(2)\n    def test_a(self): self.assertTrue(near(self.got, 4))": (
        None,
        "would judge",
    ),
    "import pytest\n@pytest.mark.parametrize('got', [f(2)])\ndef test_a(got): assert near(got, 4)": (
        None,
        "would judge",
    ),
    "def holds(got=f(2)): return near(got, 4)\nassert holds()": (None, "would judge"),
    "p = [f(2), 4]\nassert near(*p)": (None, "would judge"),
    "p = {'a': f(2)}\nassert near(**p)": (None, "would judge"),
    "def holds(*p): return near(*p)\nassert holds(f(2), 4)": (None, "would judge"),
    "class O: pass\no = O()\nsetattr(o, 'got', f(2))\nassert near(o.got, 4)": (None, "would judge"),
    "holds = lambda got: near(got, 4)\nassert holds(f(2))": (None, "would judge"),
    "def holds(got): return near(got, 4)\nassert all(map(holds, [f(2)]))": (None, "would judge"),
    "def holds(got): return near(got, 4)\ng = holds\nassert g(f(2))": (None, "would judge"),
    "import operator\nassert operator.eq(f(2), near(8))": (None, "would judge"),
    "assert len({f(2), near(8)}) == 1": (None, "would judge"),
    "assert len(set([f(2), near(8)])) == 1": (None, "would judge"),
    "d = {}\nd['a'] = f(2)\nassert near(d['a'], 4)": (None, "would judge"),
    "class J:\n    def __eq__(self, got): return near(got, 4)\nassert f(2) == J()": (None, "would judge"),
    "class J:\n    def holds(self, got): return near(got, 4)\nassert getattr(J(), 'holds')(f(2))": (
        None,
        "would judge",
    ),
    "import io\nout = io.StringIO()\nprint(f(2), file=out)\nassert near(out.getvalue(), '4')": (
        None,
        "would judge",
    ),
    "def got():\n    yield f(2)\nfor x in got():\n    assert near(x, 4)": (None, "would judge"),
}


@pytest.mark.parametrize("tests", REFUSED)
def test_a_form_that_cannot_be_judged_is_an_error_for_every_program(tests: str) -> None:
    line, word = REFUSED[tests]
    for code in (RIGHT + "\ndef near(*a): return True", WRONG + "\ndef near(*a): return True", "x = 1"):
        found = verdict(code, tests)
        assert isinstance(found, str) and word in found and (line is None or f"line {line}:" in found), found
