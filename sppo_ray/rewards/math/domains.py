"""The whole numbers that a family runs through."""

from __future__ import annotations

import re
from fractions import Fraction

from sppo_ray.rewards.math.evaluator import real
from sppo_ray.rewards.math.forms import Items, Quantity
from sppo_ray.rewards.math.nodes import Node
from sppo_ray.rewards.math.real_sets import Region
from sppo_ray.rewards.math.tokens import raise_if

MAX_WHOLE_NUMBERS = 1000

_DOMAINS = {"Z": "Z", "N": "N", "N_0": "N", "Z_>=0": "N", "N_>=0": "N"} | dict.fromkeys(
    ["Z^+", "Z_+", "Z_>0", "Z_>=1", "N^*", "N_+", "N^+", "N_>0", "N_1", "N_>=1"], "P"
)
_SOME_INTEGERS = re.compile(
    r"except|divisible|even|odd|zero|prime|multiple|greater|less|(?<!non)(?<!non-)negative|between"
)

_WORDS_BEFORE = re.compile(
    r"\b(?!(?:where|for|with|all|any|every|each|some|an?|the|integers?|numbers?|quad|text|forall|in)\b)"
    r"[a-z]{2,}"
)
"""Words that say more than the set: for even k."""


def domain_of(whole_set: str, words: str) -> str:
    """Z, N or P (see `Family`); any other set by its own name. Raises Unreadable for words that say
    more.
    """
    if whole_set:
        plain = re.sub(r"\\mathbb|[{}\s]", "", re.sub(r"\\ge(?![a-z])", ">=", whole_set))
        raise_if(bool(_WORDS_BEFORE.search(words.replace(whole_set, ""))), "some whole numbers only")
        return _DOMAINS.get(plain, plain)
    raise_if(bool(_SOME_INTEGERS.search(words)), "some whole numbers only")
    if "positive" in words or "natural" in words:
        return "P"
    return "N" if re.search("non-?negative", words) else "Z"


def whole_numbers_in(region: Region) -> Items | None:
    """The whole numbers of a bounded region as a set; None where they are many."""
    found = []
    for one in region:
        low, high = real(one.low), real(one.high)
        if not -MAX_WHOLE_NUMBERS < low <= high < MAX_WHOLE_NUMBERS:
            return None
        for number in range(int(low) - 1, int(high) + 2):
            inside = (low < number or (one.has_low and low == number)) and (
                number < high or (one.has_high and high == number)
            )
            found += [Quantity(Node("num", (Fraction(number), None)))] if inside else []
    return Items("{}", tuple(found))
