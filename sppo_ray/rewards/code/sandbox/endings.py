"""The end of a test file: the main guard, calls of tests that are collected anyway, the exit
status. `arrange` puts them in an order in which nothing is lost.

pytest never runs the main guard, and a script collects no tests. Here both happen: first the
module, then the collected tests, then the guards, without those that only run collected tests.
"""

from __future__ import annotations

import ast

from sppo_ray.rewards.code.sandbox import forms, statements
from sppo_ray.rewards.code.sandbox.again import EXIT, Runs

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from typing import Any


def arrange(tree: ast.Module, code: str) -> None:
    """Move the main guards to the end, without those that only run what is collected anyway. Raises
    TestsUnfit for a framework that runs earlier, or with something else, and for other questions
    about `__name__`.
    """
    if "SystemExit" not in code:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body[-1] = _judged(node.body[-1])
    guards = [node for node in tree.body if statements.is_main_guard(node)]
    _refuse_other_guards(tree, guards)
    rest = [_judged(node) for node in tree.body if node not in guards and not _is_success(node)]
    for place, node in enumerate(rest):
        later = [one for one in rest[place + 1 :] if not statements.only_prints(one)]
        if statements.runs_a_framework(node) and later:
            raise forms.TestsUnfit(f"line {node.lineno}: the framework runs before the end of the tests")
    _refuse_other_tests(tree)
    for one in guards:
        one.body = [_judged(node) for node in one.body if not _is_success(node)]
        _refuse_beside_a_framework(one.body)
    if guards:
        runs = Runs(rest, code)
        guards = [one for one in guards if one.body and not runs.only_tests(one.body)]
    tree.body = [node for node in rest if not statements.runs_a_framework(node)] + guards


def _refuse_other_guards(tree: ast.Module, guards: list[ast.stmt]) -> None:
    """What stands under another question about `__name__`, pytest and a script run differently."""
    known = {id(one.test) for one in guards if not one.orelse}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and id(node) not in known:
            sides = (node.left, *node.comparators)
            if any(isinstance(one, ast.Name) and one.id == "__name__" for one in sides):
                raise forms.TestsUnfit(
                    f'line {node.lineno}: only a plain `if __name__ == "__main__":` without else is followed'
                )


def judge_exit(status: Any = None) -> None:
    """`sys.exit(status)` of a test file: it fails as a process with this status does, and no
    `except Exception` hides it.
    """
    if not (status is None or (type(status) in (bool, int) and not status)):
        raise SystemExit(status)


def _refuse_other_tests(tree: ast.Module) -> None:
    """`unittest.main(defaultTest="suite")` runs others than those that are collected."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and statements.is_main(node.func):
            for one in node.keywords:
                if one.arg in ("testLoader", "defaultTest", "testRunner", "module"):
                    raise forms.TestsUnfit(f"line {node.lineno}: {one.arg} of main() is not supported")


def _refuse_beside_a_framework(body: list[ast.stmt]) -> None:
    """In a guard, what stands beside `unittest.main()` could change its tests."""
    plain = (ast.Import, ast.ImportFrom, ast.Pass)
    others = [
        one
        for one in body
        if not (isinstance(one, plain) or statements.only_prints(one) or statements.runs_a_framework(one))
    ]
    if others and any(map(statements.runs_a_framework, body)):
        raise forms.TestsUnfit(f"line {others[0].lineno}: the framework runs with other statements")


def _is_success(node: ast.stmt) -> bool:
    """`sys.exit(0)`."""
    call = node.value if isinstance(node, ast.Expr) else None
    return (
        isinstance(call, ast.Call)
        and _is_exit(call.func)
        and all(isinstance(one, ast.Constant) and not one.value for one in call.args)
    )


def _judged(node: ast.stmt) -> ast.stmt:
    """`sys.exit(status)` and `raise SystemExit(status)`, where a statement ends, as a call that
    judges the status: as in `main`, it ends no test file; what follows runs as well.
    """
    for block in _last_blocks(node):
        block[-1:] = map(_judged, block[-1:])
    value = node.value if isinstance(node, ast.Expr) else node.exc if isinstance(node, ast.Raise) else None
    if not isinstance(value, ast.Call):
        return node
    raises = isinstance(value.func, ast.Name) and value.func.id == "SystemExit"
    if not (raises if isinstance(node, ast.Raise) else _is_exit(value.func)):
        return node
    value.func = ast.copy_location(ast.Name(EXIT, ast.Load()), value.func)
    return ast.copy_location(ast.Expr(value), node)


def _last_blocks(node: ast.stmt) -> list[list[ast.stmt]]:
    """The blocks behind which nothing of the statement runs."""
    if isinstance(node, ast.If):
        return [node.body, node.orelse]
    if not isinstance(node, ast.Try):
        return []
    caught = {forms.name_of(inner) for one in node.handlers if one.type for inner in ast.walk(one.type)}
    blocks = [] if "SystemExit" in caught else [node.orelse or node.body]
    return [*blocks, *(one.body for one in node.handlers)]


def _is_exit(function: ast.expr) -> bool:
    """`exit`, `quit` or `sys.exit`, and no method of that name."""
    if isinstance(function, ast.Attribute):
        return function.attr == "exit" and isinstance(function.value, ast.Name) and function.value.id == "sys"
    return isinstance(function, ast.Name) and function.id in ("exit", "quit")
