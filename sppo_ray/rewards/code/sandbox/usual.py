"""What programming sites import before a program. Standard library only: see `confine`."""

from __future__ import annotations

import importlib
import types

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_IMPORTS = {
    "typing": "Any Callable Deque Dict Iterable Iterator List Optional Sequence Set Tuple Union",
    "collections": "Counter OrderedDict defaultdict deque",
    "itertools": "accumulate chain combinations count groupby permutations product",
    "functools": "cache cmp_to_key lru_cache reduce",
    "heapq": "heapify heappop heappush nlargest nsmallest",
    "bisect": "bisect_left bisect_right insort",
    "math": "ceil comb floor gcd inf isqrt sqrt",
}
_MODULES = frozenset(
    [
        "bisect",
        "collections",
        "functools",
        "heapq",
        "itertools",
        "json",
        "math",
        "operator",
        "random",
        "re",
        "string",
        "sys",
    ]
)


def names(code: types.CodeType) -> dict[str, Any]:
    """Return the names of these imports that a program uses, with their values."""
    used = set(_names(code))
    found: dict[str, Any] = {module: importlib.import_module(module) for module in used & _MODULES}
    for module, of_module in _IMPORTS.items():
        for name in used.intersection(of_module.split()):
            found[name] = getattr(importlib.import_module(module), name)
    return found


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield all global names and attributes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
