"""The process of a program that reads stdin and writes stdout, started by `sppo_ray.rewards.sandbox.run` only: `main(SETUP_FD)`.

Standard library only, and little of it: see `confine`.
"""

from __future__ import annotations

import marshal
import os
import sys

from sppo_ray.rewards.sandbox import confine

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from typing import Any

CONFINED = b"C"
MAX_DIGITS = 100_000
"""Of an integer that is read or written as text: reading takes quadratic time."""


def main(setup_fd: int) -> None:
    code = enter(setup_fd)["code"]
    exec(compile(code, "program.py", "exec"), {"__name__": "__main__"})


def enter(setup_fd: int) -> dict[str, Any]:
    """Read the setup, confine this process, and say so in the setup's first byte; after that no program can reach it."""
    setup = marshal.loads(os.pread(setup_fd, os.fstat(setup_fd).st_size, 0))
    confine.confine(**setup["limits"])
    os.pwrite(setup_fd, CONFINED, 0)
    os.close(setup_fd)
    os.close(setup["starts"])
    sys.path += setup["limits"]["readable"]
    sys.argv[:] = ["program.py"]
    sys.set_int_max_str_digits(MAX_DIGITS)
    return setup
