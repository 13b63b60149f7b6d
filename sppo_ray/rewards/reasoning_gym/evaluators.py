"""Find functions of a library that evaluate text, from their compiled code, so that a new release
cannot add one unnoticed.

`evaluating(function)` follows a scorer through the functions, methods and classes of its own
package and collects what it refers to that turns text into code or reads objects out of it. SymPy
counts as a whole, because most of its functions take text and evaluate it.
"""

from __future__ import annotations

import builtins
import types
from collections.abc import Iterator
from typing import Any

_BUILTINS = frozenset({"eval", "exec", "compile", "__import__", "open", "input", "breakpoint"})
_MODULES = frozenset(
    {
        "code", "codeop", "ctypes", "dill", "importlib", "marshal", "numexpr", "os", "pandas", "pickle",
        "runpy", "shelve", "shutil", "socket", "subprocess", "sympy", "yaml"
    }
)  # fmt: skip
_UNKNOWN = object()


def evaluating(function: Any, owner: type | None = None) -> frozenset[str]:
    """Return the names in `function` (a method of `owner`, if given) that may evaluate text.
    Nothing is called.
    """
    package = function.__module__.partition(".")[0]
    found: set[str] = set()
    waiting, seen = [(function, owner)], set()
    while waiting:
        current, owner = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for name, value in _references(current, owner):
            if (danger := _danger(name, value)) is not None:
                found.add(danger)
            elif isinstance(value, types.FunctionType) and value.__module__.partition(".")[0] == package:
                waiting.append((value, owner))
            elif isinstance(value, type) and value.__module__.partition(".")[0] == package:
                waiting += [(method, value) for method in _methods(value)]
    return frozenset(found)


def _references(function: types.FunctionType, owner: type | None) -> Iterator[tuple[str, Any]]:
    for name in _names(function.__code__):
        yield name, function.__globals__.get(name, getattr(builtins, name, _UNKNOWN))
        if owner is not None:
            yield name, _plain(getattr(owner, name, _UNKNOWN))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _methods(cls: type) -> list[types.FunctionType]:
    return [method for value in vars(cls).values() if isinstance(method := _plain(value), types.FunctionType)]


def _plain(value: Any) -> Any:
    """The function inside a static method, class method, property or cache."""
    value = getattr(value, "fget", None) or value
    value = getattr(value, "__func__", value)
    return getattr(value, "__wrapped__", value)


def _danger(name: str, value: Any) -> str | None:
    if name in _BUILTINS and value is getattr(builtins, name):
        return name
    module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    top = module.partition(".")[0] if isinstance(module, str) else ""
    return f"{module}.{name}" if top in _MODULES else None
