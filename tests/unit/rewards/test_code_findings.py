"""Attacks on `code` that once were paid or escaped, and the tester without its second run.

The report of the second run cannot be trusted: the program shares its process. So no attack may
need it to be found out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.config import CodeReward
from sppo_ray.rewards.code import base
from sppo_ray.rewards.code.base import Limits, SandboxFailed
from sppo_ray.rewards.code.row_tests import same_output
from sppo_ray.rewards.code.sandbox import run
from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses
from sppo_ray.rewards.code.verifier import make_code_verifier

HERE = Path(__file__).parent
FINDINGS = [json.loads(line) for line in (HERE / "code_findings.jsonl").open()]
ROWS = [json.loads(line) for line in (HERE / "code_attacks.jsonl").open()]

# of 1,065: an exception's cause, the text of an IntEnum, what an object can do, a zone's name
PAID_BY_THE_TESTER_ALONE = 9


class OnlyTheTester(ConfinedProcesses):
    """As if every program forged the report of its second run."""

    def _test_in_one_process(self, *_: Any, **__: Any) -> base.Tested:
        return base.Tested(1000, 0)


def rewards(
    sandbox: ConfinedProcesses, pairs: Iterable[tuple[str, str, dict[str, Any]]], *, full_only: bool = True
) -> list[float | None]:
    verify = make_code_verifier(CodeReward(timeout_s=6.0, full_only=full_only), sandbox)

    def reward(pair: tuple[str, str, dict[str, Any]]) -> float | None:
        tests, program, extra = pair
        try:
            return verify(f"```python\n{program}\n```", tests, extra)[0]
        except SandboxFailed as error:
            print(f"no verdict: {error}")  # shown when a test fails
            return None

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(reward, pairs))


@pytest.mark.parametrize(
    "sandbox", [ConfinedProcesses(), OnlyTheTester()], ids=["both runs", "the tester alone"]
)
def test_no_finding_is_paid_or_escapes(sandbox: ConfinedProcesses) -> None:
    # that of H is about the share of both runs
    rows = [row for row in FINDINGS if row["why"][0] != "H"]
    found = rewards(sandbox, [(row["tests"], row["program"], {}) for row in rows])
    assert [row["why"] for row, reward in zip(rows, found, strict=True) if reward != 0.0] == []


def test_a_share_is_the_smaller_one_of_both_runs() -> None:
    rows = [(row["tests"], row["program"], {}) for row in FINDINGS if row["why"][0] == "H"]
    assert rewards(ConfinedProcesses(), rows, full_only=False) == [0.0]
    right_once = (
        "def test_a():\n    assert f(2) == 4\ndef test_b():\n    assert f(3) == 6",
        "def f(x): return 4",
        {},
    )
    assert rewards(ConfinedProcesses(), [right_once], full_only=False) == [0.5]


def test_an_interrupt_earns_no_share_of_tests_that_pytest_did_not_run() -> None:
    tests = "from solution import f\n" + "".join(
        f"def test_{n}(): assert f({n}) == {n + 1}\n" for n in range(6)
    )
    program = "def f(x):\n    if x == 0: raise {}\n    return x + 1"
    rows = [(tests, program.format(name), {}) for name in ("KeyboardInterrupt", "ValueError")]
    assert rewards(ConfinedProcesses(), rows, full_only=False) == [0.0, pytest.approx(5 / 6)]


def test_a_share_leaves_out_what_fails_in_pytest() -> None:
    tests = (
        "from solution import level, bad\ndef test_text(): assert str(level()) == '1'\n"
        "def test_same(): assert level() == 1\ndef test_bad(): assert bad() == 5"
    )
    program = (
        "from enum import IntEnum\nclass L(IntEnum):\n    A = 1\n    def __str__(self): return 'L.A'\n"
        "def level(): return L.A\ndef bad(): return 4"
    )
    assert rewards(ConfinedProcesses(), [(tests, program, {})], full_only=False) == [pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    "code",
    [
        "import atexit, os\natexit.register(os._exit, 1)\n",
        "import threading\nthreading.Timer(3600, print).start()\n",
    ],
)
def test_a_program_after_which_pytest_would_not_end_well(code: str) -> None:
    pair = ("from solution import f\ndef test_a(): assert f(2) == 4", code + "def f(x): return 2 * x", {})
    assert rewards(ConfinedProcesses(), [pair]) == [0.0]


def test_forged_bases_of_an_exception_are_no_error() -> None:
    tests = "import pytest\nfrom solution import E, f\nwith pytest.raises(E): f(1)"
    forge = (
        "import sys\nframe = sys._getframe()\nwhile frame:\n    if '_exception_names' in frame.f_globals:\n"
        "        frame.f_globals['_exception_names'] = lambda kind: ['E', 'OSError', 'UnicodeDecodeError']\n"
        "    frame = frame.f_back\n"
    )
    program = "class E(Exception): pass\ndef f(x): raise E"
    pairs = [(tests, program, {}), (tests, forge + program, {})]
    assert rewards(ConfinedProcesses(), pairs) == [1.0, 0.0]


def test_names_that_all_does_not_export_are_missing() -> None:
    tests = "from solution import *\ndef test_a(): assert f(1) == 2"
    program = "__all__ = ['g']\ndef g(x): return x\ndef f(x): return x + 1"
    hidden, exported = (tests, program, {}), (tests, program.replace("'g'", "'f'"), {})
    assert rewards(ConfinedProcesses(), [hidden, exported]) == [0.0, 1.0]


FORGE = """
import os, sys
frame, plain = sys._getframe(), False
while frame: plain, frame = plain or frame.f_code.co_filename.endswith("plain.py"), frame.f_back
if plain:
    for one in range(3, 128):
        try: os.pwrite(one, {report!r}, 0)
        except OSError: pass
    os._exit(0)
