"""docs/gpu.md names a test for each path, and each of these tests exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8")
PROVEN = PAGE.partition("## What is proven on a CPU")[2].partition("## Not run")[0]
ROWS = [line for line in PROVEN.splitlines() if line.startswith("| ")][1:]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("row", ROWS)
def test_each_path_names_a_test_that_exists(row: str) -> None:
    named = NAMED.findall(row.rpartition(" | ")[2])
    assert named, "no test is named"
    for path, function in named:
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        assert not function or re.search(rf"^def {function}\(", text, re.M), f"{path} has no {function}"


def test_the_page_says_what_was_not_run() -> None:
    assert PAGE.partition("## Not run on a GPU")[2].count("\n- ") >= 10
