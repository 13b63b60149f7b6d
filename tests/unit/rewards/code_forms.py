"""The verdict of the code verifier, and programs that the tests of its forms share."""

from __future__ import annotations

from typing import Any

from sppo_ray.config import CodeReward
from sppo_ray.rewards.code.base import SandboxFailed
from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses
from sppo_ray.rewards.code.verifier import make_code_verifier

VERIFY = make_code_verifier(CodeReward(timeout_s=3.0), ConfinedProcesses())
RIGHT, WRONG = "def f(x): return 2 * x", "def f(x): return 0"
RAISES = "def f(x): raise ValueError"
SORTS = "def f(a):\n    a.sort()\n    return a"
NODE = "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n"
ROW = """class Row:
    def __init__(self, v): self.v = v
    def __str__(self): return ' '.join(map(str, self.v))
    def __len__(self): return len(self.v)
    def __getitem__(self, k): return self.v[k]
"""
LISTS, EMPTY = "def f(n): return list(range(1, n + 1))", "def f(n): return []"
EVEN = "assert f(0) == 0\n"  # a test that the wrong program passes, too
TWO = "def t1(): assert f(0) == 0\ndef t2(): assert f(2) == 4\n"


def unittest_of(body: str, ending: str = "") -> str:
    return f"import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        {body}\n{ending}"


def verdict(code: str, tests: str, extra: dict[str, Any] | None = None) -> float | str:
    try:
        return VERIFY(f"```python\n{code}\n```", tests, extra or {})[0]
    except SandboxFailed as error:
        return str(error)
