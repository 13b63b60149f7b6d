"""The last run of a program that passed: its own objects, and the tests as pytest and Python run
them, in one process, started by `sppo_ray.rewards.code.sandbox.run` only: `main(SETUP_FD)`.

The tester sees copies and proxies, which differ from plain Python in some details, and it collects
tests by rules of its own. Here pytest itself collects and runs them; a test file that is a script
as well has to succeed as one, too. A program can tamper with this run, so its report is not
trusted: it only ever lowers what the tester, which no program can reach, has found.

Each run has a program and a module of its own. In the one of pytest, `unittest.main()` and
`pytest.main()` do nothing, since pytest runs the tests anyway, and the calls of tests at the end of
the file are left out, since a test may hold only once in one state of the program. The script has
both.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import sys
import types

from sppo_ray.rewards.code.sandbox import collect, known, program, served, statements

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PACKAGE = "tests_of_the_row"  # so that `from .solution import f` works
_OPTIONS = ("--assert=plain", "-s", "--rootdir=/", "-c", "/dev/null", "--noconftest")
_LEFT_OUT = ("cacheprovider", "faulthandler", "terminal")  # they write files, or need standard streams
_SOME_FAILED, _NOTHING_COLLECTED = 1, 5


def main(setup_fd: int) -> None:
    setup = program.read(setup_fd)
    source, repeated = setup["tests"], {*setup["repeated"]}
    with_pytest = "test" in source.lower()
    if with_pytest:  # before the program's time begins: it takes longer than most programs
        _import_pytest(setup["limits"]["readable"])
    program.enter(setup_fd)
    write, result, token = os.pwrite, setup.pop("result"), setup.pop("token")
    started = sys.modules["__main__"]
    tree = ast.parse(source)
    setup["imports"] = statements.imports_program(tree)
    rest = [node for node in tree.body if not statements.calls_of(node) & repeated]
    is_script = len(rest) < len(tree.body) or "__main__" in source or "__name__" in source
    is_script = is_script or any(map(statements.runs_a_framework, rest))
    failed = _failed_in_module(rest, setup, statements.future_flags(tree), with_pytest=with_pytest)
    if is_script and not failed:
        failed = not _holds_as_script(program.compiled(source, "tests.py"), setup)
    write(result, b"%s %d" % (token, failed), 0)
    del started  # it had to live


def _import_pytest(paths: list[str]) -> None:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.chdir = lambda _: None  # type: ignore[assignment]  # seccomp refuses it, and pytest stays in "/"
    before = sys.path[:]
    sys.path += paths
    import pytest  # noqa: F401

    sys.path[:] = before


def _failed_in_module(body: list[ast.stmt], setup: dict[str, Any], flags: int, *, with_pytest: bool) -> int:
    """The number of the module's own statements that fail, and of tests that pytest finds in it and
    that do not pass. `flags`: of compiling it.
    """
    names = _program(setup["code"])
    sys.modules["__main__"] = sys.modules[served.MODULE]
    module = _module(f"{_PACKAGE}.tests", setup, names)
    if with_pytest:
        pytest, unittest = sys.modules["pytest"], importlib.import_module("unittest")
        run_pytest, run_unittest = pytest.main, unittest.main
        done = types.SimpleNamespace(result=unittest.TestResult())
        pytest.main, unittest.main = lambda *_, **__: 0, lambda *_, **__: done
    failed = 0
    last = [node for node in body if not statements.is_main_guard(node)][-1:]
    codes = [program.compiled(ast.Module([node], type_ignores=[]), "tests.py", flags) for node in body]
    runs = [_runner(code, vars(module), is_last=node in last) for code, node in zip(codes, body, strict=True)]
    if setup["entry"] is not None:
        runs.append(lambda: vars(module)["check"](served.find(names, setup["entry"])))
    for run in runs:
        try:
            run()
        except BaseException:  # boundary: the program may raise anything
            failed += 1
            if setup["stop_at_failure"]:
                return failed
    if not with_pytest:
        return failed
    unittest.main = run_unittest
    return failed + _failed_in_pytest(run_pytest, module, names, setup)


def _runner(code: types.CodeType, space: dict[str, Any], *, is_last: bool) -> Callable[[], None]:
    """Runs one statement. A successful exit is no failure at the end; earlier, tests are lost."""

    def run() -> None:
        try:
            exec(code, space)
        except SystemExit as ended:
            if not (is_last and _is_success(ended)):
                raise

    return run


def _holds_as_script(code: types.CodeType, setup: dict[str, Any]) -> bool:
    """Whether Python ends with success when it runs the file."""
    module = sys.modules["__main__"] = _module("__main__", setup, _program(setup["code"]))
    try:
        exec(code, vars(module))
    except SystemExit as ended:
        return _is_success(ended)
    except BaseException:  # boundary: the program may raise anything
        return False
    return True


def _is_success(ended: SystemExit) -> bool:
    return ended.code is None or (type(ended.code) in (bool, int) and not ended.code)


def _program(code: str) -> dict[str, Any]:
    """Run the program, as every module from which tests import it; returns its names. A method of
    its class Solution can be imported like a function.
    """
    names = served.definitions(code, beside_tests=True)

    def missing(name: str) -> Any:
        if not served.has(names, name):
            raise AttributeError(f"module 'program' has no attribute '{name}'")
        return served.find(names, name)

    names.setdefault("__getattr__", missing)
    package = sys.modules[_PACKAGE] = types.ModuleType(_PACKAGE)
    package.__path__ = []
    for name in known.PROGRAM_MODULES - {"__main__"}:
        sys.modules[name] = sys.modules[f"{_PACKAGE}.{name}"] = sys.modules[served.MODULE]
        setattr(package, name, sys.modules[served.MODULE])
    return names


def _module(name: str, setup: dict[str, Any], names: dict[str, Any]) -> types.ModuleType:
    """A module in which the names that the tests use and do not define have their meaning."""
    module = sys.modules[name] = types.ModuleType(name)
    space = vars(module)
    space |= {"__file__": "/tests.py", "__package__": _PACKAGE}
    fixed = {one: called for one, called in setup["fixed"].items() if one not in setup["own"]}
    space |= {one: known.known(one, called=called) for one, called in fixed.items()}
    for one, real in setup["taken"].items():
        is_missing = "()." not in real and not served.has(names, real)  # a NameError where it is used
        if not is_missing and not (setup["has_star"] and real in names):  # a star gives what `__all__` has
            space[one] = served.find(names, real)
    if setup["has_star"] or not setup["imports"]:  # as one file: the program's own `len` or `gcd` is meant
        own = vars(builtins).keys() | setup["fixed"].keys()
        space |= {one: value for one, value in names.items() if one in own}
    if not setup["has_star"]:
        space |= {one: names[real] for one, real in setup["kinds"].items() if real in names}
    return module


def _failed_in_pytest(
    run: Any, module: types.ModuleType, names: dict[str, Any], setup: dict[str, Any]
) -> int:
    """The number of tests of the module that do not pass; one that is skipped does not. What
    belongs to the program, and functions that need arguments, are no tests.
    """
    import pathlib

    import pytest
    from _pytest.capture import DontReadFromInput

    of_program, helpers = {id(one) for one in names.values()}, {*setup["helpers"]}

    class Module(pytest.Module):
        def _getobj(self) -> types.ModuleType:
            return module

        def istestfunction(self, obj: Any, name: str) -> bool:
            if id(obj) in of_program or name in helpers or not super().istestfunction(obj, name):
                return False
            return any(collect.takes(obj, set(named)) for named in collect.parameters(obj, module))

        def istestclass(self, obj: Any, name: str) -> bool:
            return id(obj) not in of_program and super().istestclass(obj, name)

    class Only:
        """Collects this module, and notes what does not pass."""

        failed: set[str] = set()
        collected = 0

        def pytest_collection(self, session: Any) -> bool:
            held = Module.from_parent(session, path=pathlib.Path("/tests.py"))
            session.items = list(session.genitems(held))
            session.testscollected = self.collected = len(session.items)
            return True

        def pytest_runtest_logreport(self, report: Any) -> None:
            if not report.passed:
                self.failed.add(report.nodeid)

        pytest_collectreport = pytest_runtest_logreport

    sys.stdin = DontReadFromInput()  # as pytest has it, whose -s would leave it
    stop = ["-x"] if setup["stop_at_failure"] else []
    status = int(run([*_OPTIONS, *stop, *(f"-pno:{one}" for one in _LEFT_OUT)], plugins=[only := Only()]))
    if status in (0, _NOTHING_COLLECTED):
        return len(only.failed)
    ended_early = status != _SOME_FAILED  # by a KeyboardInterrupt, say: what did not run has failed
    return max(only.collected if ended_early else len(only.failed), 1)
