r"""Answers that need no mathematics: plain numbers, words, letters of a choice, numerals of a
base.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

# ------------------------------------------------------------------------------------ plain numbers

_NUMBER = re.compile(r"([+-]?)\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_MAX_DIGITS = 4000  # Python refuses to read longer integers


def as_number(text: str) -> Fraction | None:
    """An integer or decimal (thousands separators and 1.5e-3 allowed), exactly; None when the text
    is anything else.
    """
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[3]) or len(text) > _MAX_DIGITS:
        return None
    return Fraction(match[1] + match[2].replace(",", "") + (match[3] or "") + (match[4] or ""))


# -------------------------------------------------------------------------------------------- words

_PARENTHESISED_LETTER = re.compile(r"\(\s*([A-Za-z])\s*\)|([A-Za-z])\s*[).:]?")
_BARE_WORDS = re.compile(r"[a-z]{4,}(?:[ '-][a-z]+)*|yes|no", re.IGNORECASE)
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_QUOTES = "\"'`"
_BY_NAME = frozenset(["infinity", "sqrt"])


def as_words(text: str) -> str | None:
    r"""A tidied text that is words (\text{Evelyn}, \text{(C)}, even), in the form that
    `canonical_words` gives.

    None when it is mathematics. Bare text counts from a word of four letters on: shorter may be a
    product of variables.
    """
    styled = _WHOLE_TEXT.fullmatch(text)
    if styled and any(c.isalpha() for c in styled[1]) and not styled[1].strip()[:1].isdigit():
        return canonical_words(text)
    return canonical_words(text) if _BARE_WORDS.fullmatch(text) and text.casefold() not in _BY_NAME else None


def canonical_words(text: str) -> str:
    """Style commands, quotes, case and runs of spaces removed; `(C)`, `C.` and `C)` are the letter
    alone.
    """
    text = _WHOLE_TEXT.sub(r"\1", text).replace("\\", " ")
    text = " ".join(text.split()).strip(" .,;:").casefold()
    if len(text) > 2 and text[0] in _QUOTES and text[-1] in _QUOTES:  # A' is not A
        text = text.strip(" \"'`")
    letter = _PARENTHESISED_LETTER.fullmatch(text)
    return (letter[1] or letter[2]) if letter else text


def differ_in_case(words: str, other: str) -> bool:
    """Whether a text is the same as these words but for capitals that tell things apart: AaBb and
    AABB, Co and CO, mM and Mm.
    """
    one, other = ("".join(_WHOLE_TEXT.sub(r"\1", text).split()) for text in (words, other))
    if one == other or one.casefold() != other.casefold():
        return False
    pairs = re.fullmatch(r"(?:(.)\1)+", one, re.IGNORECASE) is not None
    inside = any(re.search("[a-z][A-Z]", text) for text in (one, other))
    symbol = len(one) == 2 and one[1] != other[1] and one.casefold() not in ("no", "ok")
    return pairs or inside or symbol


_SAYS = r"(?:(?i:option|choice|answer|选项)\s*[:]?)"
_CHOICE = re.compile(
    rf"{_SAYS}?\s*(?:\(\s*([A-J])\s*\)|\[\s*([A-J])\s*\]|([A-J])\s*[).:,、])\s*(.*)|{_SAYS}\s+([A-J])",
    re.DOTALL,
)
_ANOTHER_CHOICE = re.compile(
    r"^\W*(?:n't|[Nn]ot|no|cannot|wrong|incorrect|untrue|maybe|perhaps|possibly|guess|unsure|\?)(?:\W|$)"
    r"|\b(?:is|are|was|were|seems?|looks?|be|been|isn't|wasn't)\s+(?:\w+ly\s+)?(?:not\s+(?:correct|right|the|it|true|valid)|wrong|incorrect|false|untrue|impossible"
    r"|excluded|eliminated|refuted|discarded|rejected|unlikely|ruled)"
    r"|^is\s+(?:my|the|a)\s+(?:wrong|incorrect)|^(?:minus|plus)\b"
    r"|(?:^|[,;:.>]|\\to|\b(?i:answer|really|be|is|it's|wait|wrong|but|then))\s*\(?[A-J]\)?\W*$"
    r"|\b(?:fails|choose|pick|select|actually|rather|instead|option|choice)\b.*\b[A-J]\b|\b[A-J]\s+is\b|actually\s+[A-J]\b|"
    r"(?:^|[\s(])[B-J][).:,](?:\s|$)|\(\s*[A-J]\s*\)|\b(?:or|and)\s+\(?[A-J]\)?(?:\b|$)|^\(?[A-J]\)?$|\bnot\s+\(?[A-J]\b"
)


_GOES_ON = re.compile(r"['^_*!+=<>&]|\\(?:ne|neq|le|ge|leq|geq|lt|gt|text\{ ?or)(?![a-z])|(?:or|xor|nor)\b")
_DENIES = re.compile(
    r"\b(?:doesn't|does not|don't|isn't|is not|cannot|can't|won't) (?:work|hold|fit|it|apply|match)\b"
    r"|\b(?:distractor|opposite|eliminated|contradicts|loses|less likely|unlikely|doubt|nope|fails?|failed"
    r"|becomes|replaced|next letter|previous letter)\b|^(?:false|next|previous)\b",
    re.IGNORECASE,
)


def as_choice(text: str, quotes: Callable[[str], bool] = lambda text: False) -> str | None:
    """The letter of an answer to a multiple-choice question that says more than the letter: `(B)
    12`, `B. yes`, `option B`.

    None when it names another letter as well, goes on with an operation or denies the letter,
    unless `quotes`: the question has this text.
    """
    match = _CHOICE.fullmatch(" ".join(_WHOLE_TEXT.sub(r"\1", text).split()))
    rest = ((match and match[4]) or "").strip()
    if match is None:
        return None
    if rest and not quotes(rest) and any(
        (_GOES_ON.match(rest), _DENIES.search(rest), _ANOTHER_CHOICE.search(rest))
    ):
        return None
    return match[1] or match[2] or match[3] or match[5]


_LETTERS = re.compile(r"\(?([A-J])\)?(?:\s*(?:,|;|&|and|\s)\s*(?:and\s*)?\(?([A-J])\)?)+|[A-J]{2,6}")


def as_choices(text: str) -> tuple[str, ...] | None:
    """The letters of an answer that ticks several choices: `ACD`, `A, C and D`, `(A) and (C)`; None
    of anything else.
    """
    plain = " ".join(_WHOLE_TEXT.sub(r" \1 ", text).split())
    letters = re.findall("[A-J]", plain)
    return tuple(letters) if _LETTERS.fullmatch(plain) and len(set(letters)) == len(letters) else None


# ------------------------------------------------------------------------------- rows of numbers

_ROW_OF_NUMBERS = re.compile(r"\d+(?:\s*[-/]\s*\d+){2,}|\d+\s*-\s*\d+")


def as_row_of_numbers(text: str) -> list[str] | None:
    """The numbers and signs of a date, a score or a range: 2024-03-05, 3-1, 5/3/2024; None of
    anything else.
    """
    if not _ROW_OF_NUMBERS.fullmatch(text):
        return None
    return [part.lstrip("0") or "0" for part in re.findall(r"\d+|[-/]", text)]


# ------------------------------------------------------------------------------------ permutations

_CYCLES = re.compile(r"(?:\([0-9, ]+\)\s*){2,}")

Permutation = tuple[dict[int, int], dict[int, int]]


def as_permutation(text: str) -> Permutation | None:
    """A product of cycles, (12)(13) or (1 2 3)(4 5), as what it does from either end; None of
    anything else.
    """
    if not _CYCLES.fullmatch(text):
        return None
    cycles = [list(map(int, re.findall("[0-9]+" if re.search("[ ,]", one) else "[0-9]", one)))
              for one in re.findall(r"\(\s*([0-9, ]*[0-9])\s*\)", text)]  # fmt: skip
    if any(len(set(one)) < len(one) for one in cycles) or max(map(len, cycles), default=0) < 2:
        return None
    return _product_of(cycles), _product_of(cycles[::-1])


def _product_of(cycles: list[list[int]]) -> dict[int, int]:
    """Where each number that moves goes, the first cycle first."""
    ends = {number: number for one in cycles for number in one}
    for one in cycles:
        following = dict(zip(one, [*one[1:], one[0]], strict=True))
        ends = {number: following.get(at, at) for number, at in ends.items()}
    return {number: at for number, at in ends.items() if at != number}


# ------------------------------------------------------------------------------------- number bases

_BASED = re.compile(
    r"\(?([0-9A-Fa-f]+)\)?\s*_\s*(?:\{\s*(?:\\text\s*\{)?\s*\(?([a-z]+|[0-9]+)\)?\s*\}?\s*\}|([0-9]))"
)
_BASE_WORDS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
"nine": "9",
               "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip


def as_based(text: str) -> tuple[str, str | None] | None:
    """Digits and base of 52_8 or 52_{eight}; (digits, None) of plain digits; None of anything
    else.
    """
    match = _BASED.fullmatch(text)
    if match:
        base = match[2] or match[3]
        return match[1].upper(), _BASE_WORDS.get(base, base)
    return (text.upper(), None) if re.fullmatch(r"[0-9][0-9A-Fa-f]*", text) else None
