"""Whether the result of a program may rest on the order of its sets, and the seed of that order."""

from __future__ import annotations

import hashlib
import re
import sys

# Broad on purpose: a program that could be meant runs twice, which costs time and no verdict.
_MAY_VARY = re.compile(
    r"set|hash|keys|items|union|intersection|difference|random|uuid|secrets|time|pid|\bid\b|exec|eval|attr"
    r"|vars|globals|locals|module|pickle|marshal|types|__(?!init__|name__|main__)\w|\{\s*[^\s}]|[^\x00-\x7f]",
    re.IGNORECASE,
)
# `++` and `*+` give nothing back: otherwise a long word takes quadratic time
_IMPORTED = re.compile(r"\b(?:from[ \t]++(\w++)[\w.]*+[ \t]+import\b|import[ \t]+([^\n#;]+))")


def hash_seed(run: int, *texts: str) -> int:
    """Return the seed of the hashes of text in a run of a program. It follows from the texts, so a
    verdict is repeated, and no policy can learn it: it would tell the cases apart.
    """
    digest = hashlib.sha256("\0".join((str(run), *texts)).encode(errors="replace")).digest()
    return int.from_bytes(digest[:4])


def may_vary(program: str) -> bool:
    """Whether a program may have sets, take hashes or draw, by its text; or imports more than the
    standard library.
    """
    if _MAY_VARY.search(program):
        return True
    imported = (one[1] or one[2] for one in _IMPORTED.finditer(program))
    names = (name.strip().partition(" ")[0] for line in imported for name in line.split(","))
    return not {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
