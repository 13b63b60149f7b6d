"""The tests that pytest would collect, as the source has them, and what it would not run of them:
`refuse` raises TestsUnfit, with the line, before anything runs.
"""

from __future__ import annotations

import ast

from sppo_ray.rewards.code.sandbox.aliases import assigned_once
from sppo_ray.rewards.code.sandbox.forms import (
    TestsUnfit,
    defines,
    is_check,
    name_of,
    name_of_call,
    own_nodes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def refuse(tree: ast.Module) -> None:
    """Raise TestsUnfit for the first test that pytest would not run, or not as it stands."""
    nodes = list(ast.walk(tree))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    helpers = {one.id for one in calls if isinstance(one, ast.Name)} & _reached(tree)
    asserts = [node for node in nodes if isinstance(node, ast.Assert)]
    asserted = {name_of_call(one) for node in asserts for one in ast.walk(node.test)}
    objects, assigned, decorating = _objects(tree), assigned_once(tree), decorators(tree)
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    _refuse_marks(tree)
    for scope, function in collected(tree):
        in_class = isinstance(scope, ast.ClassDef)
        _refuse_decorators([scope, function], objects)
        given = _parametrized([function, scope, tree], assigned)
        if in_class or function.name not in decorating:
            _refuse_test(scope, function, helpers, asserted, given)
        yields = any(_yields(one, functions) for one in own_nodes(function))
        if _is_generator(function) and (in_class or yields or function.name not in helpers):
            raise TestsUnfit(f"line {function.lineno}: {function.name} is a generator: no test for pytest")
        if in_class and _is_made(scope, classes):
            raise TestsUnfit(f"line {scope.lineno}: pytest runs no test of a class with __init__ or __new__")


def _refuse_test(
    scope: ast.AST, function: ast.FunctionDef, helpers: set[str], asserted: set[str], given: set[str]
) -> None:
    """Refuse a test that pytest would not run, or whose result it would ignore. `given`: the
    parameters that have values.
    """
    where = f"line {function.lineno}: "
    missing = required(function, method=isinstance(scope, ast.ClassDef)) - given
    if missing and function.name not in helpers:
        raise TestsUnfit(
            f"{where}{function.name} takes {', '.join(sorted(missing))}: fixtures are not supported"
        )
    own = list(own_nodes(function))
    returns = any(isinstance(node, ast.Return) and _is_value(node.value) for node in own)
    judges = any(isinstance(node, ast.Assert) or is_check(node) for node in own)
    if returns and not (missing or judges or function.name in asserted):
        raise TestsUnfit(f"{where}pytest ignores what {function.name} returns")


def _refuse_decorators(holders: list[ast.AST], objects: set[str]) -> None:
    """Refuse a test in the place of which its decorator puts an object."""
    for holder in holders:
        for one in getattr(holder, "decorator_list", []):
            if _plain_name(one) in objects or name_of(one) in ("property", "cached_property"):
                raise TestsUnfit(f"line {one.lineno}: a class as the decorator of a test is not followed")


def _refuse_marks(tree: ast.Module) -> None:
    """`__test__` decides what pytest collects: only constants are followed."""
    nodes = list(ast.walk(tree))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    inner = {id(one) for node in classes for one in node.body}
    allowed: set[int] = set()
    for node in nodes:
        plain = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        value = node.value.value if plain else None
        if value is False or (value is True and id(node) in inner):
            names = [one for one in node.targets if isinstance(one, ast.Attribute) or id(node) in inner]
            allowed.update(map(id, names))
    for node in nodes:
        stored = isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)) and name_of(node) == "__test__"
        text = isinstance(node, ast.Constant) and node.value == "__test__"
        if text or (stored and id(node) not in allowed):
            raise TestsUnfit(f"line {node.lineno}: only `__test__ = False`, and True in a class, is followed")


