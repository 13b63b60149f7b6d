"""Whether the tests hand an object of their own to the program, whatever the program returns:
`f(lambda x: x)`. Then they cannot be run, for any program.

Where a value of the program decides on it, as in `f(1) or f(print)`, the program is at fault:
`hands_over` follows no branch, loop or handler on such a value.
"""

from __future__ import annotations

import ast
import builtins

from sppo_ray.rewards.code.sandbox.aliases import assigned_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sppo_ray.rewards.code.sandbox.subject import Subject

_PLAIN_NAMES = """abs bin bool bytearray bytes chr complex dict divmod enumerate filter float frozenset hex
    int len list map max min oct ord pow range repr reversed round set sorted str sum tuple zip Counter
    OrderedDict defaultdict deque Decimal Fraction date datetime timedelta copy deepcopy accumulate chain
    combinations islice permutations product ceil floor gcd sqrt array arange"""
_PLAIN = frozenset(_PLAIN_NAMES.split())
"""Functions that give plain values of plain ones."""
_MODULE_NAMES = """collections copy datetime decimal fractions json math np numpy operator random string
    textwrap"""
_PLAIN_MODULES = frozenset(_MODULE_NAMES.split())
_DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
_LEAVES = (ast.Return, ast.Break, ast.Continue)


def hands_over(tree: ast.Module, subject: Subject) -> bool:
    """Whether a call that always happens hands over what is not plain and not of the program."""
    return _Calls(tree, subject).found


