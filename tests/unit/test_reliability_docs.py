"""docs/reliability.md names a test for each promise, and each of these tests exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "reliability.md"
NAMED = re.compile(r"`?(tests/[\w/]+\.py)(?:::(\w+))?`?")


def sections() -> dict[str, list[str]]:
    """Title -> rows of its table."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            found[line.removeprefix("## ")] = []
        elif line.startswith("| ") and found and not line.startswith("| promise"):
            found[list(found)[-1]].append(line)
    return found


@pytest.mark.parametrize("title", list(sections()))
def test_each_promise_names_a_test_that_exists(title: str) -> None:
    rows = sections()[title]
    assert rows, f"{title}: no promise is written down"
    for row in rows:
        named = NAMED.findall(row.rpartition(" | ")[2])
        assert named, f"{title}: no test is named in {row}"
        for path, function in named:
            text = (REPOSITORY / path).read_text(encoding="utf-8")
            assert not function or re.search(rf"^(async )?def {function}\(", text, re.M), (
                f"{path} has no {function}"
            )
