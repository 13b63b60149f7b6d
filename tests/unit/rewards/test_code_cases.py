"""Tests of functions by arguments and values (`fn_name`), and of scripts by stdin and stdout: each
pays a right program and no wrong one.
"""

# ruff: noqa: E501 (a program stands on one line)
from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from sppo_ray.config import CodeReward
from sppo_ray.rewards.code.hash_order import hash_seed, may_vary
from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses
from sppo_ray.rewards.code.verifier import make_code_verifier
from tests.unit.rewards.code_forms import WRONG, verdict


def cases(*pairs: tuple[list[Any], Any]) -> str:
    """Tests of the function f: arguments and value of each case."""
    return json.dumps(
        {"inputs": [given for given, _ in pairs], "outputs": [due for _, due in pairs], "fn_name": "f"}
    )


JUDGED: dict[str, tuple[str, str, str]] = {
    "a large integer is no decimal": (
        json.dumps({"inputs": [[10**18 + 6]], "outputs": [5 * 10**17 + 3], "fn_name": "f"}),
        "def f(n): return n // 2",
        "def f(n): return n / 2",
    ),
    "lists of one are lists or their members, not both": (
        json.dumps({"inputs": [[1], [2]], "outputs": [[1], [2]], "fn_name": "f"}),
        "def f(x): return [x]",
        "def f(x): return x if x == 1 else [x]",
    ),
    "numbers as text are texts or numbers, not both": (
        json.dumps({"inputs": [[1], [2]], "outputs": ["1", "2"], "fn_name": "f"}),
        "def f(x): return str(x)",
        "def f(x): return x if x == 1 else str(x)",
    ),
    "pairs wrap no value": (
        json.dumps([{"input": [x], "output": [x], "fn_name": "f"} for x in (1, 2)]),
        "def f(x): return [x]",
        "def f(x): return x",
    ),
    "null is no text": (
        json.dumps({"inputs": [[1]], "outputs": ["null"], "fn_name": "f"}),
        "def f(x): pass",
        "def f(x): return 'null'",
    ),
    "the key is a text": (
        json.dumps({"inputs": [[1]], "outputs": [{"True": 1}], "fn_name": "f"}),
        "def f(x): return {'True': 1}",
        "def f(x): return {True: 1}",
    ),
    "a small number": (
        json.dumps({"inputs": [[1]], "outputs": [0.0000005], "fn_name": "f"}),
        "def f(x): return 5e-7",
        WRONG,
    ),
    "an integer beyond all floats": (
        json.dumps({"inputs": [[1]], "outputs": [9007199254740992.0], "fn_name": "f"}),
        "def f(x): return 2**53",
        "def f(x): return 2**53 + 1",
    ),
    "a float that is written with few digits": (
        json.dumps({"inputs": [[1]], "outputs": [1e16], "fn_name": "f"}),
        "def f(x): return 10**16",
        "def f(x): return 10000005000000000",
    ),
    "a small value that was computed": (
        json.dumps({"inputs": [[1]], "outputs": [1.7797333333333335e-10], "fn_name": "f"}),
        "def f(x): return 1.7797333333333334e-10",
        "def f(x): return 0",
    ),
    "a well-known name that the program defines": (
        json.dumps(["assert gcd(12, 18) == 6", "assert coprime(3, 4) == True"]),
        "def gcd(a, b): return gcd(b, a % b) if b else a\ndef coprime(a, b): return gcd(a, b) == 1",
        "def gcd(a, b): return 1\ndef coprime(a, b): return gcd(a, b) == 1",
    ),
    "a well-known class that the program defines": (
        json.dumps(["c = Counter('aab')", "assert c['a'] == 2", "assert top('aab') == 'a'"]),
        "from collections import Counter\ndef top(s): return Counter(s).most_common(1)[0][0]",
        "class Counter:\n    def __init__(self, s): pass\ndef top(s): return 'a'",
    ),
    "a built-in name of the same file": (
        json.dumps(["assert list(f(3)) == [0, 1, 2]"]),
        "def f(n): return range(n)",
        "list = [1]\ndef f(n): return range(n)",
    ),
    "sorted sets": (
        json.dumps({"inputs": ["b a\n"], "outputs": ["a b"]}),
        "print(*sorted(set(input().split())))",
        "print(*sorted(set(input().split()))[::-1])",
    ),
    "a small number of one digit": (
        json.dumps({"inputs": [[1]], "outputs": [1e-30], "fn_name": "f"}),
        "def f(x): return 1e-30",
        "def f(x): return 1.4e-30",
    ),
    "zero as a decimal": (
        json.dumps({"inputs": [[1]], "outputs": [0.0], "fn_name": "f"}),
        "def f(x): return 1e-10",
        "def f(x): return 9e-7",
    ),
    "an integer as a decimal": (
        json.dumps({"inputs": [[1]], "outputs": [3], "fn_name": "f"}),
        "def f(x): return 2.9999999999996",
        "def f(x): return 3.0000009",
    ),
    "a large whole decimal": (
        json.dumps({"inputs": [[1]], "outputs": [3000001.0], "fn_name": "f"}),
        "def f(x): return 3000001",
        "def f(x): return 3000000",
    ),
    "a keyword argument that is changed in place": (
        json.dumps({"inputs": [{"nums": [2, 1]}], "outputs": [[1, 2]], "fn_name": "f"}),
        "def f(nums): nums.sort()",
        "def f(nums): nums.sort(reverse=True)",
    ),
    "keyword arguments": (
        json.dumps({"inputs": [{"a": 3, "b": 1}], "outputs": [2], "fn_name": "f"}),
        "def f(b, a): return a - b",
        "def f(b, a): return b - a",
    ),
    "a small number in stdout": (
        json.dumps({"inputs": [""], "outputs": ["0.0000005"]}),
        "print('5e-07')",
        "print(0)",
    ),
    "an underscore in stdout": (
        json.dumps({"inputs": [""], "outputs": ["10.5"]}),
        "print(10.50)",
        "print('1_0.5')",
    ),
    "a form feed in stdout": (
        json.dumps({"inputs": [""], "outputs": ["1\n2"]}),
        "print(1)\nprint(2)",
        "print('1\\x0c2')",
    ),
    "a line separator inside a text": (
        json.dumps({"inputs": ['"a\u2028b"'], "outputs": ["a\u2028b"], "fn_name": "f"}),
        "def f(s): return s",
        "def f(s): return s[:1]",
    ),
    "an integer of more digits than int reads": (
        '{"inputs": [[5000]], "outputs": [1' + "0" * 5000 + '], "fn_name": "f"}',
        "def f(n): return 10**n",
        "def f(n): return 10**n + 1",
    ),
    "a wide space in stdout": (
        json.dumps({"inputs": [""], "outputs": ["1 2"]}),
        "print('1  2 ')",
        "print('1\\xa02')",
    ),
    "a whole number of stdout beyond all floats": (
        json.dumps({"inputs": [""], "outputs": ["9007199254740992.0"]}),
        "print(9007199254740992)",
        "print(9007199254740993)",
    ),
    "a function that returns None where another case expects it": (
        cases(([[]], None), ([[2, 1]], [1, 2])),
        "def f(x): return sorted(x) or None",
        "def f(x):\n    if not x: return None\n    x.sort()",
    ),
    "a function that does nothing": (
        cases(([[1, 2, 3]], [1, 2, 3]), ([[3, 1]], [1, 3])),
        "def f(x): x.sort()",
        "def f(x): pass",
    ),
    "a function that returns what was there": (
        cases(([[1, 2, 3]], [1, 2, 3])),
        "def f(x): return sorted(x)",
        "def f(x): pass",
    ),
    "an object of Solution that keeps its results": (
        json.dumps({"inputs": [[[1]], [[2]]], "outputs": [[1], [2]], "fn_name": "f"}),
        "class Solution:\n    def f(self, x):\n        self.r = [*x]\n        return self.r",
        "class Solution:\n    def __init__(self): self.r = []\n    def f(self, x):\n        self.r += x\n        return self.r[:]",
    ),
    "builtins that the program changes": (
        cases(([[1, 2]], 2), ([[]], 0)),
        "def f(x):\n    return sum(1 for _ in x)",
        "import builtins\ndef f(x):\n    builtins.sum = None\n    return sum(1 for _ in x)",
    ),
    "MBPP's definitions for its tests": (
        json.dumps({"test_list": ["assert near(f(2), 3)", "assert floor(f(2)) == 3"], "test_setup_code": "def near(a, b): return abs(a - b) < 1e-6", "test_imports": ["from math import floor"]}),
        "def f(x): return x + 1",
        "def f(x): return x",
    ),
    "the name of the program's file": (
        cases(([1], 2)),
        "import os\nD = os.path.dirname(os.path.abspath(__file__))\ndef f(x): return x + 1",
        "import os\nD = os.path.dirname(os.path.abspath(__file__))\ndef f(x): return x",
    ),
    "the function's name in metadata that are text": (
        json.dumps(
            [
                {
                    "input": "[1,2]\n3",
                    "output": "6",
                    "testtype": "functional",
                    "metadata": '{"func_name": "add"}',
                }
            ]
        ),
        "class Solution:\n    def add(self, a, b): return sum(a) + b",
        "class Solution:\n    def add(self, a, b): return b",
    ),
}


