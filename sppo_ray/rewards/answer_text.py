r"""Reading a final answer as text before any algebra: clean LaTeX, plain numbers, words, number bases, units.

What is decided here is decided exactly and in microseconds; only the rest goes to SymPy.
"""

from __future__ import annotations

import re
from fractions import Fraction

_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u2014": "-", "\uff0d": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ",
        "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "∅": r"\emptyset ",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "",
    }
    | {chr(0xFF01 + i): chr(0x21 + i) for i in range(94) if i != 12}  # full-width forms of ASCII
)  # fmt: skip
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_SPACING = re.compile(r"\\\\|\\!\s*|\\[,;:> ]|\\q?quad(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])|\\phantom\{[^{}]*\}|~|\s+")
_STYLE = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname|boldsymbol|bm)\s*"
_WHOLE_STYLE = re.compile(_STYLE + r"\{([^{}]*)\}")
_SET_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![a-zA-Z])\s*")


def tidy(text: str) -> str:
    """The same answer without Unicode look-alikes, delimiters, spacing commands, currency signs and final dots."""
    text = text.translate(_UNICODE).strip()
    text = re.sub(r",\s*\\!\s*|\{,\}", ",", text)
    text = _SPACING.sub(_space, text).strip()
    text = text.rstrip(" .,;") if not text.endswith("\\,") else text
    for opens, closes in _DELIMITERS:
        if len(text) > len(opens) + len(closes) and text.startswith(opens) and text.endswith(closes):
            text = text[len(opens) : -len(closes)].strip().rstrip(" .,;")
    text = re.sub(r"\\?\$\s*", "", text)
    styled = _WHOLE_STYLE.fullmatch(text)
    if styled and as_number(styled[1].strip()) is not None:
        text = styled[1].strip()
    return _SET_MEMBER.sub("", text, count=1) if _SET_MEMBER.match(text) else text


def _space(match: re.Match[str]) -> str:
    if match.group() == r"\\":  # a matrix's new row, whatever follows it
        return r"\\"
    return "" if match.group().startswith(r"\!") else " "


# ------------------------------------------------------------------------------------------------ plain numbers

