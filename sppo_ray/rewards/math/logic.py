r"""Formulas of logic, and other operators between symbols that are no numbers: p \land q, p \to q,
\forall x\, P(x).

A formula is an operator and its parts. Two are the same when they are built alike; the order of the
parts counts but for \land, \lor, \oplus and \iff. Equivalent formulas of different build are
different answers: a contrapositive is not what it came from.
"""

from __future__ import annotations

import re

from sppo_ray.rewards.math.syntax import is_one_group, split_outside

COMMUTATIVE = frozenset([r"\iff", r"\oplus", r"\lor", r"\land", r"\cup", r"\cap"])
_LEVELS = ((r"\iff",), (r"\to", r"\gets"), (r"\oplus",), (r"\lor",), (r"\land", r"\wedge"))
"""Operators, those that bind least first."""
_BINARY = tuple(sign for level in _LEVELS for sign in level)
_SIGN = re.compile(r"\\(?:iff|to|gets|oplus|lor|land|wedge|neg|sim|forall|exists|nexists)(?![a-zA-Z])")
_SEPARATORS = (",", ";", "\\\\")
_QUANTIFIED = re.compile(
    r"\\(?P<sign>forall|exists\s*!?|nexists)\s*(?P<name>[a-zA-Z](?:_\{?\w\}?)?)"
    r"\s*(?P<range>(?:\\in|>|<|\\ge|\\le)(?![a-z])[^,:()|]*)?\s*[,:|]?\s*(?P<rest>.+)",
    re.DOTALL,
)
_STATEMENT = re.compile(r"[=<>]|\\(?:le|ge|ne|in|notin|equiv|approx)(?![a-zA-Z])")
_NUMBER = re.compile(r"[-+0-9.,/ ]*(?:\\(?:frac|sqrt|pi)[-+0-9{}\\ a-z]*)?")
_PROPOSITION = re.compile(r"(?:\\neg\s*)*[p-tA-Z]")
_VECTOR = re.compile(r"\\(?:vec|hat|overrightarrow)(?![a-zA-Z])")
_LETTER = r"[()\s]*(?:(?:\\text\{\s*not\s*\}|not\s|\\neg\s)[()\s]*)?[p-tP-T][()\s]*"
_CONNECTIVES = "and|or|xor|if and only if|iff|only if|if|implies"
_IN_WORDS = re.compile(
    rf"{_LETTER}(?:(?:\\text\{{\s*(?:{_CONNECTIVES}|and not|or not)\s*\}}|(?:{_CONNECTIVES})\s){_LETTER})+"
)
"""Letters of propositions with words between them."""
_WORDS = tuple(
    (re.compile(rf"\\text\{{\s*{word}\s*\}}|(?<![a-zA-Z\\{{])(?<!\\text\{{ ){word}(?![a-zA-Z])"), sign)
    for word, sign in (
        ("if and only if", r"\\iff "),
        ("iff", r"\\iff "),
        ("only if", r"\\to "),
        ("if", r"\\gets "),
        ("implies", r"\\to "),
        ("xor", r"\\oplus "),
        ("and not", r"\\land \\neg "),
        ("or not", r"\\lor \\neg "),
        ("or", r"\\lor "),
        ("and", r"\\land "),
        ("not", r"\\neg "),
    )
)

Formula = tuple[str, list[str]]
"""An operator, and its parts as text."""


def has_sign(text: str) -> bool:
    """Whether a sign of logic stands anywhere in a text."""
    return "\\" in text and _SIGN.search(text) is not None


def with_signs(text: str) -> str:
    """Words of logic (or, and, not, xor, implies) as signs, as they are meant beside a formula."""
    for word, sign in _WORDS:
        text = word.sub(sign, text)
    return text


def in_words(text: str) -> str:
    r"""\lor and \land as words, as they are meant between equations: x = 1 \lor x = 2."""
    text = re.sub(r"\\lor(?![a-zA-Z])", r"\\text{ or }", text)
    return re.sub(r"\\(?:land|wedge)(?![a-zA-Z])", r"\\text{ and }", text)


def split_formula(text: str) -> Formula | None:
    """The operator that binds least, and its parts; None where the text is no formula."""
    text = text.strip()
    if not has_sign(text):
        return None
    quantified = _QUANTIFIED.fullmatch(text)
    if quantified:
        bound = "".join(f"{quantified['name']}{quantified['range'] or ''}".split())
        return f"\\{quantified['sign']} {bound}", [quantified["rest"]]
    signs = {sign for sign, _ in split_outside(text, *_SEPARATORS, *_BINARY)}
    if not signs.isdisjoint(_SEPARATORS):
        return None
    level = next((level for level in _LEVELS if not signs.isdisjoint(level)), None)
    if level is not None:
        return _operation(split_outside(text, *level))
    negations = re.match(r"(?:\\(?:neg|sim)(?![a-zA-Z])\s*)+", text)
    if negations:
        return r"\neg" * len(re.findall(r"\\", negations[0])), [text[negations.end() :]]
    if text[0] in "([" and is_one_group(text):
        return split_formula(text[1:-1])
    return None


def is_formula(text: str) -> bool:
    """Whether a text is a formula, in signs or in words: p or not q."""
    formula = split_formula(text)
    if formula is None:
        return _IN_WORDS.fullmatch(text) is not None
    return not is_enumeration(formula)


def is_enumeration(formula: Formula) -> bool:
    r"""Whether \lor or \land stands between equations, inequalities or, \lor, numbers: then it
    lists solutions.
    """
    sign, parts = formula
    statements = [_STATEMENT.search(part) is not None for part in parts]
    numbers = [_NUMBER.fullmatch(part) is not None for part in parts]
    if sign not in (r"\lor", r"\land") or any(has_sign(in_words(part)) for part in parts):
        return False
    if sign == r"\land" and _says_twice(parts):
        return False
    listed = all(one or other for one, other in zip(statements, numbers, strict=True))
    return listed and (any(statements) or sign == r"\lor")


def _says_twice(parts: list[str]) -> bool:
    r"""Whether the same thing would equal, or be in, two things at once: x = 1 \land x = 2."""
    sides = [re.split(r"=|\\in(?![a-zA-Z])", part, maxsplit=1) for part in parts]
    return all(len(one) == 2 for one in sides) and len({one[0].strip() for one in sides}) == 1


def _operation(pieces: list[tuple[str, str]]) -> Formula | None:
    signs, parts = {sign for sign, _ in pieces[1:]}, [part for _, part in pieces]
    if not all(parts) or signs == {r"\to", r"\gets"}:
        return None
    if signs == {r"\gets"}:  # p \gets q is q \to p
        return r"\to", parts[::-1]
    if r"\wedge" in signs or (r"\land" in signs and any(map(_VECTOR.search, parts))):
        propositions = all(map(_PROPOSITION.fullmatch, parts)) or any(map(_STATEMENT.search, parts))
        exterior = not propositions and not all(map(_NUMBER.fullmatch, parts))
        return (r"\wedge" if exterior else r"\land"), parts
    return pieces[1][0], parts
