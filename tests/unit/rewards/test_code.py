"""The verifier of programs: what is right, what is wrong, and what a program tries instead of
solving the task.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from sppo_ray.config import CodeReward, RewardSettings
from sppo_ray.errors import UserError
from sppo_ray.rewards.base import Verifier
from sppo_ray.rewards.code.base import SandboxFailed
from sppo_ray.rewards.code.sandbox import confine, run
from sppo_ray.rewards.code.sandbox.confine import CannotConfine, seccomp_program
from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses
from sppo_ray.rewards.code.verifier import make_code_verifier
from sppo_ray.rewards.pool.pool import VerifierPool, VerifierPoolFailed
from sppo_ray.rewards.registry import build_verifier
from sppo_ray.types import ScoreRequest, Verdict

VERIFIER = Verifier("code", make_code_verifier(CodeReward(timeout_s=5.0), ConfinedProcesses()))
HASTY = Verifier("code", make_code_verifier(CodeReward(timeout_s=0.7), ConfinedProcesses()))
SUM = json.dumps({"inputs": ["1 2\n", "10 -4\n"], "outputs": ["3\n", "6\n"]})  # of two numbers
ADD_SCRIPT = "a, b = map(int, input().split())\nprint(a + b)"
DOUBLE = "assert double(2) == 4\nassert double(5) == 10"
RIGHT, WRONG, CRASHED, LATE = (1.0, "correct"), (0.0, "wrong"), (0.0, "runtime_error"), (0.0, "timeout")


def fenced(code: str, language: str = "python") -> str:
    return f"The solution is\n```{language}\n{code}\n```\n"


def score(code: str, tests: str, verifier: Any = VERIFIER, **extra: Any) -> tuple[float, str]:
    return verifier.score(fenced(code), tests, extra)


# ---------------------------------------------------------------------------------- right and wrong


@pytest.mark.parametrize(
    ("code", "tests", "verdict"),
    [
        (ADD_SCRIPT, SUM, RIGHT),
        (
            "def main():\n    a, b = map(int, input().split())\n    print(a + b)\nif __name__ == "
            "'__main__':\n    main()",
            SUM,
            RIGHT,
        ),
        (ADD_SCRIPT + "\nimport sys; sys.exit(0)", SUM, RIGHT),
        ("print(3)", SUM, WRONG),  # the first test passes, the second does not
        (ADD_SCRIPT + "\nraise KeyError", SUM, CRASHED),
        ("import numpy\nprint(numpy.array(input().split(), dtype=int).sum())", SUM, RIGHT),
        ("def broken(:", SUM, CRASHED),
        ("def double(x):\n    return 2 * x", DOUBLE, RIGHT),
        ("def double(x):\n    return x + 2", DOUBLE, WRONG),  # 2 + 2 = 4, 5 + 2 = 7
        ("def treble(x):\n    return 3 * x", DOUBLE, WRONG),
    ],
)
def test_programs(code: str, tests: str, verdict: tuple[float, str]) -> None:
    assert score(code, tests) == verdict


SORTED = [{"input": "[3, 1, 2]", "output": "[1, 2, 3]"}, {"input": "[]", "output": "[]"}]
SOLUTION = (
    "class Solution:\n    def arrange(self, numbers: List[int]) -> List[int]:\n        return sorted(numbers)"
)


@pytest.mark.parametrize(
    ("code", "tests", "extra"),
    [
        (ADD_SCRIPT, json.dumps([{"input": "1 2", "output": "3", "type": "stdin_stdout"}]), {}),
        # APPS: lines as lists
        (ADD_SCRIPT, json.dumps({"inputs": [["1 2"]], "outputs": [["3"]]}), {}),
        ("print(2 / 3)", json.dumps({"inputs": [""], "outputs": ["0.6666667"]}), {}),  # 3e-8 off
        (SOLUTION, json.dumps([{**row, "fn_name": "arrange"} for row in SORTED]), {}),
        (SOLUTION, json.dumps([{**row, "metadata": {"func_name": "arrange"}} for row in SORTED]), {}),
        (
            "arrange = sorted",
            json.dumps({"inputs": [[[3, 1]]], "outputs": [[[1, 3]]], "fn_name": "arrange"}),
            {},
        ),
        (
            "def spell(x): return str(x)",
            json.dumps({"inputs": [[7]], "outputs": ["7"], "fn_name": "spell"}),
            {},
        ),
        (
            "def pair(a, b):\n    return (b, a)",
            json.dumps({"inputs": ["1\n2"], "outputs": ["[2, 1]"]}),
            {"fn_name": "pair"},
        ),
        ("def double(x): return 2 * x", json.dumps(DOUBLE.split("\n")), {}),  # MBPP
        ("def double(x): return 2 * x", json.dumps({"functional": DOUBLE}), {}),
        (
            "def double(x): return 2 * x",
            "def check(candidate):\n    assert candidate(1) == 2",
            {"entry_point": "double"},
        ),
        (
            "def double(x): return 2 * x",
            "from solution import double\ndef test_it():\n    assert double(1) == 2",
            {},
        ),
        (
            "def double(x): return 2 * x",
            "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n        "
            "self.assertEqual(double(1), 2)\n"
            "if __name__ == '__main__':\n    unittest.main()",
            {},
        ),
        # in place, returns None
        ("def turn(row): row.reverse()", "row = [1, 2]\nturn(row)\nassert row == [2, 1]", {}),
        (
            "def fail(x): raise ValueError(x)",
            "try:\n    fail(1)\n    assert False\nexcept ValueError:\n    pass",
            {},
        ),
        ("class Stack(list):\n    def push(self, x): self.append(x)", "assert Stack([4]) == [4]", {}),
        (
            "class Node:\n    def __init__(self, value): self.value = value\ndef value_of(node): return "
            "node.value",
            "assert value_of(Node(7)) == 7",  # objects of the program's go back to it
            {},
        ),
        (
            "def squares(n):\n    for i in range(n):\n        yield i * i",
            "assert list(squares(3)) == [0, 1, 4]",
            {},
        ),
        (
            "def odd(): return {1: (2.5, None)}, {3}, b'x', 1j",
            "assert odd() == ({1: (2.5, None)}, {3}, b'x', 1j)",
            {},
        ),
        (
            "import math\ndef root(x): return math.sqrt(x)",
            "assert math.isclose(root(2), 1.4142135623730951)",
            {},
        ),
        ("def f(what, on=0): return what - on", "assert f(on=2, what=3) == 1 == f(1)", {}),
        ("def big(): return 10 ** 20_000", "assert big() == 10 ** 20_000", {}),
    ],
)
def test_forms_of_tests(code: str, tests: str, extra: dict[str, Any]) -> None:
    assert score(code, tests, **extra) == RIGHT


def test_share_of_tests() -> None:
    verifier = build_verifier(CodeReward(timeout_s=5.0, full_only=False))
    assert score("print(3)", SUM, verifier) == (0.5, "partial")
    assert score("def double(x): return x + 2", DOUBLE, verifier) == (0.5, "partial")
    assert score("print(0)", SUM, verifier) == WRONG
    assert score(ADD_SCRIPT, SUM, verifier) == RIGHT


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (fenced(ADD_SCRIPT) + fenced("a,b", "text") + "It runs in O(1).", RIGHT),
        (fenced("print(0)") + fenced(ADD_SCRIPT, "Python3"), RIGHT),
        (fenced(ADD_SCRIPT) + fenced("print(0)"), WRONG),  # the last block decides
        (fenced(ADD_SCRIPT, ""), RIGHT),
        (fenced("print(0)", "") + fenced(ADD_SCRIPT) + fenced("1 2", ""), RIGHT),
        (f"<think>{fenced('print(0)')}</think>{fenced(ADD_SCRIPT)}", RIGHT),
        (f"<think>{fenced(ADD_SCRIPT)}</think> So it is 3.", (0.0, "no_answer")),
        (f"<think>{fenced(ADD_SCRIPT)}</think>{fenced('print(0)')}", WRONG),
        (f"<think>{fenced(ADD_SCRIPT)}", (0.0, "no_answer")),  # the thinking never ends
        # truncated inside its last block
        (fenced(ADD_SCRIPT) + "```python\nprint(0", (0.0, "no_answer")),
        (fenced(ADD_SCRIPT, "java"), (0.0, "no_answer")),
        (fenced(" "), (0.0, "no_answer")),
        (ADD_SCRIPT, (0.0, "no_answer")),
        ("", (0.0, "no_answer")),
        (fenced("#" * 100_001), (0.0, "too_long")),
    ],
)
def test_the_last_python_block_is_the_answer(response: str, verdict: tuple[float, str]) -> None:
    assert VERIFIER.score(response, SUM, {}) == verdict


# ------------------------------------------------------------------------------------- reward hacks

# what the process of the tests says of two tests that pass
REPORT = '{"passed": 2, "failed": 0, "calls": 2}'
WRITE_EVERYWHERE = """
import os
text = {text!r}.encode()
for fd in range(3, 64):
    try:
        {write}
    except OSError:
        pass
