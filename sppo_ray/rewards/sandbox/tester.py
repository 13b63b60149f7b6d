"""The process of the tests, started by `sppo_ray.rewards.sandbox.run` only: `main(SETUP_FD)`.

The test code runs here with stand-ins for what the program defines; a call travels to the program, its value comes back. The
result goes to a file of its own as JSON: {"passed", "failed", "calls"} or {"error"} when the tests cannot be run this way.
Standard library only: see `confine`.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sppo_ray.rewards.sandbox import program, wire
from sppo_ray.rewards.sandbox.remote import Link, ProgramGone, Unsupported

_SOLUTION_MODULES = {"solution", "main", "program", "answer", "submission"}
_REAL_MODULES = sys.stdlib_module_names | {"numpy"}
_RELATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Test:
    """One step of the tests. `counts` is False for what only prepares (an import, a definition, a plain value)."""

    run: Callable[[], Any]
    counts: bool = True


def call_tests(link: Link, name: str, cases: list[dict[str, Any]]) -> list[Test]:
    """A test for each {"args", "expected"}: the program's function `name`, or that of its class Solution.

    `expected` lists what is right: some data sets write a value as text, or as a list of one.
    """

    def run(args: list[Any], expected: list[Any]) -> None:
        value = _entry(link, name)(*args)
        assert any(same(value, one) for one in expected)

    return [Test(lambda case=case: run(case["args"], case["expected"])) for case in cases]


def same(value: Any, expected: Any) -> bool:
    """Equal, where a tuple may stand for a list and a float may be off by a millionth; True is no 1."""
    if isinstance(value, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(value) == len(expected) and all(same(*pair) for pair in zip(value, expected, strict=True))
    if isinstance(value, dict) and isinstance(expected, dict):
        plain = {str(key): one for key, one in value.items()}  # JSON knows text keys only
        return plain.keys() == {str(key) for key in expected} and all(same(plain[str(k)], one) for k, one in expected.items())
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, float) or isinstance(expected, float):
        numbers = isinstance(value, (int, float)) and isinstance(expected, (int, float))
        return numbers and (value == expected or abs(value - expected) <= _RELATIVE_TOLERANCE * max(1.0, abs(expected)))
    return bool(value == expected)


def code_tests(link: Link, code: str, entry_point: str | None) -> list[Test]:
    """The statements of a test file in order: each that asserts or calls something is a test; then what it defined.

    That is functions test_*, classes of unittest, and `check(candidate)` where the file does not call it itself.
    """
    tree = ast.parse(code)
    namespace: dict[str, Any] = {"__name__": "tests"} | _borrowed(link, tree)
    tests = [_statement(link, node, namespace) for node in tree.body]
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.bases:
            tests.append(Test(lambda name=node.name: _run_unittest(namespace[name])))
        elif isinstance(node, ast.FunctionDef) and node.name not in called:
            if node.name == "check" and entry_point:
                tests.append(Test(lambda: namespace["check"](_entry(link, entry_point))))
            elif node.name.startswith("test"):
                tests.append(Test(lambda name=node.name: namespace[name]()))
    return tests


def _entry(link: Link, name: str) -> Any:
    return getattr(link.all if name in link.names or "Solution" not in link.names else link.all.Solution(), name)


def _borrowed(link: Link, tree: ast.Module) -> dict[str, Any]:
    """What the tests use without defining it: the program's names, never in place of a built-in one; modules are real ones."""
    nodes = list(ast.walk(tree))
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    wanted = used - bound - set(dir(builtins))
    known = {name: module for name, module in link.modules.items() if module.partition(".")[0] in _REAL_MODULES}
    try:
        found = {name: getattr(link.all, name) for name in wanted & link.names}
        return found | {name: importlib.import_module(known[name]) for name in wanted & known.keys()}
    except Exception:  # boundary: the program says what it has, and may say anything
        raise ProgramGone from None


def _statement(link: Link, node: ast.stmt, namespace: dict[str, Any]) -> Test:
    if isinstance(node, ast.ImportFrom) and node.module in _SOLUTION_MODULES:
        names = {alias.asname or alias.name: alias.name for alias in node.names if alias.name != "*"}
        return Test(lambda: namespace.update({mine: getattr(link.all, name) for mine, name in names.items()}), counts=False)
    if isinstance(node, ast.Import) and node.names[0].name in _SOLUTION_MODULES:
        return Test(lambda: namespace.update({node.names[0].asname or node.names[0].name: link.all}), counts=False)
    code = compile(ast.Module([node], type_ignores=[]), "tests.py", "exec")
    defines = isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom))
    checks = any(isinstance(part, (ast.Assert, ast.Call)) for part in ast.walk(node))
    return Test(lambda: exec(code, namespace), counts=checks and not defines)


def _run_unittest(case: type) -> None:
    import unittest

    if issubclass(case, unittest.TestCase):
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
        assert suite.countTestCases()
        suite.debug()  # raises what a test raises


def run_tests(tests: list[Test], *, stop_at_failure: bool) -> dict[str, int]:
    """Passed and failed tests. Once the program is gone or a preparation fails, all that are left have failed."""
    passed = failed = 0
    for number, test in enumerate(tests):
        try:
            test.run()
            passed += test.counts
        except (ImportError, SyntaxError) as error:
            raise Unsupported(f"{type(error).__name__}: {error}") from None
        except (Exception, SystemExit, ProgramGone) as error:  # boundary: a test may fail in any way
            failed += 1
            if stop_at_failure or not test.counts or isinstance(error, ProgramGone):
                failed += sum(rest.counts for rest in tests[number + 1 :])
                break
    return {"passed": passed, "failed": failed}


def main(setup_fd: int) -> None:
    setup = program.enter(setup_fd)
    result = setup["result"]
    try:
        link = Link(wire.Wire(*setup["wire"]), result)
        if setup["cases"] is not None:
            tests = call_tests(link, setup["name"], setup["cases"])
        else:
            tests = code_tests(link, setup["tests"], setup["name"])
        report = run_tests(tests, stop_at_failure=setup["stop_at_failure"]) | {"calls": link.calls}
    except ProgramGone:
        report = {"passed": 0, "failed": 1, "calls": 0}
    except (Unsupported, SyntaxError) as error:
        report = {"error": str(error)}
    os.pwrite(result, json.dumps(report).encode(), 0)
