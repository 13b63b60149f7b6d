"""What the question says about the form of its answer: a percentage, a base, what is counted."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cached_property

from sppo_ray.rewards.math.counted import counted_in, singular
from sppo_ray.rewards.math.units import Dimensions, Tail, read_tail

_PERCENT_ASKED = re.compile(
    r"\b(?:what|which|how many|how much|find|calculate|compute|determine|express|give|as an?|in"
    r")\s+"
    r"(?:(?!one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|[a-z]+ty|half|hundred)"
    r"[a-z]+\s+){0,3}(?:per\s?cent|percentage|\\?%)",
    re.IGNORECASE,
)
_UNIT_ASKED = re.compile(
    r"\b(?:how many|number of|in)\s+((?:square|cubic)\s+[a-z]{2,}|[a-z]{2,}(?:\s+per\s+[a-z]+)?)",
    re.IGNORECASE,
)
_MATRICES = re.compile(
    r"\bmatri(?:x|ces)\b|\bnon-?commut|\bquaternion|\blinear (?:map|operator|transformation)s?\b"
    r"|\bgroup elements?\b",
    re.IGNORECASE,
)
_BASES = {
    "2": ("two", "binary"), "3": ("three", "ternary"), "4": ("four", "quaternary"), "5": ("five", "quinary"),
    "6": ("six", "senary"), "7": ("seven", "septenary"), "8": ("eight", "octal"), "9": ("nine", "nonary"),
    "12": ("twelve", "duodecimal"), "16": ("sixteen", "hexadecimal"),
}  # fmt: skip


class Question:
    """The text of a question; "" where it is not known."""

    def __init__(self, text: str = "") -> None:
        self._text = text

    @property
    def is_known(self) -> bool:
        return bool(self._text)

    def has_letter(self, name: str) -> bool:
        """Whether a letter stands alone in it, as a variable does."""
        return re.search(rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z])", self._text) is not None

    def quotes(self, text: str) -> bool:
        """Whether it has this text, as that of a choice."""
        return " ".join(text.split()) in " ".join(self._text.split())

    @cached_property
    def asks_percentage(self) -> bool:
        """Whether the answer is a percentage, so that 40 and 40% are the same."""
        return bool(_PERCENT_ASKED.search(self._text))

    @cached_property
    def asks_ratio(self) -> bool:
        return re.search(r"\bratio\b|\bproportion\b|比", self._text, re.IGNORECASE) is not None

    @cached_property
    def counted(self) -> frozenset[str]:
        """What is counted: how many apples."""
        return counted_in(self._text)

    @cached_property
    def unit(self) -> tuple[Fraction, Dimensions] | None:
        """The unit that it asks for (how many minutes, in dollars): its factor and dimensions; None
        where it names none, or several.
        """
        found = {(tail.factor, tail.dimensions) for tail in self._asked_in if tail.has_unit}
        return next(iter(found)) if len(found) == 1 else None

    @cached_property
    def scales(self) -> frozenset[Fraction]:
        """The words of magnitude that it asks in: how many dozen, in millions."""
        return frozenset(tail.scale for tail in self._asked_in if tail.scale != 1)

    @cached_property
    def _asked_in(self) -> list[Tail]:
        tails = (read_tail(" ".join(words.split())) for words in _UNIT_ASKED.findall(self._text))
        return [tail for tail in tails if tail is not None]

    @cached_property
    def named(self) -> frozenset[str]:
        """What the question names in the plural."""
        return frozenset(map(singular, re.findall(r"\b[a-z]{3,}s\b", self._text.casefold())))

    @cached_property
    def is_about_matrices(self) -> bool:
        """Whether capitals are matrices or others whose products have an order."""
        return bool(_MATRICES.search(self._text))

    def asks_base(self, base: str) -> bool:
        """Whether numerals may be of a base: "in base 2", binary, 101_2."""
        name, adjective = _BASES.get(base, (base, f"base {base}"))
        named = rf"\bbase[\s$~-]*\(?(?:{base}|{name})\b|\b{adjective}\b|[0-9)]\s*_\s*\{{?{base}(?![0-9])"
        return base == "10" or re.search(named, self._text, re.IGNORECASE) is not None
