"""Reward for arithmetic answered in free text: only the last number of the response counts.

An example of a custom reward function: `reward.function: {type: custom, function:
"sppo_ray.rewards.last_number:reward"}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sppo_ray.rewards import nearby
from sppo_ray.rewards.extract import without_thinking

_WORD_WITH_DIGITS = re.compile(r"(?<![\w.])(?:[0-9](?:[\w.,/^-]*\w)?|\.[0-9]+(?!\w))")
_NUMBER = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.[0-9]+)?")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff]")


def reward(response: str, ground_truth: str, extra: Mapping[str, Any]) -> float:
    """Return 1.0 when the last number of the response equals the ground truth in value ("7.0" is 7,
    "1,234" is 1234), else 0.0.

    Listing many numbers gains nothing: all but the last are ignored, and so is thinking. A last one
    that is part of more than a number ("3/7", "2^7", "7%", "7 million") counts as wrong. Raises
    decimal.InvalidOperation for a ground truth that is not a number.
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
    text = _INVISIBLE.sub("", without_thinking(response)).translate(nearby.DASHES).replace("{,}", ",")
    words = list(_WORD_WITH_DIGITS.finditer(text))
    number = _NUMBER.fullmatch(words[-1][0]) if words else None
    if number is None or nearby.is_part_of_more(text, *words[-1].span()):
        return None
    sign = nearby.sign(text, words[-1].start())
    return None if sign is None else sign * Decimal(number[0].replace(",", ""))
