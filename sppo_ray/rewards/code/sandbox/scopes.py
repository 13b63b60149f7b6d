"""Which names of the tests mean the same: a local name is another one than its global namesake."""

from __future__ import annotations

import ast


class Scopes(ast.NodeVisitor):
    """`of(tree)`: a key for each name and parameter that is local to a function."""

    def __init__(self) -> None:
        self._keys: dict[ast.AST, str] = {}
        self._scopes: list[tuple[str, set[str]]] = []

    def of(self, tree: ast.Module) -> dict[ast.AST, str]:
        self.visit(tree)
        return self._keys

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for one in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(one)
        self._enter(node, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for one in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(one)
        self._enter(node, [node.body])

    def _enter(self, node: ast.FunctionDef | ast.Lambda, body: list[ast.AST] | list[ast.stmt]) -> None:
        places = node.args
        parameters = [*places.posonlyargs, *places.args, *places.kwonlyargs, places.vararg, places.kwarg]
        bound, outer = {one.arg for one in parameters if one is not None}, set()
        left: list[ast.AST] = list(body)
        while left:
            one = left.pop()
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                bound.add(one.id)
            elif isinstance(one, ast.ExceptHandler) and one.name:
                bound.add(one.name)
            elif isinstance(one, (ast.Global, ast.Nonlocal)):
                outer.update(one.names)
            if not isinstance(one, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
                left += ast.iter_child_nodes(one)
        self._scopes.append((f"{len(self._keys)}:{node.lineno}", bound - outer - {"self", "cls"}))
        for place in parameters:
            if place is not None:
                self._key(place, place.arg)
        for one in body:
            self.visit(one)
        self._scopes.pop()

    def visit_Name(self, node: ast.Name) -> None:
        self._key(node, node.id)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._key(node, node.name or "")
        self.generic_visit(node)

    def _key(self, node: ast.AST, name: str) -> None:
        for scope, bound in reversed(self._scopes):
            if name in bound:
                self._keys[node] = f"{scope}:{name}"
                return
        self._keys[node] = name
