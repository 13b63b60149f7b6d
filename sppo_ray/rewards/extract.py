"""Find the final answer in a response: only the last one counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import dedent

_BOX = r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s{0,3}"
_BOX_OPENS = re.compile(_BOX)
_UNBRACED = re.compile(r"[-+]?(?:\\[a-zA-Z]+(?:\{[^{}]{0,200}\}){0,3}|[0-9][0-9.,/]*|[A-Za-z])")
_BRACE_OR_ESCAPE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is text, not structure
# possessive: a line of spaces that ends in ` takes linear time; no group is, Python 3.11.2 takes
# those wrong
_FENCE = re.compile(r"^([^\S\n]*+)(```++|~~~++)([^\n`]*+)$", re.MULTILINE)
_FENCE_BEHIND_TEXT = re.compile(
    r"^([^\S\n]*+)(?!```|~~~)(?=\S)(?:[^\n`~]|`(?!``)|~(?!~~))*(```++|~~~++)([^\n`]*)$", re.MULTILINE
)
# what may stand before any fence: an item of a list, a quote, `<answer>`
_MARKUP = re.compile(r"(?:[-*+>|]|\d{1,9}[.)]|<[^<>\n]*>|\s)*")
# behind other text, words behind the language only speak of a fence, but for `title="a.py"`
_LANGUAGE_ALONE = re.compile(
    r"[^\S\n]*+(?:i?py(?:py|thon)?[0-9.]*+(?:[\s:{][^\n`=]*=[^\n`]*|\s*)|[{\[(][^\n`]*)", re.IGNORECASE
)
_FENCE_INDENT = 3  # that a closing fence may have more than its opening one, as in CommonMark
# in any form: `python`, `{.python .numberLines}`, `{code-cell} python`, `language-python`
_PYTHON = re.compile(r"(?<![^\W\d_])i?py(?:py|thon)?(?![^\W\d_])", re.IGNORECASE)
_MARK_OF_FENCE = re.compile(r"(?:```|~~~)[^\n]*")
_LANGUAGE = re.compile(r"\s*[{.]*\w")  # `</answer>` behind a fence is none, nor is a full stop
_MARK_OF_ANSWER = re.compile(rf"{_BOX}|<answer>|```|~~~", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_THINKING = tuple(
    (re.compile(opens, re.IGNORECASE), re.compile(closes, re.IGNORECASE))
    for opens, closes in (
        *(
            (rf"<{name}(?:\s[^<>]*+)?>", rf"</{name}\s*+>")
            for name in ("think", "thinking", "thought", "seed:think")
        ),
        (r"\[THINK\]", r"\[/THINK\]"),
        ("◁think▷", "◁/think▷"),
        (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    )
)
"""Tags that reasoning models put around their thinking, the opening and the closing one."""
_BETWEEN_BOXES = re.compile(
    r"(?:\\[()\[\],;:! ]|\\q?quad|\\text\{ ?(?:and|or) ?\}|and|or|[A-Za-z]\s*=|[\s$,;:.&])*", re.IGNORECASE
)
_MAX_BETWEEN_BOXES = 40
_MAX_NESTED_BOXES = 16
_NOTHING_BUT_BOXES = re.compile(rf"(?:{_BOX}|[{{}}\s])*")
_NAME_OF_BOX = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s*=\s*\$*\s*$")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} (or \fbox, \framebox), stripped; None when
    missing or empty.

    The box that OPENS last counts. Earlier boxes never count, and a last box that is never closed
    (a truncated response) is no answer. Thinking does not count (`without_thinking`). Linear in the
    length of the text.
    """
    text = without_thinking(text)
    opened = [match.span() for match in _BOX_OPENS.finditer(text)]
    content = _outermost(text, opened) if opened else None
    return content[0] or None if content else None


