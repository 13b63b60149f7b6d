"""Verifier of programs: the last fenced Python block of the response against the row's unit tests, in a sandbox.

What the tests may look like is in `code_tests`, what holds a program back in `sandbox`. A program that fails, hangs or
outgrows its limits is wrong; tests that cannot be run are an error, which no program can bring about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sppo_ray.config import CodeReward
from sppo_ray.rewards.base import VerifierFunction
from sppo_ray.rewards.code_tests import ModuleTests, ScriptTests, read_tests, same_output
from sppo_ray.rewards.extract import last_program
from sppo_ray.rewards.sandbox.run import Limits, Tested, run_script, run_tests

MAX_PROGRAM_CHARS = 100_000

answer = last_program


def make_code_verifier(settings: CodeReward) -> VerifierFunction:
    """Reasons: correct, wrong, partial, no_answer, too_long, timeout, runtime_error.

    The verifier raises ValueError for a ground truth without tests and SandboxFailed when these cannot be run.
    """
    limits = Limits(settings.timeout_s, settings.memory_mib)

    def verify(response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
        tests = read_tests(ground_truth, extra)
        program = last_program(response)
        if program is None:
            return 0.0, "no_answer"
        if len(program) > MAX_PROGRAM_CHARS:
            return 0.0, "too_long"
        if isinstance(tests, ScriptTests):
            tested, why = _test_script(program, tests, limits, stop_at_failure=settings.full_only)
        else:
            tested, why = _test_module(program, tests, limits, stop_at_failure=settings.full_only)
        if not tested.failed:
            return 1.0, "correct"
        if settings.full_only or not tested.passed:
            return 0.0, why
        return tested.passed / (tested.passed + tested.failed), "partial"

    return verify


def _test_script(program: str, tests: ScriptTests, limits: Limits, *, stop_at_failure: bool) -> tuple[Tested, str]:
    left, passed, why = limits.timeout_s, 0, "wrong"
    for given, due in tests.cases:
        ran = run_script(program, given, Limits(max(left, 0.0), limits.memory_mib))
        left -= ran.seconds
        if ran.status == "ok" and same_output(ran.stdout, due):
            passed += 1
            continue
        why = "wrong" if ran.status == "ok" else ran.status
        if stop_at_failure or why == "timeout":
            break
    return Tested(passed, len(tests.cases) - passed), why


def _test_module(program: str, tests: ModuleTests, limits: Limits, *, stop_at_failure: bool) -> tuple[Tested, str]:
    cases = None if tests.cases is None else [dict(case) for case in tests.cases]
    wanted = {"name": tests.name, "cases": cases, "tests": tests.source}
    tested = run_tests(program, wanted, limits, stop_at_failure=stop_at_failure)
    return tested, "timeout" if tested.timeout else "wrong"
