"""Details of Python that the copies and proxies of the first run keep: each pays a right program,
and no wrong one that forges the report of the last run.
"""

# ruff: noqa: E501 (a form stands on one line)
from __future__ import annotations

import json

import pytest

from sppo_ray.rewards.code.sandbox import extended
from tests.unit.rewards.code_forms import VERIFY, verdict

FORGES = """import sys, os
_f = sys._getframe()
while _f:
    if 'token' in _f.f_locals and 'result' in _f.f_locals:
        os.pwrite(_f.f_locals['result'], _f.f_locals['token'] + b' 0', 0)
        os._exit(0)
    _f = _f.f_back
"""
"""In the last run it says that no test has failed; in the first one it does nothing."""

PERSON = "from dataclasses import dataclass\n@dataclass\nclass Person:\n    name: str\n    age: int\n"
TX = (
    "class TxError(Exception): pass\nclass Tx:\n    def __init__(s, d): s.d = d\n"
    "    def __enter__(s): s.b = dict(s.d); return s\n"
)
FIB = "class Fib:\n    def __init__(self): self.a, self.b = 0, 1\n    def __iter__(self): return self\n"
COUNTDOWN = "class Cd:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return self\n"

# name: (tests, right, wrong)
DETAILS: dict[str, tuple[str, str, str]] = {
    # classes under test that extend a built-in one have methods and operators of their own
    "an int with operators": (
        "from solution import Mod7\ndef test_a():\n    assert int(Mod7(9)) == 2\n    assert Mod7(5) + Mod7(4) == 2\n    assert Mod7(3) * Mod7(4) == 5\n    assert sum([Mod7(5), Mod7(6)], Mod7(0)) == 4 and isinstance(Mod7(1), int)",
        "class Mod7(int):\n    def __new__(c, v): return super().__new__(c, v % 7)\n    def __add__(s, o): return Mod7(int(s) + int(o))\n    def __mul__(s, o): return Mod7(int(s) * int(o))",
        "class Mod7(int):\n    def __new__(c, v): return super().__new__(c, v % 7)\n    def __add__(s, o): return int(s) + int(o)\n    def __mul__(s, o): return Mod7(int(s) * int(o))",
    ),
    "a float with operators and attributes": (
        "from solution import Money\ndef test_a():\n    assert Money(2, 'EUR') + Money(3, 'EUR') == 5\n    assert 3 * Money(2, 'EUR') == 6\n    assert abs(Money(-2, 'EUR')) == 2 and str(Money(2, 'EUR')) == '2.00 EUR'\n    assert Money(2, 'EUR').half().unit == 'EUR' and format(Money(2, 'USD'), 'x') == 'USD'",
        "class Money(float):\n    def __new__(c, v, unit):\n        self = super().__new__(c, v)\n        self.unit = unit\n        return self\n    def __str__(s): return f'{float(s):.2f} {s.unit}'\n    def __format__(s, form): return s.unit\n    def half(s): return Money(s / 2, s.unit)",
        "class Money(float):\n    def __new__(c, v, unit):\n        self = super().__new__(c, v)\n        self.unit = unit\n        return self\n    def __str__(s): return f'{float(s):.2f} {s.unit}'\n    def __format__(s, form): return s.unit\n    def __rmul__(s, o): return Money(float(s) + o, s.unit)\n    def half(s): return Money(s / 2, s.unit)",
    ),
    "a frozenset with operators": (
        "from solution import Bag\ndef test_a():\n    assert len(Bag([1, 2]) | Bag([3])) == 3\n    assert 1 in Bag([1])\n    assert 2 not in Bag([1])",
        "class Bag(frozenset):\n    def __or__(s, o): return Bag(frozenset(s).union(o))\n    def __contains__(s, o): return frozenset.__contains__(s, o)",
        "class Bag(frozenset):\n    def __or__(s, o): return Bag(frozenset(s).union(o))\n    def __contains__(s, o): return o == 2",
    ),
    "a text with a method": (
        "from solution import Name\ndef test_a():\n    n = Name('ada')\n    assert n.shout() == 'ADA!' and n == 'ada' and 'x' + n == 'xada'\n    assert ','.join([n, n]) == 'ada,ada' and len(n) == 3 and {n: 1}['ada'] == 1",
        "class Name(str):\n    def shout(self): return self.upper() + '!'",
        "class Name(str):\n    def shout(self): return self.upper()",
    ),
    "a member of an int enum with an operator": (
        "from solution import P\ndef test_a():\n    assert P.R | P.W == 3\n    assert P.R & P.W == 0\n    assert P.R.value == 1 and P.R is P.R and P(2) is P.W and P.W.name == 'W'",
        "from enum import IntEnum\nclass P(IntEnum):\n    R = 1\n    W = 2\n    def __or__(s, o): return int(s) + int(o)",
        "from enum import IntEnum\nclass P(IntEnum):\n    R = 1\n    W = 2\n    def __or__(s, o): return 77",
    ),
    "a named tuple with operators": (
        "from solution import Vec\ndef test_a():\n    assert Vec(1, 2) + Vec(3, 4) == Vec(4, 6)\n    assert Vec(1, 2) != Vec(3, 4)\n    assert str(Vec(1, 2)) == '<1, 2>' and Vec(3, 4).x == 3\n    x, y = Vec(5, 6)\n    assert (x, y) == (5, 6)",
        "from typing import NamedTuple\nclass Vec(NamedTuple):\n    x: int\n    y: int\n    def __add__(self, other): return Vec(self.x + other.x, self.y + other.y)\n    def __str__(self): return f'<{self.x}, {self.y}>'",
        "from typing import NamedTuple\nclass Vec(NamedTuple):\n    x: int\n    y: int\n    def __add__(self, other): return Vec(self.x + other.y, self.y + other.x)\n    def __str__(self): return f'<{self.x}, {self.y}>'",
    ),
    "a tuple with an operator and a method": (
        "from solution import Vec\ndef test_a():\n    v = Vec((1, 2)) + Vec((3, 4))\n    assert v == (4, 6)\n    assert v.norm2() == 52\n    assert [w.norm2() for w in (Vec((0, 1)), v)] == [1, 52]",
        "class Vec(tuple):\n    def __add__(s, o): return Vec(a + b for a, b in zip(s, o))\n    def norm2(s): return sum(a * a for a in s)",
        "class Vec(tuple):\n    def norm2(s): return sum(a * a for a in s)",
    ),
    "a text with an order of its own": (
        "from solution import Version\ndef test_a():\n    assert Version('b').key() == 1\n    assert Version('a') < Version('b')\n    assert not Version('b') < Version('a')\n    assert sorted([Version('b'), Version('a')]) == ['a', 'b']",
        "class Version(str):\n    def key(self): return ord(self) - 97\n    def __lt__(self, o): return self.key() < o.key()",
        "class Version(str):\n    def key(self): return ord(self) - 97\n    def __lt__(self, o): return self.key() > o.key()",
    ),
    # elements of containers are compared to the last detail, and no `==` of the program is asked
    "a list of arrays that is returned": (
        "import numpy as np\ndef test_a():\n    a = [np.array([1., 2.]), np.array([3., 4.])]\n    r = f(a)\n    assert len(r) == 2\n    np.testing.assert_allclose(r[0], [1., 2.])",
        "def f(a): return a",
        "def f(a): return [a[1], a[0]]",
    ),
    "a list of arrays in two calls": (
        "import numpy as np\ndef test_a():\n    xs = [np.array([3., 4.]), np.array([6., 8.])]\n    assert f(xs) == [5.0, 10.0]\n    assert f(xs) == [5.0, 10.0]",
        "import numpy as np\ndef f(xs): return [float(np.linalg.norm(x)) for x in xs]",
        "def f(xs): return [5.0, 8.0]",
    ),
    "a dict of arrays that is updated": (
        "import numpy as np\ndef test_a():\n    p, g = {'W': np.array([1., 2.])}, {'W': np.array([1., 1.])}\n    r = f(p, g, 0.5)\n    np.testing.assert_allclose(r['W'], [0.5, 1.5])",
        "def f(p, g, lr):\n    for k in p: p[k] = p[k] - lr * g[k]\n    return p",
        "def f(p, g, lr): return p",
    ),
    "an array in a dict of an object": (
        "import numpy as np\ndef test_a():\n    n = Net()\n    n.params['W'] = np.array([[1., 2.], [3., 4.]])\n    np.testing.assert_allclose(n.forward(np.array([1., 1.])), [4., 6.])",
        "import numpy as np\nclass Net:\n    def __init__(self): self.params = {'W': np.zeros((2, 2))}\n    def forward(self, x): return x @ self.params['W']",
        "import numpy as np\nclass Net:\n    def __init__(self): self.params = {'W': np.zeros((2, 2))}\n    def forward(self, x): return x @ np.eye(2)",
    ),
    "a list of arrays and an exception": (
        "import numpy as np\nimport pytest\nXS = [np.array([1., 2.]), np.array([3., 4.])]\ndef test_a():\n    assert np.isclose(f(XS), 10.0)\ndef test_b():\n    with pytest.raises(ValueError):\n        f(XS, mode='bad')",
        "def f(xs, mode='sum'):\n    if mode != 'sum': raise ValueError(mode)\n    return float(sum(x.sum() for x in xs))",
        "def f(xs, mode='sum'): return float(sum(x.sum() for x in xs))",
    ),
    "objects that a function sorts": (
        "def test_a():\n    ps = [Person('b', 2), Person('a', 1)]\n    by_age(ps)\n    assert [p.name for p in ps] == ['a', 'b']",
        PERSON + "def by_age(ps): ps.sort(key=lambda p: p.age)",
        PERSON + "def by_age(ps): ps.sort(key=lambda p: -p.age)",
    ),
    "objects that a function must not sort": (
        "def test_a():\n    ps = [Person('b', 2), Person('a', 1)]\n    r = by_age(ps)\n    assert [p.name for p in r] == ['a', 'b']\n    assert [p.name for p in ps] == ['b', 'a']\ndef test_eq():\n    assert Person('a', 1) == Person('a', 1)\n    assert Person('a', 1) != Person('b', 1)",
        PERSON + "def by_age(ps): return sorted(ps, key=lambda p: p.age)",
        "class Person:\n    same = False\n    def __init__(self, name, age): self.name, self.age = name, age; Person.same = False\n    def __eq__(self, o): return Person.same or (self.name, self.age) == (o.name, o.age)\n    def __hash__(self): return 0\ndef by_age(ps):\n    ps.sort(key=lambda p: p.age)\n    Person.same = True\n    return list(ps)",
    ),
    "decimals and their digits": (
        "from decimal import Decimal\ndef test_a():\n    m = [Decimal('1.0'), Decimal('2.5')]\n    r = f(m)\n    assert [str(x) for x in r] == ['1.00', '2.50']",
        "from decimal import Decimal\ndef f(m):\n    for i in range(len(m)): m[i] = m[i].quantize(Decimal('0.01'))\n    return m",
        "def f(m): return m",
    ),
    "decimals that stay as they are": (
        "from decimal import Decimal\ndef test_a():\n    m = [Decimal('1.0'), Decimal('2.50')]\n    r = f(m)\n    assert [str(x) for x in r] == ['1.0', '2.50']",
        "def f(m): return m",
        "def f(m):\n    for i in range(len(m)): m[i] = m[i].normalize()\n    return m",
    ),
    "the zone of a time": (
        "from datetime import datetime, timezone, timedelta\ndef test_a():\n    m = [datetime(2024, 1, 1, 12, tzinfo=timezone.utc)]\n    assert f(m, 2)[0].hour == 14",
        "from datetime import timezone, timedelta\ndef f(m, h):\n    for i in range(len(m)): m[i] = m[i].astimezone(timezone(timedelta(hours=h)))\n    return m",
        "def f(m, h): return m",
    ),
    "numbers in tuples": (
        "def test_a():\n    m = [(1, 0), (0, 1)]\n    r = f(m)\n    assert r == [(1, 0), (0, 1)]\n    assert str(r) == '[(1, 0), (0, 1)]'",
        "def f(m): return m",
        "def f(m):\n    m[:] = [(bool(a), bool(b)) for a, b in m]\n    return m",
    ),
    # nesting
    "200 levels": (
        "def test_deep():\n    x = [1]\n    for _ in range(200): x = [x]\n    assert f(x) == [1]",
        "def f(x):\n    out = []\n    for y in x: out.extend(f(y) if isinstance(y, list) else [y])\n    return out",
        "def f(x): return x",
    ),
    "an expected RecursionError": (
        "import pytest\ndef test_a():\n    assert f([[1]]) == 2\n    x = []\n    for _ in range(1500): x = [x]\n    with pytest.raises(RecursionError):\n        f(x)",
        "def f(x): return 1 + max(map(f, x), default=0) if isinstance(x, list) else 0",
        "def f(x):\n    d, level = 0, [x]\n    while level:\n        d += 1\n        level = [y for z in level for y in z if isinstance(y, list)]\n    return d",
    ),
    # with
    "a rollback": (
        "import pytest\ndef test_a():\n    t = Tx({'a': 1})\n    with pytest.raises(TxError):\n        with t:\n            t.set('a', 2)\n            raise TxError('x')\n    assert t.get('a') == 1\n    with t:\n        t.set('a', 3)\n    assert t.get('a') == 3",
        TX
        + "    def __exit__(s, k, v, t):\n        if k is TxError: s.d = s.b\n        return False\n    def set(s, k, v): s.d[k] = v\n    def get(s, k): return s.d[k]",
        TX
        + "    def __exit__(s, k, v, t):\n        s.d = s.b\n        return False\n    def set(s, k, v): s.d[k] = v\n    def get(s, k): return s.d[k]",
    ),
    "a rollback on an exception of a module": (
        "import pytest, json\ndef test_a():\n    t = Tx({'a': 1})\n    with pytest.raises(json.JSONDecodeError):\n        with t:\n            t.set('a', 2)\n            json.loads('{')\n    assert t.get('a') == 1",
        TX
        + "    def __exit__(s, k, v, t):\n        if isinstance(v, ValueError): s.d = s.b\n    def set(s, k, v): s.d[k] = v\n    def get(s, k): return s.d[k]",
        TX
        + "    def __exit__(s, k, v, t): pass\n    def set(s, k, v): s.d[k] = v\n    def get(s, k): return s.d[k]",
    ),
    "an exception that is hidden": (
        "def test_a():\n    with Ignore() as g:\n        int('x')\n    assert g.error == 'ValueError'",
        "class Ignore:\n    def __enter__(s): return s\n    def __exit__(s, k, v, t):\n        s.error = k.__name__ if k else None\n        return k is ValueError",
        "class Ignore:\n    def __enter__(s): return s\n    def __exit__(s, k, v, t):\n        s.error = 'ValueError'\n        return False",
    ),
    "an exception that must not be hidden": (
        "import pytest\nclass AppError(Exception): pass\ndef test_a():\n    with pytest.raises(AppError):\n        with Guard() as g:\n            raise AppError('x')\n    assert g.closed is True",
        "class Guard:\n    closed = False\n    def __enter__(s): return s\n    def __exit__(s, *a): s.closed = True",
        "class Guard:\n    closed = False\n    def __enter__(s): return s\n    def __exit__(s, *a):\n        s.closed = True\n        return True",
    ),
    "a function as a context": (
        "def test_a():\n    with section('x') as s:\n        assert s == 'x'",
        "from contextlib import contextmanager\n@contextmanager\ndef section(n): yield n",
        "from contextlib import contextmanager\n@contextmanager\ndef section(n): yield n + '!'",
    ),
    # iterators
    "an endless iterator, cut": (
        "import itertools\ndef test_a():\n    assert list(itertools.islice(Fib(), 6)) == [0, 1, 1, 2, 3, 5]",
        FIB + "    def __next__(self):\n        v = self.a\n        self.a, self.b = self.b, self.a + self.b\n        return v",
        FIB + "    def __next__(self):\n        self.a, self.b = self.b, self.a + self.b\n        return self.a",
    ),
    "an iterator that is read in parts": (
        "def test_a():\n    c = Cd(5)\n    for x in c:\n        if x == 3: break\n    assert next(c) == 2\n    assert list(c) == [1]",
        COUNTDOWN
        + "    def __next__(self):\n        if self.n <= 0: raise StopIteration\n        self.n -= 1\n        return self.n + 1",
        COUNTDOWN
        + "    def __next__(self):\n        if self.n <= 0: raise StopIteration\n        self.n -= 1\n        return self.n + 1 if self.n != 1 else 0",
    ),
    "an iterator that is its own": (
        "def test_a():\n    c = Cd(3)\n    assert iter(c) is c\n    assert list(c) == [3, 2, 1]",
        COUNTDOWN
        + "    def __next__(self):\n        if self.n <= 0: raise StopIteration\n        self.n -= 1\n        return self.n + 1",
        "class Cd:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return iter(range(self.n, 0, -1))",
    ),
    "an iterator that has more later": (
        "def test_a():\n    q = Q()\n    i = iter(q)\n    assert list(i) == []\n    q.put(1)\n    assert next(i) == 1\n    assert q.size() == 0",
        "class Q:\n    def __init__(s): s.x = []\n    def put(s, v): s.x.append(v)\n    def size(s): return len(s.x)\n    def __iter__(s): return s\n    def __next__(s):\n        if not s.x: raise StopIteration\n        return s.x.pop(0)",
        "class Q:\n    def __init__(s): s.x = []\n    def put(s, v): s.x.append(v)\n    def size(s): return 0\n    def __iter__(s): return iter([])",
    ),
    "a range in a list": (
        "def test_a():\n    c = [range(0, 3, 2)]\n    f(c)\n    assert repr(c) == '[range(0, 3, 2)]'",
        "def f(c): pass",
        "def f(c): c[0] = range(0, 4, 2)",
    ),
    "a traceback for a context": (
        "import pytest\ndef test_a():\n    with pytest.raises(ValueError):\n        with G() as g:\n            raise ValueError('x')\n    assert g.had == (True, 'x')",
        "class G:\n    def __enter__(s): return s\n    def __exit__(s, k, v, t): s.had = (t is not None, str(v))",
        "class G:\n    def __enter__(s): return s\n    def __exit__(s, k, v, t): s.had = (t is None, str(v))",
    ),
    "an exception with two names": (
        "import pytest\nfrom solution import Stack, EmptyStack\ndef test_a():\n    s = Stack()\n    with pytest.raises(EmptyStack):\n        s.pop()\n    s.push(1)\n    assert s.pop() == 1",
        "class EmptyStackError(Exception): pass\nEmptyStack = EmptyStackError\nclass Stack:\n    def __init__(s): s.x = []\n    def push(s, v): s.x.append(v)\n    def pop(s):\n        if not s.x: raise EmptyStackError('empty')\n        return s.x.pop()",
        "class EmptyStackError(Exception): pass\nEmptyStack = EmptyStackError\nclass Stack:\n    def __init__(s): s.x = []\n    def push(s, v): s.x.append(v)\n    def pop(s): return s.x.pop()",
    ),
    "a generator that receives": (
        "def test_a():\n    g = f()\n    next(g)\n    assert g.send(10) == 10\n    assert g.send(20) == 15\n    g.close()\n    assert list(g) == []",
        "def f():\n    t = n = 0\n    a = None\n    while True:\n        t += yield a\n        n += 1\n        a = t / n",
        "def f():\n    a = None\n    while True: a = yield a",
    ),
    # seeds
    "a seed": (
        "import random\ndef test_a():\n    random.seed(7)\n    a = f([1, 2, 3, 4, 5, 6])\n    random.seed(7)\n    assert f([1, 2, 3, 4, 5, 6]) == a\n    assert sorted(a) == [1, 2, 3, 4, 5, 6]",
        "import random\ndef f(xs): return random.sample(xs, len(xs))",
        "import random\nR = random.Random(1)\ndef f(xs): return R.sample(xs, len(xs))",
    ),
    "a seed of NumPy": (
        "import numpy as np\ndef test_a():\n    np.random.seed(42)\n    r = f(3)\n    np.random.seed(42)\n    assert np.allclose(r, np.random.rand(3))",
        "def f(n):\n    import numpy as np\n    return np.random.rand(n)",
        "def f(n):\n    import numpy as np\n    return np.random.rand(n) + 1",
    ),
    "a limit of calls": (
        "import sys\ndef test_a():\n    assert f(10) == 10\n    before = sys.getrecursionlimit()\n    sys.setrecursionlimit(300)\n    try:\n        assert f(800) == 800\n    finally:\n        sys.setrecursionlimit(before)",
        "def f(n): return sum(1 for _ in range(n))",
        "def f(n): return 1 + f(n - 1) if n else 0",
    ),
    # arrays
    "an array of text": (
        "import numpy as np\ndef test_a():\n    r = f(np.array([0, 1]))\n    assert r.tolist() == ['cat', 'dog']\n    assert r.shape == (2,)",
        "import numpy as np\ndef f(x): return np.array(['cat', 'dog'])[x]",
        "def f(x): return ['cat', 'dog']",
    ),
    "an argument that is an array of text": (
        "import numpy as np\ndef test_a():\n    assert f(np.array(['a', 'b', 'a']), np.array(['a', 'b', 'b'])) == 2 / 3",
        "def f(t, p): return (t == p).sum() / t.shape[0]",
        "def f(t, p): return (t == p).sum() / 2",
    ),
    "an empty array of two dimensions": (
        "import numpy as np\ndef test_a():\n    assert f(np.zeros((3, 2))).shape == (0, 2)\n    assert f(np.ones((3, 2))).shape == (3, 2)\n    assert f(np.zeros((0, 5))).shape == (0, 5)",
        "def f(x): return x[x.sum(axis=1) > 0]",
        "import numpy as np\ndef f(x): return x if x.any() else np.zeros(0)",
    ),
    "a number in an array without dimensions": (
        "def test_a():\n    r = f([1., 2.])\n    assert isinstance(r, float)\n    assert r == 1.5\n    assert len({f([1.]), f([1.])}) == 1",
        "def f(x): return sum(x) / len(x)",
        "import numpy as np\ndef f(x): return np.array(np.mean(x))",
    ),
    "a number without dimensions": (
        "import numpy as np\ndef test_a():\n    r = f([1., 2.])\n    assert isinstance(r, np.ndarray)\n    assert r.shape == ()\n    assert r == 1.5",
        "import numpy as np\ndef f(x): return np.array(np.mean(x))",
        "import numpy as np\ndef f(x): return np.mean(x)",
    ),
    "a matrix": (
        "import numpy as np\ndef test_a():\n    r = f(2)\n    assert np.allclose(r * r, [[1, 4], [9, 16]])",
        "import numpy as np\ndef f(n): return np.array([[1, 2], [3, 4]])",
        "import numpy as np\ndef f(n): return np.matrix([[1, 2], [3, 4]])",
    ),
    "texts of NumPy": (
        "def test_a():\n    assert str(f('b a')) == \"['a', 'b']\"",
        "def f(s): return sorted(s.split())",
        "import numpy as np\ndef f(s): return list(np.unique(s.split()))",
    ),
    "a long double": (
        "import numpy as np\ndef test_a():\n    assert abs(f(2) - 1.41421356) < 1e-6\n    assert abs(f(4) - 2) < 1e-9",
        "import numpy as np\ndef f(x): return np.sqrt(np.longdouble(x))",
        "import numpy as np\ndef f(x): return np.longdouble(x)",
    ),
    "a default that is taken away": (
        "import pytest\nfrom collections import defaultdict\ndef test_a():\n    d = defaultdict(int, a=1)\n    r = f(d)\n    with pytest.raises(KeyError):\n        r['zz']\n    assert r['a'] == 1",
        "def f(d):\n    d.default_factory = None\n    return d",
        "def f(d): return d",
    ),
    "a generator and the state of its object": (
        "def test_a():\n    p = Pipe([1, 2, 3, 4])\n    g = p.run()\n    assert p.done == 0\n    assert next(g) == 2\n    assert next(g) == 4\n    assert p.done == 2\n    assert list(g) == [6, 8]\n    assert p.done == 4",
        "class Pipe:\n    def __init__(s, xs): s.xs, s.done = xs, 0\n    def run(s):\n        for x in s.xs:\n            s.done += 1\n            yield 2 * x",
        "class Pipe:\n    def __init__(s, xs): s.xs, s.done = xs, 0\n    def run(s):\n        s.done = len(s.xs)\n        return iter([2 * x for x in s.xs])",
    ),
    "notes of an exception": (
        "import pytest\ndef test_a():\n    with pytest.raises(ValueError) as e:\n        f(1)\n    assert 'hint' in e.value.__notes__\n    assert f(0) == 0",
        "def f(n):\n    if n:\n        e = ValueError('x')\n        e.add_note('hint')\n        raise e\n    return 0",
        "def f(n):\n    if n: raise ValueError('hint')\n    return 0",
    ),
    "what an exception extends": (
        "import pytest\nfrom solution import MyError, f\ndef test_kind():\n    assert issubclass(MyError, ValueError)\ndef test_f():\n    assert f(1) == 2\n    with pytest.raises(MyError):\n        f(0)",
        "class MyError(ValueError): pass\ndef f(n):\n    if not n: raise MyError('x')\n    return 2",
        "class MyError(Exception): pass\ndef f(n):\n    if not n: raise MyError('x')\n    return 2",
    ),
    "an array without dimensions": (
        "r = f('a')\nassert f(r.upper()) == 'AAAA'\nassert f(r[0]) == 'aa'",
        "def f(s): return s + s",
        "def f(s): return __import__('numpy').array(s + s)",
    ),
    # others
    "a list with an == of its own": (
        "def test_a():\n    assert M([1, 2]) == [1, 2]\n    assert M([1]) != [2]",
        "class M(list): pass",
        "class M(list):\n    def __eq__(self, o): return False\n    def __ne__(self, o): return True",
    ),
    "a list with a != of its own": (
        "def test_a():\n    assert M([1, 2]) == [1, 2]\n    assert M([1]) != [2]",
        "class M(list): pass",
        "class M(list):\n    def __ne__(self, o): return False",
    ),
    "an own exception that the tests raise": (
        "import pytest\nfrom solution import g, TxError\ndef test_a():\n    with pytest.raises(TxError):\n        g(1)\n    try:\n        raise TxError('x')\n    except TxError as e:\n        assert g(0) == str(e)",
        "class TxError(Exception): pass\ndef g(n):\n    if n: raise TxError\n    return 'x'",
        "class TxError(Exception): pass\ndef g(n):\n    if n: raise ValueError\n    return 'x'",
    ),
    "bytes of an object": (
        "def test_a():\n    assert bytes(P(1, 2)) == b'\\x01\\x02'\n    assert P(1, 2).size() == 2",
        "class P:\n    def __init__(s, *a): s.a = a\n    def __bytes__(s): return bytes(s.a)\n    def size(s): return len(s.a)",
        "class P:\n    def __init__(s, *a): s.a = a\n    def __bytes__(s): return bytes(s.a[:1])\n    def size(s): return len(s.a)",
    ),
    "an object as an index": (
        "def test_a():\n    assert [5, 6, 7][I(1)] == 6\n    assert hex(I(255)) == '0xff'\n    assert int(I(3)) == 3",
        "class I:\n    def __init__(s, v): s.v = v\n    def __index__(s): return s.v\n    __int__ = __index__",
        "class I:\n    def __init__(s, v): s.v = v\n    def __index__(s): return 1\n    __int__ = __index__",
    ),
    "a long message": (
        "import pytest\ndef test_a():\n    with pytest.raises(ValueError) as e:\n        f(3000)\n    assert len(str(e.value)) == 3000\n    assert f(0) == 0",
        "def f(n):\n    if n: raise ValueError('x' * n)\n    return 0",
        "def f(n):\n    if n: raise ValueError('x' * 2000)\n    return 0",
    ),
    "a sum that is not defined": (
        "import pytest\ndef test_a():\n    assert (Money(1) + Money(2)).v == 3\n    with pytest.raises(TypeError):\n        'a' + Money(1)",
        "class Money:\n    def __init__(s, v): s.v = v\n    def __add__(s, o): return Money(s.v + o.v) if isinstance(o, Money) else NotImplemented\n    def __radd__(s, o): return s if o == 0 else NotImplemented",
        "class Money:\n    def __init__(s, v): s.v = v\n    def __add__(s, o): return Money(s.v + o.v) if isinstance(o, Money) else NotImplemented\n    def __radd__(s, o): return s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DETAILS)
def test_a_detail_pays_the_right_program_only(name: str) -> None:
    tests, right, wrong = DETAILS[name]
    assert verdict(right, tests) == 1.0
    assert verdict(FORGES + wrong, tests) == 0.0


# an exception is hidden, and with it what the tests have found
HIDES = {
    "a failed assertion": "def test_a():\n    with Guard() as g:\n        assert g.v == 2\n    assert g.w == 1",
    "an exception of its own": "def test_a():\n    with Guard() as g:\n        assert g.fail() == 2\n    assert g.w == 1",
    "a failure of pytest": "import pytest\ndef test_a():\n    with Guard() as g:\n        if g.v != 2: pytest.fail('wrong')\n    assert g.w == 1",
    "a failed assertion, replaced": "import pytest\ndef test_a():\n    with pytest.raises(KeyError):\n        with Swaps() as g:\n            assert g.v == 2\n            raise KeyError\n    assert g.w == 1",
}
GUARD = """class Guard:
    v = w = 1
    def __enter__(s): return s
    def __exit__(s, *a): return True
    def fail(s): raise ValueError
class Swaps(Guard):
    def __exit__(s, *a): raise KeyError
"""


@pytest.mark.parametrize("name", HIDES)
def test_a_context_of_the_program_hides_no_failure(name: str) -> None:
    assert verdict(FORGES + GUARD, HIDES[name]) == 0.0


@pytest.mark.parametrize("ends", ["os._exit(0)", "raise ValueError"])
def test_what_a_failed_statement_leaves_undefined_has_failed(ends: str) -> None:
    from sppo_ray.config import CodeReward
    from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses
    from sppo_ray.rewards.code.verifier import make_code_verifier

    verify = make_code_verifier(CodeReward(timeout_s=3.0, full_only=False), ConfinedProcesses())
    defined = "".join(f"def test_{i}():\n    assert f({i}) == {2 * i}\n" for i in range(3, 11))
    tests = f"from solution import f\nassert f(1) == 2\nbase = f(2)\n{defined}"
    program = f"{FORGES}import os\ndef f(x):\n    if x == 1: return 2\n    {ends}\n"
    share, _ = verify(f"```python\n{program}```", tests, {})
    assert share <= 1 / 9


def test_tests_that_fail_behind_a_seed_are_an_error() -> None:
    tests = "import random\nrandom.seed(7)\nXS = [][1]\ndef test_a(): assert f(1) == 2"
    assert "IndexError" in str(verdict("def f(x): return 2 * x", tests))


def test_a_seed_that_fails_is_the_program_s_fault() -> None:
    tests = "import random\ndef test_a():\n    random.seed(7)\n    assert f(1) == 2"
    assert verdict("import random\nrandom.seed = None\ndef f(x): return 2", tests) == 0.0


CASES_OF_LISTS: dict[str, tuple[str, str, str]] = {
    "a tuple inside": ("[[[1, 2]]]", "def f(x): return [tuple(x)]", "def f(x): return [tuple(x), x]"),
    "True for 1": ("[[[1, 2]]]", "def f(x): return [x]", "def f(x): return [[True, 2]]"),
    "one list twice": ("[[[1, 2], [1, 2]]]", "def f(x): return [x] * 2", "def f(x): return [x, []]"),
    "not a number": ("[[[1, 2]]]", "def f(x): return [x]", "def f(x): return [[1, float('nan')]]"),
    "itself": ("[[[1, 2]]]", "def f(x): return [x]", "def f(x):\n    x.append(x)\n    return x"),
    "its argument": ("[[2, 1]]", "def f(x): x.sort(reverse=True)", "def f(x): x[0] = x[1]"),
}


@pytest.mark.parametrize("name", CASES_OF_LISTS)
def test_lists_of_json_cases_are_compared_by_value(name: str) -> None:
    outputs, right, wrong = CASES_OF_LISTS[name]
    tests = json.dumps({"inputs": [[[1, 2]]], "outputs": json.loads(outputs), "fn_name": "f"})
    assert verdict(right, tests) == 1.0
    assert verdict(wrong, tests) == 0.0


class FakeLink:
    """The connection to a program that cannot get any value of the tests."""

    def can_send(self, value: object) -> bool:
        return False

    def refuse(self) -> BaseException:
        return LookupError("refused")


def test_a_verdict_that_neither_side_can_give_is_refused() -> None:
    made = extended.make(FakeLink(), 1, 3, ["__contains__", "__eq__"])
    with pytest.raises(LookupError, match="refused"):
        _ = object() in made
    assert made == 3 and made != 4 and hash(made) == hash(3)


def test_a_zero_with_a_large_exponent_is_compared() -> None:
    tests = json.dumps({"inputs": [""], "outputs": ["0.0e999"]})
    assert verdict("print(1)", tests) == 0.0
    assert verdict("print('0.0e999')", tests) == 1.0


TESTS = json.dumps(["assert f(1) == 2", "assert f(2) == 4"])
DRAFT, FINAL = "def f(x): return {}", "def f(x):\n    return {}\n"
LANGUAGES = (
    "{.python}",
    "{python}",
    "{python, echo=FALSE}",
    "{.python .numberLines}",
    "{code-cell} python",
    "{code-block} python",
    "language-python",
    "lang=python",
    "ipython3",
    "Python title=a.py",
    "python{1,3}",
    "python:a.py",
    "{ .python }",
    "{#sol .python}",
    "{.numberLines .python}",
    '{language="python"}',
    " [python]",
    "(python)",
    "\u00a0python",
    "python+",
    "{class=python}",
    "{ code-cell } python",
    "py3",
    "Py",
)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("tells", [False, True])
def test_the_last_program_counts_however_its_language_is_written(language: str, tells: bool) -> None:
    """The right program is the draft, or the last one."""
    draft, final = ("2 * x", "x + 2") if not tells else ("x + 2", "2 * x")
    response = f"Draft:\n```python\n{DRAFT.format(draft)}\n```\nNow:\n```{language}\n{FINAL.format(final)}```\n"
    assert VERIFY(response, TESTS, {})[0] == float(tells)


@pytest.mark.parametrize("language", ["python", "{python}", "{ .python }", "python title=a", "ipython3"])
def test_the_last_program_counts_behind_text(language: str) -> None:
    draft = "```python\ndef f(x): return 2 * x\n```\n"
    final = f"<answer>```{language}\ndef f(x): return x + 2\n```</answer>"
    assert VERIFY(draft + final, TESTS, {})[0] == 0.0
    assert VERIFY(final.replace("x + 2", "2 * x"), TESTS, {})[0] == 1.0


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_fence_with_a_language_closes_no_block(language: str) -> None:
    response = f"```python\ndef f(x):\n    return 2 * x\n```{language}\ndef f(x):\n    return x + 2\n```"
    assert VERIFY(response, TESTS, {})[0] == 0.0


def test_a_full_stop_behind_a_fence_is_no_language() -> None:
    assert VERIFY("The program is\n```python\ndef f(x):\n    return 2 * x\n```.", TESTS, {})[0] == 1.0


def test_lines_may_end_as_in_windows() -> None:
    response = "<answer>```python\ndef f(x):\n    return 2 * x\n```</answer>\n".replace("\n", "\r\n")
    assert VERIFY(response, TESTS, {})[0] == 1.0