def f(x): return 2 * x
"""


@pytest.mark.parametrize(
    "report",
    [
        b'{"passed": 1, "failed": 0}',
        b'{"passed": 1e999, "failed": 0}',
        b"[" * 200_000,
        b'{"passed": 1000, "failed": -999}',
        b" 1 0",
        b"00000000000000000000000000000000 1 0",
    ],
    ids=lambda report: report[:20].decode(),
)
@pytest.mark.parametrize("full_only", [True, False])
def test_a_forged_report_of_the_second_run_is_0(report: bytes, full_only: bool) -> None:
    pair = ("assert f(2) == 4\nassert f(3) == 6", FORGE.format(report=report), {})
    assert rewards(ConfinedProcesses(), [pair], full_only=full_only) == [0.0]


@pytest.mark.parametrize(
    ("tests", "program"),
    [
        ("r = f(1)\nif not r:\n    r = f(print)\nassert r == 2 or f(0) == 0", "def f(x): return 0"),
        ("h = 1\nif f(1) == 0: h = print\nassert f(h) == 2", "def f(x): return 0"),
        ("PARTS = {2: 4, 0: print}\nassert f(PARTS[f(1)]) == 8", "def f(x): return 0"),
        ("import io\nassert f(1) or f(io.StringIO('a'))\nassert f(2) == 4", "def f(x): return 0"),
        ("def own(): pass\nassert f([f(x) or own for x in (1, 2)]) == [2, 4]", "def f(x): return 0"),
        (
            "def one(g): assert f(g) == 2\nr = f(1)\nwhile r is None:\n    one(print)\n    break\n"
            "assert r != 1",
            "def f(x): return None",
        ),
        (
            "def own(): return 1\ndef test_a():\n    try:\n        r = f(1)\n    except ValueError:\n"
            "        r = f(own)\n    assert r == 2",
            "def f(x): raise ValueError",
        ),
        # an own list that the program changes, in the run in which it may
        (
            "a = [2, 1]\nc = a\nr = [f(a)]\nassert r == [[1, 2]]\nassert c[0] == 2 or f(print)",
            "def f(a):\n    a.sort()\n    return a",
        ),
    ],
)
def test_no_program_makes_the_tests_unfit(tests: str, program: str) -> None:
    """Its value leads them to hand over an object of their own; with a forged last run, too."""
    assert rewards(OnlyTheTester(), [(tests, program, {})]) == [0.0]


@pytest.mark.parametrize(
    "tests",
    [
        "assert f(lambda: 1) == 3",
        "def own(): return 1\nassert f(own) == 3",
        "class Own: pass\nown = Own()\nassert f([own]) == 3",
        "import io\nassert f(io.StringIO('a')) == 3",
        "def one(g): assert f(g) == 3\none(lambda: 1)",
        "def own(): return Own()\nclass Own: pass\ndef test_a():\n    for x in (own(), 2): assert f(x) == 3",
        "import pytest\n@pytest.mark.parametrize('g', [1, print])\ndef test_a(g): assert f(g) == 2",
        "import itertools\nassert f(itertools.count()) == 3",
        # a tree that the program may change
        "class Node: pass\ndef test_a():\n    root = None\n    assert f(1) == 2\ndef test_b():\n"
        "    root = Node()\n    f(root)\n    assert root is not None",
    ],
)
def test_tests_that_hand_over_their_own_objects_are_an_error(tests: str) -> None:
    program = "def f(x): return 2 * x"
    found = rewards(ConfinedProcesses(), [("assert f(1) == 2\n" + tests, program, {})])
    assert found == [None]


BURNS = """
import hashlib, sys, threading, time
def f(x):
    time.sleep(1.5)
    for _ in range(40):
        threading.Thread(target=hashlib.pbkdf2_hmac, args=('sha256', b'a', b'b', 10**8), daemon=True).start()
    while True: pass
