"""Seeds that the tests set, `random.seed(7)`, hold for the program, too. Standard library only: see
`confine`.
"""

from __future__ import annotations

import functools

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def share(tell: Callable[..., Any], *, numpy: bool) -> None:
    """Let `seed` of `random`, and of `numpy.random`, also call `tell(module, *arguments)`."""
    names = ["random"]
    if numpy:
        names.append("numpy.random")
    for name in names:
        module = _module(name)
        if module is not None:
            module.seed = _told(name, module.seed, tell)


def _told(name: str, seed: Callable[..., None], tell: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(seed)
    def both(*given: Any, **named: Any) -> None:
        seed(*given, **named)
        tell(name, *given, **named)

    return both


def take(name: str, *given: Any, **named: Any) -> None:
    """Set the seed in the process of the program."""
    module = _module(name)
    if module is not None:
        module.seed(*given, **named)


def _module(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        return None
