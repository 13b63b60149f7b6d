"""Start the confined processes and read their results."""

from __future__ import annotations

import json
import marshal
import math
import os
import re
import secrets
import select
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from sppo_ray.errors import UserError
from sppo_ray.rewards.code.base import FAIR_SHARE, Limits, Ran, SandboxFailed, Tested
from sppo_ray.rewards.code.hash_order import hash_seed, may_vary
from sppo_ray.rewards.code.sandbox.confine import (
    LANDLOCK_REMEDY,
    CannotConfine,
    landlock_abi,
    seccomp_program,
)
from sppo_ray.rewards.code.sandbox.program import CONFINED
from sppo_ray.rewards.code.sandbox.remote import ALONE

_ROOT = str(Path(__file__).parents[4])
_START = """
import sys
sys.path.append({root!r})
from sppo_ray.rewards.code.sandbox import {module}
del sys.path[-1]
{module}.main({setup})
"""
"""`-S` leaves all packages out of the path, this one too."""
_START_DEADLINE_S = 60.0  # the pool's deadline for the sample is nearer
_DELAY_LIMIT = 4.0  # beyond that, the pool's deadline decides
_OUT_OF_CPU = -24  # SIGXCPU: the CPU seconds are used up
_KILLED = -9  # SIGKILL: so does a later tick of the processor's clock
_LEAST_S = 1.0  # of the second run
_MARGIN_S = 0.5  # before the pool's deadline
_OUTPUT_MIB = 4
_TESTER_MEMORY_MIB = 1024
_NICENESS = 10
"""Of programs: 64 threads of one take no processor from its tests and from the verifier."""
_ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""The whole environment of a program: no keys or tokens of the run."""


def _environment(run: int, *texts: str) -> Mapping[str, str]:
    return _ENVIRONMENT | {"PYTHONHASHSEED": str(hash_seed(run, *texts))}


class ConfinedProcesses:
    """Runs programs in confined processes of this machine; implements `Sandbox`. `deadline_s`: the
    pool's, for a sample; the tests are given up before it.
    """

    def __init__(self, deadline_s: float = math.inf) -> None:
        self._deadline_s = deadline_s

    def check(self) -> None:
        """Test every mechanism once. Raises UserError with the remedy when this machine lacks
        one.
        """
        if sys.platform != "linux" or landlock_abi() == 0:
            raise UserError(LANDLOCK_REMEDY)
        try:
            seccomp_program(os.uname().machine, os.getpid())
            ran = self.run_script("print('ready')", "", Limits(timeout_s=30.0, memory_mib=512))
        except (CannotConfine, SandboxFailed) as error:
            raise UserError(str(error)) from None
        if (ran.status, ran.stdout) != ("ok", "ready\n"):
            raise UserError(
                f"the code sandbox runs no Python here (it ended with {ran.status}): is the installation "
                "readable?"
            )

    def end_of_sample(self) -> float:
        return time.monotonic() + self._deadline_s - _MARGIN_S

    def run_script(
        self, code: str, stdin: str, limits: Limits, *, run: int = 0, end: float | None = None
    ) -> Ran:
        """Run a program with `stdin`. Raises SandboxFailed."""
        environment = _environment(run, code, stdin)
        spent = _Spent(limits, math.inf if end is None else end, 0.0 if end is None else _DELAY_LIMIT)
        with ExitStack() as files:
            stdout, given = (
                files.enter_context(_memory_file()),
                files.enter_context(_memory_file(stdin.encode(errors="replace"))),
            )
            setup = {"code": code, "limits": _rights(limits)}
            with _process("program", setup, stdin=given, stdout=stdout, environment=environment) as process:
                process.await_start(spent.end)
                ended = spent.wait(process.popen, limits)
                if ended is None:
                    _given_up([process.popen], spent)
                process.kill()
            text = _content(stdout).decode(errors="replace")
        code_of_end = process.popen.returncode
        status = "timeout" if not ended else "ok" if code_of_end == 0 else _cause(code_of_end)
        return Ran(status, text, spent.seconds)

    def run_tests(
        self, code: str, tests: Mapping[str, Any], limits: Limits, *, stop_at_failure: bool
    ) -> Tested:
        """Test the functions of a program. Raises SandboxFailed, also when the tests hang by
        themselves, need something unsupported, or never call the program.

        What passes tests in Python has to pass them again in pytest and as a script, in what is
        left of the time: see `plain`. A program that changed containers of the tests, where
        these expect no change, has to pass also with these changes. Of all counts the smallest
        one holds. `cases` compare plain values only: they run again, with other hashes, where
        the program may vary: the order of its sets may be right by chance.
        """
        margin = min(_MARGIN_S, max(self._deadline_s - limits.timeout_s, 0.0) / 2)
        spent = _Spent(limits, time.monotonic() + self._deadline_s - margin)
        first = self._test_from_outside(code, tests, spent, stop_at_failure=stop_at_failure)
        tested = first.tested
        if not tested.passed or (tested.failed and stop_at_failure):
            return tested
        try:
            if first.ignores_changes:
                try:
                    again = self._test_from_outside(
                        code, tests, spent, stop_at_failure=stop_at_failure, as_python=True
                    ).tested
                except _TestsUnfit:  # they were fit, so its changes are the cause
                    again = Tested(0, 1)
                tested = _lower(tested, again)
                if not tested.passed or (tested.failed and stop_at_failure):
                    return tested
            if first.plain is None:
                if not may_vary(code):
                    return tested
                again = self._test_from_outside(
                    code, tests, spent, stop_at_failure=stop_at_failure, run=1
                )
                return _lower(tested, again.tested)
            plain = {**first.plain, "tests": tests["tests"], "stop_at_failure": stop_at_failure}
            return _lower(tested, self._test_in_one_process(code, plain, tested, spent))
        except _NotStarted:
            if not spent.is_fair_share:
                raise
            return Tested(0, 1, timeout=True)  # the earlier runs left no time for this one

    def _test_in_one_process(
        self, code: str, tests: Mapping[str, Any], tested: Tested, spent: _Spent
    ) -> Tested:
        """Return the share of the same number of tests that passes in plain Python."""
        limits, number = spent.left(), tested.passed + tested.failed
        with ExitStack() as files:
            result = files.enter_context(_memory_file())
            memory_mib = limits.memory_mib + _TESTER_MEMORY_MIB
            setup = {
                **tests,
                "code": code,
                "limits": _rights(replace(limits, memory_mib=memory_mib)),
                "result": result,
                "token": (token := secrets.token_hex(16).encode()),
            }
            with _process("plain", setup, share=[result], environment=_environment(1, code)) as process:
                process.await_start(spent.end)
                ended = spent.wait(process.popen, limits)
                if ended is None:
                    return _given_up([process.popen], spent)
                process.kill()
                report = re.fullmatch(rb"%s (\d{1,9})" % token, _content(result))
        # it ended before its report, the program wrote it, or a thread goes on
        if report is None or process.popen.returncode != 0:
            return Tested(0, number, timeout=not ended)
        return Tested(max(number - int(report[1]), 0), min(int(report[1]), number))

    def _test_from_outside(
        self,
        code: str,
        tests: Mapping[str, Any],
        spent: _Spent,
        *,
        stop_at_failure: bool,
        as_python: bool = False,
        run: int = 0,
    ) -> _Outside:
        """Run the tests in a process of their own, out of the program's reach. `as_python`: the
        program may change every container that it gets.
        """
        limits = spent.left()
        with ExitStack() as files:
            result = files.enter_context(_memory_file())
            to_program, to_tester = files.enter_context(_pipe()), files.enter_context(_pipe())
            ours = {
                "code": code,
                "wire": [to_program[0].fileno(), to_tester[1].fileno()],
                "limits": _rights(limits),
            }
            theirs = {
                **tests,
                "wire": [to_tester[0].fileno(), to_program[1].fileno()],
                "limits": _rights(replace(limits, memory_mib=_TESTER_MEMORY_MIB), niceness=0),
                "result": result,
                "stop_at_failure": stop_at_failure,
                "as_python": as_python,
            }
            program = files.enter_context(
                _process("served", ours, share=ours["wire"], environment=_environment(run, code))
            )
            tester = files.enter_context(_process("tester", theirs, share=[*theirs["wire"], result]))
            for pipe in (*to_program, *to_tester):
                pipe.close()  # so that each side sees the other's end
            program.await_start(spent.end)
            tester.await_start(spent.end)
            ended = spent.wait(tester.popen, limits, rival=program.popen.pid)
            if ended is None and not _is_alone(_content(result)):
                return _Outside(_given_up([program.popen, tester.popen], spent))
            if not ended and _is_alone(_content(result)):
                took = _start_s(_content(result)) - _scheduled(program.popen.pid)[1]
                slow = took > FAIR_SHARE * limits.timeout_s
                if slow or _starved(tester.popen, program.popen, limits):
                    return _Outside(Tested(0, 1, timeout=True))
            ended = ended and tester.popen.wait() not in (_OUT_OF_CPU, _KILLED)
            content = _content(result)  # before the program's end changes it
        return _tested(content, ended=bool(ended))


class _Spent:
    """The time of all runs of a sample's tests, which share one limit. Python's start does not
    count, nor does time in which other processes had the processors. At `end` they are given up.
    """

    def __init__(self, limits: Limits, end: float, excuse: float = _DELAY_LIMIT) -> None:
        self._limits, self.end, self._excuse, self.seconds = limits, end, excuse, 0.0

    def left(self) -> Limits:
        return replace(self._limits, timeout_s=max(self._limits.timeout_s - self.seconds, _LEAST_S))

    def wait(self, popen: subprocess.Popen[bytes], limits: Limits, rival: int | None = None) -> bool | None:
        """As `_wait`."""
        ended, seconds = _wait(popen, limits.timeout_s, excuse=self._excuse, rival=rival, end=self.end)
        self.seconds += seconds
        return ended

    @property
    def is_fair_share(self) -> bool:
        """Whether the runs had enough of the limit for a verdict."""
        return self.seconds > FAIR_SHARE * self._limits.timeout_s

    def has_burnt(self, processes: Sequence[subprocess.Popen[bytes]]) -> bool:
        """The same, by the processors' time of all their threads."""
        return sum(_cpu_s(one.pid) for one in processes) > FAIR_SHARE * self._limits.timeout_s


