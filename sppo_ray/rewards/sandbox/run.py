"""Starting the confined processes, and what became of them."""

from __future__ import annotations

import json
import marshal
import os
import select
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from sppo_ray.errors import UserError
from sppo_ray.rewards.sandbox.confine import LANDLOCK_REMEDY, CannotConfine, landlock_abi, seccomp_program
from sppo_ray.rewards.sandbox.program import CONFINED
from sppo_ray.rewards.sandbox.remote import WAITING

_ROOT = str(Path(__file__).parents[3])
_START = """
import sys
sys.path.append({root!r})
from sppo_ray.rewards.sandbox import {module}
del sys.path[-1]
{module}.main({setup})
"""
"""`-I -S` leave all packages out of the path, this one too."""
_START_DEADLINE_S = 60.0  # the pool's deadline for the sample is nearer
_OUTPUT_MIB = 4
_TESTER_MEMORY_MIB = 1024
_ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""All that a program finds in its environment: nothing of the run's, such as keys and tokens."""


@dataclass(frozen=True, slots=True)
class Limits:
    """For all tests of a program together."""

    timeout_s: float
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Ran:
    """How a script ended; `stdout` is what it wrote until then. Its start is not in `seconds`."""

    status: Literal["ok", "timeout", "runtime_error"]
    stdout: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Tested:
    """How the tests of a module ended. `timeout`: the program did not answer in time; what was not run has failed."""

    passed: int
    failed: int
    timeout: bool = False


class SandboxFailed(RuntimeError):
    """The sandbox or the tests failed, not the program: no verdict."""


def check_sandbox() -> None:
    """Try every wall once. Raises UserError with the remedy when this machine lacks one."""
    if sys.platform != "linux" or landlock_abi() == 0:
        raise UserError(LANDLOCK_REMEDY)
    try:
        seccomp_program(os.uname().machine, os.getpid())
        ran = run_script("print('ready')", "", Limits(timeout_s=30.0, memory_mib=512))
    except (CannotConfine, SandboxFailed) as error:
        raise UserError(str(error)) from None
    if (ran.status, ran.stdout) != ("ok", "ready\n"):
        raise UserError(f"the code sandbox runs no Python here (it ended with {ran.status}): is the installation readable?")


def run_script(code: str, stdin: str, limits: Limits) -> Ran:
    """Run a program with `stdin`. Raises SandboxFailed."""
    with ExitStack() as files:
        stdout, given = files.enter_context(_memory_file()), files.enter_context(_memory_file(stdin.encode(errors="replace")))
        setup = {"code": code, "limits": _rights(limits)}
        with _process("program", setup, stdin=given, stdout=stdout) as process:
            process.await_start()
            started = time.monotonic()
            ended = _wait(process.popen, limits.timeout_s)
            process.kill()
        text, seconds = _content(stdout).decode(errors="replace"), time.monotonic() - started
    if not ended:
        return Ran("timeout", text, seconds)
    return Ran("ok" if process.popen.returncode == 0 else _cause(process.popen.returncode), text, seconds)


def run_tests(code: str, tests: Mapping[str, Any], limits: Limits, *, stop_at_failure: bool) -> Tested:
    """Test what a program defines. `tests` is {"name", "cases", "tests"}: see `sppo_ray.rewards.code_tests`.

    Raises SandboxFailed, also when the tests are at fault: they hang by themselves, want what this way to run them cannot
    give, or never call the program.
    """
    with ExitStack() as files:
        result = files.enter_context(_memory_file())
        to_program, to_tester = files.enter_context(_pipe()), files.enter_context(_pipe())
        ours = {"code": code, "wire": [to_program[0].fileno(), to_tester[1].fileno()], "limits": _rights(limits)}
        theirs = {
            **tests,
            "wire": [to_tester[0].fileno(), to_program[1].fileno()],
            "limits": _rights(Limits(limits.timeout_s, _TESTER_MEMORY_MIB)),
            "result": result,
            "stop_at_failure": stop_at_failure,
        }
        program = files.enter_context(_process("served", ours, share=ours["wire"]))
        tester = files.enter_context(_process("tester", theirs, share=[*theirs["wire"], result]))
        for end in (*to_program, *to_tester):
            end.close()  # so that each side sees the other's end
        program.await_start()
        tester.await_start()
        ended = _wait(tester.popen, limits.timeout_s)
        content = _content(result)  # before the program's end changes it
    return _tested(content, ended=ended)


