"""The end of a test file: the main guard, calls of tests that are collected anyway, the exit
status. `arrange` puts them in an order in which nothing is lost.

pytest never runs the main guard, and a script collects no tests. Here both happen: first the
module, then the collected tests, then the guards. So a guard changes nothing for a collected test.
"""

from __future__ import annotations

import ast

from sppo_ray.rewards.code.sandbox import forms
from sppo_ray.rewards.code.sandbox.rewrite import name_of_call

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from typing import Any

EXIT = "exit_with_status"
"""The function that the changed code calls instead of `sys.exit`. Its name is that of an assertion,
see `rewrite.asserts`.
"""
_FRAMEWORKS = frozenset({"unittest", "pytest"})


def arrange(tree: ast.Module, code: str) -> None:
    """Move the main guards to the end. Remove statements at an end that only run what is collected
    anyway. Raises TestsUnfit for a framework that runs earlier.
    """
    guards = [node for node in tree.body if is_main_guard(node)]
    rest = [node for node in tree.body if node not in guards]
    anyway = _tests_by_name(tree, code)
    for one in guards:
        one.body = _trimmed(one.body, anyway)
    guards = [one for one in guards if one.body or one.orelse]
    for one in guards:
        one.body = one.body or [ast.Pass(lineno=one.lineno, col_offset=one.col_offset)]
    tree.body = [*_trimmed(rest, anyway), *guards]


def is_main_guard(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`."""
    test = node.test if isinstance(node, ast.If) else None
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


def judge_exit(status: Any = None) -> None:
    """`sys.exit(status)` of a test file: it fails as a process with this status does."""
    assert status is None or (type(status) in (bool, int) and not status), f"exit status {status!r}"


def _trimmed(body: list[ast.stmt], anyway: set[str]) -> list[ast.stmt]:
    body = [_judged(node) for node in body if not _is_success(node)]
    while body and (_only_prints(body[-1]) or _runs_tests(body[-1], anyway)):
        del body[-1]
    for node in body:
        if _runs_a_framework(node):
            raise forms.TestsUnfit(f"line {node.lineno}: the framework runs before the end of the tests")
    return body


def _tests_by_name(tree: ast.Module, code: str) -> set[str]:
    """Tests that are collected and need no arguments, and whose names mean nothing else."""
    if "__test__" in code:
        return set()
    tests = [one for scope, one in forms.collected(tree) if isinstance(scope, ast.Module)]
    bound = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    return {one.name for one in tests if not forms.required(one, method=False)} - bound


def _runs_tests(node: ast.stmt, anyway: set[str]) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args + call.keywords:
        return call.func.id in anyway
    return _runs_a_framework(node)


def _runs_a_framework(node: ast.stmt) -> bool:
    """Whether it calls `unittest.main()`: its tests are run in any case."""
    return isinstance(node, ast.Expr) and any(
        isinstance(one, ast.Attribute)
        and one.attr == "main"
        and isinstance(one.value, ast.Name)
        and one.value.id in _FRAMEWORKS
        for one in ast.walk(node)
    )


def _only_prints(node: ast.stmt) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return (
        isinstance(call, ast.Call)
        and name_of_call(call) == "print"
        and all(isinstance(one, ast.Constant) for one in call.args)
    )


def _is_success(node: ast.stmt) -> bool:
    """`sys.exit(0)`."""
    call = node.value if isinstance(node, ast.Expr) else None
    return (
        isinstance(call, ast.Call)
        and name_of_call(call) == "exit"
        and all(isinstance(one, ast.Constant) and not one.value for one in call.args)
    )


def _judged(node: ast.stmt) -> ast.stmt:
    """`sys.exit(status)` and `raise SystemExit(status)` as a call that judges the status."""
    value = node.value if isinstance(node, ast.Expr) else node.exc if isinstance(node, ast.Raise) else None
    wanted = "exit" if isinstance(node, ast.Expr) else "SystemExit"
    if not (isinstance(value, ast.Call) and name_of_call(value) == wanted and not _runs_a_framework(node)):
        return node
    value.func = ast.copy_location(ast.Name(EXIT, ast.Load()), value.func)
    return ast.copy_location(ast.Expr(value), node)
