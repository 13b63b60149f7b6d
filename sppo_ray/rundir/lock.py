"""run.lock: the lock of the process that writes to a run directory."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from sppo_ray.errors import UserError
from sppo_ray.rundir.files import RunFile

_HOLDER = re.compile(r"pid (\d{1,9}) on (\S+)")


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that last took the lock; it may have ended."""

    pid: int
    host: str
    since: float  # Unix time


def acquire(path: Path) -> int:
    """Take the lock and return its file descriptor. The kernel releases it when the process ends.

    Raises UserError when another live process holds it, or the file system does not support locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 256, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(
                f"run directory {path.parent} is in use by {holder or 'another process'}: wait for it, "
                "stop it, or choose another --run-dir"
            ) from None
        raise UserError(
            f"run directory {path.parent}: its file system keeps no locks ({error.strerror}): mount it "
            "with them (Lustre: -o flock), or choose another --run-dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def release(descriptor: int) -> None:
    # Closing is not enough while a fork of this process holds a copy.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def lock_holder(lock: RunFile) -> LockHolder | None:
    """Return the holder; None when the lock was never taken or is unreadable."""
    try:
        match = _HOLDER.search(lock.read().decode(errors="replace"))
    except OSError:
        return None
    return LockHolder(int(match[1]), match[2], lock.stamp()[1] / 1e9) if match else None
