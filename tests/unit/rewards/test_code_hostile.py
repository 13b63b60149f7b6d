"""Wrong programs that try to be paid, or to escape their 0: each scores 0, and never counts as an
error.
"""

# ruff: noqa: E501 (a program and its tests stand on one line)
from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sppo_ray.config import CodeReward
from sppo_ray.rewards.code.base import Limits, Ran, SandboxFailed
from sppo_ray.rewards.code.row_tests import same_output
from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses
from sppo_ray.rewards.code.verifier import make_code_verifier

VERIFY = make_code_verifier(CodeReward(timeout_s=2.0), ConfinedProcesses())


def score(code: str, tests: str, extra: dict[str, Any] | None = None) -> tuple[float, str]:
    return VERIFY(f"```python\n{code}\n```", tests, extra or {})


# The program finds its own process's end of the wire and answers what it likes.
SPEAKS = """
import json, sys
import sppo_ray.rewards.code.sandbox.served as served
def serve(self):
    while True:
        asked = self._wire.receive()
        given = asked["given"]
        self._wire.send(ANSWER if asked["do"].startswith("call") else {"value": {"kept": 1}})
served._Server.serve = serve
def f(*a): return None
"""
EMPTIES = '{"value": VALUE, "args": [[] if isinstance(one, list) else one for one in given]}'
SORTS = "import random\nfor _ in range(50):\n    a = [random.randint(0, 99) for _ in range(9)]\n    assert f(a) == sorted(a)"
ANY = """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return True
    def __bool__(self): return True
    def __contains__(self, other): return True
    def __len__(self): return 3
    def __iter__(self): return iter([1, 2, 3])
    def __getitem__(self, key): return 1
    def __hash__(self): return 1
    def __call__(self, *a): return self
    def __getattr__(self, name): return self
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __str__(self): return "9"
    def __add__(self, other): return self
    __sub__ = __radd__ = __rsub__ = __mul__ = __abs__ = __add__
    def __float__(self): return 9.0
    __int__ = __index__ = lambda self: 9
def f(*a): return Any()
"""
ZERO = "def f(*a): return 0"
PICKLES = """
import pickle as json
class Bomb:
    def __reduce__(self):
        return (exec, ("import os\\nfor fd in range(3, 40):\\n    try: os.pwrite(fd, b'{\\"passed\\": 1, \\"failed\\": 0}', 0)\\n"
                       "    except OSError: pass\\nos._exit(0)",))
def dump(x): return json.dumps(Bomb())
loads = json.loads
"""