"""
EQUALS = "__eq__ = lambda *a: True"
EQUALS_ALL = "class Any:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("import sys\nsys.exit(0)", WRONG),
        ("import os\nos._exit(0)", WRONG),
        ("def double(x):\n    import os\n    os._exit(0)", WRONG),
        ("def double(x):\n    raise SystemExit(0)", WRONG),
        (EQUALS_ALL + "def double(x): return Any()", WRONG),
        (EQUALS_ALL + "double = Any()", WRONG),
        (
            EQUALS_ALL
            + "class Liar(int):\n    __eq__ = lambda self, other: True\ndef double(x): return Liar(0)",
            WRONG,
        ),
        (
            "import builtins\nbuiltins.AssertionError = builtins.NameError = Exception\nbuiltins.print = len",
            WRONG,
        ),
        (
            "def double(x): return 0\nimport builtins, sys\nbuiltins.exec = lambda *a: "
            "None\nsys.settrace(lambda *a: None)",
            WRONG,
        ),
        ("import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef double(x): return 0", WRONG),
        (f"def double(x):\n    print({REPORT!r})", WRONG),
        ("import atexit, os\natexit.register(os._exit, 0)", WRONG),
        # the result is not among them
        (WRITE_EVERYWHERE.format(text=REPORT, write="os.pwrite(fd, text, 0)"), WRONG),
        (WRITE_EVERYWHERE.format(text='{"value": 4}\n' * 9, write="os.write(fd, text)"), WRONG),
        (
            "def double(x): return 0\ndef check(*a): pass\ndef abs(x): return 0\nlen = isinstance = lambda "
            "*a: True",
            WRONG,
        ),
        (
            "import gc, sys\nfound = [o for o in gc.get_objects() if 'assert double' in "
            "str(o)[:200]]\ndouble = found[0]",
            WRONG,
        ),
        ("def double(x): raise ImportError(x)", WRONG),  # it would pass for the tests' own
        ("def double(x): return type('double', (), {'__module__': 'numpy'})()", WRONG),
        (
            "class Liar(dict):\n    def __iter__(self): raise SyntaxError\n    items = __iter__\ndef "
            "double(x): return Liar()",
            WRONG,
        ),
        ("import sys\ndef double(x): return list(sys._getframe(1).f_locals.values())[0]", WRONG),
        ("def double(x): return 4", WRONG),  # the value of one test is no solution of the other
    ],
)
def test_a_program_cannot_talk_its_tests_into_passing(code: str, verdict: tuple[float, str]) -> None:
    assert score(code, DOUBLE) == verdict


def test_a_program_changes_the_tests_values_only_by_working_in_place() -> None:
    tests = "given = [3, 1]\nassert arrange(given) == sorted(given)"
    assert score("def arrange(row):\n    row.clear()\n    return []", tests) == WRONG


@pytest.mark.parametrize(
    "tests",
    [
        "",
        "[]",
        "{}",
        "7",
        json.dumps({"inputs": ["1"], "outputs": []}),
        json.dumps({"inputs": [], "outputs": []}),
    ],
)
def test_a_row_without_tests_is_an_error(tests: str) -> None:
    with pytest.raises(ValueError, match="ground truth|holds no tests"):
        score(ADD_SCRIPT, tests)


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("assert 1 + 1 == 2", "never call the program"),
        ("import no_such_module\nassert double(1) == 2", "no_such_module"),
        ("assert double(", "cannot be run"),
        ("while True:\n    pass\nassert double(1) == 2", "did not end in time"),
        ("class Mine:\n    pass\nassert double(Mine())", "an object of type Mine"),
        ("assert Point(1) == Point(1)", "expect the same one each time"),
    ],
)
def test_tests_that_cannot_be_run_are_an_error(tests: str, message: str) -> None:
    with pytest.raises(SandboxFailed, match=message):
        score(
            f"def double(x): return 1\nclass Point:\n    def __init__(self, x): pass\n    {EQUALS}",
            tests,
            HASTY,
        )


# ------------------------------------------------------------------------------------------ attacks

FORBIDDEN = {
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "fork": "import os\nos.fork()",
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill everybody": "import os\nos.kill(-1, 9)",
    "users": "open('/etc/passwd')",
    "environment of the parent": "import os\nopen(f'/proc/{os.getppid()}/environ')",
    "own memory file": "open('/proc/self/mem', 'rb')",
    "list the root": "import os\nos.listdir('/')",
    "write to tmp": "open('/tmp/sppo-ray-was-here', 'w')",
    "write here": "open('here', 'w')",
    "ptrace": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, __import__('os').getppid(), 0, 0) == 0",
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "become root": "import os\nos.setuid(0); assert os.getuid() == 0; open('/etc/shadow')",
    "memory": "hog = bytearray(2 << 30)",
    "threads": "import threading, time\nfor _ in range(999): threading.Thread(target=time.sleep, args=(9,), "
    "daemon=True).start()",
    "files": "import os\nkept = [os.dup(0) for _ in range(5000)]",
    "output": "while True: print('x' * 100_000)",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_a_program_may_not_do_fails(name: str) -> None:
    """Each would print what is expected if the attempt before it went through."""
    tests = json.dumps({"inputs": [""], "outputs": ["done"]})
    assert score(FORBIDDEN[name] + "\nprint('done')", tests) == CRASHED
    assert not Path("/tmp/sppo-ray-was-here").exists()


def test_a_program_finds_no_secret_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a secret")
    names = "LANG LC_CTYPE OMP_NUM_THREADS OPENBLAS_NUM_THREADS PYTHONHASHSEED"
    tests = json.dumps({"inputs": [""], "outputs": [names]})
    assert (
        score("import os\nos.environ.setdefault('LC_CTYPE', '')\nprint(*sorted(os.environ))", tests) == RIGHT
    )


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("while True: pass", LATE),
        ("while True: pass\ndef double(x): pass", LATE),
        ("def double(x):\n    deep = []\n    for _ in range(10 ** 5): deep = [deep]\n    return deep", WRONG),
        ("def double(x): return [[0] * 1000] * 10 ** 6", LATE),
        ("import time\ntime.sleep(60)", LATE),
        ("import signal\nfor s in (14, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass", LATE),
        ("def double(x):\n    while True: pass", LATE),
        ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", LATE),
        # a generator equals nothing, however long
        ("def double(x):\n    yield from iter(int, 1)", WRONG),
        ("print(9 ** 9 ** 9)", LATE),
    ],
)
def test_a_program_that_does_not_end_is_late(code: str, verdict: tuple[float, str]) -> None:
    assert score(code, DOUBLE if "double" in code else SUM, HASTY) == verdict


@pytest.mark.parametrize("code", [ADD_SCRIPT, "while True: pass", "def double(x): return 2 * x"])
def test_nothing_is_left_behind(code: str) -> None:
    before = {"descriptors": os.listdir("/proc/self/fd"), "tmp": set(os.listdir("/tmp"))}
    children, calls = set(psutil.Process().children()), 4
    for _ in range(calls):
        score(code, DOUBLE if "double" in code else SUM, HASTY)
    # other threads of this process may open some meanwhile; a leak shows in each call
    assert len(os.listdir("/proc/self/fd")) - len(before["descriptors"]) < calls
    assert not [name for name in set(os.listdir("/tmp")) - before["tmp"] if "sandbox" in name]
    assert len(set(psutil.Process().children()) - children) < calls  # zombies included


def test_programs_die_with_their_verifier() -> None:
    """Killed from outside, as at the pool's deadline: the program hangs, and it is nobody's
    business any more.
    """
    settings = RewardSettings(function=CodeReward(timeout_s=60.0), deadline_s=90.0)

    async def use() -> None:
        pool = VerifierPool(settings)
        scoring = asyncio.ensure_future(pool.score(ScoreRequest(fenced("while True: pass"), SUM, "", "", {})))
        while not (programs := sandboxed()):
            await asyncio.sleep(0.05)
        programs[0].parent().kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, programs, 20)
        assert alive == []
        await pool.close()
        with pytest.raises(VerifierPoolFailed):
            await scoring

    asyncio.run(use())
    assert sandboxed() == []


def test_a_program_whose_verifier_ended_while_it_started_does_not_begin() -> None:
    """SIGKILL for the parent's end is never sent when the parent has ended before it was asked
    for.
    """
    start = f"""
