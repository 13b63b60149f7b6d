"""Collect the tests of an executed test file, as pytest and unittest do: `Collector(...).tests()`.

The rules are those of pytest 9 (`_pytest.python`, `_pytest.unittest`): by the name in the module or
class, not the object's own name; in the order of definition, base classes first.
`tests/unit/rewards/test_code_collect.py` compares them with pytest itself. Standard library only:
see `confine`.
"""

from __future__ import annotations

import functools
import sys
import types

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


_ABSTRACT = 1 << 20  # Py_TPFLAGS_IS_ABSTRACT, as in inspect.isabstract
_GENERATOR = 0x20  # inspect.CO_GENERATOR


class Collected:
    """One test or preparation. `code`: the functions that hold its assertions; empty for a
    preparation, which is no test.
    """

    def __init__(self, run: Callable[[], Any], *code: Any) -> None:
        self.run, self.code, self.is_test = run, code, bool(code)


class Collector:
    """`aside` runs a preparation, so that its assertions are not those of a test. Functions `done`
    are not run.
    """

    def __init__(
        self, module: types.ModuleType, aside: Callable[[Callable[[], Any]], None], done: set[str]
    ) -> None:
        self._module, self._aside, self._done = module, aside, done

    def tests(self) -> Iterator[Collected]:
        """The tests of the module, between its preparations. All are collected before one runs."""
        tests = list(self._collected())
        yield self._preparation(self._module, ("setUpModule", "setup_module"))
        yield from tests
        yield self._preparation(self._module, ("tearDownModule", "teardown_module"))
        yield Collected(lambda: self._aside(_clean_up_module))

    def _collected(self) -> Iterator[Collected]:
        for name, found in list(vars(self._module).items()):
            if not isinstance(found, type):
                yield from self._function(name, found) if name not in self._done else ()
            else:
                yield from self._class(name, found)

    def _function(self, name: str, found: Any) -> Iterator[Collected]:
        if not _is_test(name, found):
            return
        for named in parameters(found, self._module):
            if takes(found, set(named)):  # a helper that takes more is no test
                run = functools.partial(self._run, self._module, "_function", found, named)
                yield Collected(run, *_code(found))

    def _class(self, name: str, kind: type) -> Iterator[Collected]:
        marked = getattr(kind, "__test__", None)
        if marked is False or kind.__flags__ & _ABSTRACT:
            return
        is_case = _is_case(kind)
        if not (is_case or name.startswith("Test") or marked is True):
            return
        tests = list(self._case(kind) if is_case else self._methods(kind))
        if not tests:
            return
        if is_case:
            yield Collected(kind.setUpClass)
        yield self._preparation(kind, ("setup_class",))
        yield from tests
        yield self._preparation(kind, ("teardown_class",))
        if is_case:
            yield Collected(lambda: _end_class(kind))

    def _methods(self, kind: type) -> Iterator[Collected]:
        for name, found in _members(kind):
            if isinstance(found, type):
                yield from self._class(name, found)
            elif _is_test(name, found):
                for named in parameters(found, kind, self._module):
                    yield Collected(functools.partial(self._run_method, kind, found, named), *_code(found))

    def _run_method(self, kind: type, found: Any, named: dict[str, Any]) -> None:
        """`found`: as it was collected; a test that ran before may have changed the class."""
        case = kind()
        bind = getattr(type(found), "__get__", None)
        self._run(case, "_method", bind(found, case, kind) if bind else found, named)

    def _case(self, kind: Any) -> Iterator[Collected]:
        """The tests of a `unittest.TestCase`, in the order of their names."""
        import unittest

        if kind in vars(unittest).values():  # imported by the tests
            return
        names = unittest.defaultTestLoader.getTestCaseNames(kind)
        for name in names or (["runTest"] if hasattr(kind, "runTest") else []):
            test = getattr(kind, name)
            if getattr(test, "__test__", True) is not False:
                yield Collected(functools.partial(self._run_case, kind, name), *_code(test))

    def _run_case(self, kind: Any, name: str) -> None:
        case = kind(name)
        self._run(case, "_method", getattr(case, name), {}, test=case.debug)

    def _run(
        self,
        holder: Any,
        what: str,
        given: Any,
        named: dict[str, Any],
        test: Callable[..., Any] | None = None,
    ) -> None:
        """Run a test between `setup_method` and `teardown_method`, or those of functions. Raises
        TypeError for a generator: pytest refuses it.
        """
        if getattr(getattr(_code(given)[-1], "__code__", None), "co_flags", 0) & _GENERATOR:
            raise TypeError("a test is a generator: none of it would run")
        self._prepare(holder, (f"setup{what}",), given)
        try:
            (test or given)(**named)
        finally:
            self._prepare(holder, (f"teardown{what}",), given)

    def _preparation(self, holder: Any, names: tuple[str, ...]) -> Collected:
        return Collected(lambda: self._prepare(holder, names, holder))

    def _prepare(self, holder: Any, names: tuple[str, ...], given: Any) -> None:
        """Call the first preparation that there is; it may take what it prepares."""
        function = next((getattr(holder, name) for name in names if hasattr(holder, name)), None)
        if function is not None:
            code = getattr(_code(function)[-1], "__code__", None)
            takes = code is not None and code.co_argcount > hasattr(function, "__self__")
            self._aside(lambda: function(*([given] if takes else [])))


