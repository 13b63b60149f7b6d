"""Find the functions and classes under test: those that the tests call and do not define.

Only these are taken from the program. Other undefined names have a fixed meaning (`known`), or the
tests are at fault: a program that supplied a tolerance, a helper or an expected value would judge
itself.

    the ground truth names a function    it is the one under test; classes may stand beside it
    one name that the tests call         it is the one
    several                              each, where no function judges or receives what another one
                                         gave
"""

from __future__ import annotations

import ast
import builtins
import importlib
import symtable

from sppo_ray.rewards.code.sandbox import known
from sppo_ray.rewards.code.sandbox.aliases import aliases
from sppo_ray.rewards.code.sandbox.flow import Flow, is_class
from sppo_ray.rewards.code.sandbox.forms import TestsUnfit
from sppo_ray.rewards.code.sandbox.known import PROGRAM_MODULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TAKE_A_FUNCTION = frozenset(
    {"map", "filter", "reduce", "partial", "starmap", "partialmethod", "timeit", "iter"}
)
_TAKE_IT_SECOND = frozenset({"raises", "assertRaises", "assertRaisesRegex", "assertWarns", "accumulate"})


class Subject:
    """`taken`: name in the program of each name that the tests call. `kinds`: of exceptions.
    `required`: names that the tests import at their start.

    `fixed`: names of `known`, with whether they are called. `own`: those of them that Python finds
    in the program only. `flow`: which values come from the program.
    """

    def __init__(self, code: str, tree: ast.Module, entry: str | None) -> None:
        modules, imported = _program_imports(tree)
        if entry is None and not imported and all(map(known.is_known, _undefined(code, None))):
            entry = _only_called(tree)
        loose = _undefined(code, entry) - (_starred(tree) - {entry})
        read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        imported = {name: real for name, real in imported.items() if name in read or name == entry}
        members = _Members(modules)
        members.visit(tree)
        imported |= members.found
        called = _used_as_functions(tree)
        caught = _used_as_exceptions(tree) - (called - _only_raised(tree))
        called |= _used_as_types(tree) - caught
        aliases = imported | {name: name for name in loose}
        unknown = {name for name in loose if not known.is_known(name)} - {entry} - caught
        named = {entry} if entry in loose or entry is None else set()
        if entry is None and len(unknown) == 1 and not loose & called and not imported:
            called |= unknown  # handed to something, and nothing else can be meant
        wanted = (unknown & called) | (set(imported) - caught) | (named - {None})
        if entry is not None:
            _refuse(
                sorted(
                    name
                    for name in unknown | set(imported) - caught
                    if aliases[name] != entry and not is_class(name)
                )
            )
        elif not wanted:
            wanted = _not_fed(tree, loose & called)
        else:
            wanted |= _asked_alone(tree, loose & called, wanted)
        _refuse(sorted(unknown - called))
        _refuse(sorted(set(imported) - called - caught - {entry}))
        self.taken = {name: aliases[name] for name in wanted}
        own = set(imported) | {name for name in loose if not known.is_known(name)}
        self.kinds = {name: aliases[name] for name in caught & own}
        self.required = [
            one.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module in PROGRAM_MODULES
            for one in node.names
            if one.name != "*"
        ]
        self.fixed = {name: name in called for name in loose - wanted - set(self.kinds)}
        self.own = _tasks(tree, set(self.fixed), wanted) if entry is None else set()
        self.flow = Flow(tree, set(self.taken), entry)
        self.flow.refuse_judges(TestsUnfit)
        self.flow.refuse_own_methods(TestsUnfit)


def _undefined(code: str, entry: str | None) -> set[str]:
    """Return names that the tests use and neither they nor Python define; `entry` may hide a
    built-in one.
    """
    top = symtable.symtable(code, "tests.py", "exec")
    own = {"__name__", "__file__", "exit", "quit"}  # without `site`, the last two are no builtins
    bound, used = (set(dir(builtins)) - {entry}) | own, set()
    for table in _tables(top):
        for symbol in table.get_symbols():
            outer = table is top or symbol.is_global()
            if outer and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()):
                bound.add(symbol.get_name())
            elif outer and symbol.is_referenced():
                used.add(symbol.get_name())
    return used - bound


def _starred(tree: ast.Module) -> set[str]:
    """Names of `from math import *`, without those that are known anyway."""
    found: set[str] = set()
    for node in ast.walk(tree):
        is_star = isinstance(node, ast.ImportFrom) and [one.name for one in node.names] == ["*"]
        if is_star and node.module not in PROGRAM_MODULES and not node.level:
            try:
                module = importlib.import_module(node.module or "")
            except ImportError:
                continue
            found.update(getattr(module, "__all__", dir(module)))
    return {name for name in found if not known.is_known(name)}


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for inner in table.get_children():
        yield from _tables(inner)


