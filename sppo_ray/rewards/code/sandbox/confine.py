"""Confine the calling process permanently, before it runs untrusted code.

Three mechanisms need no privilege, so they also work in a container; two need some:

    Landlock     reads the Python installation and nothing else; writes nothing; no TCP, no signals
                 out of it
    seccomp      a list of allowed system calls: no socket, no new process, no exec, no ptrace, no
                 mount, no io_uring
    rlimits      memory, CPU seconds, size of what it writes, open files
    namespaces   own network and IPC, where they are allowed; a second wall behind seccomp
    own user id  where it starts as root, with nothing left of root but reading the installation;
                 threads are counted then

Standard library only, nothing of ours, and little of it: it runs under `python -P -s -S`, once or
twice for each program.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 8, 4, 22, 38
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_CLONE_THREAD = 0x00010000
_CAP_DAC_READ_SEARCH = 2
_SIGKILL = 9  # the module signal costs as much time as the whole of this one
_FIRST_USER_ID = 2_000_000_000
"""User ids above it are unused; one per process id isolates sandboxes from each other."""
MAX_THREADS = 64
MAX_OPEN_FILES = 128

LANDLOCK_REMEDY = (
    "the code sandbox needs Landlock (Linux 5.13 or newer, with landlock among the modules in "
    "/sys/kernel/security/lsm, and a "
    "container profile that lets its system calls through): use such a machine for the rewards, or a "
    "reward.function of your "
    "own (type custom) that runs the code elsewhere"
)
SECCOMP_REMEDY = (
    "the code sandbox needs seccomp filters on x86_64 or aarch64: use such a machine for the rewards, or a "
    "reward.function of "
    "your own (type custom) that runs the code elsewhere"
)


class CannotConfine(Exception):
    """This machine lacks a mechanism; the message names it and the remedy."""


def confine(
    *, parent: int, memory_mib: int, cpu_s: int, output_mib: int, niceness: int, readable: list[str]
) -> None:
    """Confine this process permanently; it must have a single thread. Raises CannotConfine.

    It dies with `parent`, the process that started it. `readable` are further directories that it
    may import from.
    """
    os.nice(niceness)
    _unshare()
    _become_nobody(parent)
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _limit(memory_mib, cpu_s, output_mib)
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise CannotConfine(SECCOMP_REMEDY)
    _restrict_files([*_installation(), *readable])
    _restrict_calls()


def confine_fork(*, parent: int, readable: list[str], strict: bool = True) -> str | None:
    """Confine a forked process after its imports; the caller bounds its memory. Returns the missing
    mechanism or None. Raises CannotConfine for the first missing mechanism when `strict`; otherwise
    continues with the others.
    """
    _unshare()
    _become_nobody(parent)
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    for what, bound in ((resource.RLIMIT_NOFILE, MAX_OPEN_FILES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (bound if hard == resource.RLIM_INFINITY else min(bound, hard),) * 2)
    missing = None
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        missing = "no_new_privs"
    for wall in (lambda: _restrict_files([*_installation(), *readable]), _restrict_calls):
        try:
            wall()
        except CannotConfine as error:
            missing = missing or str(error)
    if missing is not None and strict:
        raise CannotConfine(missing)
    return missing


def die_with_parent(parent: int) -> None:
    """Ask for SIGKILL when the parent ends. Must follow `confine`'s change of user, see below.
    `parent` is the id given by the parent: if it ended during the start, getppid returns another.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _limit(memory_mib: int, cpu_s: int, output_mib: int) -> None:
    for what, bound in (
        (resource.RLIMIT_AS, memory_mib << 20),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, output_mib << 20),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        # the verifier process has limits itself
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (bound, bound))


# ------------------------------------------------------------------------------ namespaces, user id


def _unshare() -> None:
    """Create a network and IPC namespace, if permitted; seccomp forbids sockets in any case."""
    own_user = 0 if os.geteuid() == 0 else _CLONE_NEWUSER
    for flags in (own_user | _CLONE_NEWNET | _CLONE_NEWIPC, own_user):
        if _LIBC.unshare(flags) == 0:
            if own_user:  # counted in the new user namespace, where this process is the only one
                resource.setrlimit(resource.RLIMIT_NPROC, (MAX_THREADS, MAX_THREADS))
            return


def _become_nobody(parent: int) -> None:
    """Change from root to an unused user id, because limits bind root only in part and root could
    reach other processes. It keeps one capability: to read what Landlock allows, because the
    installation may lie in a directory of root.
    """
    if os.geteuid() == 0:
        nobody = _FIRST_USER_ID + os.getpid()
        _LIBC.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        try:
            os.setgroups([])
            os.setresgid(nobody, nobody, nobody)
            os.setresuid(nobody, nobody, nobody)
            resource.setrlimit(resource.RLIMIT_NPROC, (MAX_THREADS, MAX_THREADS))
        except OSError:  # a user namespace with few ids: capabilities are still dropped below
            pass
        _keep_capabilities(1 << _CAP_DAC_READ_SEARCH)
    die_with_parent(parent)  # only now: a change of the user id would cancel it