"""
SUM = {"name": None, "cases": None, "tests": "assert f(2) == 4\nassert f(3) == 6"}


def test_a_program_that_burns_the_processor_is_late_before_the_deadline() -> None:
    tested = ConfinedProcesses(deadline_s=4.0).run_tests(BURNS, SUM, Limits(2.0, 512), stop_at_failure=True)
    assert (tested.passed, bool(tested.failed)) == (0, True)


BURNS_AT_ITS_START = """
import hashlib, threading
threading.stack_size(1 << 17)
for _ in range(60):
    threading.Thread(target=hashlib.pbkdf2_hmac, args=('sha256', b'a', b'b', 10**9), daemon=True).start()
def f(x): return 0
"""


@pytest.fixture
def one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("own_work", ["import numpy, pytest", "want = sum(i * i for i in range(4_000_000))"])
def test_no_program_takes_the_processor_from_its_tests(one_processor: None, own_work: str) -> None:
    """60 threads beside the start of the tests, their imports, their own work and their end."""
    tests = SUM | {"tests": f"{own_work}\n{SUM['tests']}"}
    sandbox = ConfinedProcesses(deadline_s=5.0)
    tested = sandbox.run_tests(BURNS_AT_ITS_START, tests, Limits(3.0, 512), stop_at_failure=True)
    assert (tested.passed, bool(tested.failed)) == (0, True)


SLEEPS_AND_CHANGES = """
import time
begun = time.monotonic()
def f(a):
    while time.monotonic() - begun < 2.6: time.sleep(0.1)
    a.sort()
    return a
"""


def test_a_program_that_sleeps_in_each_run_is_late_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes its argument, so it would run three times: together beyond the deadline."""
    monkeypatch.setattr(run, "_scheduled", lambda pid: (0.0, 0.0))  # as on an idle machine
    tests = "a = [2, 1]\nassert f(a) == [1, 2]\nassert a == [2, 1] or a"
    wanted = {"name": None, "cases": None, "tests": tests}
    sandbox = ConfinedProcesses(deadline_s=4.0)
    tested = sandbox.run_tests(SLEEPS_AND_CHANGES, wanted, Limits(3.0, 512), stop_at_failure=True)
    assert tested.failed and tested.timeout


