"""What the names of the tests stand for: second names of functions (`g = f`, `for t in (test_a,
test_b): t()`), numbers and texts.
"""

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


def unchangeable(tree: ast.AST) -> set[str]:
    """Names that only ever hold numbers, texts and tuples of them: no function changes these."""
    bindings: dict[str, int] = {}
    scalars: dict[str, int] = {}
    for node in ast.walk(tree):
        for name in _bound_by(node):
            bindings[name] = bindings.get(name, 0) + 1
        for name in _scalars_of(node):
            scalars[name] = scalars.get(name, 0) + 1
    return {name for name, number in scalars.items() if number == bindings[name]}


def _bound_by(node: ast.AST) -> list[str | None]:
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    if isinstance(node, ast.alias):
        return [node.asname or node.name]
    return [getattr(node, "arg", None) or getattr(node, "name", None)]


def _scalars_of(node: ast.AST) -> Iterator[str]:
    """The names that a statement binds to nothing but numbers and texts."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _scalar_targets(target, [node.value])
    elif isinstance(node, (ast.For, ast.comprehension)):
        values = getattr(node.iter, "elts", None)
        if isinstance(node.iter, ast.Call) and getattr(node.iter.func, "id", "") == "range":
            values = [ast.Constant(0)]
        if isinstance(node.iter, (ast.Tuple, ast.List, ast.Call)) and values:
            yield from _scalar_targets(node.target, values)


def _scalar_targets(target: ast.expr, values: list[ast.expr]) -> Iterator[str]:
    if isinstance(target, ast.Name):
        if all(map(_is_scalar, values)):
            yield target.id
    elif isinstance(target, (ast.Tuple, ast.List)):
        parts = [getattr(value, "elts", ()) for value in values]
        if all(len(one) == len(target.elts) for one in parts):
            for place, inner in enumerate(target.elts):
                yield from _scalar_targets(inner, [one[place] for one in parts])


def _is_scalar(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_scalar(node.operand)
    if isinstance(node, ast.Tuple):
        return all(map(_is_scalar, node.elts))
    return isinstance(node, (ast.Constant, ast.JoinedStr))