def _keep_capabilities(mask: int) -> None:
    header = struct.pack("=II", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    low = struct.pack("=III", mask, mask, 0)  # effective, permitted, inheritable
    if _LIBC.capset(header, low + bytes(12)):
        raise CannotConfine(f"{SECCOMP_REMEDY} (capset: {os.strerror(ctypes.get_errno())})")


# ----------------------------------------------------------------------------------------- Landlock

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_FS_RIGHTS_BY_ABI = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
_WRITE_FILE, _READ_FILE, _READ_DIR = 2, 4, 8
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def landlock_abi() -> int:
    """Version of Landlock that the kernel offers; 0 = none."""
    return max(_LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1), 0)


def _restrict_files(readable: list[str]) -> None:
    abi = landlock_abi()
    if abi == 0:
        raise CannotConfine(LANDLOCK_REMEDY)
    rights = _FS_RIGHTS_BY_ABI[min(abi, 5)]
    # bind and connect; abstract sockets and signals
    tcp, scopes = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    attributes = struct.pack("=QQQ", rights, tcp, scopes)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _LIBC.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        raise CannotConfine(LANDLOCK_REMEDY)
    for path in readable:
        _allow(ruleset, path, _READ_FILE | _READ_DIR)
    for path in _DEVICES:
        _allow(ruleset, path, _READ_FILE | _WRITE_FILE)
    if _LIBC.syscall(_RESTRICT_SELF, ruleset, 0):
        raise CannotConfine(LANDLOCK_REMEDY)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not there on this distribution
        return
    if not os.path.isdir(path):
        rights &= ~_READ_DIR
    rule = struct.pack("=Qi", rights, beneath)
    done = _LIBC.syscall(_ADD_RULE, ruleset, 1, rule, 0)
    os.close(beneath)
    if done:
        raise CannotConfine(f"{LANDLOCK_REMEDY} ({path}: {os.strerror(ctypes.get_errno())})")


def _installation() -> list[str]:
    """Return the directories of Python and the shared libraries."""
    system = [
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/share/zoneinfo",
        "/etc/ld.so.cache",
        "/etc/localtime",
    ]
    return [os.path.join(sys.base_prefix, "lib"), *system]


# ------------------------------------------------------------------------------------------ seccomp

_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000  # | errno
_EPERM, _EAGAIN, _ENOSYS = 1, 11, 38
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 24, 32
"""Offsets in struct seccomp_data; of an argument the low half, which is all that the kernel reads
of a command.
"""
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# with any arguments; a call that is not listed fails with ENOSYS
_FREE_CALLS = {
    "x86_64": (
        # read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction
        # rt_sigprocmask
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
        # rt_sigreturn pread64 pwrite64 readv writev access pipe select sched_yield mremap msync
        # mincore madvise
        15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
        # dup dup2 pause nanosleep getitimer alarm setitimer getpid exit uname ftruncate getcwd
        # readlink
        32, 33, 34, 35, 36, 37, 38, 39, 60, 63, 77, 79, 89,
        # gettimeofday getrlimit getrusage sysinfo times getuid getgid geteuid getegid getppid
        # getgroups getresuid getresgid
        96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 115, 118, 120,
        # rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack statfs fstatfs getpriority
        # sched_getparam sched_getscheduler
        127, 128, 130, 131, 137, 138, 140, 143, 145,
        # sched_get_priority_max, _min arch_prctl gettid time sched_getaffinity epoll_create
        # getdents64 set_tid_address
        146, 147, 158, 186, 201, 204, 213, 217, 218,
        # restart_syscall fadvise64 clock_gettime, _getres, _nanosleep exit_group epoll_wait, _ctl
        # openat newfstatat readlinkat
        219, 221, 228, 229, 230, 231, 232, 233, 257, 262, 267,
        # faccessat pselect6 ppoll set_robust_list get_robust_list epoll_pwait eventfd2
        # epoll_create1 dup3 pipe2 preadv pwritev
        269, 270, 271, 273, 274, 281, 290, 291, 292, 293, 295, 296,
        # getcpu getrandom membarrier statx rseq close_range faccessat2
        309, 318, 324, 332, 334, 436, 439,
    ),
    "aarch64": (
        # eventfd2 epoll_create1, _ctl, _pwait dup dup3 statfs fstatfs ftruncate faccessat openat
        # close pipe2 getcwd
        19, 20, 21, 22, 23, 24, 43, 44, 46, 48, 56, 57, 59, 17,
        # getdents64 lseek read write readv writev pread64 pwrite64 preadv pwritev pselect6 ppoll
        # readlinkat newfstatat fstat
        61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 72, 73, 78, 79, 80,
        # exit exit_group set_tid_address set_robust_list get_robust_list nanosleep getitimer
        # setitimer
        93, 94, 96, 99, 100, 101, 102, 103,
        # clock_gettime, _getres, _nanosleep sched_getscheduler, _getparam, _getaffinity, _yield,
        # _get_priority_max, _min
        113, 114, 115, 120, 121, 123, 124, 125, 126,
        # restart_syscall sigaltstack rt_sigsuspend rt_sigaction rt_sigprocmask rt_sigpending
        # rt_sigtimedwait rt_sigreturn
        128, 132, 133, 134, 135, 136, 137, 139,
        # getpriority getresuid getresgid times getgroups uname getrlimit getrusage getcpu
        # gettimeofday getpid getppid
        141, 148, 150, 153, 158, 160, 163, 165, 168, 169, 172, 173,
        # getuid geteuid getgid getegid gettid sysinfo brk munmap mremap mmap fadvise64 mprotect
        # msync mincore madvise
        174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 223, 226, 227, 232, 233,
        # getrandom membarrier statx rseq close_range faccessat2
        278, 283, 291, 293, 436, 439,
    ),
}  # fmt: skip
_CLONE = {"x86_64": 56, "aarch64": 220}
_TGKILL = {"x86_64": 234, "aarch64": 131}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
_FCNTL = {"x86_64": 72, "aarch64": 25}
_IOCTL = {"x86_64": 16, "aarch64": 29}