import sys; sys.path.insert(0, {str(Path(confine.__file__).parent)!r})
import confine
confine.confine(parent={os.getpid()} + PASSED, memory_mib=512, cpu_s=5, output_mib=1, niceness=0, readable=[])
print("begins")
"""
    for passed, printed in (("0", "begins\n"), ("1", "")):
        done = subprocess.run(
            [sys.executable, "-I", "-c", start.replace("PASSED", passed)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout, done.returncode) == (printed, 0 if printed else 1), done.stderr


def sandboxed() -> list[psutil.Process]:
    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in alive if "program.main(" in " ".join(p.cmdline())]


NOBODY = """
import os, sys, types
os.setgid(65534); os.setuid(65534)
sys.path.insert(0, {folder!r})
import confine
confine.confine(parent=os.getppid(), memory_mib=512, cpu_s=5, output_mib=1, niceness=0, readable=[])
refused = 0
for attempt in ("import socket; socket.socket()", "import os; os.fork()", "open('/etc/passwd')", "open({folder!r} + '/x', 'w')",
                "import os; os.kill(os.getppid(), 0)", "import os; open('/proc/%d/environ' % os.getppid())"):
    try:
        exec(attempt)
    except OSError:
        refused += 1
print(refused)
"""  # noqa: E501


@pytest.mark.skipif(os.getuid() != 0, reason="every other test of this file has run without root")
def test_without_root_the_walls_are_the_same() -> None:
    """As nobody, on a copy that nobody may read, with a Python that nobody may run."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("the only Python is in a directory of root's")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are root's alone
        shutil.copy(confine.__file__, folder)
        for path in (folder, f"{folder}/confine.py"):
            os.chmod(path, 0o755)
        done = subprocess.run(
            [python, "-I", "-c", NOBODY.format(folder=folder)], capture_output=True, text=True, timeout=60
        )
    assert done.stdout == "6\n", done.stderr


