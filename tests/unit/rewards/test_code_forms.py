"""Forms of assertions and values in tests: each pays a right program and no wrong one."""

# ruff: noqa: E501 (a form stands on one line)
from __future__ import annotations

import pytest

from tests.unit.rewards.code_forms import (
    EMPTY,
    EVEN,
    LISTS,
    NODE,
    RIGHT,
    ROW,
    SORTS,
    WRONG,
    unittest_of,
    verdict,
)

# tests that the right program passes and the wrong one does not: a reward each
# classes without an `==` of their own
CARDS = "class Card:\n    pass\nclass Deck:\n    def __init__(self): self.cards = [Card() for _ in range(52)]\n"
FRIENDS = (
    "class User:\n    def __init__(self): self.friends = []\n"
    "    def befriend(self, o):\n        self.friends.append(o)\n        o.friends.append(self)\n"
)
PAIR = "class Thing: pass\nclass Pair:\n    def __init__(self): self.a, self.b = Thing(), Thing()\n"
TREE = (
    "class Node:\n    def __init__(self, v): self.v, self.children = v, []\n"
    "    def add(self, v):\n        n = Node(v)\n"
)

JUDGED: dict[str, tuple[str, str, str]] = {
    # no assertion is reached
    "loop over the result": (
        "r = f(3)\nassert isinstance(r, list)\nfor i, v in enumerate(r):\n    assert v == i + 1",
        LISTS,
        EMPTY,
    ),
    "loop over the keys": (
        "r = f(3)\nassert type(r) is dict\nfor k in r:\n    assert r[k] == k",
        "def f(n): return {1: 1}",
        "def f(n): return {}",
    ),
    "loop in a test": (
        "def test_a():\n    r = f(3)\n    assert isinstance(r, list)\n    for v in r:\n        assert v > 0",
        LISTS,
        EMPTY,
    ),
    "loop in a plain class": (
        "class TestA:\n    def test_a(self):\n        for v in f(3):\n            assert v > 0\n    def test_b(self):\n        assert isinstance(f(3), list)",
        LISTS,
        EMPTY,
    ),
    "loop in unittest": (
        unittest_of(
            "r = f(3)\n        self.assertIsInstance(r, list)\n        for v in r:\n            self.assertGreater(v, 0)"
        ),
        LISTS,
        EMPTY,
    ),
    "loop with a helper": (
        "def positive(v):\n    assert v > 0\nr = f(3)\nassert type(r) is list\nfor v in r:\n    positive(v)",
        LISTS,
        EMPTY,
    ),
    "loop in a helper": (
        "def positive(r):\n    assert type(r) is list\n    for v in r:\n        assert v > 0\npositive(f(3))",
        LISTS,
        EMPTY,
    ),
    "while": ("r = f(3)\nassert type(r) is list\nwhile r:\n    assert r.pop() > 0", LISTS, EMPTY),
    "branch": ("r = f(2)\nif r:\n    assert r == 4\n" + EVEN, RIGHT, WRONG),
    "branch in a method": (
        "class TestA:\n    def test_a(self):\n        r = f(2)\n        assert r is not None\n        if r:\n            assert r == 4",
        RIGHT,
        WRONG,
    ),
    "early return": (
        EVEN + "def test_a():\n    r = f(2)\n    if not r: return\n    assert r == 4",
        RIGHT,
        WRONG,
    ),
    "continue": (
        EVEN + "for x in (1, 2):\n    r = f(x)\n    if not r: continue\n    assert r == 2 * x",
        RIGHT,
        WRONG,
    ),
    "branch, both sides": (
        "for x in (0, 2):\n    r = f(x)\n    if r:\n        assert r == 4\n    else:\n        assert x == 0",
        RIGHT,
        WRONG,
    ),
    "helper named assert": (
        "def assert_all(r):\n    for v in r:\n        assert v > 0\nassert type(f(3)) is list\nassert_all(f(3))",
        LISTS,
        EMPTY,
    ),
    # zip
    "zip, a slice of what is expected": (
        "want = [1, 2, 3, 4]\nassert type(f(3)) is list\nfor a, b in zip(f(3), want[:3]):\n    assert a == b",
        LISTS,
        "def f(n): return [1]",
    ),
    "zip, range": ("for a, b in zip(range(1, 4), f(3)):\n    assert a == b", LISTS, "def f(n): return [1]"),
    "zip, range and a generator": (
        "for a, b in zip(range(1, 4), f(3)):\n    assert a == b",
        "def f(n):\n    i = 0\n    while True:\n        yield (i := i + 1)",
        "def f(n):\n    yield 1",
    ),
    "zip, strict=False": (
        "for a, b in zip(f(3), [1, 2, 3], strict=False):\n    assert a == b",
        LISTS,
        "def f(n): return [1]",
    ),
    "zip, the name comes from the program before": (
        "want = f(1)\nassert want == [1]\nwant = [1, 2, 3]\nfor a, b in zip(f(3), want):\n    assert a == b",
        LISTS,
        "def f(n): return [1]",
    ),
    "zip, endless": (
        "for a, b in zip([1, 2, 3], f(3)):\n    assert a == b",
        LISTS,
        "import itertools\ndef f(n): return itertools.count(1)",
    ),
    "in an endless one": ("assert 2 in f(3)", LISTS, "import itertools\ndef f(n): return itertools.count()"),
    # numbers
    "numpy, allclose": (
        "import numpy as np\nassert np.allclose(f(3), [1.0])",
        "def f(n): return [1.0]",
        EMPTY,
    ),
    "numpy, equal": (
        "import numpy as np\nassert (np.array(f(3)) == np.array([1])).all()",
        "def f(n): return [1]",
        EMPTY,
    ),
    "numpy, difference": (
        "import numpy as np\nassert np.abs(np.array(f(3)) - np.array([1])).sum() < 1e-6",
        "def f(n): return [1]",
        EMPTY,
    ),
    "numpy, quotient": (
        "import numpy as np\nassert (np.array(f(3)) / np.array([1]) < 1.1).all()",
        "def f(n): return [1]",
        EMPTY,
    ),
    "numpy, a function": (
        "import numpy as np\nassert np.equal(f(3), [1]).all()",
        "def f(n): return [1]",
        EMPTY,
    ),
    "nan, raise": ("if abs(f(2) - 4) > 1e-6:\n    raise ValueError", RIGHT, "def f(x): return float('nan')"),
    "nan, not greater": ("assert not abs(f(2) - 4) > 1e-6", RIGHT, "def f(x): return float('nan')"),
    "nan, greatest": (
        "assert max(abs(a - b) for a, b in zip([0.0, f(2)], [0, 4])) < 1e-6",
        RIGHT,
        "def f(x): return float('nan')",
    ),
    "nan, complex": (
        "if abs(f(2) - 4) > 1e-6:\n    raise ValueError",
        RIGHT,
        "def f(x): return complex('nan')",
    ),
    # objects that come back, and classes
    "handed back in a deque": (
        "assert f(f([1, 2])) == [1, 2]",
        "def f(x): return x[::-1]",
        "import collections\nclass O: pass\ndef f(x): return collections.deque([O()])",
    ),
    "handed back in a view": (
        "assert f(f([1, 2])) == [1, 2]",
        "def f(x): return x[::-1]",
        "class O: pass\ndef f(x): return {1: O()}.values()",
    ),
    "a method of a value": (
        "c = C()\nassert f(c.count) == 4",
        "class C:\n    count = 2\ndef f(x): return 2 * x",
        "class C:\n    count = 2\n    def __getattribute__(self, n): return [] if n == 'count' else object.__getattribute__(self, n)\ndef f(x): return 0",
    ),
    "the attribute is a list": (
        "c = C()\nassert f(c.v.count) == 4",
        "class V: count = 2\nclass C:\n    v = V()\ndef f(x): return 2 * x",
        "class C:\n    v = []\ndef f(x): return 0",
    ),
    "operators that return themselves": (
        "assert abs(abs(Vector(3, 4)) - 5) < 1e-9",
        "class Vector:\n    def __init__(self, x, y): self.x, self.y = x, y\n    def __abs__(self): return (self.x ** 2 + self.y ** 2) ** 0.5",
        "class Vector:\n    def __init__(self, *a): pass\n    def __abs__(self): return self\n    __sub__ = lambda s, o: s\n    __lt__ = lambda s, o: True",
    ),
    "a method that may be missing": (
        "if hasattr(Solution, 'solve'):\n    assert Solution().solve(2) == 4",
        "class Solution:\n    def solve(self, x): return 2 * x",
        "class Solution: pass",
    ),
    "a loop on the truth of an object": (
        "s = Stack()\ns.push(1)\nassert len(s) == 1\nwhile s:\n    assert s.pop() == 1",
        "class Stack:\n    def __init__(self): self.v = []\n    def push(self, x): self.v.append(x)\n    def pop(self): return self.v.pop()\n    def __len__(self): return len(self.v)",
        "class Stack:\n    def push(self, x): pass\n    def __len__(self): return 1\n    def __bool__(self): return False",
    ),
    # what a function does to its arguments
    "in place, and a value": ("a = [2, 1]\nf(a)\nassert a == [1, 2]", SORTS, "def f(a): return a"),
    "in place, by keyword": (
        "class TestA:\n    def test_a(self):\n        a = [2, 1]\n        f(a=a)\n        assert a == [1, 2]",
        SORTS,
        "def f(a): return a",
    ),
    "in place, a deque": (
        "from collections import deque\nd = deque([1, 2])\nf(d)\nassert list(d) == [2, 1]",
        "def f(d): d.rotate(1)",
        "def f(d): d",
    ),
    "in place, the value is only compared with None": (
        "def test_a():\n    d = {}\n    result = f(d)\n    assert result is None\n    assert d == {1: 2}",
        "def f(d): d[1] = 2",
        "def f(d): pass",
    ),
    "in place, the value is the new length": (
        "def test_a():\n    a = [1, 1, 2]\n    k = f(a)\n    assert k == 2 and a[:k] == [1, 2]",
        "def f(a):\n    a[:] = sorted(set(a))\n    return len(a)",
        "def f(a): return len(set(a))",
    ),
    "in place, the value is asserted": (
        "board = [[0, 2]]\nassert f(board)\nassert board == [[1, 2]]",
        "def f(b):\n    b[0][0] = 1\n    return True",
        "def f(b): return True",
    ),
    "in place, and the value is the list": (
        "def test_a():\n    a = [2, 1]\n    r = f(a)\n    assert r == [1, 2]\n    assert a == r",
        "def f(a):\n    a.sort()\n    return a",
        "def f(a): return sorted(a)",
    ),
    "in place, two functions, the value is asserted": (
        "from solution import f, g\nboard = [[0, 2]]\nassert f(board)\nassert board == [[1, 2]]\nassert g(3) == 4",
        "def f(b):\n    b[0][0] = 1\n    return True\ndef g(x): return x + 1",
        "def f(b): return True\ndef g(x): return x + 1",
    ),
    "two functions of one list, a value is asserted": (
        "from solution import f, g\ndef test_a():\n    data = [1, 2, 3]\n    assert f(data)\n    assert g(data) == 6",
        "def f(a): return a == sorted(a)\ndef g(a): return sum(a)",
        "def f(a): return a == sorted(a)\ndef g(a): return len(a)",
    ),
    "two functions of one number and of one list": (
        "import pytest\nfrom solution import add, div, check\ndef test_a():\n    a, b, bad = 4, 2, [None]\n    div(a, b)\n    assert add(a, b) == 6\n    assert div(a, b) == 2\n"
        "    with pytest.raises(ValueError):\n        check(bad)\n    with pytest.raises(TypeError):\n        add(bad, 1)\n"
        "    for n in (2, 3):\n        check(n)\n        assert div(n, 1) == n",
        "def add(a, b): return a + b\ndef div(a, b): return a / b\ndef check(x):\n    if x == [None]: raise ValueError",
        "def add(a, b): return a - b\ndef div(a, b): return a / b\ndef check(x):\n    if x == [None]: raise ValueError",
    ),
    "the input must not change": (
        "a = [2, 1]\nassert f(a) == [1, 2]\nassert a == [2, 1]",
        "def f(a): return sorted(a)",
        SORTS,
    ),
    "the input must not change, a name": (
        "def test_a():\n    a = [2, 1]\n    r = f(a)\n    assert r == [1, 2]\n    assert a == [2, 1]",
        "def f(a): return sorted(a)",
        SORTS,
    ),
    "the input must not change, a copy of it": (
        "def test_a():\n    a = [2, 1]\n    b = a[:]\n    r = f(a)\n    assert r == sorted(b)\n    assert a == b",
        "def f(a): return sorted(a)",
        SORTS,
    ),
    "the input must not change, the value is read": (
        "def test_a():\n    a = [2, 1]\n    r = f(a)\n    assert len(r) == 2 and r[0] == 1\n    assert a == [2, 1]",
        "def f(a): return sorted(a)",
        SORTS,
    ),
    "the input must not change, unittest": (
        unittest_of(
            "a = [2, 1]; b = a[:]; r = f(a); self.assertEqual(r, sorted(b)); self.assertListEqual(a, b); self.assertIsNot(r, a)"
        ),
        "def f(a): return sorted(a)",
        SORTS,
    ),
    "the input must not change, in a loop": (
        "for a in ([2, 1], [3, 2]):\n    b = list(a)\n    r = f(a)\n    assert r is not a and r == sorted(b)\n    assert a == b, f'{a}'",
        "def f(a): return sorted(a)",
        SORTS,
    ),
    "the input must not change, two functions": (
        "a = [2, 1]\nassert f(a) == [1, 2]\nassert a == [2, 1]\nassert g(3) == 3",
        "def f(a): return sorted(a)\ndef g(x): return x",
        SORTS + "\ndef g(x): return x",
    ),
    "the input must not change, an array": (
        "import numpy as np\na = np.array([1, 2])\nr = f(a)\nassert np.array_equal(r, [2, 4])\nassert np.array_equal(a, [1, 2])",
        "def f(a): return a * 2",
        "def f(a):\n    a *= 2\n    return a",
    ),
    "in place, an array": (
        "import numpy as np\na = np.array([1, 2])\nf(a)\nassert a.tolist() == [2, 4]",
        "def f(a): a *= 2",
        "def f(a): a * 2",
    ),
    "in place, the value is the length, and a loop compares": (
        "a, due = [1, 1, 2], [1, 2]\nk = f(a)\nassert k == len(due)\nfor i in range(k):\n    assert a[i] == due[i]",
        "def f(a):\n    a[:] = sorted(set(a))\n    return len(a)",
        "def f(a):\n    a[:] = [3, 3]\n    return 2",
    ),
    # classes that extend a list or dict
    "a class that extends OrderedDict": (
        "c = Cache(1)\nc.put(1, 1)\nc.put(2, 2)\nassert c.get(1) == -1 and c.get(2) == 2\nassert c == {2: 2} and len(c) == 1",
        "from collections import OrderedDict\nclass Cache(OrderedDict):\n    def __init__(self, n): self.n = n\n    def get(self, k): return self[k] if k in self else -1\n    def put(self, k, v):\n        self[k] = v\n        if len(self) > self.n: self.popitem(last=False)",
        "class Cache(dict):\n    def __init__(self, n): self.n = n\n    def put(self, k, v): self[k] = v",
    ),
    "a class that extends list, and its own method": (
        "s = Short()\nfor x in (1, 2, 3):\n    s.append(x)\nassert s == [1, 2]\nassert len(s) == 2",
        "class Short(list):\n    def append(self, x):\n        if len(self) < 2: super().append(x)",
        "class Short(list):\n    def __eq__(self, other): return True\n    def append(self, x): pass",
    ),
    # the end of the program
    "SystemExit": (
        "import pytest\ndef test_a():\n    assert f(1) == 1\n    with pytest.raises(SystemExit) as e:\n        f(-1)\n    assert e.value.code == 2",
        "import sys\ndef f(x):\n    if x < 0: sys.exit(2)\n    return x",
        "import sys\ndef f(x):\n    if x < 0: sys.exit(1)\n    return x",
    ),
    "no Exception": (
        "import pytest\ndef test_a():\n    assert f(1) == 1\n    with pytest.raises(Exception):\n        f(-1)",
        "def f(x):\n    if x < 0: raise ValueError(x)\n    return x",
        "def f(x):\n    if x < 0: raise KeyboardInterrupt\n    return x",
    ),
    "the tests end themselves": (
        "import sys\nif __name__ == '__main__':\n    assert f(2) == 4\n    sys.exit(0)",
        RIGHT,
        "import sys\ndef f(x): sys.exit(0)",
    ),
    "an exception of the program, by raises and isinstance": (
        "import pytest\ndef test_a():\n    with pytest.raises(E) as e:\n        f(-1)\n    assert isinstance(e.value, E)",
        "class E(Exception): pass\ndef f(x): raise E",
        "class E(Exception): pass\ndef f(x): raise ValueError",
    ),
    # objects that reach the program again
    "a slice of an object": (
        "r = Row([1, 2, 3])\nassert r[1:] == [2, 3] and r[::-1] == [3, 2, 1]",
        ROW,
        ROW.replace("self.v[k]", "self.v"),
    ),
    "a method of a Counter, for an object": (
        "r = Row(3)\nassert Row(r.total).total == 3",
        "class Row:\n    def __init__(self, total): self.total = total",
        "from collections import Counter\ndef Row(total): return Counter()",
    ),
    "a time zone, for an object": (
        "r = Row(3)\nassert Row(r.tzinfo).tzinfo == 3",
        "class Row:\n    def __init__(self, tzinfo): self.tzinfo = tzinfo",
        "from datetime import datetime, timezone\ndef Row(x): return datetime(2026, 1, 1, tzinfo=timezone.utc)",
    ),
    # numbers
    "NaN in an array of texts": (
        "import numpy as np\nassert not np.any(np.abs(f(2) - np.array([4])) > 1e-6)",
        "import numpy as np\ndef f(x): return np.array([2 * x])",
        "class A:\n    class dtype: str = '<f8'\n    def tolist(self): return ['nan']\nA.__module__ = 'numpy'\ndef f(x): return A()",
    ),
    "NumPy compares no empty array in parts": (
        "import numpy as np\nr = f(2)\nassert np.less_equal(r, [4]).all() and np.greater_equal(r, [4]).all()",
        "def f(x): return [2 * x]",
        "def f(x): return []",
    ),
    "an emptied input gives no expected value": (
        "a = [2, 1]\nr = f(a)\nassert r == sorted(a)\nassert f(a) == sorted(a)",
        "def f(a): return sorted(a)",
        "def f(a):\n    a.clear()\n    return []",
    ),
    # assertions of the tests' own
    "a helper assert_* that raises": (
        "from solution import f\ndef assert_close(a, b):\n    if abs(a - b) > 1e-9: raise AssertionError((a, b))\n"
        "def test_a():\n    assert_close(f(1), 2)\n    assert_close(f(2), 4)",
        RIGHT,
        WRONG,
    ),
    "a method assert* that fails": (
        "import pytest\nfrom solution import f\nclass TestA:\n    def assertSame(self, a, b):\n        if a != b: pytest.fail('differs')\n"
        "    def test_a(self): self.assertSame(f(2), 4)",
        RIGHT,
        WRONG,
    ),
    # objects of classes under test
    "constants of a class": (
        "from solution import Limits\ndef test_a():\n    assert Limits.MOST == 3\n    assert Limits.NAMES == ('a', 'b')",
        "class Limits:\n    MOST = 3\n    NAMES = ('a', 'b')",
        "class Limits:\n    MOST = 3\n    NAMES = ('a',)",
    ),
    "an Enum of texts": (
        "from solution import Kind\ndef test_a():\n    assert Kind.A.value == 'a'\n    assert Kind('a').name == 'A'",
        "from enum import Enum\nclass Kind(str, Enum):\n    A = 'a'",
        "from enum import Enum\nclass Kind(str, Enum):\n    B = 'a'\n    A = B",
    ),
    "a named tuple with methods": (
        "from solution import Point\nassert Point(1, 2).norm() == 3\nassert Point(1, 2) == (1, 2)\nx, y = Point(3, 4)\nassert y == 4",
        "from typing import NamedTuple\nclass Point(NamedTuple):\n    x: int\n    y: int\n    def norm(self): return self.x + self.y",
        "from typing import NamedTuple\nclass Point(NamedTuple):\n    x: int\n    y: int\n    def norm(self): return self.x",
    ),
    "the class of a named tuple": (
        "from solution import Point, make\nassert isinstance(make(1), Point)\nassert make(1).x == 1",
        "from typing import NamedTuple\nclass Point(NamedTuple):\n    x: int\ndef make(x): return Point(x)",
        "from typing import NamedTuple\nclass Point(NamedTuple):\n    x: int\nclass Other(NamedTuple):\n    x: int\ndef make(x): return Other(x)",
    ),
    "dataclass": (
        "from solution import Point\nassert Point(1, 2) != Point(2, 1) and Point(1, 2) == Point(1, 2)\n"
        "assert repr(Point(1, 2)) == 'Point(x=1, y=2)'",
        "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n    y: int",
        "class Point:\n    def __init__(self, x, y): self.x, self.y = x, y",
    ),
    "an object that a list of the program lacks": (
        "from solution import Card, Deck\nd = Deck()\nc = d.deal()\nassert c not in d.cards\nassert len(d.cards) == 51",
        CARDS + "    def deal(self): return self.cards.pop()",
        CARDS + "    def deal(self):\n        self.cards.pop(0)\n        return self.cards[0]",
    ),
    "an object in a list, and taken from it": (
        "from solution import User\na, b, c = User(), User(), User()\na.befriend(b)\na.befriend(c)\n"
        "assert b in a.friends and a in b.friends\na.unfriend(b)\nassert b not in a.friends\nassert c in a.friends",
        FRIENDS + "    def unfriend(self, o): self.friends.remove(o)",
        FRIENDS + "    def unfriend(self, o): self.friends.pop()",
    ),
    "lists of objects differ": (
        "from solution import Card, Deck\nd = Deck()\nbefore = d.cards[:]\nd.turn()\n"
        "assert d.cards != before\nassert len(d.cards) == 52 and d.cards[-1] is before[0]",
        CARDS + "    def turn(self): self.cards.append(self.cards.pop(0))",
        CARDS + "    def turn(self): self.cards.sort(key=str)",
    ),
    "lists of objects are equal": (
        "from solution import Node\nr = Node(1)\na, b = r.add(2), r.add(3)\nassert r.children == [a, b] and a != b",
        TREE + "        self.children.append(n)\n        return n",
        TREE + "        self.children.append(n)\n        return Node(v)",
    ),
    "members of an enum differ": (
        "from solution import Color, mix\nassert mix(Color.RED, Color.BLUE) == 'REDBLUE'\nassert Color.RED != Color.BLUE",
        "from enum import Enum\nclass Color(Enum):\n    RED = 1\n    BLUE = 2\ndef mix(a, b): return a.name + b.name",
        "from enum import Enum\nclass Color(Enum):\n    RED = 1\n    BLUE = 1\ndef mix(a, b): return 'REDBLUE'",
    ),
    "an object of a class that is equal to nothing": (
        "from solution import Card, Deck\nd = Deck()\nc = d.deal()\nassert c not in d.cards\nassert len(d.cards) == 51",
        CARDS + "    def deal(self): return self.cards.pop()",
        CARDS + "    def deal(self):\n        self.cards.pop(0)\n        return self.cards[0]\nCard.__eq__ = lambda a, b: False",
    ),
    "objects in any order": (
        "from solution import Pair\n" + unittest_of("d = Pair()\n        self.assertCountEqual(d.both(), [d.b, d.a])"),
        PAIR + "    def both(self): return [self.a, self.b]",
        PAIR + "    def both(self): return [self.a, self.a]",
    ),
    "a task with the name of a built-in function": (
        "assert sum(10, 15) == 6\nassert sum(100, 150) == 93",
        "def sum(a, b):\n    s = 0\n    for i in range(1, min(a, b) + 1):\n        if a % i == b % i == 0: s += i\n    return s",
        "def sum(a, b): return a + b",
    ),
    "a task with a well-known name": (
        "assert shuffle([2, 5, 1, 3], 2) == [2, 1, 5, 3]\nassert shuffle([1, 2], 1) == [1, 2]",
        "def shuffle(a, n): return [x for p in zip(a[:n], a[n:]) for x in p]",
        "def shuffle(a, n): return a",
    ),
    "what a method returns": (
        "c = Row([1]).plus(Row([2]))\nassert isinstance(c, Row) and str(c) == '1 2' and len(c) == 2\n"
        "assert list(c) == [1, 2] and c[1] == 2",
        ROW + "    def plus(self, other): return Row(self.v + other.v)",
        ROW + "    def plus(self, other): return self",
    ),
    "a class method": (
        "c = Row.read('1 2')\nassert isinstance(c, Row) and c.v == [1, 2]",
        ROW + "    @classmethod\n    def read(cls, text): return cls([*map(int, text.split())])",
        ROW + "    @classmethod\n    def read(cls, text): return cls([])",
    ),
    "nodes of a list": (
        "def values(node):\n    found = []\n    while node:\n        found.append(node.value)\n        node = node.next\n"
        "    return found\nassert values(f(Node(1, Node(2)))) == [2, 1]",
        NODE + "def f(n):\n    last = None\n    while n: n.next, last, n = last, n, n.next\n    return last",
        NODE + "def f(n): return n",
    ),
    "the same object": (
        "assert Only() is Only()\nassert Only().x == 1\nassert Only().me() is Only()",
        "class Only:\n    x, one = 1, None\n    def __new__(cls):\n        cls.one = cls.one or object.__new__(cls)\n"
        "        return cls.one\n    def me(self): return self",
        "class Only:\n    x = 1\n    def me(self): return self",
    ),
    "del, += and numbers": (
        "r = Row([1, 2])\nr += 5\ndel r[0]\nassert r.v == [2, 5] and int(r) == 7 and float(r) == 7.0",
        ROW
        + "    def __iadd__(self, x):\n        self.v.append(x)\n        return self\n    def __delitem__(self, k): del self.v[k]\n"
        "    def __int__(self): return sum(self.v)\n    def __float__(self): return float(sum(self.v))",
        ROW + "    def __iadd__(self, x): return self\n    def __delitem__(self, k): pass",
    ),
    # other values
    "dates": (
        "import datetime as d\nassert f(d.date(2020, 2, 28)) == d.date(2020, 2, 29)\n"
        "assert f(d.datetime(2020, 2, 28, 1)) - d.datetime(2020, 2, 28) == d.timedelta(1, 3600)",
        "import datetime\ndef f(x): return x + datetime.timedelta(days=1)",
        "def f(x): return x",
    ),
    "kinds of dicts": (
        "from collections import OrderedDict\nc, d, o = f('aab')\nassert c['z'] == 0 and c.most_common(1) == [('a', 2)]\n"
        "assert d['z'] == [] and d['a'] == [0, 1]\nassert isinstance(o, OrderedDict) and list(o) == ['a', 'b']",
        "from collections import *\ndef f(s):\n    d = defaultdict(list)\n    for i, c in enumerate(s): d[c].append(i)\n"
        "    return Counter(s), d, OrderedDict(d)",
        "def f(s): return {'a': 2, 'b': 1}, {'a': [0, 1], 'b': [2]}, {'a': [0, 1], 'b': [2]}",
    ),
    "a named tuple": (
        "p = f(3)\nassert p == (3, 6) and p.x == 3 and p.y == 6",
        "from collections import namedtuple\ndef f(x): return namedtuple('P', 'x y')(x, 2 * x)",
        "from collections import namedtuple\ndef f(x): return namedtuple('P', 'x y')(x, x)",
    ),
    "numpy, an array is given and returned": (
        "import numpy as np\nr = f(np.array([1.0, 2.0]))\nassert r.shape == (2,) and isinstance(r, np.ndarray)\n"
        "assert (r == [0.5, 1.0]).all()",
        "def f(x): return x / x.max()",
        "def f(x): return x",
    ),
    "a built-in type": (
        "assert f('3', int) == 3 and f('3', float) == 3.0 and f('ab', len) == 2",
        "def f(x, kind): return kind(x)",
        "def f(x, kind): return 3",
    ),
    "pytest.raises as a parameter": (
        "import pytest\nfrom contextlib import nullcontext\n"
        "@pytest.mark.parametrize('x, due', [(2, nullcontext()), (-1, pytest.raises(ValueError))])\n"
        "def test_a(x, due):\n    with due:\n        assert f(x) == 4",
        "def f(x):\n    if x < 0: raise ValueError\n    return 2 * x",
        "def f(x): return 4",
    ),
    "the type of a generator": (
        "import types\nassert isinstance(f(3), types.GeneratorType)\nassert list(f(3)) == [1, 2, 3]",
        "def f(n): yield from range(1, n + 1)",
        LISTS,
    ),
    # exceptions
    "an exception caught by its base": (
        "import pytest\nfrom solution import Base, Late, get\ndef test_a():\n    with pytest.raises(Base): get(1)\n"
        "    with pytest.raises(Late): get(1)",
        "class Base(Exception): pass\nclass Late(Base): pass\ndef get(k): raise Late",
        "class Base(Exception): pass\nclass Late(Base): pass\ndef get(k): raise Base",
    ),
    "the base of an exception": (
        "import pytest\nfrom solution import Base, Late, get\ndef test_a():\n    with pytest.raises(Late): get(1)\n"
        "    assert issubclass(Late, Base) and issubclass(Late, KeyError)",
        "class Base(KeyError): pass\nclass Late(Base): pass\ndef get(k): raise Late",
        "class Base(Exception): pass\nclass Late(KeyError): pass\ndef get(k): raise Late",
    ),
    "the class of what was caught": (
        "import pytest\nfrom solution import Late, get\ndef test_a():\n    with pytest.raises(ValueError) as e: get(1)\n"
        "    assert isinstance(e.value, Late)",
        "class Late(ValueError): pass\ndef get(k): raise Late",
        "class Late(ValueError): pass\ndef get(k): raise ValueError",
    ),
    "attributes of an exception": (
        "import pytest\nfrom solution import f, E\nwith pytest.raises(E) as e:\n    f(-1)\n"
        "assert e.value.x == -1 and e.value.args == ('negative', -1)\nassert f(1) == 1",
        "class E(Exception):\n    def __init__(self, x):\n        super().__init__('negative', x)\n        self.x = x\n"
        "def f(x):\n    if x < 0: raise E(x)\n    return x",
        "class E(Exception): pass\ndef f(x):\n    if x < 0: raise E\n    return x",
    ),
    **{
        f"an exception of the library: {kind}": (
            f"import pytest, json, re, dataclasses, decimal\nwith pytest.raises({kind}):\n    f(-1)\nassert f(1) == 1",
            f"import json, re, dataclasses, decimal\ndef f(x):\n    if x < 0: {code}\n    return x",
            "def f(x):\n    if x < 0: raise RuntimeError\n    return x",
        )
        for kind, code in {
            "json.JSONDecodeError": "json.loads('{')",
            "re.error": "re.compile('(')",
            "dataclasses.FrozenInstanceError": "raise dataclasses.FrozenInstanceError('x')",
            "decimal.InvalidOperation": "decimal.Decimal('x')",
            "UnicodeDecodeError": "b'\\xff'.decode()",
        }.items()
    },
    "the path of the tests": (
        "import os, sys\nsys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))\nassert f(2) == 4",
        RIGHT,
        WRONG,
    ),
    "another spelling of UTF-8": (
        "from solution import f\nassert f(1) == 2",
        "# -*- coding: utf8 -*-\ndef f(x): return x + 1",
        "# -*- coding: latin-1 -*-\ndef f(x): return x + 1",
    ),
    "a well-known name in tests for pytest": (
        "def test_a():\n    assert stdev([1, 2, 3]) == 1.0\n    assert zscore([1, 2, 3])[1] == 0",
        "from statistics import stdev\ndef zscore(x): return [-1, 0, 1]",
        "def stdev(x): return 5\ndef zscore(x): return [-1, 0, 1]",
    ),
    "stdin is closed in pytest": (
        "from solution import f\ndef test_a():\n    assert f(1) == 2",
        "def f(x): return x + 1",
        "import sys\ndef f(x): return x + 1 + len(sys.stdin.read())",
    ),
    "stdin is no empty file in pytest": (
        "from solution import f\ndef test_a():\n    assert f(1) == 2",
        "def f(x): return x + 1",
        "def f(x):\n    try: y = int(input())\n    except EOFError: y = 1\n    return x + y",
    ),
    "a built-in name of import *": (
        "from solution import *\nassert len(f(3)) == 3",
        "def f(n): return [0] * n",
        "len = 7\ndef f(n): return [0] * n",
    ),
    "a byte order mark": (
        "from solution import f\nassert f(1) == 2",
        "\ufeffdef f(x): return x + 1",
        "\ufeffdef f(x): return x",
    ),
    "a built-in name beside an import": (
        "from solution import f\nassert len(f(3)) == 3",
        "len = 7\ndef f(n): return [0] * n",
        "len = 7\ndef f(n): return [0]",
    ),
    "a task that the program lacks, beside another, after import *": (
        "from solution import *\ndef test_a():\n    assert gcd(12, 18) == 6\ndef test_b():\n    assert simplify(6, 8) == (3, 4)",
        "from math import gcd\ndef simplify(a, b): return a // gcd(a, b), b // gcd(a, b)",
        "import math\ndef simplify(a, b): return a // math.gcd(a, b), b // math.gcd(a, b)",
    ),
    "a task that the program lacks, beside another": (
        "assert factorial(5) == 120\nassert ncr(5, 2) == 10",
        "from math import comb as ncr\ndef factorial(n): return n * factorial(n - 1) if n else 1",
        "from math import comb as ncr",
    ),
    **{
        f"a task that the program lacks, after import *: {form}": (
            f"from solution import *\n{form}\nassert simplify(6, 8) == (3, 4)",
            "from math import gcd\ndef simplify(a, b): return a // gcd(a, b), b // gcd(a, b)",
            "import math\ndef simplify(a, b): return a // math.gcd(a, b), b // math.gcd(a, b)",
        )
        for form in (
            "r = gcd(12, 18)\nassert r == 6",
            "def same(a, b): assert a == b\nsame(gcd(12, 18), 6)",
            "assert gcd(12, 18) == 6 and simplify(6, 8) == (3, 4)",
            "assert [gcd(a, 18) for a in (12, 5)] == [6, 1]",
        )
    },
    "a task that the program lacks, assigned first": (
        "r = gcd(12, 18)\nassert r == 6\nassert simplify(6, 8) == (3, 4)",
        "from math import gcd\ndef simplify(a, b): return a // gcd(a, b), b // gcd(a, b)",
        "import math\ndef simplify(a, b): return a // math.gcd(a, b), b // math.gcd(a, b)",
    ),
    "a task of the library in what is expected": (
        "r = f(5)\nfor n in range(5):\n    assert r[n] == factorial(n)",
        "from math import factorial\ndef f(n): return [factorial(i) for i in range(n)]",
        "def f(n): return list(range(n))",
    ),
    "a well-known judge": (
        "r = root(16)\nassert isclose(r, 4)",
        "def root(x): return x ** 0.5",
        "def root(x): return x",
    ),
    "a well-known name on the side of what is expected": (
        "assert root(16) == sqrt(16)",
        "def root(x): return x ** 0.5",
        "def root(x): return x",
    ),
    "a function that the tests only look for": (
        "def test_a():\n    assert f(1) == 2\ndef test_b():\n    assert callable(g)",
        "def f(x): return 2 * x\ndef g(): pass",
        "def f(x): return 2 * x",
    ),
    "a method of Solution that is no constant": (
        "from solution import f, size\ndef test_a():\n    assert f(1) == 2",
        "def f(x): return 2 * x\nclass Solution:\n    def size(self): return 3",
        "def f(x): return 2 * x\nclass Solution: size = 3",
    ),
    "no method of another class": (
        "from solution import f, upper\ndef test_a():\n    assert f(1) == 2",
        "def f(x): return 2 * x\ndef upper(x): pass",
        "def f(x): return 2 * x\nSolution = str",
    ),
    "an annotation that means nothing yet": (
        "from __future__ import annotations\nclass Case:\n    def of(self, x: int) -> Case:\n        self.x = x\n        return self\n"
        "def test_a():\n    assert f(Case().of(1).x) == 2",
        "def f(x): return x + 1",
        "def f(x): return x",
    ),
    "a module of a module": (
        "import os.path\nimport numpy as np\nfrom solution import unit, ext\ndef test_a():\n    assert np.isclose(np.linalg.norm(unit(np.array([3., 4.]))), 1)\n"
        "    assert os.path.basename(ext('a')) == 'a.b'\ndef test_b():\n    assert ext(os.path.join('a', 'c')) == 'a/c.b'",
        "import numpy as np\ndef unit(a): return a / np.linalg.norm(a)\ndef ext(p): return p + '.b'",
        "import numpy as np\ndef unit(a): return a\ndef ext(p): return p + '.b'",
    ),
    "an import that nothing uses": (
        "from solution import LinkedList, Node, LIMIT\ndef test_a():\n    a = LinkedList()\n    a.add(1)\n    assert a.to_list() == [1]",
        "LIMIT = 3\nclass Node: pass\nclass LinkedList:\n    def __init__(self): self.v = []\n    def add(self, v): self.v.append(v)\n    def to_list(self): return self.v[:]",
        "class LinkedList:\n    def __init__(self): self.v = []\n    def add(self, v): self.v.append(v)\n    def to_list(self): return self.v[:]",
    ),
}


@pytest.mark.parametrize("name", JUDGED)
def test_a_form_pays_the_right_program_only(name: str) -> None:
    tests, right, wrong = JUDGED[name]
    assert (verdict(right, tests), verdict(wrong, tests)) == (1.0, 0.0)