def _is_made(scope: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether it has an `__init__` or `__new__`, and is no TestCase as far as it is known."""
    line: list[ast.ClassDef] = [scope]
    for one in line:
        bases = [name_of(base) for base in one.bases]
        if any(base not in classes and base not in ("object", "ABC") for base in bases):
            return False
        line += [classes[base] for base in bases if base in classes and classes[base] not in line]
    dataclass = any(_plain_name(mark) == "dataclass" for one in line for mark in one.decorator_list)
    return dataclass or any(defines(one, name) for one in line for name in ("__init__", "__new__"))


def _is_generator(function: ast.FunctionDef) -> bool:
    return any(isinstance(one, (ast.Yield, ast.YieldFrom)) for one in own_nodes(function))


def _yields(node: ast.AST, functions: set[str]) -> bool:
    """`yield check, x, y`: whether a test of nose yields what it runs."""
    inner = list(ast.walk(node)) if isinstance(node, (ast.Yield, ast.YieldFrom)) else []
    return any(isinstance(one, ast.Lambda) or name_of(one) in functions for one in inner)


def generators(tree: ast.Module) -> set[str]:
    """Functions test* that are helpers: they yield what tests use."""
    return {function.name for _, function in collected(tree) if _is_generator(function)}


def _reached(tree: ast.Module) -> set[str]:
    """The names that statements of the module and tests use, directly or through functions."""
    functions: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            functions.setdefault(node.name, []).append(node)
    tests = [one for scope, one in collected(tree) if not required(one, method=scope is not tree)]
    prepared = [name for name in functions if name.startswith(("set", "tear", "check"))]
    left: list[ast.AST] = [*(node for node in tree.body if not isinstance(node, ast.FunctionDef))]
    left += [mark for node in ast.walk(tree) for mark in getattr(node, "decorator_list", [])]
    left += [*tests, *(one for name in prepared for one in functions[name])]
    found: set[str] = set()
    while left:
        named = {one.id for one in ast.walk(left.pop()) if isinstance(one, ast.Name)} - found
        found |= named
        left += [function for name in named for function in functions.get(name, [])]
    return found


def collected(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.FunctionDef]]:
    """The functions test* of the module and of classes, each with what holds it."""

    def of(scope: ast.AST, node: ast.AST) -> Iterator[tuple[ast.AST, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                if child.name.startswith("test"):
                    yield scope, child
            elif isinstance(child, ast.ClassDef):
                yield from of(child, child)
            elif isinstance(child, (ast.stmt, ast.excepthandler)):
                yield from of(scope, child)

    return of(tree, tree)


def required(function: ast.FunctionDef, *, method: bool) -> set[str]:
    """The names of its parameters without a default."""
    given = function.args
    places = [one.arg for one in (*given.posonlyargs, *given.args)]
    places = places[: len(places) - len(given.defaults)]
    static = any(name_of(one) == "staticmethod" for one in function.decorator_list)
    only = [one.arg for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value is None]
    return {*places[1 if method and not static else 0 :], *only}


def decorators(tree: ast.AST) -> set[str]:
    """The names of the functions that decorate others."""
    holders = (one for one in ast.walk(tree) if isinstance(one, (ast.FunctionDef, ast.ClassDef)))
    found = (one for holder in holders for one in holder.decorator_list)
    return set(map(_plain_name, found))


def _plain_name(node: ast.expr | None) -> str:
    """`f` of `f` and of `f(...)`."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.id if isinstance(node, ast.Name) else ""


def _objects(tree: ast.Module) -> set[str]:
    """Classes of the tests, their objects, and functions that return these, by name."""
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    made = [  # a name, and what it is made of
        (one.id, _plain_name(node.value))
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for one in node.targets
        if isinstance(one, ast.Name)
    ] + [
        (node.name, _plain_name(one.value))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for one in own_nodes(node)
        if isinstance(one, ast.Return)
    ]
    while more := {name for name, of in made if of in found} - found:
        found |= more
    return found


def _parametrized(holders: list[ast.AST], assigned: dict[str, ast.expr]) -> set[str]:
    """The parameters to which the marks of the holders give values."""

    def value_of(node: ast.expr) -> ast.expr:
        return assigned.get(node.id, node) if isinstance(node, ast.Name) else node

    names: set[str] = set()
    for holder in holders:
        marks = list(getattr(holder, "decorator_list", []))
        for node in getattr(holder, "body", []) if not isinstance(holder, ast.FunctionDef) else []:
            if isinstance(node, ast.Assign) and "pytestmark" in map(name_of, node.targets):
                marks += node.value.elts if isinstance(node.value, (ast.List, ast.Tuple)) else [node.value]
        for mark in map(value_of, marks):
            if isinstance(mark, ast.Call) and name_of(value_of(mark.func)) == "parametrize":
                argnames = [one.value for one in mark.keywords if one.arg == "argnames"]
                try:
                    given = ast.literal_eval(value_of([*argnames, *mark.args][0]))
                except (ValueError, IndexError):
                    continue
                names.update(
                    one.strip() for one in (given.split(",") if isinstance(given, str) else map(str, given))
                )
    return names


def _is_value(node: ast.expr | None) -> bool:
    return node is not None and not (isinstance(node, ast.Constant) and node.value is None)
