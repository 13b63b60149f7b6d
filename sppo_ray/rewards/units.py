r"""The unit at the end of an answer: 5.4\text{ cents}, 12 square feet, 60^\circ, 7 m/s, \$20.

A unit that only one of truth and answer has is no difference; two known units are compared, with conversion where it is by
a factor. A unit that is not known is dropped.
"""

from __future__ import annotations

import re
from fractions import Fraction

from sppo_ray.rewards.answer_text import STYLE, as_number

Unit = tuple[str, ...]
"""What is counted, and powers: ("m",), ("m", "m") for square metres, ("m", "/", "s")."""

_NAMES = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre", "km": "km kilometer kilometre",
    "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile", "mg": "mg milligram", "g": "g gram",
    "kg": "kg kilogram", "lb": "lb pound", "oz": "oz ounce", "s": "s sec second", "min": "min minute", "h": "h hr hour",
    "day": "day", "week": "week", "month": "month", "year": "yr year", "dollar": "dollar usd", "cent": "cent",
    "l": "l liter litre", "ml": "ml milliliter millilitre", "deg": "deg degree", "rad": "rad radian",
    "celsius": "celsius", "fahrenheit": "fahrenheit",
}  # fmt: skip
_UNITS = {alias: unit for unit, aliases in _NAMES.items() for alias in aliases.split()}
_WHOLE = {"mph": ("mi", "/", "h"), "kph": ("km", "/", "h"), "kmh": ("km", "/", "h")}
_FACTORS = {  # in the first of each line
    "mm": ("mm", 1), "cm": ("mm", 10), "m": ("mm", 1000), "km": ("mm", 1_000_000),
    "in": ("in", 1), "ft": ("in", 12), "yd": ("in", 36), "mi": ("in", 63_360),
    "mg": ("mg", 1), "g": ("mg", 1000), "kg": ("mg", 1_000_000),
    "oz": ("oz", 1), "lb": ("oz", 16),
    "s": ("s", 1), "min": ("s", 60), "h": ("s", 3600), "day": ("s", 86_400), "week": ("s", 604_800),
    "cent": ("cent", 1), "dollar": ("cent", 100),
    "ml": ("ml", 1), "l": ("ml", 1000),
}  # fmt: skip
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_STYLED = re.compile(r"(.*[0-9})\]a-z])\s*" + STYLE + r"\{\s*([^{}]*?)\s*\}\s*(?:\^\s*\{?\s*([0-9])\s*\}?)?", re.DOTALL)
_NUMERIC_HEAD = r"(?:[-+0-9.,/ {}()^]|\\[dt]?frac|\\sqrt|\\pi(?![a-z])|\\cdot|\\times)*[0-9}]|[-+0-9./ ]*\\pi"
_BARE = re.compile(rf"({_NUMERIC_HEAD})(\s*)([A-Za-z][A-Za-z./]*(?: [A-Za-z/]+)*)\s*(?:\^\s*\{{?\s*([0-9])\s*\}}?)?")
_DEGREES = re.compile(rf"({_NUMERIC_HEAD})\s*\^\s*(?:\\circ|\{{\s*\\circ\s*\}})\s*(?:([CF])|{STYLE}\{{\s*([CF])\s*\}})?")
_NO_UNIT = frozenset(["and", "or", "if", "for", "sin", "cos", "tan", "log", "ln", "exp", "sqrt", "pi", "mod", "inf", "cup"])
_DOLLARS = re.compile(r"\\\$")


def in_dollars(text: str) -> bool:
    r"""Whether an answer, as it was written, carries a dollar sign: \$5, and $5 where no second $ makes it a delimiter."""
    return bool(_DOLLARS.search(text)) or text.count("$") == 1


def split_unit(text: str, *, letters: bool = False) -> tuple[str, Unit | None]:
    r"""The quantity and its unit: 5.4\text{ cents} -> ("5.4", ("cent",)).

    The unit is None when there is none or it is unknown (12 apples -> "12"). A single letter (3m) may be a variable and
    stays where it is, unless `letters` says that a unit is expected.
    """
    degrees = _DEGREES.fullmatch(text)
    if degrees:
        return degrees[1].strip(), ({"C": "celsius", "F": "fahrenheit", None: "deg"}[degrees[2] or degrees[3]],)
    styled = _STYLED.fullmatch(text)
    if styled and _is_unit(styled[2]) and any(c.isdigit() for c in styled[1]):
        return styled[1].strip(), _canonical(styled[2], styled[3])
    bare = _BARE.fullmatch(text)
    if bare is None:
        return text, None
    words = re.split(r"[ ./]+", bare[3].casefold().strip("."))
    unit = _canonical(bare[3], bare[4])
    known = unit is not None and (letters or len(words[0]) > 1)
    apart = bool(bare[2]) and all(len(word) >= 3 for word in words)
    if not (known or apart) or _NO_UNIT & set(words):
        return text, None
    return bare[1].strip(), unit


def _is_unit(words: str) -> bool:
    return not (_NO_UNIT & set(re.findall("[a-z]+", words.casefold())) or any(c.isdigit() for c in words))


def converted(answer: str, unit: Unit, truth_unit: Unit) -> str | None:
    """The answer in the truth's unit; None when there is no way from one to the other, or the answer is no plain number."""
    if unit == truth_unit:
        return answer
    number, factor = as_number(answer), _factor(unit, truth_unit)
    if number is None or factor is None:
        return None
    value = number * factor
    return str(value.numerator) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _factor(unit: Unit, truth_unit: Unit) -> Fraction | None:
    if len(unit) != len(truth_unit):
        return None
    factor, sign = Fraction(1), 1
    for mine, theirs in zip(unit, truth_unit, strict=True):
        if mine == "/" == theirs:
            sign = -1
            continue
        base, size = _FACTORS.get(mine, (mine, 1))
        true_base, true_size = _FACTORS.get(theirs, (theirs, 1))
        if base != true_base:
            return None
        factor *= Fraction(size, true_size) ** sign
    return factor


def _canonical(words: str, exponent: str | None) -> Unit | None:
    text = words.casefold().replace(".", "").strip()
    if text in _WHOLE and not exponent:
        return _WHOLE[text]
    over, *under = re.split(r"\s*/\s*|\s+per\s+", text)
    parts = [_single(over, None if under else exponent), *(_single(part, exponent) for part in under)]
    if len(parts) > 2 or any(part is None for part in parts):
        return None
    return parts[0] if not under else (*parts[0], "/", *parts[1])


def _single(words: str, exponent: str | None) -> Unit | None:
    power = int(exponent or 1)
    names = words.split()
    if len(names) == 2 and names[0] in _POWER_WORDS:
        power = _POWER_WORDS[names.pop(0)]
    if len(names) != 1:
        return None
    unit = _UNITS.get(names[0]) or _UNITS.get(names[0].removesuffix("s"))
    return (unit,) * power if unit else None
