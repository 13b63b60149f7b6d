"""Finding the final answer in a response: the last one decides, and only that one."""

from __future__ import annotations

import re

_BOX_OPENS = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_BRACE_OR_ESCAPE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is text, not structure
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n`]*$", re.MULTILINE)
_PYTHON = frozenset(["python", "python3", "py", "py3"])
_MARK_OF_ANSWER = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|<answer>|```", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} (or \fbox, \framebox), stripped; None when there is none or it is empty.

    The box that OPENS last decides: earlier boxes never count, whatever they hold, and a last box that is never
    closed (a truncated response) is no answer. Thinking does not count (`without_thinking`). Linear in the length of the text.
    """
    text = without_thinking(text)
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
    found = _ANSWER_TAG.findall(without_thinking(text))
    return (found[-1].strip() or None) if found else None


def final_answer(text: str) -> str | None:
    """The last box, or else the last answer tag, without white space: what a verifier without a reading of its own answers."""
    answer = last_boxed(text) or last_tagged(text)
    return None if answer is None else "".join(answer.split())


def last_program(text: str) -> str | None:
    """The last fenced Python block after the thinking; None when there is none, it is empty, or it is never closed.

    A block without a language counts only where no block names Python; other languages never do. Linear in the text.
    """
    blocks: list[tuple[str, str | None]] = []
    opened: re.Match[str] | None = None
    text = without_thinking(text)
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif not fence[1]:
            blocks.append((opened[1].casefold(), text[opened.end() : fence.start()].strip("\n")))
            opened = None
    if opened is not None:  # truncated inside its last block
        blocks.append((opened[1].casefold(), None))
    python = [code for language, code in blocks if language in _PYTHON] or [code for language, code in blocks if not language]
    return python[-1] if python and python[-1] and python[-1].strip() else None


def without_thinking(text: str) -> str:
    """What follows the last </think>; nothing when thinking was begun and never ended."""
    before, closes, after = text.rpartition("</think>")
    if closes:
        return after
    return "" if "<think>" in before + after else text


def without_echo(response: str, prompt: str) -> str:
    """The response without copies of a prompt that carries the mark of an answer (a box, an answer tag, a code fence).

    A prompt with a worked example answers itself otherwise: repeating it would be rewarded. Other prompts may be short
    enough to occur in an honest response, and can do no harm.
    """
    if not prompt or prompt not in response or not _MARK_OF_ANSWER.search(prompt):
        return response
    return response.replace(prompt, "\n")