PAID = {
    "None for an argument that cannot change in place": (
        "def f(*a): pass",
        json.dumps({"inputs": [[5, 3], [9, 2]], "outputs": [5, 9], "fn_name": "f"}),
    ),
    "None for a text": (
        "def f(*a): pass",
        json.dumps({"inputs": [["abc"]], "outputs": ["abc"], "fn_name": "f"}),
    ),
    # values in place of those that the tests compare with
    "empties the argument, gives []": (SPEAKS.replace("ANSWER", EMPTIES.replace("VALUE", "[]")), SORTS),
    "empties the argument, gives None": (SPEAKS.replace("ANSWER", EMPTIES.replace("VALUE", "None")), SORTS),
    "empties the argument, honest wire": ("def f(a):\n    a.clear()\n    return []", SORTS),
    "empties the argument, compared from the right": (
        SPEAKS.replace("ANSWER", EMPTIES.replace("VALUE", "[]")),
        "a = [3, 1]\nb = a\nassert sorted(a) == f(a)\nassert f(b) == sorted(b)",
    ),
    "empties a dict": (
        SPEAKS.replace("ANSWER", '{"value": {"dict": []}, "args": [{"dict": []}]}'),
        "d = {1: 2}\nassert f(d) == {v: k for k, v in d.items()}",
    ),
    "empties the argument, value kept in a name": (
        SPEAKS.replace("ANSWER", EMPTIES.replace("VALUE", "[]")),
        "a = [3, 1]\ngot = f(a)\nassert got == sorted(a)",
    ),
    "empties the argument, unittest": (
        SPEAKS.replace("ANSWER", EMPTIES.replace("VALUE", "[]")),
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        a = [3, 1]\n        "
        "self.assertEqual(f(a), sorted(a))",
    ),
    "empties the argument, through a method": (
        SPEAKS.replace("ANSWER", EMPTIES.replace("VALUE", "[]")).replace(
            "def f", "class Solution: pass\ndef f"
        ),
        "a = [3, 1]\nassert Solution().f(a) == sorted(a)",
    ),
    "answers with more arguments": (
        SPEAKS.replace("ANSWER", '{"value": None, "args": [1, 2, 3]}'),
        "a = [2, 1]\nf(a)\nassert a == [1, 2]",
    ),
    "answers an object for a function": (
        SPEAKS.replace("ANSWER", '{"value": {"kept": 0}}'),
        "assert f(1) == f(2)",
    ),
    # exceptions that steer the tests
    "StopIteration in zip(map())": (
        "def f(x): raise StopIteration",
        "for a, b in zip(map(f, [1, 2]), [10, 20]):\n    assert a == b",
    ),
    "StopIteration in a comprehension": (
        "def f(x): raise StopIteration",
        "assert all(a == b for a, b in zip(map(f, [1, 2]), [10, 20]))",
    ),
    "StopIteration in next": (
        "def f(x): raise StopIteration",
        "def run():\n    yield f(1) == 2\nassert next(run(), True)",
    ),
    "StopIteration, map in a loop": (
        "def f(x): raise StopIteration",
        "for got in map(f, [1, 2]):\n    assert got == 3",
    ),
    "StopIteration, list": (
        "def f(x): raise StopIteration",
        "assert [v for v in map(f, [1]) if v != 4] == []",
    ),
    "StopIteration of its own class": (
        "class StopIteration(StopIteration): pass\ndef f(x): raise StopIteration",
        "for a, b in zip(map(f, [1]), [10]):\n    assert a == b",
    ),
    "StopIteration on the wire": (
        SPEAKS.replace("ANSWER", '{"raised": ["StopIteration"], "message": ""}'),
        "for a, b in zip(map(f, [1, 2]), [10, 20]):\n    assert a == b",
    ),
    "GeneratorExit": (
        "def f(x): raise GeneratorExit",
        "def g():\n    yield f(1) == 2\nfor ok in g():\n    assert ok",
    ),
    "KeyboardInterrupt": ("def f(x): raise KeyboardInterrupt", "assert f(1) == 2"),
    "SystemExit": (
        "def f(x): raise SystemExit(0)",
        "import sys\nif f(1) != 2:\n    sys.exit(1)\nassert f(1) == 2",
    ),
    "the list is too short": ("def f(x): return []", "for a, b in zip(f(3), [1, 2, 3]):\n    assert a == b"),
    "the list is too short, all()": (
        "def f(x): return []",
        "assert all(a == b for a, b in zip(f(3), [1, 2, 3]))",
    ),
    "the list is too short, check": (
        "def f(x): return [1]",
        "def check(candidate):\n    for a, b in zip([1, 2, 3], candidate(3)):\n        assert a == b",
        {"entry_point": "f"},
    ),
    "the list is too short, map()": (
        "def f(x): return []",
        "import operator\nassert all(map(operator.eq, f(3), [1, 2, 3]))",
    ),
    "the list is too short, enumerate()": (
        "def f(x): return []",
        "want = [1, 2]\nassert all(v == want[i] for i, v in enumerate(f(2)))",
    ),
    "ends before its sentinel": ("def f(): return None", "for x in iter(f, None):\n    assert x == 3"),
    "the parameters of the tests": (
        "def f(): return []",
        "import pytest\n@pytest.mark.parametrize('x', f())\ndef test_a(x):\n    assert x == f()",
    ),
    "the parameters of the tests, of another kind": (
        "def f(): return 5",
        "import pytest\n@pytest.mark.parametrize('x', f())\ndef test_a(x):\n    assert x == f()",
    ),
    "the generator is too short": (
        "def f(x):\n    yield 1",
        "for a, b in zip([1, 2, 3], f(3)):\n    assert a == b",
    ),
    "no assertion is reached": ("def f(x): return []", "for x in f(3):\n    assert x > 0"),
    "no assertion is reached, raising": (
        "def f(x): raise ValueError",
        "for x in [1, 2]:\n    try:\n        got = f(x)\n    except Exception:\n        continue\n    assert "
        "got == 2 * x",
    ),
    "one of two is raised away": (
        "def f(x):\n    if x > 1: raise ValueError\n    return 2",
        "for x in [1, 2]:\n    try:\n        got = f(x)\n    except Exception:\n        continue\n    assert "
        "got == 2 * x",
    ),
    "the failure is swallowed": (ZERO, "try:\n    assert f(1) == 2\nexcept Exception:\n    pass"),
    "the failure is printed": (
        ZERO,
        "try:\n    assert f(1) == 2\nexcept AssertionError:\n    print('failed')",
    ),
    "must raise, and does not": (ZERO, "try:\n    f(-1)\n    assert False\nexcept Exception:\n    pass"),
    "raises another exception": (
        "def f(x): raise KeyError",
        "import pytest\nwith pytest.raises(ValueError):\n    f(1)",
    ),
    "ends in a bare except": (
        "def f(x):\n    import os\n    os._exit(0)",
        "try:\n    f(1)\nexcept:\n    pass\nassert True or f(1)",
    ),
    # names that the tests use and do not define
    "isclose": (
        "def area(r): return 0\ndef isclose(*a, **k): return True",
        "assert isclose(area(2), 12.566, rel_tol=1e-3)",
    ),
    "isclose as an object": (
        ANY.replace("def f", "isclose = Any()\ndef area"),
        "assert isclose(area(2), 12.566)",
    ),
    "Counter": (
        "def f(s): return 0\nclass Counter:\n    def __init__(self, *a): pass\n    def __eq__(self, o): "
        "return True",
        "assert Counter(f('ab')) == Counter('ab')",
    ),
    "TOL": ("TOL = 1e9\ndef f(x): return 0", "assert abs(f(2) - 4) < TOL"),
    "EPS in a call": (
        "EPS = 1e9\ndef f(x): return 0",
        "import math\nassert math.isclose(f(2), 4, abs_tol=EPS)",
    ),
    "math": (
        "class math:\n    isclose = lambda *a, **k: True\ndef f(x): return 0",
        "assert math.isclose(f(2), 4)",
    ),
    "np": (
        "class np:\n    allclose = lambda *a, **k: True\n    array = list\ndef f(x): return 0",
        "assert np.allclose(f(2), np.array([4]))",
    ),
    "approx": ("def approx(x): return 0\ndef f(x): return 0", "assert f(2) == approx(4)"),
    "sqrt is the task, isclose is not": (
        "def sqrt(x): return 0\ndef isclose(*a): return True",
        "assert isclose(sqrt(2), 1.4142)",
    ),
    "sorted": ("def f(a): return a\ndef sorted(a): return a", "assert f([2, 1]) == sorted([2, 1])"),
    "len": ("def f(a): return a\ndef len(a): return 3", "assert len(f([1])) == 3"),
    "AssertionError": ("def f(a): return 0\nAssertionError = Exception", "assert f(1) == 1"),
    "pickle as json": (PICKLES, "assert json.loads(dump({'a': 1})) == {'a': 1}"),
    "pickle as json, function": (
        PICKLES,
        "assert json.loads(dump([1])) == [1]\nassert json.loads(dump({})) == {}",
    ),
    "marshal as re": ("import marshal as re\ndef f(s): return re.dumps(1)", "assert re.match('a', f('a'))"),
    "unittest in its place": (
        "import builtins as unittest\ndef f(x): return 0",
        "class T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(1), 2)",
    ),
    # objects of its own
    "in": (ANY.replace("def f", "def primes"), "assert 7 in primes(10)\nassert 11 in primes(12)"),
    "not in": (
        "class A:\n    def __contains__(self, o): return False\ndef f(n): return A()",
        "assert 4 not in f(10)",
    ),
    "in, with the method of a class": (
        ANY.replace("def f", "class Solution:\n  def f"),
        "assert 7 in Solution().f(10)",
    ),
    "in, with a class": (
        "class Odd:\n    def __init__(self, n): pass\n    def __contains__(self, o): return True\ndef f(n): "
        "return Odd(n)",
        "assert 7 in f(10)",
    ),
    "in the items of a list": (ANY.replace("return Any()", "return [Any()]"), "assert 7 in f(10)"),
    "truth": (ANY, "assert f(1)"),
    "not a lie": ("class A:\n    def __bool__(self): return False\ndef f(n): return A()", "assert not f(1)"),
    "truth in a condition": (ANY, "if not f(1):\n    raise ValueError\nassert f(2)"),
    "length": (ANY, "assert len(f(1)) == 3"),
    "iteration": (ANY, "assert list(f(1)) == [1, 2, 3]\nassert sorted(f(1)) == [1, 2, 3]"),
    "item": (ANY, "assert f(1)[0] == 1"),
    "text": (ANY, "assert str(f(1)) == '9'"),
    "format": (ANY, "assert f'{f(1)}' == '9'"),
    "order": (ANY, "assert f(1) > 0\nassert f(1) < 1"),
    "greatest": (ANY, "assert max(f(1), 3) != 3"),
    "difference": (ANY, "assert abs(f(1) - 9) < 1e-6"),
    "not equal": (ANY, "assert f(1) != 3\nassert f(2) != 4"),
    "two of them": (ANY, "assert f(1) == f(2)"),
    "two of them, plain class": ("class O: pass\ndef f(x): return O()", "assert f('listen') == f('silent')"),
    "two of them, in lists": ("class O: pass\ndef f(x): return [O()]", "assert f('listen') == f('silent')"),
    "two of them, unittest": (
        "class O: pass\ndef f(x): return O()",
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        "
        "self.assertEqual(f('a'), f('b'))",
    ),
    "a class that equals everything": (
        "class V:\n    def __init__(self, *a): pass\n    def __add__(self, o): return self\n    def "
        "__eq__(self, o): return True",
        "assert V(1) + V(2) == V(3)\nassert V(1) != V(2)",
    ),
    "a class that holds everything": (
        "class S:\n    def add(self, x): pass\n    def __contains__(self, x): return True",
        "s = S()\ns.add(1)\nassert 1 in s\nassert 2 not in s",
    ),
    "a class whose objects are true": (
        "class S:\n    def __init__(self, *a): pass",
        "assert S([1])\nassert not S([])",
    ),
    "a class that compares with plain values": (
        "class S:\n    def __init__(self, *a): pass\n    __eq__ = lambda s, o: True",
        "assert S(1) == 5",
    ),
    "a generator is true": ("def f(x):\n    yield 1", "assert f(1)"),
    "a set of them": (
        "class O: pass\ndef f(x): return [O() for _ in range(6)]",
        "assert len(set(f([1, 2, 3]))) == 6",
    ),
    "a key": ("class O: pass\ndef f(x): return O()", "assert len({f(1): 1, f(2): 2}) == 2"),
    "its class": (ANY + "class int(int): pass\n", "assert isinstance(f(1), int)"),
    "a subclass of int": (
        "class L(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef f(x): return L(0)",
        "assert f(1) == 2",
    ),
    "a subclass of str": (
        "class L(str):\n    __eq__ = lambda s, o: True\ndef f(x): return L('a')",
        "assert f(1) == 'b'",
    ),
    "pretends to be NumPy": (
        "class A:\n    __module__ = 'numpy'\n    def tolist(self): return self\n    __eq__ = lambda s, o: "
        "True\ndef f(x): return A()",
        "assert f(1) == 2",
    ),
    # numbers
    "infinite": (ZERO, '{"inputs": [[1]], "outputs": [Infinity], "fn_name": "f"}'),
    "minus infinite": (ZERO, '{"inputs": [[1]], "outputs": [-Infinity], "fn_name": "f"}'),
    "infinite, the other one": (
        "def f(x): return float('-inf')",
        '{"inputs": [[1]], "outputs": [Infinity], "fn_name": "f"}',
    ),
    "infinite, as text": (ZERO, json.dumps({"inputs": ["1"], "outputs": ["Infinity"], "fn_name": "f"})),
    "infinite, 1e999": (ZERO, '{"inputs": [[1]], "outputs": [1e999], "fn_name": "f"}'),
    "infinite, in a list": (
        "def f(x): return [0, 0]",
        '{"inputs": [[1]], "outputs": [[1e999, 0]], "fn_name": "f"}',
    ),
    "undefined": (ZERO, '{"inputs": [[1]], "outputs": [NaN], "fn_name": "f"}'),
    "gives nan": ("def f(x): return float('nan')", '{"inputs": [[1]], "outputs": [1.5], "fn_name": "f"}'),
    "gives inf": ("def f(x): return float('inf')", '{"inputs": [[1]], "outputs": [1.5], "fn_name": "f"}'),
    "a huge integer": ("def f(x): return 10 ** 400", '{"inputs": [[1]], "outputs": [1.5], "fn_name": "f"}'),
    "one beside a great integer": (
        "def f(x): return 1234567891.0",
        json.dumps({"inputs": [[1]], "outputs": [1234567890], "fn_name": "f"}),
    ),
    "a bool for a number": (
        "def f(x): return True",
        json.dumps({"inputs": [[1]], "outputs": [1], "fn_name": "f"}),
    ),
    "the text of a list": (
        "def f(x): return '[1, 2]'",
        json.dumps([{"input": "1", "output": "[1, 2]", "fn_name": "f"}]),
    ),
    "the member of a list": (
        "def f(x): return 1",
        json.dumps([{"input": "1", "output": "[1]", "fn_name": "f"}]),
    ),
    "keys that are one text": (
        "def f(x): return {1: 0, '1': 2}",
        json.dumps({"inputs": [[1]], "outputs": [{"1": 2}], "fn_name": "f"}),
    ),
    "stdout, infinite": ("print(0)", json.dumps({"inputs": [""], "outputs": ["1.0e999"]})),
    "stdout, nan": ("print('nan')", json.dumps({"inputs": [""], "outputs": ["1.5"]})),
}
NULL = {
    "modules in its greeting": (
        "import sppo_ray.rewards.code.sandbox.served as s\ndef f(x): return 0\nclass S(s._Server):\n    def "
        "__init__(self, wire, ns):\n"
        "        wire.send({'names': [], 'modules': {'f': 'venv.__main__'}})\n"
        "        super().__init__(type('W', (), {'send': lambda *a: None, 'receive': wire.receive})(), "
        "ns)\ns._Server = S",
        "assert f(2) == 4",
    ),
    "a module": ("import venv.__main__ as f", "assert f(2) == 4"),
    "a module that is not there": ("f = type(__builtins__)('antigravity')", "assert f(2) == 4"),
    "ImportError": ("def f(x): raise ImportError('numpy')", "assert f(2) == 4"),
    "SyntaxError": ("def f(x): raise SyntaxError", "assert f(2) == 4"),
    "UnicodeDecodeError": ("def f(x): return b'\\xff'.decode()", "assert f(2) == 4"),
    "ExceptionGroup": ("def f(x): raise ExceptionGroup('a', [ValueError()])", "assert f(2) == 4"),
    "an exception without a "
    "text": ("class E(Exception):\n    def __str__(self): return 1\ndef f(x): raise E", "assert f(2) == 4"),
    "MemoryError": ("def f(x): return bytearray(10 ** 12)", "assert f(2) == 4"),
    "RecursionError": ("def f(x): return f(x)", "assert f(2) == 4"),
    "a number on which a test does not "
    "end": ("def f(n): return (1 << 61) - "
            "1", "def isp(n):\n    d = 2\n    while d * d <= n:\n        if n % d == 0: return False\n       "
                 " d += 1\n    return True\np = f(10)\nassert isp(p) and p == 11"),
    "a length on which a test does not "
    "end": ("def f(n): return 10 ** 12", "for i in range(f(3)):\n    pass\nassert f(3) == 3"),
    "a power on which a test does not end": ("def f(n): return 10 ** 9", "assert 3 ** f(2) == 9"),
    "a list that fills the memory": ("def f(n): return 10 ** 9", "assert [0] * f(2) * 99 == [0, 0]"),
    "a pattern that does not "
    "end": ("def f(n): return 'a' * 40", "import re\nassert re.match('(a+)+$', f(1) + 'b')"),
    "an endless generator": ("def f(n):\n    while True: yield 1", "assert list(f(3)) == [1, 1, 1]"),
    "an endless generator, sum": ("def f(n):\n    while True: yield 1", "assert sum(f(3)) == 3"),
    "hangs when it is asked for the "
    "next": ("def f(n):\n    yield 1\n    while True: pass", "assert list(f(3)) == [1]"),
    "hangs in its start": ("while True: pass\ndef f(x): pass", "assert f(1) == 2"),
    "no such function": ("x = 1", "assert f(1) == 2"),
    "not a function": ("f = 5", "assert f(1) == 2"),
    "no method": ("class Solution: pass", json.dumps({"inputs": [[1]], "outputs": [2], "fn_name": "f"})),
    "Solution needs arguments": ("class Solution:\n    def __init__(self, x): "
                                 "pass", json.dumps({"inputs": [[1]], "outputs": [2], "fn_name": "f"})),
    "deep": ("def f(x):\n    a = []\n    for _ in range(10 ** 5): a = [a]\n    return "
             "a", "assert f(1) == []"),
    "holds itself": ("def f(x):\n    a = []\n    a.append(a)\n    return a", "assert f(1) == []"),
    "many digits": ("def f(x): return 10 ** 200_000", "assert f(1) == 1"),
    "a surrogate": ("def f(x): return '\\ud800'", "print(f(1))\nassert f(1).encode() == b''"),
    "Decimal('sNaN')": ("from decimal import Decimal\ndef f(x): return Decimal('sNaN')", "assert f(1) == 1"),
    "Decimal, huge": ("from decimal import Decimal\ndef f(x): return "
                      "Decimal('1e999999999')", "assert int(f(1)) == 1"),
    "Fraction of a great power": (
        SPEAKS.replace("ANSWER", '{"value": {"fraction": "1e999999999"}}'), "assert f(1) == 1",
    ),
    "a set that collides": ("def f(x): return {i * (2 ** 61 - 1) for i in range(3)}", "assert f(1) == {1}"),
    "a set of many collisions": (
        SPEAKS.replace("ANSWER", '{"value": {"set": [i * (2 ** 61 - 1) for i in '
                                 'range(100_000)]}}'), "assert f(1) == {1}",
    ),
    "a set of lists": (SPEAKS.replace("ANSWER", '{"value": {"set": [[1]]}}'), "assert f(1) == {1}"),
    "a range that is none": (SPEAKS.replace("ANSWER", '{"value": {"range": [0, 1, 0]}}'), "assert f(1) == 1"),
    "an endless range": ("def f(x): return range(10 ** 18)", "assert list(f(1)) == [0]"),
    "a message that is none": (SPEAKS.replace("ANSWER", '[1]'), "assert f(1) == 2"),
    "an exception that is none": (SPEAKS.replace("ANSWER", '{"raised": {"a": 1}}'), "assert f(1) == 2"),
    "an exception of many "
    "names": (SPEAKS.replace("ANSWER", '{"raised": [["x"], None, "print", '
                                       '"BaseException"]}'), "assert f(1) == 2"),
    "a kind of value that is "
    "none": (SPEAKS.replace("ANSWER", '{"value": {"__class__": 1}}'), "assert f(1) == 2"),
    "floods the wire": ("import os\ndef f(x):\n    for fd in range(3, 9):\n        try:\n            while "
                        "True: os.write(fd, b'x' * 65536)\n        except OSError: pass", "assert f(1) == 2"),
    "gives 20 MB": ("def f(x): return 'x' * 20_000_000", "assert f(1) == 2"),
    "gives an object for the tests to hand back": (ANY, "assert f(f(1)) == 2"),
    "gives text where a number is handed back": ("def f(x): return 'a'", "assert f(f(1) + 1) == 2"),
    "its attributes": (ANY, "assert f(1).value == 2"),
    "ends itself": ("def f(x):\n    import os\n    os._exit(0)", "assert f(1) == 2"),
    "crashes": ("def f(x):\n    import ctypes\n    ctypes.string_at(0)", "assert f(1) == 2"),
    "slow in each of many "
    "calls": ("import time\ndef f(x):\n    time.sleep(0.1)\n    return "
              "x", json.dumps({"inputs": [[i] for i in range(60)], "outputs": list(range(60)), "fn_name": "f"})),
    "slow in each of many "
    "scripts": ("import time\ntime.sleep(0.2)\nprint(input())", json.dumps({"inputs": [f"{i}" for i in range(20)], "outputs": [f"{i}" for i in range(20)]})),
    "much to compare, many "
    "scripts": ("print('1.5 ' * 300_000)", json.dumps({"inputs": [""] * 20, "outputs": ["1.50 " * 300_000] * 20})),
}  # fmt: skip