class _NotStarted(SandboxFailed):
    """A process of the sandbox was not ready in time."""


def _lower(tested: Tested, again: Tested) -> Tested:
    """The smaller count of two runs, of the tests that the first one counted."""
    if not (tested.failed or again.failed):
        return tested
    passed = min(tested.passed, again.passed)
    return Tested(passed, max(tested.passed + tested.failed - passed, 1), timeout=again.timeout)


@dataclass(frozen=True, slots=True)
class _Outside:
    """The result of the tester. `ignores_changes`: the program changed containers of the tests,
    where these expect no change. `plain`: what the run in pytest needs; None for cases.
    """

    tested: Tested
    ignores_changes: bool = False
    plain: Mapping[str, Any] | None = None


class _TestsUnfit(SandboxFailed):
    """The tests cannot be run, or do not end."""


def _tested(content: bytes, *, ended: bool) -> _Outside:
    """Return the tester's result. If it did not finish, the program is at fault once it was called
    (see `remote`).
    """
    alone = _is_alone(content)
    if not ended:
        if not alone:
            return _Outside(Tested(0, 1, timeout=True))
        raise _TestsUnfit("the tests themselves did not end in time")
    try:
        report = json.loads(content)
    except ValueError:
        if not alone:
            return _Outside(Tested(0, 1))
        raise _TestsUnfit("the process of the tests died") from None
    if "error" in report:
        raise _TestsUnfit(f"the tests cannot be run: {report['error'][:300]}")
    tested = Tested(report["passed"], report["failed"])
    return _Outside(tested, report.get("ignored", False), report.get("plain"))


