"""Reading a number or an expression with what stands behind it: 5.4 cents, 3 million, 1 hour 30
minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from sppo_ray.rewards.math.expressions import read_expression
from sppo_ray.rewards.math.forms import Quantity
from sppo_ray.rewards.math.nodes import Node
from sppo_ray.rewards.math.text import unbraced
from sppo_ray.rewards.math.tokens import Unreadable
from sppo_ray.rewards.math.units import read_tail, without_ordinal
from sppo_ray.rewards.math.words import canonical_words

_MAX_WORDS = 12
"""Behind a number."""
_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_TAIL = re.compile(
    r"\\text\s*\{|\^\s*\{?\s*\\(?:circ|degree)|\\?%|\\mu(?![a-z])|\\Omega|(?<![A-Za-z\\])[A-Za-zµΩ一-鿿]+"
)
_END_OF_NUMBER = re.compile(r"(?:[0-9})\]i!.]|\\(?:pi|infty))\s*$")
_NEGATIVE = re.compile(r"\s*(?:\\text\{\s*)?(?:negative|minus)\b\s*\}?\s*", re.IGNORECASE)
_COMPOUND = re.compile(r"\s*(?:[0-9.]+\s*[A-Za-z]+\.?\s*(?:,|and)?\s*){2,4}")
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {word: number for number, word in enumerate(_SMALL.split())} | {
    f"{ten} {one}".strip(): 10 * tens + ones
    for tens, ten in enumerate(_TENS.split(), 2)
    for ones, one in enumerate(["", *_SMALL.split()[1:10]])
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read what has two readings."""

    letters: bool = False  # a single letter is a unit: 3 m
    units: bool = True  # letters that name a unit are one, not a product: 3 cm
    grouped: bool = True  # 1,000 is a thousand, not 1 and 0


USUAL = Reading()


def read_quantity(text: str, reading: Reading) -> Quantity:
    """An expression with its unit and words. Raises Unreadable."""
    text = without_ordinal(unbraced(text))
    tailed = _read_tailed(text, reading, known=True) if reading.units else None
    if tailed is not None:
        return tailed
    try:
        return Quantity(read_part(text, reading))
    except Unreadable:
        tailed = _read_tailed(text, reading, known=False)
    if tailed is not None:
        return tailed
    number = _number_word(canonical_words(text))
    if number is None:
        raise Unreadable("no quantity")
    return Quantity(number)


def read_part(text: str, reading: Reading) -> Node:
    """An expression; "negative" and "minus" are signs. Raises Unreadable."""
    sign = _NEGATIVE.match(text)
    text = text[sign.end() :] if sign else text
    split = r"\over" in text or r"\choose" in text
    node = read_expression(f"{{{text}}}" if split else text, grouped=reading.grouped)
    return Node("neg", (node,)) if sign else node


def read_compound(text: str) -> Quantity | None:
    """1 hour 30 minutes, in the unit that comes first."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    if _COMPOUND.fullmatch(plain) is None:
        return None
    total, previous, first = Fraction(0), None, None
    for number, word in re.findall(r"([0-9.]+)\s*([A-Za-z]+)", plain):
        tail = read_tail(word)
        if tail is None or not tail.has_unit:
            return None
        if previous and (tail.dimensions != previous.dimensions or tail.factor >= previous.factor):
            return None
        total, previous, first = total + Fraction(number) * tail.factor, tail, first or tail
    return Quantity(Node("num", (total / first.factor, None)), first) if first else None


def _read_tailed(text: str, reading: Reading, *, known: bool) -> Quantity | None:
    """A number with words or signs behind it; `known`: only units, words of magnitude and
    percent.
    """
    for start, attached in list(_tail_starts(text, letters=reading.letters))[-_MAX_WORDS:]:
        tail = read_tail(text[start:], attached=attached)
        head = unbraced(text[:start].strip().rstrip(","))
        if tail is None or (known and (not tail.is_known or _FUNCTION.search(head))):
            continue
        try:
            return Quantity(_number_word(head) or read_part(head, reading), tail)
        except Unreadable:
            continue
    return None


def _tail_starts(text: str, *, letters: bool) -> Iterator[tuple[int, bool]]:
    """Where the words behind a number may begin, and whether they must be known ones (2ab is a
    product).
    """
    for match in _TAIL.finditer(text):
        head, word = text[: match.start()], match.group()
        if not head.strip() or _open_braces(head):
            continue
        if not (word[0].isalpha() and word[0].isascii()):
            yield match.start(), False
        elif _END_OF_NUMBER.search(head) and (len(word) > 1 or letters):
            spaced = head[-1] in " ,"
            yield match.start(), not spaced or (len(word) < 3 and not letters)


def _open_braces(text: str) -> bool:
    return text.count("{") - text.count(r"\{") != text.count("}") - text.count(r"\}")


def is_number_word(text: str) -> bool:
    """Whether a text is a number from zero to ninety-nine in words."""
    return _number_word(text) is not None


def _number_word(text: str) -> Node | None:
    """five, twenty-one."""
    number = _NUMBER_WORDS.get(" ".join(text.casefold().replace("-", " ").split()))
    return None if number is None else Node("num", (Fraction(number), None))
