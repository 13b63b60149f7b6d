"""What stands around the last number or formula of a text: a sign, or more of a value that it is
only a part of.
"""

from __future__ import annotations

import re

DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe58\ufe63\uff0d", "-"))
_NEARBY = 40  # characters
_SIGN = re.compile(
    r"(?P<minus>-|\b(?:minus|negative)\b)?(?:\\[A-Za-z]+|\\,|[\s$£€¥\\({*])*\Z", re.IGNORECASE
)
_VERB = re.compile(r"\b(?:is|are|be|equals?|gets?|gives?)\s*\Z", re.IGNORECASE)
_PART_OF_MORE_BEFORE = re.compile(
    r"""(?: [0-9)}$][ \t]*(?:/|÷|\\div|\\over|[+×·]|\*{1,2})
          | [\^_√]
          | \\(?:[dt]?frac\s*\{[^{}]*\}|sqrt(?:\[[^\]]*\])?|binom\s*\{[^{}]*\})
          | [0-9)}$]\s*\b(?:plus|times|over|divided\s+by|to\s+the\s+power(?:\s+of)?)\b
        ) [\s{($]*-?\Z""",
    re.IGNORECASE | re.VERBOSE,
)
_PART_OF_MORE_BEHIND = re.compile(
    r"""[\s$})]*
        (?: !(?=\s*\S) | !\Z | \\?% | \^ | [*×·÷/][A-Za-z(] | [÷/][ \t]*[$\\]*[0-9]
          | \\(?:cdot|times|div|over)(?![a-z]) | per\s?cent\b
          | (?:hundred|thousand|million|billion|trillion|dozen|score|lakh|crore)s?\b
        ) | [ $})]*(?:[²³½⅓⅔¼¾π√‰]|i(?![A-Za-z])|\\pi(?![a-z]))""",
    re.IGNORECASE | re.VERBOSE,
)


def is_part_of_more(text: str, start: int, end: int) -> bool:
    """Whether `text[start:end]` is only a part of a value: "3/7", "2^7", "7%", "7 million"."""
    before, behind = text[:start][-_NEARBY:], text[end:][:_NEARBY]
    return bool(_PART_OF_MORE_BEFORE.search(before) or _PART_OF_MORE_BEHIND.match(behind))


def sign(text: str, start: int) -> int | None:
    """Return the sign before `text[start:]`, 1 or -1, as in -$7, minus 7 and 5 - 9 = -4; None where
    it may belong to a number before it: 5-9.

    Behind a word or a number, but not a verb, a dash with a space behind it is no sign: 5 - 9 ends
    in 9.
    """
    before = text[:start][-_NEARBY:]
    found = _SIGN.search(before)
    if found is None or not found["minus"]:
        return 1
    if found["minus"] != "-":
        return -1
    left, is_apart = before[: found.start()], before[found.end("minus") :].startswith(" ")
    if is_apart and re.search(r"[\w)}]\s*\Z", left) and not _VERB.search(left):
        return 1
    return None if re.search(r"[0-9)}]\s*\Z", left) else -1
