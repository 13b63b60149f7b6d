"""Finding the final answer in a response: the last one decides, and only that one."""

from __future__ import annotations

import re

_BOX_OPENS = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_BRACE_OR_ESCAPE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is text, not structure
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} (or \fbox, \framebox), stripped; None when there is none or it is empty.

    The box that OPENS last decides: earlier boxes never count, whatever they hold, and a last box that is never
    closed (a truncated response) is no answer. Linear in the length of the text.
    """
    start = max((match.end() for match in _BOX_OPENS.finditer(text)), default=None)
    if start is None:
        return None
    depth = 1
    for token in _BRACE_OR_ESCAPE.finditer(text, start):
        if token.group() == "{":
            depth += 1
        elif token.group() == "}":
            depth -= 1
        if depth == 0:
            return text[start : token.start()].strip() or None
    return None


def last_tagged(text: str) -> str | None:
    """Content of the last <answer>...</answer>, stripped; None when there is none or it is empty."""
    found = _ANSWER_TAG.findall(text)
    return (found[-1].strip() or None) if found else None


def final_answer(text: str) -> str | None:
    """The last box, or else the last answer tag, without white space: what a verifier without a reading of its own answers."""
    answer = last_boxed(text) or last_tagged(text)
    return None if answer is None else "".join(answer.split())
