"""The end of a test file: the main guard, calls of tests that are collected anyway, the exit
status. `arrange` puts them in an order in which nothing is lost.

pytest never runs the main guard, and a script collects no tests. Here both happen: first the
module, then the collected tests, then the guards, without those that only run collected tests.
"""

from __future__ import annotations

import ast

from sppo_ray.rewards.code.sandbox import forms

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sppo_ray.rewards.code.sandbox.flow import Flow

EXIT = "exit_with_status"
"""The function that the changed code calls instead of `sys.exit`. Its name is that of an assertion,
see `rewrite.asserts`.
"""
_FRAMEWORKS = frozenset({"unittest", "pytest"})
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
_ASSIGNS = (
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.For, ast.comprehension),
    *(ast.Delete, ast.With),
)
_RUNS = (
    *(ast.Expr, ast.Assign, ast.AugAssign, ast.If, ast.For, ast.Try, ast.Pass, ast.Return, ast.Raise),
    *(ast.Break, ast.Continue, ast.Import),
)


def arrange(tree: ast.Module, code: str) -> None:
    """Move the main guards to the end, without those that only run what is collected anyway. Raises
    TestsUnfit for a framework that runs earlier, or with something else, and for other questions
    about `__name__`.
    """
    if "SystemExit" not in code:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body[-1] = _judged(node.body[-1])
    guards = [node for node in tree.body if is_main_guard(node)]
    _refuse_other_guards(tree, guards)
    rest = [_judged(node) for node in tree.body if node not in guards and not _is_success(node)]
    for place, node in enumerate(rest):
        later = [one for one in rest[place + 1 :] if not _only_prints(one)]
        if _runs_a_framework(node) and later:
            raise forms.TestsUnfit(f"line {node.lineno}: the framework runs before the end of the tests")
    _refuse_other_tests(tree)
    for one in guards:
        one.body = [_judged(node) for node in one.body if not _is_success(node)]
        _refuse_beside_a_framework(one.body)
    if guards:
        runs = _Runs(rest, code)
        guards = [one for one in guards if one.body and not runs.only_tests(one.body)]
    tree.body = [node for node in rest if not _runs_a_framework(node)] + guards


def run_once(tree: ast.Module, flow: Flow) -> set[str]:
    """Tests that the end of the module calls and that read no data of it: to run them again would
    give nothing, and some can run only once in one state of the program.
    """
    found: set[str] = set()
    for place, node in enumerate(tree.body):
        if all(map(_is_quiet, tree.body[place:])):
            found |= _calls_of(node)
    bindings: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tree) if found else ():
        for name in _binds(node):
            bindings.setdefault(name, []).append(node)
    if not bindings.keys().isdisjoint(_PREPARATIONS):  # pytest runs a test after these
        return set()
    return {name for name in found if bindings.get(name) and _reads_no_data(name, bindings, flow, set())}


def _is_quiet(node: ast.stmt) -> bool:
    """A definition, a call of tests or a print: what stands before it means the same after it."""
    plain = isinstance(node, (ast.Import, ast.ImportFrom)) or is_main_guard(node) or _is_print(node)
    return plain or (isinstance(node, ast.FunctionDef) and not node.decorator_list) or bool(_calls_of(node))


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
    node = found[0]
    if len(found) > 1 or isinstance(node, (ast.Import, ast.ImportFrom)):
        return len(found) == 1
    if isinstance(node, ast.FunctionDef):
        given = node.args.defaults + node.args.kw_defaults + node.decorator_list
        code = compile(ast.Module([node], []), "tests.py", "exec", dont_inherit=True)
        names = _global_names(code.co_consts)
        return not given and all(_reads_no_data(one, bindings, flow, seen | {name}) for one in names)
    return isinstance(node, ast.Assign) and bool(flow.of(node.value))


def _global_names(constants: tuple[Any, ...]) -> Iterator[str]:
    """The names of no scope of their own, and of attributes, in the code among constants."""
    for one in constants:
        if hasattr(one, "co_names"):
            yield from one.co_names
            yield from _global_names(one.co_consts)


def is_main_guard(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`."""
    test = node.test if isinstance(node, ast.If) else None
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        return False
    sides = [test.left, *test.comparators]
    names = [one.id for one in sides if isinstance(one, ast.Name)]
    return names == ["__name__"] and "__main__" in [getattr(one, "value", None) for one in sides]


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


class _Runs:
    """What only runs collected tests that need no arguments, and whose names mean nothing else."""

    def __init__(self, body: list[ast.stmt], code: str) -> None:
        bound = [name for node in body for one in ast.walk(node) for name in _binds(one)]
        functions = [one for one in body if isinstance(one, ast.FunctionDef) and bound.count(one.name) == 1]
        tests = functions if "__test__" not in code else []
        self._tests = {
            one.name for one in tests if one.name.startswith("test") and not forms.required(one, method=False)
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
        left = [([one for one in body if not _runs_a_framework(one)], self._tests | self._read)]
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
    named = any(isinstance(one, ast.For) or forms.name_of(one) in once for part in inner for one in part)
    return named or unnamed(nodes) > 1 or unnamed(nodes) > sum(map(unnamed, inner))


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