def _outermost(text: str, opened: list[tuple[int, int]]) -> tuple[str, int] | None:
    """Return the content of the box around the last one, if it holds more than that; else of the
    last one. `opened`: where the names of boxes begin and end.
    """
    last = _content_of_box(text, opened[-1][1])
    if last is None:
        return None
    # a box directly inside another one says nothing new
    heads = [
        end
        for place, (begins, end) in enumerate(opened[:-1])
        if place == 0 or text[opened[place - 1][1] : begins].strip("{ \n")
    ]
    for place, end in enumerate(heads[-_MAX_NESTED_BOXES:]):
        around = _content_of_box(text, end)
        if around is not None and opened[-1][1] < around[1]:
            if place == 0 and len(heads) > _MAX_NESTED_BOXES:
                return None  # it may stand in more of them
            return last if _NOTHING_BUT_BOXES.fullmatch(around[0].replace(last[0], "", 1)) else around
    return last


def last_boxes(text: str, number: int, *, alternatives: bool = True) -> list[str]:
    """Return the contents of exactly `number` consecutive boxes that end the response, else [].

    They are separated by commas, "and", "or" (`alternatives`), or a name and an equals sign, which
    is kept. One more box in the same row is too many.
    """
    text = without_thinking(text)
    opened = [match.span() for match in _BOX_OPENS.finditer(text)][-number - 1 :]
    boxes = [(start, *(_content_of_box(text, end) or (None, 0))) for start, end in opened]
    row: list[str] = []
    begins = None
    for start, content, end in reversed(boxes):
        apart = begins is not None and (
            begins - end > _MAX_BETWEEN_BOXES or not _BETWEEN_BOXES.fullmatch(text, end, begins)
        )
        between = text[end:begins] if begins is not None else ""
        if not content or apart or (not alternatives and re.search(r"\bor\b", between)):
            break
        name = _NAME_OF_BOX.search(text, max(0, start - 12), start)
        row.append(content if name is None else f"{name[1]}={content}")
        begins = start
    return row[::-1] if len(row) == number else []


def _content_of_box(text: str, start: int) -> tuple[str, int] | None:
    """Return a box's content and its end; `start` is after its name. Without braces the content is
    a number, a letter or a command.
    """
    if text[start : start + 1] != "{":
        unbraced = _UNBRACED.match(text, start)
        return (unbraced.group().rstrip(".,"), unbraced.end()) if unbraced else None
    depth = 0
    for token in _BRACE_OR_ESCAPE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return text[start + 1 : token.start()].strip(), token.end()
    return None


def last_tagged(text: str) -> str | None:
    """Return the content of the last <answer>...</answer>, stripped; None when missing or empty."""
    text = without_thinking(text)
    found, opened = None, None
    for tag in _ANSWER_TAG.finditer(text):
        if not tag[1]:
            opened = opened or tag
        elif opened:
            found, opened = text[opened.end() : tag.start()], None
    return (found or "").strip() or None


def final_answer(text: str) -> str | None:
    """Return the last box, else the last answer tag, without white space: the default `answer` of a
    verifier.
    """
    answer = last_boxed(text) or last_tagged(text)
    return None if answer is None else "".join(answer.split())


def last_program(text: str) -> str | None:
    """Return the last fenced Python block after the thinking; None when missing, empty or never
    closed. A block without a language counts only if no block names Python; other languages never
    count. When behind it another block of Python seems to open in a form that is not understood,
    there is none: a draft might be taken for the answer. Linear in the text.
    """
    text = without_thinking(text).replace("\r\n", "\n").replace("\r", "\n")
    blocks = _blocks(text)
    python = [block for block in blocks if _PYTHON.search(block.language)]
    last = (python or [block for block in blocks if not _LANGUAGE.match(block.language)] or [None])[-1]
    if last is None or last.code is None or _may_open_another(text, last, blocks):
        return None
    return last.code if last.code.strip() else None


@dataclass(frozen=True, slots=True)
class _Block:
    language: str  # all that stands behind the opening fence
    code: str | None  # None: it is never closed
    begins: int
    ends: int


