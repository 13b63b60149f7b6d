"""Reward for arithmetic answered in free text: only the last number of the response counts.

An example of a custom reward function: `reward.function: {type: custom, function:
"sppo_ray.rewards.last_number:reward"}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sppo_ray.rewards.extract import without_thinking

_WORD_WITH_DIGITS = re.compile(r"(?<![\w.])[-\u2212]?[0-9](?:[\w.,/^\u2212-]*\w)?")
_NUMBER = re.compile(r"[-\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def reward(response: str, ground_truth: str, extra: Mapping[str, Any]) -> float:
    """Return 1.0 when the last number of the response equals the ground truth in value ("7.0" is 7,
    "1,234" is 1234), else 0.0.

    Listing many numbers gains nothing: all but the last are ignored, and so is thinking. A last one
    that is more than a number ("3/7", "2^7") counts as wrong. Raises decimal.InvalidOperation for a
    ground truth that is not a number.
    """
    value = _last(response)
    return float(value is not None and value == Decimal(ground_truth))


def answer(response: str) -> str | None:
    """Return the last number in its shortest form ("7.0" is "7"), for maj@k."""
    value = _last(response)
    if value is None:
        return None
    text = f"{value:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) if value else "0"


def _last(response: str) -> Decimal | None:
    words = _WORD_WITH_DIGITS.findall(without_thinking(response))
    number = _NUMBER.fullmatch(words[-1]) if words else None
    return Decimal(number[0].replace("\u2212", "-").replace(",", "")) if number else None