# Before Linux 6.12, F_SETOWN and F_SETSIG on a pipe sent any signal to any process of the user,
# past Landlock.
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS
_FREE_FCNTL = (0, 1, 2, 3, 1030, 1032, 1034)
_F_SETFL, _O_ASYNC = 4, 0x2000
# TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
_FREE_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

_FUTEX = {"x86_64": 202, "aarch64": 98}
_FUTEX_PRIVATE = 128
# Programs that share the page of a file could pass on expected values: one waits, and the other
# wakes it, or ends a thread and has the kernel wake it. FUTEX_WAIT FUTEX_WAIT_BITSET, also with
# FUTEX_CLOCK_REALTIME, return at once, as if the value had changed: who waits for the end of a
# thread looks again.
_SHARED_WAITS = (0, 9, 256, 265)

_Instruction = tuple[int, int, int, int]
_LET, _DENY = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE | _EPERM)


def seccomp_program(machine: str, process: int) -> bytes:
    """The filter as BPF instructions (linux/filter.h) for a machine as `os.uname` names it. Raises
    CannotConfine.

    It allows the free calls, clone only for threads (fork fails with EPERM), signals to `process`
    itself, its own limits, and the futex, fcntl and ioctl commands of ordinary programs.
    """
    if machine not in _AUDIT:
        raise CannotConfine(SECCOMP_REMEDY)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _AUDIT[machine]),
        (_RETURN, 0, 0, _REFUSE | _ENOSYS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number, body in (
        (_CLONE[machine], _if_first_argument(_JUMP_SET, _CLONE_THREAD)),
        (_TGKILL[machine], _if_first_argument(_JUMP_EQUAL, process)),
        (_PRLIMIT[machine], _if_first_argument(_JUMP_EQUAL, 0)),
        (_FCNTL[machine], _fcntl_commands()),
        (_FUTEX[machine], _futex_commands()),
        (_IOCTL[machine], [(_LOAD, 0, 0, _SECOND_ARGUMENT), *_one_of(_FREE_IOCTL), _DENY, _LET]),
    ):
        code += [(_JUMP_EQUAL, 0, len(body), number), *body]
    calls = _FREE_CALLS[machine]
    code += [*_one_of(calls), (_RETURN, 0, 0, _REFUSE | _ENOSYS), _LET]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _if_first_argument(jump: int, value: int) -> list[_Instruction]:
    return [(_LOAD, 0, 0, _FIRST_ARGUMENT), (jump, 0, 1, value), _LET, _DENY]


def _one_of(values: tuple[int, ...]) -> list[_Instruction]:
    """Jumps over the next instruction when what is loaded is among `values`."""
    return [(_JUMP_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]


def _futex_commands() -> list[_Instruction]:
    """All within the process, none between processes."""
    private = [(_LOAD, 0, 0, _SECOND_ARGUMENT), (_JUMP_SET, 0, 1, _FUTEX_PRIVATE), _LET]
    return [*private, *_one_of(_SHARED_WAITS), _DENY, (_RETURN, 0, 0, _REFUSE | _EAGAIN)]


def _fcntl_commands() -> list[_Instruction]:
    """The free ones, and F_SETFL unless it asks for signals (O_ASYNC)."""
    status_flags = [(_LOAD, 0, 0, _THIRD_ARGUMENT), (_JUMP_SET, 0, 1, _O_ASYNC), _DENY, _LET]
    load = (_LOAD, 0, 0, _SECOND_ARGUMENT)
    return [
        load,
        (_JUMP_EQUAL, 0, len(status_flags), _F_SETFL),
        *status_flags,
        *_one_of(_FREE_FCNTL),
        _DENY,
        _LET,
    ]


def _restrict_calls() -> None:
    program = ctypes.create_string_buffer(seccomp_program(os.uname().machine, os.getpid()))
    length = (len(program) - 1) // 8
    pointer = struct.pack("@HP", length, ctypes.addressof(program))  # struct sock_fprog
    if _LIBC.prctl(_PR_SET_SECCOMP, 2, pointer, 0, 0):
        raise CannotConfine(f"{SECCOMP_REMEDY} ({os.strerror(ctypes.get_errno())})")