def _program_imports(tree: ast.Module) -> tuple[set[str], dict[str, str]]:
    """`import solution as s` gives {"s"}; `from solution import f as g` gives {"g": "f"}."""
    modules: set[str] = set()
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(one.asname or one.name for one in node.names if one.name in PROGRAM_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in PROGRAM_MODULES:
            names.update({one.asname or one.name: one.name for one in node.names if one.name != "*"})
    return modules, names


class _Members(ast.NodeTransformer):
    """Turns `solution.f` into one name, "solution.f"; `found` maps it to the name in the
    program.
    """

    def __init__(self, modules: set[str]) -> None:
        self._modules = modules
        self.found: dict[str, str] = {}

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if not (
            isinstance(node.value, ast.Name)
            and node.value.id in self._modules
            and isinstance(node.ctx, ast.Load)
        ):
            return node
        name = f"{node.value.id}.{node.attr}"
        self.found[name] = node.attr
        return ast.copy_location(ast.Name(name, ast.Load()), node)


def _used_as_functions(tree: ast.Module) -> set[str]:
    """Return names that are called, directly or by an alias in the tests."""
    names = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    names |= {node.id for node in _handed_on(tree) if isinstance(node, ast.Name)}
    names |= {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and is_class(node.value.id)
    }  # Date.today()
    pairs = aliases(tree)
    while more := {value for target, value in pairs if target in names} - names:
        names |= more
    return names


def _only_raised(tree: ast.Module) -> set[str]:
    """Return names that are called in `raise X(...)` only."""
    raised = {id(node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise)}
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    names = {True: set(), False: set()}
    for node in calls:
        names[id(node) in raised].add(node.func.id)
    return names[True] - names[False]


def _handed_on(tree: ast.Module) -> Iterator[ast.expr]:
    """Return functions passed to a caller: map(f, ...), key=f, assertRaises(ValueError, f, ...)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in _TAKE_A_FUNCTION and node.args:
                yield node.args[0]
            if name in _TAKE_IT_SECOND and len(node.args) > 1:
                yield node.args[1]
            if name in ("callable", "signature", "iscoroutinefunction"):
                yield from node.args
            yield from (given.value for given in node.keywords if given.arg in ("key", "target", "candidate"))
        elif isinstance(node, ast.ClassDef):
            yield from node.bases


def _used_as_types(tree: ast.Module) -> set[str]:
    """Names in isinstance(value, X) and isinstance(value, (X, Y))."""
    kinds = [
        node.args[1]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and len(node.args) > 1
        and (node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", ""))
        in ("isinstance", "assertIsInstance", "issubclass")
    ]
    flat = [one for kind in kinds for one in (kind.elts if isinstance(kind, ast.Tuple) else [kind])]
    return {one.id for one in flat if isinstance(one, ast.Name)}


def _used_as_exceptions(tree: ast.Module) -> set[str]:
    """Names in `except X`, pytest.raises(X) and assertRaises(X)."""
    places = [node.type for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in _TAKE_IT_SECOND:
                places.append(node.args[0])
    flat = [one for place in places for one in (place.elts if isinstance(place, ast.Tuple) else [place])]
    return {one.id for one in flat if isinstance(one, ast.Name)}


def _only_called(tree: ast.Module) -> str | None:
    """The one function that plain assertions call, where its name has a fixed meaning that is no
    task: `assert sum(10, 15) == 6`. Without the program they would prove nothing.
    """
    if not all(isinstance(node, ast.Assert) for node in tree.body):
        return None
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {one.id if isinstance(one, ast.Name) else "" for one in calls}
    name = called.pop() if len(called) == 1 else ""
    is_fixed = hasattr(builtins, name) or (known.is_known(name) and not known.is_task(name))
    return name if is_fixed and not is_class(name) else None


def _not_fed(tree: ast.Module, names: set[str]) -> set[str]:
    """Return the fixed names that receive no value of another: sqrt in `isclose(sqrt(2), 1.4)`."""
    asked = {name for name in names if known.is_task(name)}
    return asked - Flow(tree, asked, None).fed()


def _asked_alone(tree: ast.Module, names: set[str], wanted: set[str]) -> set[str]:
    """Return the names of tasks that an assertion calls, and that meets no value of the program:
    gcd in `assert gcd(12, 18) == 6`, not sqrt in `assert f(4) == sqrt(16)`.
    """
    asked: set[str] = set()
    flow = Flow(tree, wanted, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and _is_assertion(node.func)):
            functions = (one.func for one in ast.walk(node) if isinstance(one, ast.Call))
            called = {one.id for one in functions if isinstance(one, ast.Name)}
            if not called & wanted and not flow.of(node):
                asked |= called & names
    return {name for name in asked if known.is_task(name)} - Flow(tree, asked | wanted, None).fed()


def _tasks(tree: ast.Module, names: set[str], taken: set[str]) -> set[str]:
    """Return the names of tasks whose meaning must be the program's: all of them after `import *`;
    where nothing is imported from it, those of a statement without a function of the program, as in
    `r = gcd(12, 18)`, that receive no value of the program, as `isclose` does.
    """
    names = set(filter(known.is_task, names))
    if has_star(tree):
        return names
    if not names or any(_program_imports(tree)):
        return set()
    alone: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            parts = [one for one in ast.iter_child_nodes(node) if not isinstance(one, ast.stmt)]
            read = {one.id for part in parts for one in ast.walk(part) if isinstance(one, ast.Name)}
            if not read & taken:
                alone |= read & names
    return alone - Flow(tree, alone | taken, None).fed()


def has_star(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom) and node.module in PROGRAM_MODULES and node.names[0].name == "*"
        for node in ast.walk(tree)
    )


def _is_assertion(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and function.attr.startswith("assert")


def _refuse(names: list[str]) -> None:
    if names:
        raise TestsUnfit(
            f"they use {', '.join(names)} and do not define it; only the function under test comes from the "
            "program: "
            "put what it stands for into the tests"
        )
