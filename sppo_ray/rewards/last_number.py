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

_WORD_WITH_DIGITS = re.compile(r"(?<![\w.])(?:[0-9](?:[\w.,/^-]*\w)?|\.[0-9]+(?!\w))")
_NUMBER = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.[0-9]+)?")
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe58\ufe63\uff0d", "-"))
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff]")
_SIGN = re.compile(r"(?P<minus>-|\b(?:minus|negative)\b)?[\s$£€¥\\({]*\Z", re.IGNORECASE)
_PART_OF_MORE_BEFORE = re.compile(
    r"(?:[0-9)}]\s*(?:/|÷|\\div|\\over)|[\^_]|\\(?:[dt]?frac\s*\{[^{}]*\}|sqrt(?:\[[^\]]*\])?|binom\s*\{[^{}]*\}))"
    r"[\s{(]*-?\Z"
)
_PART_OF_MORE_BEHIND = re.compile(
    r"[\s$})]*(?:!(?=\s*\S)|!\Z|\\?%|\^|[*×·÷/][A-Za-z(]|\\(?:cdot|times|div|over)(?![a-z])|per\s?cent\b"
    r"|(?:hundred|thousand|million|billion|trillion|dozen|score|lakh|crore)s?\b)",
    re.IGNORECASE,
)
_NEARBY = 40  # characters


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
    text = _INVISIBLE.sub("", without_thinking(response)).translate(_DASHES).replace("{,}", ",")
    words = list(_WORD_WITH_DIGITS.finditer(text))
    number = _NUMBER.fullmatch(words[-1][0]) if words else None
    if number is None:
        return None
    before, behind = text[: words[-1].start()][-_NEARBY:], text[words[-1].end() :][:_NEARBY]
    if _PART_OF_MORE_BEFORE.search(before) or _PART_OF_MORE_BEHIND.match(behind):
        return None
    return _signed(Decimal(number[0].replace(",", "")), before)


def _signed(number: Decimal, before: str) -> Decimal | None:
    """Return the number with the sign before it, as in -$7, minus 7 and 5 - 9 = -4.

    Behind a word or a number, a dash with a space behind it is no sign: 5 - 9 ends in 9.
    """
    sign = _SIGN.search(before)
    if sign is None or not sign["minus"]:
        return number
    if sign["minus"] != "-":
        return -number
    left, is_apart = before[: sign.start()], before[sign.end("minus") :].startswith(" ")
    if is_apart and re.search(r"[\w)}]\s*\Z", left):
        return number
    return None if re.search(r"[0-9)}]\s*\Z", left) else -number
