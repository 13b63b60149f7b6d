"""Refuse tests whose verdict would not be sound here, before anything runs: the row is an error for
every program alike. `refuse` names the line and the form.
"""

from __future__ import annotations

import ast

from sppo_ray.rewards.code.sandbox import known

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
            if defines(node, name):
                return f"{name} of a TestCase is not supported"
    if isinstance(node, ast.FunctionDef) and node.name in ("load_tests", "pytest_generate_tests"):
        return f"{node.name} is not supported"
    if isinstance(node, ast.Attribute) and node.attr in _MARKS and name_of(node.value) == "mark":
        return f"pytest.mark.{node.attr} is not supported"
    if isinstance(node, ast.FunctionDef) and _never_runs(node):
        return f"{node.name} is a generator, and its assertions may never run"
    if isinstance(node, ast.Expr) and (
        isinstance(node.value, ast.GeneratorExp) or name_of_call(node.value) in ("map", "filter")
    ):
        return "the generator never runs"
    if isinstance(node, _COMPREHENSIONS) and any(map(is_check, ast.walk(node))):
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
    own = list(own_nodes(node))
    yields = any(isinstance(one, (ast.Yield, ast.YieldFrom)) for one in own)
    managed = any(name_of(one) == "contextmanager" for one in node.decorator_list)
    managed = managed and not node.name.startswith("test")
    return yields and not managed and any(isinstance(one, ast.Assert) or is_check(one) for one in own)


def own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What a function runs itself, without inner functions."""
    left: list[ast.AST] = list(function.body)
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            left += ast.iter_child_nodes(node)


def is_check(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _asserts(node.func)


def name_of_call(node: ast.AST) -> str:
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


def defines(scope: ast.ClassDef, name: str) -> bool:
    return any(isinstance(one, ast.FunctionDef) and one.name == name for one in scope.body)
