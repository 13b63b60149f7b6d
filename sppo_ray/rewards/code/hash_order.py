"""Whether the result of a program may rest on the order of its sets, which no run repeats."""

from __future__ import annotations

import re
import sys

# Broad on purpose: a program that could be meant runs twice, which costs time and no verdict.
_MAY_VARY = re.compile(
    r"set|hash|keys|items|random|uuid|secrets|\bid\b|exec|eval|attr|vars|globals|locals|modules|pickle"
    r"|marshal|types|__(?!init__|name__|main__)\w|\{\s*[^\s}]|[^\x00-\x7f]",
    re.IGNORECASE,
)
_IMPORTED = re.compile(r"^[ \t]*(?:from[ \t]+(\w+)|import[ \t]+([^\n#;]+))", re.MULTILINE)


def may_vary(program: str) -> bool:
    """Whether a program may have sets, take hashes or draw, by its text; or imports more than the
    standard library.
    """
    if _MAY_VARY.search(program):
        return True
    imported = (one[1] or one[2] for one in _IMPORTED.finditer(program))
    names = (name.strip().partition(" ")[0] for line in imported for name in line.split(","))
    return not {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
