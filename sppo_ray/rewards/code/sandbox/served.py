"""The process of a program whose functions a tester calls, started by
`sppo_ray.rewards.code.sandbox.run` only: `main(SETUP_FD)`.

Standard library only: see `confine`.
"""

from __future__ import annotations

import builtins
import copy
import operator
import os
import sys
import types
from collections import deque
from typing import Any

from sppo_ray.rewards.code.sandbox import arrays, extended, program, told, usual, wire
from sppo_ray.rewards.code.sandbox.identity import Objects
from sppo_ray.rewards.code.sandbox.known import ERROR_MODULES

MODULE = "<program>"
"""No name that a program can import: as a file of its own it cannot import itself by any other."""


def main(setup_fd: int) -> None:
    setup = program.enter(setup_fd)
    connection = wire.Wire(*setup["wire"])
    connection.receive()  # the tests are ready
    _Server(connection, definitions(setup["code"])).serve()


def definitions(code: str, *, beside_tests: bool = False) -> dict[str, Any]:
    """Run a program as the module `MODULE` and return its names. Raises what it raises.

    Its usual imports are built-in names: what it only uses is not its own, and no test can import
    it. `beside_tests`: tests of this process do not see them, nor the program its changes of
    `builtins`.
    """
    module = sys.modules[MODULE] = types.ModuleType(MODULE)  # dataclasses and pickle look it up
    module.__file__ = "program.py"
    namespace: dict[str, Any] = module.__dict__
    program.give_exit()
    compiled = program.compiled(code, "program.py")
    if beside_tests:
        namespace["__builtins__"] = vars(builtins) | usual.names(compiled)
    else:
        vars(builtins).update(usual.names(compiled))
    exec(compiled, namespace)
    return namespace


_MOST_TEXT = 100_000
"""Characters of an exception's message."""


class _Lost(BaseException):
    """A value cannot be sent or read. No exception of the program: a test may expect one."""