@pytest.mark.parametrize("name", JUDGED)
def test_cases_pay_the_right_program_only(name: str) -> None:
    tests, right, wrong = JUDGED[name]
    assert (verdict(right, tests), verdict(wrong, tests)) == (1.0, 0.0)


def test_a_function_that_does_nothing_earns_no_share() -> None:
    shares = make_code_verifier(CodeReward(timeout_s=3.0, full_only=False), ConfinedProcesses())
    tests = cases(([[1, 2, 3]], [1, 2, 3]), ([[3, 1]], [1, 3]))
    for body, reward in {"pass": 0.0, "x.sort()": 1.0, "x.sort() if len(x) < 3 else x.clear()": 0.5, "x[:] = map(float, x)": 0.0}.items():
        assert shares(f"```python\ndef f(x): {body}\n```", tests, {})[0] == reward, body


def test_functional_tests_without_a_name_are_at_fault() -> None:
    tests = json.dumps([{"input": "1", "output": "2", "testtype": "functional"}])
    with pytest.raises(ValueError, match="name no function: add fn_name"):
        verdict("def f(x): return 2 * x", tests)
    assert verdict("def f(x): return 2 * x", tests, {"metadata": '{"func_name": "f"}'}) == 1.0


CHANCE = {  # programs whose order of words is that of a set, or of hashes
    "set": "set(w)",
    "slice": "{x[:] for x in w}",
    "display": "[*{x[:] for x in w}]",
    "lambda": "{(lambda v: v)(x) for x in w}",
    "views": "(dict.fromkeys(w).keys() & dict.fromkeys(w).keys())",
    "method of a view": "dict.fromkeys(w).keys().__and__(w)",
    "hashes": "sorted(w, key=str.__hash__)",
}
WORDS = "dog cat ant bee elk fox"