@pytest.mark.parametrize("name", [*PAID, *NULL])
def test_a_wrong_program_scores_nothing_and_is_no_error(name: str) -> None:
    code, tests, *extra = (PAID | NULL)[name]
    reward, reason = score(code, tests, *extra)
    assert (reward, reason in ("wrong", "timeout", "runtime_error")) == (0.0, True), reason


# ---------------------------------------------------------------------- what the tests alone decide

RIGHT_AND_WRONG = (
    "def f(x): return 2 * x\ndef g(x): return x // 2\ndef close(*a): return True\nLIMIT = 1e9",
    "def f(x): return 0\ndef g(x): return 4\ndef close(*a): return True\nLIMIT = 1e9",
    "while True: pass",
    "f = close = g = LIMIT = 5",
)


@pytest.mark.parametrize("code", RIGHT_AND_WRONG)
@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("assert abs(f(2) - 4) < LIMIT", "use LIMIT and do not define it"),
        ("from solution import f, LIMIT\nassert abs(f(2) - 4) < LIMIT", "use LIMIT"),
        ("import solution\nassert abs(solution.f(2) - 4) < solution.LIMIT", "use solution.LIMIT"),
        ("import solution as s\nassert s.close(s.f(2), 4)", "s.close of the program would judge what s.f"),
        ("assert close(f(2), 4)", "close of the program would judge what f"),
        (
            "def test_a():\n    got = f(2)\n    assert close(got, 4)",
            "close of the program would judge what f",
        ),
        ("assert g(f(2)) == 2", "g of the program would judge what f"),
        ("assert f(2) == g(8)", "f of the program would judge what g"),
        ("found = []\nfor x in [1]:\n    found.append(f(x))\nassert close(found)", "close of the program"),
        ("class T:\n    pass\nassert Checker().holds(f(2))", "Checker of the program would judge what f"),
        ("import no_such_package\nassert f(2) == 4", "no_such_package"),
        ("assert f(2) == 4\nimport no_such_package", "no_such_package"),
        ("def test_a():\n    import no_such_package\n    assert f(2) == 4", "no_such_package"),
        ("f(2)", "assert nothing"),
        ("print(f(2) == 4)", "assert nothing"),
        ("assert 2 + 2 == 4", "never call the program"),
        ("def f(x): return 4\nassert f(2) == 4", "never call the program"),
    ],
)
def test_tests_at_fault_are_an_error_for_every_program(tests: str, message: str, code: str) -> None:
    if "pass" in code and "no_such" not in message:
        code = "x = 1"  # the time limit is not what is tested
    with pytest.raises(SandboxFailed, match=message):
        score(code, tests)


