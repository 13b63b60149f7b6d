"""Second names of functions in the tests: `g = f`, `for t in (test_a, test_b): t()`."""

from __future__ import annotations

import ast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def aliases(tree: ast.Module) -> list[tuple[str, str]]:
    """`g = f`, `for g in (f, h)`, and check(f) for `def check(g)`, each as (g, f)."""
    return list(_aliases(tree))


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    functions = {
        node.name: [one.arg for one in node.args.args]
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assigned = assigned_once(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from _pairs(node.targets[0], [node.value])
        elif isinstance(node, (ast.For, ast.comprehension)):
            yield from _pairs(node.target, members(node.iter, assigned))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            for name, given in zip(functions.get(node.func.id, []), node.args, strict=False):
                if isinstance(given, ast.Name):
                    yield name, given.id


def _pairs(target: ast.expr, values: list[ast.expr]) -> Iterator[tuple[str, str]]:
    for value in values:
        if isinstance(target, ast.Name) and isinstance(value, ast.Name):
            yield target.id, value.id
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
            for one, other in zip(target.elts, value.elts, strict=False):
                yield from _pairs(one, [other])


def members(node: ast.expr, assigned: dict[str, ast.expr]) -> list[ast.expr]:
    """What a loop over a list or dict of the tests gives, also where the list has a name."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
        owner = _value(node.func.value, assigned)
        if isinstance(owner, ast.Dict) and node.func.attr == "items":
            pairs = zip(owner.keys, owner.values, strict=True)
            return [ast.Tuple([key, value], ast.Load()) for key, value in pairs if key is not None]
        return owner.values if isinstance(owner, ast.Dict) and node.func.attr == "values" else []
    whole = _value(node, assigned)
    return whole.elts if isinstance(whole, (ast.List, ast.Tuple)) else []


def _value(node: ast.expr, assigned: dict[str, ast.expr]) -> ast.expr:
    found = assigned.get(node.id, node) if isinstance(node, ast.Name) else node
    return found if found._fields else node  # plain values, see `flow.hide_literals`, are no functions


def assigned_once(tree: ast.AST) -> dict[str, ast.expr]:
    """The values of the names that one statement assigns."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for one in node.targets:
                if isinstance(one, ast.Name):
                    found.setdefault(one.id, []).append(node.value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}