def _blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    opened: re.Match[str] | None = None
    behind_text = (one for one in _FENCE_BEHIND_TEXT.finditer(text) if _opens_behind_text(one))
    for fence in sorted([*_FENCE.finditer(text), *behind_text], key=lambda one: one.start()):
        if opened is None or (opened.re is _FENCE_BEHIND_TEXT and _PYTHON.search(fence[3])):
            opened = fence  # the text before may only have spoken of a fence
        elif fence.re is _FENCE and _closes(fence, opened):
            code = text[opened.end() : fence.start()].strip("\n")
            code = dedent(code) if opened.re is _FENCE_BEHIND_TEXT else _without_indent(code, opened[1])
            blocks.append(_Block(opened[3], code, opened.start(), fence.end()))
            opened = None
    # truncated inside its last block, unless the last words only speak of a fence
    if opened is not None and (opened.re is _FENCE or text[opened.end() :].strip()):
        blocks.append(_Block(opened[3], None, opened.start(), len(text)))
    return blocks


def _opens_behind_text(fence: re.Match[str]) -> bool:
    before = fence.string[fence.end(1) : fence.start(2)]
    is_whole = _MARKUP.fullmatch(before) or _LANGUAGE_ALONE.fullmatch(fence[3])
    return bool(is_whole and _PYTHON.search(fence[3]))


def _may_open_another(text: str, last: _Block, blocks: list[_Block]) -> bool:
    later = [one for one in blocks if one.begins >= last.ends]
    # a language in other letters, which may look like Python
    if any(not block.language.isascii() for block in later):
        return True
    begins = last.ends
    for block in [*later, None]:
        ends = len(text) if block is None else block.begins
        for mark in _MARK_OF_FENCE.finditer(text, begins, ends):
            named = _PYTHON.search(text, *mark.span())
            if named and text[named.end() :].strip():
                return True
        begins = ends if block is None else block.ends
    return False


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    """A fence in a docstring, which is indented, closes no block; nor does a shorter one."""
    indents = [len(one[1].expandtabs(4)) for one in (fence, opened)]
    is_plain = not _LANGUAGE.match(fence[3]) and not _PYTHON.search(fence[3])
    return is_plain and fence[2].startswith(opened[2]) and indents[0] <= indents[1] + _FENCE_INDENT


def _without_indent(code: str, indent: str) -> str:
    """Remove a fence's indent, as in an item of a list, from lines that all have it."""
    lines = code.split("\n")
    if not all(line.startswith(indent) for line in lines if line.strip()):
        return code
    return "\n".join(line.removeprefix(indent) for line in lines)


def without_thinking(text: str) -> str:
    """Return the text after the thinking; empty when the thinking never ends."""
    for opens, closes in _THINKING:
        text = text[_end_of_last(closes, text) :]
        if opens.search(text):
            return ""
    return text


def with_open_thinking(response: str, prompt: str) -> str:
    """Add the prompt's opening think tag to a response that never closes it.

    A chat template may end in <think>, so a response that is truncated while thinking has no tag of
    its own.
    """
    for opens, closes in _THINKING:
        opened = opens.search(prompt, _end_of_last(closes, prompt))
        if opened and not closes.search(response):
            return opened.group() + response
    return response


def _end_of_last(tag: re.Pattern[str], text: str) -> int:
    """Return where the last match ends; 0 when there is none."""
    return max((match.end() for match in tag.finditer(text)), default=0)


def without_echo(response: str, prompt: str) -> str:
    """Remove copies of a prompt that contains a box, an answer tag or a code fence.

    Otherwise repeating a prompt with a worked example would be rewarded. Other prompts stay: they
    do no harm, and a short one may occur in an honest response.
    """
    if not prompt or prompt not in response or not _MARK_OF_ANSWER.search(prompt):
        return response
    return response.replace(prompt, "\n")
