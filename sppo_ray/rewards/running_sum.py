r"""Verifier of the running sum: the last \boxed{N} must be the ground truth's integer, ignoring
leading zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sppo_ray.rewards.extract import last_boxed

_INTEGER = re.compile(r"(-?)0*([0-9]{1,18})")


def verify_running_sum(response: str, ground_truth: str, extra: Mapping[str, Any]) -> tuple[float, str]:
    r"""Return 1 for the exact integer in the last \boxed{}, else 0. Raises ValueError when the
    ground truth is no integer.
    """
    expected = _integer(ground_truth)
    if expected is None:
        raise ValueError(f"ground truth {ground_truth[:40]!r} of a running sum is no integer")
    boxed = last_boxed(response)
    if boxed is None:
        return 0.0, "no_answer"
    return (1.0, "correct") if _integer(boxed) == expected else (0.0, "wrong")


def answer(response: str) -> str | None:
    r"""The last \boxed{} as an integer without leading zeros ("007" is "7"), or unchanged if it is
    not an integer.
    """
    boxed = last_boxed(response)
    number = None if boxed is None else _integer(boxed)
    return boxed if number is None else str(number)


def _integer(text: str) -> int | None:
    match = _INTEGER.fullmatch(text.strip())
    return int(match[1] + match[2]) if match else None
