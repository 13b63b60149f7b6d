"""The commands of fcntl, ioctl and futex that the sandbox lets through, by real system calls."""

from __future__ import annotations

import os

import pytest

from sppo_ray.rewards.code.base import Limits
from sppo_ray.rewards.code.sandbox.run import ConfinedProcesses

RAW = """
import ctypes, errno, fcntl, os
libc = ctypes.CDLL(None, use_errno=True)
reading, writing = os.pipe()
def raw(call, *args):
    back = getattr(libc, call)(*map(ctypes.c_long, args))
    return "done" if back >= 0 else errno.errorcode[ctypes.get_errno()]
"""
FUTEX = {"x86_64": 202, "aarch64": 98}.get(os.uname().machine, 202)
FCNTL = {"x86_64": 72, "aarch64": 25}.get(os.uname().machine, 72)


def printed(code: str) -> str:
    ran = ConfinedProcesses().run_script(RAW + code, "", Limits(timeout_s=10.0, memory_mib=512))
    assert ran.status == "ok", ran
    return ran.stdout.strip()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("F_SETOWN", "raw('fcntl', reading, 8, os.getppid())"),
        ("F_SETSIG", "raw('fcntl', reading, 10, 9)"),
        ("F_SETOWN_EX", "raw('fcntl', reading, 15, 0)"),
        ("F_SETLEASE", "raw('fcntl', reading, 1024, 0)"),
        ("F_NOTIFY", "raw('fcntl', reading, 1026, 1)"),
        ("F_SETPIPE_SZ", "raw('fcntl', reading, 1031, 4096)"),
        ("F_SETFL with O_ASYNC", "raw('fcntl', reading, 4, 0x2000)"),
        (
            "F_SETOWN, upper half of the command set",
            f"raw('syscall', {FCNTL}, reading, (7 << 32) | 8, os.getppid())",
        ),
        ("FUTEX_WAKE", f"raw('syscall', {FUTEX}, ctypes.addressof(ctypes.c_int()), 1, 1)"),
        ("FUTEX_REQUEUE", f"raw('syscall', {FUTEX}, ctypes.addressof(ctypes.c_int()), 3, 1, 1)"),
        ("FUTEX_LOCK_PI", f"raw('syscall', {FUTEX}, ctypes.addressof(ctypes.c_int()), 6, 0, 0, 0)"),
        ("FIOASYNC", "raw('ioctl', reading, 0x5452, 0)"),
        ("FIOSETOWN", "raw('ioctl', reading, 0x8901, 0)"),
        ("SIOCSPGRP", "raw('ioctl', reading, 0x8902, 0)"),
        ("TIOCSTI", "raw('ioctl', reading, 0x5412, 0)"),
        ("TIOCLINUX", "raw('ioctl', reading, 0x541C, 0)"),
        ("TIOCSPGRP", "raw('ioctl', reading, 0x5410, 0)"),
    ],
)
def test_a_command_that_reaches_other_processes_is_refused(name: str, call: str) -> None:
    assert printed(f"print({call})") == "EPERM", name


@pytest.mark.parametrize("command", [0, 9, 256, 265])
def test_a_wait_for_another_process_returns_at_once(command: int) -> None:
    """Two samples could map the page of a file: one waits, and the end of a thread of the other,
    whose `clear_child_tid` lies there, wakes it in the kernel, which no filter sees.
    """
    code = f"""
import time
libc.mmap.restype = ctypes.c_void_p
base = libc.mmap(None, 4096, 1, 2, os.open(os.__file__, os.O_RDONLY), 0)  # PROT_READ, MAP_PRIVATE
value, now = ctypes.c_uint32.from_address(base).value, time.time()
pause = (ctypes.c_long * 2)(5, 0)
print(raw('syscall', {FUTEX}, base, {command}, value, ctypes.addressof(pause), 0, -1), time.time() - now < 4)
"""
    assert printed(code) == "EAGAIN True"


def test_threads_of_a_library_are_joined() -> None:
    """pthread_join waits for the end of a thread by a shared futex."""
    code = """
body = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda given: __import__("time").sleep(0.3))
threads = [ctypes.c_ulong() for _ in range(3)]
for one in threads:
    assert libc.pthread_create(ctypes.byref(one), None, body, None) == 0
print([libc.pthread_join(one, None) for one in threads])
"""
    assert printed(code) == "[0, 0, 0]"


@pytest.mark.parametrize(
    ("code", "due"),
    [
        ("print(raw('fcntl', reading, 4, os.O_NONBLOCK))", "done"),
        (f"print(raw('syscall', {FUTEX}, ctypes.addressof(ctypes.c_int()), 129, 1))", "done"),
        ("os.set_blocking(reading, False); print(os.get_blocking(reading))", "False"),
        ("os.set_inheritable(reading, True); print(os.get_inheritable(reading))", "True"),
        (
            "print(os.fstat(os.dup(reading)).st_ino == os.fstat(fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, "
            "50)).st_ino)",
            "True",
        ),
        (
            "import array; n = array.array('i', [9]); os.write(writing, b'abc'); fcntl.ioctl(reading, "
            "0x541B, n); print(n[0])",
            "3",
        ),
        ("print(os.isatty(0), os.isatty(1))", "False False"),
        ("print(open(os.__file__).read(3), open('/dev/null', 'w').write('ab'))", 'r"" 2'),
        (
            "import io; print(io.BytesIO(b'x').read(), os.fdopen(os.dup(reading), 'rb').readable())",
            "b'x' True",
        ),
    ],
)
def test_ordinary_input_and_output_work(code: str, due: str) -> None:
    assert printed(code) == due


def test_a_program_holds_its_own_files_only() -> None:
    """stdin, stdout, stderr and nothing else: no pipe of the verifier, no file with expected
    values.
    """
    code = """
held = []
for number in range(128):
    try:
        os.fstat(number)
        held.append(number)
    except OSError:
        pass
print([number for number in held if number not in (reading, writing)])
"""
    assert printed(code) == "[0, 1, 2]"
