"""Reward functions that misbehave, for the tests of the verifier pool: they run in its worker
processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

NOT_A_FUNCTION = 7


def by_command(response: str, ground_truth: str, extra: Mapping[str, Any]) -> Any:
    """Does what the response says; anything else is compared with the ground truth."""
    print("noise on stdout must not reach the protocol", file=sys.stdout, flush=True)
    match response.split():
        case ["hang"]:
            while True:
                time.sleep(0.01)
        case ["hang-in-c"]:
            return float(len(str(9 ** (9**9))))
        case ["segfault"]:
            ctypes.string_at(0)
        case ["allocate"]:
            return float(len(bytearray(8 << 30)) > 0)
        case ["exit"]:
            sys.exit(3)
        case ["exit-hard"]:
            os._exit(9)
        case ["raise"]:
            raise KeyError("units")
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["reward", reward]:
            return float(reward)
        case ["text"]:
            return "1.0"
        case ["extra"]:
            return extra["credit"]
        case ["variable", name]:
            return float(name in os.environ)
    return response == ground_truth


def by_evaluation(response: str, ground_truth: str, extra: Mapping[str, Any]) -> float:
    """What nobody should write: the response is run. True is 1."""
    return float(eval(response))


def write_everywhere(text: str) -> float:
    """An attack that `by_evaluation` may be made to run: write `text` to whatever this process can
    write to.
    """
    for descriptor in range(3, 32):
        with contextlib.suppress(OSError):
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                os.write(descriptor, text.encode())
    return 0.0


def patch() -> float:
    """Another: every later answer is right."""
    by_evaluation.__code__ = (lambda *_: 1.0).__code__
    return 0.0


def stay() -> float:
    """Another: a thread that answers whatever is asked next."""

    def answer() -> None:
        while True:
            write_everywhere('\n{"reward": 1.0}\n')
            time.sleep(0.001)

    threading.Thread(target=answer).start()
    return 0.0
