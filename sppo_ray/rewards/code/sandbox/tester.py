"""The process of the tests, started by `sppo_ray.rewards.code.sandbox.run` only: `main(SETUP_FD)`.

The test code runs here with proxies for the functions under test; each call is sent to the program,
and its value is returned. The result is written to a file as JSON: {"passed", "failed"}, or
{"error"} when the tests cannot be run this way. Errors are decided before the program has returned
a value; later, only for operations of the tests themselves. Standard library only: see `confine`.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import os
import re
import sys
import types

from sppo_ray.rewards.code.sandbox import arrays, forms, known, program, rewrite, verdicts, wire
from sppo_ray.rewards.code.sandbox.flow import hide_literals, is_class
from sppo_ray.rewards.code.sandbox.forms import TestsUnfit
from sppo_ray.rewards.code.sandbox.known import PROGRAM_MODULES
from sppo_ray.rewards.code.sandbox.proxies import Remote, RemoteIterator
from sppo_ray.rewards.code.sandbox.remote import Link, NoPlainValue, ProgramGone, Unsupported
from sppo_ray.rewards.code.sandbox.same import same
from sppo_ray.rewards.code.sandbox.subject import Subject

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


_FRAMEWORKS = frozenset({"unittest", "pytest"})


class Test:
    """One step of the tests. `counts` is False for preparation (an import, a definition, a plain
    value). `expects`: it has assertions, and must reach one to pass.
    """

    def __init__(self, run: Callable[[], Any], *, counts: bool = True, expects: bool = False) -> None:
        self.run, self.counts, self.expects = run, counts, expects


class CallTests:
    """One test per {"args", "expected"} of the program's function `name`, or of that method of its
    class Solution. `expected` lists all right values: some data sets write a value as text, or as a
    list of one. A function that returns None may have changed its first argument instead.
    """

    def __init__(self, name: str, cases: list[dict[str, Any]]) -> None:
        self._name, self._cases, self.reached, self.empty = name, cases, 0, 0
        self.entered: set[int] = set()
        self.marked: set[int] = set()
        self.subjects, self.required, self.kinds = [name], [], []

    def steps(self, link: Link) -> Iterator[Test]:
        function = link.subject(self._name)
        return (Test(lambda case=case: self._run(function, **case)) for case in self._cases)

    def _run(self, function: Remote, args: list[Any], expected: list[Any]) -> None:
        value = function._in_place(*args)
        changed_in_place = args and isinstance(args[0], (list, dict, set))
        if value is None and None not in expected and changed_in_place:
            value = args[0]
        assert any(same(value, one) for one in expected)


class CodeTests:
    """The tests in a test file: each statement with an assertion, in order, then the defined tests
    as pytest and unittest collect them, and `check(candidate)` if the file does not call it. Raises
    TestsUnfit and SyntaxError, independent of the program. `proxies`: functions under test are
    proxies; else they are the program's own and the tests run as they are.
    """

    def __init__(self, code: str, entry: str | None, *, proxies: bool = True) -> None:
        self._entry, self.reached, self.empty, self.swallowed = entry, 0, 0, False
        self.entered: set[int] = set()  # loops and branches on a value of the program
        self.marked: set[int] = set()  # those that have reached an assertion
        self._tried: dict[int, int] = {}
        self._tree = ast.parse(code)
        hide_literals(self._tree)
        forms.refuse(self._tree)
        self._subject = Subject(code, self._tree, entry)
        if classes := set(filter(is_class, self._subject.taken)):
            verdicts.refuse_one_sided(self._tree, classes)
        self._check_imports()
        self._names_nan = re.search(r"nan\b|NaN|NAN", code) is not None
        held = forms.collected(self._tree)
        self._tests = {one.name: one for scope, one in held if isinstance(scope, ast.Module)}
        self._tree.body = [one for one in self._tree.body if not self._is_run_anyway(one)]
        self._asserting = rewrite.asserting(self._tree)
        self._calls_check = any(
            "check" in rewrite.called_names(node) for node in self._tree.body if not _defines(node)
        )
        if not rewrite.asserts(self._tree):
            raise TestsUnfit("they assert nothing: they prove nothing")
        self._numpy = "numpy" in code or "np." in code or "allclose" in code
        if proxies:
            rewrite.rewrite(self._tree, self._subject.flow, numpy=self._numpy)
        if proxies and self._numpy:
            arrays.patch_numpy()
        if "unittest" in code or "pytest" in code or "TestCase" in code:
            _patch_frameworks(self._reach)
        self._namespace: dict[str, Any] = {"__name__": "__main__", "__file__": "/tests.py"}
        self._namespace |= {
            name: known.known(name, called=called) for name, called in self._subject.fixed.items()
        }
        self._namespace |= {
            rewrite.REACHED: self._reach,
            rewrite.CHECKS: self._checks,
            rewrite.IN_PLACE: self._allow_in_place,
            rewrite.CAUGHT: self._catch,
            rewrite.ENTER: self.entered.add,
            rewrite.MARK: self.marked.add,
            rewrite.STARMAP: itertools.starmap,
            rewrite.ALL: self._all,
            rewrite.ZIP: _zip,
            rewrite.OPERATE: arrays.operate,
        }
        self.subjects = list(self._subject.taken.values())
        self.required, self.kinds = self._subject.required, list(self._subject.kinds.values())
        if entry is not None and "check" in self._functions():
            self.subjects.append(entry)
        if not (self._tests or any(map(self._may_count, self._tree.body))):
            raise TestsUnfit("no statement and no test runs an assertion: they prove nothing")
        if not self.subjects:
            raise TestsUnfit("they never call the program: they prove nothing")

    def _may_count(self, node: ast.stmt) -> bool:
        is_check = self._entry is not None and isinstance(node, ast.FunctionDef) and node.name == "check"
        return is_check or isinstance(node, ast.ClassDef) or (not _defines(node) and self._counts(node))

    def _counts(self, node: ast.stmt) -> bool:
        """Whether a statement is a test: it contains or calls an assertion."""
        calls = rewrite.called_names(node)
        own = [one for one in self._tree.body if isinstance(one, ast.FunctionDef) and one.name in calls]
        return not _defines(node) and any(map(rewrite.asserts, [node, *own]))

    def _functions(self) -> set[str]:
        return {one.name for one in self._tree.body if isinstance(one, ast.FunctionDef)}

    def _is_run_anyway(self, node: ast.stmt) -> bool:
        """Whether it only runs a framework, or a test that is collected, or ends the run; under the
        main guard such statements are removed.
        """
        if isinstance(node, ast.If) and not node.orelse and _is_main_guard(node.test):
            node.body = [one for one in node.body if not self._is_run_anyway(one)]
            return not node.body
        if not isinstance(node, ast.Expr):
            return False
        call = node.value
        given = call.args if isinstance(call, ast.Call) else []
        succeeds = all(isinstance(one, ast.Constant) and not one.value for one in given)
        if succeeds and rewrite.name_of_call(call) == "exit":
            return True
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args + call.keywords:
            test = self._tests.get(call.func.id)
            return test is not None and not forms.required(test, method=False)
        return _runs_a_framework(node)

    def steps(self, link: Link) -> Iterator[Test]:
        self._bind(link)
        for node in self._tree.body:
            yield self._statement(node)
        if self._entry is not None and "check" in self._functions() and not self._calls_check:
            yield self._test("check", link.subject(self._entry))
        yield self._preparation("setup_module", "setUpModule")
        for name, found in {id(found): (name, found) for name, found in self._namespace.items()}.values():
            if isinstance(found, type) and found.__module__ == "__main__":
                yield from self._class(found)
            elif isinstance(found, types.FunctionType) and name.startswith("test"):
                yield from self._function(name, found)
        yield self._preparation("teardown_module", "tearDownModule")

    def _preparation(self, *names: str) -> Test:
        functions = [self._namespace[name] for name in names if name in self._namespace]
        return Test(lambda: [_call(one) for one in functions], counts=False)

    def _bind(self, link: Link) -> None:
        space = self._namespace
        link.may_be_nan, link.with_arrays = self._names_nan, self._numpy
        self._link = link
        link.reads_objects = any(map(is_class, self._subject.taken))
        space[rewrite.TRIED] = lambda number: self._tried.__setitem__(number, link.calls)
        for name, real in self._subject.taken.items():
            space[name] = link.subject(real)
        space |= link.exceptions(self._subject.kinds)

    def _statement(self, node: ast.stmt) -> Test:
        code = program.compiled(ast.Module([node], type_ignores=[]), "tests.py")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node = _without_program(node)
            code = program.compiled(ast.Module([node] if node.names else [], type_ignores=[]), "tests.py")
        counts = self._counts(node)
        expects = rewrite.expects(node) or not self._asserting.isdisjoint(rewrite.called_names(node))
        return Test(lambda: exec(code, self._namespace), counts=counts, expects=counts and expects)

    def _test(self, name: str, *arguments: Any, **named: Any) -> Test:
        function = self._namespace[name]
        return Test(lambda: function(*arguments, **named), expects=self._expects(function))

    def _expects(self, function: Any) -> bool:
        """Whether the code of a function contains or calls an assertion."""
        code = getattr(function, "__code__", None)
        return code is not None and self._code_expects(code)

    def _code_expects(self, code: types.CodeType) -> bool:
        names = {*code.co_names, *code.co_freevars}
        return not names.isdisjoint({rewrite.REACHED, rewrite.CHECKS, *self._asserting}) or any(
            isinstance(one, types.CodeType) and self._code_expects(one) for one in code.co_consts
        )

    def _function(self, name: str, function: types.FunctionType) -> Iterator[Test]:
        """Return a pytest function, once for each set of its parameters; a helper that takes other
        ones is none.
        """
        for named in _parameters(function):
            if _takes(function, set(named)):
                test = self._test(name, **named)
                yield Test(lambda test=test: self._surrounded(function, test), expects=test.expects)

    def _surrounded(self, function: types.FunctionType, test: Test) -> None:
        """Run a pytest function between `setup_function` and `teardown_function`."""
        self._prepare_function("setup_function", function)
        try:
            test.run()
        finally:
            self._prepare_function("teardown_function", function)

    def _prepare_function(self, name: str, function: types.FunctionType) -> None:
        """Its assertions are not those of the test."""
        reached = self.reached
        if name in self._namespace:
            _call(self._namespace[name], function)
        self.reached = reached

    def _class(self, kind: type) -> Iterator[Test]:
        unittest = sys.modules.get("unittest")
        if unittest is not None and issubclass(kind, unittest.TestCase):
            own = ["runTest"] if hasattr(kind, "runTest") else []
            for name in unittest.defaultTestLoader.getTestCaseNames(kind) or own:
                suite = unittest.TestSuite([kind(name)])
                yield Test(suite.debug, expects=self._expects(getattr(kind, name)))
            return
        if not kind.__name__.startswith("Test"):
            return
        yield Test(lambda: _prepare(kind, "setup_class"), counts=False)
        for name in [one for one in dir(kind) if one.startswith("test") and callable(getattr(kind, one))]:
            for named in _parameters(getattr(kind, name), kind):
                yield Test(
                    lambda name=name, named=named: _run_method(kind, name, named),
                    expects=self._expects(getattr(kind, name)),
                )
        yield Test(lambda: _prepare(kind, "teardown_class"), counts=False)
        for inner in vars(kind).values():
            if isinstance(inner, type):
                yield from self._class(inner)

    def _check_imports(self) -> None:
        """Raises ImportError for a missing module that the tests import outside a `try`."""
        tried = {
            id(node) for one in ast.walk(self._tree) if isinstance(one, ast.Try) for node in ast.walk(one)
        }
        for node in ast.walk(self._tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in tried:
                for name in (
                    [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                ):
                    if name not in PROGRAM_MODULES:
                        importlib.import_module(name)

    def _reach(self, value: Any) -> bool:
        self.reached += 1
        return bool(value)

    def _checks(self, function: Any) -> Any:
        """An assertion of a framework; a function of the tests has its own assertions."""
        self.reached += getattr(function, "__globals__", None) is not self._namespace
        return function

    def _all(self, values: Any) -> bool:
        count = 0
        for count, value in enumerate(values, 1):  # noqa: B007
            if not value:
                return False
        self.empty += not count
        return True

    def _allow_in_place(self, function: Any) -> Any:
        return function._in_place if isinstance(function, Remote) else function

    def _catch(
        self,
        kinds: Any,
        number: int,
        judges: bool,
        replaces: bool,
        must_raise: bool,
        skips: bool,
        checked: bool,
    ) -> None:
        """Called first in each handler of the tests. `judges`: the handler is an assertion, and
        `replaces` one that failed. `skips`: an assertion does not run. `checked`: the body has one.
        """
        error = sys.exc_info()[1]
        several = kinds if isinstance(kinds, tuple) else (kinds,)
        broad = any(one is None or issubclass(AssertionError, one) for one in several)
        if isinstance(error, StopIteration):
            return
        if getattr(error, "_of_program", False):
            self.swallowed |= broad and skips and not must_raise and not judges
        elif isinstance(error, AssertionError) or not isinstance(error, Exception):
            self.swallowed |= not replaces
        elif checked or self._link.calls > self._tried.get(number, 0):
            self.swallowed |= (broad or not must_raise) and not judges


def _zip(*sides: Any, counted: bool = False) -> Any:
    """zip for values of the program: lengths must be equal. `counted`: beside a `range`, a
    generator may be longer.
    """
    if not counted or not any(isinstance(one, RemoteIterator) for one in sides):
        return zip(*sides, strict=True)
    return _counted(sides)


def _counted(sides: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    ended = object()
    remote = [isinstance(one, RemoteIterator) for one in sides]
    iterators = [iter(one) for one in sides]
    while True:
        ours = [None if theirs else next(one, ended) for theirs, one in zip(remote, iterators, strict=True)]
        if any(one is ended for one in ours):
            return
        values = [
            next(one, ended) if theirs else value
            for theirs, one, value in zip(remote, iterators, ours, strict=True)
        ]
        if any(one is ended for one in values):
            raise ValueError("the generator is too short")
        yield tuple(values)


def _defines(node: ast.stmt) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.ClassDef))


def _is_main_guard(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


def _patch_frameworks(reach: Callable[[Any], bool]) -> None:
    """A runner of the tests' own raises the failures that it finds. `pytest.raises` that catches is
    an assertion, also where a test gets it as a parameter.
    """
    import unittest

    def run(tests: Any, result: Any = None) -> Any:
        tests.debug()
        return result if result is not None else unittest.TestResult()

    if (pytest := sys.modules.get("pytest")) is not None:
        kind = type(pytest.raises(Exception))
        leave = kind.__exit__
        kind.__exit__ = lambda self, *error: leave(self, *error) and reach(True)

    unittest.main = lambda *_, **__: None  # type: ignore[misc, assignment]
    unittest.TestCase.run = run  # type: ignore[assignment]
    unittest.TextTestRunner.run = lambda self, tests: run(tests)  # type: ignore[method-assign]


def _without_program(node: ast.Import | ast.ImportFrom) -> ast.Import | ast.ImportFrom:
    if isinstance(node, ast.Import):
        return ast.Import([one for one in node.names if one.name not in PROGRAM_MODULES], **_place(node))
    return node if node.module not in PROGRAM_MODULES else ast.Import([], **_place(node))


def _place(node: ast.stmt) -> dict[str, int]:
    return {"lineno": node.lineno, "col_offset": node.col_offset}


def _runs_a_framework(node: ast.Expr) -> bool:
    """Whether it calls `unittest.main()`: its tests are run in any case."""
    return any(
        isinstance(n, ast.Attribute)
        and (
            (n.attr == "main" and isinstance(n.value, ast.Name) and n.value.id in _FRAMEWORKS)
            or n.attr == "wasSuccessful"
        )
        for n in ast.walk(node)
    )


def _parameters(*holders: Any) -> list[dict[str, Any]]:
    """Return the arguments of each run: the product of the `parametrize` marks; one run without
    arguments if there are none.
    """
    sets: list[dict[str, Any]] = [{}]
    for mark in [mark for one in holders for mark in getattr(one, "pytestmark", [])]:
        if mark.name == "parametrize":
            names, rows = [*mark.args, *mark.kwargs.values()][:2]
            names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
            rows = [getattr(row, "values", row) for row in rows]
            rows = [dict(zip(names, row if len(names) > 1 else [row], strict=True)) for row in rows]
            sets = [one | row for one in sets for row in rows]
    return sets


def _takes(function: types.FunctionType, named: set[str]) -> bool:
    """Whether a test needs no other arguments."""
    code = function.__code__
    places = code.co_varnames[: code.co_argcount]
    needed = {*places[: len(places) - len(function.__defaults__ or ())]}
    only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return needed | {*only} - {*(function.__kwdefaults__ or {})} <= named


def _call(function: Any, *given: Any) -> None:
    """Call a preparation of pytest, which may take what it prepares."""
    code = getattr(function, "__code__", None)
    bound = hasattr(function, "__self__")
    function(*given[: code.co_argcount - bound] if code is not None else ())


def _prepare(holder: Any, name: str, *given: Any) -> None:
    if hasattr(holder, name):
        _call(getattr(holder, name), *given)


def _run_method(kind: type, name: str, named: dict[str, Any]) -> None:
    case = kind()
    test = getattr(case, name)
    for prepare in ("setup_method", "setup", "setUp"):
        _prepare(case, prepare, test)
    test(**named)
    for tidy in ("teardown_method", "teardown", "tearDown"):
        _prepare(case, tidy, test)


def run_tests(tests: CallTests | CodeTests, link: Link, *, stop_at_failure: bool) -> dict[str, Any]:
    """Run the tests; return passed and failed ones, or why they cannot be decided. After the
    program ends or a preparation fails, all remaining tests have failed.
    """
    passed = failed = unknown = 0
    unfit = ""
    steps = tests.steps(link)
    for test in steps:
        why = _run(test, tests, link)
        if why is None:
            passed += test.counts
        elif why:
            unfit, unknown = why, unknown + 1
        else:
            failed += 1
            if stop_at_failure or not test.counts or link.is_gone:
                failed += sum(rest.counts for rest in steps)
                break
    if not failed and unfit:
        return {"undecided": unfit, "passed": passed, "failed": unknown}
    if not failed and not link.calls and not link.involved:
        raise TestsUnfit("they never call the program: they prove nothing")
    # a value of the program took the tests away, or its class gives one verdict to all
    missed = tests.entered - tests.marked or not link.calls or 0 < tests.reached <= tests.empty
    if not failed and (not passed or missed or link.one_sided(tests.reached)):
        failed = 1
    return {"passed": passed, "failed": failed}


def _run(test: Test, tests: CallTests | CodeTests, link: Link) -> str | None:
    """Run one test: None when it passes, "" when it fails, else why it cannot be decided. Raises
    TestsUnfit for tests that fail by themselves.
    """
    reached, called = tests.reached, link.calls
    tests.swallowed = link.broken = False
    link.unsupported = ""
    try:
        test.run()
    except (Exception, SystemExit, ProgramGone, NoPlainValue, Unsupported) as error:
        # boundary: a test may fail in any way
        if link.unsupported:
            return link.unsupported
        if not link.involved and not link.broken:
            raise TestsUnfit(f"{type(error).__name__}: {error}") from None
        return ""
    if link.unsupported:
        return link.unsupported
    missed = test.expects and link.calls > called and tests.reached == reached
    return "" if link.broken or tests.swallowed or missed else None


def main(setup_fd: int) -> None:
    setup = program.enter(setup_fd)
    link = Link(wire.Wire(*setup["wire"]), setup["result"])
    try:
        cases = setup["cases"]
        tests = CodeTests(setup["tests"], setup["name"]) if cases is None else CallTests(setup["name"], cases)
        link.exact, link.as_python = cases is None, setup["as_python"]
        link.await_program(tests.subjects, tests.kinds, tests.required)
        report = run_tests(tests, link, stop_at_failure=setup["stop_at_failure"])
        report["ignored"] = link.ignored
    except ProgramGone:
        report = {"passed": 0, "failed": 1}
    except TestsUnfit as error:
        report = {"error": str(error)}
    except Exception as error:  # boundary: tests may be no Python, or use a program's value in any way
        failed = {"error": f"{type(error).__name__}: {error}"}
        report = {"passed": 0, "failed": 1} if link.involved else failed
    os.pwrite(setup["result"], json.dumps(report).encode(), 0)
    os._exit(0)  # at once: the program may still take the processor
