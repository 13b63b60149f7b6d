"""Which calls of tests need not run beside pytest's own: `run_once` and `Runs`.

pytest runs the statements of the module, also their calls of tests, and then all tests; it does not
run the main guard.
"""

from __future__ import annotations

import ast
import itertools
from collections import Counter

from sppo_ray.rewards.code.sandbox import collectable, statements
from sppo_ray.rewards.code.sandbox.forms import name_of

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sppo_ray.rewards.code.sandbox.flow import Flow

EXIT = "exit_with_status"
"""The function that the changed code calls instead of `sys.exit`. Its name is that of an assertion,
see `rewrite.asserts`.
"""
_REPORTS = frozenset(
    [EXIT, "print", "len", "str", "repr", "sum", "range", "enumerate", "zip", "format", "round", "list"]
    + ["tuple", "dict", "set", "int", "bool", "any", "all", "isinstance", "sys", "time", "traceback"]
    + ["exit", "quit", "Exception", "BaseException", "AssertionError", "SystemExit", "__name__"]
)
"""What a main guard may name beside tests: it counts and prints their results."""
_REPORT_METHODS = frozenset(
    ["exit", "print_exc", "time", "perf_counter", "append", "join", "format", "write", "flush", "items"]
)
_REPORT_ATTRIBUTES = _REPORT_METHODS | {"__name__", "__doc__", "args", "argv", "stdout", "stderr"}
_PREPARATIONS = frozenset({"setup_module", "setUpModule", "setup_function", "teardown_function"})
_OWN = (ast.FunctionDef, ast.ClassDef)
_ASSIGNS = (
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.For, ast.comprehension),
    *(ast.Delete, ast.With),
)
_RUNS = (
    *(ast.Expr, ast.Assign, ast.AugAssign, ast.If, ast.For, ast.Try, ast.Pass, ast.Return, ast.Raise),
    *(ast.Break, ast.Continue, ast.Import),
)


def run_once(tree: ast.Module, flow: Flow) -> set[str]:
    """Tests that the end of the module calls and that read no data of it: to run them again would
    give nothing, and some can run only once in one state of the program.
    """
    found: set[str] = set()
    for node in itertools.takewhile(_is_quiet, reversed(tree.body)):
        found |= statements.calls_of(node)
    if not found:
        return found
    bindings: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tree):
        for name in _binds(node):
            bindings.setdefault(name, []).append(node)
    own = {name for name, nodes in bindings.items() if any(isinstance(one, _OWN) for one in nodes)}
    owned = any(_is_attribute(node, own) for node in ast.walk(tree))  # `test_a.cases = []`
    if owned or not bindings.keys().isdisjoint(_PREPARATIONS):  # pytest runs a test after these
        return set()
    return {name for name in found if bindings.get(name) and _reads_no_data(name, bindings, flow, set())}


def _is_attribute(node: ast.AST, own: set[str]) -> bool:
    of = node.value if isinstance(node, ast.Attribute) and node.attr not in ("__name__", "__doc__") else None
    return isinstance(of, ast.Name) and of.id in own


def _is_quiet(node: ast.stmt) -> bool:
    """A definition, a call of tests or a print: what stands before it means the same after it."""
    plain = (
        isinstance(node, (ast.Import, ast.ImportFrom))
        or statements.is_main_guard(node)
        or statements.is_print(node)
    )
    return (
        plain
        or (isinstance(node, ast.FunctionDef) and not node.decorator_list)
        or bool(statements.calls_of(node))
    )