class _Server:
    """Runs the tester's operations on objects that stay in this process."""

    def __init__(self, connection: wire.Wire, namespace: dict[str, Any]) -> None:
        self._wire, self._namespace, self._objects = connection, namespace, [None]
        self._numbers: dict[int, int] = {}
        # classes under test; their methods, where they extend a built-in one: see `extended`
        self._own: dict[type, list[str] | None] = {}
        self._shared = Objects(1)
        self._with_identity = True
        self._wire.send({"ready": True})

    def serve(self) -> None:
        while True:
            request = self._wire.receive()
            try:
                reply = self._do(**request)
            except _Lost:
                os._exit(1)
            except BaseException as error:  # boundary: the program may raise anything; the tester judges
                reply = _raised(error) | {"attributes": self._attributes(error)}
            self._wire.send(reply | {"changed": self._changed()})

    def _changed(self) -> list[Any]:
        """Containers that the tests know and the program has changed."""
        return [self._encode(known.value) for known in self._shared.changed()]

    def _do(
        self, do: str, on: int, given: Any, named: Any, changed: list[Any], forget: list[int]
    ) -> dict[str, Any]:
        target = self._objects[on]
        for one in changed:
            self._decode(one)
        self._shared.forget(forget)
        args, kwargs = self._decode(given), self._decode(named)
        if do == "call":
            return {"value": self._encode_whole(target(*args, **kwargs))}
        if do == "call in place":
            value = target(*args, **kwargs)
            after = [self._encode(args), self._encode(kwargs)]
            return {"value": self._encode_whole(value), "after": after if after != [given, named] else None}
        if do == "find":
            check_names(self._namespace, kwargs["required"])
            self._with_identity = kwargs["identity"]
            self._objects += [find(self._namespace, name) for name in args]
            own = [one for one in self._objects if isinstance(one, type) and one.__module__ == MODULE]
            self._own = {one: extended.own_names(one, MODULE) for one in own}
            found = {name: self._namespace[name] for name in kwargs["kinds"] if name in self._namespace}
            return {"kinds": {name: _exception_names(one) for name, one in found.items()}}
        if do == "next":
            return self._following(target, *args)
        if do in ("send", "close"):
            return self._moved(target, do, *args)
        if do == "iterator":
            iterator = iter(target)
            return {"value": [self._keep(iterator), iterator is target]}
        if do == "set for all":
            return {"value": told.take(*args, **kwargs)}
        if do == "exit":
            return {"value": self._exit(target, *args)}
        return {"value": self._encode(_OPERATIONS[do](target, *args))}

    def _decode(self, data: Any) -> Any:
        try:
            with wire.Deeper():
                return wire.decode(
                    data,
                    self._objects.__getitem__,
                    self._iterator,
                    make_array=arrays.make,
                    same=self._shared.received,
                )
        except Exception:  # boundary: a value may be nested too deep
            raise _Lost from None

    def _following(self, iterator: Any, number: int) -> dict[str, Any]:
        values: list[Any] = []
        ended: Any = None
        try:
            for _ in range(number):
                values.append(next(iterator))
        except StopIteration:
            ended = True
        except Exception as error:  # boundary: the program's own; it comes after the values before it
            ended = _raised(error)
        return {"value": self._encode(values), "ended": ended}

    def _moved(self, generator: Any, do: str, *given: Any) -> dict[str, Any]:
        try:
            return {"value": self._encode(getattr(generator, do)(*given))}
        except StopIteration as ended:
            return {"value": self._encode(ended.value), "ended": True}

    def _exit(self, target: Any, names: list[str] | None = None, args: list[Any] | None = None) -> bool:
        """Leave a `with` block; returns whether the object hides the exception of these names, its
        class and the bases.
        """
        if names is None or args is None:
            return bool(target.__exit__(None, None, None))
        kind = self._exception_class(names)
        error = kind.__new__(kind, *args)  # __init__ may need other arguments
        error.args = tuple(args)
        try:
            raise error
        except kind:  # with a traceback
            told = sys.exc_info()
        return bool(target.__exit__(*told))

    def _exception_class(self, names: list[str]) -> type[BaseException]:
        """The program's own class of the first name, else the module's or a built-in one, else a
        new one on the next.
        """
        module, _, name = names[0].rpartition(":")
        spaces = [vars(sys.modules[module])] if module in sys.modules else [self._namespace, vars(builtins)]
        for found in (space.get(name) for space in spaces):
            if isinstance(found, type) and issubclass(found, BaseException):
                return found
        return type(name, (self._exception_class(names[1:] or ["Exception"]),), {})

    def _attributes(self, error: BaseException) -> Any:
        try:
            return self._encode({**vars(error), "args": list(error.args)})
        except (Exception, _Lost):  # boundary: the program may give it any attributes
            return None

    def _iterator(self, kind: str, given: int | list[Any]) -> Any:
        """Its own, or one with the values of the tests' one."""
        return iter(self._decode(given)) if isinstance(given, list) else self._objects[given]

    def _encode(self, value: Any) -> Any:
        try:
            with wire.Deeper():
                number = self._shared.number if self._with_identity else None
                return wire.encode(value, self._keep, number, lambda one: self._own.get(type(one)))
        except Exception:  # boundary: a value may be nested too deep, or the program's own
            raise _Lost from None

    def _encode_whole(self, value: Any) -> Any:
        """A class under test may extend a list or dict: `class LRUCache(OrderedDict)`. As a plain
        one it would lose its methods.
        """
        is_own = type(value) in self._own and isinstance(value, (list, dict, set, deque))
        return {"kept": self._keep(value)} if is_own else self._encode(value)

    def _keep(self, value: Any) -> int:
        """The same object has one number."""
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._numbers[id(value)]


def find(namespace: dict[str, Any], name: str) -> Any:
    """Find a function or class by name, or a method "Solution().f"; without f, the method of class
    Solution. All calls of a method share one object, as in the tests of data sets, so a state that
    the program forgets to clear is seen.
    """
    owner, _, method = name.rpartition("().")
    if not owner and name in namespace:
        return namespace[name]

    made: list[Any] = []

    def of_one_object(*args: Any, **kwargs: Any) -> Any:
        if (owner or "Solution") not in namespace:
            raise NameError(f"name '{name}' is not defined")
        if not made:
            made.append(namespace[owner or "Solution"]())
        return getattr(made[0], method)(*args, **kwargs)

    return of_one_object


