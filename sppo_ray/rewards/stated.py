"""The answer of a response without a box: what its last "the answer is" states."""

from __future__ import annotations

import re
from collections import deque

from sppo_ray.rewards import nearby
from sppo_ray.rewards.extract import last_boxed, without_thinking

# possessive quantifiers: a long line of spaces takes linear time
_CLAIM = re.compile(
    r"(?<!as a )\b(?:answer|result)\b(?P<between>[^\n.:=]{0,40}?)"
    r"(?:\b(?P<verb>is|equals|isn't|was|be)\b\s{0,3}:?|:|=)\s*+\**+\s*+",
    re.IGNORECASE,
)
_OF_THE_QUESTION = re.compile(
    r"(?:\s*(?:\*+|(?:to|of|for|in|this|that|the|your|our|question|problem|exercise|here|therefore|thus|then"
    r"|hence|simplest|form|so)\b))*\s*",
    re.IGNORECASE,
)
"""What may stand between "answer" and "is"."""
_BEFORE_A_CLAIM = 60  # characters
_LEADS_TO_A_CLAIM = re.compile(
    r"""(?: .*\b(?: so | thus | therefore | hence | then | conclude | get | find | see | have | know | means
                  | implies | that | and | is | be | as | since )\b ,? \s* | .*,\s* )?
        [*\#>\s]* (?:the|our|my|this|its|your)? \s*
        (?:(?:final|correct|required|desired|numeric|numerical|exact|simplified|overall|complete)\s*|[*\#>\s]+)*
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_DENIES = re.compile(
    r"\b(?:not|cannot|never|impossible|unlikely|wrong|false|doubt|might|if|unless|whether|suppose|assume"
    r"|assuming)\b|n't\b",
    re.IGNORECASE,
)
_TAKES_BACK = re.compile(
    r"""\b(?: wait | actually | alternatively | instead | should\s+be | might\s+be | may\s+be | rather
            | wrong | incorrect | false | mistaken? | oops | sorry | error | hmm | recheck
            | second\s+thought | correction | minus | negative )\b
      | ^\W*(?:or|no)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_GIVES_A_REASON = re.compile(r"\W*(?:since|because|as)\b", re.IGNORECASE)
_DENIED_FORMULA = re.compile(r"\band\s+not\s+(?:\$[^$]*\$|[^\s,.;]+)", re.IGNORECASE)
_WORDS = re.compile(r"\s[A-Za-z]+(?:[ -][A-Za-z]+)*")
_BEFORE_THE_ANSWER = re.compile(
    r"""(?:
        (?: approximately | about | around | roughly | exactly | just | simply
          | therefore | thus | then | hence | indeed | clearly
          | equal | to | given | by | the | (?-i:an?)
          | number | value | set | interval | point | function | expression | matrix | vector
          | choice | option
        )\b [\s,:]*+
      | \*
    )*""",
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
# without 5x, but 5cm
_NUMBER = re.compile(
    r"(?<![\w.])[0-9][0-9,]*+(?:\.[0-9]++|(?!\.[0-9]))(?:/[0-9]++|(?!/[0-9]))(?![A-Za-z](?![A-Za-z]))"
)
_DIGIT = re.compile(r"[0-9]")
_PERCENT = re.compile(r"\s{0,3}(?:\\?%|per\s?cent\b)", re.IGNORECASE)


def last_stated(text: str) -> str | None:
    """Return the answer of a response without a box: what the last "the answer is" states, else the
    last formula, else the last number. None where the statement is of something else ("half the
    answer is"), is denied or taken back. Linear in the length of the text.
    """
    text = without_thinking(text)
    if "\\boxed" in text:
        return last_boxed(text)
    claims = deque(_CLAIM.finditer(text), maxlen=1)
    if claims:
        return _claimed(claims[0], text)
    return _last_value(text.translate(nearby.DASHES))


def _last_value(text: str) -> str | None:
    """Return the last formula, else the last number, with the sign before it; None for a part of a
    greater value.
    """
    formulas = _formulas(text)
    if formulas:
        content, start, end = formulas[-1]
        is_number = _NUMBER.fullmatch(content.strip())
    else:
        start, end = [(0, 0), *(one.span() for one in _NUMBER.finditer(text))][-1]
        content, is_number = text[start:end], True
        if not content or _DIGIT.search(text, end):  # the last one is part of a word
            return None
    is_percent = _PERCENT.match(text, end)
    if not is_percent and nearby.is_part_of_more(text, start, end):
        return None
    sign, content = nearby.sign(text, start), content.strip().rstrip(",")
    if not content or sign is None or (sign < 0 and not is_number):
        return None
    return f"{'-' * (sign < 0)}{content}{chr(92) + '%' if is_percent else ''}"


def _claimed(claim: re.Match[str], text: str) -> str | None:
    """Return what "the answer is" states."""
    before = text[max(0, claim.start() - _BEFORE_A_CLAIM) : claim.start()]
    sentence = re.split(r"[\n.!?;:]", before)[-1]
    is_answer = (
        (claim["verb"] or "is").casefold() in ("is", "equals")
        and _OF_THE_QUESTION.fullmatch(claim["between"])
        and _LEADS_TO_A_CLAIM.fullmatch(sentence)
        and not _DENIES.search(sentence)
    )
    place, _, following = text[claim.end() :].partition("\n")
    if not is_answer or _TAKES_BACK.search(following):
        return None
    return _answer_at(place)


def _answer_at(place: str) -> str | None:
    """Return what the words behind "the answer is" begin with: a formula, with its unit, or text up
    to the next clause; several answers as they are written; None of one that goes on: $5$ plus $3$.
    """
    place = place[_BEFORE_THE_ANSWER.match(place).end() :].strip()  # type: ignore[union-attr]  # or ""
    formulas = _formulas(place)
    is_formula = bool(formulas) and formulas[0][1] == 0
    end = formulas[0][2] if is_formula else 0
    if _ANOTHER_FORMULA.match(place, end) if is_formula else _ANOTHER_FORMULA.search(place):
        return place
    clause = _AFTER_THE_ANSWER.search(place, end)
    begins = clause.start() if clause else len(place)
    words, rest = place[end:begins], _DENIED_FORMULA.sub("", place[begins:])
    if _TAKES_BACK.search(rest):
        return None
    goes_on = not rest.startswith(".") and not _GIVES_A_REASON.match(rest)
    if goes_on and (_NUMBER.search(rest) or _formulas(rest)):
        return None
    if not is_formula:
        return words.strip().rstrip("*. ") or None
    words = words.rstrip(" .*,;:")
    if not words:
        return formulas[0][0].strip() or None
    return rf"{formulas[0][0].strip()}\text{{{words}}}" if _WORDS.fullmatch(words) else None


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
