"""docs/tools.md lists the built-in models."""

from __future__ import annotations

import re
from pathlib import Path

from sppo_ray.models.bundled import BUNDLED

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tools.md"


def test_the_page_lists_every_built_in_model() -> None:
    listed = re.findall(r"^\| `builtin:([\w.-]+)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(BUNDLED)
