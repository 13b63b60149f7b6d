"""The end of a test file: the main guard, calls of tests that are collected anyway, the exit
status. `arrange` puts them in an order in which nothing is lost.

pytest never runs the main guard, and a script collects no tests. Here both happen: first the
module, then the collected tests, then the guards. So a guard changes nothing for a collected test.
A test that a statement of the module calls is not collected as well: some tests can run only once.
"""

from __future__ import annotations

import ast

from sppo_ray.rewards.code.sandbox import forms

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from typing import Any

EXIT = "exit_with_status"
"""The function that the changed code calls instead of `sys.exit`. Its name is that of an assertion,
see `rewrite.asserts`.
"""
_FRAMEWORKS = frozenset({"unittest", "pytest"})


def arrange(tree: ast.Module, code: str) -> None:
    """Move the main guards to the end, without those that only run what is collected anyway. Raises
    TestsUnfit for a framework that runs earlier, or with something else.
    """
    if "SystemExit" not in code:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                _judge_the_end(node.body)
    guards = [node for node in tree.body if is_main_guard(node)]
    rest = [_judged(node) for node in tree.body if node not in guards and not _is_success(node)]
    for place, node in enumerate(rest):
        later = [one for one in rest[place + 1 :] if not _only_prints(one)]
        if _runs_a_framework(node) and later:
            raise forms.TestsUnfit(f"line {node.lineno}: the framework runs before the end of the tests")
    _refuse_other_tests(tree)
    anyway = _tests_by_name(rest, code)
    for one in guards:
        one.body = [_judged(node) for node in one.body if not _is_success(node)]
        _refuse_beside_a_framework(one.body)
        if all(_only_prints(node) or _runs_tests(node, anyway) for node in one.body) and not one.orelse:
            one.body = []
    guards = [one for one in guards if one.body]
    tree.body = [node for node in rest if not _runs_a_framework(node)] + guards


def called(tree: ast.Module) -> set[str]:
    """Tests that a statement of the module calls after their last definition."""
    found: set[str] = set()
    for node in tree.body:
        found |= _calls_of(node)
        if isinstance(node, ast.FunctionDef):
            found.discard(node.name)
    return found - _rebound(tree.body)


def is_main_guard(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`."""
    test = node.test if isinstance(node, ast.If) else None
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


def judge_exit(status: Any = None) -> None:
    """`sys.exit(status)` of a test file: it fails as a process with this status does."""
    assert status is None or (type(status) in (bool, int) and not status), f"exit status {status!r}"


def _refuse_other_tests(tree: ast.Module) -> None:
    """`unittest.main(defaultTest="suite")` runs others than those that are collected."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_main(node.func):
            for one in node.keywords:
                if one.arg in ("testLoader", "defaultTest", "testRunner", "module"):
                    raise forms.TestsUnfit(f"line {node.lineno}: {one.arg} of main() is not supported")


def _refuse_beside_a_framework(body: list[ast.stmt]) -> None:
    """In a guard, what stands beside `unittest.main()` could change its tests."""
    plain = (ast.Import, ast.ImportFrom, ast.Pass)
    others = [
        one for one in body if not (isinstance(one, plain) or _only_prints(one) or _runs_a_framework(one))
    ]
    if others and any(map(_runs_a_framework, body)):
        raise forms.TestsUnfit(f"line {others[0].lineno}: the framework runs with other statements")


def _tests_by_name(body: list[ast.stmt], code: str) -> set[str]:
    """Tests that are collected and need no arguments, and whose names mean nothing else."""
    if "__test__" in code:
        return set()
    tests = [one for scope, one in forms.collected(ast.Module(body, [])) if isinstance(scope, ast.Module)]
    return {one.name for one in tests if not forms.required(one, method=False)} - _rebound(body)


def _rebound(body: list[ast.stmt]) -> set[str]:
    names = (one for node in body for one in ast.walk(node) if isinstance(one, ast.Name))
    return {one.id for one in names if not isinstance(one.ctx, ast.Load)}


def _calls_of(node: ast.stmt) -> set[str]:
    """The functions that `test_a()` or `for t in (test_a, test_b): t()` calls, and nothing else."""
    if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and not node.orelse:
        calls = [_calls_of(one) for one in node.body if not _is_print(one)]
        names = [one.id for one in getattr(node.iter, "elts", []) if isinstance(one, ast.Name)]
        whole = isinstance(node.iter, (ast.List, ast.Tuple)) and len(names) == len(node.iter.elts)
        return set(names) if whole and calls == [{node.target.id}] else set()
    call = node.value if isinstance(node, ast.Expr) else None
    plain = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args + call.keywords
    return {call.func.id} if plain else set()


def _runs_tests(node: ast.stmt, anyway: set[str]) -> bool:
    calls = _calls_of(node)
    return calls <= anyway if calls else _runs_a_framework(node)


def _runs_a_framework(node: ast.stmt) -> bool:
    """Whether it calls `unittest.main()`: its tests are run in any case."""
    return isinstance(node, ast.Expr) and any(map(_is_main, ast.walk(node)))


def _is_main(node: ast.AST) -> bool:
    """`unittest.main` or `pytest.main`."""
    owner = node.value if isinstance(node, ast.Attribute) and node.attr == "main" else None
    return isinstance(owner, ast.Name) and owner.id in _FRAMEWORKS


def _is_print(node: ast.stmt) -> bool:
    """A `print` that calls nothing else."""
    call = node.value if isinstance(node, ast.Expr) else None
    is_print = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
    return is_print and sum(isinstance(one, ast.Call) for one in ast.walk(call)) == 1


def _only_prints(node: ast.stmt) -> bool:
    return _is_print(node) and all(isinstance(one, ast.Constant) for one in node.value.args)


def _is_success(node: ast.stmt) -> bool:
    """`sys.exit(0)`."""
    call = node.value if isinstance(node, ast.Expr) else None
    return (
        isinstance(call, ast.Call)
        and _is_exit(call.func)
        and all(isinstance(one, ast.Constant) and not one.value for one in call.args)
    )


def _judged(node: ast.stmt) -> ast.stmt:
    """`sys.exit(status)` and `raise SystemExit(status)` as a call that judges the status."""
    value = node.value if isinstance(node, ast.Expr) else node.exc if isinstance(node, ast.Raise) else None
    if not isinstance(value, ast.Call):
        return node
    raises = isinstance(value.func, ast.Name) and value.func.id == "SystemExit"
    if not (raises if isinstance(node, ast.Raise) else _is_exit(value.func)):
        return node
    value.func = ast.copy_location(ast.Name(EXIT, ast.Load()), value.func)
    return ast.copy_location(ast.Expr(value), node)


def _judge_the_end(body: list[ast.stmt]) -> None:
    """`sys.exit(0)` at the end of a function, as in `main`, ends no test file: what follows its
    call runs as well.
    """
    last = body[-1]
    if isinstance(last, ast.If):
        for block in filter(None, (last.body, last.orelse)):
            _judge_the_end(block)
    else:
        body[-1] = _judged(last)


def _is_exit(function: ast.expr) -> bool:
    """`exit`, `quit` or `sys.exit`, and no method of that name."""
    if isinstance(function, ast.Attribute):
        return function.attr == "exit" and isinstance(function.value, ast.Name) and function.value.id == "sys"
    return isinstance(function, ast.Name) and function.id in ("exit", "quit")