_NUMBER = re.compile(r"([+-]?)\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_MAX_DIGITS = 4000  # Python refuses to read longer integers
RELATIVE_TOLERANCE = Fraction(1, 1_000_000)


def as_number(text: str) -> Fraction | None:
    """An integer or decimal (thousands separators and 1.5e-3 allowed), exactly; None when the text is anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[3]) or len(text) > _MAX_DIGITS:
        return None
    return Fraction(match[1] + match[2].replace(",", "") + (match[3] or "") + (match[4] or ""))


def same_number(truth: Fraction, answer: Fraction) -> bool:
    """Integers exactly; a decimal ground truth to one part in a million, since it was rounded somewhere."""
    if truth.denominator == 1:
        return truth == answer
    return abs(truth - answer) <= RELATIVE_TOLERANCE * abs(truth)


# -------------------------------------------------------------------------------------------------------- words

_PARENTHESISED_LETTER = re.compile(r"\(\s*([A-Za-z])\s*\)|([A-Za-z])\s*[).:]?")
_BARE_WORDS = re.compile(r"[a-z]{4,}(?:[ '-][a-z]+)*|yes|no", re.IGNORECASE)
_STYLED_PART = re.compile(_STYLE + r"\{([^{}]*)\}")


def as_words(text: str) -> str | None:
    r"""A ground truth that is text (\text{Evelyn}, \text{(C)}, even), in the form that `canonical_words` gives.

    None when it is mathematics. Bare text counts from a word of four letters on: shorter may be a product of variables.
    """
    styled = _WHOLE_STYLE.fullmatch(text)
    if styled and any(c.isalpha() for c in styled[1]):
        return canonical_words(styled[1])
    return canonical_words(text) if _BARE_WORDS.fullmatch(text) else None


def canonical_words(text: str) -> str:
    """Style commands, quotes, case and runs of spaces removed; `(C)`, `C.` and `C)` are the letter alone."""
    text = _STYLED_PART.sub(r"\1", text).replace("\\", " ")
    text = " ".join(text.split()).strip(" .,;:\"'`").casefold()
    letter = _PARENTHESISED_LETTER.fullmatch(text)
    return (letter[1] or letter[2]) if letter else text


# ------------------------------------------------------------------------------------------------- number bases

_BASED = re.compile(r"([0-9][0-9A-Fa-f]*)\s*_\s*(?:\{\s*(?:\\text\s*\{)?\s*([a-z]+|[0-9]+)\s*\}?\s*\}|([0-9]))")
_BASE_WORDS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
               "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip


def as_based(text: str) -> tuple[str, str | None] | None:
    """Digits and base of 52_8 or 52_{eight}; (digits, None) of plain digits; None of anything else."""
    match = _BASED.fullmatch(text)
    if match:
        base = match[2] or match[3]
        return match[1].upper(), _BASE_WORDS.get(base, base)
    return (text.upper(), None) if re.fullmatch(r"[0-9][0-9A-Fa-f]*", text) else None


# -------------------------------------------------------------------------------------------------------- units

_UNIT_NAMES = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre", "km": "km kilometer kilometre",
    "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile", "mg": "mg milligram", "g": "g gram",
    "kg": "kg kilogram", "lb": "lb pound", "oz": "oz ounce", "s": "s sec second", "min": "min minute", "h": "h hr hour",
    "day": "day", "week": "week", "month": "month", "year": "yr year", "dollar": "dollar usd", "cent": "cent",
    "l": "l liter litre", "ml": "ml milliliter millilitre", "deg": "deg degree", "rad": "rad radian", "mph": "mph",
}  # fmt: skip
_UNITS = {alias: unit for unit, aliases in _UNIT_NAMES.items() for alias in aliases.split()}
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_STYLED_UNIT = re.compile(r"(.*[0-9})\]a-z])\s*" + _STYLE + r"\{\s*([^{}]*?)\s*\}\s*(?:\^\s*\{?\s*([0-9])\s*\}?)?", re.DOTALL)
_NUMERIC_HEAD = r"(?:[-+0-9.,/ {}()^]|\\[dt]?frac|\\sqrt|\\pi(?![a-z])|\\cdot|\\times)*[0-9}]|[-+0-9./ ]*\\pi"
_BARE_UNIT = re.compile(rf"({_NUMERIC_HEAD})(\s*)([A-Za-z][A-Za-z./]*(?: [A-Za-z/]+)*)\s*(?:\^\s*\{{?\s*([0-9])\s*\}}?)?")
_NO_UNIT = frozenset(["and", "or", "if", "for", "sin", "cos", "tan", "log", "ln", "exp", "sqrt", "pi", "mod", "inf", "cup"])


def split_unit(text: str, *, letters: bool = False) -> tuple[str, tuple[str, int] | None]:
    r"""The quantity and its unit: 5.4\text{ cents} -> ("5.4", ("cent", 1)).

    The unit is None when there is none or it is unknown (12 apples -> "12"). A single letter (3m) may be a variable and
    stays where it is, unless `letters` says that a unit is expected.
    """
    styled = _STYLED_UNIT.fullmatch(text)
    if styled and not _NO_UNIT & set(styled[2].casefold().split()) and any(c.isdigit() for c in styled[1]):
        return styled[1].strip(), _canonical_unit(styled[2], styled[3])
    bare = _BARE_UNIT.fullmatch(text)
    if bare is None:
        return text, None
    words = re.split(r"[ ./]+", bare[3].casefold().strip("."))
    unit = _canonical_unit(bare[3], bare[4])
    known = unit is not None and (letters or len(words[0]) > 1)
    apart = bool(bare[2]) and all(len(word) >= 3 for word in words)
    if not (known or apart) or _NO_UNIT & set(words):
        return text, None
    return bare[1].strip(), unit


def _canonical_unit(words: str, exponent: str | None) -> tuple[str, int] | None:
    power = int(exponent or 1)
    names = words.casefold().replace(".", "").split()
    if len(names) == 2 and names[0] in _POWER_WORDS:
        power = _POWER_WORDS[names.pop(0)]
    if len(names) != 1:
        return None
    name = names[0]
    unit = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
    return (unit, power) if unit else None
