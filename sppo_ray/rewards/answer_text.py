r"""Reading a final answer as text before any algebra: clean LaTeX, plain numbers, words, number bases.

What is decided here is decided exactly and in microseconds; only the rest goes to SymPy. Units are in `units`.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u2014": "-", "\uff0d": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "∅": r"\emptyset ",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "",
    }
    | {chr(mark): "" for mark in (*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # directions
    | {one: "\\frac{{{0.numerator}}}{{{0.denominator}}}".format(Fraction(unicodedata.numeric(one)).limit_denominator(10))
       for one in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
    | {chr(0xFF01 + i): chr(0x21 + i) for i in range(94) if i != 12}  # full-width forms of ASCII
)  # fmt: skip
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_SPACING = re.compile(r"\\\\|\\!\s*|\\[,;:> ]|\\q?quad(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])|\\phantom\{[^{}]*\}|~|\s+")
STYLE = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname|boldsymbol|bm)\s*"
_WHOLE_STYLE = re.compile(STYLE + r"\{([^{}]*)\}")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_ROOT_SIGN = re.compile(r"√\s*([0-9]+|[a-zA-Z])?")
_REWRITES = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"\\log\s*_\s*(?:e|\{\s*e\s*\})", r"\\ln "),
        (r"\\lg(?![a-zA-Z])", r"\\log_{10}"),
        (r"\\math(?:rm|it)\s*\{\s*([ie])\s*\}", r"\1"),
        (r"\\(?:left\s*)?\\?langle(?![a-zA-Z])", "("),
        (r"\\(?:right\s*)?\\?rangle(?![a-zA-Z])", ")"),
        (r"\\left\s*[(\[]\s*\\begin\{array\}\{[clr| ]*\}", r"\\begin{pmatrix}"),
        (r"\\end\{array\}\s*\\right\s*[)\]]", r"\\end{pmatrix}"),
        (r"\\(sin|cos|tan|cot|sec|csc)\s*\(?\s*([0-9]+)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*\)?", r"\\\1(\\frac{\2\\pi}{180})"),
        (r"^\s*(?:=|\\approx(?![a-zA-Z]))\s*", ""),
        (r"^([-+]?)([0-9]+) ([0-9]+)/([0-9]+)$", r"\1\2\\frac{\3}{\4}"),
    )
)
_WRAPPED = re.compile(r"\\(?:underline|overbrace|(?:text)?color\s*\{[a-z]+\})\s*\{([^{}]*)\}")
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_PHRASES = {"infinity": r"\infty", "empty set": r"\emptyset", "the empty set": r"\emptyset"} | dict.fromkeys(
    ("all real numbers", "all reals", "the real numbers"), r"\mathbb{R}"
)
_SET_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![a-zA-Z])\s*")


def tidy(text: str) -> str:
    """The same answer without Unicode look-alikes, delimiters, spacing commands, currency signs and final dots."""
    text = _ROOT_SIGN.sub(lambda root: f"\\sqrt{{{root[1]}}}" if root[1] else r"\sqrt ", text)
    text = _SUPERSCRIPT.sub(lambda digits: f"^{{{digits.group().translate(_SUPERSCRIPTS)}}}", text)
    text = text.translate(_UNICODE).strip()
    text = re.sub(r",\s*\\!\s*|\{,\}", ",", text)
    text = _SPACING.sub(_space, text).strip()
    text = text.rstrip(" .,;") if not text.endswith("\\,") else text
    for opens, closes in _DELIMITERS:
        if len(text) > len(opens) + len(closes) and text.startswith(opens) and text.endswith(closes):
            text = text[len(opens) : -len(closes)].strip().rstrip(" .,;")
    text = _rewrite(_unbraced(re.sub(r"\\?\$\s*|[€£]\s*", "", text)))
    styled = _WHOLE_STYLE.fullmatch(text)
    if styled and as_number(styled[1].strip()) is not None:
        text = styled[1].strip()
    return _SET_MEMBER.sub("", text, count=1) if _SET_MEMBER.match(text) else text


def _unbraced(text: str) -> str:
    """Without the braces that enclose all of it."""
    while text.startswith("{") and _closes_at(text) == len(text) > 2:
        text = text[1:-1].strip()
    return text


def _closes_at(text: str) -> int | None:
    """Where the brace that the text begins with is closed; None when it never is."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return token.end()
    return None


def _rewrite(text: str) -> str:
    """Other notations of the same in the one that the parser reads."""
    text = _WRAPPED.sub(r"\1", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if _GROUPED.fullmatch(text):
        text = text.replace(" ", "")
    number = as_number(text) if "e" in text.casefold() else None
    if number is not None and number.denominator == 1:  # 6e4: to the parser, e is Euler's number
        text = str(number)
    return _PHRASES.get(canonical_words(text), text) if text[-1:].isalpha() or text[-1:] == "}" else text


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
_STYLED_PART = re.compile(STYLE + r"\{([^{}]*)\}")


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


_SAYS = r"(?:option|choice|answer)"
_CHOICE = re.compile(rf"{_SAYS}?\s*(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:])\s*(.*)|{_SAYS}\s+([A-J])")
_ANOTHER_CHOICE = re.compile(r"\b[A-J]\b|\bor\b|\band\b|\bnot\b")


def as_choice(text: str) -> str | None:
    """The letter of an answer to a multiple-choice question that says more than the letter: `(B) 12`, `B. yes`, `option B`.

    None when it names another letter as well.
    """
    match = _CHOICE.fullmatch(" ".join(_STYLED_PART.sub(r"\1", text).split()))
    if match is None or _ANOTHER_CHOICE.search(match[3] or ""):
        return None
    return match[1] or match[2] or match[4]


# ------------------------------------------------------------------------------------------------- number bases

_BASED = re.compile(r"\(?([0-9A-Fa-f]+)\)?\s*_\s*(?:\{\s*(?:\\text\s*\{)?\s*([a-z]+|[0-9]+)\s*\}?\s*\}|([0-9]))")
_BASE_WORDS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
               "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip


def as_based(text: str) -> tuple[str, str | None] | None:
    """Digits and base of 52_8 or 52_{eight}; (digits, None) of plain digits; None of anything else."""
    match = _BASED.fullmatch(text)
    if match:
        base = match[2] or match[3]
        return match[1].upper(), _BASE_WORDS.get(base, base)
    return (text.upper(), None) if re.fullmatch(r"[0-9][0-9A-Fa-f]*", text) else None
