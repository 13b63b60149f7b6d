"""Looking at LaTeX as text: where it splits, whether a side of an equation is a name or an
operation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sppo_ray.rewards.math.tokens import GREEK
from sppo_ray.rewards.math.words import canonical_words

_OPENS, _CLOSES = (
    ("(", "[", "{", r"\{", r"\lfloor", r"\lceil", r"\lvert"),
    (")", "]", "}", r"\}", r"\rfloor", r"\rceil", r"\rvert"),
)
_PIECE = re.compile(r"\\(?:begin|end)\s*\{[a-zA-Z*]+\}|\\text\s*\{[^{}]*\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
_CONNECTIVE = re.compile(
    r"(?:,\s*)?\\text\{\s*,?\s*(or|and)\s*\}|(?:,\s*)?(?<![a-zA-Z\\])(or|and)(?![a-zA-Z])"
)
_NAME = re.compile(
    r"(?:\\(?:text|overline|vec|hat|bar|overrightarrow|mathbf)\{[^{}]*\}"
    r"|m?\s*\\(?:angle|triangle|measuredangle)\s*[A-Za-z]{1,4}|\\[a-zA-Z]+|[A-Za-z]+)"
    r"(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?'*(?P<applied>(?:\^\{?-1\}?)?(?:\([^()]*\))?)|\|[A-Z]{1,3}\||\[[A-Z]{3,}\]"
)
_OTHER_VALUE = re.compile(
    r"\b(?:half|third|quarter|twice|thrice|double|triple|times|not|never|no|isn't|except|without|wrong|incorrect|false|minus"
    r"|negative|reciprocal|inverse|opposite|squared|cubed|divided|multiplied|plus|less|more|complement|other|another|previous"
    r"|guess|maybe|perhaps|possibly|if|(?:square|cube|root|power|log|logarithm|conjugate|derivative|sine|cosine|tangent)\s+of"
    r")\b|\\overline\{[wz]\}",
    re.IGNORECASE,
)
"""Names of another value than the answer's: \\text{half of the answer}."""
_OPERATORS = re.compile(
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc|sinh|cosh|tanh)|a?(?:sin|cos|tan)|log|ln|lg|exp|sqrt|cbrt|abs|floor|ceil|round"
    r"|arg|sgn|sign|max|min|gcd|lcm|det|lim|mod",
    re.IGNORECASE,
)
"""What a word does that is no name."""
_NAMING = (
    "text", "overline", "vec", "hat", "bar", "overrightarrow", "mathbf", "angle", "measuredangle", "triangle",
)  # fmt: skip
_COMPUTES = re.compile(
    r"""\{[^{}]*(?: [0-9][a-z] | [-+*/^=]\s*[0-9a-z] | [!%]
      | \b(?:over|choose|million|billion|thousand|percent|reversed|extraneous|distractor)\b
      | \b(?:log|ln|sin|cos|tan|sqrt|abs|exp)\s+[a-z]\b
      | \b(?:of|and|by|one|two|three|four|five|six|seven|eight|nine|ten)\s+[b-z]\b )
      | \{\s*[0-9]+\s+[a-z]""",
    re.IGNORECASE | re.VERBOSE,
)
"""\\text{2x}, \\overline{x+1}, \\text{half of x}; not \\text{Area}_{2}."""
_APPLIED = re.compile(r"(?:[fghFGHPpqQTSVNAEBCDRLMw]|\\[A-Za-z]+)[^(^]*(?:\^\{?-1\}?)?\([^()]*\)$")
"""A function of a point: f(2), f^{-1}(4), P(A)."""
_LONG_OPERATION = re.compile(
    r"\\(?:lim|sum|prod|i*int|oint|max|min|sup|inf|limsup|liminf|frac\{d\}|det|gcd|lcm)(?![a-zA-Z])"
)


def is_name(text: str) -> bool:
    """Whether a side of an equation only names what it says: x, x_1, f(2), \\angle ABC, AB,
    \\text{Area}.
    """
    text = text.strip()
    if re.fullmatch(r"\\[dt]?frac\{[A-Z]{2,3}\}\{[A-Z]{2,3}\}|[A-Z]{2,3}\s*[/:]\s*[A-Z]{2,3}", text):
        return True  # a ratio of two segments
    match = _NAME.fullmatch(text)
    if match is None or _OTHER_VALUE.search(text):
        return False
    if match["applied"] and not _APPLIED.match(text):
        return False  # x(x+1), x^{-1}
    word = re.match(r"\\?([a-zA-Z]+)", text)
    if word and text.startswith("\\"):
        return (word[1] in _NAMING and not _COMPUTES.search(text)) or word[1] in GREEK
    letters = re.match("[A-Za-z]+", text)
    if letters and _OPERATORS.match(letters[0]):
        return False  # cosx, sqrt, LOG
    return letters is None or len(letters[0]) == 1 or letters[0].isupper() or len(letters[0]) > 3


def is_long_operation(text: str) -> bool:
    """Whether a side is a limit, sum, integral, derivative or the like."""
    return bool(_LONG_OPERATION.match(text.strip()))


def split_outside(text: str, *separators: str) -> list[tuple[str, str]]:
    """Pieces of the text and the separator before each, where no bracket is open; separators are
    single pieces of LaTeX.
    """
    parts, current, sign, depth = [], [], "", 0
    for piece in _PIECE.findall(text):
        if piece in _OPENS or piece.startswith(r"\begin"):
            depth += 1
        elif piece in _CLOSES or piece.startswith(r"\end"):
            depth -= 1
        found = _separator(piece, separators) if depth <= 0 else None
        if found is None:
            current.append(piece)
        else:
            parts.append((sign, "".join(current).strip()))
            current, sign = [], found
    return [*parts, (sign, "".join(current).strip())]


def connected(text: str) -> str:
    r"""Each "or" and "and" as \text{or} and \text{and}, a comma before it gone."""
    return _CONNECTIVE.sub(r"\\text{\1\2}", text)


def _separator(piece: str, separators: Sequence[str]) -> str | None:
    if piece in separators:
        return piece
    if piece.startswith(r"\text"):
        word = canonical_words(piece).strip(", ")
        return word if word in separators else None
    return None


def is_one_group(text: str) -> bool:
    """Whether the bracket that the text begins with is closed at its end."""
    depth, pieces = 0, _PIECE.findall(text)
    for index, piece in enumerate(pieces):
        depth += (piece in _OPENS) - (piece in _CLOSES)
        if depth == 0:
            return index == len(pieces) - 1
    return False