# ---------------------------------------------------------------------------------------- processes


class _Process:
    def __init__(self, popen: subprocess.Popen[bytes], setup: int, stderr: int, started: int) -> None:
        self.popen, self._setup, self._stderr, self._started = popen, setup, stderr, started

    def await_start(self, end: float = math.inf) -> None:
        """Wait until the process is confined, at most to `end`: a slow start is not the program's
        fault. Raises SandboxFailed when it never is.
        """
        _poll(self._started, min(_START_DEADLINE_S, max(end - time.monotonic(), 0.0)))
        if os.pread(self._setup, 1, 0) != CONFINED:
            self.kill()
            last = _content(self._stderr).decode(errors="replace").strip().splitlines()[-1:]
            raise _NotStarted(f"the sandbox did not start: {''.join(last)[:400]}")

    def kill(self) -> None:
        """Kill the process; it cannot have children (see `confine`)."""
        self.popen.kill()
        self.popen.wait()


@contextmanager
def _process(
    module: str,
    setup: dict[str, Any],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    share: Sequence[int] = (),
    environment: Mapping[str, str] = _ENVIRONMENT,
) -> Iterator[_Process]:
    """Start a confined interpreter; it is killed when the block ends."""
    with ExitStack() as files:
        # it closes its end when its walls stand, or when it dies
        started, starts = files.enter_context(_pipe())
        given = files.enter_context(_memory_file(marshal.dumps(setup | {"starts": starts.fileno()})))
        stderr = files.enter_context(_memory_file())
        popen = subprocess.Popen(
            [
                sys.executable,
                "-P",  # nothing of the working directory, of the user's packages, of site: as -I,
                "-s",  # which would ignore PYTHONHASHSEED
                "-S",
                "-X",
                "utf8",
                "-c",
                _START.format(root=_ROOT, module=module, setup=given),
            ],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=stderr,
            env=environment,
            cwd="/",
            pass_fds=[given, starts.fileno(), *share],
        )
        process = _Process(popen, given, stderr, started.fileno())
        try:
            starts.close()
            yield process
        finally:
            process.kill()


