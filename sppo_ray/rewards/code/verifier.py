"""Verifier of programs: runs the last fenced Python block of the response against the row's unit
tests, in a sandbox.

`row_tests` defines the test formats, `sandbox` the isolation. A program that fails, hangs or
exceeds its limits is wrong. Tests that cannot be run are an error, which a program cannot cause.
"""

from __future__ import annotations

import codecs
import io
import resource
import time
import tokenize
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sppo_ray.config import CodeReward
from sppo_ray.rewards.base import VerifierFunction
from sppo_ray.rewards.code.base import FAIR_SHARE, Limits, Sandbox, SandboxFailed, Tested
from sppo_ray.rewards.code.hash_order import hash_seed, may_vary
from sppo_ray.rewards.code.row_tests import ModuleTests, ScriptTests, read_tests, same_output
from sppo_ray.rewards.extract import last_program

MAX_PROGRAM_CHARS = 100_000

_FEW_CASES = 20
_MOST_OF_THE_TIME = 0.75

answer = last_program


def make_code_verifier(settings: CodeReward, sandbox: Sandbox) -> VerifierFunction:
    """Build the code verifier. Reasons: correct, wrong, partial, no_answer, too_long, timeout,
    runtime_error.

    The verifier raises ValueError for a ground truth without tests and SandboxFailed when these
    cannot be run.
    """
    limits = Limits(settings.timeout_s, settings.memory_mib, settings.timeout_s)

    def verify(response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
        tests = read_tests(ground_truth, extra)
        program = last_program(response)
        if program is None:
            return 0.0, "no_answer"
        if _declares_another_encoding(program):
            return 0.0, "runtime_error"
        program = program.removeprefix("\ufeff")  # Python accepts it at the start of a file
        if len(program) > MAX_PROGRAM_CHARS:
            return 0.0, "too_long"
        if isinstance(tests, ScriptTests):
            tested, why = _test_script(sandbox, program, tests, limits, stop_at_failure=settings.full_only)
        else:
            tested, why = _test_module(sandbox, program, tests, limits, stop_at_failure=settings.full_only)
        if not tested.failed:
            return 1.0, "correct"
        if settings.full_only or not tested.passed:
            return 0.0, why
        return tested.passed / (tested.passed + tested.failed), "partial"

    return verify


def _declares_another_encoding(program: str) -> bool:
    """Whether a comment in the first two lines says that the file, which is UTF-8, is something
    else: Python refuses it or reads other letters.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(program.encode("utf-8", "replace")).readline)
    except SyntaxError:
        return True
    return codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig")


def _test_script(
    sandbox: Sandbox, program: str, tests: ScriptTests, limits: Limits, *, stop_at_failure: bool
) -> tuple[Tested, str]:
    """Run all cases within the time limit, which does not count starts. Each runs with its own
    hashes, a single one twice where the program may vary.
    """
    _refuse_too_many(sandbox, len(tests.cases), limits)
    passed, why = 0, "wrong"
    spent, end = 0.0, sandbox.end_of_sample()
    runs = 2 if len(tests.cases) == 1 and may_vary(program) else 1
    cases = [*tests.cases] * runs
    cases.sort(key=lambda case: hash_seed(0, program, case[0]))  # it could learn their order
    for place, (given, due) in enumerate(cases):
        left = limits.timeout_s - spent
        if left <= 0.0:
            why = "timeout"
            break
        try:
            ran = sandbox.run_script(program, given, replace(limits, timeout_s=left), run=place, end=end)
        except SandboxFailed:
            if spent < FAIR_SHARE * limits.timeout_s:
                raise
            why = "timeout"  # the cases before left no time for this one
            break
        ended = time.monotonic()
        right = ran.status == "ok" and same_output(ran.stdout, due)
        spent += ran.seconds + time.monotonic() - ended
        passed += right
        if not right:
            why = "wrong" if ran.status == "ok" else ran.status
            if stop_at_failure or why == "timeout":
                break
    passed //= runs  # a case passes when all its runs do
    return Tested(passed, len(tests.cases) - passed), why


def _refuse_too_many(sandbox: Sandbox, cases: int, limits: Limits) -> None:
    """Raises SandboxFailed when an empty program would take most of the time limit, on a processor:
    a busy machine is no fault of the row. The program under test has no part in it: a slow one is
    late, and no error.
    """
    if cases <= _FEW_CASES:
        return
    seconds = []
    for _ in range(2):
        begun = _time_of_ended_processes()
        sandbox.run_script("", "", limits)
        seconds.append(_time_of_ended_processes() - begun)
    if min(seconds) * cases > _MOST_OF_THE_TIME * limits.timeout_s:
        raise SandboxFailed(
            f"{cases} cases cannot be started within {limits.timeout_s:g} s: use fewer of them"
        )


def _time_of_ended_processes() -> float:
    """Return the seconds that ended processes of this one had on a processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _test_module(
    sandbox: Sandbox, program: str, tests: ModuleTests, limits: Limits, *, stop_at_failure: bool
) -> tuple[Tested, str]:
    cases = None if tests.cases is None else [dict(case) for case in tests.cases]
    wanted = {"name": tests.name, "cases": cases, "tests": tests.source}
    tested = sandbox.run_tests(program, wanted, limits, stop_at_failure=stop_at_failure)
    return tested, "timeout" if tested.timeout else "wrong"