def _end_class(kind: Any) -> None:
    kind.tearDownClass()
    kind.doClassCleanups()
    for _, error, _ in kind.tearDown_exceptions:
        raise error


def _clean_up_module() -> None:
    """What `unittest.addModuleCleanup` was given."""
    if "unittest" in sys.modules:
        sys.modules["unittest"].case.doModuleCleanups()


def _is_case(kind: type) -> bool:
    unittest = sys.modules.get("unittest")
    return unittest is not None and issubclass(kind, unittest.TestCase)


def _is_test(name: str, found: Any) -> bool:
    """pytest takes functions, also decorated ones, and no other objects that can be called."""
    return (
        name.startswith("test")
        and isinstance(_code(found)[-1], types.FunctionType)
        and getattr(found, "__test__", True) is not False
    )


def _code(found: Any) -> list[Any]:
    """A function and what it wraps, the innermost last."""
    chain = [found]
    while True:
        inner = chain[-1]
        if isinstance(inner, (staticmethod, classmethod, types.MethodType)):
            inner = inner.__func__
        elif isinstance(inner, (functools.partial, functools.partialmethod)):
            inner = inner.func
        else:
            inner = getattr(inner, "__wrapped__", None)
        if inner is None or len(chain) > 100:
            return chain
        chain.append(inner)


def _members(kind: type) -> list[tuple[str, Any]]:
    """What a class holds: the names of its bases first; of one name, the nearest."""
    seen: set[str] = set()
    by_class = []
    for one in kind.__mro__:
        own = [(name, found) for name, found in vars(one).items() if name not in seen]
        seen.update(name for name, _ in own)
        by_class.append(own)
    return [pair for own in reversed(by_class) for pair in own]


def parameters(*holders: Any) -> list[dict[str, Any]]:
    """The arguments of each run: the product of the `parametrize` marks; one run without arguments
    if there are none.
    """
    sets: list[dict[str, Any]] = [{}]
    for mark in _marks(*holders):
        if mark.name == "parametrize":
            rows = _rows(*mark.args, **mark.kwargs)
            sets = [one | row for one in sets for row in rows]
    return sets


def _rows(argnames: Any, argvalues: Any, *_: Any, **__: Any) -> list[dict[str, Any]]:
    """Names as text may hold one name, whose values are as they are given; in a list of names each
    value is a row.
    """
    whole = isinstance(argnames, str)
    names = [one.strip() for one in argnames.split(",") if one.strip()] if whole else list(argnames)
    single = whole and len(names) == 1
    made = type(sys.modules["pytest"].param())
    rows = [row.values if type(row) is made else [row] if single else row for row in argvalues]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _marks(*holders: Any) -> Iterator[Any]:
    for holder in holders:
        kinds = reversed(holder.__mro__) if isinstance(holder, type) else [holder]
        for one in kinds:
            found = getattr(one, "__dict__", {}).get("pytestmark", [])
            for mark in found if isinstance(found, (list, tuple)) else [found]:
                yield getattr(mark, "mark", mark)


def takes(function: Any, named: set[str]) -> bool:
    """Whether a test needs no other arguments."""
    if not isinstance(function, types.FunctionType):
        import inspect

        given = inspect.signature(function).parameters.values()
        free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {one.name for one in given if one.default is one.empty and one.kind not in free} <= named
    code = function.__code__
    places = code.co_varnames[: code.co_argcount]
    needed = {*places[: len(places) - len(function.__defaults__ or ())]}
    only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return needed | {*only} - {*(function.__kwdefaults__ or {})} <= named