def test_where_the_ground_truth_names_the_function_no_helper_comes_from_the_program() -> None:
    with pytest.raises(SandboxFailed, match="use poly and do not define it"):
        score(
            "def f(x): return 0\ndef poly(*a): return 0",
            "def check(candidate):\n    assert poly(candidate(2)) < 1e-4",
            {"entry_point": "f"},
        )


class SlowStarts:
    """A sandbox in which a start takes long and every script prints 1."""

    def check(self) -> None: ...

    def end_of_sample(self) -> float:
        return math.inf

    def run_script(self, code: str, stdin: str, limits: Limits, **_: Any) -> Ran:
        subprocess.run([sys.executable, "-IS", "-c", "sum(range(1_000_000))"], check=True)
        return Ran("ok", "1", 0.001)

    def run_tests(self, code: str, tests: Any, limits: Limits, *, stop_at_failure: bool) -> Any:
        raise NotImplementedError


def test_more_cases_than_can_be_started_are_an_error_and_not_the_program_s_fault() -> None:
    verify = make_code_verifier(CodeReward(timeout_s=0.4), SlowStarts())
    tests = json.dumps({"inputs": [""] * 99, "outputs": ["1"] * 99})
    with pytest.raises(SandboxFailed, match="99 cases cannot be started within 0.4 s"):
        verify("```python\nprint(1)\n```", tests, {})