def has(namespace: dict[str, Any], name: str) -> bool:
    """Whether a program has a function or class of this name, or a method of its class Solution."""
    if name in namespace:
        return True
    solution = namespace.get("Solution")
    if not isinstance(solution, type) or not callable(getattr(solution, name, None)):
        return False
    return any(name in vars(one) for one in solution.__mro__ if one.__module__ == MODULE)


def check_names(namespace: dict[str, Any], required: list[str]) -> None:
    """Raise ImportError for a name that the tests import and the program lacks; a method of class
    Solution will do.
    """
    for name in required:
        if not has(namespace, name):
            raise ImportError(f"cannot import name '{name}'")


def _exception_names(kind: Any) -> list[str]:
    """The names of an exception class and its bases; none for anything else."""
    return _class_names(kind) if isinstance(kind, type) and issubclass(kind, BaseException) else []


def _class_names(kind: type) -> list[str]:
    names = (
        f"{one.__module__}:{one.__name__}" if one.__module__ in ERROR_MODULES else one.__name__
        for one in kind.__mro__
    )
    return list(names)[: wire.MAX_NAMES]


def _has_own_truth(kind: type) -> bool:
    return hasattr(kind, "__bool__") or hasattr(kind, "__len__")


def _is_equal_to_itself_only(value: Any) -> bool:
    kind = type(value)
    return kind.__eq__ is object.__eq__ and kind.__ne__ is object.__ne__


def _raised(error: BaseException) -> dict[str, Any]:
    """Return the names of its class and bases, and its message."""
    args = error.args
    text = _text(error)
    message = args[0] if len(args) == 1 and isinstance(args[0], str) else text
    return {
        "raised": _class_names(type(error)),
        "message": str(message)[:_MOST_TEXT],
        "text": text[:_MOST_TEXT],
    }


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # boundary: the program's own `__str__` may do anything
        return ""


def _contents(value: Any) -> list[Any]:
    """What a list, dict, set, deque or tuple holds, as a plain one."""
    return next(([kind(value)] for kind in (list, dict, set, deque, tuple) if isinstance(value, kind)), [])


def _operate(value: Any, name: str, *other: Any) -> Any:
    """`operator` has all but the reflected ones and these two."""
    operation = {"__divmod__": divmod, "__round__": round}.get(name) or vars(operator).get(name)
    if operation is None and not hasattr(type(value), name):
        raise TypeError(f"unsupported operand type: {type(value).__name__}")
    made = (operation or getattr(type(value), name))(value, *other)
    if made is NotImplemented:  # of a reflected one
        raise TypeError(f"unsupported operand type: {type(value).__name__}")
    return made


_OPERATIONS = {
    "attribute": getattr,
    "set": setattr,
    "delete": delattr,
    "format": format,
    "contents": _contents,
    "length": len,
    "int": int,
    "float": float,
    "index": operator.index,
    "bytes": bytes,
    "delete item": lambda obj, key: obj.__delitem__(key),
    "item": lambda obj, key: obj[key],
    "set item": lambda obj, key, value: obj.__setitem__(key, value),
    "text": str,
    "representation": repr,
    "truth": lambda obj: bool(obj) if _has_own_truth(type(obj)) else None,
    "has": lambda obj, one: one in obj,
    "equal": operator.eq,
    "equal by identity": _is_equal_to_itself_only,
    "differ": operator.ne,
    "reversed": lambda obj: list(reversed(obj)),
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "less": operator.lt,
    "less or equal": operator.le,
    "greater": operator.gt,
    "greater or equal": operator.ge,
    "made by": lambda kind, obj: isinstance(obj, kind),
    "base of": lambda kind, other: issubclass(other, kind),
    "type name": lambda obj: type(obj).__name__,
    "enter": lambda obj: obj.__enter__(),
    "operator": _operate,
}
