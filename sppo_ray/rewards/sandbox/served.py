"""The process of a program whose functions a tester calls, started by `sppo_ray.rewards.sandbox.run` only: `main(SETUP_FD)`.

Standard library only: see `confine`.
"""

from __future__ import annotations

import ast
import importlib
import types
from typing import Any

from sppo_ray.rewards.sandbox import program, wire

_USUAL_IMPORTS = {  # what the sites that such tasks come from put before a program; only names that it uses and never binds
    "typing": "Any Callable Deque Dict Iterable Iterator List Optional Sequence Set Tuple Union",
    "collections": "Counter OrderedDict defaultdict deque",
    "itertools": "accumulate chain combinations count groupby permutations product",
    "functools": "cache cmp_to_key lru_cache reduce",
    "heapq": "heapify heappop heappush nlargest nsmallest",
    "bisect": "bisect_left bisect_right insort",
    "math": "ceil comb floor gcd inf isqrt sqrt",
}
_USUAL_MODULES = frozenset(
    ["bisect", "collections", "functools", "heapq", "itertools", "json", "math", "operator", "random", "re", "string", "sys"]
)


def main(setup_fd: int) -> None:
    setup = program.enter(setup_fd)
    code, connection = setup["code"], wire.Wire(*setup["wire"])
    namespace: dict[str, Any] = {"__name__": "program"}
    _import_usual(code, namespace)
    exec(compile(code, "program.py", "exec"), namespace)
    _Server(connection, namespace).serve()


def _import_usual(code: str, namespace: dict[str, Any]) -> None:
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    for module, names in _USUAL_IMPORTS.items():
        for name in used.intersection(names.split()):
            namespace[name] = getattr(importlib.import_module(module), name)
    for module in used & _USUAL_MODULES:
        namespace[module] = importlib.import_module(module)


class _Server:
    """Does what the tester asks, on objects that never leave this process."""

    def __init__(self, connection: wire.Wire, namespace: dict[str, Any]) -> None:
        self._wire, self._objects = connection, [types.SimpleNamespace(**namespace)]
        modules = {name: value.__name__ for name, value in namespace.items() if isinstance(value, types.ModuleType)}
        self._wire.send({"names": [name for name in namespace if name not in modules], "modules": modules})

    def serve(self) -> None:
        while True:
            request = self._wire.receive()
            try:
                reply = self._do(**request)
            except BaseException as error:  # boundary: the program may raise anything, SystemExit too; the tester judges
                reply = {"raised": type(error).__name__, "message": str(error)[:200]}
            self._wire.send(reply)

    def _do(self, do: str, on: int, given: Any, named: Any) -> dict[str, Any]:
        target = self._objects[on]
        args, kwargs = wire.decode(given, self._objects.__getitem__), wire.decode(named, self._objects.__getitem__)
        if do == "call":
            value = target(*args, **kwargs)
            return {"value": self._encode(value), "args": self._encode(args) if value is None else None}
        return {"value": self._encode(_OPERATIONS[do](target, *args))}

    def _encode(self, value: Any) -> Any:
        return wire.encode(value, self._keep)

    def _keep(self, value: Any) -> int:
        self._objects.append(value)
        return len(self._objects) - 1


_OPERATIONS = {
    "attribute": getattr,
    "list": list,
    "length": len,
    "item": lambda obj, key: obj[key],
    "text": str,
    "truth": bool,
    "has": lambda obj, one: one in obj,
}
