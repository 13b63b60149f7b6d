"""Right programs with tests as the common data sets write them: each must get its reward, however
strict the tester is.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from sppo_ray.config import CodeReward
from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses
from sppo_ray.rewards.code.verifier import make_code_verifier

VERIFY = make_code_verifier(CodeReward(timeout_s=8.0), ConfinedProcesses())

STACK = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self):
        if not self.items: raise IndexError("pop from empty stack")
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __contains__(self, x): return x in self.items
    def __str__(self): return f"Stack({self.items})"
    def __repr__(self): return f"<{self.items}>"
    def __iter__(self): return iter(self.items)
    def __getitem__(self, k): return self.items[k]
    def __bool__(self): return bool(self.items)
"""
BANK = """
class InsufficientFunds(ValueError): pass
class Account:
    def __init__(self, balance=0): self.balance = balance
    def withdraw(self, amount):
        if amount > self.balance: raise InsufficientFunds("not enough")
        self.balance -= amount
        return self.balance
"""
NODE = """
class Node:
    def __init__(self, data): self.data, self.left, self.right = data, None, None
def max_height(node):
    return 0 if node is None else 1 + max(max_height(node.left), max_height(node.right))
"""
VECTOR = """
class Vector:
    def __init__(self, x, y): self.x, self.y = x, y
    def __add__(self, other): return Vector(self.x + other.x, self.y + other.y)
    def __mul__(self, k): return Vector(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __neg__(self): return Vector(-self.x, -self.y)
    def __abs__(self): return (self.x ** 2 + self.y ** 2) ** 0.5
"""
PRIMES = "def primes(n): return [i for i in range(2, n + 1) if all(i % j for j in range(2, i))]"
HUMANEVAL = """
METADATA = {'author': 'jt', 'dataset': 'test'}

def check(candidate):
    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True
    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.05) == False
"""
CLOSE = """
from typing import List
def has_close_elements(numbers: List[float], threshold: float) -> bool:
    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[i + 1:])
"""
UNITTEST = """
import unittest
from solution import Stack

class TestStack(unittest.TestCase):
    def setUp(self):
        self.stack = Stack()

    def test_push(self):
        self.stack.push(1)
        self.assertEqual(len(self.stack), 1)
        self.assertIn(1, self.stack)
        self.assertIsInstance(self.stack, Stack)

    def test_pop(self):
        with self.assertRaises(IndexError):
            self.stack.pop()
        self.stack.push(2)
        self.assertEqual(self.stack.pop(), 2)
        self.assertFalse(self.stack)

if __name__ == "__main__":
    unittest.main()
"""
PYTEST = """
import pytest
from solution import fib

@pytest.mark.parametrize("n, due", [(0, 0), (1, 1), (10, 55)])
def test_values(n, due):
    assert fib(n) == due

def test_negative():
    with pytest.raises(ValueError, match="negative"):
        fib(-1)

class TestMore:
    def setup_method(self):
        self.big = 90

    def test_big(self):
        assert fib(self.big) == 2880067194370816120
"""
FIB = """
def fib(n):
    if n < 0: raise ValueError("negative")
    a, b = 0, 1
    for _ in range(n): a, b = b, a + b
    return a
"""
DOUBLE = "def double(x): return 2 * x"
ROOT = "def root(x): return x ** 0.5"

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # HumanEval and its like
    "humaneval": (CLOSE, HUMANEVAL, {"entry_point": "has_close_elements"}),
    "humaneval, called in the file": (CLOSE, HUMANEVAL + "\ncheck(has_close_elements)\n", {}),
    "humaneval, tolerance": (
        "def truncate_number(x): return x % 1.0",
        "def check(candidate):\n    assert candidate(3.5) == 0.5\n    assert abs(candidate(1.33) - 0.33) < "
        "1e-6",
        {"entry_point": "truncate_number"},
    ),
    "humaneval, random against an oracle": (
        "def is_sorted(a): return a == sorted(a)",
        "import random, copy\ndef check(candidate):\n    for _ in range(20):\n        a = [random.randint(0, "
        "9) for _ in range(3)]\n"
        "        assert candidate(copy.deepcopy(a)) == (sorted(a) == a)",
        {"entry_point": "is_sorted"},
    ),
    "humaneval, message": (
        DOUBLE,
        "def check(candidate):\n    assert candidate(1) == 2, f'got {candidate(1)}'\n    assert True, "
        "'nothing'",
        {"entry_point": "double"},
    ),
    "humaneval, tests of a helper in the tests": (
        "def coefficients(x): return [x, 1]",
        "import math\ndef poly(xs, x):\n    return sum(c * x ** i for i, c in enumerate(xs))\n"
        "def check(candidate):\n    assert math.fabs(poly(candidate(-2), 2)) < 1e-4",
        {"entry_point": "coefficients"},
    ),
    "evalplus, table of inputs and results": (
        DOUBLE,
        "import numpy as np\ndef is_floats(x):\n    return isinstance(x, float)\n"
        "def assertion(out, exp, atol):\n    if atol == 0 and is_floats(exp): atol = 1e-6\n"
        "    if out != exp and atol != 0:\n        assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
        "    else:\n        assert out == exp, f'out: {out}, exp: {exp}'\n"
        "def check(candidate):\n    inputs = [[1], [2.5]]\n    results = [2, 5.0]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, "
        "0)",
        {"entry_point": "double"},
    ),
    # LeetCode
    "leetcode data set, entry point with its class": (
        "class Solution:\n    def twoSum(self, nums, target):\n        seen = {}\n        for i, n in "
        "enumerate(nums):\n"
        "            if target - n in seen: return [seen[target - n], i]\n            seen[n] = i",
        "def check(candidate):\n    assert candidate(nums = [3,3],target = 6) == [0,1]\n    assert "
        "candidate(nums = [2,7],target = 9) == [0,1]",
        {"entry_point": "Solution().twoSum"},
    ),
    "leetcode, one object for all cases": (
        "class Solution:\n    def __init__(self): self.seen = []\n    def f(self, x):\n        "
        "self.seen.append(x)\n        return len(self.seen)",
        json.dumps([{"input": "1", "output": "1", "fn_name": "f"}, {"input": "2", "output": "2"}]),
        {},
    ),
    "leetcode, Solution in Python": (
        "class Solution:\n    def f(self, x): return x + 1",
        "s = Solution()\nassert s.f(1) == 2\nassert Solution().f(2) == 3",
        {},
    ),
    "leetcode, entry point and Solution in the tests": (
        "class Solution:\n    def f(self, x): return x + 1",
        "assert Solution().f(1) == 2",
        {"entry_point": "f"},
    ),
    "leetcode, in place": (
        "class Solution:\n    def move(self, nums):\n        nums.sort(key=bool, reverse=True)",
        "nums = [0, 1, 0, 3]\nSolution().move(nums)\nassert nums == [1, 3, 0, 0]",
        {},
    ),
    "leetcode, in place, cases as JSON": (
        "class Solution:\n    def move(self, nums):\n        nums.sort()",
        json.dumps({"inputs": [[[2, 1]]], "outputs": [[1, 2]], "fn_name": "move"}),
        {},
    ),
    "in place, None is checked": (
        "def turn(row): row.reverse()",
        "row = [1, 2]\nassert turn(row) is None\nassert row == [2, 1]",
        {},
    ),
    "in place, value to an unused name": (
        "def turn(row): row.reverse()",
        "row = [1, 2]\nresult = turn(row)\nassert row == [2, 1]",
        {},
    ),
    "in place, a dict and a set": (
        "def put(d, s):\n    d['a'] = 1\n    s.discard(2)",
        "d, s = {}, {1, 2}\nput(d, s)\nassert d == {'a': 1} and s == {1}",
        {},
    ),
    "input is not changed": (
        "def f(row): return sorted(row)",
        "row = [2, 1]\nassert f(row) == [1, 2]\nassert row == [2, 1]",
        {},
    ),
    # MBPP
    "mbpp": (DOUBLE, json.dumps(["assert double(2) == 4", "assert double(5) == 10"]), {}),
    "mbpp, parentheses and sets": (
        "def similar(a, b): return tuple(set(a) & set(b))",
        json.dumps(["assert set(similar((3, 4), (4, 5))) == set((4,))"]),
        {},
    ),
    "mbpp, isclose with its import": (
        ROOT,
        "import math\nassert math.isclose(root(2), 1.41421, rel_tol=0.001)",
        {},
    ),
    "mbpp, objects of the program's": (
        NODE,
        "root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)\nassert (max_height(root)) == 3",
        {},
    ),
    "mbpp, counts": (
        "def freq(a):\n    import collections\n    return collections.Counter(a)",
        "assert freq([1, 1, 2]) == {1: 2, 2: 1}",
        {},
    ),
    "mbpp, a name of the standard library is asked for": (
        "def gcd(a, b):\n    while b: a, b = b, a % b\n    return a",
        "assert gcd(12, 18) == 6",
        {},
    ),
    "mbpp, factorial against isclose": (
        "def sqrt(x): return x ** 0.5",
        "assert isclose(sqrt(2), 1.41421356, rel_tol=1e-6)\nassert isclose(sqrt(9), 3)",
        {},
    ),
    "mbpp, two functions": (
        "def add(a, b): return a + b\ndef sub(a, b): return a - b",
        "assert add(1, 2) == 3\nassert sub(3, 1) == 2",
        {},
    ),
    # names that the tests leave out
    "isclose not imported": (
        "def area(r): return 3.141592653589793 * r * r",
        "assert isclose(area(2), 12.566, rel_tol=1e-3)",
        {},
    ),
    "Counter not imported": (
        "def letters(s): return list(s)",
        "assert Counter(letters('aab')) == Counter({'a': 2, 'b': 1})",
        {},
    ),
    "json not imported": (
        "import json\ndef dump(x): return json.dumps(x)",
        "assert json.loads(dump({'a': 1})) == {'a': 1}",
        {},
    ),
    "numpy not imported": ("def ones(n): return [1] * n", "assert np.allclose(ones(3), np.ones(3))", {}),
    "TOL not defined": (ROOT, "assert abs(root(2) - 2 ** 0.5) < TOL", {}),
    "deque not imported": (
        "def turn(d):\n    d.rotate(1)\n    return list(d)\nfrom collections import deque",
        "assert turn(deque([1, 2])) == [2, 1]",
        {},
    ),
    # LiveCodeBench, APPS, TACO
    "livecodebench, text a line": (
        "class Solution:\n    def f(self, a: List[int], k: int) -> int:\n        return sum(a) * k",
        json.dumps(
            [{"input": "[1, 2]\n3", "output": "9", "testtype": "functional", "metadata": {"func_name": "f"}}]
        ),
        {},
    ),
    "livecodebench, a text": (
        "def f(s): return s[::-1]",
        json.dumps([{"input": '"ab"', "output": '"ba"', "metadata": {"func_name": "f"}}]),
        {},
    ),
    "apps, wrapped": (
        DOUBLE,
        json.dumps({"inputs": [[1], [2]], "outputs": [[2], [4]], "fn_name": "double"}),
        {},
    ),
    "apps, floats": (
        "def third(x): return x / 3",
        json.dumps({"inputs": [[1], [2]], "outputs": [0.333333333, 0.666666667], "fn_name": "third"}),
        {},
    ),
    "infinite is expected": (
        "def f(x): return float('inf')",
        '{"inputs": [[1]], "outputs": [Infinity], "fn_name": "f"}',
        {},
    ),
    "nan is expected": (
        "def f(x): return float('nan')",
        '{"inputs": [[1]], "outputs": [NaN], "fn_name": "f"}',
        {},
    ),
    "script, words that are not finite": (
        "print('inf', 'nan', 0.5)",
        json.dumps({"inputs": [""], "outputs": ["inf nan 0.50"]}),
        {},
    ),
    "script, forty cases": (
        "print(2 * int(input()))",
        json.dumps({"inputs": [f"{i}\n" for i in range(40)], "outputs": [str(2 * i) for i in range(40)]}),
        {},
    ),
    # classes
    "class, step by step": (
        STACK,
        "s = Stack()\nassert len(s) == 0\ns.push(1)\ns.push(2)\nassert s.pop() == 2\nassert str(s) == "
        "'Stack([1])'\nassert repr(s) == '<[1]>'\n"
        "assert list(s) == [1]\nassert s[0] == 1\nassert 1 in s\nassert 2 not in s\nassert s\nassert s.items "
        "== [1]\nassert f'{s}' == 'Stack([1])'\n"
        "assert isinstance(s, Stack)\nassert s is not None and s != None",
        {},
    ),
    "class, the program's own exception": (
        BANK,
        "import pytest\nfrom solution import Account, InsufficientFunds\na = Account(10)\nassert "
        "a.withdraw(4) == 6\n"
        "with pytest.raises(InsufficientFunds):\n    a.withdraw(100)\ntry:\n    a.withdraw(7)\n    assert "
        "False\nexcept ValueError as e:\n"
        "    assert str(e) == 'not enough'\nassert a.balance == 6",
        {},
    ),
    "class, its exception without import": (
        BANK,
        "a = Account(1)\ntry:\n    a.withdraw(2)\nexcept InsufficientFunds:\n    pass\nelse:\n    assert "
        "False\nassert a.balance == 1",
        {},
    ),
    "class, its exception through the module": (
        BANK,
        "import pytest\nimport solution as s\nwith pytest.raises(s.InsufficientFunds):\n    "
        "s.Account(1).withdraw(2)\nassert s.Account(3).withdraw(2) == 1",
        {},
    ),
    "class, operators": (
        VECTOR,
        "v = Vector(1, 2) + Vector(3, 4)\nassert (v.x, v.y) == (4, 6)\nassert (2 * v).x == 8\nassert (-v).y "
        "== -6\nassert abs(Vector(3, 4)) == 5",
        {},
    ),
    "class, equality and order of its own": (
        "import functools\n@functools.total_ordering\nclass Version:\n    def __init__(self, s): self.t = "
        "tuple(map(int, s.split('.')))\n"
        "    def __eq__(self, o): return self.t == o.t\n    def __lt__(self, o): return self.t < o.t",
        "a, b = Version('1.2'), Version('1.10')\nassert a == Version('1.2')\nassert a != b\nassert a < "
        "b\nassert not b < a\n",
        {},
    ),
    "a function named as a built-in one": (
        "def sum(a, b): return a * b",
        "assert sum(2, 3) == 6",
        {"entry_point": "sum"},
    ),
    "class, two of them": (
        "class Item:\n    def __init__(self, p): self.p = p\nclass Cart:\n    def __init__(self): self.all = "
        "[]\n"
        "    def add(self, i): self.all.append(i)\n    def total(self): return sum(i.p for i in self.all)",
        "cart = Cart()\ncart.add(Item(3))\ncart.add(Item(4))\nassert cart.total() == 7",
        {},
    ),
    "class, static method": (
        "class Temp:\n    @staticmethod\n    def to_f(c): return c * 9 / 5 + 32",
        "assert Temp.to_f(100) == 212",
        {},
    ),
    "class, context manager": (
        "class Box:\n    def __enter__(self):\n        self.on = True\n        return self\n    def "
        "__exit__(self, *a): self.on = False",
        "with Box() as b:\n    assert b.on is True\nassert b.on is False",
        {},
    ),
    "module under its name": (DOUBLE, "import solution\nassert solution.double(3) == 6", {}),
    "module, other name": (DOUBLE, "import solution as s\ndef test_it():\n    assert s.double(3) == 6", {}),
    "star import": (DOUBLE, "from solution import *\nassert double(3) == 6", {}),
    "import under another name": (DOUBLE, "from main import double as f\nassert f(3) == 6", {}),
    # frameworks
    "unittest": (STACK, UNITTEST, {}),
    "unittest, many assertions": (
        "def add(a, b): return a + b\ndef div(a, b): return a / b",
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        "
        "self.assertEqual(add(1, 2), 3)\n        self.assertTrue(add(1, 1))\n"
        "        self.assertAlmostEqual(div(1, 3), 0.3333333)\n        self.assertRaises(ZeroDivisionError, "
        "div, 1, 0)\n"
        "        self.assertIsNotNone(add(0, 0))",
        {},
    ),
    "pytest": (FIB, PYTEST, {}),
    "main guard calls the tests": (
        DOUBLE,
        "def test_a():\n    assert double(1) == 2\nif __name__ == '__main__':\n    test_a()\n    print('ok')",
        {},
    ),
    # idioms
    "must raise, whatever": (
        FIB,
        "try:\n    fib(-1)\n    assert False, 'no error'\nexcept ValueError:\n    pass\nassert fib(1) == 1",
        {},
    ),
    "must raise, else": (
        FIB,
        "try:\n    fib(-1)\nexcept Exception:\n    pass\nelse:\n    assert False\nassert fib(2) == 1",
        {},
    ),
    "may raise": (FIB, "try:\n    fib(-1)\nexcept Exception:\n    pass\nassert fib(3) == 2", {}),
    "one of two answers": (
        "def pair(): return [2, 1]",
        "try:\n    assert pair() == [1, 2]\nexcept AssertionError:\n    assert pair() == [2, 1]",
        {},
    ),
    "any of": (
        "def pair(): return (2, 1)",
        "assert pair() in [(1, 2), (2, 1)]\nassert any(pair() == p for p in [(1, 2), (2, 1)])",
        {},
    ),
    "zip of results": (
        DOUBLE,
        "for got, want in zip(map(double, [1, 2, 3]), [2, 4, 6]):\n    assert got == want",
        {},
    ),
    "map of two": (
        DOUBLE,
        "import operator\nassert all(map(operator.eq, map(double, [1, 2]), [2, 4]))\nassert list(map(lambda "
        "a, b: a + b, [double(1)], [1])) == [3]",
        {},
    ),
    "all of nothing beside others": (
        "def f(a): return [x for x in a if x > 0]",
        "assert all(x > 0 for x in f([-1]))\nassert f([1, -1]) == [1]",
        {},
    ),
    "zip of neighbours": (
        "def f(a): return sorted(a)",
        "r = f([3, 1, 2])\nassert all(a <= b for a, b in zip(r, r[1:]))\nassert len(r) == 3",
        {},
    ),
    "zip with an endless one": (
        DOUBLE,
        "import itertools\nassert list(zip(itertools.count(), [double(1)])) == [(0, 2)]",
        {},
    ),
    "in a list of the program's": (PRIMES, "assert 7 in primes(10)\nassert 9 not in primes(12)", {}),
    "same for equal inputs": (
        "def key(s): return ''.join(sorted(s))",
        "assert key('listen') == key('silent')\nassert key('a') != key('b')",
        {},
    ),
    "generator, endless": (
        "def naturals():\n    n = 0\n    while True:\n        yield n\n        n += 1",
        "g = naturals()\nassert next(g) == 0\nassert [next(g) for _ in range(500)] == list(range(1, 501))\n"
        "import itertools\nassert list(itertools.islice(naturals(), 3)) == [0, 1, 2]",
        {},
    ),
    "generator, ends": (
        "def two():\n    yield 1\n    yield 2",
        "g = two()\nassert (next(g), next(g)) == (1, 2)\nassert next(g, None) is None\nassert sorted(two()) "
        "== [1, 2]",
        {},
    ),
    "generator, its end is expected": (
        "def one():\n    yield 1",
        "import pytest\ng = one()\nnext(g)\nwith pytest.raises(StopIteration):\n    next(g)\nassert "
        "list(one()) == [1]",
        {},
    ),
    "map, filter, zip and views": (
        "def f(d): return map(str, [1]), zip('a', 'b'), d.keys(), d.values(), d.items(), range(2)",
        "a, b, k, v, i, r = f({1: 2})\nassert list(a) == ['1'] and list(b) == [('a', 'b')]\nassert k == {1} "
        "and list(v) == [2]\n"
        "assert list(i) == [(1, 2)] and list(r) == [0, 1]",
        {},
    ),
    "a function is returned": (
        "def adder(n): return lambda x: x + n",
        "add = adder(3)\nassert add(4) == 7\nassert adder(1)(1) == 2",
        {},
    ),
    "key function": (
        "def last(s): return s[-1]",
        "assert sorted(['ab', 'ca'], key=last) == ['ca', 'ab']",
        {},
    ),
    "a predicate": (
        "def is_prime(n): return n > 1 and all(n % i for i in range(2, n))",
        "assert is_prime(7)\nassert not is_prime(8)",
        {},
    ),
    "a composition with itself": (
        "def flip(s): return s[::-1]",
        "assert flip(flip('abc')) == 'abc'\nassert flip('ab') == 'ba'",
        {},
    ),
    "under its own alias": (
        DOUBLE,
        "candidate = double\nfor x, want in [(1, 2), (2, 4)]:\n    assert candidate(x) == want",
        {},
    ),
    "a table of calls": (
        DOUBLE,
        "cases = [(1, 2), (3, 6)]\nfor given, due in cases:\n    result = double(given)\n    assert result "
        "== due, f'{given}: {result}'",
        {},
    ),
    "keyword and default arguments": (
        "def f(a, *, b=2, **c): return a + b + sum(c.values())",
        "assert f(1) == 3\nassert f(1, b=1, z=1) == 3",
        {},
    ),
    "prints and returns": ("def f(x):\n    print(x)\n    return x", "print(f(1))\nassert f(1) == 1", {}),
    "raise instead of assert": (DOUBLE, "if double(2) != 4:\n    raise ValueError('wrong')", {}),
    "an assertion in a program": (
        "def f(x):\n    assert x > 0\n    return x",
        "import pytest\nwith pytest.raises(AssertionError):\n    f(-1)\nassert f(1) == 1",
        {},
    ),
    "numbers of all kinds": (
        "from fractions import Fraction\nfrom decimal import Decimal\nimport numpy as np\ndef f(): return "
        "Fraction(1, 3), Decimal('0.1'), np.float64(2.5), 1j, 2**70",
        "from fractions import Fraction\nfrom decimal import Decimal\nassert f() == (Fraction(1, 3), "
        "Decimal('0.1'), 2.5, 1j, 2**70)",
        {},
    ),
    "error message of a key": (
        "def f(d): return d['a']",
        "try:\n    f({})\n    assert False\nexcept KeyError as e:\n    assert e.args[0] == 'a'",
        {},
    ),
    "an exception's own text": (
        """class Broke(ValueError):
    def __init__(self, n): self.n = n
    def __str__(self): return f'only {self.n} left'
def f(n): raise Broke(n)""",
        """import pytest
def test_f():
    with pytest.raises(ValueError, match='only 3') as e: f(3)
    assert str(e.value) == 'only 3 left'""",
        {},
    ),
    "a transaction that ends in an exception": (
        """class Tx:
    def __init__(self): self.n, self.why = 1, None
    def __enter__(self):
        self.old = self.n
        return self
    def __exit__(self, kind, error, trace):
        if kind: self.n, self.why = self.old, str(error)""",
        """from solution import Tx
import pytest
def test_f():
    t = Tx()
    with pytest.raises(ValueError):
        with t:
            t.n = 2
            raise ValueError('late')
    assert t.n == 1 and t.why == 'late'
    with t: t.n = 3
    assert t.n == 3""",
        {},
    ),
    "a format and a deleted attribute": (
        """class Num:
    def __init__(self, x): self.x = x
    def __format__(self, form): return format(self.x, form)""",
        """from solution import Num
n = Num(3)
assert f'{n:>3}' == '  3'
del n.x
assert not hasattr(n, 'x')""",
        {},
    ),
    "type hints in the tests": (
        DOUBLE,
        "def helper(xs: List[int]) -> Optional[int]:\n    return xs[0] if xs else None\nassert "
        "double(helper([2])) == 4",
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_right_program_gets_its_reward(name: str) -> None:
    code, tests, extra = CASES[name]
    assert VERIFY(f"```python\n{code}\n```", tests, extra) == (1.0, "correct")