def _tested(content: bytes, *, ended: bool) -> Tested:
    if not ended:
        if content == WAITING:
            return Tested(0, 1, timeout=True)
        raise SandboxFailed("the tests themselves did not end in time")
    try:
        report = json.loads(content)
    except ValueError:
        raise SandboxFailed("the process of the tests died") from None
    if "error" in report:
        raise SandboxFailed(f"the tests cannot be run: {report['error'][:200]}")
    if not report["calls"] and not report["failed"]:
        raise SandboxFailed("the tests never call the program: they prove nothing")
    return Tested(report["passed"], report["failed"])


# ------------------------------------------------------------------------------------------------------- processes


class _Process:
    def __init__(self, popen: subprocess.Popen[bytes], setup: int, stderr: int, started: int) -> None:
        self.popen, self._setup, self._stderr, self._started = popen, setup, stderr, started

    def await_start(self) -> None:
        """Wait until its walls stand: a slow start is not the program's fault. Raises SandboxFailed when they never do."""
        _poll(self._started, _START_DEADLINE_S)
        if os.pread(self._setup, 1, 0) != CONFINED:
            self.kill()
            last = _content(self._stderr).decode(errors="replace").strip().splitlines()[-1:]
            raise SandboxFailed(f"the sandbox did not start: {''.join(last)[:400]}")

    def kill(self) -> None:
        """It cannot have children: see `confine`."""
        self.popen.kill()
        self.popen.wait()


@contextmanager
def _process(
    module: str, setup: dict[str, Any], *, stdin: int | None = None, stdout: int | None = None, share: Sequence[int] = ()
) -> Iterator[_Process]:
    """A confined interpreter; killed at the end of the block at the latest."""
    with ExitStack() as files:
        started, starts = files.enter_context(_pipe())  # it closes its end when its walls stand, or when it dies
        given = files.enter_context(_memory_file(marshal.dumps(setup | {"starts": starts.fileno()})))
        stderr = files.enter_context(_memory_file())
        popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", _START.format(root=_ROOT, module=module, setup=given)],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=stderr,
            env=_ENVIRONMENT,
            cwd="/",
            pass_fds=[given, starts.fileno(), *share],
        )
        process = _Process(popen, given, stderr, started.fileno())
        try:
            starts.close()
            yield process
        finally:
            process.kill()


def _rights(limits: Limits) -> dict[str, Any]:
    paths = sysconfig.get_paths()
    return {
        "parent": os.getpid(),
        "memory_mib": limits.memory_mib,
        "cpu_s": int(limits.timeout_s) + 1,
        "output_mib": _OUTPUT_MIB,
        "readable": sorted({paths["purelib"], paths["platlib"]}),
    }


def _wait(popen: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether it has ended by itself in time."""
    handle = os.pidfd_open(popen.pid)
    try:
        return _poll(handle, timeout_s)
    finally:
        os.close(handle)


def _poll(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _cause(exit_code: int) -> Literal["timeout", "runtime_error"]:
    return "timeout" if exit_code == -24 else "runtime_error"  # SIGXCPU: the CPU seconds are used up


@contextmanager
def _memory_file(content: bytes = b"") -> Iterator[int]:
    """A file without a name: nothing to clean up, and no path that a program could reach."""
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
    """The end to read and the end to write; each may be closed before."""
    reading, writing = os.pipe()
    with FileIO(reading, "rb") as reader, FileIO(writing, "wb") as writer:
        yield reader, writer


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