class BusyMachine(SlowStarts):
    """A sandbox whose processes wait 50 ms for a processor that others have."""

    def run_script(self, code: str, stdin: str, limits: Limits, **_: Any) -> Ran:
        time.sleep(0.05)
        return Ran("ok", "1", 0.001)


def test_a_busy_machine_does_not_make_many_cases_an_error() -> None:
    verify = make_code_verifier(CodeReward(timeout_s=0.4), BusyMachine())
    tests = json.dumps({"inputs": [""] * 30, "outputs": ["1"] * 30})
    assert verify("```python\nprint(1)\n```", tests, {}) == (1.0, "correct")


class SlowProgram(SlowStarts):
    """A sandbox that starts at once; only the empty program is fast."""

    def run_script(self, code: str, stdin: str, limits: Limits, **_: Any) -> Ran:
        seconds = 0.02 if code else 0.0
        time.sleep(seconds)
        return Ran("ok", "1", seconds)


def test_a_program_that_is_slow_in_many_cases_is_late_and_no_error() -> None:
    verify = make_code_verifier(CodeReward(timeout_s=0.5, full_only=False), SlowProgram())
    tests = json.dumps({"inputs": [""] * 30, "outputs": ["0"] * 30})
    assert verify("```python\nprint(1)\n```", tests, {}) == (0.0, "timeout")


