"""What the tests set for their process and that holds for the program, too: `random.seed(7)`.
Standard library only: see `confine`.
"""

from __future__ import annotations

import functools
import importlib

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SETTERS = (("random", "seed"), ("numpy.random", "seed"), ("sys", "setrecursionlimit"))


def share(tell: Callable[..., Any], code: str, numpy: bool) -> None:
    """Let the functions that `code` names also call `tell(module, function, *arguments)`.
    `numpy`: whether the tests use it.
    """
    for name, function in _SETTERS:
        if function in code and (numpy or name != "numpy.random"):
            module = _module(name)
            if module is not None:
                setattr(module, function, _told(name, function, getattr(module, function), tell))


def _told(
    name: str, function: str, own: Callable[..., None], tell: Callable[..., Any]
) -> Callable[..., None]:
    @functools.wraps(own)
    def both(*given: Any, **named: Any) -> None:
        own(*given, **named)
        tell(name, function, *given, **named)

    return both


def take(name: str, function: str, *given: Any, **named: Any) -> None:
    """Do the same in the process of the program."""
    module = _module(name)
    if module is not None:
        getattr(module, function)(*given, **named)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