def test_where_a_wall_is_missing_the_verifier_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "landlock_abi", lambda: 0)
    with pytest.raises(UserError, match="needs Landlock .*a reward.function of your own"):
        build_verifier(CodeReward())


def test_the_sandbox_is_tried_when_the_verifier_is_built() -> None:
    assert build_verifier(CodeReward()).score(fenced(ADD_SCRIPT), SUM, {}) == RIGHT


def test_the_filter_knows_two_architectures() -> None:
    assert len(seccomp_program("x86_64", 1)) % 8 == 0 == len(seccomp_program("aarch64", 1)) % 8
    with pytest.raises(CannotConfine, match="x86_64 or aarch64"):
        seccomp_program("riscv64", 1)


def test_in_the_pool_programs_hang_beside_right_ones() -> None:
    settings = RewardSettings(function=CodeReward(timeout_s=2.0), deadline_s=20.0, processes=2)
    responses = [
        fenced(ADD_SCRIPT),
        fenced("while True: pass"),
        fenced(ADD_SCRIPT),
        fenced("import os\nos._exit(3)"),
        "",
    ]

    async def use() -> list[Verdict]:
        pool = VerifierPool(settings)
        try:
            return list(
                await asyncio.gather(
                    *(pool.score(ScoreRequest(r, SUM, "", "", {})) for r in [*responses, "no_tests"])
                )
            )
        finally:
            await pool.close()

    verdicts = asyncio.run(use())
    assert [v.reason for v in verdicts] == [
        "correct",
        "timeout",
        "correct",
        "runtime_error",
        "no_answer",
        "no_answer",
    ]
    assert verdicts[0].answer == ADD_SCRIPT


def test_a_time_limit_above_the_deadline_is_refused() -> None:
    with pytest.raises(ValueError, match="timeout_s is 8 and deadline_s 5"):
        RewardSettings(function=CodeReward(), deadline_s=5.0)