def _binds(node: ast.AST) -> list[str]:
    """The names that a node binds, in whatever scope."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(one.asname or one.name).partition(".")[0] for one in node.names]
    if isinstance(node, _ASSIGNS):
        targets = [getattr(node, "target", None), *getattr(node, "targets", [])]
        targets += [one.optional_vars for one in getattr(node, "items", [])]
        inner = (name for one in targets if one is not None for name in ast.walk(one))
        return [one.id for one in inner if isinstance(one, ast.Name)]
    if isinstance(node, ast.ExceptHandler):
        return [node.name] if node.name else []
    return node.names if isinstance(node, ast.Global) else []


def _reads_no_data(name: str, bindings: dict[str, list[ast.AST]], flow: Flow, seen: set[str]) -> bool:
    """Whether it stands for one function that, like those that it names, needs no data but imports
    and values of the program.
    """
    found = bindings.get(name, [])
    if not found or name in seen:
        return True
    seen.add(name)
    node = found[0]
    if len(found) > 1 or isinstance(node, (ast.Import, ast.ImportFrom)):
        return len(found) == 1
    if isinstance(node, ast.FunctionDef):
        given = node.args.defaults + node.args.kw_defaults + node.decorator_list
        code = compile(ast.Module([node], []), "tests.py", "exec", dont_inherit=True)
        names = _global_names(code.co_consts)
        return not given and all(_reads_no_data(one, bindings, flow, seen) for one in names)
    return isinstance(node, ast.Assign) and bool(flow.of(node.value))


def _global_names(constants: tuple[Any, ...]) -> Iterator[str]:
    """The names of no scope of their own, and of attributes, in the code among constants."""
    for one in constants:
        if hasattr(one, "co_names"):
            yield from one.co_names
            yield from _global_names(one.co_consts)


class Runs:
    """What only runs collected tests that need no arguments, and whose names mean nothing else."""

    def __init__(self, body: list[ast.stmt], code: str) -> None:
        bound = Counter(name for node in body for one in ast.walk(node) for name in _binds(one))
        functions = [one for one in body if isinstance(one, ast.FunctionDef) and bound[one.name] == 1]
        tests = functions if "__test__" not in code else []
        self._tests = {
            one.name
            for one in tests
            if one.name.startswith("test") and not collectable.required(one, method=False)
        }
        self._runners = {
            one.name: one
            for one in functions
            if one.name not in self._tests and not (one.decorator_list or ast.unparse(one.args))
        }
        self._once = self._tests | self._runners.keys()
        self._named: list[str] = []
        module = compile(ast.Module(body, []), "tests.py", "exec", dont_inherit=True)
        self._read = {*_global_names(module.co_consts)}

    def only_tests(self, body: list[ast.stmt]) -> bool:
        """Whether it runs only collected tests, each once at most in all guards, and reports on
        them. It can name nothing of the program, and changes nothing that tests read.
        """
        left = [([one for one in body if not statements.runs_a_framework(one)], self._tests | self._read)]
        for block, outer in left:
            nodes = [inner for one in block for inner in ast.walk(one)]
            bound = {name for one in nodes if not isinstance(one, ast.Import) for name in _binds(one)}
            named = [one.id for one in nodes if isinstance(one, ast.Name) and one.id in self._once]
            self._named += named
            if len({*self._named}) < len(self._named) or not bound.isdisjoint(outer | _REPORTS):
                return False
            if not all(self._is_run(one, bound) for one in nodes) or _repeats(nodes, self._once):
                return False
            left += [(self._runners[one].body, self._tests) for one in named if one in self._runners]
        return True

    def _is_run(self, node: ast.AST, bound: set[str]) -> bool:
        if isinstance(node, ast.Import):
            return all(one.asname is None and one.name in _REPORTS for one in node.names)
        if isinstance(node, ast.stmt):
            return isinstance(node, _RUNS)
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            named = node.attr in _REPORT_ATTRIBUTES if isinstance(node, ast.Attribute) else True
            return named and isinstance(node.ctx, ast.Load)
        if isinstance(node, ast.Name):
            return not isinstance(node.ctx, ast.Load) or node.id in bound | self._once | _REPORTS
        if not isinstance(node, ast.Call):
            return True
        if isinstance(node.func, ast.Attribute):
            return node.func.attr in _REPORT_METHODS
        plain = isinstance(node.func, ast.Name)
        return plain and (node.func.id in _REPORTS or not node.args + node.keywords)


def _repeats(nodes: list[ast.AST], once: set[str]) -> bool:
    """Whether it may call a test several times: it names one within a loop, or calls what a loop
    goes through twice, or elsewhere.
    """

    def unnamed(of: list[ast.AST]) -> int:
        calls = [one for one in of if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)]
        return sum(one.func.id not in once | _REPORTS for one in calls)

    loops = [one for one in nodes if isinstance(one, ast.For)]
    inner = [[one for part in loop.body for one in ast.walk(part)] for loop in loops]
    named = any(isinstance(one, ast.For) or name_of(one) in once for part in inner for one in part)
    return named or unnamed(nodes) > 1 or unnamed(nodes) > sum(map(unnamed, inner))
