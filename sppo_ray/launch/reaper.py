"""Ends what is left of a local Ray cluster once the process that started it is gone: `python reaper.py MARK`.

    driver --holds the other end of--> stdin     end of file: the driver ended, by SIGKILL or in good order
                                        '--> SIGKILL to whatever has SPPO_RAY_CLUSTER=MARK in its environment

By itself Ray leaves its agents behind for a minute, ports included, and for ever an actor that is frozen: it cannot see that
its raylet is gone. The mark is inherited by whatever the cluster starts, engines' own processes too. Standard library only.
"""

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
GIVE_UP_S = 30.0  # on a process that the kernel does not end: it waits for a device


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the driver; this process ends after it
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
    """Process ids that carry the mark, this one's not."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:  # it ended, or is another user's
            continue
        if wanted in environment.split(b"\0") and int(folder.name) != os.getpid():
            yield int(folder.name)


if __name__ == "__main__":
    main()
