"""What single statements of a test file are: the main guard, calls of tests, prints."""

from __future__ import annotations
import __future__

import ast

from sppo_ray.rewards.code.sandbox.known import PROGRAM_MODULES

_FRAMEWORKS = frozenset({"unittest", "pytest"})


def future_flags(tree: ast.Module) -> int:
    """What `from __future__ import ...` of a file means for its statements, compiled one by one."""
    flags = 0
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            features = [getattr(__future__, one.name, None) for one in node.names]
            flags |= sum(one.compiler_flag for one in features if one is not None)
    return flags


def imports_program(tree: ast.Module) -> bool:
    """Whether the tests import the program, which then is a file of its own."""
    return any(
        (isinstance(node, ast.ImportFrom) and (node.level > 0 or node.module in PROGRAM_MODULES))
        or (isinstance(node, ast.Import) and any(one.name in PROGRAM_MODULES for one in node.names))
        for node in ast.walk(tree)
    )


def is_main_guard(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`."""
    test = node.test if isinstance(node, ast.If) else None
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        return False
    sides = [test.left, *test.comparators]
    names = [one.id for one in sides if isinstance(one, ast.Name)]
    return names == ["__name__"] and "__main__" in [getattr(one, "value", None) for one in sides]


def calls_of(node: ast.stmt) -> set[str]:
    """The functions that `test_a()` or `for t in (test_a, test_b): t()` calls, and nothing else."""
    if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and not node.orelse:
        calls = [calls_of(one) for one in node.body if not is_print(one)]
        names = [one.id for one in getattr(node.iter, "elts", []) if isinstance(one, ast.Name)]
        whole = isinstance(node.iter, (ast.List, ast.Tuple)) and len(names) == len(node.iter.elts)
        return set(names) if whole and calls == [{node.target.id}] else set()
    call = node.value if isinstance(node, ast.Expr) else None
    plain = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args + call.keywords
    return {call.func.id} if plain else set()


def runs_a_framework(node: ast.stmt) -> bool:
    """Whether it calls `unittest.main()`: its tests are run in any case."""
    return isinstance(node, ast.Expr) and any(map(is_main, ast.walk(node)))


def is_main(node: ast.AST) -> bool:
    """`unittest.main` or `pytest.main`."""
    owner = node.value if isinstance(node, ast.Attribute) and node.attr == "main" else None
    return isinstance(owner, ast.Name) and owner.id in _FRAMEWORKS


def is_print(node: ast.stmt) -> bool:
    """A `print` that calls nothing else."""
    call = node.value if isinstance(node, ast.Expr) else None
    is_print = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
    return is_print and sum(isinstance(one, ast.Call) for one in ast.walk(call)) == 1


def only_prints(node: ast.stmt) -> bool:
    return is_print(node) and all(isinstance(one, ast.Constant) for one in node.value.args)
