"""Refuse tests whose verdict would not be sound here, before anything runs: the row is an error for
every program alike. `refuse` names the line and the form.
"""

from __future__ import annotations

import ast

from sppo_ray.rewards.code.sandbox import known
from sppo_ray.rewards.code.sandbox.aliases import assigned_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class TestsUnfit(Exception):
    """The tests cannot be run this way, for any program."""


_ELSEWHERE = "runs code where a failure is not seen"
_NO_FILES = "needs files, and neither tests nor programs may write any"
_MODULES = {
    **dict.fromkeys(["threading", "_thread", "concurrent", "multiprocessing", "asyncio"], _ELSEWHERE),
    **dict.fromkeys(["subprocess", "atexit", "doctest", "hypothesis"], _ELSEWHERE),
    **dict.fromkeys(["builtins", "importlib", "ctypes", "gc", "runpy"], "can change how tests run"),
    **dict.fromkeys(["pickle", "marshal", "shelve", "dill", "joblib"], "can run code of the program"),
    **dict.fromkeys(["tempfile", "shutil"], _NO_FILES),
    "socket": "needs a network, and neither tests nor programs have one",
}
"""Modules that tests may not import, with the reason."""
_SWALLOWS = "hides a failure"
_OF_FILES = frozenset({"mkdir", "makedirs", "remove", "unlink", "rename", "rmdir", "symlink", "chdir"})
_UNSEEN = "sees nothing of the program"
_NAMES = {
    **dict.fromkeys(["suppress", "ExitStack", "AsyncExitStack"], _SWALLOWS),
    **dict.fromkeys(["__exit__", "excepthook", "settrace", "setprofile"], _SWALLOWS),
    **dict.fromkeys(["doCleanups", "doClassCleanups"], _SWALLOWS),
    **dict.fromkeys(["skip", "skipIf", "skipUnless", "skipTest", "SkipTest"], "skips a test"),
    **dict.fromkeys(["skipif", "xfail", "expectedFailure", "importorskip"], "skips a test"),
    **dict.fromkeys(["patch", "Mock", "MagicMock", "mock_open", "monkeypatch"], "patches the program"),
    **dict.fromkeys(["redirect_stdout", "redirect_stderr", "capsys", "capfd"], "reads the program's output"),
    **dict.fromkeys(["warns", "deprecated_call", "assertWarns", "assertWarnsRegex"], _UNSEEN),
    **dict.fromkeys(["assertLogs", "assertNoLogs"], _UNSEEN),
    "fixture": "is not supported",
    **dict.fromkeys(["_exit", "modules", "f_globals", "__globals__", "__code__"], "can change how tests run"),
}
"""Names of libraries, and attributes of modules and of `self`, that tests may not use."""
_BUILTINS = {
    **dict.fromkeys(["exec", "eval", "compile", "__import__"], "runs code that is not checked"),
    **dict.fromkeys(["globals", "locals", "vars", "breakpoint", "__builtins__"], "can change how tests run"),
}
_NODES = {
    ast.AsyncFunctionDef: "async",
    ast.AsyncFor: "async",
    ast.AsyncWith: "async",
    ast.Await: "async",
    ast.TryStar: "except*",
    ast.Match: "match",
}
_MARKS = frozenset({"filterwarnings", "usefixtures"})
_JUMPS = (ast.Return, ast.Break, ast.Continue)
_SWAPPED = frozenset({"zip", "map", "all"})
_BROAD = frozenset({"AssertionError", "Exception", "BaseException"})
_CATCHERS = ("raises", "assertRaises", "assertRaisesRegex")


def refuse(tree: ast.Module, entry: str | None = None) -> None:
    """Raise TestsUnfit for the first form that cannot be judged. `entry`: the function under
    test.
    """
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    libraries = {"self", "cls"} | {
        bound for node in ast.walk(tree) for _, bound in _imports(node) if not _of_program(node)
    }
    own = {entry} | _bound(tree)
    for node in ast.walk(tree):
        why = _why(node) or _why_import(node, used) or _why_name(node, libraries) or _why_alias(node, called)
        if why := why or _why_file(node, own):
            raise TestsUnfit(f"line {getattr(node, 'lineno', 1)}: {why}")
    helpers = {node.id for node in names if id(node) in called} & _reached(tree)
    asserted = {
        _name_of(one)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        for one in ast.walk(node.test)
    }
    objects, assigned, decorating = _objects(tree), assigned_once(tree), decorators(tree)
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    own_functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    _refuse_marks(tree)
    for scope, function in collected(tree):
        _refuse_decorators([scope, function], objects)
        given = _parametrized([function, scope, tree], assigned)
        if isinstance(scope, ast.ClassDef) or function.name not in decorating:
            _refuse_test(scope, function, helpers, asserted, given)
        if _is_generator(function) and (
            isinstance(scope, ast.ClassDef)
            or function.name not in helpers
            or any(_yields(one, own_functions) for one in _own_nodes(function))
        ):
            raise TestsUnfit(f"line {function.lineno}: {function.name} is a generator: no test for pytest")
        if isinstance(scope, ast.ClassDef) and _is_made(scope, classes):
            raise TestsUnfit(f"line {scope.lineno}: pytest runs no test of a class with __init__ or __new__")