@pytest.mark.parametrize("name", CHANCE)
def test_an_order_by_chance_is_not_paid(name: str) -> None:
    """The expected order is that of the first run's hashes."""
    script = f"w = input().split()\nprint(*{CHANCE[name]})"
    due = in_python(script, hash_seed(0, script, WORDS))
    shares = make_code_verifier(CodeReward(timeout_s=3.0, full_only=False), ConfinedProcesses())
    tests = json.dumps({"inputs": [WORDS], "outputs": [due]})
    assert shares(f"```python\n{script}\n```", tests, {}) == (0.0, "wrong")
    function = f"def f(w): return list({CHANCE[name]})"
    due = in_python(f"{function}\nprint(*f(input().split()))", hash_seed(0, function))
    assert verdict(function, cases(([WORDS.split()], due.split()))) == 0.0


def in_python(script: str, seed: int) -> str:
    """The output of a plain Python with these hashes, which has all words."""
    command, environment = [sys.executable, "-c", script], {"PYTHONHASHSEED": str(seed)}
    output = subprocess.run(command, input=WORDS, env=environment, capture_output=True, text=True).stdout
    assert sorted(output.split()) == sorted(WORDS.split())
    return output


TELLS = [
    "int(os.environ['PYTHONHASHSEED']) % 2",
    "hash('f') % 2",
    "os.getpid() % 2",
    "resource.getrlimit(resource.RLIMIT_CPU)[0] < 4",
]


def test_a_script_cannot_tell_its_cases_apart() -> None:
    """By what the sandbox gives it: it never reads its input."""
    tests = json.dumps({"inputs": [*"45454545"], "outputs": ["YES", "NO"] * 4})
    paid = [
        verdict(f"# {number}\nimport os, resource\nprint('NO' if {odd} else 'YES')", tests)
        for number in range(3)
        for odd in TELLS
    ]
    assert paid == [0.0] * 12


@pytest.mark.parametrize("word", ["0e99999999999999999999", "1e-99999999999999999999", "-0.0e+9999999999999999999"])
def test_an_exponent_that_no_decimal_holds_is_a_wrong_number(word: str) -> None:
    tests = json.dumps({"inputs": ["1\n"], "outputs": ["1.5\n"]})
    assert verdict(f"print('{word}')", tests) == 0.0
    assert verdict("print('0.15e1')", tests) == 1.0


def test_a_script_has_the_usual_imports_too() -> None:
    tests = json.dumps({"inputs": ["3 1 2\n"], "outputs": ["1 6 3.0\n"]})
    script = (
        "def total(a: List[int]) -> int: return reduce(operator.add, a)\n"
        "h = [*map(int, input().split())]\nheapify(h)\nprint(heappop(h), total(h) + 1, math.sqrt(9))"
    )
    assert verdict(script, tests) == 1.0
    assert verdict(script.replace("+ 1", ""), tests) == 0.0
    assert verdict("def gcd(a, b): return 7\nprint(1, gcd(4, 2) - 1, 3.0)", tests) == 1.0  # its own


def test_a_long_word_is_read_in_linear_time() -> None:
    """Before, a million letters would have taken hours."""
    word = "a" * 1_000_000
    assert not may_vary(f"print(0)  # from {word}\n# from {word}.{word}\n# from{' ' * 1_000_000}a")
    assert may_vary(f"from {word} import b")


def test_programs_that_vary_are_told_by_their_text() -> None:
    steady = "import sys, math; import re\nfrom typing import List, Tuple\nfrom os.path import join\nd = {}\nclass Solution:\n    def __init__(self): self.n = [1]\n"
    assert not may_vary(steady)
    for text in (
        "d = {1: 2}",
        "import networkx",
        "import sys; import networkx as nx",
        "try: import numpy\nexcept ImportError: pass",
        "import os, sympy as s",
        "from numpy import *",
        "x = ſet()",
        "n = sys.stdlib_module_names",
        "n = names.union(w)",
        "import time",
    ):
        assert may_vary(steady + text), text
