"""Times of day."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from sppo_ray.rewards.math.forms import Clock, Form, Quantity, Ratio
from sppo_ray.rewards.math.nodes import Node

_CLOCK = re.compile(
    r"([0-2]?[0-9])\s*:\s*([0-5][0-9])(?:\s*:\s*([0-5][0-9]))?\s*(?:\\text\{)?\s*"
    r"([aApP])?\.?\s*(?:[mM]\b)?\.?\s*\}?"
)
_HOUR = re.compile(r"(1[0-2]|0?[1-9])\s*(?:\\text\{)?\s*([aApP])\s*\.?\s*[mM]\.?\s*\}?")


def read_clock(text: str) -> Form | None:
    match = _CLOCK.fullmatch(text)
    if match:
        time = int(match[1]), int(match[2]), int(match[3] or 0)
        return Clock(time, f"{match[4].lower()}m" if match[4] else "")
    match = _HOUR.fullmatch(text)
    return Clock((int(match[1]), 0, 0), f"{match[2].lower()}m") if match else None


def same_time(truth: Clock, answer: Clock) -> bool:
    if truth.half == answer.half:
        return truth.time == answer.time
    if truth.half and answer.half:
        return False
    with_half, other = (truth, answer) if truth.half else (answer, truth)
    hours = with_half.time[0] % 12 + (12 if with_half.half == "pm" else 0)
    return other.time == (hours, *with_half.time[1:])


def as_ratio(clock: Clock, *, is_ratio: bool) -> Ratio | None:
    """3:10 as a ratio; None of a time with seconds or a half of the day, of 3:04, and, unless the
    question is about a ratio, of 10:30: as a ratio it would be 1:3.
    """
    hours, minutes, seconds = clock.time
    if seconds or clock.half or minutes < 10 or (math.gcd(hours, minutes) > 1 and not is_ratio):
        return None
    return Ratio(tuple(Quantity(Node("num", (Fraction(part), None))) for part in (hours, minutes)))