def generators(tree: ast.Module) -> set[str]:
    """Functions test* that are helpers: they yield what tests use."""
    return {function.name for _, function in collected(tree) if _is_generator(function)}


def _is_generator(function: ast.FunctionDef) -> bool:
    return any(isinstance(one, (ast.Yield, ast.YieldFrom)) for one in _own_nodes(function))


def _yields(node: ast.AST, functions: set[str]) -> bool:
    """`yield check, x, y`: whether a test of nose yields what it runs."""
    inner = list(ast.walk(node)) if isinstance(node, (ast.Yield, ast.YieldFrom)) else []
    return any(isinstance(one, ast.Lambda) or name_of(one) in functions for one in inner)


def _is_made(scope: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether it has an `__init__` or `__new__`, and is no TestCase as far as it is known."""
    line: list[ast.ClassDef] = [scope]
    for one in line:
        bases = [name_of(base) for base in one.bases]
        if any(base not in classes and base not in ("object", "ABC") for base in bases):
            return False
        line += [classes[base] for base in bases if base in classes and classes[base] not in line]
    dataclass = any(_plain_name(mark) == "dataclass" for one in line for mark in one.decorator_list)
    return dataclass or any(_defines(one, name) for one in line for name in ("__init__", "__new__"))


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


def _refuse_decorators(holders: list[ast.AST], objects: set[str]) -> None:
    """Refuse a test in the place of which its decorator puts an object."""
    for holder in holders:
        for one in getattr(holder, "decorator_list", []):
            if _plain_name(one) in objects or name_of(one) in ("property", "cached_property"):
                raise TestsUnfit(f"line {one.lineno}: a class as the decorator of a test is not followed")


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
    own = list(_own_nodes(function))
    returns = any(isinstance(node, ast.Return) and _is_value(node.value) for node in own)
    judges = any(isinstance(node, ast.Assert) or _is_check(node) for node in own)
    if returns and not (missing or judges or function.name in asserted):
        raise TestsUnfit(f"{where}pytest ignores what {function.name} returns")


def _imports(node: ast.AST) -> list[tuple[str, str]]:
    """What an import statement imports, with the names that it binds."""
    names = node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else []
    return [(one.name, (one.asname or one.name).partition(".")[0]) for one in names]


def _of_program(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module in known.PROGRAM_MODULES


def _why_import(node: ast.AST, used: set[str]) -> str:
    """Imports that nothing uses do no harm."""
    for name, bound in _imports(node) if not _of_program(node) else []:
        root = (node.module or "" if isinstance(node, ast.ImportFrom) else name).partition(".")[0]
        if root in _MODULES and (bound in used or name == "*"):
            return f"{root} {_MODULES[root]}"
        last = name.rpartition(".")[2]
        if last in _NAMES and bound in used:
            return f"{last} {_NAMES[last]}"
    return ""


def _why_name(node: ast.AST, libraries: set[str]) -> str:
    name, root = name_of(node), _root(node)
    if name in _NAMES and (name.startswith("__") or root in libraries or known.is_known(root)):
        return f"{name} {_NAMES[name]}"
    if isinstance(node, ast.Name) and name in _BUILTINS:
        return f"{name} {_BUILTINS[name]}"
    if isinstance(node, ast.FunctionDef) and node.name == "__exit__":
        return f"__exit__ {_NAMES['__exit__']}"
    if isinstance(node, ast.Constant) and node.value == "__exit__":
        return f"__exit__ {_NAMES['__exit__']}"
    return ""


def _why(node: ast.AST) -> str:
    for kind, name in _NODES.items():
        if isinstance(node, kind):
            return f"{name} is not supported"
    if isinstance(node, ast.Try) and any(isinstance(one, _JUMPS) for one in _inside(node.finalbody)):
        return "a jump in `finally` hides a failure"
    if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts:
        return "the assertion is a tuple, which is always true"
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_stream(node):
        return "the program's output is not seen here"
    if isinstance(node, ast.ClassDef) and "TestCase" in map(name_of, node.bases):
        for name in ("run", "debug", "__call__"):
            if _defines(node, name):
                return f"{name} of a TestCase is not supported"
    if isinstance(node, ast.FunctionDef) and node.name in ("load_tests", "pytest_generate_tests"):
        return f"{node.name} is not supported"
    if isinstance(node, ast.Attribute) and node.attr in _MARKS and name_of(node.value) == "mark":
        return f"pytest.mark.{node.attr} is not supported"
    if isinstance(node, ast.FunctionDef) and _never_runs(node):
        return f"{node.name} is a generator, and its assertions may never run"
    if isinstance(node, ast.Expr) and (
        isinstance(node.value, ast.GeneratorExp) or _name_of(node.value) in ("map", "filter")
    ):
        return "the generator never runs"
    if isinstance(node, _COMPREHENSIONS) and any(map(_is_check, ast.walk(node))):
        return "an assertion in a comprehension may never run"
    if isinstance(node, ast.Call) and name_of(node.func) == "catch_warnings" and node.keywords:
        return f"catch_warnings {_UNSEEN}"
    if _catches_its_own(node):
        return "the test expects a failure of its own assertion"
    return ""


def _why_alias(node: ast.AST, called: set[int]) -> str:
    """These are replaced where they are called."""
    if isinstance(node, ast.Name) and node.id in _SWAPPED and id(node) not in called:
        return f"{node.id} is used without a call"
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in {*_SWAPPED, *_BROAD}:
        return f"{node.name} is defined again"
    return ""


def _why_file(node: ast.AST, own: set[str | None]) -> str:
    """`open`, unless the tests define it, and functions of `os` that change files."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
        place = ast.unparse(node.args[0]) if node.args else ""
        if "open" not in own and not ("devnull" in place or "/dev/" in place):
            return f"open {_NO_FILES}"
    if isinstance(node, ast.Attribute) and node.attr in _OF_FILES and isinstance(node.value, ast.Name):
        return f"os.{node.attr} {_NO_FILES}" if node.value.id == "os" else ""
    return ""


def _bound(tree: ast.AST) -> set[str]:
    """The names that the tests bind."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        else:
            found.update(bound for _, bound in _imports(node))
    return found


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _never_runs(node: ast.FunctionDef) -> bool:
    """Whether it is a generator with assertions, and no context manager."""
    own = list(_own_nodes(node))
    yields = any(isinstance(one, (ast.Yield, ast.YieldFrom)) for one in own)
    managed = any(name_of(one) == "contextmanager" for one in node.decorator_list)
    managed = managed and not node.name.startswith("test")
    return yields and not managed and any(isinstance(one, ast.Assert) or _is_check(one) for one in own)


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What a function runs itself, without inner functions."""
    left: list[ast.AST] = list(function.body)
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            left += ast.iter_child_nodes(node)


def _is_value(node: ast.expr | None) -> bool:
    return node is not None and not (isinstance(node, ast.Constant) and node.value is None)


def _is_check(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _asserts(node.func)


def _name_of(node: ast.AST) -> str:
    return name_of(node.func) if isinstance(node, ast.Call) else ""


def _is_stream(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "sys"


def _catches_its_own(node: ast.AST) -> bool:
    """`with pytest.raises(AssertionError): assert f(1) == 2`, and the like."""
    if isinstance(node, ast.With):
        calls = [one.context_expr for one in node.items]
        inner: list[ast.AST] = list(node.body)
    elif isinstance(node, ast.Call):
        calls, inner = [node], list(node.args[1:])
    else:
        return False
    for call in calls:
        if isinstance(call, ast.Call) and name_of(call.func) in _CATCHERS:
            kinds = call.args[0].elts if call.args and isinstance(call.args[0], ast.Tuple) else call.args[:1]
            specific = kinds and all(
                isinstance(one, (ast.Name, ast.Attribute)) and name_of(one) not in _BROAD for one in kinds
            )
            if not specific and any(isinstance(one, ast.Assert) or _asserts(one) for one in _inside(inner)):
                return True
    return False


def _asserts(node: ast.AST) -> bool:
    return (name_of(node) if isinstance(node, (ast.Attribute, ast.Name)) else "").startswith("assert")


def _inside(nodes: list[ast.AST] | list[ast.stmt]) -> Iterator[ast.AST]:
    return (inner for one in nodes for inner in ast.walk(one))


def name_of(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _defines(scope: ast.ClassDef, name: str) -> bool:
    return any(isinstance(one, ast.FunctionDef) and one.name == name for one in scope.body)


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
        for one in _own_nodes(node)
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
