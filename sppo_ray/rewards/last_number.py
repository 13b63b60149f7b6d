"""Reward for arithmetic answered in free text: only the last number of the response counts.

An example of a custom reward function: `reward.function: {type: custom, function:
"sppo_ray.rewards.last_number:reward"}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")


def reward(response: str, ground_truth: str, extra: Mapping[str, Any]) -> float:
    """Return 1.0 when the last number of the response equals the ground truth in value ("7.0" is
    7), else 0.0.

    Listing many numbers gains nothing: all but the last are ignored. Raises
    decimal.InvalidOperation for a ground truth that is not a number.
    """
    numbers = _NUMBER.findall(response)
    return float(bool(numbers) and Decimal(numbers[-1]) == Decimal(ground_truth))


def answer(response: str) -> str | None:
    """Return the last number in its shortest form ("7.0" is "7"), for maj@k."""
    numbers = _NUMBER.findall(response)
    if not numbers:
        return None
    value = Decimal(numbers[-1])
    text = f"{value:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) if value else "0"
