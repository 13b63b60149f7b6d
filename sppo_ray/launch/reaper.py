"""Kill the rest of a local Ray cluster when its driver has ended: `python reaper.py MARK`.

    driver --holds the other end of--> stdin     end of file: the driver ended, by SIGKILL or in
                                                 good order
                                        '--> SIGKILL to all with SPPO_RAY_CLUSTER=MARK in their environment

Without it, Ray's agents and their ports remain for a minute, and a frozen actor remains for ever,
because it cannot see that its raylet is gone. All processes of the cluster inherit the mark,
including child processes of engines. Standard library only.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "SPPO_RAY_CLUSTER"
LOOK_EVERY_S = 0.2
GIVE_UP_S = 30.0  # limit for a process that the kernel cannot end because it waits for a device


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the signal is for the driver; this process must outlive it
    sys.stdin.buffer.read()
    reap(sys.argv[1])


def reap(mark: str) -> None:
    deadline = time.monotonic() + GIVE_UP_S
    while (left := list(marked(mark))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_EVERY_S)


def marked(mark: str) -> Iterator[int]:
    """Return the ids of processes with the mark, except this one."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:  # it ended, or belongs to another user
            continue
        if wanted in environment.split(b"\0") and int(folder.name) != os.getpid():
            yield int(folder.name)


if __name__ == "__main__":
    main()
