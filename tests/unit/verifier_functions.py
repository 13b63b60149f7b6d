"""Reward functions that misbehave, for the tests of the verifier pool: they run in its worker processes."""

from __future__ import annotations

import ctypes
import os
import sys
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


def wait_for_file(response: str, ground_truth: str, extra: Mapping[str, Any]) -> float:
    """Hang, after leaving this process's id in the file that the ground truth names."""
    with open(ground_truth, "w") as file:
        file.write(str(os.getpid()))
    while True:
        time.sleep(0.01)