class _Calls(ast.NodeVisitor):
    """Visits what runs whatever the program returns, functions from the place where they are
    named.
    """

    def __init__(self, tree: ast.Module, subject: Subject) -> None:
        self.found = False
        self._flow, self._taken = subject.flow, subject.taken
        self._functions: dict[str, list[ast.FunctionDef]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self._functions.setdefault(node.name, []).append(node)
        self._definitions = {node.name for node in ast.walk(tree) if isinstance(node, _DEFINITIONS)}
        lambdas = (name for name, value in assigned_once(tree).items() if isinstance(value, ast.Lambda))
        self._definitions |= {*lambdas}
        self._libraries = {
            (one.asname or one.name).partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for one in node.names
        }
        self._own = self._makers(tree)  # and what is bound to such an object, by its name or ".x"
        self._block(tree.body)
        for name in [one for one in self._functions if one.startswith(("test", "check", "set", "runTest"))]:
            self._enter(name)

    def _makers(self, tree: ast.Module) -> set[str]:
        """The classes of the tests, and their functions that return own objects."""
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        bound = {
            name: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            for name in _names(target)
        }
        size = -1
        while size != (size := len(own)):
            made = own | {name for name, value in bound.items() if self._is_own(value, own)}
            for function in (one for found in self._functions.values() for one in found):
                returned = (one.value for one in ast.walk(function) if isinstance(one, ast.Return))
                if any(self._is_own(one, made) for one in returned if one is not None):
                    own.add(function.name)
        return own

    def _is_own(self, value: ast.expr, own: set[str]) -> bool:
        """Whether it may be, or hold, an object of the tests or of a library."""
        nodes = list(ast.walk(value))
        called = {id(one.func) for one in nodes if isinstance(one, ast.Call)}
        return any(
            isinstance(one, ast.Lambda)
            or (id(one) not in called and self._is_object(one, own))
            or (isinstance(one, ast.Call) and self._makes_own(one.func, own))
            for one in nodes
        )

    def _is_object(self, node: ast.AST, own: set[str]) -> bool:
        if isinstance(node, ast.Attribute):
            return "." + node.attr in own
        if not isinstance(node, ast.Name) or node.id in _PLAIN:  # these go by their names
            return False
        return node.id in own | self._definitions or callable(getattr(builtins, node.id, None))

    def _makes_own(self, function: ast.expr, own: set[str]) -> bool:
        """Whether a call of it may give such an object."""
        if isinstance(function, ast.Name):
            known = _PLAIN | self._definitions | self._taken.keys()
            return function.id in own or function.id not in known
        while isinstance(function, ast.Attribute):
            function = function.value
        name = function.id if isinstance(function, ast.Name) else ""
        return name in own or (name in self._libraries and name not in _PLAIN_MODULES)

    def _enter(self, name: str) -> None:
        for function in self._functions.pop(name, []):
            self._block(function.body)

    def _block(self, body: list[ast.stmt]) -> None:
        """Up to the statement in which a value of the program may leave the block."""
        for node in body:
            if isinstance(node, _DEFINITIONS):
                for one in node.decorator_list:
                    self.visit(one)
                    for place in node.args.args if isinstance(node, ast.FunctionDef) else []:
                        for value in _given(one):
                            self._bind(place, value)
                if isinstance(node, ast.ClassDef):
                    self._block([one for one in node.body if not isinstance(one, ast.FunctionDef)])
                continue
            self.visit(node)
            if self._decides(node) and any(isinstance(one, _LEAVES) for one in ast.walk(node)):
                return

    def _decides(self, node: ast.stmt) -> bool:
        """Whether a value of the program decides what runs in this statement."""
        decider = getattr(node, "test", None) or getattr(node, "iter", None)
        if isinstance(node, ast.Try):
            return bool(self._flow.of(*node.body))
        return hasattr(node, "body") and decider is not None and bool(self._flow.of(decider))

    def visit_If(self, node: ast.If | ast.While | ast.For) -> None:
        decider = node.iter if isinstance(node, ast.For) else node.test
        self.visit(decider)
        if not self._flow.of(decider):
            if isinstance(node, ast.For):
                self._bind(node.target, decider)
            self._block(node.body)
            self._block(node.orelse)

    visit_While = visit_For = visit_If

    def visit_With(self, node: ast.With) -> None:
        for one in node.items:
            self.visit(one.context_expr)
        self._block(node.body)

    def visit_Try(self, node: ast.Try) -> None:
        self._block(node.body)
        if not self._flow.of(*node.body):
            for block in (node.orelse, *(one.body for one in node.handlers)):
                self._block(block)
        self._block(node.finalbody)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        if not self._flow.of(node.test):
            self.visit(node.body)
            self.visit(node.orelse)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for one in node.values:
            self.visit(one)
            if self._flow.of(one):
                return

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for one in node.generators:
            self.visit(one.iter)
            if self._flow.of(one.iter, *one.ifs):
                return
            self._bind(one.target, one.iter)
        for one in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(one)

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp

    def visit_Name(self, node: ast.Name) -> None:
        self._enter(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._enter(node.attr)
        self.visit(node.value)

    def _bind(self, target: ast.AST, value: ast.expr | None) -> None:
        if value is not None and self._is_own(value, self._own) and not self._flow.of(value):
            self._own.update(_names(target))

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for one in node.targets:
            self._bind(one, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign | ast.NamedExpr) -> None:
        if node.value is not None:
            self.visit(node.value)
        self._bind(node.target, node.value)

    visit_NamedExpr = visit_AnnAssign

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        for function in self._functions.get(name, []):
            for place, value in zip(function.args.args, node.args, strict=False):
                self._bind(place, value)
        self.generic_visit(node)
        if (isinstance(node.func, ast.Name) and node.func.id in self._taken) or self._flow.of(node.func):
            self.found = self.found or any(map(self._is_handed, _given(node)))

    def _is_handed(self, value: ast.expr) -> bool:
        # one that the program may have changed meanwhile is still an object of the tests
        whole = isinstance(value, (ast.Name, ast.Attribute, ast.Lambda))
        return self._is_own(value, self._own) and (whole or not self._flow.of(value))


def _names(node: ast.AST) -> list[str]:
    """What an assignment to it binds."""
    if isinstance(node, (ast.Tuple, ast.List)):
        return [name for one in node.elts for name in _names(one)]
    if isinstance(node, (ast.Subscript, ast.Starred)):
        return _names(node.value)
    if isinstance(node, ast.Attribute):
        return ["." + node.attr]
    name = getattr(node, "id", None) or getattr(node, "arg", None)
    return [name] if isinstance(name, str) else []


def _given(node: ast.expr) -> list[ast.expr]:
    return [*node.args, *(one.value for one in node.keywords)] if isinstance(node, ast.Call) else []
