"""Whether the result of a program may rest on the order of its sets, which no run repeats."""

from __future__ import annotations

import re

_SETS = re.compile(r"\b(?:set|frozenset|hash)\b|\{[^{}:]*\}|\.(?:keys|items)\(\)\s*[-&|^]")


def has_sets(program: str) -> bool:
    """Whether a program may have sets, or takes hashes, by its text."""
    return _SETS.search(program) is not None
