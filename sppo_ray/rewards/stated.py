"""The answer of a response without a box: what its last "the answer is" states."""

from __future__ import annotations

import re
from collections import deque

from sppo_ray.rewards.extract import last_boxed, without_thinking

# possessive quantifiers: a long line of spaces takes linear time
_STATED = re.compile(
    r"(?:answer|result)\b[^\n.:]{0,40}?(?:\bis\b\s{0,3}:?|:|=)\s*+\**+\s*+([^\n]+)", re.IGNORECASE
)
_BEFORE_A_STATEMENT = 60  # characters
_DENIES = re.compile(
    r"\b(?:not|cannot|never|impossible|unlikely|wrong|if|unless|whether|suppose|assume|assuming)\b|n't\b",
    re.IGNORECASE,
)
_BEFORE_THE_ANSWER = re.compile(
    r"""(?:
        (?: approximately | about | around | roughly | exactly | just | simply
          | therefore | thus | then | hence | indeed | clearly
          | equal | to | given | by | the | (?-i:an?)
          | number | value | set | interval | point | function | expression | matrix | vector
          | choice | option
        )\b [\s,:]*+
      | \*
    )*+""",
    re.IGNORECASE | re.VERBOSE,
)
_AFTER_THE_ANSWER = re.compile(
    r"""[,;]\s | \.(?:\s|$)
      | \s(?: since | because | as | so | when | where | for | if | with | which | but
            | and\s+not | not )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_ANOTHER_FORMULA = re.compile(
    r"""\s{0,3}
    (?: [,;/&] | \bor\b | \band\b(?!\s+not\b) | to\b )
    \s{0,3} (?:(?:or|and)\s{1,3})?
    (?= \$ | \\\( | \\\[ | [0-9-] | \(?(?-i:[A-J])\b )""",
    re.IGNORECASE | re.VERBOSE,
)
_MATHS_OPENS = re.compile(r"\$\$|\$|\\\(|\\\[")
_MATHS_CLOSES = {"$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]"}
_NUMBER = re.compile(r"(?<![\w.])-?\$?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?")


def last_stated(text: str) -> str | None:
    """Return the answer of a response without a box: what the last "the answer is" states, else the
    last formula, else the last number; None where the statement is denied. Linear in the length of
    the text.
    """
    text = without_thinking(text)
    if "\\boxed" in text:
        return last_boxed(text)
    stated = deque(_STATED.finditer(text), maxlen=1)
    if stated:
        begins = stated[0].start()
        before = text[max(0, begins - _BEFORE_A_STATEMENT) : begins]
        return None if _DENIES.search(re.split(r"[\n.]", before)[-1]) else _stated_in(stated[0][1])
    formulas = _formulas(text)
    if formulas:
        return formulas[-1][0].strip() or None
    numbers = _NUMBER.findall(text)
    return numbers[-1].rstrip(",") if numbers else None


def _stated_in(place: str) -> str | None:
    """Return what the words behind "the answer is" begin with: a formula, or text up to the next
    clause. Several answers, and one behind other words ("less than"), are returned as they are
    written.
    """
    place = place[_BEFORE_THE_ANSWER.match(place).end() :]  # type: ignore[union-attr]  # it may be empty
    formulas = _formulas(place)
    if formulas and not place[: formulas[0][1]].strip():
        content, _, end = formulas[0]
        return place if _ANOTHER_FORMULA.match(place, end) else content.strip() or None
    if _ANOTHER_FORMULA.search(place):
        return place.strip()
    clause = _AFTER_THE_ANSWER.search(place)
    return place[: clause.start() if clause else None].strip().rstrip("*. ") or None


def _formulas(text: str) -> list[tuple[str, int, int]]:
    r"""Return content, start and end of each `$...$` on one line, `$$...$$`, `\(...\)` or
    `\[...\]`. A closing mark that is missing once is not looked for again.
    """
    found, at = [], 0
    missing: set[str] = set()
    while opened := _MATHS_OPENS.search(text, at):
        mark, begins = opened.group(), opened.end()
        closes = _MATHS_CLOSES[mark]
        end = -1 if closes in missing else text.find(closes, begins + (mark != "$"))
        if end < 0:
            missing.add(closes)
        if end <= begins or (mark == "$" and "\n" in text[begins:end]):
            at = opened.start() + 1
        else:
            at = end + len(closes)
            found.append((text[begins:end], opened.start(), at))
    return found