def test_a_large_output_is_compared_to_its_first_difference() -> None:
    """In whole it would take seconds, which no limit counts, and 400 MiB."""
    begun = time.monotonic()
    assert not same_output("\ufffd\n" * 2_000_000, "1\n2")
    assert not same_output("\ufffd " * 2_000_000, "1 2")
    assert not same_output("1 " * 2_000_000, "1")
    assert time.monotonic() - begun < 1.0
    assert same_output(" 1  2.0000001\r\n3\n", "1 2.0\n3") and not same_output("1 2 3", "1 2")


def test_tests_are_given_up_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overloaded machine: the tester waits for a processor that others use."""
    monkeypatch.setattr(run, "_scheduled", lambda pid: (0.0, 2 * time.monotonic()))
    sandbox = ConfinedProcesses(deadline_s=3.0)
    sleeps = "import time\ndef f(x): time.sleep(60)"
    with pytest.raises(SandboxFailed, match="overloaded"):
        sandbox.run_tests(sleeps, SUM, Limits(1.0, 512), stop_at_failure=True)
    monkeypatch.setattr(run, "_cpu_s", lambda pid: 0.2)
    assert sandbox.run_tests(sleeps, SUM, Limits(1.0, 512), stop_at_failure=True).timeout


def test_a_program_that_others_starve_is_not_late() -> None:
    """Threads of another process, at nearly its priority, take its processor: it is right all the
    same, or has no verdict.
    """
    cores = os.sched_getaffinity(0)
    thread = "threading.Thread(target=burn, daemon=True).start()"
    burner = (
        "import hashlib, threading, time\ndata = bytes(1 << 20)\n"
        f"def burn():\n    while True: hashlib.sha256(data).digest()\nfor _ in range(8): {thread}\n"
        "print(1, flush=True)\ntime.sleep(60)"
    )
    counts = "for i in range(5 * 10**6): pass\ndef f(x): return x + 1\n"
    tests = {"name": None, "cases": None, "tests": "assert f(1) == 2"}
    sandbox, limits = ConfinedProcesses(deadline_s=4.0), Limits(2.0, 512)
    os.sched_setaffinity(0, {min(cores)})
    other = subprocess.Popen(["nice", "-n", "9", sys.executable, "-c", burner], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with suppress(SandboxFailed):  # "overloaded"
            ran = sandbox.run_script(counts, "", limits, end=sandbox.end_of_sample())
            assert ran.status == "ok"
        with suppress(SandboxFailed):
            assert not sandbox.run_tests(counts, tests, limits, stop_at_failure=True).failed
    finally:
        os.sched_setaffinity(0, cores)
        other.kill()
        other.wait()


KINDS = """
class Animal:
    def __init__(self, name): self.name = name
class Dog(Animal):
    def speak(self): return 'Woof'
