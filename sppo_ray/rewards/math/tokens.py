r"""Splitting an expression into tokens: numerals (0.1\overline{6} included), commands, names and
signs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction


class Unreadable(Exception):
    """The text is no expression that this reader knows."""


Token = tuple[str, str]
"""A kind and a text."""


FUNCTIONS = frozenset([
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc",
    "asin", "acos", "atan", "sinh", "cosh", "tanh", "coth", "arcsinh", "arccosh", "arctanh", "ln", "log",
    "lg", "exp",
])  # fmt: skip
TIMES = frozenset(["*", r"\cdot", r"\times", r"\ast", r"\bullet"])
OF_SEVERAL = frozenset(["gcd", "lcm", "max", "min"])
SAME_FUNCTION = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}
CONSTANTS = {
    "pi": "pi",
    "infty": "inf",
    "inf": "inf",
    "infinity": "inf",
    "oo": "inf",
    "e": "e",
    "i": "i",
    "mathrm e": "e",
}
GREEK = frozenset([
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota",
    "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi",
    "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell",
    "hbar",
])  # fmt: skip
MARKS = frozenset(
    [
        "overline",
        "vec",
        "hat",
        "bar",
        "tilde",
        "overrightarrow",
        "widehat",
        "widetilde",
        "dot",
        "ddot",
        "angle",
    ]
)
_MARKS_BEHIND = frozenset(["_", "'", "("])
"""A name with one of them is no factor of a row."""
_OPERATORS = frozenset([
    "mod", "div", "xor", "nor", "not", "and", "det", "arg", "deg", "dim", "ker", "sup", "lim", "per", "cov",
    "var", "adj", "sgn",
])  # fmt: skip
"""Words of three letters that are no product of variables."""
_CHOOSE = re.compile("[a-z][CP][a-z]")
_MAX_DIGITS = 4000

_DOT = r"\\dot\s*\{?[0-9]\}?"
_RECURRING = (
    r"[0-9]*\.(?:[0-9]*\\(?:overline|bar)\{[0-9]+\}|[0-9]*\([0-9]+\)"
    rf"|[0-9]*{_DOT}(?:[0-9]*{_DOT})?|[0-9]+(?:\\[lc]?dots|\.\.\.|…))"
)
_PLAIN = (
    r"(?:{whole})(?:\.[0-9]+|\.(?![0-9.]))?(?:[eE][+-]?[0-9]{{1,3}}(?![0-9A-Za-z.]))?"
    r"|\.[0-9]+(?:[eE][+-]?[0-9]{{1,3}})?"
)
_GROUPS = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"


def _pattern(whole: str) -> re.Pattern[str]:
    parts = (
        ("recurring", _RECURRING), ("number", _PLAIN.format(whole=whole)), ("command", r"\\[A-Za-z]+|\\."),
        ("word", "[A-Za-z]+"), ("sign", r"\*\*|[-+*/^_!%|(){}\[\],'=]"), ("space", r"\s+"),
    )  # fmt: skip
    return re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in parts), re.DOTALL)


_TOKENS = {True: _pattern(_GROUPS), False: _pattern("[0-9]+")}


def numeral(text: str) -> tuple[Fraction, int | None]:
    """The value of a decimal numeral and its number of decimal places (None for an integer)."""
    if len(text) > _MAX_DIGITS:
        raise Unreadable("a numeral of too many digits")
    text = text.replace(",", "").rstrip(".")
    mantissa = re.split("[eE]", text)[0]
    return Fraction(text), len(mantissa.partition(".")[2]) if "." in mantissa else None


def recurring(text: str) -> Fraction:
    """The value of 0.1\\overline{6}, 0.\\dot{1}4\\dot{2}, 0.1(6) or 0.1666... Raises Unreadable
    where nothing recurs.
    """
    whole, _, digits = text.partition(".")
    marked = re.fullmatch(r"([0-9]*)(?:\\(?:overline|bar)\{([0-9]+)\}|\(([0-9]+)\))", digits)
    if marked:
        start, period = marked[1], marked[2] or marked[3]
    elif "dots" in digits or digits[-1] in ".…":
        start, period = _repeated(re.match("[0-9]*", digits).group())
    else:
        found = re.fullmatch(r"([0-9]*)\\dot\s*\{?([0-9])\}?(?:([0-9]*)\\dot\s*\{?([0-9])\}?)?", digits)
        start, period = found[1], found[2] + (found[3] or "") + (found[4] or "")
    if len(whole) + len(start) + len(period) > _MAX_DIGITS:
        raise Unreadable("a numeral of too many digits")
    return Fraction(f"{whole or 0}.{start or 0}") + Fraction(
        int(period), 10 ** len(start) * (10 ** len(period) - 1)
    )


def _repeated(digits: str) -> tuple[str, str]:
    """The digits before the period, and the shortest period that fills at least the two last places
    twice.
    """
    for length in range(1, len(digits) // 2 + 1):
        period = digits[-length:]
        start = digits
        while start.endswith(period):
            start = start[:-length]
        if len(digits) - len(start) >= max(2 * length, 2):
            return start, period
    raise Unreadable("an ellipsis after digits that do not recur")


def tokens(text: str, grouped: bool) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _TOKENS[grouped].match(text, position)
        if match is None:
            raise Unreadable(f"unknown sign {text[position]!r}")
        position = match.end()
        if match.lastgroup != "space":
            yield from (
                _words(match.group())
                if match.lastgroup == "word"
                else [(match.lastgroup or "", match.group())]
            )


def _words(run: str) -> Iterator[tuple[str, str]]:
    """A run of letters as a known name, or as variables that are multiplied."""
    if (
        run in FUNCTIONS
        or run in OF_SEVERAL
        or run in ("sqrt", "abs", "floor", "ceil")
        or run.casefold() in CONSTANTS
        or run in GREEK
    ):
        yield "name", run
        return
    for name in ("sqrt", "sin", "cos", "tan", "ln", "log", "pi"):
        if run.startswith(name) and len(run) == len(name) + 1:
            yield from (("name", name), ("name", run[-1]))
            return
    if len(run) > 3 or run in _OPERATORS:
        raise Unreadable(f"unknown word {run!r}")
    if len(run) > 1 and (run.isupper() or _CHOOSE.fullmatch(run)):  # AB, a segment; IV; a word; nCr
        yield "name", run
        return
    yield from (("name", letter) for letter in run)


def in_rows(given: list[Token]) -> list[Token]:
    """Capitals side by side as one name, A B as AB, where no small letters are; A^TB as A^T B."""
    given = [part for place, token in enumerate(given) for part in _split(token, given[place - 1 : place])]
    names = [text for kind, text in given if kind == "name" and text not in FUNCTIONS]
    if len(names) < 2 or any(len(text) == 1 and text.islower() for text in names):
        return given
    found: list[Token] = []
    for token, behind in zip(given, [*given[1:], ("end", "")], strict=True):
        row = found[-1][1] + token[1] if found and found[-1][0] == token[0] == "name" else ""
        before = found[-2] if len(found) > 1 else ("", "")
        argument = before[1] in ("^", "**", "_") or (before[0] == "command" and before[1] not in TIMES)
        if (
            row.isupper()
            and not argument
            and behind[1] not in _MARKS_BEHIND
            and row.casefold() not in CONSTANTS
        ):
            found[-1] = ("name", row)
        else:
            found.append(token)
    return found


def _split(token: Token, before: list[Token]) -> list[Token]:
    """The first of several capitals alone, where it is an exponent."""
    text = token[1]
    exponent = bool(before) and before[0][1] in ("^", "**")
    if token[0] != "name" or len(text) < 2 or not text.isupper() or not exponent:
        return [token]
    return [("name", text[0]), ("name", text[1:])]


def raise_if(condition: bool, what: str) -> None:
    if condition:
        raise Unreadable(what)
