"""The interface of a sandbox for the code verifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FAIR_SHARE = 0.25
"""Of the time limit: who had it, on a processor or asleep, is late when the sample is given up. Who
had less has no verdict.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for all tests of a program together."""

    timeout_s: float
    memory_mib: int
    cpu_s: float | None = None
    """Of a processor; None = timeout_s. A program can read it, so it is the same in all runs."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a script, with its output. `seconds` excludes the start of the process, and
    with `end` the time in which it waited for a processor that others had.
    """

    status: Literal["ok", "timeout", "runtime_error"]
    stdout: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Tested:
    """The result of the tests of a module. `timeout`: the program did not answer in time; tests
    that did not run have failed.
    """

    passed: int
    failed: int
    timeout: bool = False


class SandboxFailed(RuntimeError):
    """The sandbox or the tests failed, not the program: no verdict."""


class Sandbox(Protocol):
    """Runs a model's program, isolated from this process and from the expected values. Raises
    SandboxFailed when the sandbox or the tests fail; a program cannot cause that.
    """

    def check(self) -> None:
        """Raise UserError with the remedy when this machine cannot run the sandbox."""
        ...

    def end_of_sample(self) -> float:
        """Return the time, by `time.monotonic`, when a sample that begins now is given up."""
        ...

    def run_script(
        self, code: str, stdin: str, limits: Limits, *, run: int = 0, end: float | None = None
    ) -> Ran:
        """Run a program with `stdin`. Sets of texts have another order in each `run`. Up to `end`
        it may wait for a processor; None = that is a part of its time.
        """
        ...

    def run_tests(
        self, code: str, tests: Mapping[str, Any], limits: Limits, *, stop_at_failure: bool
    ) -> Tested:
        """Test the functions of a program. `tests` is {"name", "cases", "tests"}: see
        `row_tests`.
        """
        ...