def _rights(limits: Limits, *, niceness: int = _NICENESS) -> dict[str, Any]:
    paths = sysconfig.get_paths()
    return {
        "parent": os.getpid(),
        "memory_mib": limits.memory_mib,
        # more than the time limit and the start: the wall clock decides first, unless threads burn
        "cpu_s": math.ceil(2 * (limits.timeout_s if limits.cpu_s is None else limits.cpu_s)) + 1,
        "output_mib": _OUTPUT_MIB,
        "niceness": niceness,
        "readable": sorted({paths["purelib"], paths["platlib"]}),
    }


def _wait(
    popen: subprocess.Popen[bytes],
    timeout_s: float,
    *,
    excuse: float = 0.0,
    rival: int | None = None,
    end: float = math.inf,
) -> tuple[bool | None, float]:
    """Whether the process ended by itself in time, and its seconds; None when it was given up at
    `end`. The time in which it or the process `rival`, for which it waits, was ready to run and
    others had the processors does not count, up to `excuse` times the limit. Threads of both are no
    others.
    """

    def waited() -> float:
        if rival is None:
            return _kept_waiting(popen.pid)
        return _kept_waiting(popen.pid, _cpu_s(rival)) + _kept_waiting(rival)

    def excused() -> float:
        return min(max(waited() - before, 0.0), excuse * timeout_s)

    handle = os.pidfd_open(popen.pid)
    begun, before = time.monotonic(), waited()
    left = min(timeout_s, end - begun)
    ended: bool | None = False
    try:
        while left > 0.0 and not (ended := _poll(handle, left)):
            until = begun + timeout_s + excused()
            if until > end <= time.monotonic():
                ended = None
                break
            left = min(until, end) - time.monotonic()
        return ended, max(time.monotonic() - begun - excused(), 0.0)
    finally:
        os.close(handle)


def _given_up(processes: list[subprocess.Popen[bytes]], spent: _Spent) -> Tested:
    """The verdict on tests that were given up: the program's fault if it has had a fair share of
    the time, on a processor or asleep. Raises SandboxFailed when the machine is overloaded by
    others.
    """
    is_fault = spent.is_fair_share or spent.has_burnt(processes)
    for one in processes:
        one.kill()  # all at once, before one is waited for
    if is_fault:
        return Tested(0, 1, timeout=True)
    raise SandboxFailed("the machine is overloaded: the tests had no processor for most of their time")


def _is_alone(content: bytes) -> bool:
    """Whether the tests have received no value of the program."""
    return content[:1] in (b"", ALONE)


def _start_s(content: bytes) -> float:
    """Seconds that the program's own definitions took."""
    found = re.fullmatch(rb".(\d+\.\d+)", content)
    return float(found[1]) if found else 0.0


def _starved(tester: subprocess.Popen[bytes], program: subprocess.Popen[bytes], limits: Limits) -> bool:
    """Whether the tests waited for a processor that the program took."""
    return min(_scheduled(tester.pid)[1], _cpu_s(program.pid)) > FAIR_SHARE * limits.timeout_s


def _scheduled(pid: int) -> tuple[float, float]:
    """Seconds that the main thread of a process ran, and was ready to run and had no processor; 0
    where the kernel does not tell.
    """
    try:
        ran, delayed = Path(f"/proc/{pid}/schedstat").read_text().split()[:2]
        return int(ran) / 1e9, int(delayed) / 1e9
    except (OSError, ValueError):
        return 0.0, 0.0


def _kept_waiting(pid: int, burnt_s: float = 0.0) -> float:
    """Seconds that the main thread of a process waited for a processor, less those that the
    process's other threads had, and `burnt_s`.
    """
    ran, delay = _scheduled(pid)
    return max(delay - max(_cpu_s(pid) - ran + burnt_s, 0.0), 0.0)


def _cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process."""
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except (OSError, ValueError):
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _poll(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _cause(exit_code: int) -> Literal["timeout", "runtime_error"]:
    return "timeout" if exit_code in (_OUT_OF_CPU, _KILLED) else "runtime_error"


@contextmanager
def _memory_file(content: bytes = b"") -> Iterator[int]:
    """Create a file without a name: it needs no cleanup, and no path leads a program to it."""
    descriptor = os.memfd_create("sandbox")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Yield a pipe's read end and write end; each may be closed earlier."""
    reading, writing = os.pipe()
    with FileIO(reading, "rb") as reader, FileIO(writing, "wb") as writer:
        yield reader, writer


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
