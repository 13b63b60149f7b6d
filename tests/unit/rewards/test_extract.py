"""Reading answers takes linear time, and gives what a plain regular expression gives."""

from __future__ import annotations

import random
import re
import time

import pytest

from sppo_ray.rewards.extract import last_program, last_tagged
from sppo_ray.rewards.stated import last_stated

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


@pytest.mark.parametrize(
    "text",
    [
        r"\(" * 40_000,
        r"\[" * 40_000,
        r"\(\[$$x " * 40_000,
        "$x\n" * 40_000,
        "the answer is" + " " * 100_000,
        "the answer is" + " *" * 50_000,
        "answer: " * 40_000,
        "<answer>" * 40_000,
        "1," * 100_000,
    ],
    ids=lambda text: text[:16],
)
def test_reading_takes_linear_time(text: str) -> None:
    begun = time.process_time()
    last_stated(text)
    last_tagged(text)
    assert time.process_time() - begun < 1.0


def test_the_last_formula_and_tag_are_those_of_a_regular_expression() -> None:
    draw = random.Random(7)
    pieces = ["$", "$$", r"\(", r"\)", r"\[", r"\]", "a", "b ", "\n", "\\", "<answer>", "</ANSWER>"]
    for _ in range(4000):
        text = "".join(draw.choices(pieces, k=draw.randrange(14)))
        found = [next(filter(None, one)) for one in FORMULA.findall(text)]
        assert last_stated(text) == (found[-1].strip() or None if found else None), text
        tags = TAG.findall(text)
        assert last_tagged(text) == (tags[-1].strip() or None if tags else None), text


@pytest.mark.parametrize(
    ("block", "program"),
    [
        (
            '```python\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\n```',
            'def f():\n    """\n    ```\n    f()\n    ```\n    """',
        ),
        ("```python\nx = 1\n   ```", "x = 1"),
        ("````python\ns = ```\n```\n````", "s = ```\n```"),
        ("~~~python\nx = 1\n```\n~~~", "x = 1\n```"),
        ("~~~python\nx = 1\n```", None),
    ],
)
def test_a_block_is_closed_by_a_fence_of_its_own_kind(block: str, program: str | None) -> None:
    assert last_program(block) == program


@pytest.mark.parametrize(
    ("block", "program"),
    [
        ("   ```python\n   n = 1\n\n   if n:\n     print(n)\n   ```", "n = 1\n\nif n:\n  print(n)"),
        ("  ```python\nif n:\n    print(n)\n  ```", "if n:\n    print(n)"),
    ],
)
def test_a_block_in_an_item_of_a_list_loses_its_indent(block: str, program: str) -> None:
    assert last_program(f"1. This is it:\n{block}\n") == program


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("<answer>```python\nx = 1\n```</answer>", "x = 1"),
        ("```python\nx = 0\n```\nFinal: ```Python3\nx = 1\n```", "x = 1"),
        ("1. ```py\n   if n:\n     x = 1\n   ```", "if n:\n  x = 1"),
        ("Use `x` here: ```python3.11  \nx = 1\n```", "x = 1"),
        ("```python\nx = 0\n```\n`x` corrected: ```python\nx = 1\n```", "x = 1"),
        ("```python3.11\nx = 1\n```", "x = 1"),
        # spoken of, and no block
        ("It begins with ```python\n\n```python\nx = 1\n```", "x = 1"),
        ("```python\nx = 1  # no ```python\n```", "x = 1  # no ```python"),
        ("```python\nx = 1\n```\nThis was ```python", "x = 1"),
        ("```python\nx = 1\n```\nThis was ```python\nx =", None),  # what begins last never ends
        ("```python\nx = 1\n```\n```python", None),
        ("```python\nx = 1\n```\nThis was ```bash x``` and ```bash", "x = 1"),
        ("```python\nx = 1\n```\nThis was ```python x``` and ```bash", None),  # an answer in one line?
        ("This is ```cpp\nint x;\n```", None),
    ],
)
def test_a_fence_of_python_counts_behind_text(text: str, program: str | None) -> None:
    assert last_program(text) == program


DRAFT = "A draft:\n```python\nx = 0\n```\n"


@pytest.mark.parametrize(
    "fence",
    [
        *(f"{space}```python" for space in "\u00a0\u3000\u2003\f\v\x85\u2028\r"),
        "<answer>~~~python",
        "1. ~~~python",
        "Finally: ~~~py",
        "1. ```python solution.py",
        "- ```python linenums",
        "> ```python",
        "<answer>```python solution.py",
        "```pypy3",
    ],
)
def test_a_final_block_in_an_unusual_form_counts_and_not_the_draft(fence: str) -> None:
    closing = "~~~" if "~" in fence else "```"
    assert last_program(f"{DRAFT}{fence}\nx = 1\n{closing}") == "x = 1"


@pytest.mark.parametrize(
    "final",
    [
        "It is ```python x = 1```.",
        "It is ```python the whole of it\nx = 1\n```",
        "\u200b``` python of mine\nx = 1\n```",
        "```a ```python\nx = 1\n```",
    ],
)
def test_a_draft_is_no_answer_when_the_final_block_is_not_understood(final: str) -> None:
    assert last_program(DRAFT + final) is None
    # in a block of another language it is text
    assert last_program(f"{DRAFT}````markdown\n{final}\n````") == "x = 0"


def test_fences_behind_text_are_found_in_linear_time() -> None:
    begun = time.process_time()
    for piece in ("a ```", "a``", "a ```py", "a\n```", "` a", " ~", "~~~", "1. ", "<a", "> ", "\u3000", "1"):
        last_program(piece * 40_000)
        last_program(piece * 40_000 + " ```python")
        last_program(piece * 40_000 + " ```python x")
    for piece in ("=", "a=", " ", "{", "[py"):
        last_program("a ```python " + piece * 40_000 + "`")
        last_program("```python " + piece * 40_000 + "`")
    for line in ("a ```python x\n", "a ```python`\n", "~~~python\n", "1. ```python x\n", "```\nx\n```\n"):
        last_program(line * 20_000)
        last_program(DRAFT + line * 20_000)
    assert time.process_time() - begun < 2.0


@pytest.mark.parametrize("name", ["\u0440ython", "\uff50ython", "pyt\u200bhon", "p\u0301ython"])
def test_a_later_block_in_letters_that_look_like_python_leaves_no_answer(name: str) -> None:
    draft = "```python\nright\n```\nThat is wrong. Finally:\n"
    assert last_program(f"{draft}```{name}\nwrong\n```") is None
    assert last_program(f"{draft}```text\n{name}\n```") == "right"