BURNS = """
import threading
def burn():
    while True: pass
for _ in range(50): threading.Thread(target=burn, daemon=True).start()
def f(x): return 0
"""


def test_programs_that_burn_the_processors_are_wrong_and_no_error() -> None:
    tests = "n = sum(i * i for i in range(4_000_000))\nassert f(2) == 4"
    with ThreadPoolExecutor(5) as threads:
        beside = threads.submit(score, "def f(x): return 2 * x", tests)
        burners = list(threads.map(lambda _: score(BURNS, tests)[0], range(4)))
    assert burners == [0.0] * 4
    assert beside.result()[0] in (0.0, 1.0)  # late on a loaded machine, but no error


def test_a_served_program_holds_its_own_files_only() -> None:
    code = "import os\ndef f():\n    held = []\n    for n in range(128):\n        try:\n            os.fstat(n)\n            held.append(n)\n        except OSError: pass\n    return len(held)"
    # stdin, stdout, stderr; two ends of the wire, or the file of the result
    assert score(code, "assert f() in (4, 5)") == (1.0, "correct")


@pytest.mark.parametrize(
    ("written", "due", "equal"),
    [
        ("1.0000001", "1.0", True),
        ("1.1", "1.0", False),
        ("inf", "1e999.0", False),
        ("5", "1.0e999", False),
        ("nan", "nan", True),
        ("inf", "inf", True),
        ("1", "inf", False),
        ("0", "6.62607015e-34.0", False),
        ("0.0", "6.62607015e-34", False),
        ("6.6260701500001e-34", "6.62607015e-34", True),
        ("0.0", "1.2246467991473532e-16", True),  # a rounding error
        ("0.0", "1.602176634e-19", False),
        ("-0.0000000004", "0.0000000004", False),
        ("0.0000000004", "0.0", True),
        ("0", "0.000001", False),
        ("0.000002", "0.000001", False),
        ("0.0000014", "0.000001", True),  # rounds to it
        ("0", "1.e-30", False),
        ("12345679.", "12345678.", False),
        ("12345678", "12345678.", False),
        ("0.00333333", "0.003333", True),
        ("0.003335", "0.003333", False),
        ("123456.70", "123456.78", False),
        ("123456.7834", "123456.78", True),
        ("3000000", "3000001.0", False),
        ("123456.7890124", "123456.7890123", True),
        ("\uff11.5", "1.5", False),
    ],
)
def test_words_of_stdout(written: str, due: str, equal: bool) -> None:
    assert same_output(written, due) is equal
