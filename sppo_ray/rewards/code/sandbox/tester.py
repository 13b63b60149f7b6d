"""The process of the tests, started by `sppo_ray.rewards.code.sandbox.run` only: `main(SETUP_FD)`.

The test code runs here with proxies for the functions under test; each call is sent to the program,
and its value is returned. The result is written to a file as JSON: {"passed", "failed"}, or
{"error"} when the tests cannot be run this way. Errors are decided before the program has returned
a value; later, only for operations of the tests themselves. Standard library only: see `confine`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import json
import os
import re
import sys
import types

from sppo_ray.rewards.code.sandbox import (
    again,
    arrays,
    collect,
    collectable,
    endings,
    forms,
    handed,
    known,
    program,
    rewrite,
    statements,
    told,
    verdicts,
    wire,
)
from sppo_ray.rewards.code.sandbox.flow import hide_literals, is_class
from sppo_ray.rewards.code.sandbox.forms import TestsUnfit
from sppo_ray.rewards.code.sandbox.known import PROGRAM_MODULES
from sppo_ray.rewards.code.sandbox.proxies import Remote, RemoteIterator, type_name
from sppo_ray.rewards.code.sandbox.remote import Link, ProgramGone
from sppo_ray.rewards.code.sandbox.same import same
from sppo_ray.rewards.code.sandbox.subject import Subject, has_star

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_HOLDS_FUNCTIONS = "Solution"  # the class whose methods stand for functions, in many data sets


class Test:
    """One step of the tests. `counts` is False for preparation (an import, a definition, a plain
    value). `expects`: it has assertions, and must reach one to pass.
    """

    def __init__(self, run: Callable[[], Any], *, counts: bool = True, expects: bool = False) -> None:
        self.run, self.counts, self.expects = run, counts, expects


class CallTests:
    """One test per {"args", "named", "expected"} of the program's function `name`, or of that
    method of its class Solution. `expected` has the value in each reading of the row: some data
    sets write it as text, or as a list of one. All right values of a program have one reading in
    common. A function that returns None may have changed its first argument instead; one that
    never does has done nothing, and earns nothing where the argument was right before.
    """

    def __init__(self, name: str, cases: list[dict[str, Any]]) -> None:
        self._name, self._cases, self.reached, self.empty = name, cases, 0, 0
        self._expects_none = any(None in case["expected"] for case in cases)
        self._changed = self._unchanged = 0  # cases that pass with None and the first argument
        self._readings = {at for case in cases for at in range(len(case["expected"]))}
        self.entered: set[int] = set()
        self.marked: set[int] = set()
        self.subjects, self.required, self.kinds = [name], [], []
        self.least = len(cases)

    def steps(self, link: Link) -> Iterator[Test]:
        function = link.subject(self._name)
        return (Test(lambda case=case: self._run(function, **case)) for case in self._cases)

    def _run(
        self, function: Remote, args: list[Any], expected: list[Any], named: dict[str, Any] | None = None
    ) -> None:
        first = next(iter((*args, *(named or {}).values())), None)
        before = json.loads(json.dumps(first))
        value = function._sppo_in_place(*args, **(named or {}))
        in_place = value is None and not self._expects_none and isinstance(first, (list, dict, set))
        readings = {at for at in self._readings if same(first if in_place else value, expected[at])}
        assert readings
        self._readings = readings
        if in_place:
            is_changed = not same(first, before)
            self._changed += is_changed
            self._unchanged += not is_changed

    @property
    def unearned(self) -> int:
        """Passed tests of a function that does nothing."""
        return 0 if self._changed else self._unchanged


class CodeTests:
    """The tests in a test file: each statement with an assertion, in order, then the defined tests
    as pytest and unittest collect them, and `check(candidate)` if the file does not call it. Raises
    TestsUnfit and SyntaxError, independent of the program.
    """

    unearned = 0

    def __init__(self, code: str, entry: str | None) -> None:
        self._entry, self.reached, self.empty, self.swallowed = entry, 0, 0, False
        self.entered: set[int] = set()  # loops and branches on a value of the program
        self.marked: set[int] = set()  # those that have reached an assertion
        self._tried: dict[int, int] = {}
        self._code, self._tree = code, ast.parse(code)
        self._flags = statements.future_flags(self._tree)
        hide_literals(self._tree)
        forms.refuse(self._tree, entry)
        collectable.refuse(self._tree)
        self._subject = Subject(code, self._tree, entry)
        if classes := set(filter(is_class, self._subject.taken)):
            verdicts.refuse_one_sided(self._tree, classes)
        self._check_imports()
        self._names_nan = re.search(r"nan\b|NaN|NAN", code) is not None
        endings.arrange(self._tree, code)
        self._repeated = again.run_once(self._tree, self._subject.flow)
        self._helpers = collectable.generators(self._tree)
        tests = {one.name for _, one in collectable.collected(self._tree)} - self._repeated - self._helpers
        self._defined = len(tests)
        self._has_star = has_star(self._tree)
        _WithoutProgram().visit(self._tree)
        self._asserting = rewrite.asserting(self._tree)
        self._calls_check = self._is_check_called()
        if not rewrite.asserts(self._tree):
            raise TestsUnfit("they assert nothing: they prove nothing")
        self._numpy = "numpy" in code or "np." in code or "allclose" in code
        rewrite.rewrite(self._tree, self._subject.flow, numpy=self._numpy)
        if self._numpy:
            arrays.patch_numpy()
        if "unittest" in code or "pytest" in code or "TestCase" in code:
            _patch_frameworks(self._reach)
        self._module = types.ModuleType("__main__")
        self._namespace: dict[str, Any] = vars(self._module)
        self._namespace["__file__"] = "/tests.py"
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
            rewrite.TYPE_NAME: type_name,
            again.EXIT: self._exit,
            "exit": sys.exit,
            "quit": sys.exit,
        }
        self.subjects = list(self._subject.taken.values())
        self.required, self.kinds = self._subject.required, list(self._subject.kinds.values())
        if entry is not None and "check" in self._functions():
            self.subjects.append(entry)
        if not (any(collectable.collected(self._tree)) or any(map(self._may_count, self._tree.body))):
            raise TestsUnfit("no statement and no test runs an assertion: they prove nothing")
        if not self.subjects:
            raise TestsUnfit("they never call the program: they prove nothing")

    @property
    def least(self) -> int:
        """The number of tests, also of those whose definition does not run."""
        return self._defined + sum(map(self._counts, self._tree.body))

    def _may_count(self, node: ast.stmt) -> bool:
        is_check = self._entry is not None and isinstance(node, ast.FunctionDef) and node.name == "check"
        targets = node.targets if isinstance(node, ast.Assign) else []
        names_test = any(isinstance(one, ast.Name) and one.id.startswith("test") for one in targets)
        return is_check or names_test or isinstance(node, ast.ClassDef) or self._counts(node)

    def _counts(self, node: ast.stmt) -> bool:
        """Whether a statement is a test: it contains or calls an assertion, or what a list of the
        tests holds.
        """
        calls = {rewrite.name_of_call(one) for one in ast.walk(node) if isinstance(one, ast.Call)}
        own = [one for one in self._tree.body if isinstance(one, ast.FunctionDef) and one.name in calls]
        unnamed = "" in calls  # `getattr(suite, name)()`
        asserts = any(map(rewrite.asserts, [node, *own])) or unnamed or not self._asserting.isdisjoint(calls)
        return not _defines(node) and (asserts or any(map(self._calls_members, [node, *own])))

    def _calls_members(self, node: ast.stmt) -> bool:
        """`for t in tests: t()`, where a decorator may have added the tests."""
        for one in ast.walk(node):
            if isinstance(one, ast.For) and not self._subject.flow.of(one.iter):
                names = {name.id for name in ast.walk(one.target) if isinstance(name, ast.Name)}
                if not names.isdisjoint(rewrite.called_names(one)):
                    return True
        return False

    def _is_check_called(self) -> bool:
        """Whether `check(f)` is a statement of the module or a guard; other calls may never run, or
        not all of it. A check that needs more than f is left to its tests.
        """
        guards = [one for node in filter(statements.is_main_guard, self._tree.body) for one in node.body]
        for node in [*self._tree.body, *guards]:
            call = node.value if isinstance(node, ast.Expr) else None
            is_check = isinstance(call, ast.Call) and rewrite.name_of_call(call) == "check"
            if is_check and len(call.args) == 1 and not call.keywords:
                return True
        named = [one for one in self._tree.body if isinstance(one, ast.FunctionDef) and one.name == "check"]
        called = any("check" in rewrite.called_names(one) for one in self._tree.body if not _defines(one))
        return called and any(len(collectable.required(one, method=False)) != 1 for one in named)

    def _functions(self) -> set[str]:
        return {one.name for one in self._tree.body if isinstance(one, ast.FunctionDef)}

    def for_pytest(self) -> dict[str, Any]:
        """What `plain` has to know: what the tests use and do not define, tests that the module
        calls itself, functions test* that are none, what to call `check` with, and whether the
        module imports all names of the program.
        """
        return {
            "taken": self._subject.taken,
            "kinds": self._subject.kinds,
            "fixed": self._subject.fixed,
            "own": sorted(self._subject.own),
            "repeated": sorted(self._repeated),
            "helpers": sorted(self._helpers),
            "entry": self._entry if self._has_check() else None,
            "has_star": self._has_star,
        }

    def _has_check(self) -> bool:
        return self._entry is not None and "check" in self._functions() and not self._calls_check

    def steps(self, link: Link) -> Iterator[Test]:
        self._bind(link)
        own = [node for node in self._tree.body if not statements.is_main_guard(node)]
        for node in own:
            self._may_exit = node is own[-1]
            yield self._statement(node)
        self._may_exit = False
        if self._has_check():
            check = self._namespace["check"]
            yield Test(lambda: check(link.subject(self._entry)), expects=self._expects(check))
        for one in collect.Collector(self._module, self._aside, self._repeated | self._helpers).tests():
            expects = any(map(self._expects, one.code))
            yield Test(one.run, counts=one.is_test, expects=expects)
        self._may_exit = True
        for node in filter(statements.is_main_guard, self._tree.body):
            yield self._statement(node)

    def _exit(self, status: Any = None) -> None:
        """A successful exit before the end of the file loses what follows."""
        endings.judge_exit(status)
        if not self._may_exit:
            raise SystemExit(status)

    def _bind(self, link: Link) -> None:
        space = self._namespace
        link.may_be_nan, link.with_arrays = self._names_nan, self._numpy
        self._link = link
        link.hands_over = lambda: self._hands_over
        link.moves_generators = re.search(r"\.(?:send|close)\(|\bnext\(", self._code) is not None
        classes = {name.rpartition(".")[2] for name in self._subject.taken if is_class(name)}
        link.reads_objects = bool(classes)
        link.extends = bool(classes - {_HOLDS_FUNCTIONS})
        space[rewrite.TRIED] = lambda number: self._tried.__setitem__(number, link.calls)
        told.share(link.set_for_all, self._code, self._numpy)
        for name, real in self._subject.taken.items():
            space[name] = link.subject(real)
        space |= link.exceptions(self._subject.kinds)

    @functools.cached_property
    def _hands_over(self) -> bool:
        """See `handed`; of the tests as they were written."""
        tree = ast.parse(self._code)
        hide_literals(tree)
        return handed.hands_over(tree, Subject(self._code, tree, self._entry))

    def _statement(self, node: ast.stmt) -> Test:
        code = program.compiled(ast.Module([node], type_ignores=[]), "tests.py", self._flags)
        counts = self._counts(node)
        expects = rewrite.expects(node) or not self._asserting.isdisjoint(rewrite.called_names(node))
        return Test(lambda: exec(code, self._namespace), counts=counts, expects=counts and expects)

    def _expects(self, function: Any) -> bool:
        """Whether the code of a function contains or calls an assertion."""
        code = getattr(function, "__code__", None)
        return code is not None and self._code_expects(code)

    def _code_expects(self, code: types.CodeType) -> bool:
        names = {*code.co_names, *code.co_freevars}
        return not names.isdisjoint({rewrite.REACHED, rewrite.CHECKS, *self._asserting}) or any(
            isinstance(one, types.CodeType) and self._code_expects(one) for one in code.co_consts
        )

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

    def _aside(self, prepare: Callable[[], Any]) -> None:
        """Run a preparation: its assertions are not those of the test."""
        reached = self.reached
        prepare()
        self.reached = reached

    def _reach(self, value: Any) -> bool:
        self.reached += 1
        return bool(value)

    def _checks(self, function: Any) -> Any:
        """An assertion of a framework, or a helper that raises; others have assertions inside."""
        is_own = getattr(function, "__globals__", None) is self._namespace
        self.reached += not (is_own and self._expects(function))
        return function

    def _all(self, values: Any) -> bool:
        count = 0
        for count, value in enumerate(values, 1):  # noqa: B007
            if not value:
                return False
        self.empty += not count
        return True

    def _allow_in_place(self, function: Any) -> Any:
        return function._sppo_in_place if isinstance(function, Remote) else function

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
        pytest.main = lambda *_, **__: 0

    done = types.SimpleNamespace(result=unittest.TestResult())
    unittest.main = lambda *_, **__: done  # type: ignore[misc, assignment]
    unittest.TestCase.run = run  # type: ignore[assignment]
    unittest.TextTestRunner.run = lambda self, tests: run(tests)  # type: ignore[method-assign]


class _WithoutProgram(ast.NodeTransformer):
    """Removes imports of the program, wherever they stand: its names are bound for all tests."""

    def visit_Import(self, node: ast.Import) -> ast.stmt:
        names = [one for one in node.names if one.name not in PROGRAM_MODULES]
        return ast.copy_location(ast.Import(names) if names else ast.Pass(), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        return node if node.module not in PROGRAM_MODULES else ast.copy_location(ast.Pass(), node)


def run_tests(tests: CallTests | CodeTests, link: Link, *, stop_at_failure: bool) -> dict[str, Any]:
    """Run the tests; return passed and failed ones. After the program ends or a preparation fails,
    all remaining tests have failed. Raises TestsUnfit when no test fails and one cannot be decided.
    """
    passed = failed = 0
    unfit = ""
    steps = tests.steps(link)
    for test in steps:
        why = _run(test, tests, link)
        if why is None:
            passed += test.counts
        elif why:
            unfit = why
        else:
            failed += 1
            if stop_at_failure or not test.counts or link.is_gone:
                failed += sum(rest.counts for rest in steps)
                failed = max(failed, tests.least - passed)  # those that were not defined any more
                break
    if not failed and unfit:
        raise TestsUnfit(unfit)
    if not failed and not link.calls and not link.involved:
        raise TestsUnfit("they never call the program: they prove nothing")
    passed, failed = passed - tests.unearned, failed + tests.unearned
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
    except BaseException as error:  # boundary: a test may fail in any way, pytest.fail() by no Exception
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
        link.with_identity = cases is None
        link.await_program(tests.subjects, tests.kinds, tests.required)
        report = run_tests(tests, link, stop_at_failure=setup["stop_at_failure"])
        report["ignored"] = link.ignored
        report["plain"] = tests.for_pytest() if cases is None else None
    except ProgramGone:
        report = {"passed": 0, "failed": 1}
    except TestsUnfit as error:
        report = {"error": str(error)}
    except Exception as error:  # boundary: tests may be no Python, or use a program's value in any way
        failed = {"error": f"{type(error).__name__}: {error}"}
        report = {"passed": 0, "failed": 1} if link.involved else failed
    os.pwrite(setup["result"], json.dumps(report).encode(), 0)
    os._exit(0)  # at once: the program may still take the processor