"""
OF_KINDS = [
    "assert issubclass(Dog, Animal) and not issubclass(Animal, Dog)",
    "assert isinstance(Dog('a'), (int, Animal)) and not isinstance(Animal('a'), (int, Dog))",
    "d = Dog('a')\nassert type(d).__name__ == d.__class__.__name__ == Dog.__name__ == 'Dog'",
    "assert type(Dog('a').name).__name__ == 'str'",
]


@pytest.mark.parametrize("tests", OF_KINDS)
def test_kinds_are_those_of_the_program(tests: str) -> None:
    animal = "class Animal:\n    name = 0\n    def __init__(self, name): pass\n"
    animal += "    def speak(self): return 'Woof'\n"
    other_name = "Cat = Dog = type('Cat', (Animal,), {})"
    other_base = "class Dog:\n    def __init__(self, name): pass\n    speak = Animal.speak"
    program = animal + (other_name if "__name__" in tests else other_base)
    pair = (tests + "\nassert Dog('a').speak() == 'Woof'", program, {})
    assert rewards(OnlyTheTester(), [pair]) == [0.0]


@pytest.mark.parametrize(
    ("tests", "program"),
    [
        ("assert f(iter([1, 2])) == [1, 2]", "def f(xs): return list(xs)"),
        ("assert f(x * x for x in range(3)) == 5", "def f(xs): return sum(xs)"),
        ("assert f(zip([1], [2])) == {1: 2}", "def f(pairs): return dict(pairs)"),
        ("assert f({1: 2}.items().__iter__()) == [(1, 2)]", "def f(xs): return list(xs)"),
        (
            "from solution import f\ndone = []\ndef setup_function(function):\n    done.append(f(1))\n"
            "def teardown_function():\n    done.pop()\n"
            "def test_a():\n    assert done == [2]\n    assert f(2) == 4",
            "def f(x): return 2 * x",
        ),
        (
            "import pytest\nfrom solution import parse, ParseError\n"
            "def test_a():\n    assert parse('1') == 1\n"
            "    with pytest.raises((ParseError, KeyError)):\n        parse('x')",
            "class ParseError(Exception): pass\n"
            "def parse(s):\n    if not s.isdigit(): raise ParseError(s)\n    return int(s)",
        ),
        ("from solution import f\nassert f(2) == 4", "class Solution:\n    def f(self, x): return 2 * x"),
        (
            "def test_a():\n    rows = grid(2)\n    rows[0][0] = 'x'\n    assert rows == [['x', 0], [0, 0]]\n"
            "    assert grid(2) == [[0, 0], [0, 0]]",
            "def grid(n): return [[0] * n for _ in range(n)]",
        ),
        (
            "from solution import Team\ndef test_a():\n    team = Team()\n    team.members.append('a')\n"
            "    assert team.members is team.members\n    assert team.size() == 1",
            "class Team:\n    def __init__(self): self.members = []\n"
            "    def size(self): return len(self.members)",
        ),
        (
            "def test_a():\n    xs = [1, 2]\n    assert f(xs) is xs\n    assert f(xs) == [1, 2]",
            "def f(xs): return xs",
        ),
        (
            "import numpy as np\ndef test_a():\n"
            "    assert isinstance(f([1, 2]), np.float64)\n    assert f([1, 2]) == 1.5",
            "import numpy as np\ndef f(xs): return np.mean(xs)",
        ),
        (
            "d = f('ab')\nassert d['a'] == 'r'\nassert f('c') == {}",
            "from enum import Enum\nclass C(str, Enum):\n    R = 'r'\n"
            "def f(s): return {'a': C.R} if 'a' in s else {}",
        ),
        (
            "d = f('ab')\nassert d == {'a': 1, 'b': 1}",
            "from collections import defaultdict\ndef f(s): return defaultdict(lambda: 0, {c: 1 for c in s})",
        ),
        (
            "assert f('a') == bytearray(b'a')\nassert type(f('a')) is bytearray",
            "def f(s): return bytearray(s, 'utf8')",
        ),
        *((tests + "\nassert Dog('a').speak() == 'Woof'", KINDS) for tests in OF_KINDS),
        (
            "def test_a():\n    assert f(1) == 2\n    assert f.__doc__ == 'Doubles.'",
            "def f(x):\n    'Doubles.'\n    return 2 * x",
        ),
    ],
)
def test_the_right_program_is_paid(tests: str, program: str) -> None:
    assert rewards(ConfinedProcesses(), [(tests, program, {})]) == [1.0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tester_alone_pays_few_wrong_programs() -> None:
    pairs = [(row["tests"], program, row.get("extra", {})) for row in ROWS for program in row["wrong"]]
    found = rewards(OnlyTheTester(), pairs)
    assert sum(reward == 1.0 for reward in found) <= PAID_BY_THE_TESTER_ALONE
